//! What is due: deadlines of pairs, limits of drains.

use std::time::Instant;

use super::close_queue::Batch0;
use super::pair::{Pair, Stage, Timeout};
use super::{EventLoop, RunState};
use crate::stats::EndReason;

/// How many deadlines one turn looks after at most.
const DEADLINES_PER_TURN: usize = 256;

impl EventLoop {
    pub(super) fn handle_timeouts(&mut self, now: Instant) {
        for _ in 0..DEADLINES_PER_TURN {
            let Some(slot) = self.deadlines.next_due(now) else { break };
            // One that has something to do is asked after it has done it.
            if !self.pairs.is_queued(slot) {
                self.check_timeout(slot, now);
            }
        }
        if self.balancer.pool.next_drain().is_some_and(|until| until <= now) {
            self.end_drained_out(now);
        }
        if matches!(self.run_state, RunState::Draining { until } if until <= now) {
            self.stop_now(EndReason::DrainLimit, now);
        }
    }

    fn check_timeout(&mut self, slot: usize, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        match pair.timeout(&self.balancer.config.limits, now) {
            Timeout::GoOn => self.remind(slot),
            Timeout::End(reason) => self.end(slot, reason, now),
            Timeout::AttemptTimedOut => self.attempt_timed_out(slot, now),
            Timeout::DialLimit { attempt_timed_out } => {
                if attempt_timed_out {
                    self.attempt_timed_out(slot, now);
                }
                self.end(slot, EndReason::DialLimit, now);
            }
        }
    }

    /// Has the pair asked when its next deadline comes.
    pub(super) fn remind(&mut self, slot: usize) {
        let deadline =
            self.pairs.get_mut(slot).and_then(|pair| pair.deadline(&self.balancer.config.limits));
        if let Some(at) = deadline {
            self.deadlines.remind(slot, at);
        }
    }

    /// Cuts the pairs whose targets' time to drain is over.
    fn end_drained_out(&mut self, now: Instant) {
        let mut crowd = Batch0::default();
        for slot in self.pairs.slot_numbers() {
            let Some(Pair { stage: Stage::Relaying(relaying), .. }) = self.pairs.get_mut(slot)
            else {
                continue;
            };
            if self.balancer.pool.has_drained_out(&relaying.assignment, now) {
                if let Some((client, backend)) = self.detach(slot, EndReason::DrainLimit, now) {
                    crowd.push(client, backend);
                }
            }
        }
        self.closing.add(crowd, None);
        self.close_some();
        self.balancer.pool.forget_drained_out(now);
    }
}
