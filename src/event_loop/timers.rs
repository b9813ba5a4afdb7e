//! When to check the timeouts of a pair.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Timers, at most one for each slot of the pair table.
///
/// A timer is a reminder: it belongs to the slot, not to its occupant, and is never cancelled. When
/// it fires, the pair in the slot is asked, which arms it again if need be. So moving bytes costs
/// nothing here, and a short connection finds its predecessor's timer still armed.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
    /// For each slot, which entry of the queue counts. An earlier one overrides a later one, which
    /// stays in the queue until it is due or swept.
    armed: Vec<Option<Instant>>,
}

impl Timers {
    /// Has the slot's timer fire at this time, or before.
    pub(super) fn arm(&mut self, slot: usize, at: Instant) {
        if slot >= self.armed.len() {
            self.armed.resize(slot + 1, None);
        }
        if self.armed[slot].is_some_and(|armed| armed <= at) {
            return;
        }
        self.armed[slot] = Some(at);
        self.queue.push(Reverse((at, slot)));
        self.sweep();
    }

    /// Drops overridden entries when they outnumber the slots, so that they cannot pile up.
    fn sweep(&mut self) {
        if self.queue.len() > 2 * self.armed.len() + 64 {
            let armed = &mut self.armed;
            self.queue.retain(|Reverse((at, slot))| armed[*slot] == Some(*at));
        }
    }

    /// Forgets the slots from this number on, which have no pair, and frees their memory.
    pub(super) fn shrink(&mut self, slots: usize) {
        self.armed.truncate(slots);
        self.armed.shrink_to_fit();
        self.queue.retain(|Reverse((_, slot))| *slot < slots);
        self.queue.shrink_to_fit();
    }

    /// Returns for how many slots it has memory.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.armed.capacity()
    }

    /// Returns the next slot whose timer has fired by now.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<usize> {
        while let Some(&Reverse((at, slot))) = self.queue.peek() {
            let is_overridden = self.armed[slot] != Some(at);
            if at > now && !is_overridden {
                break;
            }
            self.queue.pop();
            if !is_overridden {
                self.armed[slot] = None;
                return Some(slot);
            }
        }
        None
    }

    /// Returns when the next timer fires, or before.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn due(timers: &mut Timers, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| timers.next_due(now)).collect()
    }

    #[test]
    fn slots_come_in_the_order_of_their_times_and_not_before() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        timers.arm(0, at(3));
        timers.arm(7, at(1));
        timers.arm(2, at(2));
        assert_eq!(timers.earliest(), Some(at(1)));
        assert_eq!(due(&mut timers, at(0)), [0; 0]);
        assert_eq!(due(&mut timers, at(2)), [7, 2]);
        assert_eq!(due(&mut timers, at(9)), [0]);
        assert_eq!(timers.earliest(), None);
    }

    #[test]
    fn an_earlier_time_overrides_and_a_later_one_changes_nothing() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        timers.arm(0, at(5));
        timers.arm(0, at(9));
        assert_eq!(timers.queue.len(), 1, "a later one takes memory");
        timers.arm(0, at(2));
        assert_eq!(due(&mut timers, at(3)), [0]);
        assert_eq!(due(&mut timers, at(9)), [0; 0], "fired twice");
    }

    #[test]
    fn c9_1_overridden_entries_do_not_pile_up() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        // Ahead of the overridden entries, so that these are not looked at.
        timers.arm(1, start + Duration::from_secs(100));
        for round in 0..10_000_u64 {
            timers.arm(0, start + Duration::from_secs(1_000_000 + round));
            let soon = start + Duration::from_millis(round);
            timers.arm(0, soon);
            assert_eq!(due(&mut timers, soon), [0]);
        }
        assert!(timers.queue.len() <= 70, "{} entries for one slot", timers.queue.len());
    }

    #[test]
    fn c9_1_overridden_entries_are_swept_when_they_outnumber_the_slots_and_not_before() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        for slot in 0..3 {
            timers.arm(slot, start + Duration::from_secs(1000));
        }
        for sooner in 1..=67 {
            timers.arm(0, start + Duration::from_secs(1000 - sooner));
        }
        assert_eq!(timers.queue.len(), 2 * 3 + 64);
        timers.arm(0, start);
        assert_eq!(timers.queue.len(), 3);
    }

    #[test]
    fn c9_1_slots_that_are_gone_take_no_memory() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        for slot in 0..1000 {
            timers.arm(slot, start + Duration::from_secs(1));
        }
        timers.shrink(2);
        assert!(timers.armed.capacity() < 1000 && timers.queue.capacity() < 1000);
        assert_eq!((timers.armed.len(), timers.queue.len()), (2, 2));
        timers.arm(7, start);
        assert_eq!(due(&mut timers, start + Duration::from_secs(2)), [7, 0, 1]);
    }
}
