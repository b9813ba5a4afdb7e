//! Plays schedules against the loop itself: one thread, no socket, a clock that stands until it is
//! moved.
//!
//! A simulated [network](network) decides by dice whatever a schedule leaves open. Its
//! [streams](wire) judge each call that the loop makes; whenever the loop rests, it is judged what
//! has become of everything.

mod event_queue;
mod host;
mod network;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Poll, Token};

use self::event_queue::EventQueue;
use self::host::{BUSY_RETRY, Host, LIMITS, SHORTAGE_PAUSE};
use self::network::{Connect, Dial, Network, Socket};
use self::wire::{SimulatedListener, SimulatedPipes, Witness, World};
use super::steps::{Action, Change, Happening, Schedule, Setting, Step};
use super::tally::tally;
use crate::control::{Control, Update};
use crate::error::Error;
use crate::event_loop::{BYTES_PER_DIRECTION, Batch, Completeness, Config, EventLoop, token};
use crate::net::{Address, Readiness, SocketOptions};
use crate::pool::{Ejection, PickSettings, Pool};
use crate::random::Random;
use crate::relay::Pipes;
use crate::stats::Stats;
use crate::sync::Waker;

/// How often steady readers are looked after.
const STEADY_STEP: Duration = Duration::from_secs(2);

/// What must have happened in a run of schedules.
#[cfg(test)]
pub(crate) const HAPPENS: [&str; 8] = [
    "backends left to earlier clients",
    "busy backends",
    "bytes in a kernel, delivered by a plain close",
    "bytes in a kernel, discarded by a reset",
    "ends delivered after an error",
    "full batches",
    "interrupted polls",
    "jumps of time between reading events and the clock",
];

/// What must have happened in a run of schedules with bursts.
#[cfg(test)]
pub(crate) const BURSTS: [&str; 6] = [
    "bursts of closes",
    "bursts of ends",
    "bursts of events about nothing",
    "bursts of messages",
    "bursts of resets",
    "bursts of slow readers",
];

/// Plays a schedule, and panics if the balancer breaks a promise.
pub(crate) fn play(schedule: &Schedule) {
    let mut player = Player::new(schedule.setting);
    for step in &schedule.steps {
        player.take(step);
    }
    player.finish();
}

/// The loop, with the world around it.
struct Player {
    world: World,
    setting: Setting,
    event_loop: EventLoop,
    control: Control,
    /// When the loop wants its next turn.
    next: Option<Instant>,
    has_commands: bool,
    queue: EventQueue,
    /// A drain that the loop has not been told of yet.
    drain_asked: Option<Duration>,
    /// Tokens of events that were told, of pairs that may be gone by now.
    stale: VecDeque<Token>,
    /// The updates that were given since the last turn.
    given: Vec<Update>,
    /// Those that are waited for: those of one turn together.
    waiting: VecDeque<Vec<Update>>,
    _poll: Poll,
}

impl Player {
    fn new(setting: Setting) -> Self {
        let now = Instant::now();
        let world = World::new(Network::new(setting, now), Host::default());
        let poll = Poll::new().unwrap();
        let (sender, receiver) =
            crate::mailbox::channel(Arc::new(Waker::new(poll.registry(), token::MAILBOX).unwrap()));
        let config = Config {
            limits: LIMITS,
            max_connections: setting.max_connections,
            buffer_size: setting.buffer_size,
            socket_options: SocketOptions::default(),
            splice: true,
        };
        let ejection = Ejection { failures: setting.ejecting_failures, ..Ejection::default() };
        let pick = PickSettings { policy: setting.policy, ejection, ..PickSettings::default() };
        let event_loop = EventLoop::new(
            config,
            poll.registry().try_clone().unwrap(),
            Box::new(SimulatedListener(world.clone())),
            receiver,
            Pool::new(pick, Random::new(0)),
            Box::new(Witness(world.clone())),
        );
        let mut event_loop = event_loop.unwrap();
        event_loop.simulate_pipes(Pipes::new(Some(Box::new(SimulatedPipes(world.clone())))));
        Self {
            event_loop,
            control: Control::new(
                sender,
                Address::Other("listener".into()),
                crate::mailbox::oneshot::Sender::new().receiver(),
            ),
            next: Some(now),
            world,
            setting,
            has_commands: false,
            queue: EventQueue::default(),
            drain_asked: None,
            stale: VecDeque::new(),
            given: Vec::new(),
            waiting: VecDeque::new(),
            _poll: poll,
        }
    }

