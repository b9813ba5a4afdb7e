//! Both ways between a client and its backend, and what becomes of them when a side fails.

use std::io;
use std::time::Instant;

use super::{Direction, Drive, Side};
use crate::stats::EndReason;

/// Both ways between a client, who is lent to it, and its backend.
pub(crate) struct Relay {
    backend: Side,
    upload: Direction,
    download: Direction,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    /// When a byte moved last, or the first of the streams ended.
    active_at: Instant,
}

/// What came of driving a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// An event will tell when there is more to do.
    Waiting,
    /// There is more to do, in a later turn.
    Unfinished,
    /// The pair is over.
    Over(EndReason),
}

impl Relay {
    pub(crate) fn new(backend: Side, preface: Vec<u8>, now: Instant) -> Self {
        Self {
            backend,
            upload: Direction::new(preface),
            download: Direction::new(Vec::new()),
            bytes_up: 0,
            bytes_down: 0,
            active_at: now,
        }
    }

    pub(crate) fn backend_mut(&mut self) -> &mut Side {
        &mut self.backend
    }

    pub(crate) fn failure<'a>(&'a self, client: &'a Side) -> Option<&'a io::Error> {
        client.failure().or(self.backend.failure())
    }

    pub(crate) fn is_half_closed(&self) -> bool {
        self.upload.has_finished() || self.download.has_finished()
    }

    /// When a byte moved last, or the first of the streams ended.
    pub(crate) fn active_at(&self) -> Instant {
        self.active_at
    }

    pub(crate) fn into_backend(self) -> Side {
        self.backend
    }

    /// Moves bytes both ways until both are blocked or have spent the budget.
    pub(crate) fn drive(
        &mut self,
        client: &mut Side,
        scratch: &mut [u8],
        budget: usize,
        now: Instant,
    ) -> Progress {
        let (moved_before, was_half_closed) =
            (self.bytes_up + self.bytes_down, self.is_half_closed());
        let progress = self.drive_both(client, scratch, budget);
        if self.bytes_up + self.bytes_down != moved_before
            || self.is_half_closed() != was_half_closed
        {
            self.active_at = now;
        }
        progress
    }

    fn drive_both(&mut self, client: &mut Side, scratch: &mut [u8], budget: usize) -> Progress {
        loop {
            let failed_before = (client.has_failed(), self.backend.has_failed());
            let (backend, bytes_up, bytes_down) =
                (&mut self.backend, &mut self.bytes_up, &mut self.bytes_down);
            let is_last = self.download.has_ended();
            let upload = self.upload.drive(client, backend, scratch, budget, bytes_up, is_last);
            let is_last = self.upload.has_ended();
            let download =
                self.download.drive(backend, client, scratch, budget, bytes_down, is_last);
            match (client.has_failed(), self.backend.has_failed()) {
                // What a failed side had sent before still goes on as far as the other takes it.
                failed if failed != failed_before => {}
                (true, _) if upload == Drive::Unfinished => return Progress::Unfinished,
                (_, true) if download == Drive::Unfinished => return Progress::Unfinished,
                (true, _) => return Progress::Over(EndReason::ClientFailed),
                (_, true) => return Progress::Over(EndReason::BackendFailed),
                (false, false) => {
                    return match (upload, download) {
                        (Drive::Ended, Drive::Ended) => Progress::Over(EndReason::Finished),
                        (Drive::Unfinished, _) | (_, Drive::Unfinished) => Progress::Unfinished,
                        _ => Progress::Waiting,
                    };
                }
            }
        }
    }
}
