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
//! [`apply_update`](EventLoop::apply_update), [`drive_closes`](EventLoop::drive_closes).

mod accept;
mod acceptor;
mod batch;
mod busy_queue;
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
use self::batch::ReadWatermark;
pub(crate) use self::batch::{Batch, Completeness};
use self::busy_queue::BusyQueue;
use self::close_queue::{CloseQueue, ClosingBatch};
pub(crate) use self::context::Config;
use self::context::Context;
pub(crate) use self::pair::Limits;
use self::pair::{Pair, Phase, Stage};
use self::pair_table::{PairTable, Queue};
use self::timeouts::HandledWatermark;
use self::timers::Timers;
use self::token::{PairToken, Role, Source};
use crate::end_reason::EndReason;
use crate::mailbox::Receiver;
use crate::net::{Listener, Readiness};
use crate::observer::Observer;
use crate::pool::Pool;
use crate::relay::{Progress, Side};
use crate::stats::{Stats, Summary};

/// The most bytes that one direction moves in one turn. The last read may exceed it.
pub(crate) const BYTES_PER_DIRECTION: usize = 512 << 10;
/// The most bytes that one turn relays. The last drive may exceed it. Pairs that become ready
/// meanwhile wait for the next turn.
const BYTES_PER_TURN: u64 = 1 << 20;
/// The same for pairs with a peer that has ended its stream or failed. When a server dies there are
/// many of them, and all other pairs wait meanwhile.
const BYTES_OF_ENDING_PER_TURN: u64 = BYTES_PER_TURN / 2;
/// What a drive counts besides its bytes: its system calls take about as long as moving this many.
const DRIVE_COST: u64 = 8 << 10;
/// The most pairs that one turn looks after because their dials have succeeded or failed.
const CONNECTS_PER_TURN: usize = 64;
/// The most sockets that one turn closes of those that earlier turns have left. A close takes about
/// 8 µs, mostly for the reset. While one turn closed 9,000 pairs, a round trip of another pair took
/// 228 ms; with this limit it takes 9 ms.
const CLOSES_PER_TURN: usize = 128;
/// The most sockets that one turn closes at once. It leaves more than that to later turns.
const CLOSES_AT_ONCE: usize = 256;

/// The state of a balancer between two turns.
pub(crate) struct EventLoop {
    mailbox: Receiver,
    acceptor: Acceptor,
    pairs: PairTable,
    timers: Timers,
    /// The pairs that wait for a descriptor to dial with, in order of arrival. Some may have been
    /// closed since.
    fd_waiters: VecDeque<PairToken>,
    busy_queue: BusyQueue,
    close_queue: CloseQueue,
    /// What is left of this turn's budgets.
    budget: Budget,
    /// The time up to which all events have been read. Timeouts that were due by then may fire.
    read_watermark: ReadWatermark,
    /// The time up to which all events have been dealt with. Drains that were due by then may end.
    handled_watermark: HandledWatermark,
    run_state: RunState,
    started_at: Option<Instant>,
    cx: Context,
}

