//! The cursor of the rotation: the key served last.

use std::sync::Arc;

use super::position_set::PositionSet;
use crate::random::Random;

/// The cursor of the rotation. It is the last key served, not an index, so that no backend is
/// skipped or repeated because another came or went.
pub(super) struct Rotation {
    last_served: Option<Arc<str>>,
    /// The position after that key in the order of the pool.
    next: usize,
    /// Set until the first pick, if that is to be random.
    random_first_pick: bool,
}

impl Rotation {
    pub(super) fn new(random_first_pick: bool) -> Self {
        Self { last_served: None, next: 0, random_first_pick }
    }

    /// Finds the cursor in a new order, in which `position_after` finds the position after a key.
    pub(super) fn reposition(&mut self, position_after: impl FnOnce(&str) -> usize) {
        self.next = self.last_served.as_deref().map_or(0, position_after);
    }

    /// Until the first pick, sets the cursor to a random position if the host asked for that.
    pub(super) fn begin(&mut self, backends: usize, random: &mut Random) {
        if self.random_first_pick && backends > 0 {
            self.next = (random.next() % backends as u64) as usize;
        }
    }

    /// Returns the position after the cursor.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Returns the first position after the cursor that is in both sets.
    pub(super) fn next_of(&self, some: &PositionSet, others: &PositionSet) -> Option<usize> {
        some.next_common(others, self.next)
    }

    /// Returns a sort key by which the positions after the cursor come first.
    pub(super) fn distance(&self, position: usize) -> (bool, usize) {
        (position < self.next, position)
    }

    /// Moves the cursor to what was picked.
    pub(super) fn served(&mut self, key: &Arc<str>, position: usize) {
        self.last_served = Some(key.clone());
        self.next = position + 1;
        self.random_first_pick = false;
    }
}
