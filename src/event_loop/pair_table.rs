//! The pairs by slot, and the queues of those that have something to do.

use std::collections::VecDeque;
use std::ops::Index;

use slab::Slab;

use super::pair::Pair;
use super::token::{MAX_PAIRS, PairToken};

/// The pairs, each in a slot of its own.
///
/// Closing is not freeing: the slot of a pair that was taken out stays taken until
/// [`free_vacated`](Self::free_vacated), so that no event of the same batch reaches a later
/// occupant.
#[derive(Default)]
pub(super) struct PairTable {
    slots: Slab<Slot>,
    queues: [VecDeque<usize>; Queue::COUNT],
    /// How many slots have left each queue up to now.
    dequeued: [u64; Queue::COUNT],
    vacated: Vec<usize>,
    /// The most slots that were taken at a time since memory was last freed.
    peak: usize,
}

/// Below this many slots it is not worth freeing memory.
const SMALL: usize = 256;

/// What a pair is queued for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// An event has made it ready.
    Ready,
    /// An event tells that a peer has ended its stream, or failed.
    Ending,
    /// An event is of its dial.
    Connect,
    /// It had more to move than fits in a turn.
    Unfinished,
    /// Its next step is to pick or dial a backend.
    Dial,
}

impl Queue {
    const COUNT: usize = 5;
    /// Those that events lead to.
    const OF_EVENTS: [Self; 3] = [Self::Ready, Self::Ending, Self::Connect];
}

/// The ends of the queues that events lead to, at one moment.
#[derive(Clone, Copy)]
pub(super) struct Mark([u64; Queue::OF_EVENTS.len()]);

struct Slot {
    token: PairToken,
    /// `None` while it is lent, and once it is vacated.
    pair: Option<Pair>,
    /// Whether the slot is in a queue: in one at most, and once.
    is_queued: bool,
}

impl PairTable {
    /// Returns the token that the next pair will have, by its client's id.
    pub(super) fn next_token(&self, id: u64) -> PairToken {
        PairToken::new(self.slots.vacant_key(), id)
    }

    /// Inserts a pair. Returns its slot.
    pub(super) fn insert(&mut self, pair: Pair) -> usize {
        let token = self.next_token(pair.client_info.id);
        self.slots.insert(Slot { token, pair: Some(pair), is_queued: false });
        self.peak = self.peak.max(self.slots.len());
        token.slot
    }

    /// Returns how many pairs there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacated.len()
    }

    /// Returns whether there is a token for one more pair.
    pub(super) fn has_room(&self) -> bool {
        self.slots.len() < MAX_PAIRS
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Pair> {
        self.slots.get_mut(slot)?.pair.as_mut()
    }

    /// Returns the pair of a token, unless it has been taken out.
    pub(super) fn find(&mut self, token: PairToken) -> Option<&mut Pair> {
        let slot = self.slots.get_mut(token.slot)?;
        if slot.token == token { slot.pair.as_mut() } else { None }
    }

    /// Takes the pair out of an occupied slot, to be [put back](Self::put_back) unless the slot is
    /// [vacated](Self::vacate).
    pub(super) fn lend(&mut self, slot: usize) -> (PairToken, Pair) {
        let slot = &mut self.slots[slot];
        (slot.token, slot.pair.take().expect("the slot is occupied"))
    }

    pub(super) fn put_back(&mut self, slot: usize, pair: Pair) {
        self.slots[slot].pair = Some(pair);
    }

    /// Gives up the slot of a pair that was lent.
    pub(super) fn vacate(&mut self, slot: usize) {
        self.vacated.push(slot);
    }

    /// Returns every number of a slot that may have a pair.
    pub(super) fn slot_numbers(&self) -> std::ops::Range<usize> {
        0..self.slots.capacity()
    }

    /// Queues a pair, unless it is queued already.
    pub(super) fn enqueue(&mut self, slot: usize, queue: Queue) {
        let entry = &mut self.slots[slot];
        if !entry.is_queued {
            entry.is_queued = true;
            self.queues[queue as usize].push_back(slot);
        }
    }

    pub(super) fn is_queued(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.is_queued)
    }

    /// Returns whether any slot is queued.
    pub(super) fn has_queued(&self) -> bool {
        self.queues.iter().any(|queue| !queue.is_empty())
    }

    pub(super) fn queue_len(&self, queue: Queue) -> usize {
        self.queues[queue as usize].len()
    }

    /// Marks the ends of the queues that events lead to.
    pub(super) fn mark(&self) -> Mark {
        Mark(
            Queue::OF_EVENTS
                .map(|queue| self.dequeued[queue as usize] + self.queue_len(queue) as u64),
        )
    }

    /// Returns whether all that was in those queues at the time of a mark has left them.
    pub(super) fn has_passed(&self, mark: Mark) -> bool {
        let mut ends = Queue::OF_EVENTS.iter().zip(mark.0);
        ends.all(|(queue, end)| self.dequeued[*queue as usize] >= end)
    }

    /// Takes the next slot from a queue. Slots that have been vacated are skipped, so that they do
    /// not cost others their turn.
    pub(super) fn dequeue(&mut self, queue: Queue) -> Option<usize> {
        while let Some(slot) = self.queues[queue as usize].pop_front() {
            self.dequeued[queue as usize] += 1;
            let entry = &mut self.slots[slot];
            entry.is_queued = false;
            if entry.pair.is_some() {
                return Some(slot);
            }
        }
        None
    }

    /// Frees the slots that were vacated. One that is still queued stays, or its next occupant
    /// could be queued twice.
    pub(super) fn free_vacated(&mut self) {
        let slots = &mut self.slots;
        self.vacated.retain(|&slot| {
            let stays = slots[slot].is_queued;
            if !stays {
                slots.remove(slot);
            }
            stays
        });
    }

    /// Shrinks after a peak; only trailing slots can be freed. Returns whether capacity dropped.
    pub(super) fn shrink(&mut self) -> bool {
        let before = self.slots.capacity();
        if before < SMALL || self.slots.len() > self.peak / 4 {
            return false;
        }
        self.peak = self.slots.len();
        self.slots.shrink_to_fit();
        self.queues.iter_mut().for_each(VecDeque::shrink_to_fit);
        self.vacated.shrink_to_fit();
        self.slots.capacity() < before
    }
}

