//! The balancer's logic: what happens in a turn. Knows no event queue and reads no clock.
//!
//! `Server::run` waits for events and calls [`EventLoop::turn`] with them and the time. A test can
//! do the same without a socket. Each step of a turn is bounded by a budget of its own, except for
//! what has to happen at once: an update and the limit of a drain end all the pairs that they
//! concern in one step, and leave most of their sockets to the [`close_queue`]. Stopping closes
//! everything.
//!
//! To follow one connection: [`accept`](EventLoop::accept), [`dial`], [`relay`](EventLoop::relay),
//! [`close_pair`](EventLoop::close_pair). To follow one update:
//! [`apply_update`](EventLoop::apply_update), [`close_some`](EventLoop::close_some).

mod accept;
mod acceptor;
mod close_queue;
mod commands;
mod context;
mod dial;
mod log_limit;
mod pair;
mod pair_table;
mod timeouts;
mod timers;
pub(crate) mod token;
mod update;

#[cfg(all(test, not(tinylb_loom)))]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use mio::{Registry, Token};

use self::acceptor::Acceptor;
use self::close_queue::{CloseQueue, ClosingBatch};
pub(crate) use self::context::Config;
use self::context::Context;
pub(crate) use self::pair::Limits;
use self::pair::{Pair, Phase, Stage};
use self::pair_table::{PairTable, Queue};
use self::timers::Timers;
use self::token::{PairSide, PairToken, Source};
use crate::mailbox::Receiver;
use crate::net::{Listener, Readiness};
use crate::observer::Observer;
use crate::pool::Pool;
use crate::relay::{Progress, Side};
use crate::stats::{EndReason, Stats, Summary};

/// How many bytes one direction moves in one turn at most, but for the read that passes this.
pub(crate) const BYTES_PER_DIRECTION: usize = 512 << 10;
/// How much relaying one turn does, in bytes. It stops after the drive that passes this. Whoever
/// becomes ready meanwhile waits for its end.
const BYTES_PER_TURN: u64 = 1 << 20;
/// What a drive costs besides its bytes: a few system calls take about as long as these bytes.
const DRIVE_COST: u64 = 8 << 10;
/// How many sockets a turn closes at most. A close takes about 8 µs, most of it for the reset: with
/// all of 9,000 pairs closed in one turn, a round trip of another took 228 ms, and with this 9.
const CLOSES_PER_TURN: usize = 128;

/// The state of a balancer between two turns.
pub(crate) struct EventLoop {
    mailbox: Receiver,
    acceptor: Acceptor,
    pairs: PairTable,
    timers: Timers,
    /// The pairs that wait for a descriptor to dial with, in order of arrival. Some may have been
    /// closed since.
    fd_waiters: VecDeque<PairToken>,
    close_queue: CloseQueue,
    /// What is left of this turn's budgets.
    budget: Budget,
    run_state: RunState,
    started_at: Option<Instant>,
    updates: u64,
    cx: Context,
}

/// What a turn may still do, of what it may have several occasions for.
struct Budget {
    closes: usize,
    dials: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { closes: CLOSES_PER_TURN, dials: dial::DIALS_PER_TURN }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    Serving,
    /// No client is accepted any more. When the limit runs out, the rest are aborted.
    Draining {
        until: Instant,
    },
    Over,
}

impl EventLoop {
    pub(crate) fn new(
        config: Config,
        registry: Registry,
        listener: Box<dyn Listener>,
        mailbox: Receiver,
        pool: Pool,
        observer: Box<dyn Observer>,
    ) -> io::Result<Self> {
        Ok(Self {
            mailbox,
            acceptor: Acceptor::new(listener, &registry)?,
            pairs: PairTable::default(),
            timers: Timers::default(),
            fd_waiters: VecDeque::new(),
            close_queue: CloseQueue::default(),
            budget: Budget::default(),
            run_state: RunState::Serving,
            started_at: None,
            updates: 0,
            cx: Context::new(config, registry, pool, observer),
        })
    }

