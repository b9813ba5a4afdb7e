//! The backends in force: who is picked, what each was used for, and what an update does to the pairs.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::deadlines::after;
use super::update::{Fate, MergedUpdate};
use crate::backend::{BackendSet, Entry};
use crate::observe::{BackendStats, Usage};
use crate::rotation::Rotation;

/// The backends in force, and the targets that pairs can have: theirs, and those that drain.
///
/// Pairs refer to both by index, so that counting a byte and judging a pair cost an array access. An update makes new
/// arrays and a [`Reassignment`], by which each pair finds its new indices.
pub(crate) struct Roster {
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
pub(crate) struct Reassignment {
    members: Vec<Option<usize>>,
    targets: Vec<TargetVerdict>,
    /// The entries that were in force, kept to be dropped with this and no earlier: their backends are the host's, and
    /// may call in as they are dropped.
    _retired: Vec<Arc<Entry>>,
}

/// What an update means to the pairs of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetVerdict {
    Stay(usize),
    Drain(usize),
    Close,
}

impl Reassignment {
    /// Brings a connected pair up to date. Whether it may go on.
    pub(crate) fn keeps_pair(&self, assignment: &mut Assignment) -> bool {
        self.reassign(assignment) != TargetVerdict::Close
    }

    /// Brings a pair that is still dialling up to date. Whether it may go on: no connection is made to a target that
    /// drains.
    pub(crate) fn keeps_dial(&self, assignment: &mut Assignment) -> bool {
        matches!(self.reassign(assignment), TargetVerdict::Stay(_))
    }

    fn reassign(&self, assignment: &mut Assignment) -> TargetVerdict {
        assignment.member = assignment.member.and_then(|old| self.members[old]);
        let verdict = assignment.target.map_or(TargetVerdict::Close, |old| self.targets[old]);
        assignment.target = match verdict {
            TargetVerdict::Stay(new) | TargetVerdict::Drain(new) => Some(new),
            TargetVerdict::Close => None,
        };
        verdict
    }
}

/// What an entry of a new set has from the member in force that had its key, which is known by its index.
enum Heir {
    Same(usize),
    /// Its target is another.
    Changed(usize),
    Added,
}

impl Heir {
    fn same_target(&self) -> Option<usize> {
        match self {
            Self::Same(index) => Some(*index),
            Self::Changed(_) | Self::Added => None,
        }
    }
}

/// A target that a new set names under a key that did not have it: its indices before and after, if any.
#[derive(Default)]
struct Newcomer {
    old: Option<usize>,
    new: Option<usize>,
}

/// Looks up the newcomers of a set among the targets in force.
fn newcomers<'a>(set: &'a BackendSet, heirs: &[Heir], old: &[Target]) -> HashMap<&'a Arc<str>, Newcomer> {
    let entries = set.shared_entries().zip(heirs);
    let names = entries.filter(|(_, heir)| heir.same_target().is_none()).map(|(entry, _)| entry.shared_target_name());
    let mut newcomers: HashMap<_, _> = names.map(|name| (name, Newcomer::default())).collect();
    if !newcomers.is_empty() {
        for (index, target) in old.iter().enumerate() {
            if let Some(newcomer) = newcomers.get_mut(&target.name) {
                newcomer.old = Some(index);
            }
        }
    }
    newcomers
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
        let kinds = [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)];
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

impl Roster {
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
    pub(crate) fn replace(&mut self, update: &MergedUpdate, now: Instant) -> (Reassignment, Difference) {
        let heirs = self.heirs(&update.set);
        let (targets, target_of) = self.replace_targets(update, &heirs, now);
        let (members, retired, difference) = self.replace_members(update, &heirs, target_of);
        let next = self
            .last_served
            .as_ref()
            .map_or(0, |last| self.members.partition_point(|member| member.entry.shared_key() <= last));
        self.rotation.replace(heirs.iter().map(Heir::same_target), next);
        (Reassignment { members, targets, _retired: retired }, difference)
    }

    /// What each entry of a new set has from the members in force.
    fn heirs(&self, set: &BackendSet) -> Vec<Heir> {
        let mut old = self.members.iter().enumerate().peekable();
        let heir = |entry: &Arc<Entry>| {
            // Both are in key order: what lies before this key has left.
            while let Some((index, member)) = old.peek() {
                match member.entry.shared_key().cmp(entry.shared_key()) {
                    Ordering::Less => old.next(),
                    Ordering::Greater => break,
                    Ordering::Equal if member.entry.shared_target_name() == entry.shared_target_name() => {
                        return Heir::Same(*index);
                    }
                    Ordering::Equal => return Heir::Changed(*index),
                };
            }
            Heir::Added
        };
        set.shared_entries().map(heir).collect()
    }