/// Panics if the slot is empty: for slots that were just taken from a queue.
impl Index<usize> for PairTable {
    type Output = Pair;

    fn index(&self, slot: usize) -> &Pair {
        self.slots[slot].pair.as_ref().expect("the slot is occupied")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::pair::{ClientInfo, Dialling, Limits, Stage};
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
        let dialling = Dialling::new(Side::new(Box::new(Script::new())), now, &limits);
        let addr = Address::Other("client".into());
        let client_info = ClientInfo { id, addr, accepted_at: now };
        Pair { client_info, stage: Stage::Dialling(dialling) }
    }

    fn take(table: &mut PairTable, slot: usize) {
        drop(table.lend(slot));
        table.vacate(slot);
    }

    #[test]
    fn a_pair_is_queued_once_and_not_after_it_was_taken_out() {
        let mut table = PairTable::default();
        let slot = table.insert(pair(0));
        table.enqueue(slot, Queue::Ready);
        table.enqueue(slot, Queue::Ready);
        table.enqueue(slot, Queue::Unfinished);
        assert_eq!([Queue::Ready, Queue::Unfinished].map(|queue| table.queue_len(queue)), [1, 0]);
        assert_eq!(table.dequeue(Queue::Ready), Some(slot));
        table.enqueue(slot, Queue::Dial);
        take(&mut table, slot);
        assert_eq!(table.dequeue(Queue::Dial), None);
    }

    #[test]
    fn a_slot_that_is_still_queued_gets_no_occupant_and_its_last_one_does_not_count() {
        let mut table = PairTable::default();
        let slot = table.insert(pair(0));
        table.enqueue(slot, Queue::Ready);
        take(&mut table, slot);
        table.free_vacated();
        assert_eq!(table.len(), 0);
        assert_ne!(table.insert(pair(1)), slot);
        assert_eq!((table.dequeue(Queue::Ready), table.len()), (None, 1));
        table.free_vacated();
        assert_eq!(table.insert(pair(2)), slot);
    }

    #[test]
    fn a_token_finds_its_pair_and_no_later_one_in_the_slot() {
        let mut table = PairTable::default();
        let token = table.next_token(7);
        let slot = table.insert(pair(7));
        assert!(table.find(token).is_some());
        take(&mut table, slot);
        assert!(table.find(token).is_none());
        table.free_vacated();
        assert_eq!(table.insert(pair(8)), slot);
        assert!(table.find(token).is_none());
    }

    #[test]
    fn c9_1_memory_is_freed_after_a_peak() {
        let mut table = PairTable::default();
        let slots: Vec<usize> = (0..1000).map(|id| table.insert(pair(id))).collect();
        for slot in &slots[1..] {
            take(&mut table, *slot);
        }
        assert!(!table.shrink());
        table.free_vacated();
        assert!(table.shrink() && !table.shrink());
        assert_eq!((table.len(), table.slot_numbers()), (1, 0..1));
        assert!(table.get_mut(0).is_some());
    }

    #[test]
    fn c9_1_memory_that_is_little_or_cannot_be_freed_is_kept() {
        let mut table = PairTable::default();
        let fill = |table: &mut PairTable, count: usize| {
            (0..count as u64).for_each(|id| _ = table.insert(pair(id)));
            table.slots.shrink_to_fit();
        };
        let leave = |table: &mut PairTable, slots: std::ops::Range<usize>| {
            slots.for_each(|slot| take(table, slot));
            table.free_vacated();
            table.shrink()
        };
        fill(&mut table, SMALL - 1);
        assert!(!leave(&mut table, 0..SMALL - 1), "it was little");
        fill(&mut table, SMALL);
        assert!(!leave(&mut table, 0..SMALL - 1), "the last slot is still taken");
        assert!(leave(&mut table, SMALL - 1..SMALL));
    }

    #[test]
    fn c9_1_memory_is_freed_though_the_last_slot_is_the_last_to_be_vacated() {
        let mut table = PairTable::default();
        let slots: Vec<usize> = (0..1000).map(|id| table.insert(pair(id))).collect();
        for slot in slots {
            take(&mut table, slot);
            table.free_vacated();
            table.shrink();
        }
        assert_eq!((table.len(), table.slot_numbers()), (0, 0..0));
    }
}
