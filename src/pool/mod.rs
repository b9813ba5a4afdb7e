//! The backends in force: which is picked next, what each was used for, and what an update changes.
//!
//! Members are the keys of the set, targets are what they name. Both have ids that stay valid for
//! as long as they are in force. A pair's [`Assignment`] holds the ids of what it was given, and
//! finds nothing under them afterwards. So an update touches only the pairs that it closes.
//!
//! This file picks and counts. `replace` carries out an update.

mod arena;
mod breaker;
mod difference;
pub(crate) mod merged_update;
mod min_tree;
pub(crate) mod policy;
mod position_set;
mod replace;
mod rotation;
mod tried;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::arena::Arena;
pub(crate) use self::arena::Id;
pub use self::breaker::Ejection;
use self::breaker::{Breaker, BreakerChange};
pub(crate) use self::difference::Difference;
use self::merged_update::{LiveTargets, MergedUpdate};
pub use self::policy::Policy;
use self::policy::Selector;
use self::position_set::PositionSet;
use self::rotation::Rotation;
pub(crate) use self::tried::Tried;
use crate::backend::Entry;
use crate::observer::BreakerState;
use crate::random::Random;
use crate::stats::{BackendStats, DialError, Usage};

/// The most ejections that one turn ends. The observer is told of each.
const EJECTION_ENDS_PER_TURN: usize = 64;

/// How the backends in force are picked and ejected.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PickSettings {
    pub(crate) policy: Policy,
    pub(crate) ejection: Ejection,
    pub(crate) random_first_pick: bool,
}

/// The backends in force, and the targets that drain.
pub(crate) struct Pool {
    settings: PickSettings,
    random: Random,
    members: Arena<Member>,
    /// The members in key order.
    order: Vec<Id<Member>>,
    /// Counts the changes of the order. [`Tried`] compares it to notice that positions have
    /// changed.
    version: u64,
    rotation: Rotation,
    /// Picks for clients that have tried nothing yet.
    selector: Box<dyn Selector>,
    /// The positions of the members that clients may be given at all: those that are not held.
    candidates: PositionSet,
    /// Those of them whose breaker lets the next client through.
    available: PositionSet,
    /// Those of them whose breaker is closed.
    closed: PositionSet,
    /// When ejections end. Kept in step by [`set_breaker`](Self::set_breaker).
    ejection_ends: BTreeSet<(Instant, usize)>,
    /// The changes that the observer must still be told of.
    breaker_changes: Vec<BreakerChange>,
    targets: Arena<Target>,
    target_by_name: HashMap<Arc<str>, Id<Target>>,
    /// The targets that have left the set and still have pairs.
    draining: Vec<Id<Target>>,
    /// The earliest of their limits, which each turn asks for.
    next_drain_limit: Option<Instant>,
    /// The usage of keys that have left.
    departed: Usage,
}

/// A key of the set.
struct Member {
    entry: Arc<Entry>,
    target: Id<Target>,
    /// Where it is in the order.
    position: usize,
    /// The position of the next member with the same target.
    next_of_target: Option<usize>,
    breaker: Breaker,
    /// The last failed dial of its target.
    last_error: Option<(Arc<str>, Instant)>,
    dialling: u64,
    usage: Usage,
}

/// What one or more keys name, or named until it began to drain.
pub(crate) struct Target {
    name: Arc<str>,
    /// How many keys of the set name it.
    keys: usize,
    /// How many of them are not held.
    dialable_keys: usize,
    /// The position of the first of its members.
    first_member: Option<usize>,
    dialling: usize,
    open: usize,
    /// When its pairs are closed, if it drains. No key names it then.
    drain_until: Option<Instant>,
}

/// A client's claim on a backend, from the pick until [`Pool::release`].
///
/// `release` takes back what was counted for it, however the pair leaves its backend. So it cannot
/// be copied.
#[must_use = "the pool counts it until it is released"]
pub(crate) struct Assignment {
    entry: Arc<Entry>,
    member: Id<Member>,
    target: Id<Target>,
    state: AssignmentState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AssignmentState {
    Dialling,
    /// As `Dialling`, and the breaker waits for the outcome.
    Probing,
    Open,
}

impl Assignment {
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(crate) fn shared_entry(&self) -> Arc<Entry> {
        self.entry.clone()
    }