    fn take(&mut self, step: &Step) {
        self.world.lock().0.dice = Random::new(step.seed);
        match &step.action {
            Action::Arrive(count) => (0..*count).for_each(|_| self.world.lock().0.arrive()),
            Action::Update(changes) => self.update(changes),
            Action::Pass { time, late } => self.pass(*time, *late),
            Action::RunShort(calls) => self.world.lock().0.short_of = *calls,
            Action::Happen { peer, what } => self.world.lock().0.happen(*peer, *what),
            Action::HappenToAll { spared, what } => {
                self.world.lock().0.happen_to_all(*spared, *what);
            }
            Action::Drain(limit) => self.drain(*limit),
            Action::Shutdown => self.shut_down(),
            Action::Turn => self.turn(false),
            Action::Storm(turns) => self.storm(*turns),
            Action::Settle => self.settle(),
        }
    }

    fn update(&mut self, changes: &[Change]) {
        if self.event_loop.is_over() {
            return; // hosts learn of it when the loop is dropped
        }
        for change in changes {
            let set =
                wire::backends(&self.world, change, self.setting.calls_in.then_some(&self.control));
            let update = match change.limit {
                Some(limit) => self.control.update_draining(set, limit),
                None => self.control.update(set),
            };
            self.given.push(update.unwrap());
        }
        self.world.lock().1.submitted.extend(changes.iter().cloned());
        self.has_commands = true;
    }

    fn drain(&mut self, limit: Duration) {
        self.control.drain(limit).unwrap();
        let asked = &mut self.drain_asked;
        *asked = Some(asked.map_or(limit, |earlier| earlier.min(limit)));
        self.has_commands = true;
    }

    fn shut_down(&mut self) {
        self.control.shutdown().unwrap();
        self.world.lock().1.is_shut_down = true;
        self.has_commands = true;
    }

    /// Time passes, with a turn whenever the loop has asked for one, and later when it was busy
    /// elsewhere. Peers may act before it comes.
    fn pass(&mut self, time: Duration, late: Duration) {
        self.settle();
        let end = self.world.lock().0.now + time;
        loop {
            let now = self.world.lock().0.now;
            let due = self.next.filter(|next| *next <= end).map(|next| next + late);
            let step = if self.setting.steady { now + STEADY_STEP } else { end };
            let Some(to) = due.into_iter().chain((step < end).then_some(step)).min() else { break };
            if self.setting.jumps && self.world.lock().0.one_in(4) {
                self.act_unnoticed();
            }
            self.world.lock().0.advance(to);
            self.settle();
        }
        self.world.lock().0.advance(end);
    }

    /// A peer does something just before time passes, of which the loop has not read yet.
    fn act_unnoticed(&mut self) {
        let network = &mut self.world.lock().0;
        let peer = network.throw(64) as usize;
        network.happen(peer, Happening::Send(1));
    }

    /// Turns with batches that are full: each source has another event as soon as it was read.
    fn storm(&mut self, turns: usize) {
        for _ in 0..turns {
            let sockets: Vec<_> = self.world.lock().0.registered().collect();
            for _ in 0..self.setting.batch.min(8) {
                let network = &mut self.world.lock().0;
                if !sockets.is_empty() {
                    let socket = sockets[network.throw(sockets.len() as u64) as usize];
                    network.sockets[socket].event.readable = true;
                }
            }
            self.turn(true);
            let network = &mut self.world.lock().0;
            let millis = network.throw(100);
            network.advance(network.now + Duration::from_millis(millis));
        }
    }

