//! The backends in force: who is picked, what each was used for, and what an update does to the pairs.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::deadlines::after;
use super::update::{Fate, MergedUpdate};
use crate::backend::Entry;
use crate::observe::{BackendStats, Usage};
use crate::rotation::Rotation;

/// The backends in force, and the targets that pairs can have: theirs, and those that drain.
///
/// Pairs refer to both by index, so that counting a byte and judging a pair cost an array access. An update makes new
/// arrays and a [`Reassignment`], by which each pair finds its new indices.
pub(crate) struct Roster {
    rotation: Rotation,
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
        Self { rotation, members: Vec::new(), targets: Vec::new(), departed: Usage::default(), next_drain: None }
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
    pub(crate) fn replace(&mut self, update: &MergedUpdate, now: Instant) -> (Reassignment, Difference) {
        let retired = self.members.iter().map(|member| member.entry.clone()).collect();
        let (targets, by_name) = self.replace_targets(update, now);
        let (members, difference) = self.replace_members(update, &by_name);
        self.rotation.replace(
            self.members
                .iter()
                .map(|member| (member.entry.shared_key().clone(), member.entry.shared_target_name().clone())),
        );
        (Reassignment { members, targets, _retired: retired }, difference)
    }

    /// Makes the table of targets anew: first those of the set, then those that drain. Returns what became of the old,
    /// and the indices of the set's targets.
    fn replace_targets<'a>(
        &mut self,
        update: &'a MergedUpdate,
        now: Instant,
    ) -> (Vec<TargetVerdict>, HashMap<&'a Arc<str>, usize>) {
        let old = std::mem::take(&mut self.targets);
        let mut by_name = HashMap::with_capacity(update.set.len());
        for entry in &update.set {
            by_name.entry(entry.shared_target_name()).or_insert_with(|| {
                let name = entry.shared_target_name().clone();
                self.targets.push(Target { name, open: 0, drain_until: None });
                self.targets.len() - 1
            });
        }
        let mut verdicts = Vec::with_capacity(old.len());
        for (target, fate) in old.into_iter().zip(&update.fates) {
            let named = by_name.get(&target.name);
            verdicts.push(match (*fate, named) {
                (Fate::Stay, Some(&index)) => {
                    self.targets[index].open = target.open;
                    TargetVerdict::Stay(index)
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
        (verdicts, by_name)
    }

    /// Makes the table of members anew, each with what its key has been used for. Returns where the old ones are now.
    fn replace_members(
        &mut self,
        update: &MergedUpdate,
        target_index: &HashMap<&Arc<str>, usize>,
    ) -> (Vec<Option<usize>>, Difference) {
        let old = std::mem::replace(&mut self.members, Vec::with_capacity(update.set.len()));
        let mut moved_to = Vec::with_capacity(old.len());
        let mut difference = Difference::default();
        let mut old = old.into_iter().peekable();
        let mut depart = |member: Member, moved_to: &mut Vec<Option<usize>>, difference: &mut Difference| {
            self.departed.add(&member.usage);
            moved_to.push(None);
            difference.removed.push(member.entry.shared_key().clone());
        };
        for entry in update.set.shared_entries() {
            // Both are in key order: what lies before this key has left.
            while let Some(member) = old.next_if(|member| member.entry.shared_key() < entry.shared_key()) {
                depart(member, &mut moved_to, &mut difference);
            }
            let usage = match old.next_if(|member| member.entry.shared_key() == entry.shared_key()) {
                Some(same) => {
                    moved_to.push(Some(self.members.len()));
                    if same.entry.shared_target_name() != entry.shared_target_name() {
                        difference.changed.push(entry.shared_key().clone());
                    }
                    same.usage
                }
                None => {
                    difference.added.push(entry.shared_key().clone());
                    Usage::default()
                }
            };
            let target = target_index[entry.shared_target_name()];
            self.members.push(Member { entry: entry.clone(), target, usage });
        }
        for member in old {
            depart(member, &mut moved_to, &mut difference);
        }
        (moved_to, difference)
    }

    /// Picks a backend of which `is_candidate` says so, by key and target name.
    pub(crate) fn pick(
        &mut self,
        now: Instant,
        is_candidate: impl Fn(&Arc<str>, &Arc<str>) -> bool,
    ) -> Option<Assignment> {
        let index = self.rotation.pick(now, is_candidate)?;
        let member = &self.members[index];
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
    use super::*;

    #[test]
    fn c8_3_a_difference_names_some_keys_of_each_kind_and_counts_the_rest() {
        let keys = |keys: std::ops::Range<u32>| keys.map(|key| key.to_string().into()).collect();
        let difference = Difference { added: keys(0..8), removed: keys(10..20), changed: Vec::new() };
        assert_eq!(
            difference.to_string(),
            "added 0, 1, 2, 3, 4, 5, 6, 7, removed 10, 11, 12, 13, 14, 15, 16, 17 and 2 more"
        );
        assert!(!difference.is_empty() && Difference::default().is_empty());
    }
}
