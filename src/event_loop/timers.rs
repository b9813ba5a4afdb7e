//! When to ask a pair whether its time is up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Reminders, at most one under way for each slot of the pair table.
///
/// A reminder belongs to the slot and not to its tenant: it is never searched for or cancelled. Whoever has the slot
/// when it is due is asked, and reminded again if there is need. So moving bytes costs nothing here, and a short
/// connection finds its predecessor's reminder still standing.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
    /// For each slot, which entry of the queue counts; earlier reminders override later ones, which stay behind.
    armed: Vec<Option<Instant>>,
}

impl Timers {
    /// Has the slot's pair asked at this time, or before.
    pub(crate) fn remind(&mut self, slot: usize, at: Instant) {
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

    /// Drops overridden reminders when they outnumber the slots, so that they cannot pile up.
    fn sweep(&mut self) {
        if self.queue.len() > 2 * self.armed.len() + 64 {
            let armed = &mut self.armed;
            self.queue.retain(|Reverse((at, slot))| armed[*slot] == Some(*at));
        }
    }

    /// Forgets all slots from this number on, which have no pair, and gives their memory back.
    pub(crate) fn shrink(&mut self, slots: usize) {
        self.armed.truncate(slots);
        self.armed.shrink_to_fit();
        self.queue.retain(|Reverse((_, slot))| *slot < slots);
        self.queue.shrink_to_fit();
    }

    /// The next slot whose pair is to be asked by now. Its reminder is used up.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<usize> {
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

    /// When to look for due slots again.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn due(deadlines: &mut Timers, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| deadlines.next_due(now)).collect()
    }

    #[test]
    fn slots_come_in_the_order_of_their_times_and_not_before() {
        let (mut deadlines, start) = (Timers::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        deadlines.remind(0, at(3));
        deadlines.remind(7, at(1));
        deadlines.remind(2, at(2));
        assert_eq!(deadlines.earliest(), Some(at(1)));
        assert_eq!(due(&mut deadlines, at(0)), [0; 0]);
        assert_eq!(due(&mut deadlines, at(2)), [7, 2]);
        assert_eq!(due(&mut deadlines, at(9)), [0]);
        assert_eq!(deadlines.earliest(), None);
    }

    #[test]
    fn an_earlier_reminder_overrides_and_a_later_one_is_left_to_the_answer() {
        let (mut deadlines, start) = (Timers::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        deadlines.remind(0, at(5));
        deadlines.remind(0, at(9));
        assert_eq!(deadlines.queue.len(), 1, "a later one takes room");
        deadlines.remind(0, at(2));
        assert_eq!(due(&mut deadlines, at(3)), [0]);
        assert_eq!(due(&mut deadlines, at(9)), [0; 0], "asked twice for one reminder");
    }

    #[test]
    fn c9_1_overridden_reminders_do_not_pile_up() {
        let (mut deadlines, start) = (Timers::default(), Instant::now());
        deadlines.remind(1, start + Duration::from_secs(100)); // before the overridden ones, which are not looked at
        for round in 0..10_000_u64 {
            deadlines.remind(0, start + Duration::from_secs(1_000_000 + round));
            let soon = start + Duration::from_millis(round);
            deadlines.remind(0, soon);
            assert_eq!(due(&mut deadlines, soon), [0]);
        }
        assert!(deadlines.queue.len() <= 70, "{} reminders for one slot", deadlines.queue.len());
    }

    #[test]
    fn c9_1_overridden_reminders_are_swept_when_they_outnumber_the_slots_and_not_before() {
        let (mut deadlines, start) = (Timers::default(), Instant::now());
        for slot in 0..3 {
            deadlines.remind(slot, start + Duration::from_secs(1000));
        }
        for sooner in 1..=67 {
            deadlines.remind(0, start + Duration::from_secs(1000 - sooner));
        }
        assert_eq!(deadlines.queue.len(), 2 * 3 + 64);
        deadlines.remind(0, start);
        assert_eq!(deadlines.queue.len(), 3);
    }

    #[test]
    fn c9_1_slots_that_are_no_more_take_no_memory() {
        let (mut deadlines, start) = (Timers::default(), Instant::now());
        for slot in 0..1000 {
            deadlines.remind(slot, start + Duration::from_secs(1));
        }
        deadlines.shrink(2);
        assert!(deadlines.armed.capacity() < 1000 && deadlines.queue.capacity() < 1000);
        assert_eq!((deadlines.armed.len(), deadlines.queue.len()), (2, 2));
        deadlines.remind(7, start);
        assert_eq!(due(&mut deadlines, start + Duration::from_secs(2)), [7, 0, 1]);
    }
}