    pub(crate) fn key(&self) -> &str {
        self.entry.key()
    }

    pub(crate) fn target_name(&self) -> &str {
        self.entry.target_name()
    }
}

/// The outcome of a pick.
pub(crate) enum Picked {
    Backend(Assignment),
    /// All that is left to try is busy. The client waits for this target.
    Busy(Id<Target>),
    /// Others wait for the backend that was its turn. The client can pick another one.
    Awaited,
    /// Nothing is left to try.
    None,
}

#[cfg(test)]
impl Picked {
    fn backend(self) -> Option<Assignment> {
        if let Self::Backend(assignment) = self { Some(assignment) } else { None }
    }
}

impl Pool {
    pub(crate) fn new(settings: PickSettings, random: Random) -> Self {
        Self {
            rotation: Rotation::new(settings.random_first_pick),
            selector: settings.policy.selector(),
            settings,
            random,
            members: Arena::default(),
            order: Vec::new(),
            version: 0,
            candidates: PositionSet::default(),
            available: PositionSet::default(),
            closed: PositionSet::default(),
            ejection_ends: BTreeSet::new(),
            breaker_changes: Vec::new(),
            targets: Arena::default(),
            target_by_name: HashMap::new(),
            draining: Vec::new(),
            next_drain_limit: None,
            departed: Usage::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }
}

/// Picking, and the outcomes of dials.
impl Pool {
    /// Returns whether a client can be given another backend, or can wait for a busy one.
    pub(crate) fn has_candidate(&self, tried: &mut Tried) -> bool {
        !self.untried(tried).is_empty() || self.next_busy(tried).is_some()
    }

    /// Returns how many other backends the client of an assignment may still be given. While any of
    /// them has a closed breaker, only those count.
    pub(crate) fn others_left(&self, assignment: &Assignment, tried: &mut Tried) -> usize {
        let own = self.position_of(&assignment.entry);
        let busy = tried.busy().iter().filter_map(|entry| self.position_of(entry)).count();
        let untried = self.untried(tried);
        let count = |set: &PositionSet| {
            let is_own = own.is_some_and(|own| untried.contains(own) && set.contains(own));
            untried.common_len(set) - usize::from(is_own)
        };
        match count(&self.closed) + busy {
            0 => count(untried),
            closed => closed,
        }
    }

    /// Picks a backend that the client has not tried: the first by the policy, later ones in key
    /// order. One that is not available is picked only if no other is left and none is busy. One
    /// that is awaited by clients who come first is busy for this one.
    pub(crate) fn pick(
        &mut self,
        tried: &mut Tried,
        is_awaited: impl Fn(Id<Target>) -> bool,
    ) -> Picked {
        self.rotation.begin(self.order.len(), &mut self.random);
        if let Some(target) = self.must_wait(tried) {
            return Picked::Busy(target);
        }
        let Some(position) = self.pick_position(tried) else { return Picked::None };
        let id = self.order[position];
        let member = &mut self.members[id];
        let (entry, target) = (member.entry.clone(), member.target);
        if is_awaited(target) {
            tried.add_busy(entry, Some(position), self.version);
            return self.must_wait(tried).map_or(Picked::Awaited, Picked::Busy);
        }
        self.rotation.served(entry.shared_key(), position);
        member.dialling += 1;
        self.change_load(target, |target| target.dialling += 1);
        let member = &self.members[id];
        let state = match member.breaker {
            Breaker::HalfOpen { ejections, is_probed: false } => {
                self.set_breaker(id, Breaker::HalfOpen { ejections, is_probed: true });
                AssignmentState::Probing
            }
            _ => AssignmentState::Dialling,
        };
        Picked::Backend(Assignment { entry, member: id, target, state })
    }

    /// Returns the target that a client has to wait for, if all that is available to it is busy.
    pub(crate) fn must_wait(&self, tried: &mut Tried) -> Option<Id<Target>> {
        let target = self.next_busy(tried)?;
        let is_available = self.rotation.next_of(&self.available, self.untried(tried)).is_some();
        (!is_available).then_some(target)
    }

