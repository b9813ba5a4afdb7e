//! What hosts ask for besides updates: counters, and the end.

use std::time::Instant;

use super::{EventLoop, RunState};
use crate::log::{counted, info};
use crate::mailbox::{Requests, Stop};
use crate::stats::{EndReason, Stats};
use crate::time::after;

/// How many clients are accepted from the backlog when a drain begins: as many as the largest usual
/// backlog holds.
const ACCEPTS_WHEN_DRAINING: usize = 4096;

impl EventLoop {
    pub(super) fn handle_commands(&mut self, requests: Requests, now: Instant) {
        let Requests { update, stats, stop } = requests;
        if let Some(update) = update {
            self.apply_update(update, now);
        }
        match stop {
            Some(Stop::Now) => self.stop(EndReason::Shutdown, now),
            Some(Stop::Drain(limit)) => self.drain(after(now, limit)),
            None => {}
        }
        if let Some(reply) = stats {
            reply.send(self.stats(now));
        }
    }

    /// Accepts who is in the backlog, closes the listener, and lets pairs finish. The earlier of two
    /// limits holds.
    fn drain(&mut self, until: Instant) {
        self.run_state = match self.run_state {
            RunState::Starting | RunState::Serving => {
                let pairs = counted(self.pairs.len() as u64, "connection");
                info!("draining: {pairs} left");
                // Their connections are complete, and closing the listener would reset them.
                self.acceptor.set_ready();
                let is_serving = self.run_state == RunState::Serving;
                let accepts_left = if is_serving { ACCEPTS_WHEN_DRAINING } else { 0 };
                RunState::Draining { until, accepts_left }
            }
            RunState::Draining { until: earlier, accepts_left } => {
                RunState::Draining { until: earlier.min(until), accepts_left }
            }
            RunState::Over => RunState::Over,
        };
    }

    /// Closes everything.
    pub(crate) fn stop(&mut self, reason: EndReason, now: Instant) {
        self.budget.closes = usize::MAX;
        self.acceptor.close(&self.cx.registry);
        for slot in self.pairs.slot_numbers() {
            if self.pairs.get_mut(slot).is_some() {
                self.close_pair(slot, reason, now);
            }
        }
        self.close_some();
        if self.run_state != RunState::Over {
            let Stats { accepted, bytes_up, bytes_down, .. } = self.cx.counters;
            let clients = counted(accepted, "client");
            info!("stopped after {clients}, {bytes_up} bytes up and {bytes_down} bytes down");
        }
        self.run_state = RunState::Over;
    }
}
