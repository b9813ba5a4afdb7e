//! A client and the backend that serves it, from the accept until their sockets may be closed.

use std::time::{Duration, Instant};

use super::token::Role;
use crate::end_reason::EndReason;
use crate::net::Address;
use crate::observer::Client;
use crate::pool::{Assignment, Tried};
use crate::relay::{Duplex, Side};
use crate::time::after;

/// A client, and its backend once it has one.
///
/// ```text
/// Dialling ──connected──> Relaying ──both streams ended, or aborted──> (closed)
///     └──no backend left, given up, client gone──> (closed)
/// ```
pub(super) struct Pair {
    pub(super) client_info: ClientInfo,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    Dialling(Dialling),
    Relaying(Relaying),
}

/// What is known of a client besides its socket.
pub(super) struct ClientInfo {
    pub(super) id: u64,
    pub(super) addr: Address,
    pub(super) accepted_at: Instant,
}

impl ClientInfo {
    /// Returns what observers are told of it.
    pub(super) fn observed(&self) -> Client<'_> {
        Client { id: self.id, addr: &self.addr }
    }
}

impl Pair {
    /// Returns when to check its timeouts at the latest.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match &self.stage {
            Stage::Dialling(dialling) => Some(dialling.deadline()),
            Stage::Relaying(relaying) => relaying.deadline(limits).map(|(deadline, _)| deadline),
        }
    }

    /// Returns what comes next on its way to a backend, or `None` if it is connected to one.
    fn phase(&self) -> Option<&Phase> {
        match &self.stage {
            Stage::Dialling(dialling) => Some(&dialling.phase),
            Stage::Relaying(_) => None,
        }
    }

    pub(super) fn awaits_descriptor(&self) -> bool {
        matches!(self.phase(), Some(Phase::AwaitDescriptor(_)))
    }

    /// Returns whether a dial is in flight for it, or was answered.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.phase(), None | Some(Phase::Connecting(_)))
    }

    /// Returns which of its timeouts has fired by now.
    pub(super) fn timeout(&self, limits: &Limits, now: Instant) -> Option<Timeout> {
        match &self.stage {
            Stage::Dialling(dialling) => dialling.timeout(now),
            Stage::Relaying(relaying) => relaying
                .deadline(limits)
                .filter(|(deadline, _)| *deadline <= now)
                .map(|(_, reason)| Timeout::Relay(reason)),
        }
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

/// A timeout that has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    Dial(DialTimeout),
    /// The pair has been idle or half-closed for too long.
    Relay(EndReason),
}

/// What has taken too long for a client that waits for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialTimeout {
    /// One attempt has; there is time for another.
    Attempt,
    /// All attempts together have. The one in flight counts as failed only if its own time is over
    /// too.
    All { attempt_too: bool },
}

/// A client that waits for a backend.
pub(super) struct Dialling {
    pub(super) client: Side,
    pub(super) tried: Tried,
    pub(super) dial_deadline: Instant,
    pub(super) phase: Phase,
}

/// What comes next on the way to a backend.
///
/// ```text
/// AwaitBusy
///  ↓ ↑ all that is left is busy
/// Pick ──> Dial ──begun──> Connecting ──connected──> (relaying)
///  ↑ ↑      ↑ ↓ no descriptor   │ failed
///  │ │  AwaitDescriptor         │
///  │ └──────┘ └──another address─┤
///  └─────────no other address────┘
/// ```
pub(super) enum Phase {
    /// Pick a backend.
    Pick,
    /// Dial one address of a backend.
    Dial(Candidate),
    /// Dial once a descriptor is free. Without a candidate, pick one first.
    AwaitDescriptor(Option<Candidate>),
    /// Pick a backend once a busy one may have room.
    AwaitBusy,
    Connecting(Connecting),
}

/// A backend that is being tried for a client.
pub(super) struct Candidate {
    pub(super) assignment: Assignment,
    /// Which of its dials: see `Backend::attempts`.
    pub(super) attempt: u32,
    /// When the last dial began, or the pick if there was none yet.
    pub(super) dialled_at: Instant,
    /// Whether a dial has failed for a reason that says something about the backend.
    pub(super) has_failed: bool,
}

