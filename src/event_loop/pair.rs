//! One client with the backend that serves it, from the accept until it ends and its sockets are left to be closed.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::deadlines::after;
use super::roster::Assignment;
use crate::net::Address;
use crate::observe::{Client, EndReason};
use crate::relay::{Direction, Drive, Side};

/// A pair.
///
/// ```text
/// Dialling ──connected──> Relaying ──both streams ended, or cut──> (gone)
///     └──no backend, given up, client gone──> (gone)
/// ```
pub(crate) struct Pair {
    pub(crate) id: u64,
    pub(crate) addr: Address,
    pub(crate) accepted_at: Instant,
    pub(crate) client: Side,
    pub(crate) stage: Stage,
}

pub(crate) enum Stage {
    Dialling(Dialling),
    Relaying(Relaying),
}

impl Pair {
    pub(crate) fn client(&self) -> Client<'_> {
        Client { id: self.id, addr: &self.addr }
    }

    /// When to ask for its [`verdict`](Self::verdict) at the latest.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match &self.stage {
            Stage::Dialling(dialling) => Some(dialling.deadline()),
            Stage::Relaying(relaying) => relaying.deadline(limits).map(|(deadline, _)| deadline),
        }
    }

    /// What is to be done now that its reminder is due.
    pub(crate) fn verdict(&self, limits: &Limits, now: Instant) -> Verdict {
        match &self.stage {
            Stage::Dialling(dialling) => dialling.verdict(now),
            Stage::Relaying(relaying) => match relaying.deadline(limits) {
                Some((deadline, reason)) if deadline <= now => Verdict::End(reason),
                _ => Verdict::GoOn,
            },
        }
    }

    /// Its client, and its backend if a connection to one was begun.
    pub(crate) fn into_sides(self) -> (Side, Option<Side>) {
        let backend = match self.stage {
            Stage::Dialling(Dialling { phase: Phase::Connecting(connecting), .. }) => Some(connecting.backend),
            Stage::Dialling(_) => None,
            Stage::Relaying(relaying) => Some(relaying.backend),
        };
        (self.client, backend)
    }
}

/// How long the stages of a pair may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect_timeout: Duration,
    pub(crate) dial_limit: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) half_closed_timeout: Duration,
}

/// What becomes of a pair that was reminded of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GoOn,
    /// The attempt has taken too long; there is time for another.
    AttemptTimedOut,
    /// So has the whole client, and `attempt_timed_out` tells whether the last attempt had its full time.
    DialLimit {
        attempt_timed_out: bool,
    },
    End(EndReason),
}

/// A client for whom a backend is being looked for.
pub(crate) struct Dialling {
    /// What was tried for this client without success, by key and target name.
    tried: BTreeSet<(Arc<str>, Arc<str>)>,
    pub(crate) phase: Phase,
    give_up_at: Instant,
}

/// What comes next on the way to a backend.
///
/// ```text
/// Pick ──> Dial ──begun──> Connecting ──connected──> (relaying)
///  ↑        ↑ ↓ no descriptor   │ failed
///  │      Starving              │
///  │        └──another address──┤
///  └────────no other address────┘
/// ```
pub(crate) enum Phase {
    /// A backend has to be picked.
    Pick,
    /// One address of a backend has to be dialled.
    Dial(Candidate),
    /// As `Dial`, once there is a descriptor for it.
    Starving(Candidate),
    Connecting(Connecting),
}

/// A backend that is being tried for a client.
pub(crate) struct Candidate {
    pub(crate) assignment: Assignment,
    /// Which of its dials: see `Backend::attempts`.
    pub(crate) attempt: u32,
    /// Whether one of them failed for a reason that says nothing of the backend.
    pub(crate) is_excused: bool,
}

/// A dial in flight.
pub(crate) struct Connecting {
    pub(crate) backend: Side,
    pub(crate) preface: Vec<u8>,
    pub(crate) candidate: Candidate,
    /// Whether an event has come since the stream was asked last.
    pub(crate) is_to_be_checked: bool,
    give_up_at: Instant,
}