    /// Picks a position, and tells the policy.
    fn pick_position(&mut self, tried: &mut Tried) -> Option<usize> {
        if tried.is_empty() {
            let picked = self.selector.pick(&self.available, self.rotation.next());
            if picked.is_some() {
                return picked;
            }
        }
        let untried = self.untried(tried);
        let position = self
            .rotation
            .next_of(&self.available, untried)
            .or_else(|| untried.next_from(self.rotation.next()))?;
        self.selector.picked_otherwise(position);
        Some(position)
    }

    /// Returns the positions of the candidates that a client has not tried.
    fn untried<'a>(&'a self, tried: &'a mut Tried) -> &'a PositionSet {
        if tried.is_empty() {
            return &self.candidates;
        }
        tried.untried(self.version, &self.candidates, |entry| self.position_of(entry))
    }

    /// Returns where an entry is in the order, if its key is in the set and names the same target.
    fn position_of(&self, entry: &Entry) -> Option<usize> {
        let key = |id: &Id<Member>| self.members[*id].entry.key();
        let position = self.order.binary_search_by(|id| key(id).cmp(entry.key())).ok()?;
        let member = &self.members[self.order[position]];
        (member.entry.target_name() == entry.target_name()).then_some(position)
    }

    /// Returns the target of the busy backend that comes first in the rotation.
    fn next_busy(&self, tried: &Tried) -> Option<Id<Target>> {
        let busy = tried.busy().iter().filter_map(|entry| self.position_of(entry));
        let busy = busy.filter(|position| self.candidates.contains(*position));
        let first = busy.min_by_key(|position| self.rotation.distance(*position))?;
        Some(self.members[self.order[first]].target)
    }

    /// Gives a backend back that is busy: the client tries another one, or waits.
    pub(crate) fn backend_busy(&mut self, assignment: Assignment, tried: &mut Tried) {
        let position = self.position_of(&assignment.entry);
        tried.add_busy(assignment.entry.clone(), position, self.version);
        self.release(assignment);
    }

    /// Counts a failed dial: one address of the backend.
    pub(crate) fn dial_failed(&mut self, assignment: &Assignment, err: &io::Error, now: Instant) {
        self.usage(assignment).dial_failures += 1;
        if let Some(id) = self.current_member(assignment) {
            self.members[id].last_error = Some((err.to_string().into(), now));
        }
    }

    /// Gives a backend back after the last of its addresses: the client does not try it again. If
    /// that ejects it, returns for how long. It `has_failed` unless all failures were local, which
    /// says nothing of the backend.
    pub(crate) fn backend_failed(
        &mut self,
        mut assignment: Assignment,
        has_failed: bool,
        tried: &mut Tried,
        now: Instant,
    ) -> Option<Duration> {
        let member = self.current_member(&assignment);
        // Not the member's: its key may have left and come back since it was picked.
        let position = self.position_of(&assignment.entry);
        tried.add_failed(assignment.entry.clone(), position, self.version);
        let mut ejected_for = None;
        if let Some(id) = member.filter(|_| has_failed) {
            let was_probe = assignment.state == AssignmentState::Probing;
            let breaker = self.members[id].breaker;
            let ejection = &self.settings.ejection;
            let (breaker, time) = breaker.failed(was_probe, ejection, now, &mut self.random);
            self.set_breaker(id, breaker);
            if let Some(time) = time {
                self.note_change(id, BreakerState::Ejected { time });
            }
            ejected_for = time;
            assignment.state = AssignmentState::Dialling;
        }
        self.release(assignment);
        ejected_for
    }

    /// Counts a pair that is connected now. A success closes the breaker.
    pub(crate) fn connected(&mut self, assignment: &mut Assignment) {
        if let Some(id) = self.current_member(assignment) {
            if !matches!(self.members[id].breaker, Breaker::Closed { .. }) {
                self.note_change(id, BreakerState::Closed);
            }
            self.set_breaker(id, Breaker::default());
        }
        assignment.state = AssignmentState::Open;
        if let Some(member) = self.members.get_mut(assignment.member) {
            member.dialling -= 1;
        }
        let usage = self.usage(assignment);
        usage.open += 1;
        usage.total += 1;
        self.change_load(assignment.target, |target| {
            target.dialling -= 1;
            target.open += 1;
        });
    }

