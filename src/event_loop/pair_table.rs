//! Where the pairs live, and which of them have something to do.

use std::collections::VecDeque;

use slab::Slab;

use super::pair::Pair;
#[cfg(test)]
use super::pair::{ClientSide, Dialling, Stage};
use super::token::{MAX_PAIRS, PairToken};

/// The pairs by slot, and the queues of those to be driven.
///
/// Closing is not freeing: a pair that was taken out leaves its slot until [`reap`](Self::reap), so that no event that
/// is already in hand reaches a newcomer.
#[derive(Default)]
pub(crate) struct PairTable {
    slots: Slab<Slot>,
    ready: VecDeque<usize>,
    unfinished: VecDeque<usize>,
    vacated: Vec<usize>,
    /// The most slots that were taken at a time since memory was last given back.
    peak: usize,
}

/// The memory of so many pairs is not worth giving back.
const SMALL: usize = 256;

/// Why a pair is to be driven, which is one of two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Something has given it something to do.
    Ready,
    /// It had more to do than one may in a turn.
    Unfinished,
}

struct Slot {
    token: PairToken,
    pair: Option<Pair>,
    /// Whether the slot is in one of the queues: in one at most, and once.
    is_queued: bool,
}

impl PairTable {
    /// Takes a pair in under a token of its own, made of its slot and its number.
    pub(crate) fn insert(&mut self, pair: Pair) -> PairToken {
        let vacant = self.slots.vacant_entry();
        let token = PairToken::new(vacant.key(), pair.client.id);
        vacant.insert(Slot { token, pair: Some(pair), is_queued: false });
        self.peak = self.peak.max(self.slots.len());
        token
    }