    /// Has bulk move through these pipes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn simulate_pipes(&mut self, pipes: crate::relay::Pipes) {
        self.cx.pipes = pipes;
    }

    /// Runs one turn: handles the events, and all that is due by now. Returns when it wants to be
    /// called again at the latest, though nothing may have happened; `None` if it can wait for an
    /// event.
    pub(crate) fn turn(
        &mut self,
        events: impl Iterator<Item = (Token, Readiness)>,
        now: Instant,
    ) -> Option<Instant> {
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.mailbox.start();
        }
        self.budget = Budget::default();
        self.cx.pool.end_ejections(now);
        for (token, readiness) in events {
            match Source::from(token) {
                Source::Mailbox => {} // it has woken the loop, which looks below
                Source::Listener => self.acceptor.set_ready(),
                Source::Pair(pair, side) => self.handle_event(pair, side, readiness, now),
            }
        }
        if let Some(requests) = self.mailbox.take_pending() {
            self.handle_commands(requests, now);
        }
        self.close_some();
        self.drive_relays(now);
        self.handle_timeouts(now);
        self.retry_fd_waiters(now);
        self.drive_dials(now);
        self.accept(now);
        // Only now, so that no event of this turn reaches a later occupant of a slot.
        self.pairs.free_vacated();
        if self.pairs.shrink() {
            self.timers.shrink(self.pairs.slot_numbers().end);
        }
        let is_drained = self.pairs.len() == 0 && self.close_queue.is_empty();
        if matches!(self.run_state, RunState::Draining { .. }) && is_drained {
            self.stop(EndReason::Shutdown, now);
        }
        self.next_turn(now)
    }

    /// Returns whether the balancer has come to its end. No turn follows.
    pub(crate) fn is_over(&self) -> bool {
        self.run_state == RunState::Over
    }

    /// Returns what it did up to now.
    pub(crate) fn summary(&self, now: Instant) -> Summary {
        let Stats { accepted, refused, ended, bytes_up, bytes_down, .. } = self.cx.counters;
        let ran_for = |started| now.saturating_duration_since(started);
        let ran_for = self.started_at.map_or(Duration::ZERO, ran_for);
        Summary { ran_for, accepted, refused, ended, bytes_up, bytes_down, updates: self.updates }
    }

    /// Returns a snapshot of all counters.
    pub(crate) fn stats(&self, now: Instant) -> Stats {
        let Context { pool, counters, .. } = &self.cx;
        let (backends, departed) = (pool.backend_stats(now), pool.departed());
        Stats { backends, departed, ..counters.clone() }
    }

    fn next_turn(&self, now: Instant) -> Option<Instant> {
        let may_retry = !self.fd_waiters.is_empty() && self.acceptor.paused_until().is_none();
        let has_work = self.pairs.has_queued() || !self.close_queue.is_empty();
        if has_work || self.may_accept() || may_retry {
            return Some(now);
        }
        let drain_limit = match self.run_state {
            RunState::Draining { until } => Some(until),
            _ => None,
        };
        let target_limit = self.cx.pool.next_drain_limit();
        let times =
            [self.timers.earliest(), self.acceptor.paused_until(), target_limit, drain_limit];
        times.into_iter().flatten().min()
    }
}

/// Events, and the relaying they lead to.
impl EventLoop {
    /// Notes what an event says of one side of a pair, and queues the pair.
    fn handle_event(
        &mut self,
        token: PairToken,
        side: PairSide,
        readiness: Readiness,
        now: Instant,
    ) {
        let Some(pair) = self.pairs.find(token) else { return }; // closed in this turn
        match (&mut pair.stage, side) {
            (Stage::Relaying(relaying), side) => {
                relaying.side_mut(side).set_ready(readiness);
            }
            (Stage::Dialling(dialling), PairSide::Backend) => {
                // Else it is of a dial that was given up in this turn.
                if let Phase::Connecting(connecting) = &mut dialling.phase {
                    connecting.backend.set_ready(readiness);
                    connecting.has_event = true;
                }
            }
            (Stage::Dialling(dialling), PairSide::Client) => {
                // Nothing is read from it until its backend is connected.
                let readiness = dialling.client.set_ready(readiness);
                if dialling.client.check_hang_up(readiness) {
                    self.close_pair(token.slot, EndReason::ClientFailed, now);
                }
                return;
            }
        }
        self.pairs.enqueue(token.slot, Queue::Ready);
    }