impl Connecting {
    pub(crate) fn new(backend: Side, preface: Vec<u8>, candidate: Candidate, now: Instant, limits: &Limits) -> Self {
        let give_up_at = after(now, limits.connect_timeout);
        Self { backend, preface, candidate, is_to_be_checked: false, give_up_at }
    }
}

impl Dialling {
    pub(crate) fn new(now: Instant, limits: &Limits) -> Self {
        Self { tried: BTreeSet::new(), phase: Phase::Pick, give_up_at: after(now, limits.dial_limit) }
    }

    pub(crate) fn has_tried(&self, key: &Arc<str>, target_name: &Arc<str>) -> bool {
        !self.tried.is_empty() && self.tried.contains(&(key.clone(), target_name.clone()))
    }

    /// The backend will not be picked again for this client.
    pub(crate) fn note_tried(&mut self, assignment: &Assignment) {
        self.tried.insert((assignment.entry.shared_key().clone(), assignment.entry.shared_target_name().clone()));
    }

    /// Takes the phase out, to be followed by another.
    pub(crate) fn take_phase(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Pick)
    }

    /// Whether the next step is to begin a dial.
    pub(crate) fn is_about_to_dial(&self) -> bool {
        matches!(self.phase, Phase::Pick | Phase::Dial(_))
    }

    /// Whether the client's time for all its attempts is over.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.give_up_at <= now
    }

    fn deadline(&self) -> Instant {
        match &self.phase {
            Phase::Connecting(connecting) => connecting.give_up_at.min(self.give_up_at),
            _ => self.give_up_at,
        }
    }

    fn verdict(&self, now: Instant) -> Verdict {
        let attempt_timed_out = matches!(&self.phase, Phase::Connecting(connecting) if connecting.give_up_at <= now);
        if self.is_overdue(now) {
            Verdict::DialLimit { attempt_timed_out }
        } else if attempt_timed_out {
            Verdict::AttemptTimedOut
        } else {
            Verdict::GoOn
        }
    }
}

/// A client connected with a backend.
pub(crate) struct Relaying {
    pub(crate) assignment: Assignment,
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

impl Relaying {
    pub(crate) fn new(assignment: Assignment, backend: Side, preface: Vec<u8>, now: Instant) -> Self {
        Self {
            assignment,
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

    fn is_half_closed(&self) -> bool {
        self.upload.has_finished() || self.download.has_finished()
    }

    /// The next time-out, and what it would end the pair for.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, EndReason)> {
        let idle = limits.idle_timeout.map(|limit| (after(self.active_at, limit), EndReason::IdleTimeout));
        let half_closed = (after(self.active_at, limits.half_closed_timeout), EndReason::HalfClosedTimeout);
        let limits = idle.into_iter().chain(self.is_half_closed().then_some(half_closed));
        limits.min_by_key(|(deadline, _)| *deadline)
    }

    /// Moves bytes both ways until both are blocked or have spent the budget.
    pub(crate) fn drive(&mut self, client: &mut Side, scratch: &mut [u8], budget: usize, now: Instant) -> Progress {
        let (moved_before, was_half_closed) = (self.bytes_up + self.bytes_down, self.is_half_closed());
        let progress = self.drive_both(client, scratch, budget);
        if self.bytes_up + self.bytes_down != moved_before || self.is_half_closed() != was_half_closed {
            self.active_at = now;
        }
        progress
    }

    fn drive_both(&mut self, client: &mut Side, scratch: &mut [u8], budget: usize) -> Progress {
        loop {
            let failed_before = (client.has_failed(), self.backend.has_failed());
            let (backend, bytes_up, bytes_down) = (&mut self.backend, &mut self.bytes_up, &mut self.bytes_down);
            let is_last = self.download.has_ended();
            let upload = self.upload.drive(client, backend, scratch, budget, bytes_up, is_last);
            let is_last = self.upload.has_ended();
            let download = self.download.drive(backend, client, scratch, budget, bytes_down, is_last);
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
