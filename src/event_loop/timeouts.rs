//! What is due: timeouts of pairs, limits of drains.

use std::time::Instant;

use super::pair::Timeout;
use super::{EventLoop, RunState};
use crate::stats::EndReason;

/// How many timeouts a turn handles at most.
const TIMEOUTS_PER_TURN: usize = 256;

impl EventLoop {
    pub(super) fn handle_timeouts(&mut self, now: Instant) {
        for _ in 0..TIMEOUTS_PER_TURN {
            let Some(slot) = self.timers.next_due(now) else { break };
            // A queued pair is asked after it has done what it has to.
            if !self.pairs.is_queued(slot) {
                self.check_timeout(slot, now);
            }
        }
        if self.cx.pool.next_drain_limit().is_some_and(|until| until <= now) {
            self.end_drained(now);
        }
        if matches!(self.run_state, RunState::Draining { until } if until <= now) {
            self.stop(EndReason::DrainLimit, now);
        }
    }

    fn check_timeout(&mut self, slot: usize, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return }; // the timer is of a closed pair
        match pair.timeout(&self.cx.config.limits, now) {
            None => {
                if let Some(at) = pair.deadline(&self.cx.config.limits) {
                    self.timers.arm(slot, at);
                }
            }
            Some(Timeout::Relay(reason)) => self.close_pair(slot, reason, now),
            Some(Timeout::Attempt) => self.time_out_dial(slot, now),
            Some(Timeout::DialLimit { attempt_too }) => {
                if attempt_too {
                    self.time_out_dial(slot, now);
                }
                self.close_pair(slot, EndReason::DialLimit, now);
            }
        }
    }
}