    /// Counts bytes that were moved for a pair.
    pub(crate) fn moved(&mut self, assignment: &Assignment, up: u64, down: u64) {
        let usage = self.usage(assignment);
        usage.bytes_up += up;
        usage.bytes_down += down;
    }

    /// Takes back everything that was counted for an assignment.
    pub(crate) fn release(&mut self, mut assignment: Assignment) {
        self.give_up_probe(&mut assignment);
        if assignment.state == AssignmentState::Open {
            self.usage(&assignment).open -= 1;
            self.change_load(assignment.target, |target| target.open -= 1);
        } else {
            if let Some(member) = self.members.get_mut(assignment.member) {
                member.dialling -= 1;
            }
            self.change_load(assignment.target, |target| target.dialling -= 1);
        }
    }

    /// Lets the next client probe the backend, if this dial is the probe. It has no verdict yet, and
    /// may have none for long.
    pub(crate) fn give_up_probe(&mut self, assignment: &mut Assignment) {
        if assignment.state != AssignmentState::Probing {
            return;
        }
        assignment.state = AssignmentState::Dialling;
        let Some(id) = self.current_member(assignment) else { return };
        if let Breaker::HalfOpen { ejections, .. } = self.members[id].breaker {
            self.set_breaker(id, Breaker::HalfOpen { ejections, is_probed: false });
        }
    }

    /// Changes the counters of a target, and tells the policy if the number of its pairs changed.
    /// Takes a step for each key that names the target.
    fn change_load(&mut self, id: Id<Target>, change: impl FnOnce(&mut Target)) {
        let Some(target) = self.targets.get_mut(id) else { return };
        let before = target.pairs();
        change(target);
        if target.pairs() == before {
            return;
        }
        let next = |position: &usize| self.members[self.order[*position]].next_of_target;
        let mut positions = std::iter::successors(target.first_member, next);
        self.selector.set_load(&mut positions, target.pairs());
    }

    /// Returns the member whose breaker the outcome of a dial concerns; `None` if its key has left
    /// the set or names another target now.
    fn current_member(&self, assignment: &Assignment) -> Option<Id<Member>> {
        let member = self.members.get(assignment.member)?;
        (member.target == assignment.target).then_some(assignment.member)
    }

    /// Returns the counters of the key that was picked, or those of all keys that have left.
    fn usage(&mut self, assignment: &Assignment) -> &mut Usage {
        match self.members.get_mut(assignment.member) {
            Some(member) => &mut member.usage,
            None => &mut self.departed,
        }
    }

    /// Sets a breaker, and keeps in step what is derived from it.
    fn set_breaker(&mut self, id: Id<Member>, breaker: Breaker) {
        let member = &mut self.members[id];
        let position = member.position;
        if let Breaker::Ejected { until, .. } = member.breaker {
            self.ejection_ends.remove(&(until, position));
        }
        member.breaker = breaker;
        if let Breaker::Ejected { until, .. } = breaker {
            self.ejection_ends.insert((until, position));
        }
        self.closed.set(position, breaker.is_closed());
        let is_available = breaker.is_available() && self.candidates.contains(position);
        if is_available != self.available.contains(position) {
            self.available.set(position, is_available);
            self.selector.set_available(position, is_available);
        }
    }

    /// Returns whether the time of any ejection is over.
    pub(crate) fn has_ended_ejections(&self, now: Instant) -> bool {
        self.ejection_ends.first().is_some_and(|(until, _)| *until <= now)
    }

