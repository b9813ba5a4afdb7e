//! What is due: timeouts of pairs, limits of drains.

use std::time::Instant;

use super::pair::Timeout;
use super::pair_table::{Mark, PairTable};
use super::{EventLoop, RunState};
use crate::end_reason::EndReason;

/// The most timeouts that one turn handles.
const TIMEOUTS_PER_TURN: usize = 256;

/// The time up to which all events have been handled: read, and their pairs driven.
#[derive(Default)]
pub(super) struct HandledWatermark {
    time: Option<Instant>,
    /// The next such time, reached when the queues have passed the mark.
    next: Option<(Instant, Mark)>,
}

impl HandledWatermark {
    /// Moves the watermark as far as events have been handled by now, and returns it.
    fn advance(&mut self, read_until: Instant, pairs: &PairTable) -> Option<Instant> {
        // Twice: after an earlier mark was passed, this turn's may be passed too.
        for _ in 0..2 {
            let (time, mark) = *self.next.get_or_insert_with(|| (read_until, pairs.mark()));
            if pairs.has_passed(mark) {
                (self.time, self.next) = (Some(time), None);
            }
        }
        self.time
    }
}

impl EventLoop {
    /// Handles the timeouts that were due when the last complete poll began. The limit of a drain
    /// ends active pairs too, so it waits until all events from before it have been handled.
    pub(super) fn handle_timeouts(&mut self, now: Instant) {
        let Some(read_until) = self.read_watermark.time() else { return };
        for _ in 0..TIMEOUTS_PER_TURN {
            let Some(slot) = self.timers.next_due(read_until) else { break };
            // A queued pair is driven first. That arms its timer again.
            if !self.pairs.is_queued(slot) {
                self.check_timeout(slot, read_until, now);
            }
        }
        let handled_until = self.handled_watermark.advance(read_until, &self.pairs);
        let Some(handled_until) = handled_until else { return };
        if self.cx.pool.next_drain_limit().is_some_and(|until| until <= handled_until) {
            self.end_drained(handled_until, now);
        }
        if matches!(self.run_state, RunState::Draining { until, .. } if until <= handled_until) {
            self.stop(EndReason::DrainLimit, now);
        }
    }

    fn check_timeout(&mut self, slot: usize, read_until: Instant, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return }; // the timer is of a closed pair
        match pair.timeout(&self.cx.config.limits, read_until) {
            None => {
                if let Some(at) = pair.deadline(&self.cx.config.limits) {
                    self.timers.arm(slot, at);
                }
            }
            Some(Timeout::Relay(reason)) => self.close_pair(slot, reason, now),
            Some(Timeout::Dial(timeout)) => self.time_out_dial(slot, timeout, now),
        }
    }
}
