//! Clients that wait for a backend that is busy: its backlog is full.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use super::token::PairToken;
use crate::pool::{Id, Target};

/// How long to wait before a busy target is tried again. No event tells when it has room.
const RETRY: Duration = Duration::from_millis(5);

/// The waiting pairs by target, in order of arrival. Some may have been closed since.
#[derive(Default)]
pub(crate) struct BusyQueue {
    waiting: IndexMap<Id<Target>, VecDeque<PairToken>>,
    /// The targets that are still to be tried in this round.
    due: VecDeque<Id<Target>>,
    retry_at: Option<Instant>,
}

impl BusyQueue {
    pub(crate) fn push_back(&mut self, target: Id<Target>, pair: PairToken, now: Instant) {
        self.waiting.entry(target).or_default().push_back(pair);
        self.retry_at.get_or_insert(now + RETRY);
    }

    /// Moves a pair to the front if it has just been pushed to the back, which means that its
    /// target is still busy. Returns whether it was.
    pub(crate) fn restore_front(&mut self, target: Id<Target>, pair: PairToken) -> bool {
        let pairs = self.waiting.entry(target).or_default();
        let is_back = pairs.back() == Some(&pair);
        if is_back {
            pairs.rotate_right(1);
        }
        is_back
    }

    /// Takes the target to try next, if any is due.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<Id<Target>> {
        if self.due.is_empty() {
            self.retry_at.filter(|at| *at <= now)?;
            self.waiting.retain(|_, pairs| !pairs.is_empty());
            self.due.extend(self.waiting.keys());
            self.retry_at = (!self.due.is_empty()).then(|| now + RETRY);
        }
        self.due.pop_front()
    }

    /// Puts a target back, to be tried first in the next turn: the budget of this one is spent.
    pub(crate) fn put_back(&mut self, target: Id<Target>) {
        self.due.push_front(target);
    }

    /// Takes the pair that has waited longest for a target.
    pub(crate) fn pop_front(&mut self, target: Id<Target>) -> Option<PairToken> {
        self.waiting.get_mut(&target)?.pop_front()
    }

    /// Takes all pairs.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = PairToken> + use<> {
        std::mem::take(self).waiting.into_values().flatten()
    }

    /// Returns when to look for targets that are due.
    pub(crate) fn retry_at(&self, now: Instant) -> Option<Instant> {
        if self.due.is_empty() { self.retry_at } else { Some(now) }
    }
}
