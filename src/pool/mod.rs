//! The backends in force: who is picked, what each was used for, and what an update does to the pairs.

pub(crate) mod pending;
pub(crate) mod rotation;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::pending::{Outcome, PendingUpdate};
use crate::backend::{BackendSet, Entry};
use crate::pool::rotation::Rotation;
use crate::stats::{BackendStats, Usage};
use crate::time::after;

/// The backends in force, and the targets that pairs can have: theirs, and those that drain.
///
/// Pairs refer to both by index, so that counting a byte and judging a pair cost an array access. An update makes new
/// arrays and a [`Reassignment`], by which each pair finds its new indices.
pub(crate) struct Pool {
    rotation: Rotation,
    /// The key served last, which outlives the backend it belonged to.
    last_served: Option<Arc<str>>,
    /// In key order: the indices of the rotation.
    members: Vec<Member>,
    targets: Vec<Target>,
    departed: Usage,
    /// The earliest limit of a target that drains.
    next_drain: Option<Instant>,
}

struct Member {
    entry: Arc<Entry>,
    target: usize,
    usage: Usage,
}

struct Target {
    name: Arc<str>,
    /// How many connected pairs it has.
    open: usize,
    /// When its pairs are cut, if it is no longer in the set.
    drain_until: Option<Instant>,
}

/// The backend that a client was given.
#[derive(Clone)]
pub(crate) struct Assignment {
    pub(crate) entry: Arc<Entry>,
    /// `None` once its key has left the set, if only for a moment.
    member: Option<usize>,
    /// `None` once its target is closed.
    target: Option<usize>,
}

/// How an update changed the indices.
pub(crate) struct Remap {
    members: Vec<Option<usize>>,
    targets: Vec<TargetChange>,
    /// The entries that were in force, kept to be dropped with this and no earlier: their backends are the host's, and
    /// may call in as they are dropped.
    _retired: Vec<Arc<Entry>>,
}

/// What an update means to the pairs of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetChange {
    Stay(usize),
    Drain(usize),
    Close,
}

impl Remap {
    /// Brings a connected pair up to date. Whether it may go on.
    pub(crate) fn remap_open(&self, assignment: &mut Assignment) -> bool {
        self.remap(assignment) != TargetChange::Close
    }

    /// Brings a pair that is still dialling up to date. Whether it may go on: no connection is made to a target that
    /// drains.
    pub(crate) fn remap_dialling(&self, assignment: &mut Assignment) -> bool {
        matches!(self.remap(assignment), TargetChange::Stay(_))
    }

    fn remap(&self, assignment: &mut Assignment) -> TargetChange {
        assignment.member = assignment.member.and_then(|old| self.members[old]);
        let timeout = assignment.target.map_or(TargetChange::Close, |old| self.targets[old]);
        assignment.target = match timeout {
            TargetChange::Stay(new) | TargetChange::Drain(new) => Some(new),
            TargetChange::Close => None,
        };
        timeout
    }
}

/// What an entry of a new set has from the member in force that had its key, which is known by its index.
enum Change {
    Same(usize),
    /// Its target is another.
    Changed(usize),
    Added,
}

impl Change {
    fn same_target(&self) -> Option<usize> {
        match self {
            Self::Same(index) => Some(*index),
            Self::Changed(_) | Self::Added => None,
        }
    }
}

/// A target that a new set names under a key that did not have it: its indices before and after, if any.
#[derive(Default)]
struct TargetIndex {
    old: Option<usize>,
    new: Option<usize>,
}

/// Looks up the newcomers of a set among the targets in force.
fn target_indices<'a>(
    set: &'a BackendSet,
    changes: &[Change],
    old: &[Target],
) -> HashMap<&'a Arc<str>, TargetIndex> {
    let entries = set.shared_entries().zip(changes);
    let names = entries
        .filter(|(_, change)| change.same_target().is_none())
        .map(|(entry, _)| entry.shared_target_name());
    let mut target_indices: HashMap<_, _> =
        names.map(|name| (name, TargetIndex::default())).collect();
    if !target_indices.is_empty() {
        for (index, target) in old.iter().enumerate() {
            if let Some(index_pair) = target_indices.get_mut(&target.name) {
                index_pair.old = Some(index);
            }
        }
    }
    target_indices
}

/// How the keys of two sets differ, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) added: Vec<Arc<str>>,
    pub(crate) removed: Vec<Arc<str>>,
    /// Keys with another target.
    pub(crate) changed: Vec<Arc<str>>,
}

