//! Counters: the snapshot of a running balancer, what an update did, and the summary of a run.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::mem;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use crate::end_reason::EndCounts;

/// One consistent snapshot of a balancer's counters.
///
/// The counters add up: `accepted == refused.total() + ended.total() + dialling + open`; `open` is
/// the sum over `backends` and `departed`, and so are the bytes.
///
/// Snapshots of several balancers can be summed. Backends with the same key become one, with the
/// target name, weight and breaker state of the right-hand side, and the latest error of all.
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
    /// How often the set was replaced. Updates applied in one step count once.
    pub updates: u64,
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

    fn add_backends(&mut self, backends: Vec<BackendStats>) {
        let mut by_key = BTreeMap::<Arc<str>, BackendStats>::new();
        for mut backend in mem::take(&mut self.backends).into_iter().chain(backends) {
            if let Some(earlier) = by_key.remove(&backend.key) {
                backend.dialling += earlier.dialling;
                backend.usage += earlier.usage;
                let errors = [backend.last_error.take(), earlier.last_error];
                backend.last_error = errors.into_iter().flatten().min_by_key(|error| error.age);
            }
            by_key.insert(backend.key.clone(), backend);
        }
        self.backends = by_key.into_values().collect();
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
    /// Its weight in the set; 0 if it is held.
    pub weight: u32,
    /// Clients that are being connected to it, now.
    pub dialling: u64,
    /// Whether it is ejected after failed dials: skipped while others are left.
    pub ejected: bool,
    /// How long it stays ejected. `None` if it is not.
    pub ejected_for: Option<Duration>,
    /// Whether its ejection is over, and one client's dial is about to tell whether it is back, or
    /// is in flight to find out.
    pub half_open: bool,
    /// Why a dial of its target last failed. A success does not clear it.
    pub last_error: Option<DialError>,
    /// Its connections, failures and bytes.
    pub usage: Usage,
}

/// Why a dial failed, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DialError {
    /// The error.
    pub text: Arc<str>,
    /// The time since then, as of the snapshot.
    pub age: Duration,
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

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Connections closed because their target is gone.
    pub closed: usize,
    /// Dials in flight cancelled because their target is gone or held. Their clients continue with
    /// other backends, or are refused if none is left.
    pub cancelled: usize,
    /// Connections to targets that are gone that may still finish, because of an
    /// [`update_draining`](crate::Control::update_draining). Connections to backends that are held
    /// do not count.
    pub draining: usize,
    /// Backends in the set that is now in force.
    pub backends: usize,
    /// Keys that the set in force before did not have.
    pub added: usize,
    /// Keys of the set in force before that are gone.
    pub removed: usize,
    /// Keys with another target or weight than before.
    pub changed: usize,
}

/// What a balancer did from its start to its end. In a sum, `ran_for` is the longest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Implements `+=`, which adds each field or merges it in the way given, and `Sum`. A field that is
/// not listed does not compile.
macro_rules! impl_sum {
    ($type:ident { $($added:ident),* $(; $field:ident => $merge:expr)? }) => {
        impl AddAssign for $type {
            fn add_assign(&mut self, other: Self) {
                let Self { $($added,)* $($field)? } = other;
                $(self.$added += $added;)*
                $($merge(self, $field);)?
            }
        }

        impl Sum for $type {
            fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
                items.fold(Self::default(), |mut sum, item| {
                    sum += item;
                    sum
                })
            }
        }
    };
}

impl_sum!(Usage { open, total, dial_failures, bytes_up, bytes_down });
impl_sum!(Applied { closed, cancelled, draining, backends, added, removed, changed });
impl_sum!(Stats {
    accepted, dialling, open, refused, ended, bytes_up, bytes_down, updates, departed;
    backends => Self::add_backends
});
impl_sum!(Summary {
    accepted, refused, ended, bytes_up, bytes_down, updates;
    ran_for => |sum: &mut Self, ran_for| sum.ran_for = sum.ran_for.max(ran_for)
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::end_reason::EndReason;

    #[test]
    fn c8_1_snapshots_of_several_balancers_add_up() {
        let backend = |key: &str, target_name: &str, open| BackendStats {
            key: key.into(),
            target_name: target_name.into(),
            weight: 1,
            dialling: open,
            ejected: open > 1,
            ejected_for: (open > 1).then_some(Duration::from_secs(open)),
            half_open: open == 1,
            last_error: None,
            usage: Usage { open, total: 10 * open, ..Usage::default() },
        };
        let mut refused = EndCounts::default();
        refused.count(EndReason::NoBackend);
        let shard =
            |backends| Stats { accepted: 5, open: 3, refused, backends, ..Stats::default() };
        let sum: Stats = [
            shard(vec![backend("a", "old", 1), backend("c", "t", 1)]),
            shard(vec![backend("a", "new", 2), backend("b", "t", 1)]),
        ]
        .into_iter()
        .sum();
        assert_eq!((sum.accepted, sum.open, sum.refused.of(EndReason::NoBackend)), (10, 6, 2));
        let mut a = backend("a", "new", 3);
        a.usage.total = 30;
        a.ejected_for = Some(Duration::from_secs(2)); // that of the right-hand side
        assert_eq!(sum.backends, [a, backend("b", "t", 1), backend("c", "t", 1)]);
    }

    #[test]
    fn c8_1_of_several_dial_errors_of_a_backend_the_latest_is_kept() {
        let snapshot = |last_error: Option<(&str, u64)>| {
            let backend = BackendStats {
                key: "a".into(),
                weight: 1,
                target_name: "t".into(),
                dialling: 0,
                ejected: false,
                ejected_for: None,
                half_open: false,
                last_error: last_error.map(|(text, secs)| DialError {
                    text: text.into(),
                    age: Duration::from_secs(secs),
                }),
                usage: Usage::default(),
            };
            Stats { backends: vec![backend], ..Stats::default() }
        };
        for (errors, latest) in [
            ([Some(("old", 9)), Some(("new", 1)), None], "new"),
            ([Some(("new", 1)), None, Some(("old", 9))], "new"),
            ([None, Some(("same", 1)), Some(("right", 1))], "right"),
        ] {
            let sum: Stats = errors.map(snapshot).into_iter().sum();
            assert_eq!(sum.backends[0].last_error.as_ref().map(|error| &*error.text), Some(latest));
        }
    }

    #[test]
    fn c8_1_the_longest_run_is_that_of_all() {
        let ran_for = |secs| Summary {
            ran_for: Duration::from_secs(secs),
            updates: secs,
            ..Summary::default()
        };
        assert_eq!(
            [1, 3, 2].map(ran_for).into_iter().sum::<Summary>(),
            Summary { updates: 6, ..ran_for(3) }
        );
    }
}
