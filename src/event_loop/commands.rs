//! What hosts ask for: new backend sets, counters, the end.

use std::time::Instant;

use crate::log::{info, warn};

use super::close_queue::{Batch0, Next, Report};
use super::pair::{Phase, Stage};
use super::pair_table::Queue;
use super::{EventLoop, RunState};
use crate::mailbox::Stop;
use crate::stats::{Applied, EndReason, Stats};
use crate::time::after;

/// How many sockets of those ended by the crowd are closed at a time; a turn may have occasion for it twice or thrice. A
/// close takes about 8 µs, most of it for the reset: with all 9,000 pairs closed in one turn, a round trip of another
/// took 228 ms, and with this 9.
const CLOSES_PER_TURN: usize = 128;

impl EventLoop {
    pub(super) fn handle_commands(&mut self, now: Instant) {
        self.apply_update(now);
        self.warn_if_refusing();
        let orders = self.commands.take_orders();
        match orders.stop {
            Some(Stop::Now) => self.stop_now(EndReason::Shutdown, now),
            Some(Stop::Drain(limit)) => self.begin_drain(after(now, limit)),
            None => {}
        }
        if let Some(promise) = orders.stats {
            promise.keep(self.stats(now));
        }
    }

    /// Replaces the set and ends what no longer fits it, in one step: from here on no byte is moved for it. Its sockets
    /// are closed at once too, but for those of a crowd, which take some turns; then it is told.
    fn apply_update(&mut self, now: Instant) {
        let pool = &mut self.balancer.pool;
        let taken = self.commands.take_update(|update| {
            let (remap, difference) = pool.replace(&update, now);
            ((remap, difference, update), pool.target_names())
        });
        let Some(((remap, difference, update), promise)) = taken else { return };
        let mut applied = Applied { backends: self.balancer.pool.len(), ..Applied::default() };
        let mut crowd = Batch0::default();
        for slot in self.pairs.slot_numbers() {
            let Some(pair) = self.pairs.get_mut(slot) else { continue };
            match &mut pair.stage {
                Stage::Relaying(relaying) => {
                    if remap.remap_open(&mut relaying.assignment) {
                        continue;
                    }
                    if let Some((client, backend)) =
                        self.detach(slot, EndReason::TargetRemoved, now)
                    {
                        crowd.push(client, backend);
                        applied.closed += 1;
                    }
                }
                Stage::Dialling(dialling) => {
                    let kept = match &mut dialling.phase {
                        Phase::Pick => true,
                        Phase::Dial(candidate) | Phase::AwaitingFd(candidate) => {
                            remap.remap_dialling(&mut candidate.assignment)
                        }
                        Phase::Connecting(connecting) => {
                            remap.remap_dialling(&mut connecting.candidate.assignment)
                        }
                    };
                    if kept {
                        continue;
                    }
                    if let Phase::Connecting(connecting) = dialling.take_phase() {
                        dialling.note_tried(&connecting.candidate.assignment);
                        connecting.backend.cut(&self.balancer.registry);
                        applied.cancelled += 1;
                    }
                    if self
                        .balancer
                        .pool
                        .has_candidate(|key, target_name| !dialling.has_tried(key, target_name))
                    {
                        self.pairs.enqueue(slot, Queue::Ready);
                    } else {
                        self.end(slot, self.balancer.refusal(), now); // in this step, so that "applied" means it for this client too
                    }
                }
            }
        }
        applied.draining = self.balancer.pool.draining();
        self.updates += 1;
        if !difference.is_empty() {
            let Applied { closed, cancelled, draining, backends } = applied;
            info!(
                "{backends} backends ({difference}); closed {closed} connections, cancelled {cancelled} dials, \
                 {draining} connections draining"
            );
        }
        self.warn_if_refusing();
        self.closing.add(crowd, Some(Report { applied, promise }));
        self.close_some();
        // Not before: what is dropped here is the host's, and may take its time.
        drop((remap, update));
    }

    /// Closes some of the sockets that are still to be closed, and tells of the updates that are applied by that.
    pub(super) fn close_some(&mut self) {
        self.close_up_to(CLOSES_PER_TURN);
    }

    fn close_up_to(&mut self, count: usize) {
        let mut closed = 0;
        while closed < count {
            match self.closing.next() {
                Some(Next::Close(side)) => side.cut(&self.balancer.registry),
                Some(Next::Report(Report { applied, promise })) => {
                    self.balancer.observer.updated(&applied);
                    promise.keep(applied); // after all that those who wait may look for
                    continue;
                }
                None => break,
            }
            closed += 1;
        }
        if closed > 0 {
            self.acceptor.resume();
        }
    }

    /// Tells once when it begins or ends that there is no backend, not once per client.
    fn warn_if_refusing(&mut self) {
        if self.balancer.pool.is_empty() != self.is_refusing {
            self.is_refusing = self.balancer.pool.is_empty();
            match self.is_refusing {
                true => warn!("there is no backend: clients are refused"),
                false => info!("there are backends: clients are served"),
            }
        }
    }

    fn begin_drain(&mut self, until: Instant) {
        self.run_state = match self.run_state {
            RunState::Serving => {
                info!("draining: {} connections left", self.pairs.len());
                self.acceptor.close(&self.balancer.registry);
                RunState::Draining { until }
            }
            RunState::Draining { until: earlier } => {
                RunState::Draining { until: earlier.min(until) }
            }
            RunState::Over => RunState::Over,
        };
    }

    /// Ends everything.
    pub(crate) fn stop_now(&mut self, reason: EndReason, now: Instant) {
        self.acceptor.close(&self.balancer.registry);
        for slot in self.pairs.slot_numbers() {
            self.end(slot, reason, now);
        }
        self.close_up_to(usize::MAX);
        if self.run_state != RunState::Over {
            let Stats { accepted, bytes_up, bytes_down, .. } = self.balancer.totals;
            info!(
                "stopped after {accepted} clients, {bytes_up} bytes up and {bytes_down} bytes down"
            );
        }
        self.run_state = RunState::Over;
    }

    pub(crate) fn stats(&self, now: Instant) -> Stats {
        Stats {
            backends: self.balancer.pool.backend_stats(now),
            departed: self.balancer.pool.departed(),
            ..self.balancer.totals.clone()
        }
    }
}