    /// How many pairs there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.vacated.len()
    }

    /// Whether one more can be told apart by its token.
    pub(crate) fn has_room(&self) -> bool {
        self.slots.len() < MAX_PAIRS
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Pair> {
        self.slots.get_mut(slot)?.pair.as_mut()
    }

    /// The pair of a token, unless it is gone.
    pub(crate) fn find(&mut self, token: PairToken) -> Option<&mut Pair> {
        let slot = self.slots.get_mut(token.slot)?;
        if slot.token == token { slot.pair.as_mut() } else { None }
    }

    /// The pair in a slot, with its token.
    pub(crate) fn with_token(&mut self, slot: usize) -> Option<(PairToken, &mut Pair)> {
        let slot = self.slots.get_mut(slot)?;
        Some((slot.token, slot.pair.as_mut()?))
    }

    /// Takes a pair out, to be closed. Its slot stays taken until [`reap`](Self::reap).
    pub(crate) fn take(&mut self, slot: usize) -> Option<Pair> {
        let pair = self.slots.get_mut(slot)?.pair.take()?;
        self.vacated.push(slot);
        Some(pair)
    }

    /// Every slot number that may have a pair.
    pub(crate) fn slot_numbers(&self) -> std::ops::Range<usize> {
        0..self.slots.capacity()
    }

    /// Queues a pair to be driven, if it is not queued already.
    pub(crate) fn enqueue(&mut self, slot: usize, queue: Queue) {
        if let Some(entry) = self.slots.get_mut(slot) {
            if !entry.is_queued && entry.pair.is_some() {
                entry.is_queued = true;
                self.queue(queue).push_back(slot);
            }
        }
    }

    pub(crate) fn is_queued(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.is_queued)
    }

    /// Whether any slot is queued.
    pub(crate) fn has_queued(&self) -> bool {
        !self.ready.is_empty() || !self.unfinished.is_empty()
    }

    /// How many slots are queued in a lane.
    pub(crate) fn queue_len(&self, queue: Queue) -> usize {
        match queue {
            Queue::Ready => self.ready.len(),
            Queue::Unfinished => self.unfinished.len(),
        }
    }

    /// The next slot of a lane. Those whose pair is gone by now are passed over, lest they take the turn of another.
    pub(crate) fn dequeue(&mut self, queue: Queue) -> Option<usize> {
        while let Some(slot) = self.queue(queue).pop_front() {
            let Some(entry) = self.slots.get_mut(slot) else { continue };
            entry.is_queued = false;
            if entry.pair.is_some() {
                return Some(slot);
            }
        }
        None
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<usize> {
        match queue {
            Queue::Ready => &mut self.ready,
            Queue::Unfinished => &mut self.unfinished,
        }
    }

    /// Frees the slots of the pairs that were taken out. One that is still queued waits for its turn in the queue,
    /// lest it be queued twice for its next tenant.
    pub(crate) fn reap(&mut self) {
        let slots = &mut self.slots;
        self.vacated.retain(|&slot| {
            let stays = slots[slot].is_queued;
            if !stays {
                slots.remove(slot);
            }
            stays
        });
    }

    /// Gives back the memory of a crowd of which most have left, as far as no slot behind is still taken. Whether that
    /// was any.
    pub(crate) fn shrink(&mut self) -> bool {
        let before = self.slots.capacity();
        if before < SMALL || self.slots.len() > self.peak / 4 {
            return false;
        }
        self.peak = self.slots.len();
        self.slots.shrink_to_fit();
        self.ready.shrink_to_fit();
        self.unfinished.shrink_to_fit();
        self.vacated.shrink_to_fit();
        self.slots.capacity() < before
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::pair::Limits;
    use super::*;
    use crate::net::Address;
    use crate::relay::Side;
    use crate::testing::script::Script;

    fn pair(id: u64) -> Pair {
        let (now, limit) = (Instant::now(), Duration::from_secs(1));
        let limits = Limits {
            connect_timeout: limit,
            dial_limit: limit,
            idle_timeout: None,
            half_closed_timeout: limit,
        };
        let side = Side::new(Box::new(Script::new()));
        Pair {
            client: ClientSide {
                id,
                addr: Address::Other("client".into()),
                accepted_at: now,
                side,
            },
            stage: Stage::Dialling(Dialling::new(now, &limits)),
        }
    }

    #[test]
    fn a_pair_is_queued_once_however_often_it_is_asked_for_and_not_after_its_end() {
        let mut table = PairTable::default();
        let slot = table.insert(pair(0)).slot;
        table.enqueue(slot, Queue::Ready);
        table.enqueue(slot, Queue::Ready);
        table.enqueue(slot, Queue::Unfinished);
        assert_eq!(table.queue_len(Queue::Unfinished), 0);
        assert_eq!((table.queue_len(Queue::Ready), table.dequeue(Queue::Ready)), (1, Some(slot)));
        table.take(slot);
        table.enqueue(slot, Queue::Ready);
        assert_eq!(table.dequeue(Queue::Ready), None);
    }

    #[test]
    fn a_slot_that_is_still_queued_gets_no_tenant_and_its_last_one_counts_no_more() {
        let mut table = PairTable::default();
        let slot = table.insert(pair(0)).slot;
        table.enqueue(slot, Queue::Ready);
        table.take(slot);
        table.reap();
        assert_eq!(table.len(), 0);
        assert_ne!(table.insert(pair(1)).slot, slot);
        assert_eq!((table.dequeue(Queue::Ready), table.len()), (None, 1));
        table.reap();
        assert_eq!(table.insert(pair(2)).slot, slot);
    }

    #[test]
    fn c9_1_a_crowd_that_has_left_gives_its_memory_back() {
        let mut table = PairTable::default();
        let slots: Vec<usize> = (0..1000).map(|id| table.insert(pair(id)).slot).collect();
        for slot in &slots[1..] {
            table.take(*slot);
        }
        assert!(!table.shrink());
        table.reap();
        assert!(table.shrink() && !table.shrink());
        assert_eq!((table.len(), table.slot_numbers()), (1, 0..1));
        assert!(table.get_mut(0).is_some());
    }

    #[test]
    fn c9_1_memory_that_is_little_or_cannot_be_given_back_is_kept() {
        let mut table = PairTable::default();
        let crowd = |table: &mut PairTable, count: usize| {
            (0..count as u64).for_each(|id| _ = table.insert(pair(id)));
            table.slots.shrink_to_fit();
        };
        let leave = |table: &mut PairTable, slots: std::ops::Range<usize>| {
            slots.for_each(|slot| drop(table.take(slot)));
            table.reap();
            table.shrink()
        };
        crowd(&mut table, SMALL - 1);
        assert!(!leave(&mut table, 0..SMALL - 1), "it was little");
        crowd(&mut table, SMALL);
        assert!(!leave(&mut table, 0..SMALL - 1), "the last slot is still taken");
        assert!(leave(&mut table, SMALL - 1..SMALL));
    }

    #[test]
    fn c9_1_so_does_a_crowd_whose_last_slot_is_the_last_to_leave() {
        let mut table = PairTable::default();
        let slots: Vec<usize> = (0..1000).map(|id| table.insert(pair(id)).slot).collect();
        for slot in slots {
            table.take(slot);
            table.reap();
            table.shrink();
        }
        assert_eq!((table.len(), table.slot_numbers()), (0, 0..0));
    }
}
