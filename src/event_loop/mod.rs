//! The balancer's logic: what happens in a turn. Knows no event queue and reads no clock.
//!
//! `Server::run` waits for events and calls [`EventLoop::turn`] with them and the time; a test can do the same without
//! a socket. A turn takes note of the events, obeys commands, drives the pairs that have something to do, looks after
//! deadlines, accepts clients, and frees the slots of what it closed. Each of these steps is bounded, but for those that
//! end many pairs at a time. An update, and the limit of a drain, end all that they have to in one step, and leave the
//! sockets of a crowd to be closed over the next turns; the end of everything closes everything.
//!
//! To follow one connection: [`accept`](EventLoop::accept), [`advance`](EventLoop::advance),
//! `Dialler::establish`, [`relay`](EventLoop::relay), [`end`](EventLoop::end). To follow one update:
//! [`apply_update`](EventLoop::apply_update), [`close_some`](EventLoop::close_some).

mod accept;
mod acceptor;
mod close_queue;
mod commands;
mod dial;
mod log_limit;
mod pair;
mod pair_table;
mod timeouts;
mod timers;
pub(crate) mod token;

#[cfg(all(test, not(tinylb_loom)))]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::log::debug;
use mio::{Registry, Token};

use self::accept::ACCEPTS_PER_TURN;
use self::acceptor::Acceptor;
use self::close_queue::Closing;
use self::log_limit::LogLimit;
pub(crate) use self::pair::Limits;
use self::pair::{ClientSide, Pair, Phase, Relaying, Stage};
use self::pair_table::{PairTable, Queue};
use self::timers::Timers;
use self::token::{End, PairToken, Source};
use crate::mailbox::Receiver;
use crate::net::{Listener, Readiness, SocketOptions};
use crate::observer::{Ended, Observer};
use crate::pool::Pool;
use crate::pool::rotation::Rotation;
use crate::relay::{Progress, Side};
use crate::stats::{EndReason, Stats, Summary};

/// How many bytes one direction moves in one turn at most, but for the read that passes this.
pub(crate) const BYTES_PER_DIRECTION: usize = 512 << 10;
/// How much one turn does, in bytes moved or what takes as long: see the costs below. It ends with the drive that passes
/// this, or one more. Whoever becomes ready meanwhile waits for its end.
const WORK_PER_TURN: u64 = 1 << 20;
/// What a drive costs besides the bytes: a few system calls, about as long as these bytes take.
const DRIVE_COST: u64 = 8 << 10;
/// What it costs to begin a dial: a turn begins no more of them than it accepts clients.
const DIAL_COST: u64 = WORK_PER_TURN / ACCEPTS_PER_TURN as u64;

/// What the host has chosen.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) limits: Limits,
    pub(crate) max_connections: usize,
    pub(crate) buffer_size: usize,
    pub(crate) socket_options: SocketOptions,
}

/// The state of a balancer between two turns.
pub(crate) struct EventLoop {
    commands: Receiver,
    closing: Closing,
    acceptor: Acceptor,
    pairs: PairTable,
    deadlines: Timers,
    /// The slots of pairs that wait for a descriptor to dial with, the first come first. A slot whose pair no longer
    /// does stays until it is at the front; as nobody is accepted meanwhile, it has no new tenant by then.
    fd_waiters: VecDeque<usize>,
    balancer: Balancer,
    updates: u64,
    started_at: Option<Instant>,
    run_state: RunState,
    /// Whether the log has it that there is no backend.
    is_refusing: bool,
}