    /// Makes the table of targets anew: first those of the set, then those that drain. Returns what became of the old,
    /// and for each entry of the set the index of its target.
    fn replace_targets(
        &mut self,
        update: &MergedUpdate,
        heirs: &[Heir],
        now: Instant,
    ) -> (Vec<TargetVerdict>, Vec<usize>) {
        let old = std::mem::take(&mut self.targets);
        let mut newcomers = newcomers(&update.set, heirs, &old);
        let mut successors = vec![None; old.len()];
        let mut target_of = Vec::with_capacity(heirs.len());
        for (entry, heir) in update.set.shared_entries().zip(heirs) {
            let name = entry.shared_target_name();
            let place = match heir {
                Heir::Same(member) => &mut successors[self.members[*member].target],
                Heir::Changed(_) | Heir::Added => match newcomers.entry(name).or_default() {
                    Newcomer { old: Some(index), .. } => &mut successors[*index],
                    Newcomer { new, .. } => new,
                },
            };
            target_of.push(*place.get_or_insert_with(|| {
                self.targets.push(Target { name: name.clone(), open: 0, drain_until: None });
                self.targets.len() - 1
            }));
        }
        let mut verdicts = Vec::with_capacity(old.len());
        for (index, target) in old.into_iter().enumerate() {
            let successor = successors[index];
            verdicts.push(match (update.fate(index, successor.is_some()), successor) {
                (Fate::Stay, Some(successor)) => {
                    self.targets[successor].open = target.open;
                    TargetVerdict::Stay(successor)
                }
                (Fate::Drain { limit, anew }, None) if target.open > 0 => {
                    let until = after(now, limit);
                    let earlier = target.drain_until.filter(|_| !anew);
                    let drain_until = Some(earlier.map_or(until, |earlier| earlier.min(until)));
                    self.targets.push(Target { drain_until, ..target });
                    TargetVerdict::Drain(self.targets.len() - 1)
                }
                // No pair to drain is no reason to remember the target.
                _ => TargetVerdict::Close,
            });
        }
        self.next_drain = self.targets.iter().filter_map(|target| target.drain_until).min();
        (verdicts, target_of)
    }