    /// Drives the pairs that are ready, until the turn has moved enough; the rest stay queued.
    ///
    /// Pairs that events made ready come before those that had more to move than fits in a turn. So
    /// a small message overtakes transfers that never run dry, which can therefore move much at a
    /// time. One of the latter goes on in any turn, however many are ready.
    fn drive_relays(&mut self, now: Instant) {
        let mut bytes = 0;
        let unfinished = self.pairs.queue_len(Queue::Unfinished);
        for _ in 0..self.pairs.queue_len(Queue::Ready) {
            if bytes >= BYTES_PER_TURN {
                break;
            }
            let Some(slot) = self.pairs.dequeue(Queue::Ready) else { break };
            bytes += self.drive(slot, now);
        }
        for turn in 0..unfinished {
            if bytes >= BYTES_PER_TURN && turn > 0 {
                break;
            }
            let Some(slot) = self.pairs.dequeue(Queue::Unfinished) else { break };
            bytes += self.drive(slot, now);
        }
    }

    /// Does what a pair has to do. Returns how much that was, in bytes.
    fn drive(&mut self, slot: usize, now: Instant) -> u64 {
        match &self.pairs[slot].stage {
            // It has its own queue and budget for that.
            Stage::Dialling(dialling) if dialling.is_about_to_dial() => {
                self.pairs.enqueue(slot, Queue::Dial);
            }
            Stage::Dialling(_) => self.advance_dial(slot, now),
            Stage::Relaying(_) => {}
        }
        DRIVE_COST + self.relay(slot, now)
    }

    /// Moves bytes, if the pair is connected by now. Returns how many.
    fn relay(&mut self, slot: usize, now: Instant) -> u64 {
        let pair = self.pairs.get_mut(slot);
        let Some(Pair { stage: Stage::Relaying(relaying), .. }) = pair else { return 0 };
        let (progress, bytes) = self.cx.relay(relaying, now);
        if let Progress::Over(reason) = progress {
            self.close_pair(slot, reason, now);
            return bytes;
        }
        if let Some((deadline, _)) = relaying.deadline(&self.cx.config.limits) {
            self.timers.arm(slot, deadline);
        }
        if progress == Progress::Unfinished {
            self.pairs.enqueue(slot, Queue::Unfinished);
        }
        bytes
    }
}

/// Closing.
impl EventLoop {
    /// Closes a pair: in an orderly way if both streams have ended so, else by an abort.
    fn close_pair(&mut self, slot: usize, reason: EndReason, now: Instant) {
        let (client, backend) = self.detach(slot, reason, now);
        self.close(client, backend);
    }

    /// Takes a pair out of the table, counts and reports it. Returns its sides, to be closed.
    fn detach(&mut self, slot: usize, reason: EndReason, now: Instant) -> (Side, Option<Side>) {
        let (_, Pair { client, stage }) = self.pairs.lend(slot);
        self.pairs.vacate(slot);
        match stage {
            Stage::Dialling(dialling) => {
                let (assignment, backend) = dialling.phase.into_parts();
                if let Some(assignment) = assignment {
                    self.cx.pool.release(assignment);
                }
                self.cx.refused(&client, dialling.client.failure(), reason, now);
                (dialling.client, backend)
            }
            Stage::Relaying(relaying) => {
                self.cx.ended(&client, &relaying, reason, now);
                self.cx.pool.release(relaying.assignment);
                let (mut client, mut backend) = relaying.duplex.into_sides();
                self.cx.pipes.trim();
                if reason == EndReason::Finished {
                    client.mark_orderly();
                    backend.mark_orderly();
                }
                (client, Some(backend))
            }
        }
    }

    /// Closes the sockets of a pair now, or in a later turn if this one has closed many.
    fn close(&mut self, client: Side, backend: Option<Side>) {
        if self.budget.closes == 0 {
            let mut batch = ClosingBatch::default();
            batch.push_pair(client, backend);
            return self.close_queue.push(batch);
        }
        for side in [client].into_iter().chain(backend) {
            side.close(&self.cx.registry);
            self.budget.closes = self.budget.closes.saturating_sub(1);
        }
        self.acceptor.resume();
    }
}
