//! Counters: the snapshot of a running balancer, what an update did, and the summary of a run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why a client's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EndReason {
    /// Both sides ended their streams in an orderly way.
    Finished,
    /// The client reset the connection, or it failed on the client's side.
    ClientFailed,
    /// The backend reset the connection, or it failed on the backend's side.
    BackendFailed,
    /// An update removed its target.
    TargetRemoved,
    /// The time limit of [`update_draining`](crate::Control::update_draining) or
    /// [`drain`](crate::Control::drain) ran out.
    DrainLimit,
    /// No byte moved for [`idle_timeout`](crate::Builder::idle_timeout).
    IdleTimeout,
    /// One direction had ended, and no byte moved for
    /// [`half_closed_timeout`](crate::Builder::half_closed_timeout).
    HalfClosedTimeout,
    /// The balancer was shut down.
    Shutdown,
    /// Refused: the backend set is empty.
    NoBackend,
    /// Refused: every backend was tried and failed.
    BackendsFailed,
    /// Refused: no backend was reached within [`dial_limit`](crate::Builder::dial_limit).
    DialLimit,
    /// Refused: this machine could not take the connection on, for example because it ran out of
    /// memory.
    LocalFailure,
}

impl EndReason {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::Finished,
        Self::ClientFailed,
        Self::BackendFailed,
        Self::TargetRemoved,
        Self::DrainLimit,
        Self::IdleTimeout,
        Self::HalfClosedTimeout,
        Self::Shutdown,
        Self::NoBackend,
        Self::BackendsFailed,
        Self::DialLimit,
        Self::LocalFailure,
    ];
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::ClientFailed => "client failed",
            Self::BackendFailed => "backend failed",
            Self::TargetRemoved => "target removed",
            Self::DrainLimit => "drain limit",
            Self::IdleTimeout => "idle timeout",
            Self::HalfClosedTimeout => "half-closed timeout",
            Self::Shutdown => "shut down",
            Self::NoBackend => "no backend",
            Self::BackendsFailed => "all backends failed",
            Self::DialLimit => "dial limit",
            Self::LocalFailure => "local failure",
        })
    }
}

/// The number of ended connections, by reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct EndCounts([u64; EndReason::ALL.len()]);

impl EndCounts {
    /// Returns how many connections ended for this reason.
    pub fn of(&self, reason: EndReason) -> u64 {
        self.0[reason as usize]
    }

    /// Returns how many connections ended, for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the reasons that occurred, each with its count.
    pub fn iter(&self) -> impl Iterator<Item = (EndReason, u64)> + '_ {
        EndReason::ALL
            .iter()
            .map(|&reason| (reason, self.of(reason)))
            .filter(|(_, count)| *count > 0)
    }

    pub(crate) fn count(&mut self, reason: EndReason) {
        self.0[reason as usize] += 1;
    }
}

/// Shows a map from the reasons that occurred to their counts.
impl fmt::Debug for EndCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// One consistent snapshot of a balancer's counters.
///
/// The counters add up: `accepted == refused.total() + ended.total() + dialling + open`; `open` is
/// the sum over `backends` and `departed`, and so are the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Clients accepted since the start.
    pub accepted: u64,
    /// Clients whose backend is not connected yet.
    pub dialling: u64,
    /// Clients connected to a backend now.
    pub open: u64,
    /// Clients that ended before they reached a backend.
    pub refused: EndCounts,
    /// Clients that ended after they had reached a backend.
    pub ended: EndCounts,
    /// Bytes written to backends so far, those of open connections included.
    pub bytes_up: u64,
    /// Bytes written to clients so far, those of open connections included.
    pub bytes_down: u64,
    /// The backends of the set, in key order.
    pub backends: Vec<BackendStats>,
    /// The sum over keys that are no longer in the set. A key that comes back starts at zero.
    pub departed: Usage,
}

impl Stats {
    /// Returns the counters of one backend of the set.
    pub fn backend(&self, key: &str) -> Option<&BackendStats> {
        let index = self.backends.binary_search_by(|backend| (*backend.key).cmp(key)).ok()?;
        self.backends.get(index)
    }
}

/// The counters of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendStats {
    /// Its key.
    pub key: Arc<str>,
    /// The present target name of the key. Connections made under an earlier one count here too.
    pub target_name: Arc<str>,
    /// Clients that are being connected to it, now.
    pub dialling: u64,
    /// Whether it is ejected after failed dials: skipped while others are left.
    pub ejected: bool,
    /// Its connections, failures and bytes.
    pub usage: Usage,
}

/// The connections, failures and bytes of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Clients connected to it now.
    pub open: u64,
    /// Clients connected to it so far.
    pub total: u64,
    /// Failed dials, one for each address tried.
    pub dial_failures: u64,
    /// Bytes written to it.
    pub bytes_up: u64,
    /// Bytes from it that were written to clients.
    pub bytes_down: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, other: &Self) {
        self.open += other.open;
        self.total += other.total;
        self.dial_failures += other.dial_failures;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
    }
}

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Connections closed because their target is gone.
    pub closed: usize,
    /// Dials in flight cancelled because their target is gone. Their clients continue with other
    /// backends, or are refused if none is left.
    pub cancelled: usize,
    /// Connections to targets that are gone that may still finish, because of an
    /// [`update_draining`](crate::Control::update_draining).
    pub draining: usize,
    /// Backends in the set that is now in force.
    pub backends: usize,
}

/// What a balancer did from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How long it ran.
    pub ran_for: Duration,
    /// Clients accepted: `refused.total() + ended.total()`.
    pub accepted: u64,
    /// Clients that ended before they reached a backend.
    pub refused: EndCounts,
    /// Clients that ended after they had reached a backend.
    pub ended: EndCounts,
    /// Bytes written to backends.
    pub bytes_up: u64,
    /// Bytes written to clients.
    pub bytes_down: u64,
    /// How often the set was replaced. Updates applied in one step count once.
    pub updates: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        for (position, reason) in EndReason::ALL.iter().copied().enumerate() {
            assert_eq!(reason as usize, position);
            let mut counts = EndCounts::default();
            counts.count(reason);
            assert_eq!((counts.of(reason), counts.total()), (1, 1));
            assert_eq!(counts.iter().collect::<Vec<_>>(), [(reason, 1)]);
            assert_eq!(format!("{counts:?}"), format!("{{{reason:?}: 1}}"));
        }
    }
}