impl Candidate {
    pub(super) fn new(assignment: Assignment, now: Instant) -> Self {
        Self { assignment, attempt: 0, dialled_at: now, has_failed: false }
    }

    /// Returns what it dials, for the log.
    pub(super) fn attempt_name(&self) -> String {
        self.assignment.entry().backend().attempt_name(self.attempt)
    }
}

/// A dial in flight.
pub(super) struct Connecting {
    pub(super) backend: Side,
    pub(super) preface: Vec<u8>,
    pub(super) candidate: Candidate,
    pub(super) attempt_deadline: Instant,
    /// Whether an event has come since the stream was last asked if it is connected.
    pub(super) has_event: bool,
}

impl Dialling {
    pub(super) fn new(client: Side, now: Instant, limits: &Limits) -> Self {
        let dial_deadline = after(now, limits.dial_limit);
        Self { client, tried: Tried::default(), dial_deadline, phase: Phase::Pick }
    }

    /// Returns whether its next step is to begin a dial.
    pub(super) fn is_about_to_dial(&self) -> bool {
        matches!(self.phase, Phase::Pick | Phase::Dial(_))
    }

    /// Takes its backend away. Its next step is to pick another one.
    pub(super) fn take_backend(&mut self) -> (Option<Assignment>, Option<Side>) {
        let pick = match self.phase {
            Phase::AwaitDescriptor(_) => Phase::AwaitDescriptor(None), // it keeps its place in line
            _ => Phase::Pick,
        };
        std::mem::replace(&mut self.phase, pick).into_parts()
    }

    /// Returns when to check its timeouts.
    pub(super) fn deadline(&self) -> Instant {
        match &self.phase {
            Phase::Connecting(connecting) => connecting.attempt_deadline.min(self.dial_deadline),
            _ => self.dial_deadline,
        }
    }

    fn timeout(&self, now: Instant) -> Option<Timeout> {
        let attempt_too = match &self.phase {
            Phase::Connecting(connecting) => connecting.attempt_deadline <= now,
            _ => false,
        };
        let timeout = match self.dial_deadline <= now {
            true => DialTimeout::All { attempt_too },
            false if attempt_too => DialTimeout::Attempt,
            false => return None,
        };
        Some(Timeout::Dial(timeout))
    }
}

impl Phase {
    /// Returns the backend that the client was given, if it has one.
    pub(super) fn assignment(&self) -> Option<&Assignment> {
        match self {
            Self::Pick | Self::AwaitDescriptor(None) | Self::AwaitBusy => None,
            Self::Dial(candidate) | Self::AwaitDescriptor(Some(candidate)) => {
                Some(&candidate.assignment)
            }
            Self::Connecting(connecting) => Some(&connecting.candidate.assignment),
        }
    }

    /// Takes the phase apart: the assignment to release, and the side to abort.
    pub(super) fn into_parts(self) -> (Option<Assignment>, Option<Side>) {
        match self {
            Self::Pick | Self::AwaitDescriptor(None) | Self::AwaitBusy => (None, None),
            Self::Dial(candidate) | Self::AwaitDescriptor(Some(candidate)) => {
                (Some(candidate.assignment), None)
            }
            Self::Connecting(Connecting { backend, candidate, .. }) => {
                (Some(candidate.assignment), Some(backend))
            }
        }
    }
}

/// A client that is connected to a backend.
pub(super) struct Relaying {
    pub(super) assignment: Assignment,
    pub(super) duplex: Duplex,
}

impl Relaying {
    pub(super) fn side_mut(&mut self, which: Role) -> &mut Side {
        match which {
            Role::Client => self.duplex.client_mut(),
            Role::Backend => self.duplex.backend_mut(),
        }
    }

    /// Returns when its next timeout is due, and the reason to close the pair for then.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<(Instant, EndReason)> {
        let active_at = self.duplex.active_at();
        let idle =
            limits.idle_timeout.map(|limit| (after(active_at, limit), EndReason::IdleTimeout));
        let half_closed =
            (after(active_at, limits.half_closed_timeout), EndReason::HalfClosedTimeout);
        let deadlines = idle.into_iter().chain(self.duplex.is_half_closed().then_some(half_closed));
        deadlines.min_by_key(|(deadline, _)| *deadline)
    }
}
