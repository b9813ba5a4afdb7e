//! The balancer's logic: what happens in a turn. Knows no event queue and reads no clock.
//!
//! `Server::run` waits for events and calls [`EventLoop::turn`] with them and the time; a test can do the same without
//! a socket. A turn takes note of the events, obeys commands, drives the pairs that have something to do, looks after
//! deadlines, accepts clients, and frees the slots of what it closed. Each of these steps is bounded, but for an update,
//! which closes all that it has to in one step.
//!
//! To follow one connection: [`accept`](EventLoop::accept), [`proceed_dialling`](EventLoop::proceed_dialling),
//! [`establish`](EventLoop::establish), [`relay`](EventLoop::relay), [`end`](EventLoop::end). To follow one update:
//! [`apply_update`](EventLoop::apply_update).

pub(crate) mod command;
mod deadlines;
mod door;
mod pair;
mod pair_table;
mod roster;
mod throttle;
pub(crate) mod token;
pub(crate) mod update;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use mio::{Registry, Token};

use self::command::{Receiver, Stop};
use self::deadlines::{Deadlines, after};
use self::door::{Arrival, Door};
pub(crate) use self::pair::Limits;
use self::pair::{Attempt, Connecting, Dialling, Pair, Progress, Relaying, Stage, Try, Verdict};
use self::pair_table::PairTable;
use self::roster::{Assignment, Roster};
use self::throttle::Throttle;
use self::token::{End, PairToken, Source};
use crate::backend::{Dial, DialRequest};
use crate::net::{self, Address, Listener, Readiness, SocketOptions, Stream};
use crate::observe::{Applied, AttemptFailed, Client, Connected, EndReason, Ended, Observer, Stats, Summary};
use crate::relay::Side;
use crate::rotation::Rotation;

/// How many clients one turn accepts at most.
const ACCEPTS_PER_TURN: usize = 64;
/// How many deadlines one turn looks after at most.
const DEADLINES_PER_TURN: usize = 256;
/// How many bytes one direction moves in one turn at most, but for the read that passes this.
const BYTES_PER_DIRECTION: usize = 1 << 20;
/// How much one turn does at most, in bytes moved or what takes as long: see the costs below.
const WORK_PER_TURN: u64 = 8 << 20;
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
    config: Config,
    registry: Registry,
    commands: Receiver,
    door: Door,
    pairs: PairTable,
    roster: Roster,
    deadlines: Deadlines,
    /// Pairs that wait for a descriptor to dial with, the first come first, and some that no longer do.
    starving: VecDeque<usize>,
    /// What every read goes into.
    scratch: Vec<u8>,
    observer: Box<dyn Observer>,
    /// The counters but for those of backends, which the roster has.
    totals: Stats,
    updates: u64,
    started_at: Option<Instant>,
    life: Life,
    /// Whether the log has it that there is no backend.
    is_refusing: bool,
    accept_warnings: Throttle,
    dial_warnings: Throttle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
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
        let door = Door::open(listener, &registry)?;
        Ok(Self {
            scratch: vec![0; config.buffer_size],
            config,
            registry,
            commands,
            door,
            pairs: PairTable::default(),
            roster: Roster::new(rotation),
            deadlines: Deadlines::default(),
            starving: VecDeque::new(),
            observer,
            totals: Stats::default(),
            updates: 0,
            started_at: None,
            life: Life::Serving,
            is_refusing: false,
            accept_warnings: Throttle::default(),
            dial_warnings: Throttle::default(),
        })
    }

    /// Runs one turn: takes up the events and all that is due by now. Returns when it wants to be called again at the
    /// latest, though nothing may have happened; `None` is "whenever something has".
    pub(crate) fn turn(&mut self, ready: impl Iterator<Item = (Token, Readiness)>, now: Instant) -> Option<Instant> {
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.commands.start();
        }
        for (token, readiness) in ready {
            match Source::from(token) {
                Source::Commands => {} // it has woken the loop, which asks below
                Source::Listener => self.door.note_clients(),
                Source::Pair(pair, end) => self.note(pair, end, readiness, now),
            }
        }
        if self.commands.has_mail() {
            self.obey_commands(now);
        }
        self.drive_queue(now);
        self.look_after_deadlines(now);
        self.feed_starving(now);
        self.accept(now);
        self.pairs.reap();
        if matches!(self.life, Life::Draining { .. }) && self.pairs.len() == 0 {
            self.stop_now(EndReason::Shutdown, now);
        }
        self.next_turn(now)
    }

    /// Whether the balancer has come to its end. No turn follows.
    pub(crate) fn is_over(&self) -> bool {
        self.life == Life::Over
    }

    /// What it did up to now.
    pub(crate) fn summary(&self, now: Instant) -> Summary {
        Summary {
            ran_for: self.started_at.map_or(Duration::ZERO, |started| now.saturating_duration_since(started)),
            accepted: self.totals.accepted,
            refused: self.totals.refused,
            ended: self.totals.ended,
            bytes_up: self.totals.bytes_up,
            bytes_down: self.totals.bytes_down,
            updates: self.updates,
        }
    }

    fn next_turn(&self, now: Instant) -> Option<Instant> {
        let may_feed = !self.starving.is_empty() && self.door.paused_until().is_none();
        if self.pairs.queue_len() > 0 || self.may_accept() || may_feed {
            return Some(now);
        }
        let drain_limit = match self.life {
            Life::Draining { until } => Some(until),
            _ => None,
        };
        let times = [self.deadlines.earliest(), self.door.paused_until(), self.roster.next_drain(), drain_limit];
        times.into_iter().flatten().min()
    }

    /// Takes note of what an event says of one side of a pair.
    fn note(&mut self, token: PairToken, end: End, readiness: Readiness, now: Instant) {
        let Some(pair) = self.pairs.find(token) else { return };
        match (&mut pair.stage, end) {
            (Stage::Relaying(_), End::Client) => {
                pair.client.note(readiness);
            }
            (Stage::Relaying(relaying), End::Backend) => {
                relaying.backend_mut().note(readiness);
            }
            (Stage::Dialling(dialling), End::Backend) => {
                let Attempt::Connecting(connecting) = &mut dialling.attempt else { return };
                connecting.backend.note(readiness);
                connecting.is_to_be_checked = true;
            }
            (Stage::Dialling(_), End::Client) => {
                let readiness = pair.client.note(readiness);
                if pair.client.is_gone(readiness) {
                    self.end(token.slot, EndReason::ClientFailed, now);
                }
                return; // nothing else concerns a client while its backend is not connected
            }
        }
        self.pairs.enqueue(token.slot);
    }
}

