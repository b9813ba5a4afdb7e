//! Several updates made one: the last set, and what became of each target on the way.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendSet;

/// What becomes of the pairs of a target by the updates since the last that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Named by the last update, and by every plain one: they stay, and a drain is lifted.
    Stay,
    /// They may finish within the limit. `anew` if an earlier drain was lifted on the way, whose limit is void then.
    Drain { limit: Duration, anew: bool },
    /// Missing from a plain update: they are closed, also if the target has come back since.
    Close,
}

/// How an update treats the targets that it does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    Close,
    Drain(Duration),
}

/// An update to be applied, made of all that were given since the last one was.
///
/// Its size is that of the sets: fates are kept for the targets that pairs can have, which the loop tells whenever it
/// has applied an update. A lone update, the usual case, is judged by the loop and costs its sender nothing.
#[derive(Debug)]
pub(crate) struct PendingUpdate {
    pub(crate) set: BackendSet,
    removal: Removal,
    /// What the updates before the last have made of the targets in force, in their order.
    earlier: Option<Vec<Outcome>>,
}

impl PendingUpdate {
    pub(crate) fn new(set: BackendSet, removal: Removal) -> Self {
        Self { set, removal, earlier: None }
    }

    /// This one with another after it. `targets` are those that pairs can have.
    pub(crate) fn then(&self, set: BackendSet, removal: Removal, targets: &[Arc<str>]) -> Self {
        let named: HashSet<&Arc<str>> =
            self.set.iter().map(|entry| entry.shared_target_name()).collect();
        let outcome = |(index, target)| self.outcome(index, named.contains(target));
        Self { set, removal, earlier: Some(targets.iter().enumerate().map(outcome).collect()) }
    }

    /// What becomes of a target in force, of which the caller knows whether the set names it.
    pub(crate) fn outcome(&self, index: usize, is_named: bool) -> Outcome {
        Outcome::next(self.earlier.as_ref().map(|outcomes| outcomes[index]), is_named, self.removal)
    }
}

impl Outcome {
    /// What becomes of a target by one more update.
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

    fn merge(
        earlier: Option<PendingUpdate>,
        set: BackendSet,
        removal: Removal,
        targets: &[Arc<str>],
    ) -> PendingUpdate {
        match earlier {
            Some(earlier) => earlier.then(set, removal, targets),
            None => PendingUpdate::new(set, removal),
        }
    }

    /// The fate of `TARGET` after updates that name it or not.
    fn outcome(updates: &[(bool, Removal)]) -> Outcome {
        let targets = [OTHER.into(), TARGET.into()];
        let mut merged = None;
        for (is_named, removal) in updates {
            let names: &[&str] = if *is_named { &[TARGET] } else { &[] };
            merged = Some(merge(merged, set(names), *removal, &targets));
        }
        let is_named = updates.last().unwrap().0;
        merged.unwrap().outcome(1, is_named)
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
    fn c3_6_the_last_set_counts_and_memory_does_not_grow_with_the_updates() {
        let targets = [TARGET.into()];
        let mut merged = None;
        for _ in 0..1000 {
            merged = Some(merge(merged, set(&[OTHER]), Removal::Close, &targets));
            merged = Some(merge(merged, set(&[TARGET]), Removal::Close, &targets));
        }
        let merged = merged.unwrap();
        assert_eq!(merged.set, set(&[TARGET]));
        assert_eq!(merged.outcome(0, true), Outcome::Close);
        assert_eq!(merged.earlier.map(|outcomes| outcomes.len()), Some(1));
    }
}
