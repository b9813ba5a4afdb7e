//! What hosts ask for: updates, counters, drain, shutdown.

use std::time::Instant;

use super::{EventLoop, RunState};
use crate::end_reason::EndReason;
use crate::log::{counted, info};
use crate::mailbox::{Requests, Stop};
use crate::stats::Stats;
use crate::time::after;

/// The most clients that are accepted from the backlog when a drain begins. The largest usual
/// backlog holds this many.
const ACCEPTS_WHEN_DRAINING: usize = 4096;

impl EventLoop {
    /// Does what hosts have asked for. Counters come last, so that they show the rest.
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

    /// Begins to drain: the clients in the backlog are accepted, then the listener is closed, and
    /// pairs may finish. Of two limits the earlier holds.
    fn drain(&mut self, until: Instant) {
        self.run_state = match self.run_state {
            RunState::Starting | RunState::Serving => {
                let pairs = counted(self.pairs.len() as u64, "connection");
                info!("draining: {pairs} left");
                // Clients in the backlog are connected. Closing the listener would reset them.
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
        self.drive_closes();
        if self.run_state != RunState::Over {
            let Stats { accepted, bytes_up, bytes_down, .. } = self.cx.counters;
            let clients = counted(accepted, "client");
            info!("stopped after {clients}, {bytes_up} bytes up and {bytes_down} bytes down");
        }
        self.run_state = RunState::Over;
    }
}