/// What is left of the budgets that several steps of a turn share.
struct Budget {
    closes_at_once: usize,
    /// Of sockets that were left to be closed.
    closes: usize,
    dials: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            closes_at_once: CLOSES_AT_ONCE,
            closes: CLOSES_PER_TURN,
            dials: dial::DIALS_PER_TURN,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    /// Before the first turn.
    Starting,
    Serving,
    /// The clients that wait in the backlog are accepted, `accepts_left` at most. At `until`, the
    /// pairs that are left are aborted.
    Draining {
        until: Instant,
        accepts_left: usize,
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
            busy_queue: BusyQueue::default(),
            close_queue: CloseQueue::default(),
            budget: Budget::default(),
            read_watermark: ReadWatermark::default(),
            handled_watermark: HandledWatermark::default(),
            run_state: RunState::Starting,
            started_at: None,
            cx: Context::new(config, registry, pool, observer),
        })
    }

    /// Has bulk move through these pipes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn simulate_pipes(&mut self, pipes: crate::relay::Pipes) {
        self.cx.pipes = pipes;
    }

    /// Runs one turn: handles the events and everything that is due. Returns when the next turn
    /// must begin at the latest, even without an event; `None` if it can wait for one.
    ///
    /// Timeouts that end a pair or a dial fire by the time up to which events are complete (see
    /// [`batch`]). Everything else goes by `now`.
    pub(crate) fn turn(
        &mut self,
        batch: Batch<impl Iterator<Item = (Token, Readiness)>>,
        now: Instant,
    ) -> Option<Instant> {
        if self.run_state == RunState::Starting {
            self.started_at = Some(now);
            self.mailbox.start();
        }
        self.budget = Budget::default();
        self.cx.pool.end_ejections(now);
        let (sources, mut events) = (self.sources(), 0);
        for (token, readiness) in batch.events {
            events += 1;
            match Source::from(token) {
                Source::Mailbox => {} // only wakes the loop: every turn looks into the mailbox
                Source::Listener => self.acceptor.set_ready(),
                Source::Pair(pair, side) => self.handle_event(pair, side, readiness, now),
            }
        }
        self.read_watermark.note(batch.poll_began, batch.completeness, events, sources);
        if let Some(requests) = self.mailbox.take_pending() {
            self.handle_commands(requests, now);
        }
        if self.run_state == RunState::Starting {
            self.run_state = RunState::Serving;
        }
        self.drive_closes();
        self.drive_connects(now);
        self.drive_relays(now);
        self.handle_timeouts(now);
        self.retry_fd_waiters(now);
        self.retry_busy(now);
        self.drive_dials(now);
        self.accept(now);
        self.report_changes();
        // Only now, so that no event of this turn reaches a later occupant of a slot.
        self.pairs.free_vacated();
        if self.pairs.shrink() {
            self.timers.shrink(self.pairs.slot_numbers().end);
        }
        let is_drained = self.pairs.len() == 0 && self.close_queue.is_empty() && !self.may_accept();
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
        let Stats { accepted, refused, ended, bytes_up, bytes_down, updates, .. } =
            self.cx.counters;
        let ran_for = |started| now.saturating_duration_since(started);
        let ran_for = self.started_at.map_or(Duration::ZERO, ran_for);
        Summary { ran_for, accepted, refused, ended, bytes_up, bytes_down, updates }
    }

    /// Returns a snapshot of all counters.
    pub(crate) fn stats(&self, now: Instant) -> Stats {
        let Context { pool, counters, .. } = &self.cx;
        let (backends, departed) = (pool.backend_stats(now), pool.departed());
        Stats { backends, departed, ..counters.clone() }
    }

    /// Returns how many event sources are registered, at most: both sockets of each pair, those
    /// that are still to be closed, the listener and the waker.
    fn sources(&self) -> usize {
        2 * self.pairs.len() + self.close_queue.sockets() + 2
    }

    /// Returns when the next turn is due: at once if there is work left, else at the earliest
    /// timer.
    fn next_turn(&self, now: Instant) -> Option<Instant> {
        let may_retry = !self.fd_waiters.is_empty() && self.acceptor.paused_until().is_none();
        let has_work = self.pairs.has_queued()
            || !self.close_queue.is_empty()
            || self.cx.pool.has_ended_ejections(now);
        if has_work || self.may_accept() || may_retry {
            return Some(now);
        }
        let drain_limit = match self.run_state {
            RunState::Draining { until, .. } => Some(until),
            _ => None,
        };
        let target_limit = self.cx.pool.next_drain_limit();
        let times = [
            self.timers.earliest(),
            self.acceptor.paused_until(),
            self.busy_queue.retry_at(now),
            target_limit,
            drain_limit,
        ];
        times.into_iter().flatten().min()
    }
}

/// Events, and the relaying they lead to.
impl EventLoop {
    /// Notes what an event says of one side of a pair, and queues the pair.
    fn handle_event(&mut self, token: PairToken, side: Role, readiness: Readiness, now: Instant) {
        let Some(pair) = self.pairs.find(token) else { return }; // closed in this turn
        let queue = match (&mut pair.stage, side) {
            (Stage::Relaying(relaying), side) => {
                relaying.side_mut(side).set_ready(readiness);
                let is_ending = readiness.read_closed || readiness.error;
                if is_ending { Queue::Ending } else { Queue::Ready }
            }
            (Stage::Dialling(dialling), Role::Backend) => {
                // Otherwise the event is from a dial that was given up in this turn.
                if let Phase::Connecting(connecting) = &mut dialling.phase {
                    connecting.backend.set_ready(readiness);
                    connecting.has_event = true;
                }
                Queue::Connect
            }
            (Stage::Dialling(dialling), Role::Client) => {
                // Nothing is read from it until its backend is connected.
                let readiness = dialling.client.set_ready(readiness);
                if dialling.client.note_hang_up(readiness) {
                    self.close_pair(token.slot, EndReason::ClientFailed, now);
                }
                return;
            }
        };
        self.pairs.enqueue(token.slot, queue);
    }

