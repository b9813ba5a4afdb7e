//! The sets that were handed to a balancer, and which of them is in force.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A set: which key names which target of the fleet.
pub(crate) type Set = BTreeMap<Arc<str>, usize>;

/// A set that was handed over.
pub(crate) struct Issued {
    pub(crate) number: u64,
    pub(crate) set: Set,
    /// How long the pairs of vanished targets may go on.
    pub(crate) drain: Option<Duration>,
    pub(crate) at: Instant,
}

impl Issued {
    pub(crate) fn names(&self, target: usize) -> bool {
        self.set.values().any(|named| *named == target)
    }
}

/// The sets from the last that is reported as applied on.
pub(crate) struct History {
    sets: VecDeque<Issued>,
    in_force: u64,
}

impl History {
    /// Begins with the empty set.
    pub(crate) fn new() -> Self {
        let empty = Issued { number: 0, set: Set::new(), drain: None, at: Instant::now() };
        Self { sets: [empty].into(), in_force: 0 }
    }

    /// A set is about to be handed over. Returns its number.
    pub(crate) fn issue(&mut self, set: Set, drain: Option<Duration>) -> u64 {
        let number = self.sets.back().map_or(0, |last| last.number) + 1;
        self.sets.push_back(Issued { number, set, drain, at: Instant::now() });
        number
    }

    /// The balancer has been seen to use this set. Whether it may: it must not go back to an earlier one.
    pub(crate) fn see_in_force(&mut self, number: u64) -> bool {
        let may = number >= self.in_force;
        self.in_force = self.in_force.max(number);
        may
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Issued> {
        self.sets.iter().find(|issued| issued.number == number)
    }

    /// The set that was in force when the balancer was seen to use one last, and those that may be by now.
    pub(crate) fn possible(&self) -> impl Iterator<Item = &Issued> {
        self.sets.iter().filter(|issued| issued.number >= self.in_force)
    }

    /// Those that are not reported as applied yet.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Issued> {
        self.sets.iter().skip(1)
    }

    /// Those after this one.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = &Issued> {
        self.sets.iter().filter(move |issued| issued.number > number)
    }

    /// The balancer reports that a set of this size is applied. Returns the numbers of those that are by that, one after
    /// the other: several if updates came together. (Two that are handed over without a wait differ in size.)
    pub(crate) fn reported(&mut self, size: usize) -> std::ops::RangeInclusive<u64> {
        let last_reported = self.sets.front().map_or(0, |issued| issued.number);
        let applied = self.after(last_reported).filter(|issued| issued.set.len() == size).last();
        let last = applied.map_or(last_reported, |issued| issued.number);
        self.see_in_force(last);
        last_reported + 1..=last
    }

    /// Forgets those before this one.
    pub(crate) fn forget_before(&mut self, number: u64) {
        self.sets.retain(|issued| issued.number >= number);
    }
}
