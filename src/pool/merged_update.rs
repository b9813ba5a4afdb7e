//! Updates merged into one: the last set, and what the others mean for each target.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendSet;

/// What an update does with the pairs of targets that its set does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    Close,
    Drain(Duration),
}

/// What the updates since the last turn mean for the pairs of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Named by the last update, and by every plain one: pairs stay, and a drain is lifted.
    Stay,
    /// Pairs may finish within the limit. `anew` if an update in between named the target: the
    /// limit of a drain that was under way before then no longer counts.
    Drain { limit: Duration, anew: bool },
    /// Missing from a plain update: pairs are closed, even if the target has come back since.
    Close,
}

/// One update, or several merged into one.
///
/// Its size is that of the sets: outcomes are kept only for [`LiveTargets`]. A single update, the
/// usual case, has no outcomes of its own and costs its sender nothing.
#[derive(Debug)]
pub(crate) struct MergedUpdate {
    pub(crate) set: BackendSet,
    removal: Removal,
    /// What the updates before the last have made of the live targets.
    earlier: HashMap<Arc<str>, Outcome>,
}

/// The names of all targets that pairs may have. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiveTargets {
    /// The set in force, and while the loop replaces it, its successor.
    sets: Vec<BackendSet>,
    draining: Arc<[Arc<str>]>,
}

impl LiveTargets {
    pub(crate) fn new(in_force: BackendSet, draining: Arc<[Arc<str>]>) -> Self {
        Self { sets: vec![in_force], draining }
    }

    /// Adds the targets of a set that is about to be in force.
    pub(crate) fn add(&mut self, set: BackendSet) {
        self.sets.push(set);
    }

    fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let named = self.sets.iter().flat_map(BackendSet::shared_entries);
        named.map(|entry| entry.shared_target_name()).chain(&*self.draining)
    }
}

impl MergedUpdate {
    pub(crate) fn new(set: BackendSet, removal: Removal) -> Self {
        Self { set, removal, earlier: HashMap::new() }
    }

    /// Merges updates in the order in which they were submitted. Only the first may be merged
    /// already.
    pub(crate) fn merge(updates: &[Arc<Self>], live: &LiveTargets) -> Arc<Self> {
        let (first, rest) = updates.split_first().expect("there is an update to merge");
        rest.iter().fold(first.clone(), |merged, next| Arc::new(merged.then(next, live)))
    }

    fn then(&self, next: &Self, live: &LiveTargets) -> Self {
        let named: HashSet<&Arc<str>> =
            self.set.shared_entries().map(|entry| entry.shared_target_name()).collect();
        let outcome = |name: &Arc<str>| (name.clone(), self.outcome(name, named.contains(name)));
        let earlier = live.names().map(outcome).collect();
        Self { set: next.set.clone(), removal: next.removal, earlier }
    }

    /// Returns what becomes of a live target. The caller knows whether the set names it.
    pub(crate) fn outcome(&self, name: &str, is_named: bool) -> Outcome {
        // Saves hashing the name: a single update has no earlier outcomes.
        let earlier = if self.earlier.is_empty() { None } else { self.earlier.get(name).copied() };
        Outcome::next(earlier, is_named, self.removal)
    }

    /// Returns the targets that an earlier update closes, whatever the last one names.
    pub(crate) fn closed_earlier(&self) -> impl Iterator<Item = &Arc<str>> {
        let closed = self.earlier.iter().filter(|(_, outcome)| **outcome == Outcome::Close);
        closed.map(|(name, _)| name)
    }
}