    /// Ends ejections whose time is over: the next client may probe the backend. After a leap of
    /// the clock there may be many; the rest are for later turns.
    pub(crate) fn end_ejections(&mut self, now: Instant) {
        for _ in 0..EJECTION_ENDS_PER_TURN {
            let first = self.ejection_ends.first().filter(|(until, _)| *until <= now);
            let Some((_, position)) = first.copied() else { return };
            let id = self.order[position];
            let Breaker::Ejected { ejections, .. } = self.members[id].breaker else {
                unreachable!("the ends of ejections are kept in step with the breakers")
            };
            self.set_breaker(id, Breaker::HalfOpen { ejections, is_probed: false });
            self.note_change(id, BreakerState::HalfOpen);
        }
    }

    fn note_change(&mut self, id: Id<Member>, state: BreakerState) {
        let entry = &self.members[id].entry;
        let (key, target_name) = (entry.shared_key().clone(), entry.shared_target_name().clone());
        self.breaker_changes.push(BreakerChange { key, target_name, state });
    }

    /// Takes the changes of breakers since the last call, for the observer.
    pub(crate) fn take_breaker_changes(&mut self) -> std::vec::Drain<'_, BreakerChange> {
        self.breaker_changes.drain(..)
    }
}

/// Which pairs an update leaves alone, and drains.
impl Pool {
    fn remove_target(&mut self, id: Id<Target>) {
        if let Some(target) = self.targets.remove(id) {
            self.target_by_name.remove(&target.name);
        }
    }

    /// Returns whether the pairs of an assignment may go on: its target is in the set, or drains.
    pub(crate) fn serves(&self, assignment: &Assignment) -> bool {
        self.targets.contains(assignment.target)
    }

    /// Returns whether the target of an assignment may be dialled: a key of the set that is not
    /// held names it, the one it was picked by or another.
    pub(crate) fn may_dial(&self, assignment: &Assignment) -> bool {
        self.targets.get(assignment.target).is_some_and(|target| target.dialable_keys > 0)
    }

    /// Returns the names of the targets that pairs may have.
    pub(crate) fn live_targets(&self, update: &MergedUpdate) -> LiveTargets {
        let draining = self.draining.iter().map(|id| self.targets[*id].name.clone()).collect();
        LiveTargets::new(update.set.clone(), draining)
    }

    /// Returns how many pairs have a target that drains.
    pub(crate) fn draining_pairs(&self) -> usize {
        self.draining.iter().map(|id| self.targets[*id].open).sum()
    }

    /// Returns when the next drain of a target is over.
    pub(crate) fn next_drain_limit(&self) -> Option<Instant> {
        self.next_drain_limit
    }

    fn find_next_drain_limit(&mut self) {
        let limits = self.draining.iter().filter_map(|id| self.targets[*id].drain_until);
        self.next_drain_limit = limits.min();
    }

    /// Removes the targets whose limit is over, so that nothing [serves](Self::serves) their pairs
    /// any more.
    pub(crate) fn end_drains(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.draining) {
            if self.targets[id].drain_until.is_some_and(|until| until <= now) {
                self.remove_target(id);
            } else {
                self.draining.push(id);
            }
        }
        self.find_next_drain_limit();
    }
}

impl Target {
    fn pairs(&self) -> usize {
        self.open + self.dialling
    }
}

/// Counters.
impl Pool {
    /// Returns the counters of the backends in force, in key order.
    pub(crate) fn backend_stats(&self, now: Instant) -> Vec<BackendStats> {
        let stats = |id: &Id<Member>| {
            let member = &self.members[*id];
            BackendStats {
                key: member.entry.shared_key().clone(),
                target_name: member.entry.shared_target_name().clone(),
                weight: member.entry.weight(),
                dialling: member.dialling,
                ejected: member.breaker.ejected_for(now).is_some(),
                ejected_for: member.breaker.ejected_for(now),
                half_open: member.breaker.is_half_open(now),
                last_error: member.last_error.as_ref().map(|(text, at)| DialError {
                    text: text.clone(),
                    age: now.saturating_duration_since(*at),
                }),
                usage: member.usage,
            }
        };
        self.order.iter().map(stats).collect()
    }

    /// Returns the sum of what belongs to keys that have left the set.
    pub(crate) fn departed(&self) -> Usage {
        self.departed
    }
}

#[cfg(test)]
mod tests;
