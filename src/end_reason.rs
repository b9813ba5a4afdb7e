//! Why a connection ended or a client was refused, and how many were for each reason.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;

/// Why a client's connection ended.
///
/// Shown as words (`target removed`); [`as_str`](Self::as_str) returns a label for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
// To add a reason, add it here, at the same place in `ALL`, and in `as_str`. First come those that
// only end a connection, then those that may also refuse a client, then those that only refuse.
pub enum EndReason {
    /// Both sides ended their streams in an orderly way.
    Finished,
    /// The backend reset the connection, or it failed on the backend's side.
    BackendFailed,
    /// An update removed its target.
    TargetRemoved,
    /// No byte moved for [`idle_timeout`](crate::Builder::idle_timeout).
    IdleTimeout,
    /// One direction had ended, and no byte moved for
    /// [`half_closed_timeout`](crate::Builder::half_closed_timeout).
    HalfClosedTimeout,
    /// The client reset the connection, or it failed on the client's side.
    ClientFailed,
    /// The time limit of [`update_draining`](crate::Control::update_draining) or
    /// [`drain`](crate::Control::drain) ran out.
    DrainLimit,
    /// The balancer was shut down.
    Shutdown,
    /// Refused: the backend set is empty, or every backend in it is held.
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
        Self::BackendFailed,
        Self::TargetRemoved,
        Self::IdleTimeout,
        Self::HalfClosedTimeout,
        Self::ClientFailed,
        Self::DrainLimit,
        Self::Shutdown,
        Self::NoBackend,
        Self::BackendsFailed,
        Self::DialLimit,
        Self::LocalFailure,
    ];

    /// The reasons for which a client that had reached a backend ends, counted in
    /// [`Stats::ended`](crate::Stats::ended): those from `Finished` to `Shutdown`.
    pub const ENDED: &'static [Self] = Self::ALL.split_at(Self::NoBackend as usize).0;

    /// The reasons for which a client ends that never reached a backend, counted in
    /// [`Stats::refused`](crate::Stats::refused): those from `ClientFailed` to `LocalFailure`.
    pub const REFUSED: &'static [Self] = Self::ALL.split_at(Self::ClientFailed as usize).1;

    /// Returns a stable label in snake case, such as `target_removed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::BackendFailed => "backend_failed",
            Self::TargetRemoved => "target_removed",
            Self::IdleTimeout => "idle_timeout",
            Self::HalfClosedTimeout => "half_closed_timeout",
            Self::ClientFailed => "client_failed",
            Self::DrainLimit => "drain_limit",
            Self::Shutdown => "shutdown",
            Self::NoBackend => "no_backend",
            Self::BackendsFailed => "backends_failed",
            Self::DialLimit => "dial_limit",
            Self::LocalFailure => "local_failure",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().replace('_', " "))
    }
}

/// The number of ended connections, by reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct EndCounts {
    counts: [u64; EndReason::ALL.len()],
}

impl EndCounts {
    /// Returns how many connections ended for this reason.
    pub fn of(&self, reason: EndReason) -> u64 {
        self.counts[reason as usize]
    }

    /// Returns how many connections ended, for any reason.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the reasons that occurred, each with its count.
    pub fn iter(&self) -> impl Iterator<Item = (EndReason, u64)> + '_ {
        EndReason::ALL
            .iter()
            .map(|&reason| (reason, self.of(reason)))
            .filter(|(_, count)| *count > 0)
    }

    pub(crate) fn count(&mut self, reason: EndReason) {
        self.counts[reason as usize] += 1;
    }
}

impl AddAssign for EndCounts {
    fn add_assign(&mut self, other: Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, other)| *count += other);
    }
}

impl Sum for EndCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }
}

/// Shows a map from the reasons that occurred to their counts.
impl fmt::Debug for EndCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
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
            assert_eq!([counts; 2].into_iter().sum::<EndCounts>().of(reason), 2);
        }
    }

    #[test]
    fn c8_4_each_reason_has_a_label_and_words() {
        let labels: std::collections::BTreeSet<_> =
            EndReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(labels.len(), EndReason::ALL.len());
        assert_eq!(EndReason::HalfClosedTimeout.as_str(), "half_closed_timeout");
        assert_eq!(EndReason::HalfClosedTimeout.to_string(), "half closed timeout");
    }

    #[test]
    fn c8_1_reasons_to_end_and_to_refuse_overlap_where_either_may_happen() {
        use EndReason::{BackendFailed, ClientFailed, Finished, LocalFailure, NoBackend, Shutdown};
        assert_eq!((EndReason::ENDED[0], EndReason::ENDED.last()), (Finished, Some(&Shutdown)));
        assert_eq!(EndReason::REFUSED[0], ClientFailed);
        assert_eq!(EndReason::REFUSED.last(), Some(&LocalFailure));
        assert!(!EndReason::REFUSED.contains(&BackendFailed));
        assert!(!EndReason::ENDED.contains(&NoBackend));
    }
}
