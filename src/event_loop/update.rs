//! Replacing the backend set, and closing what it ends.

use std::time::Instant;

use super::EventLoop;
use super::close_queue::{ClosingBatch, Next, Report};
use super::pair::{Pair, Phase, Stage};
use super::pair_table::Queue;
use crate::end_reason::EndReason;
use crate::log::{counted, info};
use crate::mailbox::UpdateRequest;
use crate::pool::Difference;
use crate::stats::Applied;

impl EventLoop {
    /// Replaces the set and ends what it no longer names, in one step: from here on no byte is
    /// moved for it. Sockets are closed in this turn and, if there are many, in the next ones; then
    /// the update is reported.
    pub(super) fn apply_update(&mut self, request: UpdateRequest, now: Instant) {
        let update = self.mailbox.merged(&request);
        let replaced = self.cx.pool.replace(&update, now);
        let live_before = self.mailbox.set_live_targets(self.cx.pool.live_targets(&update));
        self.cx.counters.updates += 1;
        let mut applied = Applied {
            backends: self.cx.pool.len(),
            draining: self.cx.pool.draining_pairs(),
            added: replaced.difference.added.len(),
            removed: replaced.difference.removed.len(),
            changed: replaced.difference.changed.len(),
            ..Applied::default()
        };
        let mut batch = ClosingBatch::default();
        if replaced.affects_pairs {
            self.end_unserved(&mut applied, &mut batch, now);
        }
        self.release_busy(&mut batch, now);
        log_update(&replaced.difference, &applied);
        self.cx.log_whether_served();
        let UpdateRequest { applied: reply, updates } = request;
        batch.set_report(Report { applied, reply });
        self.close_queue.push(batch);
        self.drive_closes();
        // These hold backends of the host. To drop them may take a while.
        drop((replaced, live_before, updates, update));
    }

    /// Takes out the pairs whose target is gone, and cancels the dials to targets that are gone,
    /// drain or are held.
    fn end_unserved(&mut self, applied: &mut Applied, batch: &mut ClosingBatch, now: Instant) {
        for slot in self.pairs.slot_numbers() {
            let Some(Pair { stage, .. }) = self.pairs.get_mut(slot) else { continue };
            match stage {
                Stage::Relaying(relaying) if !self.cx.pool.serves(&relaying.assignment) => {
                    let (client, backend) = self.detach(slot, EndReason::TargetRemoved, now);
                    batch.push_pair(client, backend);
                    applied.closed += 1;
                }
                Stage::Dialling(dialling) => {
                    let assignment = dialling.phase.assignment();
                    if assignment.is_none_or(|assignment| self.cx.pool.may_dial(assignment)) {
                        continue;
                    }
                    let (assignment, backend) = dialling.take_backend();
                    if let Some(assignment) = assignment {
                        self.cx.pool.release(assignment);
                    }
                    if let Some(backend) = backend {
                        batch.push_dial(backend);
                        applied.cancelled += 1;
                    }
                    self.redial(slot, batch, now);
                }
                Stage::Relaying(_) => {}
            }
        }
    }

    /// Queues a pair to dial again. Takes it out if no candidate is left for it: in this step, so
    /// that "applied" holds for this client too.
    fn redial(&mut self, slot: usize, batch: &mut ClosingBatch, now: Instant) {
        let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.get_mut(slot) else {
            return;
        };
        if !self.cx.pool.has_candidate(&mut dialling.tried) {
            let (client, backend) = self.detach(slot, self.cx.refusal(), now);
            batch.push_pair(client, backend);
        } else if dialling.is_about_to_dial() {
            self.pairs.enqueue(slot, Queue::Dial);
        }
    }

    /// Lets the clients that wait for busy backends pick again.
    fn release_busy(&mut self, batch: &mut ClosingBatch, now: Instant) {
        for token in self.busy_queue.take() {
            let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.find(token) else {
                continue; // closed meanwhile
            };
            debug_assert!(matches!(dialling.phase, Phase::AwaitBusy));
            dialling.phase = Phase::Pick;
            dialling.tried.forget_busy();
            self.redial(token.slot, batch, now);
        }
    }

    /// Closes the pairs whose target's time to drain is over.
    pub(super) fn end_drained(&mut self, handled_until: Instant, now: Instant) {
        self.cx.pool.end_drains(handled_until);
        let mut batch = ClosingBatch::default();
        for slot in self.pairs.slot_numbers() {
            let Some(Pair { stage, .. }) = self.pairs.get_mut(slot) else { continue };
            let Stage::Relaying(relaying) = stage else { continue };
            if !self.cx.pool.serves(&relaying.assignment) {
                let (client, backend) = self.detach(slot, EndReason::DrainLimit, now);
                batch.push_pair(client, backend);
            }
        }
        self.close_queue.push(batch);
        self.drive_closes();
    }

    /// Closes sockets of the close queue, as far as the turn's budget goes, and reports the updates
    /// that this completes.
    pub(super) fn drive_closes(&mut self) {
        loop {
            match self.close_queue.next(self.budget.closes > 0) {
                Some(Next::Close(side)) => {
                    side.close(&self.cx.registry);
                    self.budget.closes -= 1;
                    self.acceptor.resume();
                }
                Some(Next::Report(Report { applied, reply })) => {
                    // The observer first: a thread that waits may look at what it has recorded.
                    self.cx.observer.updated(&applied);
                    reply.send(applied);
                }
                None => return,
            }
        }
    }
}

fn log_update(difference: &Difference, applied: &Applied) {
    if difference.is_empty() {
        return;
    }
    info!(
        "{} ({difference}); closed {}, cancelled {}, {} draining",
        counted(applied.backends as u64, "backend"),
        counted(applied.closed as u64, "connection"),
        counted(applied.cancelled as u64, "dial"),
        counted(applied.draining as u64, "connection"),
    );
}