    /// A turn with all the events that fit into a batch, or with some.
    fn turn(&mut self, all: bool) {
        if self.event_loop.is_over() {
            return;
        }
        let (poll_began, completeness, events) = self.poll(all);
        let (now, is_updated) = {
            let world = &mut *self.world.lock();
            let is_complete = completeness == Completeness::Complete;
            world.0.complete_until = is_complete.then_some(poll_began);
            if self.setting.jumps && world.0.one_in(40) {
                tally("jumps of time between reading events and the clock");
                let secs = world.0.throw(100);
                world.0.advance(world.0.now + Duration::from_secs(secs));
            }
            (world.0.now, !world.1.submitted.is_empty())
        };
        if is_updated {
            self.waiting.push_back(std::mem::take(&mut self.given));
        }
        if let Some(limit) = self.drain_asked.take() {
            let until = &mut self.world.lock().1.drain_until;
            *until = Some(until.map_or(now + limit, |earlier| earlier.min(now + limit)));
        }
        let batch = Batch { events: events.into_iter(), poll_began, completeness };
        self.has_commands = false; // it looks whenever it wakes
        self.next = self.event_loop.turn(batch, now).filter(|_| !self.event_loop.is_over());
        self.judge_turn();
        self.begin_turn();
    }

    /// Takes the events that the loop is going to be told of: at times twice, at times after their
    /// time.
    fn poll(&mut self, all: bool) -> (Instant, Completeness, Vec<(Token, Readiness)>) {
        let network = &mut self.world.lock().0;
        let began = network.now;
        if self.setting.interrupts && network.one_in(6) {
            tally("interrupted polls");
            return (began, Completeness::Interrupted, Vec::new());
        }
        let some = if all { usize::MAX } else { 1 + network.throw(4) as usize };
        let (mut events, is_full) = self.queue.poll(network, self.setting.batch.min(some));
        self.stale.extend(events.iter().map(|(token, _)| *token));
        while self.stale.len() > 100 {
            self.stale.pop_front();
        }
        if is_full {
            tally("full batches");
            return (began, Completeness::Full, events);
        }
        for event in events.clone() {
            if network.one_in(10) {
                events.push(event);
            }
        }
        for index in (1..events.len()).rev() {
            events.swap(index, network.throw(index as u64 + 1) as usize);
        }
        if !self.stale.is_empty() && network.one_in(3) {
            let stale = self.stale[network.throw(self.stale.len() as u64) as usize];
            let event = Readiness { read_closed: true, error: true, ..Readiness::READ_WRITE };
            events.push((stale, event));
        }
        if self.has_commands && network.one_in(2) {
            events.push((token::MAILBOX, Readiness::default()));
        }
        (began, Completeness::Complete, events)
    }

    /// What was submitted in the course of the last turn is due in the next.
    fn begin_turn(&mut self) {
        let mut world = self.world.lock();
        let (network, host) = &mut *world;
        if !host.submitted_meanwhile.is_empty() && !self.event_loop.is_over() {
            host.submitted.append(&mut host.submitted_meanwhile);
            self.has_commands = true;
        }
        for socket in &mut network.sockets {
            (socket.moved_in_turn, socket.was_read_in_turn) = (0, false);
        }
    }

    /// Turns as long as there is anything to do.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.event_loop.is_over() {
                return;
            }
            if !self.is_busy() {
                return self.judge_rest();
            }
            self.turn(true);
        }
        panic!("the loop never rests");
    }

    fn is_busy(&self) -> bool {
        let network = &self.world.lock().0;
        let has_event = |socket: usize| network.sockets[socket].event != Readiness::default();
        self.next.is_some_and(|next| next <= network.now)
            || self.has_commands
            || network.backlog_event
            || network.registered().any(has_event)
    }
}