/// What a pair is served with: everything but the pairs, so that one can be borrowed beside it.
pub(crate) struct Balancer {
    config: Config,
    registry: Registry,
    pool: Pool,
    /// What every read goes into.
    scratch: Vec<u8>,
    observer: Box<dyn Observer>,
    /// The counters but for those of backends, which the roster has.
    totals: Stats,
    shortage_warnings: LogLimit,
    ejection_warnings: LogLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    Serving,
    /// No client is accepted any more; the rest are cut when the limit runs out.
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
        commands: Receiver,
        rotation: Rotation,
        observer: Box<dyn Observer>,
    ) -> io::Result<Self> {
        let acceptor = Acceptor::open(listener, &registry)?;
        Ok(Self {
            commands,
            acceptor,
            pairs: PairTable::default(),
            closing: Closing::default(),
            deadlines: Timers::default(),
            fd_waiters: VecDeque::new(),
            balancer: Balancer {
                scratch: vec![0; config.buffer_size],
                config,
                registry,
                pool: Pool::new(rotation),
                observer,
                totals: Stats::default(),
                shortage_warnings: LogLimit::default(),
                ejection_warnings: LogLimit::default(),
            },
            updates: 0,
            started_at: None,
            run_state: RunState::Serving,
            is_refusing: false,
        })
    }

    /// Runs one turn: takes up the events and all that is due by now. Returns when it wants to be called again at the
    /// latest, though nothing may have happened; `None` is "whenever something has".
    pub(crate) fn turn(
        &mut self,
        ready: impl Iterator<Item = (Token, Readiness)>,
        now: Instant,
    ) -> Option<Instant> {
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.commands.start();
        }
        for (token, readiness) in ready {
            match Source::from(token) {
                Source::Commands => {} // it has woken the loop, which asks below
                Source::Listener => self.acceptor.set_ready(),
                Source::Pair(pair, end) => self.note(pair, end, readiness, now),
            }
        }
        self.close_some();
        if self.commands.take_pending() {
            self.handle_commands(now);
        }
        self.drive_queue(now);
        self.handle_timeouts(now);
        self.retry_fd_waiters(now);
        self.accept(now);
        self.pairs.reap();
        if self.pairs.shrink() {
            self.deadlines.shrink(self.pairs.slot_numbers().end);
        }
        if matches!(self.run_state, RunState::Draining { .. }) && self.pairs.len() == 0 {
            self.stop_now(EndReason::Shutdown, now);
        }
        self.next_turn(now)
    }

    /// Whether the balancer has come to its end. No turn follows.
    pub(crate) fn is_over(&self) -> bool {
        self.run_state == RunState::Over
    }

    /// What it did up to now.
    pub(crate) fn summary(&self, now: Instant) -> Summary {
        Summary {
            ran_for: self
                .started_at
                .map_or(Duration::ZERO, |started| now.saturating_duration_since(started)),
            accepted: self.balancer.totals.accepted,
            refused: self.balancer.totals.refused,
            ended: self.balancer.totals.ended,
            bytes_up: self.balancer.totals.bytes_up,
            bytes_down: self.balancer.totals.bytes_down,
            updates: self.updates,
        }
    }

    fn next_turn(&self, now: Instant) -> Option<Instant> {
        let may_feed = !self.fd_waiters.is_empty() && self.acceptor.paused_until().is_none();
        if self.pairs.has_queued() || !self.closing.is_empty() || self.may_accept() || may_feed {
            return Some(now);
        }
        let drain_limit = match self.run_state {
            RunState::Draining { until } => Some(until),
            _ => None,
        };
        let times = [
            self.deadlines.earliest(),
            self.acceptor.paused_until(),
            self.balancer.pool.next_drain(),
            drain_limit,
        ];
        times.into_iter().flatten().min()
    }

    /// Takes note of what an event says of one side of a pair.
    fn note(&mut self, token: PairToken, end: End, readiness: Readiness, now: Instant) {
        let Some(pair) = self.pairs.find(token) else { return };
        match (&mut pair.stage, end) {
            (Stage::Relaying(_), End::Client) => {
                pair.client.side.note(readiness);
            }
            (Stage::Relaying(relaying), End::Backend) => {
                relaying.relay.backend_mut().note(readiness);
            }
            (Stage::Dialling(dialling), End::Backend) => {
                let Phase::Connecting(connecting) = &mut dialling.phase else { return };
                connecting.backend.note(readiness);
                connecting.has_event = true;
            }
            (Stage::Dialling(_), End::Client) => {
                let readiness = pair.client.side.note(readiness);
                if pair.client.side.is_gone(readiness) {
                    self.end(token.slot, EndReason::ClientFailed, now);
                }
                return; // nothing else concerns a client while its backend is not connected
            }
        }
        self.pairs.enqueue(token.slot, Queue::Ready);
    }
}

