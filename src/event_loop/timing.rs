//! What is due: deadlines of pairs, limits of drains.

use std::time::Instant;

use super::closing::Crowd;
use super::pair::{Pair, Stage, Verdict};
use super::{EventLoop, Life};
use crate::observe::EndReason;

/// How many deadlines one turn looks after at most.
const DEADLINES_PER_TURN: usize = 256;

impl EventLoop {
    pub(super) fn look_after_deadlines(&mut self, now: Instant) {
        for _ in 0..DEADLINES_PER_TURN {
            let Some(slot) = self.deadlines.next_due(now) else { break };
            // One that has something to do is asked after it has done it.
            if !self.pairs.is_queued(slot) {
                self.ask_about_deadline(slot, now);
            }
        }
        if self.roster.next_drain().is_some_and(|until| until <= now) {
            self.end_drained_out(now);
        }
        if matches!(self.life, Life::Draining { until } if until <= now) {
            self.stop_now(EndReason::DrainLimit, now);
        }
    }

    fn ask_about_deadline(&mut self, slot: usize, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        match pair.verdict(&self.config.limits, now) {
            Verdict::GoOn => self.remind(slot),
            Verdict::End(reason) => self.end(slot, reason, now),
            Verdict::AttemptTimedOut => self.attempt_timed_out(slot, now),
            Verdict::DialLimit { attempt_timed_out } => {
                if attempt_timed_out {
                    self.attempt_timed_out(slot, now);
                }
                self.end(slot, EndReason::DialLimit, now);
            }
        }
    }

    /// Has the pair asked when its next deadline comes.
    pub(super) fn remind(&mut self, slot: usize) {
        let deadline = self.pairs.get_mut(slot).and_then(|pair| pair.deadline(&self.config.limits));
        if let Some(at) = deadline {
            self.deadlines.remind(slot, at);
        }
    }

    /// Cuts the pairs whose targets' time to drain is over.
    fn end_drained_out(&mut self, now: Instant) {
        let mut crowd = Crowd::default();
        for slot in self.pairs.slot_numbers() {
            let Some(Pair { stage: Stage::Relaying(relaying), .. }) = self.pairs.get_mut(slot) else { continue };
            if self.roster.has_drained_out(&relaying.assignment, now) {
                if let Some((client, backend)) = self.part(slot, EndReason::DrainLimit, now) {
                    crowd.push(client, backend);
                }
            }
        }
        self.closing.add(crowd, None);
        self.close_some();
        self.roster.forget_drained_out(now);
    }
}
