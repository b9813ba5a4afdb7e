//! The circuit breaker of a backend: when dials that keep failing eject it, and for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::observer::{BreakerChanged, BreakerState};
use crate::random::Random;
use crate::time::after;

/// When a backend that keeps failing is ejected, and for how long.
///
/// An ejected backend gets no client while another backend is left to try. When the time is over,
/// one client's dial tells whether the backend is back; if it fails, the backend is ejected again.
/// The time doubles with each ejection until a dial succeeds, from `base` up to `max`. It is then
/// shortened at random by up to a quarter, so that a fleet does not return to a backend all at
/// once.
///
/// ```
/// use std::time::Duration;
/// use tinylb::{Ejection, Server};
///
/// let (base, max) = (Duration::from_millis(200), Duration::from_secs(5));
/// let builder = Server::builder().ejection(Ejection::new(2, base, max));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejection {
    /// How many consecutive failed dials eject a backend. The dials of all its addresses for one
    /// client count as one. Defaults to 3; 0 never ejects.
    pub failures: u32,
    /// The first time. Defaults to 1 second.
    pub base: Duration,
    /// The longest time. Defaults to 30 seconds.
    pub max: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self::new(3, Duration::from_secs(1), Duration::from_secs(30))
    }
}

impl Ejection {
    /// Returns these settings. [`Builder::build`](crate::Builder::build) checks them.
    pub const fn new(failures: u32, base: Duration, max: Duration) -> Self {
        Self { failures, base, max }
    }

    /// Returns the time of an ejection after `earlier` ones in a row.
    fn duration(&self, earlier: u32, random: &mut Random) -> Duration {
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(earlier));
        // Bounded, since `mul_f64` may panic on `Duration::MAX`.
        let bounded = doubled.min(self.max).min(crate::time::CENTURY);
        bounded.mul_f64(1.0 - random.unit() / 4.0)
    }
}

/// How the dials of a backend went lately.
///
/// ```text
/// Closed ──`failures` failed dials in a row──> Ejected ──time──> HalfOpen
///    ↑                                            ↑                 │ │
///    ├──────────any dial that succeeds────────────┼─────────────────┘ │
///    └────────────────────────────────────────────└──the probe fails──┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    Closed {
        failures: u32,
    },
    /// `ejections` so far, this one included, without a success in between.
    Ejected {
        until: Instant,
        ejections: u32,
    },
    /// One client's dial, the probe, tells whether the backend is back.
    HalfOpen {
        ejections: u32,
        is_probed: bool,
    },
}

/// A change of a breaker that the observer is to be told of.
pub(crate) struct BreakerChange {
    pub(super) key: Arc<str>,
    pub(super) target_name: Arc<str>,
    pub(super) state: BreakerState,
}

impl BreakerChange {
    /// Returns what the observer is told.
    pub(crate) fn observed(&self) -> BreakerChanged<'_> {
        let Self { key, target_name, state } = self;
        BreakerChanged { key, target_name, state: *state }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Returns how long the backend stays ejected, if it is.
    pub(super) fn ejected_for(&self, now: Instant) -> Option<Duration> {
        let Self::Ejected { until, .. } = self else { return None };
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Returns whether the backend is to be probed, or is being probed.
    pub(super) fn is_half_open(&self, now: Instant) -> bool {
        !matches!(self, Self::Closed { .. }) && self.ejected_for(now).is_none()
    }

    /// Returns whether the next client may be given the backend, even though others are left.
    pub(super) fn is_available(&self) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Ejected { .. } => false,
            Self::HalfOpen { is_probed, .. } => !is_probed,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// Returns the breaker after a failed dial, and the time of the ejection if there is one.
    ///
    /// Unless the breaker is closed, only the probe's failure counts: others are of dials that were
    /// begun before, or of clients that had no other candidate left.
    pub(super) fn failed(
        self,
        was_probe: bool,
        settings: &Ejection,
        now: Instant,
        random: &mut Random,
    ) -> (Self, Option<Duration>) {
        let earlier = match self {
            Self::Closed { .. } if settings.failures == 0 => return (self, None),
            Self::Closed { failures } if failures + 1 < settings.failures => {
                return (Self::Closed { failures: failures + 1 }, None);
            }
            Self::Closed { .. } => 0,
            Self::HalfOpen { ejections, .. } if was_probe => ejections,
            Self::Ejected { .. } | Self::HalfOpen { .. } => return (self, None),
        };
        let time = settings.duration(earlier, random);
        let ejections = earlier.saturating_add(1);
        (Self::Ejected { until: after(now, time), ejections }, Some(time))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SETTINGS: Ejection =
        Ejection { failures: 3, base: Duration::from_secs(1), max: Duration::from_secs(30) };

    /// A breaker after so many failures that no ejection came before.
    fn closed(failures: u32) -> Breaker {
        Breaker::Closed { failures }
    }

    fn half_open(ejections: u32) -> Breaker {
        Breaker::HalfOpen { ejections, is_probed: true }
    }

    fn fail(breaker: Breaker, was_probe: bool) -> (Breaker, Option<Duration>) {
        breaker.failed(was_probe, &SETTINGS, Instant::now(), &mut Random::new(1))
    }

    #[test]
    fn c5_5_consecutive_failures_eject() {
        assert_eq!(fail(closed(0), false), (closed(1), None));
        assert_eq!(fail(closed(1), false), (closed(2), None));
        let (ejected, time) = fail(closed(2), false);
        assert!(matches!(ejected, Breaker::Ejected { ejections: 1, .. }) && time.is_some());
        assert!(!ejected.is_available() && closed(2).is_available());
    }

    #[test]
    fn c5_5_unless_closed_only_the_failure_of_the_probe_counts() {
        let (ejected, _) = fail(closed(2), false);
        assert_eq!(fail(ejected, false), (ejected, None));
        assert_eq!(fail(half_open(1), false), (half_open(1), None));
        assert!(matches!(fail(half_open(1), true).0, Breaker::Ejected { ejections: 2, .. }));
    }

    #[test]
    fn c5_5_the_time_grows_is_bounded_and_varies() {
        let mut random = Random::new(1);
        let times: Vec<_> = (0..9).map(|earlier| SETTINGS.duration(earlier, &mut random)).collect();
        for (earlier, time) in times.iter().enumerate() {
            let full = Duration::from_secs(1 << earlier).min(SETTINGS.max);
            assert!(*time <= full && *time >= full * 3 / 4, "{earlier}: {time:?}");
        }
        let at_the_bound: BTreeSet<_> = times[5..].iter().collect();
        assert!(at_the_bound.len() > 1, "not jittered: {times:?}");
    }

    #[test]
    fn c5_5_no_failure_ejects_if_the_host_says_so() {
        let policy = Ejection { failures: 0, ..SETTINGS };
        let failed = closed(0).failed(false, &policy, Instant::now(), &mut Random::new(1));
        assert_eq!(failed, (closed(0), None));
    }

    #[test]
    fn c9_1_no_ejection_is_too_long() {
        let forever = Ejection { failures: 1, base: Duration::MAX, max: Duration::MAX };
        let time = forever.duration(u32::MAX, &mut Random::new(1));
        assert!(time > Duration::from_secs(1 << 31));
        let (breaker, _) = closed(0).failed(false, &forever, Instant::now(), &mut Random::new(1));
        assert!(matches!(breaker, Breaker::Ejected { .. }));
    }
}
