//! What hosts ask for: new backend sets, counters, the end.

use std::time::Instant;

use log::{info, warn};

use super::closing::{Crowd, Next, Report};
use super::command::Stop;
use super::deadlines::after;
use super::pair::{Phase, Stage};
use super::pair_table::Lane;
use super::{EventLoop, Life};
use crate::observe::{Applied, EndReason, Stats};

/// How many sockets of those ended by the crowd are closed at a time; a turn may have occasion for it twice or thrice. A
/// close takes about 8 µs, most of it for the reset: with all 9,000 pairs closed in one turn, a round trip of another
/// took 228 ms, and with this 9.
const CLOSES_PER_TURN: usize = 128;

impl EventLoop {
    pub(super) fn obey_commands(&mut self, now: Instant) {
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
        let roster = &mut self.roster;
        let taken = self.commands.take_update(|update| {
            let (reassignment, difference) = roster.replace(&update, now);
            ((reassignment, difference, update), roster.target_names())
        });
        let Some(((reassignment, difference, update), promise)) = taken else { return };
        let mut applied = Applied { backends: self.roster.len(), ..Applied::default() };
        let mut crowd = Crowd::default();
        for slot in self.pairs.slot_numbers() {
            let Some(pair) = self.pairs.get_mut(slot) else { continue };
            match &mut pair.stage {
                Stage::Relaying(relaying) => {
                    if reassignment.keeps_pair(&mut relaying.assignment) {
                        continue;
                    }
                    if let Some((client, backend)) = self.part(slot, EndReason::TargetRemoved, now) {
                        crowd.push(client, backend);
                        applied.closed += 1;
                    }
                }
                Stage::Dialling(dialling) => {
                    let kept = match &mut dialling.phase {
                        Phase::Pick => true,
                        Phase::Dial(candidate) | Phase::Starving(candidate) => {
                            reassignment.keeps_dial(&mut candidate.assignment)
                        }
                        Phase::Connecting(connecting) => reassignment.keeps_dial(&mut connecting.candidate.assignment),
                    };
                    if kept {
                        continue;
                    }
                    if let Phase::Connecting(connecting) = dialling.take_phase() {
                        dialling.note_tried(&connecting.candidate.assignment);
                        connecting.backend.cut(&self.registry);
                        applied.cancelled += 1;
                    }
                    if self.roster.has_candidate(|key, target_name| !dialling.has_tried(key, target_name)) {
                        self.pairs.enqueue(slot, Lane::Ready);
                    } else {
                        self.refuse(slot, now); // in this step, so that "applied" means it for this client too
                    }
                }
            }
        }
        applied.draining = self.roster.draining();
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
        drop((reassignment, update));
    }

    /// Closes some of the sockets that are still to be closed, and tells of the updates that are applied by that.
    pub(super) fn close_some(&mut self) {
        self.close_up_to(CLOSES_PER_TURN);
    }

    fn close_up_to(&mut self, count: usize) {
        let mut closed = 0;
        while closed < count {
            match self.closing.next() {
                Some(Next::Close(side)) => side.cut(&self.registry),
                Some(Next::Report(Report { applied, promise })) => {
                    self.observer.updated(&applied);
                    promise.keep(applied); // after all that those who wait may look for
                    continue;
                }
                None => break,
            }
            closed += 1;
        }
        if closed > 0 {
            self.door.note_room();
        }
    }

    /// Tells once when it begins or ends that there is no backend, not once per client.
    fn warn_if_refusing(&mut self) {
        if self.roster.is_empty() != self.is_refusing {
            self.is_refusing = self.roster.is_empty();
            match self.is_refusing {
                true => warn!("there is no backend: clients are refused"),
                false => info!("there are backends: clients are served"),
            }
        }
    }

    fn begin_drain(&mut self, until: Instant) {
        self.life = match self.life {
            Life::Serving => {
                info!("draining: {} connections left", self.pairs.len());
                self.door.close(&self.registry);
                Life::Draining { until }
            }
            Life::Draining { until: earlier } => Life::Draining { until: earlier.min(until) },
            Life::Over => Life::Over,
        };
    }

    /// Ends everything.
    pub(crate) fn stop_now(&mut self, reason: EndReason, now: Instant) {
        self.door.close(&self.registry);
        for slot in self.pairs.slot_numbers() {
            self.end(slot, reason, now);
        }
        self.close_up_to(usize::MAX);
        if self.life != Life::Over {
            let Stats { accepted, bytes_up, bytes_down, .. } = self.totals;
            info!("stopped after {accepted} clients, {bytes_up} bytes up and {bytes_down} bytes down");
        }
        self.life = Life::Over;
    }

    pub(crate) fn stats(&self, now: Instant) -> Stats {
        Stats { backends: self.roster.backend_stats(now), departed: self.roster.departed(), ..self.totals.clone() }
    }
}
