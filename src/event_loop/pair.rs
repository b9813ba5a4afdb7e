//! One client with the backend that serves it, from the accept until it ends and its sockets are left to be closed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::net::Address;
use crate::observer::Client;
use crate::pool::Assignment;
use crate::relay::{Relay, Side};
use crate::stats::EndReason;
use crate::time::after;

/// A pair.
///
/// ```text
/// Dialling ──connected──> Relaying ──both streams ended, or cut──> (gone)
///     └──no backend, given up, client gone──> (gone)
/// ```
pub(crate) struct Pair {
    pub(crate) client: ClientSide,
    pub(crate) stage: Stage,
}

/// A client that was accepted, with its socket.
pub(crate) struct ClientSide {
    pub(crate) id: u64,
    pub(crate) addr: Address,
    pub(crate) accepted_at: Instant,
    pub(crate) side: Side,
}

impl ClientSide {
    /// What observers are told.
    pub(crate) fn info(&self) -> Client<'_> {
        Client { id: self.id, addr: &self.addr }
    }
}

pub(crate) enum Stage {
    Dialling(Dialling),
    Relaying(Relaying),
}

impl Pair {
    /// Whether it waits for a descriptor.
    pub(crate) fn is_starving(&self) -> bool {
        matches!(self.stage, Stage::Dialling(Dialling { phase: Phase::AwaitingFd(_), .. }))
    }

    /// When to ask for its [`verdict`](Self::verdict) at the latest.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match &self.stage {
            Stage::Dialling(dialling) => Some(dialling.deadline()),
            Stage::Relaying(relaying) => relaying.deadline(limits).map(|(deadline, _)| deadline),
        }
    }

    /// What is to be done now that its reminder is due.
    pub(crate) fn timeout(&self, limits: &Limits, now: Instant) -> Timeout {
        match &self.stage {
            Stage::Dialling(dialling) => dialling.timeout(now),
            Stage::Relaying(relaying) => match relaying.deadline(limits) {
                Some((deadline, reason)) if deadline <= now => Timeout::End(reason),
                _ => Timeout::GoOn,
            },
        }
    }

    /// Its client, and its backend if a connection to one was begun.
    pub(crate) fn into_sides(self) -> (Side, Option<Side>) {
        let backend = match self.stage {
            Stage::Dialling(Dialling { phase: Phase::Connecting(connecting), .. }) => {
                Some(connecting.backend)
            }
            Stage::Dialling(_) => None,
            Stage::Relaying(relaying) => Some(relaying.relay.into_backend()),
        };
        (self.client.side, backend)
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
pub(crate) enum Timeout {
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
    AwaitingFd(Candidate),
    Connecting(Connecting),
}

/// A backend that is being tried for a client.
pub(crate) struct Candidate {
    pub(crate) assignment: Assignment,
    /// Which of its dials: see `Backend::attempts`.
    pub(crate) attempt: u32,
    /// Whether one of them failed for a reason that says nothing of the backend.
    pub(crate) failed_locally: bool,
}

impl Candidate {
    pub(crate) fn new(assignment: Assignment) -> Self {
        Self { assignment, attempt: 0, failed_locally: false }
    }
}

/// A dial in flight.
pub(crate) struct Connecting {
    pub(crate) backend: Side,
    pub(crate) preface: Vec<u8>,
    pub(crate) candidate: Candidate,
    /// Whether an event has come since the stream was asked last.
    pub(crate) has_event: bool,
    give_up_at: Instant,
}

impl Connecting {
    pub(crate) fn new(
        backend: Side,
        preface: Vec<u8>,
        candidate: Candidate,
        now: Instant,
        limits: &Limits,
    ) -> Self {
        let give_up_at = after(now, limits.connect_timeout);
        Self { backend, preface, candidate, has_event: false, give_up_at }
    }
}

impl Dialling {
    pub(crate) fn new(now: Instant, limits: &Limits) -> Self {
        Self {
            tried: BTreeSet::new(),
            phase: Phase::Pick,
            give_up_at: after(now, limits.dial_limit),
        }
    }

    pub(crate) fn has_tried(&self, key: &Arc<str>, target_name: &Arc<str>) -> bool {
        !self.tried.is_empty() && self.tried.contains(&(key.clone(), target_name.clone()))
    }

    /// The backend will not be picked again for this client.
    pub(crate) fn note_tried(&mut self, assignment: &Assignment) {
        self.tried.insert((
            assignment.entry.shared_key().clone(),
            assignment.entry.shared_target_name().clone(),
        ));
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

    fn timeout(&self, now: Instant) -> Timeout {
        let attempt_timed_out =
            matches!(&self.phase, Phase::Connecting(connecting) if connecting.give_up_at <= now);
        if self.is_overdue(now) {
            Timeout::DialLimit { attempt_timed_out }
        } else if attempt_timed_out {
            Timeout::AttemptTimedOut
        } else {
            Timeout::GoOn
        }
    }
}

/// A client connected with a backend.
pub(crate) struct Relaying {
    pub(crate) assignment: Assignment,
    pub(crate) relay: Relay,
}

impl Relaying {
    /// The next time-out, and what it would end the pair for.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, EndReason)> {
        let active_at = self.relay.active_at();
        let idle =
            limits.idle_timeout.map(|limit| (after(active_at, limit), EndReason::IdleTimeout));
        let half_closed =
            (after(active_at, limits.half_closed_timeout), EndReason::HalfClosedTimeout);
        let limits = idle.into_iter().chain(self.relay.is_half_closed().then_some(half_closed));
        limits.min_by_key(|(deadline, _)| *deadline)
    }
}
