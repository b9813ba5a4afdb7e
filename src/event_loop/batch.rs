//! What a poll returned, and the time up to which its events are complete.

use std::time::Instant;

/// The events that one poll returned.
pub(crate) struct Batch<E> {
    pub(crate) events: E,
    /// When the poll began. All that the kernel held then is in this batch, or in later ones if
    /// this one is full.
    pub(crate) poll_began: Instant,
    pub(crate) completeness: Completeness,
}

impl<T> Batch<std::iter::Empty<T>> {
    /// Returns the batch of a turn before any poll.
    pub(crate) fn none(now: Instant) -> Self {
        let completeness = Completeness::Interrupted;
        Self { events: std::iter::empty(), poll_began: now, completeness }
    }
}

/// Whether a poll returned all events that the kernel held when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completeness {
    Complete,
    /// There was no room for more.
    Full,
    /// A signal came instead of events, or there was no poll yet.
    Interrupted,
}

/// The time up to which all events have been read. A timeout that was due later must not fire yet:
/// the bytes that prevent it may still be unread.
///
/// Under load, every batch may be full. But the event queue serves its sources in turn. So after as
/// many events as there are sources, every event from before the first of these batches has come.
#[derive(Default)]
pub(crate) struct ReadWatermark {
    time: Option<Instant>,
    /// Set while batches are full.
    round: Option<Round>,
}

/// Full batches in a row, which together bring every event from before the first of them.
struct Round {
    began: Instant,
    /// How many events are still to come: as many as there were sources when it began.
    left: usize,
}

impl ReadWatermark {
    /// Notes a batch of so many events, with so many sources registered.
    pub(crate) fn note(
        &mut self,
        poll_began: Instant,
        completeness: Completeness,
        events: usize,
        sources: usize,
    ) {
        match completeness {
            Completeness::Complete => *self = Self { time: Some(poll_began), round: None },
            Completeness::Full => {
                let round = self.round.get_or_insert(Round { began: poll_began, left: sources });
                round.left = round.left.saturating_sub(events);
                if round.left == 0 {
                    *self = Self { time: Some(round.began), round: None };
                }
            }
            Completeness::Interrupted => {}
        }
    }

    /// Returns the time. Timeouts that were due by then may fire.
    pub(crate) fn time(&self) -> Option<Instant> {
        self.time
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Completeness::{Complete, Full, Interrupted};
    use super::*;

    /// Notes batches at seconds 1, 2, …, and returns up to which second all is complete then.
    fn read_until(batches: &[(Completeness, usize)], sources: usize) -> Option<u64> {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut complete = ReadWatermark::default();
        for (second, (completeness, events)) in (1..).zip(batches) {
            complete.note(at(second), *completeness, *events, sources);
        }
        complete.time().map(|time| (time - start).as_secs())
    }

    #[test]
    fn c7_5_events_are_complete_up_to_the_beginning_of_a_poll_that_returned_all() {
        assert_eq!(read_until(&[], 10), None);
        assert_eq!(read_until(&[(Complete, 3), (Complete, 0)], 10), Some(2));
        assert_eq!(read_until(&[(Complete, 3), (Interrupted, 0)], 10), Some(1));
        assert_eq!(read_until(&[(Complete, 3), (Full, 4)], 10), Some(1));
        assert_eq!(read_until(&[(Full, 4), (Complete, 3)], 10), Some(2));
    }

    #[test]
    fn c7_5_sources_that_are_closed_meanwhile_do_not_stand_for_others_that_are_still_to_come() {
        let (start, mut complete) = (Instant::now(), ReadWatermark::default());
        for (sources, is_complete) in [(12, false), (8, false), (4, true)] {
            complete.note(start, Full, 4, sources);
            assert_eq!(complete.time().is_some(), is_complete, "{sources}");
        }
    }

    #[test]
    fn c7_5_if_every_batch_is_full_events_are_complete_after_as_many_as_there_are_sources() {
        assert_eq!(read_until(&[(Full, 4); 2], 10), None);
        assert_eq!(read_until(&[(Full, 4); 3], 10), Some(1));
        assert_eq!(read_until(&[(Full, 4); 5], 10), Some(1));
        assert_eq!(read_until(&[(Full, 4); 6], 10), Some(4));
        assert_eq!(read_until(&[(Full, 4), (Full, 4), (Interrupted, 0), (Full, 4)], 10), Some(1));
    }
}