impl EventLoop {
    /// Drives the pairs that have something to do by now, until the turn's work is done; the rest stay queued.
    ///
    /// Those that events have made ready come before those that had more to move than they may in a turn: so a small
    /// message passes by transfers that never run dry, which can therefore move much at a time. One of the latter goes on
    /// in any turn, however many are ready.
    fn drive_queue(&mut self, now: Instant) {
        let mut work = 0;
        let unfinished = self.pairs.queue_len(Queue::Unfinished);
        for _ in 0..self.pairs.queue_len(Queue::Ready) {
            if work >= WORK_PER_TURN {
                break;
            }
            let Some(slot) = self.pairs.dequeue(Queue::Ready) else { break };
            work += self.drive(slot, now);
        }
        for turn in 0..unfinished {
            if work >= WORK_PER_TURN && turn > 0 {
                break;
            }
            let Some(slot) = self.pairs.dequeue(Queue::Unfinished) else { break };
            work += self.drive(slot, now);
        }
    }

    /// Does what a pair has to do, and returns how much work that was.
    fn drive(&mut self, slot: usize, now: Instant) -> u64 {
        let mut work = DRIVE_COST;
        if let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.get_mut(slot) {
            if dialling.is_about_to_dial() {
                work += DIAL_COST;
            }
            self.advance(slot, now);
        }
        work + self.relay(slot, now)
    }

    /// Moves bytes, if the pair is connected by now, and returns how many.
    fn relay(&mut self, slot: usize, now: Instant) -> u64 {
        let Some(Pair { client, stage: Stage::Relaying(relaying) }) = self.pairs.get_mut(slot)
        else {
            return 0;
        };
        let (progress, moved) = self.balancer.relay(client, relaying, now);
        match progress {
            Progress::Waiting => self.remind(slot),
            Progress::Unfinished => {
                self.remind(slot);
                self.pairs.enqueue(slot, Queue::Unfinished);
            }
            Progress::Over(reason) => self.end(slot, reason, now),
        }
        moved
    }
}

impl Balancer {
    /// Moves bytes both ways, counts them, and returns how many.
    fn relay(
        &mut self,
        client: &mut ClientSide,
        relaying: &mut Relaying,
        now: Instant,
    ) -> (Progress, u64) {
        let before = (relaying.relay.bytes_up, relaying.relay.bytes_down);
        let progress =
            relaying.relay.drive(&mut client.side, &mut self.scratch, BYTES_PER_DIRECTION, now);
        let (up, down) = (relaying.relay.bytes_up - before.0, relaying.relay.bytes_down - before.1);
        self.totals.bytes_up += up;
        self.totals.bytes_down += down;
        self.pool.moved(&relaying.assignment, up, down);
        (progress, up + down)
    }
}

impl EventLoop {
    /// Ends a pair, if there is one: in order if its streams have ended so, and else by a cut.
    fn end(&mut self, slot: usize, reason: EndReason, now: Instant) {
        let Some((client, backend)) = self.detach(slot, reason, now) else { return };
        let close = if reason == EndReason::Finished { Side::close } else { Side::cut };
        close(client, &self.balancer.registry);
        if let Some(backend) = backend {
            close(backend, &self.balancer.registry);
        }
    }

    /// Takes a pair out, counts it, and tells. Its sides are to be closed.
    fn detach(
        &mut self,
        slot: usize,
        reason: EndReason,
        now: Instant,
    ) -> Option<(Side, Option<Side>)> {
        let pair = self.pairs.take(slot)?;
        self.balancer.ended(&pair, reason, now);
        self.acceptor.resume();
        Some(pair.into_sides())
    }
}

impl Balancer {
    /// Counts a pair that has come to its end, and tells.
    fn ended(&mut self, Pair { client, stage }: &Pair, reason: EndReason, now: Instant) {
        let refused = Ended {
            client: client.info(),
            backend: None,
            lasted: now.saturating_duration_since(client.accepted_at),
            bytes_up: 0,
            bytes_down: 0,
            reason,
            error: client.side.failure(),
        };
        let ended = match stage {
            Stage::Dialling(_) => {
                self.totals.dialling -= 1;
                self.totals.refused.count(reason);
                refused
            }
            Stage::Relaying(relaying) => {
                self.totals.open -= 1;
                self.totals.ended.count(reason);
                self.pool.ended(&relaying.assignment);
                let entry = &relaying.assignment.entry;
                Ended {
                    backend: Some((entry.shared_key(), entry.shared_target_name())),
                    bytes_up: relaying.relay.bytes_up,
                    bytes_down: relaying.relay.bytes_down,
                    error: relaying.relay.failure(&client.side),
                    ..refused
                }
            }
        };
        debug!("client {} ({}): {reason}", client.id, client.addr);
        self.observer.ended(&ended);
    }
}