    /// Makes the table of members anew, each with what its key has been used for. Returns where the old ones are now,
    /// and their entries.
    fn replace_members(
        &mut self,
        update: &MergedUpdate,
        heirs: &[Heir],
        target_of: Vec<usize>,
    ) -> (Vec<Option<usize>>, Vec<Arc<Entry>>, Difference) {
        let old = std::mem::replace(&mut self.members, Vec::with_capacity(heirs.len()));
        let mut moved_to = vec![None; old.len()];
        let mut difference = Difference::default();
        for ((entry, heir), target) in update.set.shared_entries().zip(heirs).zip(target_of) {
            match heir {
                Heir::Same(_) => {}
                Heir::Changed(_) => difference.changed.push(entry.shared_key().clone()),
                Heir::Added => difference.added.push(entry.shared_key().clone()),
            }
            let mut usage = Usage::default();
            if let Heir::Same(index) | Heir::Changed(index) = *heir {
                moved_to[index] = Some(self.members.len());
                usage = old[index].usage;
            }
            self.members.push(Member { entry: entry.clone(), target, usage });
        }
        let mut retired = Vec::with_capacity(old.len());
        for (member, moved_to) in old.into_iter().zip(&moved_to) {
            if moved_to.is_none() {
                self.departed.add(&member.usage);
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
        Some(Assignment { entry: member.entry.clone(), member: Some(index), target: Some(member.target) })
    }

    /// Whether there is a backend of which `is_candidate` says so.
    pub(crate) fn has_candidate(&self, is_candidate: impl Fn(&Arc<str>, &Arc<str>) -> bool) -> bool {
        self.members.iter().any(|member| is_candidate(member.entry.shared_key(), member.entry.shared_target_name()))
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
    pub(crate) fn backend_failed(&mut self, assignment: &Assignment, now: Instant) -> Option<Duration> {
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
        assignment.member.filter(|&index| self.members[index].entry.shared_target_name() == target_name)
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
        let later = self.targets.iter().filter_map(|target| target.drain_until).filter(|until| *until > now);
        self.next_drain = later.min();
    }

    /// How many pairs have a target that drains.
    pub(crate) fn draining(&self) -> usize {
        self.targets.iter().filter(|target| target.drain_until.is_some()).map(|target| target.open).sum()
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
    use super::super::update::Vanished;
    use super::*;
    use crate::backend::TcpBackend;
    use crate::rotation::{Ejection, Random};

    /// A roster with these keys, each with a target of its own.
    fn roster(keys: &[&str]) -> Roster {
        let mut roster = Roster::new(Rotation::new(Ejection::default(), false, Random::new(1)));
        set(&mut roster, keys);
        roster
    }

    fn set(roster: &mut Roster, keys: &[&str]) {
        let backend = |key: &&str| {
            let port = u16::from_be_bytes([1, key.as_bytes()[0]]);
            (key.to_string(), TcpBackend::new(([127, 0, 0, 1], port).into()))
        };
        let set = keys.iter().map(backend).collect();
        roster.replace(&MergedUpdate::new(set, Vanished::Close), Instant::now());
    }

    fn picks(roster: &mut Roster, count: usize) -> String {
        let now = Instant::now();
        let pick = |_| roster.pick(now, |_, _| true).map_or("none".into(), |picked| picked.entry.key().to_owned());
        (0..count).map(pick).collect()
    }

    #[test]
    fn c2_1_a_change_of_the_set_skips_nobody_and_repeats_nobody() {
        let mut roster = roster(&["b", "d", "f"]);
        assert_eq!(picks(&mut roster, 2), "bd");
        set(&mut roster, &["a", "b", "c", "d", "e", "f"]);
        assert_eq!(picks(&mut roster, 2), "ef");
        set(&mut roster, &["a", "b", "g"]); // the one served last is gone
        assert_eq!(picks(&mut roster, 4), "gabg");
        set(&mut roster, &[]);
        assert_eq!(picks(&mut roster, 1), "none");
        set(&mut roster, &["a", "h"]);
        assert_eq!(picks(&mut roster, 2), "ha");
    }

    #[test]
    fn c2_1_a_flapping_backend_starves_nobody() {
        let mut roster = roster(&["a", "b", "c"]);
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for round in 0..3000 {
            set(&mut roster, if round % 5 < 2 { &["a", "b", "c"] } else { &["a", "c"] });
            *counts.entry(picks(&mut roster, 1)).or_default() += 1;
        }
        let (a, b, c) = (counts["a"], counts["b"], counts["c"]);
        assert!(a.abs_diff(c) <= 1 && a + b + c == 3000 && a >= 1000, "{counts:?}");
    }

    #[test]
    fn c5_5_an_ejected_key_stays_so_wherever_it_stands_and_a_new_target_under_it_does_not() {
        let now = Instant::now();
        let mut roster = roster(&["b", "c"]);
        let b = roster.pick(now, |_, _| true).unwrap();
        assert!((0..3).any(|_| roster.backend_failed(&b, now).is_some()));
        set(&mut roster, &["a", "b", "c"]);
        let ejected = |roster: &Roster| roster.backend_stats(now).iter().map(|stats| stats.ejected).collect::<Vec<_>>();
        assert_eq!(ejected(&roster), [false, true, false]);
        let moved = BackendSet::from([("b", TcpBackend::new(([127, 0, 0, 1], 1).into()))]);
        roster.replace(&MergedUpdate::new(moved, Vanished::Close), now);
        assert_eq!(ejected(&roster), [false]);
    }

    #[test]
    fn c8_3_a_difference_names_some_keys_of_each_kind_and_counts_the_rest() {
        let keys = |keys: std::ops::Range<u32>| keys.map(|key| key.to_string().into()).collect();
        let difference = Difference { added: keys(0..8), removed: keys(10..20), changed: Vec::new() };
        assert_eq!(
            difference.to_string(),
            "added 0, 1, 2, 3, 4, 5, 6, 7, removed 10, 11, 12, 13, 14, 15, 16, 17 and 2 more"
        );
        let of =
            |added, removed, changed| Difference { added: keys(added), removed: keys(removed), changed: keys(changed) };
        assert!(of(0..0, 0..0, 0..0).is_empty());
        assert!(![of(0..1, 0..0, 0..0), of(0..0, 0..1, 0..0), of(0..0, 0..0, 0..1)].iter().any(Difference::is_empty));
    }
}