impl Player {
    /// What holds after every turn.
    fn judge_turn(&mut self) {
        let mut world = self.world.lock();
        let (network, host) = &mut *world;
        host.enforce(network);
        assert!(!host.is_shut_down || host.is_closed_to_clients, "clients are let in");
        judge_counters(&self.event_loop.stats(network.now), network, host);
        for socket in network.live() {
            let Socket { dial: Some(dial), connect, .. } = network.sockets[socket] else {
                continue;
            };
            let drains = connect == Connect::Known && host.draining.contains_key(dial.target);
            assert!(host.is_named(dial.target) || drains, "still open though its target has left");
        }
        if !self.event_loop.is_over() {
            network.judge_work();
        }
        for socket in &network.sockets {
            // A failure of one of the sides, or both, may each have the pair driven once more.
            let is_broken =
                socket.is_broken || socket.partner.is_some_and(|to| network.sockets[to].is_broken);
            let most =
                (BYTES_PER_DIRECTION + self.setting.buffer_size) * if is_broken { 3 } else { 1 };
            assert!(socket.moved_in_turn <= most, "more than a fair share");
        }
    }

    /// What holds when there is no event and nothing due: nothing is left to do, and nobody was
    /// forgotten.
    fn judge_rest(&mut self) {
        let mut world = self.world.lock();
        let (network, host) = &mut *world;
        let now = network.now;
        let lacks_something = network.paused_until.is_some_and(|until| until > now);
        let is_pausing =
            lacks_something && self.next.is_some_and(|next| next <= now + SHORTAGE_PAUSE);
        assert!(host.drain_until.is_none_or(|until| until > now), "it does not end");
        assert!(host.drain_until.is_none() || host.is_closed_to_clients, "clients are let in");
        if host.drain_until.is_none() && !network.backlog.is_empty() {
            let is_full = network.live_clients() >= self.setting.max_connections;
            assert!(is_full || is_pausing, "clients are forgotten");
        }
        assert!(network.registered().eq(network.live()), "ended, and not closed");
        assert!(!host.has_unreported(), "applied, and not reported");
        for socket in network.live() {
            let is_retried = self.next.is_some_and(|next| next <= now + BUSY_RETRY);
            judge_rest_of(socket, network, host, is_pausing, is_retried);
        }
        let reports = &mut host.reports;
        assert_eq!(self.waiting.len(), reports.len());
        for (updates, report) in self.waiting.drain(..).zip(reports.drain(..)) {
            assert!(
                updates.iter().all(
                    |update| matches!(update.try_wait(), Ok(Some(applied)) if applied == report)
                )
            );
        }
    }

    /// Ends the balancer in one way or another.
    fn finish(mut self) {
        let (throw, limit, opens_up) = {
            let network = &mut self.world.lock().0;
            (network.throw(4), Duration::from_secs(network.throw(30)), network.one_in(2))
        };
        if opens_up {
            self.world.lock().0.open_up();
            self.settle();
        }
        match throw {
            _ if self.event_loop.is_over() => {}
            0 => {
                self.drain(limit);
                self.settle();
                self.pass(limit, Duration::ZERO);
                self.settle();
                assert!(self.event_loop.is_over(), "it does not end");
            }
            1 => self.world.lock().1.is_abandoned = true,
            _ => {
                self.shut_down();
                self.turn(false);
                assert!(self.event_loop.is_over(), "it does not end");
            }
        }
        let Self { event_loop, world, control, given, waiting, .. } = self;
        drop(event_loop);
        let world = world.lock();
        let (network, host) = &*world;
        assert!(host.is_abandoned || host.accepted == host.ended.len() as u64);
        for (index, socket) in network.sockets.iter().enumerate() {
            assert!(socket.is_dropped || network.backlog.contains(&index), "not closed");
        }
        for updates in waiting.into_iter().chain([given]) {
            assert!(
                updates.iter().all(|update| !matches!(update.try_wait(), Ok(None))),
                "nobody will answer"
            );
        }
        assert!(matches!(control.stats(), Err(Error::Stopped)));
        assert!(control.shutdown().is_ok() && control.drain(limit).is_ok());
    }
}

