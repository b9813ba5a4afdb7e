//! Clients that wait for a backend that is busy: its backlog is full.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use super::token::PairToken;
use crate::pool::{Id, Target};

/// How long to wait before a busy target is tried again. No event tells when it has room.
const RETRY: Duration = Duration::from_millis(5);

/// The waiting pairs by target, in the order of their clients' ids, which is that of their arrival.
/// Some may have been closed since.
#[derive(Default)]
pub(super) struct BusyQueue {
    waiting: IndexMap<Id<Target>, VecDeque<(u64, PairToken)>>,
    /// The targets that are still to be tried in this round.
    due: VecDeque<Id<Target>>,
    retry_at: Option<Instant>,
}

impl BusyQueue {
    pub(super) fn push(&mut self, target: Id<Target>, client: u64, pair: PairToken, now: Instant) {
        let pairs = self.waiting.entry(target).or_default();
        let place = pairs.partition_point(|(earlier, _)| *earlier < client);
        pairs.insert(place, (client, pair));
        self.retry_at.get_or_insert(now + RETRY);
    }

    /// Returns whether an earlier client waits for a target. It is served first.
    pub(super) fn has_earlier(&self, target: Id<Target>, client: u64) -> bool {
        let first = self.waiting.get(&target).and_then(VecDeque::front);
        first.is_some_and(|(earliest, _)| *earliest < client)
    }

    /// Has all targets tried without a delay.
    pub(super) fn retry_now(&mut self, now: Instant) {
        if !self.waiting.is_empty() {
            self.retry_at = Some(now);
        }
    }

    /// Takes the target to try next, if any is due.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Id<Target>> {
        if self.due.is_empty() {
            self.retry_at.filter(|at| *at <= now)?;
            self.waiting.retain(|_, pairs| !pairs.is_empty());
            self.due.extend(self.waiting.keys());
            self.retry_at = (!self.due.is_empty()).then(|| now + RETRY);
        }
        self.due.pop_front()
    }

    /// Puts a target back, to be tried first in the next turn: the budget of this one is spent.
    pub(super) fn put_back(&mut self, target: Id<Target>) {
        self.due.push_front(target);
    }

    /// Takes the pair that has waited longest for a target.
    pub(super) fn pop_front(&mut self, target: Id<Target>) -> Option<PairToken> {
        Some(self.waiting.get_mut(&target)?.pop_front()?.1)
    }

    /// Takes all pairs.
    pub(super) fn take(&mut self) -> impl Iterator<Item = PairToken> + use<> {
        let waiting = std::mem::take(self).waiting.into_values().flatten();
        waiting.map(|(_, pair)| pair)
    }

    /// Returns when to look for targets that are due.
    pub(super) fn retry_at(&self, now: Instant) -> Option<Instant> {
        if self.due.is_empty() { self.retry_at } else { Some(now) }
    }
}
