//! Replacing the set: what is new, what has changed, and what drains or goes.

use std::sync::Arc;
use std::time::Instant;

use super::arena::Id;
use super::breaker::Breaker;
use super::difference::Difference;
use super::merged_update::{MergedUpdate, Outcome};
use super::policy::MemberInfo;
use super::position_set::PositionSet;
use super::{Member, Pool, Target};
use crate::backend::Entry;
use crate::stats::Usage;
use crate::time::after;

/// The outcome of merging a new set into the order.
#[derive(Default)]
struct Merge {
    difference: Difference,
    /// The targets that have lost their last key. A later key of the new set may still name them.
    unnamed: Vec<Id<Target>>,
    /// The entries that were in force.
    retired: Vec<Arc<Entry>>,
    /// The position that each member of the new order had before, if it was there.
    before: Vec<Option<usize>>,
}

/// The outcome of replacing the set.
pub(crate) struct Replaced {
    pub(crate) difference: Difference,
    /// Whether any pair has lost its target, or may no longer dial it.
    pub(crate) affects_pairs: bool,
    /// The entries that were in force, kept until the update is done: their backends are the
    /// host's, which may call in when they are dropped.
    _retired: Vec<Arc<Entry>>,
}

impl Pool {
    /// Replaces the set. Afterwards [`serves`](Self::serves) and [`may_dial`](Self::may_dial) tell
    /// of each assignment whether its pair may go on.
    ///
    /// With 10,000 backends this mostly waits for memory. So members are matched in order, and a
    /// target is looked up by name only if a key did not have it before.
    pub(crate) fn replace(&mut self, update: &MergedUpdate, now: Instant) -> Replaced {
        let mut affects_pairs = self.remove_closed_earlier(update);
        let Merge { difference, unnamed, retired, before } = self.replace_members(update);
        affects_pairs |= self.drain_or_remove(unnamed, update, now);
        self.find_next_drain_limit();
        self.reposition(&before);
        affects_pairs |= self.has_dials_to_held();
        Replaced { difference, affects_pairs, _retired: retired }
    }

    /// Removes the targets that an earlier one of the merged updates closed. Those that the last
    /// one names come back under new ids. Returns whether any had a pair.
    fn remove_closed_earlier(&mut self, update: &MergedUpdate) -> bool {
        let closed = update.closed_earlier().filter_map(|name| self.target_by_name.remove(name));
        let removed = closed.filter_map(|id| self.targets.remove(id));
        let affected = removed.filter(|target| target.pairs() > 0).count() > 0;
        self.draining.retain(|id| self.targets.contains(*id));
        affected
    }

    /// Merges the new set into the order.
    fn replace_members(&mut self, update: &MergedUpdate) -> Merge {
        let entries = update.set.shared_entries();
        let old = std::mem::replace(&mut self.order, Vec::with_capacity(entries.len()));
        let mut merge = Merge {
            retired: Vec::with_capacity(old.len()),
            before: Vec::with_capacity(entries.len()),
            ..Merge::default()
        };
        let mut old = old.into_iter().peekable();
        for entry in entries {
            // Both are in key order. Equal keys often share their string, which is quick to
            // compare.
            let mut kept = old.next_if(|id| self.members[*id].has_key_of(entry));
            if kept.is_none() {
                while let Some(id) = old.next_if(|id| self.members[*id].entry.key() < entry.key()) {
                    self.remove_member(id, &mut merge);
                }
                kept = old.next_if(|id| self.members[*id].has_key_of(entry));
            }
            match kept {
                Some(id) => self.update_member(id, entry, &mut merge),
                None => self.insert_member(entry, &mut merge),
            }
        }
        for id in old {
            self.remove_member(id, &mut merge);
        }
        merge
    }

    fn insert_member(&mut self, entry: &Arc<Entry>, merge: &mut Merge) {
        merge.difference.added.push(entry.shared_key().clone());
        merge.before.push(None);
        let target = self.ref_target(entry);
        let id = self.members.insert(Member {
            entry: entry.clone(),
            target,
            position: 0, // set by `reposition`
            next_of_target: None,
            breaker: Breaker::default(),
            last_error: None,
            dialling: 0,
            usage: Usage::default(),
        });
        self.order.push(id);
    }

    /// Gives a member its entry of the new set.
    fn update_member(&mut self, id: Id<Member>, entry: &Arc<Entry>, merge: &mut Merge) {
        let Member { entry: old, target, position, .. } = &self.members[id];
        let (target, position) = (*target, *position);
        self.order.push(id);
        merge.before.push(Some(position));
        // A host that changes a copy of its last set shares most entries with it.
        if Arc::ptr_eq(old, entry) && self.targets.contains(target) {
            return;
        }
        let old = old.clone();
        let is_same = old.shared_target_name() == entry.shared_target_name();
        if !is_same || old.weight() != entry.weight() {
            merge.difference.changed.push(entry.shared_key().clone());
        }
        if !is_same {
            self.unref_target(target, &mut merge.unnamed);
        }
        // A target may have lost its id although the new set names it: an earlier one of the merged
        // updates did not. Dials to the old id are no verdict on the new one, so the breaker starts
        // anew. Otherwise it could wait for a probe that nobody makes.
        if !is_same || !self.targets.contains(target) {
            let target = self.ref_target(entry);
            let member = &mut self.members[id];
            (member.target, member.breaker, member.last_error) = (target, Breaker::default(), None);
        }
        self.members[id].entry = entry.clone();
        merge.retired.push(old);
    }