// Commands.
impl EventLoop {
    fn obey_commands(&mut self, now: Instant) {
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

    /// Replaces the set and ends what no longer fits it, in one step; then tells.
    fn apply_update(&mut self, now: Instant) {
        let roster = &mut self.roster;
        let taken = self.commands.take_update(|update| {
            let (reassignment, difference) = roster.replace(&update, now);
            ((reassignment, difference, update), roster.target_names())
        });
        let Some(((reassignment, difference, update), promise)) = taken else { return };
        let mut applied = Applied { backends: self.roster.len(), ..Applied::default() };
        for slot in self.pairs.slot_numbers() {
            let Some(pair) = self.pairs.get_mut(slot) else { continue };
            match &mut pair.stage {
                Stage::Relaying(relaying) => {
                    if !reassignment.keeps_pair(&mut relaying.assignment) {
                        self.end(slot, EndReason::TargetRemoved, now);
                        applied.closed += 1;
                    }
                }
                Stage::Dialling(dialling) => {
                    let kept = match &mut dialling.attempt {
                        Attempt::Pick => true,
                        Attempt::Dial(of) | Attempt::Starving(of) => reassignment.keeps_dial(&mut of.assignment),
                        Attempt::Connecting(connecting) => reassignment.keeps_dial(&mut connecting.of.assignment),
                    };
                    if !kept {
                        if let Attempt::Connecting(connecting) = dialling.take_attempt() {
                            connecting.backend.cut(&self.registry);
                            applied.cancelled += 1;
                        }
                        self.pairs.enqueue(slot); // to go on to the next candidate
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
        self.observer.updated(&applied);
        promise.keep(applied);
        // Not before: what is dropped here is the host's, and may take its time.
        drop((reassignment, update));
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
        if self.life != Life::Over {
            let Stats { accepted, bytes_up, bytes_down, .. } = self.totals;
            info!("stopped after {accepted} clients, {bytes_up} bytes up and {bytes_down} bytes down");
        }
        self.life = Life::Over;
    }

    fn stats(&self, now: Instant) -> Stats {
        Stats { backends: self.roster.backend_stats(now), departed: self.roster.departed(), ..self.totals.clone() }
    }
}

// Time.
impl EventLoop {
    fn look_after_deadlines(&mut self, now: Instant) {
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
    fn remind(&mut self, slot: usize) {
        let deadline = self.pairs.get_mut(slot).and_then(|pair| pair.deadline(&self.config.limits));
        if let Some(at) = deadline {
            self.deadlines.remind(slot, at);
        }
    }

    /// Cuts the pairs whose targets' time to drain is over.
    fn end_drained_out(&mut self, now: Instant) {
        for slot in self.pairs.slot_numbers() {
            if let Some(Pair { stage: Stage::Relaying(relaying), .. }) = self.pairs.get_mut(slot) {
                if self.roster.has_drained_out(&relaying.assignment, now) {
                    self.end(slot, EndReason::DrainLimit, now);
                }
            }
        }
        self.roster.forget_drained_out(now);
    }
}

// Accepting.
impl EventLoop {
    fn may_accept(&self) -> bool {
        self.life == Life::Serving
            && self.door.is_worth_asking()
            && self.starving.is_empty()
            && self.pairs.len() < self.config.max_connections
            && self.pairs.has_room()
    }

    fn accept(&mut self, now: Instant) {
        let mut gone = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.may_accept() {
                return;
            }
            match self.door.ask() {
                Arrival::Client(stream, addr) => self.welcome(stream, addr, now),
                Arrival::Nobody => return,
                Arrival::Gone(err) => {
                    debug!("a client was gone before it was accepted: {err}");
                    gone += 1;
                }
                Arrival::Failed(err) => return self.pause_accepting(&err, now),
            }
        }
        if gone == ACCEPTS_PER_TURN {
            // A listener that fails in this way for good would be asked for ever.
            self.pause_accepting(&io::ErrorKind::ConnectionAborted.into(), now);
        }
    }

    fn pause_accepting(&mut self, err: &io::Error, now: Instant) {
        self.door.pause(now);
        if let Some(withheld) = self.accept_warnings.pass(now) {
            warn!("cannot accept clients for now: {err} ({withheld} more such warnings)");
        }
    }

    fn welcome(&mut self, stream: Box<dyn Stream>, addr: Address, now: Instant) {
        let id = self.totals.accepted;
        self.totals.accepted += 1;
        self.totals.dialling += 1;
        debug!("client {id} ({addr}): accepted");
        self.observer.accepted(&Client { id, addr: &addr });
        let token = self.pairs.insert(Pair {
            id,
            addr,
            accepted_at: now,
            client: Side::new(stream),
            stage: Stage::Dialling(Dialling::new(now, &self.config.limits)),
        });
        let Some(pair) = self.pairs.find(token) else { return };
        if let Err(err) = pair.client.register(&self.registry, token.of(End::Client)) {
            self.end(token.slot, EndReason::LocalFailure, now);
            return self.pause_accepting(&err, now);
        }
        self.proceed_dialling(token.slot, now);
    }
}

// Dialling.
impl EventLoop {
    /// Takes the next step towards a backend, whichever it is.
    fn proceed_dialling(&mut self, slot: usize, now: Instant) {
        let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.get_mut(slot) else { return };
        match dialling.take_attempt() {
            // Its reminder passes over a pair that is queued, and one whose attempts fail at once always is.
            Attempt::Pick | Attempt::Dial(_) if dialling.is_overdue(now) => self.end(slot, EndReason::DialLimit, now),
            Attempt::Pick => self.pick(slot, now),
            Attempt::Dial(of) => self.dial(slot, of, now),
            Attempt::Starving(of) => dialling.attempt = Attempt::Starving(of), // fed in order: see `feed_starving`
            Attempt::Connecting(connecting) => self.check_connecting(slot, connecting, now),
        }
        self.remind(slot);
    }

    fn pick(&mut self, slot: usize, now: Instant) {
        let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.get_mut(slot) else { return };
        match self.roster.pick(now, |key, target_name| !dialling.has_tried(key, target_name)) {
            Some(assignment) => self.dial(slot, Try { assignment, address: 0, is_excused: false }, now),
            None if self.roster.is_empty() => self.end(slot, EndReason::NoBackend, now),
            None => self.end(slot, EndReason::BackendsFailed, now),
        }
    }

    /// Begins to dial one address.
    fn dial(&mut self, slot: usize, of: Try, now: Instant) {
        let Some(token) = self.pairs.token(slot) else { return };
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        let Stage::Dialling(dialling) = &mut pair.stage else { return };
        let request = DialRequest::new(pair.client.stream(), &pair.addr, of.address, &self.config.socket_options);
        let begun = of.assignment.entry.backend().dial(&request).and_then(|Dial { stream, preface }| {
            let mut backend = Side::new(stream);
            backend.register(&self.registry, token.of(End::Backend))?;
            Ok((backend, preface))
        });
        match begun {
            Err(err) if net::is_shortage(&err) => {
                dialling.attempt = Attempt::Starving(of);
                if !self.starving.contains(&slot) {
                    self.starving.push_back(slot);
                }
                self.door.pause(now);
                if let Some(withheld) = self.dial_warnings.pass(now) {
                    warn!("cannot dial for now: {err} ({withheld} more such warnings)");
                }
            }
            Err(err) => {
                dialling.note_tried(&of.assignment);
                self.attempt_failed(slot, of, &err, now);
            }
            Ok((backend, preface)) => {
                dialling.note_tried(&of.assignment);
                let connecting = Connecting::new(backend, preface, of, now, &self.config.limits);
                dialling.attempt = Attempt::Connecting(Box::new(connecting));
            }
        }
    }

    /// Asks the backend's stream whether it is connected, if an event gave reason to.
    fn check_connecting(&mut self, slot: usize, mut connecting: Box<Connecting>, now: Instant) {
        let checked = match std::mem::take(&mut connecting.is_to_be_checked) {
            true => connecting.backend.check_connect(),
            false => Ok(false),
        };
        match checked {
            Ok(true) => self.establish(slot, *connecting, now),
            Ok(false) => {
                let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.get_mut(slot) else { return };
                dialling.attempt = Attempt::Connecting(connecting);
            }
            Err(err) => {
                let Connecting { backend, of, .. } = *connecting;
                backend.cut(&self.registry);
                self.attempt_failed(slot, of, &err, now);
            }
        }
    }

    fn attempt_timed_out(&mut self, slot: usize, now: Instant) {
        let Some(Pair { stage: Stage::Dialling(dialling), .. }) = self.pairs.get_mut(slot) else { return };
        if let Attempt::Connecting(connecting) = dialling.take_attempt() {
            let Connecting { backend, of, .. } = *connecting;
            backend.cut(&self.registry);
            self.attempt_failed(slot, of, &io::ErrorKind::TimedOut.into(), now);
        }
    }

    /// Counts and tells a failed attempt, and queues the client for the next: in a later turn, since each costs time.
    fn attempt_failed(&mut self, slot: usize, mut of: Try, err: &io::Error, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        let (key, target_name) = (of.assignment.entry.shared_key(), of.assignment.entry.shared_target_name());
        debug!("client {} ({}): backend {key} ({target_name}) cannot be reached: {err}", pair.id, pair.addr);
        let attempt = of.address;
        self.observer.attempt_failed(&AttemptFailed { client: pair.client(), key, target_name, attempt, error: err });
        self.roster.dial_failed(&of.assignment);
        of.is_excused |= net::is_local_failure(err);
        of.address += 1;
        if of.address < of.assignment.entry.backend().attempts() {
            let Stage::Dialling(dialling) = &mut pair.stage else { return };
            dialling.attempt = Attempt::Dial(of);
        } else if !of.is_excused {
            self.backend_failed(&of.assignment, err, now);
        }
        self.pairs.enqueue(slot);
    }

    fn backend_failed(&mut self, assignment: &Assignment, err: &io::Error, now: Instant) {
        let Some(time) = self.roster.backend_failed(assignment, now) else { return };
        if let Some(withheld) = self.dial_warnings.pass(now) {
            let (key, target_name) = (assignment.entry.shared_key(), assignment.entry.shared_target_name());
            warn!("backend {key} ({target_name}) is passed over for {time:.1?}: {err} ({withheld} more such warnings)");
        }
    }

    /// Dials for those who wait for a descriptor, in the order in which they came.
    fn feed_starving(&mut self, now: Instant) {
        if !self.door.is_unpaused(now) {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(&slot) = self.starving.front() else { return };
            if let Some(of) = self.take_starving(slot) {
                self.dial(slot, of, now);
                self.remind(slot);
            }
            if self.door.paused_until().is_some() {
                return; // still nothing to dial with: it keeps its place
            }
            self.starving.pop_front();
        }
    }

    /// What a pair wants to dial, if a descriptor is what it waits for.
    fn take_starving(&mut self, slot: usize) -> Option<Try> {
        let Stage::Dialling(dialling) = &mut self.pairs.get_mut(slot)?.stage else { return None };
        match dialling.take_attempt() {
            Attempt::Starving(of) => Some(of),
            other => {
                dialling.attempt = other;
                None
            }
        }
    }

    /// The backend is connected: from here on bytes are moved.
    fn establish(&mut self, slot: usize, connecting: Connecting, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        let Connecting { backend, preface, of: Try { assignment, .. }, .. } = connecting;
        let (key, target_name) = (assignment.entry.shared_key(), assignment.entry.shared_target_name());
        debug!("client {} ({}): connected with {key} ({target_name})", pair.id, pair.addr);
        let took = now.saturating_duration_since(pair.accepted_at);
        self.observer.connected(&Connected { client: pair.client(), key, target_name, took });
        self.totals.dialling -= 1;
        self.totals.open += 1;
        self.roster.connected(&assignment);
        pair.stage = Stage::Relaying(Relaying::new(assignment, backend, preface, now));
    }
}

// Relaying.
impl EventLoop {
    /// Drives the pairs that were queued up to now, until the turn's work is done; the rest stay in the queue.
    fn drive_queue(&mut self, now: Instant) {
        let mut work = 0;
        for _ in 0..self.pairs.queue_len() {
            if work >= WORK_PER_TURN {
                return;
            }
            let Some(slot) = self.pairs.dequeue() else { return };
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
            self.proceed_dialling(slot, now);
        }
        work + self.relay(slot, now)
    }

    /// Moves bytes, if the pair is connected by now, and returns how many.
    fn relay(&mut self, slot: usize, now: Instant) -> u64 {
        let Some(pair) = self.pairs.get_mut(slot) else { return 0 };
        let Stage::Relaying(relaying) = &mut pair.stage else { return 0 };
        let before = (relaying.bytes_up, relaying.bytes_down);
        let progress = relaying.drive(&mut pair.client, &mut self.scratch, BYTES_PER_DIRECTION, now);
        let (up, down) = (relaying.bytes_up - before.0, relaying.bytes_down - before.1);
        self.totals.bytes_up += up;
        self.totals.bytes_down += down;
        self.roster.moved(&relaying.assignment, up, down);
        match progress {
            Progress::Waiting => self.remind(slot),
            Progress::Unfinished => {
                self.remind(slot);
                self.pairs.enqueue(slot);
            }
            Progress::Over(reason) => self.end(slot, reason, now),
        }
        up + down
    }
}

// The end.
impl EventLoop {
    /// Closes a pair, counts it, and tells. Does nothing if there is none.
    fn end(&mut self, slot: usize, reason: EndReason, now: Instant) {
        let Some(pair) = self.pairs.take(slot) else { return };
        let lasted = now.saturating_duration_since(pair.accepted_at);
        let ended = match &pair.stage {
            Stage::Dialling(_) => {
                self.totals.dialling -= 1;
                self.totals.refused.count(reason);
                Ended {
                    client: pair.client(),
                    backend: None,
                    lasted,
                    bytes_up: 0,
                    bytes_down: 0,
                    reason,
                    error: pair.client.failure(),
                }
            }
            Stage::Relaying(relaying) => {
                self.totals.open -= 1;
                self.totals.ended.count(reason);
                self.roster.ended(&relaying.assignment);
                let entry = &relaying.assignment.entry;
                Ended {
                    client: pair.client(),
                    backend: Some((entry.shared_key(), entry.shared_target_name())),
                    lasted,
                    bytes_up: relaying.bytes_up,
                    bytes_down: relaying.bytes_down,
                    reason,
                    error: relaying.failure(&pair.client),
                }
            }
        };
        debug!("client {} ({}): {reason}", pair.id, pair.addr);
        self.observer.ended(&ended);
        pair.close(reason == EndReason::Finished, &self.registry);
        self.door.resume();
    }
}