impl Difference {
    /// How many keys of each kind are shown by name.
    const NAMED: usize = 8;

    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// `added a, b and 3 more, removed c`
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds =
            [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)];
        let mut separator = "";
        for (verb, keys) in kinds.into_iter().filter(|(_, keys)| !keys.is_empty()) {
            let named = &keys[..keys.len().min(Self::NAMED)];
            write!(f, "{separator}{verb} {}", named.join(", "))?;
            if keys.len() > named.len() {
                write!(f, " and {} more", keys.len() - named.len())?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

impl Pool {
    pub(crate) fn new(rotation: Rotation) -> Self {
        Self {
            rotation,
            last_served: None,
            members: Vec::new(),
            targets: Vec::new(),
            departed: Usage::default(),
            next_drain: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The names of all targets that pairs can have, in the order in which an update tells their fates.
    pub(crate) fn target_names(&self) -> Arc<[Arc<str>]> {
        self.targets.iter().map(|target| target.name.clone()).collect()
    }

    /// Takes over a new set. Every assignment has to be brought up to date before it is used again.
    ///
    /// With 10,000 backends this is mostly waiting for memory, so it looks at each name as seldom as it can: members are
    /// matched by their order, and only targets that come in under another key are looked up by name.
    pub(crate) fn replace(&mut self, update: &PendingUpdate, now: Instant) -> (Remap, Difference) {
        let changes = self.changes(&update.set);
        let (targets, target_of) = self.replace_targets(update, &changes, now);
        let (members, retired, difference) = self.replace_members(update, &changes, target_of);
        let next = self.last_served.as_ref().map_or(0, |last| {
            self.members.partition_point(|member| member.entry.shared_key() <= last)
        });
        self.rotation.replace(changes.iter().map(Change::same_target), next);
        (Remap { members, targets, _retired: retired }, difference)
    }

    /// What each entry of a new set has from the members in force.
    fn changes(&self, set: &BackendSet) -> Vec<Change> {
        let mut old = self.members.iter().enumerate().peekable();
        let change = |entry: &Arc<Entry>| {
            // Both are in key order: what lies before this key has left.
            while let Some((index, member)) = old.peek() {
                match member.entry.shared_key().cmp(entry.shared_key()) {
                    Ordering::Less => old.next(),
                    Ordering::Greater => break,
                    Ordering::Equal
                        if member.entry.shared_target_name() == entry.shared_target_name() =>
                    {
                        return Change::Same(*index);
                    }
                    Ordering::Equal => return Change::Changed(*index),
                };
            }
            Change::Added
        };
        set.shared_entries().map(change).collect()
    }

    /// Makes the table of targets anew: first those of the set, then those that drain. Returns what became of the old,
    /// and for each entry of the set the index of its target.
    fn replace_targets(
        &mut self,
        update: &PendingUpdate,
        changes: &[Change],
        now: Instant,
    ) -> (Vec<TargetChange>, Vec<usize>) {
        let old = std::mem::take(&mut self.targets);
        let mut target_indices = target_indices(&update.set, changes, &old);
        let mut successors = vec![None; old.len()];
        let mut target_of = Vec::with_capacity(changes.len());
        for (entry, change) in update.set.shared_entries().zip(changes) {
            let name = entry.shared_target_name();
            let place = match change {
                Change::Same(member) => &mut successors[self.members[*member].target],
                Change::Changed(_) | Change::Added => match target_indices.entry(name).or_default()
                {
                    TargetIndex { old: Some(index), .. } => &mut successors[*index],
                    TargetIndex { new, .. } => new,
                },
            };
            target_of.push(*place.get_or_insert_with(|| {
                self.targets.push(Target { name: name.clone(), open: 0, drain_until: None });
                self.targets.len() - 1
            }));
        }
        let mut target_changes = Vec::with_capacity(old.len());
        for (index, target) in old.into_iter().enumerate() {
            let successor = successors[index];
            target_changes.push(match (update.outcome(index, successor.is_some()), successor) {
                (Outcome::Stay, Some(successor)) => {
                    self.targets[successor].open = target.open;
                    TargetChange::Stay(successor)
                }
                (Outcome::Drain { limit, anew }, None) if target.open > 0 => {
                    let until = after(now, limit);
                    let earlier = target.drain_until.filter(|_| !anew);
                    let drain_until = Some(earlier.map_or(until, |earlier| earlier.min(until)));
                    self.targets.push(Target { drain_until, ..target });
                    TargetChange::Drain(self.targets.len() - 1)
                }
                // No pair to drain is no reason to remember the target.
                _ => TargetChange::Close,
            });
        }
        self.next_drain = self.targets.iter().filter_map(|target| target.drain_until).min();
        (target_changes, target_of)
    }

    /// Makes the table of members anew, each with what its key has been used for. Returns where the old ones are now,
    /// and their entries.
    fn replace_members(
        &mut self,
        update: &PendingUpdate,
        changes: &[Change],
        target_of: Vec<usize>,
    ) -> (Vec<Option<usize>>, Vec<Arc<Entry>>, Difference) {
        let old = std::mem::replace(&mut self.members, Vec::with_capacity(changes.len()));
        let mut moved_to = vec![None; old.len()];
        let mut difference = Difference::default();
        for ((entry, change), target) in update.set.shared_entries().zip(changes).zip(target_of) {
            match change {
                Change::Same(_) => {}
                Change::Changed(_) => difference.changed.push(entry.shared_key().clone()),
                Change::Added => difference.added.push(entry.shared_key().clone()),
            }
            let mut usage = Usage::default();
            if let Change::Same(index) | Change::Changed(index) = *change {
                moved_to[index] = Some(self.members.len());
                usage = old[index].usage;
            }
            self.members.push(Member { entry: entry.clone(), target, usage });
        }
        let mut retired = Vec::with_capacity(old.len());
        for (member, moved_to) in old.into_iter().zip(&moved_to) {
            if moved_to.is_none() {
                self.departed += member.usage;
                difference.removed.push(member.entry.shared_key().clone());
            }
            retired.push(member.entry);
        }
        (moved_to, retired, difference)
    }

    /// Picks a backend of which `is_candidate` says so, by key and target name.
    pub(crate) fn pick(
        &mut self,
        now: Instant,
        is_candidate: impl Fn(&Arc<str>, &Arc<str>) -> bool,
    ) -> Option<Assignment> {
        let members = &self.members;
        let is_candidate = |index: usize| {
            let entry = &members[index].entry;
            is_candidate(entry.shared_key(), entry.shared_target_name())
        };
        let index = self.rotation.pick(now, is_candidate)?;
        let member = &members[index];
        self.last_served = Some(member.entry.shared_key().clone());
        Some(Assignment {
            entry: member.entry.clone(),
            member: Some(index),
            target: Some(member.target),
        })
    }

    /// Whether there is a backend of which `is_candidate` says so.
    pub(crate) fn has_candidate(
        &self,
        is_candidate: impl Fn(&Arc<str>, &Arc<str>) -> bool,
    ) -> bool {
        self.members.iter().any(|member| {
            is_candidate(member.entry.shared_key(), member.entry.shared_target_name())
        })
    }

    /// The backend was reached.
    pub(crate) fn connected(&mut self, assignment: &Assignment) {
        if let Some(index) = self.member_to_judge(assignment) {
            self.rotation.succeeded(index);
        }
        let usage = self.usage(assignment);
        usage.open += 1;
        usage.total += 1;
        if let Some(target) = assignment.target {
            self.targets[target].open += 1;
        }
    }

    /// A pair that was connected has ended.
    pub(crate) fn ended(&mut self, assignment: &Assignment) {
        self.usage(assignment).open -= 1;
        if let Some(target) = assignment.target {
            self.targets[target].open -= 1;
        }
    }

    /// One dial failed.
    pub(crate) fn dial_failed(&mut self, assignment: &Assignment) {
        self.usage(assignment).dial_failures += 1;
    }

    /// All addresses of the backend have failed. If that ejects it, returns for how long.
    pub(crate) fn backend_failed(
        &mut self,
        assignment: &Assignment,
        now: Instant,
    ) -> Option<Duration> {
        let index = self.member_to_judge(assignment)?;
        self.rotation.failed(index, now)
    }

    pub(crate) fn moved(&mut self, assignment: &Assignment, up: u64, down: u64) {
        let usage = self.usage(assignment);
        usage.bytes_up += up;
        usage.bytes_down += down;
    }

    /// The member whose health a dial tells of: none if the key has left or has another target now.
    fn member_to_judge(&self, assignment: &Assignment) -> Option<usize> {
        let target_name = assignment.entry.shared_target_name();
        assignment
            .member
            .filter(|&index| self.members[index].entry.shared_target_name() == target_name)
    }

    fn usage(&mut self, assignment: &Assignment) -> &mut Usage {
        match assignment.member {
            Some(index) => &mut self.members[index].usage,
            None => &mut self.departed,
        }
    }

    /// The earliest limit of a target that drains.
    pub(crate) fn next_drain(&self) -> Option<Instant> {
        self.next_drain
    }

    /// Whether the time of a pair's target to drain is over.
    pub(crate) fn has_drained_out(&self, assignment: &Assignment, now: Instant) -> bool {
        let until = assignment.target.and_then(|target| self.targets[target].drain_until);
        until.is_some_and(|until| until <= now)
    }

    /// The pairs whose target's time is over have been cut.
    pub(crate) fn forget_drained_out(&mut self, now: Instant) {
        let later = self
            .targets
            .iter()
            .filter_map(|target| target.drain_until)
            .filter(|until| *until > now);
        self.next_drain = later.min();
    }

    /// How many pairs have a target that drains.
    pub(crate) fn draining(&self) -> usize {
        self.targets
            .iter()
            .filter(|target| target.drain_until.is_some())
            .map(|target| target.open)
            .sum()
    }

    pub(crate) fn backend_stats(&self, now: Instant) -> Vec<BackendStats> {
        let stats = |(index, member): (usize, &Member)| BackendStats {
            key: member.entry.shared_key().clone(),
            target_name: member.entry.shared_target_name().clone(),
            ejected: self.rotation.is_ejected(index, now),
            usage: member.usage,
        };
        self.members.iter().enumerate().map(stats).collect()
    }

    pub(crate) fn departed(&self) -> Usage {
        self.departed
    }
}

#[cfg(test)]
mod tests {
    use super::pending::Removal;
    use super::*;
    use crate::backend::TcpBackend;
    use crate::pool::rotation::{Ejection, Random};

    /// A roster with these keys, each with a target of its own.
    fn pool(keys: &[&str]) -> Pool {
        let mut pool = Pool::new(Rotation::new(Ejection::default(), false, Random::new(1)));
        set(&mut pool, keys);
        pool
    }

    fn set(pool: &mut Pool, keys: &[&str]) {
        let backend = |key: &&str| {
            let port = u16::from_be_bytes([1, key.as_bytes()[0]]);
            (key.to_string(), TcpBackend::new(([127, 0, 0, 1], port).into()))
        };
        let set = keys.iter().map(backend).collect();
        pool.replace(&PendingUpdate::new(set, Removal::Close), Instant::now());
    }

    fn picks(pool: &mut Pool, count: usize) -> String {
        let now = Instant::now();
        let pick = |_| {
            pool.pick(now, |_, _| true)
                .map_or("none".into(), |picked| picked.entry.key().to_owned())
        };
        (0..count).map(pick).collect()
    }

    #[test]
    fn c2_1_a_change_of_the_set_skips_nobody_and_repeats_nobody() {
        let mut pool = pool(&["b", "d", "f"]);
        assert_eq!(picks(&mut pool, 2), "bd");
        set(&mut pool, &["a", "b", "c", "d", "e", "f"]);
        assert_eq!(picks(&mut pool, 2), "ef");
        set(&mut pool, &["a", "b", "g"]); // the one served last is gone
        assert_eq!(picks(&mut pool, 4), "gabg");
        set(&mut pool, &[]);
        assert_eq!(picks(&mut pool, 1), "none");
        set(&mut pool, &["a", "h"]);
        assert_eq!(picks(&mut pool, 2), "ha");
    }

    #[test]
    fn c2_1_a_flapping_backend_starves_nobody() {
        let mut pool = pool(&["a", "b", "c"]);
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for round in 0..3000 {
            set(&mut pool, if round % 5 < 2 { &["a", "b", "c"] } else { &["a", "c"] });
            *counts.entry(picks(&mut pool, 1)).or_default() += 1;
        }
        let (a, b, c) = (counts["a"], counts["b"], counts["c"]);
        assert!(a.abs_diff(c) <= 1 && a + b + c == 3000 && a >= 1000, "{counts:?}");
    }

    #[test]
    fn c5_5_an_ejected_key_stays_so_wherever_it_stands_and_a_new_target_under_it_does_not() {
        let now = Instant::now();
        let mut pool = pool(&["b", "c"]);
        let b = pool.pick(now, |_, _| true).unwrap();
        assert!((0..3).any(|_| pool.backend_failed(&b, now).is_some()));
        set(&mut pool, &["a", "b", "c"]);
        let ejected = |pool: &Pool| {
            pool.backend_stats(now).iter().map(|stats| stats.ejected).collect::<Vec<_>>()
        };
        assert_eq!(ejected(&pool), [false, true, false]);
        let moved = BackendSet::from([("b", TcpBackend::new(([127, 0, 0, 1], 1).into()))]);
        pool.replace(&PendingUpdate::new(moved, Removal::Close), now);
        assert_eq!(ejected(&pool), [false]);
    }

    #[test]
    fn c8_3_a_difference_names_some_keys_of_each_kind_and_counts_the_rest() {
        let keys = |keys: std::ops::Range<u32>| keys.map(|key| key.to_string().into()).collect();
        let difference =
            Difference { added: keys(0..8), removed: keys(10..20), changed: Vec::new() };
        assert_eq!(
            difference.to_string(),
            "added 0, 1, 2, 3, 4, 5, 6, 7, removed 10, 11, 12, 13, 14, 15, 16, 17 and 2 more"
        );
        let of = |added, removed, changed| Difference {
            added: keys(added),
            removed: keys(removed),
            changed: keys(changed),
        };
        assert!(of(0..0, 0..0, 0..0).is_empty());
        assert!(
            ![of(0..1, 0..0, 0..0), of(0..0, 0..1, 0..0), of(0..0, 0..0, 0..1)]
                .iter()
                .any(Difference::is_empty)
        );
    }
}