    /// Looks after the dials that events tell of. Those that are connected are ready to relay.
    fn drive_connects(&mut self, now: Instant) {
        for _ in 0..self.pairs.queue_len(Queue::Connect).min(CONNECTS_PER_TURN) {
            let Some(slot) = self.pairs.dequeue(Queue::Connect) else { return };
            match &self.pairs[slot].stage {
                // It has its own queue and budget for that.
                Stage::Dialling(dialling) if dialling.is_about_to_dial() => {
                    self.pairs.enqueue(slot, Queue::Dial);
                }
                Stage::Dialling(_) => self.advance_dial(slot, now),
                Stage::Relaying(_) => {}
            }
            if matches!(self.pairs.get_mut(slot), Some(Pair { stage: Stage::Relaying(_), .. })) {
                self.pairs.enqueue(slot, Queue::Ready);
            }
        }
    }

    /// Drives the pairs that are ready, until the turn has moved enough; the rest stay queued.
    ///
    /// Pairs that an event made ready come first, then those that had more to move than fits in a
    /// turn. So a small message overtakes bulk transfers, and these can move a lot at a time. At
    /// least one of them continues in every turn, however many pairs are ready.
    fn drive_relays(&mut self, now: Instant) {
        let unfinished = self.pairs.queue_len(Queue::Unfinished);
        self.drive_queue(Queue::Ending, usize::MAX, BYTES_OF_ENDING_PER_TURN, now);
        let spent = self.drive_queue(Queue::Ready, usize::MAX, BYTES_PER_TURN, now);
        self.drive_queue(Queue::Unfinished, unfinished, BYTES_PER_TURN.saturating_sub(spent), now);
    }

    /// Drives at most `limit` pairs of a queue, at least one, until the budget is spent. Returns
    /// what it has spent: the bytes moved, and [`DRIVE_COST`] for each pair.
    fn drive_queue(&mut self, queue: Queue, limit: usize, budget: u64, now: Instant) -> u64 {
        let mut spent = 0;
        for _ in 0..self.pairs.queue_len(queue).min(limit) {
            let Some(slot) = self.pairs.dequeue(queue) else { break };
            spent += DRIVE_COST + self.relay(slot, now);
            if spent >= budget {
                break;
            }
        }
        spent
    }

    /// Moves the bytes of a pair. Returns how many.
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

/// Reporting.
impl EventLoop {
    /// Tells the observer of what has changed in this turn besides clients.
    fn report_changes(&mut self) {
        let Context { pool, observer, .. } = &mut self.cx;
        pool.take_breaker_changes().for_each(|change| observer.breaker_changed(&change.observed()));
        if let Some(change) = self.acceptor.take_change() {
            observer.accept_changed(&change);
        }
    }
}

/// Closing.
impl EventLoop {
    /// Closes a pair. A side that was sent the end of its stream is closed in an orderly way, any
    /// other by an abort.
    fn close_pair(&mut self, slot: usize, reason: EndReason, now: Instant) {
        let (client, backend) = self.detach(slot, reason, now);
        self.close(client, backend);
    }

    /// Takes a pair out of the table, counts and reports it. Returns its sides, to be closed.
    fn detach(&mut self, slot: usize, reason: EndReason, now: Instant) -> (Side, Option<Side>) {
        let (_, Pair { client_info, stage }) = self.pairs.lend(slot);
        self.pairs.vacate(slot);
        match stage {
            Stage::Dialling(dialling) => {
                let (assignment, backend) = dialling.phase.into_parts();
                if let Some(assignment) = assignment {
                    self.cx.pool.release(assignment);
                }
                self.cx.count_refused(&client_info, dialling.client.failure(), reason, now);
                (dialling.client, backend)
            }
            Stage::Relaying(relaying) => {
                let is_removed = !self.cx.pool.serves(&relaying.assignment);
                self.cx.count_ended(&client_info, &relaying, reason, now);
                self.cx.pool.release(relaying.assignment);
                let (client, mut backend) = relaying.duplex.into_sides();
                self.cx.pipes.trim();
                if is_removed {
                    backend.mark_aborted();
                }
                (client, Some(backend))
            }
        }
    }

    /// Closes the sockets of a pair now, or in a later turn if this one has closed many.
    fn close(&mut self, client: Side, backend: Option<Side>) {
        if self.budget.closes_at_once == 0 {
            let mut batch = ClosingBatch::default();
            batch.push_pair(client, backend);
            return self.close_queue.push(batch);
        }
        for side in [client].into_iter().chain(backend) {
            side.close(&self.cx.registry);
            self.budget.closes_at_once = self.budget.closes_at_once.saturating_sub(1);
        }
        self.acceptor.resume();
    }
}
