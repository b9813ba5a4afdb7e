//! Both directions between a client and its backend, and what happens to them when a side fails.

use std::io;
use std::time::{Duration, Instant};

use super::{Direction, DirectionProgress, DriveContext, Pipes, Side};
use crate::end_reason::EndReason;
use crate::time::after;

/// The two sides of a pair, and both directions between them.
pub(crate) struct Duplex {
    client: Side,
    backend: Side,
    upload: Direction,
    download: Direction,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    /// When the last byte moved, or the first of the streams ended. Later if splicing has handed
    /// the kernel more than `TCP_NOTSENT_LOWAT` allows: when a slow reader has read that.
    active_at: Instant,
}

/// The outcome of driving a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// An event will tell when there is more to do.
    Waiting,
    /// There is more to do, in a later turn.
    Unfinished,
    /// The pair is to be closed.
    Over(EndReason),
}

impl Duplex {
    /// Joins two sides. The backend gets the preface first.
    pub(crate) fn new(client: Side, backend: Side, preface: Vec<u8>, now: Instant) -> Self {
        Self {
            client,
            backend,
            upload: Direction::new(preface),
            download: Direction::new(Vec::new()),
            bytes_up: 0,
            bytes_down: 0,
            active_at: now,
        }
    }

    pub(crate) fn client_mut(&mut self) -> &mut Side {
        &mut self.client
    }

    pub(crate) fn backend_mut(&mut self) -> &mut Side {
        &mut self.backend
    }

    /// Returns the error that a side has met, the client's first.
    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.client.failure().or(self.backend.failure())
    }

    pub(crate) fn is_half_closed(&self) -> bool {
        self.upload.source_has_ended() || self.download.source_has_ended()
    }

    pub(crate) fn active_at(&self) -> Instant {
        self.active_at
    }

    /// Returns the client's side and the backend's, to be closed: in an orderly way if they were
    /// sent the end of their stream, otherwise by an abort.
    pub(crate) fn into_sides(mut self) -> (Side, Side) {
        if self.download.sink_was_ended() {
            self.client.mark_orderly();
        }
        if self.upload.sink_was_ended() {
            self.backend.mark_orderly();
        }
        (self.client, self.backend)
    }

    /// Moves bytes both ways until both directions are blocked or have spent the budget.
    pub(crate) fn drive(
        &mut self,
        scratch: &mut [u8],
        pipes: &mut Pipes,
        budget: usize,
        now: Instant,
    ) -> Progress {
        let before = (self.bytes_up + self.bytes_down, self.is_half_closed());
        let mut cx = DriveContext { scratch, pipes, now, timeout_grace: Duration::ZERO };
        let progress = self.drive_both(&mut cx, budget);
        if (self.bytes_up + self.bytes_down, self.is_half_closed()) != before {
            self.active_at = self.active_at.max(after(now, cx.timeout_grace));
        }
        progress
    }

    /// Drives each direction. Repeats that if a side fails meanwhile, for what it had sent before.
    fn drive_both(&mut self, cx: &mut DriveContext<'_>, budget: usize) -> Progress {
        let Self { client, backend, upload, download, bytes_up, bytes_down, .. } = self;
        loop {
            let failed_before = (client.has_failed(), backend.has_failed());
            let download_is_over = download.sink_was_ended();
            let up = upload.drive(client, backend, cx, budget, bytes_up, download_is_over);
            let upload_is_over = upload.sink_was_ended();
            let down = download.drive(backend, client, cx, budget, bytes_down, upload_is_over);
            let (client_failed, backend_failed) = (client.has_failed(), backend.has_failed());
            return match (up, down) {
                // What a side had sent before it failed is passed on as far as the other takes it.
                _ if (client_failed, backend_failed) != failed_before => continue,
                (DirectionProgress::Unfinished, _) | (_, DirectionProgress::Unfinished) => {
                    Progress::Unfinished
                }
                // A stream that had ended before its side failed is complete: it is delivered.
                _ if client_failed && !backend_failed && upload.is_ending() => Progress::Waiting,
                _ if backend_failed && !client_failed && download.is_ending() => Progress::Waiting,
                _ if client_failed => Progress::Over(EndReason::ClientFailed),
                _ if backend_failed => Progress::Over(EndReason::BackendFailed),
                (DirectionProgress::Ended, DirectionProgress::Ended) => {
                    Progress::Over(EndReason::Finished)
                }
                _ => Progress::Waiting,
            };
        }
    }
}