/// The counters add up, and are what was told.
fn judge_counters(stats: &Stats, network: &Network, host: &Host) {
    assert_eq!(
        stats.accepted,
        stats.refused.total() + stats.ended.total() + stats.dialling + stats.open
    );
    assert_eq!(
        (stats.accepted, stats.refused.total() + stats.ended.total()),
        (host.accepted, host.ended.len() as u64)
    );
    assert_eq!(stats.dialling + stats.open, network.live_clients() as u64);
    assert_eq!(stats.open, network.connected().count() as u64);
    assert_eq!(stats.refused.iter().collect::<BTreeMap<_, _>>(), host.refusals);
    assert_eq!(stats.ended.iter().collect::<BTreeMap<_, _>>(), host.ends);
    let mut sum = stats.departed;
    assert_eq!(sum, host.departed);
    for backend in &stats.backends {
        sum += backend.usage;
        assert_eq!(backend.usage, host.usage.get(&*backend.key).copied().unwrap_or_default());
        let is_dialling = |(client, dial): &(&Socket, Dial)| {
            let is_its = dial.key == &*backend.key && client.presence == host.presence(dial.key);
            is_its && !network.is_connected(client)
        };
        let dialling = network.assigned().filter(is_dialling).count() as u64;
        assert_eq!(backend.dialling, dialling, "dialling {}", backend.key);
        assert_eq!(backend.weight, host.weights[&*backend.key]);
    }
    assert_eq!(
        (stats.open, stats.bytes_up, stats.bytes_down),
        (sum.open, sum.bytes_up, sum.bytes_down)
    );
    assert!(
        stats
            .backends
            .iter()
            .map(|backend| (&*backend.key, &*backend.target_name))
            .eq(host.set.iter().map(|(key, target)| (*key, *target)))
    );
}

/// What holds for the socket of a pair when there is nothing to do.
fn judge_rest_of(
    socket: usize,
    network: &Network,
    host: &Host,
    is_pausing: bool,
    is_retried: bool,
) {
    let (socket, now) = (&network.sockets[socket], network.now);
    match (socket.dial, socket.connect) {
        (Some(_), Connect::Pending) => assert!(socket.began + LIMITS.connect_timeout > now),
        (Some(_), Connect::Up | Connect::Refused) => panic!("not asked whether it is connected"),
        // What ended before its side failed is still delivered.
        _ => assert!(!socket.is_broken || is_delivering(socket, network), "a reset is not noticed"),
    }
    let is_connected = socket.partner.is_some_and(|partner| {
        [socket.connect, network.sockets[partner].connect] == [Connect::Known; 2]
            && network.is_live(partner)
    });
    if !is_connected {
        assert!(socket.dial.is_some() || socket.began + LIMITS.dial_limit > now);
        assert!(socket.dial.is_some() || !socket.has_left, "a client who has left is not noticed");
        let is_dialled = socket.partner.is_some_and(|partner| network.is_live(partner));
        assert!(
            is_dialled
                || (socket.lacks_descriptor && is_pausing)
                || (network.setting.busy && is_retried),
            "nobody dials for a client"
        );
        return;
    }
    let Some(partner) = socket.partner else { return };
    let to = &network.sockets[partner];
    let active_at = socket.active_at.max(to.active_at);
    assert!(LIMITS.idle_timeout.is_some_and(|limit| active_at + limit > now));
    assert!(!socket.end_was_read || active_at + LIMITS.half_closed_timeout > now);
    if let Some(until) = socket.dial.and_then(|dial| host.draining.get(dial.target)) {
        assert!(*until > now);
    }
    if !to.is_blocked && !to.is_broken && !socket.is_broken {
        assert_eq!(to.taken, to.preface + socket.sent, "bytes are held back");
        assert!(to.is_flushed && socket.has_ended == to.is_shut, "an end is held back");
    }
    assert!(!(socket.is_shut && to.is_shut), "over, and still open");
}

/// Whether a side's stream has ended, and the other side does not take the rest of it for now.
fn is_delivering(side: &Socket, network: &Network) -> bool {
    let other = side.partner.map(|partner| &network.sockets[partner]);
    side.end_was_read && other.is_some_and(|to| to.is_blocked && !to.is_broken && !to.is_shut)
}