impl Outcome {
    /// Returns the outcome after one more update.
    fn next(earlier: Option<Self>, is_named: bool, removal: Removal) -> Self {
        match (earlier, removal) {
            (Some(Self::Close), _) => Self::Close,
            _ if is_named => Self::Stay,
            (_, Removal::Close) => Self::Close,
            (None, Removal::Drain(limit)) => Self::Drain { limit, anew: false },
            (Some(Self::Stay), Removal::Drain(limit)) => Self::Drain { limit, anew: true },
            (Some(Self::Drain { limit, anew }), Removal::Drain(another)) => {
                Self::Drain { limit: limit.min(another), anew }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::TcpBackend;

    const TARGET: &str = "127.0.0.1:1";
    const OTHER: &str = "127.0.0.1:2";

    fn set(targets: &[&str]) -> BackendSet {
        targets.iter().map(|target| (*target, TcpBackend::new(target.parse().unwrap()))).collect()
    }

    fn live() -> LiveTargets {
        LiveTargets::new(set(&[OTHER, TARGET]), Arc::new([]))
    }

    fn update(targets: &[&str], removal: Removal) -> Arc<MergedUpdate> {
        Arc::new(MergedUpdate::new(set(targets), removal))
    }

    /// The outcome for `TARGET` of updates that name it or not.
    fn outcome(updates: &[(bool, Removal)]) -> Outcome {
        let names = |is_named: bool| if is_named { &[TARGET][..] } else { &[] };
        let updates: Vec<_> =
            updates.iter().map(|(named, removal)| update(names(*named), *removal)).collect();
        let merged = MergedUpdate::merge(&updates, &live());
        merged.outcome(TARGET, merged.set.contains_key(TARGET))
    }

    const WITH: (bool, Removal) = (true, Removal::Close);
    const WITHOUT: (bool, Removal) = (false, Removal::Close);

    fn draining(secs: u64) -> (bool, Removal) {
        (false, Removal::Drain(Duration::from_secs(secs)))
    }

    fn drain(secs: u64, anew: bool) -> Outcome {
        Outcome::Drain { limit: Duration::from_secs(secs), anew }
    }

    #[test]
    fn c3_6_a_removal_is_never_lost() {
        assert_eq!(outcome(&[WITH]), Outcome::Stay);
        assert_eq!(outcome(&[WITHOUT]), Outcome::Close);
        assert_eq!(outcome(&[WITHOUT, WITH]), Outcome::Close);
        assert_eq!(outcome(&[WITH, WITHOUT, WITH, WITH]), Outcome::Close);
    }

    #[test]
    fn c3_9_a_plain_update_overrides_a_drain_a_naming_one_lifts_it_and_the_earlier_limit_holds() {
        assert_eq!(outcome(&[draining(5)]), drain(5, false));
        assert_eq!(outcome(&[draining(5), draining(9)]), drain(5, false));
        assert_eq!(outcome(&[draining(5), draining(2)]), drain(2, false));
        assert_eq!(outcome(&[draining(5), WITHOUT]), Outcome::Close);
        assert_eq!(outcome(&[WITHOUT, draining(5)]), Outcome::Close);
        assert_eq!(outcome(&[draining(5), WITH]), Outcome::Stay);
        assert_eq!(outcome(&[draining(2), WITH, draining(9)]), drain(9, true));
        assert_eq!(outcome(&[WITH, draining(9), draining(3)]), drain(3, true));
    }

    #[test]
    fn c3_6_a_removal_is_remembered_for_each_target_that_may_have_pairs() {
        let without = [update(&[], Removal::Close), update(&[TARGET], Removal::Close)];
        let closed = |live: &LiveTargets| {
            let merged = MergedUpdate::merge(&without, live);
            merged.closed_earlier().any(|name| &**name == TARGET)
        };
        assert!(closed(&live()));
        assert!(closed(&LiveTargets::new(set(&[]), Arc::new([TARGET.into()]))), "it drains");
        let mut replaced = LiveTargets::new(set(&[]), Arc::new([]));
        assert!(!closed(&replaced));
        replaced.add(set(&[TARGET]));
        assert!(closed(&replaced), "it is about to be in force");
    }

    #[test]
    fn c3_6_the_last_set_counts_and_memory_does_not_grow_with_the_updates() {
        let mut merged = update(&[OTHER], Removal::Close);
        for port in 10..1000 {
            let target = format!("127.0.0.1:{port}");
            let next = update(&[&target], Removal::Drain(Duration::from_secs(1)));
            merged = MergedUpdate::merge(&[merged, next], &live());
        }
        assert_eq!(merged.set, set(&["127.0.0.1:999"]));
        assert_eq!(merged.earlier.len(), 2);
    }
}
