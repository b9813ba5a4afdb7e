//! A client and the backend that serves it, from the accept until their sockets may be closed.

use std::time::{Duration, Instant};

use super::token::PairSide;
use crate::net::Address;
use crate::observer::Client;
use crate::pool::{Assignment, Tried};
use crate::relay::{Duplex, Side};
use crate::stats::EndReason;
use crate::time::after;

/// A client, and its backend once it has one.
///
/// ```text
/// Dialling ──connected──> Relaying ──both streams ended, or aborted──> (closed)
///     └──no backend left, given up, client gone──> (closed)
/// ```
pub(crate) struct Pair {
    pub(crate) client: ClientInfo,
    pub(crate) stage: Stage,
}

pub(crate) enum Stage {
    Dialling(Dialling),
    Relaying(Relaying),
}

/// What is known of a client besides its socket.
pub(crate) struct ClientInfo {
    pub(crate) id: u64,
    pub(crate) addr: Address,
    pub(crate) accepted_at: Instant,
}

impl ClientInfo {
    /// Returns what observers are told of it.
    pub(crate) fn observed(&self) -> Client<'_> {
        Client { id: self.id, addr: &self.addr }
    }
}

impl Pair {
    /// Returns when to check its timeouts at the latest.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
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

    pub(crate) fn awaits_descriptor(&self) -> bool {
        matches!(self.phase(), Some(Phase::AwaitDescriptor(_)))
    }

    pub(crate) fn awaits_busy(&self) -> bool {
        matches!(self.phase(), Some(Phase::AwaitBusy))
    }

    /// Returns whether a dial is in flight for it, or was answered.
    pub(crate) fn is_connecting(&self) -> bool {
        matches!(self.phase(), None | Some(Phase::Connecting(_)))
    }

    /// Returns which of its timeouts has fired by now.
    pub(crate) fn timeout(&self, limits: &Limits, now: Instant) -> Option<Timeout> {
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
pub(crate) enum Timeout {
    Dial(DialTimeout),
    /// The pair has been idle or half-closed for too long.
    Relay(EndReason),
}

/// What has taken too long for a client that waits for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialTimeout {
    /// One attempt has; there is time for another.
    Attempt,
    /// All attempts together have. The one in flight counts as failed only if its own time is over
    /// too.
    All { attempt_too: bool },
}

/// A client that waits for a backend.
pub(crate) struct Dialling {
    pub(crate) client: Side,
    pub(crate) tried: Tried,
    pub(crate) give_up_at: Instant,
    pub(crate) phase: Phase,
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
pub(crate) enum Phase {
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
pub(crate) struct Candidate {
    pub(crate) assignment: Assignment,
    /// Which of its dials: see `Backend::attempts`.
    pub(crate) attempt: u32,
    /// When the last dial began, or the pick if there was none yet.
    pub(crate) dialled_at: Instant,
    /// Whether a dial has failed for a reason that says something about the backend.
    pub(crate) has_failed: bool,
}

impl Candidate {
    pub(crate) fn new(assignment: Assignment, now: Instant) -> Self {
        Self { assignment, attempt: 0, dialled_at: now, has_failed: false }
    }

    /// Returns what it dials, for the log.
    pub(crate) fn attempt_name(&self) -> String {
        self.assignment.entry().backend().attempt_name(self.attempt)
    }
}

/// A dial in flight.
pub(crate) struct Connecting {
    pub(crate) backend: Side,
    pub(crate) preface: Vec<u8>,
    pub(crate) candidate: Candidate,
    pub(crate) give_up_at: Instant,
    /// Whether an event has come since the stream was last asked if it is connected.
    pub(crate) has_event: bool,
}

impl Dialling {
    pub(crate) fn new(client: Side, now: Instant, limits: &Limits) -> Self {
        let give_up_at = after(now, limits.dial_limit);
        Self { client, tried: Tried::default(), give_up_at, phase: Phase::Pick }
    }

    /// Returns whether its next step is to begin a dial.
    pub(crate) fn is_about_to_dial(&self) -> bool {
        matches!(self.phase, Phase::Pick | Phase::Dial(_))
    }

    /// Takes its backend away. Its next step is to pick another one.
    pub(crate) fn take_backend(&mut self) -> (Option<Assignment>, Option<Side>) {
        let pick = match self.phase {
            Phase::AwaitDescriptor(_) => Phase::AwaitDescriptor(None), // it keeps its place in line
            _ => Phase::Pick,
        };
        std::mem::replace(&mut self.phase, pick).into_parts()
    }

    /// Returns when to check its timeouts.
    pub(crate) fn deadline(&self) -> Instant {
        match &self.phase {
            Phase::Connecting(connecting) => connecting.give_up_at.min(self.give_up_at),
            _ => self.give_up_at,
        }
    }

    fn timeout(&self, now: Instant) -> Option<Timeout> {
        let attempt_too =
            matches!(&self.phase, Phase::Connecting(connecting) if connecting.give_up_at <= now);
        let timeout = match self.give_up_at <= now {
            true => DialTimeout::All { attempt_too },
            false if attempt_too => DialTimeout::Attempt,
            false => return None,
        };
        Some(Timeout::Dial(timeout))
    }
}

impl Phase {
    /// Returns the backend that the client was given, if it has one.
    pub(crate) fn assignment(&self) -> Option<&Assignment> {
        match self {
            Self::Pick | Self::AwaitDescriptor(None) | Self::AwaitBusy => None,
            Self::Dial(candidate) | Self::AwaitDescriptor(Some(candidate)) => {
                Some(&candidate.assignment)
            }
            Self::Connecting(connecting) => Some(&connecting.candidate.assignment),
        }
    }

    /// Takes the phase apart: the assignment to release, and the side to abort.
    pub(crate) fn into_parts(self) -> (Option<Assignment>, Option<Side>) {
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
pub(crate) struct Relaying {
    pub(crate) assignment: Assignment,
    pub(crate) duplex: Duplex,
}

impl Relaying {
    pub(crate) fn side_mut(&mut self, which: PairSide) -> &mut Side {
        match which {
            PairSide::Client => self.duplex.client_mut(),
            PairSide::Backend => self.duplex.backend_mut(),
        }
    }

    /// Returns when its next timeout is due, and the reason to close the pair for then.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<(Instant, EndReason)> {
        let active_at = self.duplex.active_at();
        let idle =
            limits.idle_timeout.map(|limit| (after(active_at, limit), EndReason::IdleTimeout));
        let half_closed =
            (after(active_at, limits.half_closed_timeout), EndReason::HalfClosedTimeout);
        let deadlines = idle.into_iter().chain(self.duplex.is_half_closed().then_some(half_closed));
        deadlines.min_by_key(|(deadline, _)| *deadline)
    }
}