    fn remove_member(&mut self, id: Id<Member>, merge: &mut Merge) {
        let member = self.members.remove(id).expect("a member of the order is in the arena");
        merge.difference.removed.push(member.entry.shared_key().clone());
        self.departed += member.usage;
        self.unref_target(member.target, &mut merge.unnamed);
        merge.retired.push(member.entry);
    }

    /// Counts one more key for the target of an entry.
    fn ref_target(&mut self, entry: &Entry) -> Id<Target> {
        let name = entry.shared_target_name();
        let targets = &mut self.targets;
        let id = *self.target_by_name.entry(name.clone()).or_insert_with(|| {
            targets.insert(Target {
                name: name.clone(),
                keys: 0,
                dialable_keys: 0,
                first_member: None,
                dialling: 0,
                open: 0,
                drain_until: None,
            })
        });
        targets[id].keys += 1;
        id
    }

    /// Counts one key less for a target, and lists it in `unnamed` if that was the last one. A key
    /// of the new set may still name it.
    fn unref_target(&mut self, id: Id<Target>, unnamed: &mut Vec<Id<Target>>) {
        if let Some(target) = self.targets.get_mut(id) {
            target.keys -= 1;
            if target.keys == 0 {
                unnamed.push(id);
            }
        }
    }

    /// Removes the targets that no key names any more, or lets them drain if the update says so.
    /// Returns whether that ends any pair or dial.
    fn drain_or_remove(
        &mut self,
        unnamed: Vec<Id<Target>>,
        update: &MergedUpdate,
        now: Instant,
    ) -> bool {
        let mut affects_pairs = false;
        let drained_before = std::mem::take(&mut self.draining);
        for id in unnamed.into_iter().chain(drained_before) {
            let target = &mut self.targets[id];
            if target.keys > 0 {
                target.drain_until = None;
                continue;
            }
            (target.dialable_keys, target.first_member) = (0, None);
            match update.outcome(&target.name, false) {
                Outcome::Drain { limit, anew } if target.open > 0 => {
                    affects_pairs |= target.dialling > 0;
                    let until = after(now, limit);
                    let earlier = target.drain_until.filter(|_| !anew);
                    target.drain_until = Some(earlier.map_or(until, |earlier| earlier.min(until)));
                    self.draining.push(id);
                }
                // With no pair to finish there is nothing to drain.
                _ => {
                    affects_pairs |= target.pairs() > 0;
                    self.remove_target(id);
                }
            }
        }
        affects_pairs
    }

    /// Rebuilds everything that depends on positions. `before` has the former ones.
    fn reposition(&mut self, before: &[Option<usize>]) {
        let Self { members, targets, order, .. } = self;
        self.version += 1;
        self.candidates = PositionSet::empty(order.len());
        self.available = PositionSet::empty(order.len());
        self.closed = PositionSet::empty(order.len());
        self.ejection_ends.clear();
        for id in &*order {
            let target = &mut targets[members[*id].target];
            (target.dialable_keys, target.first_member) = (0, None);
        }
        for (position, id) in order.iter().enumerate() {
            let member = &mut members[*id];
            let target = &mut targets[member.target];
            member.position = position;
            self.closed.set(position, member.breaker.is_closed());
            member.next_of_target = target.first_member.replace(position);
            if let Breaker::Ejected { until, .. } = member.breaker {
                self.ejection_ends.insert((until, position));
            }
            if !member.entry.is_held() {
                target.dialable_keys += 1;
                self.candidates.insert(position);
                if member.breaker.is_available() {
                    self.available.insert(position);
                }
            }
        }
        let info = |(position, id): (usize, &Id<Member>)| MemberInfo {
            before: before[position],
            weight: members[*id].entry.weight(),
            load: targets[members[*id].target].pairs(),
            is_available: self.available.contains(position),
        };
        self.selector.replace(order.iter().enumerate().map(info).collect());
        let is_before = |last: &str, id: &Id<Member>| members[*id].entry.key() <= last;
        self.rotation.reposition(|last| order.partition_point(|id| is_before(last, id)));
    }

    /// Returns whether any dial is in flight to a target whose keys are all held.
    fn has_dials_to_held(&self) -> bool {
        let members = self.order.iter().enumerate();
        let mut held = members.filter(|(position, _)| !self.candidates.contains(*position));
        held.any(|(_, id)| {
            let Target { dialable_keys, dialling, .. } = self.targets[self.members[*id].target];
            dialable_keys == 0 && dialling > 0
        })
    }
}

impl Member {
    fn has_key_of(&self, entry: &Entry) -> bool {
        self.entry.shared_key() == entry.shared_key()
    }
}
