//! Random schedules: whatever happens, in whatever order, the loop keeps its promises.
//!
//! A simulated network, of which every step is thrown by dice, plays clients, backends and the host. It judges each call
//! that the loop makes, and whenever the loop rests, what has become of everything. A failure tells its seed, with which
//! `one_schedule` plays it again.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use mio::{Interest, Poll, Waker};

use super::super::*;
use crate::backend::{Backend, BackendSet, Dial, DialRequest};
use crate::control::Control;
use crate::net::{Address, Stream};
use crate::observe::{Applied, Client};
use crate::rotation::{Ejection, Random};

const SCHEDULES: u64 = 2000;
const TARGETS: [&str; 4] = ["t0", "t1", "t2", "t3"];
const KEYS: [&str; 4] = ["k0", "k1", "k2", "k3"];
const MAX_CONNECTIONS: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
const LIMITS: Limits = Limits {
    connect_timeout: Duration::from_secs(5),
    dial_limit: Duration::from_secs(12),
    idle_timeout: Some(Duration::from_secs(90)),
    half_closed_timeout: Duration::from_secs(20),
};

#[test]
fn the_promises_hold_in_every_schedule() {
    for seed in 0..SCHEDULES {
        let played = std::panic::catch_unwind(|| one_schedule(seed));
        assert!(played.is_ok(), "broken by the schedule of seed {seed}");
    }
}

/// Plays a schedule: a life of the balancer from its first update to its end.
fn one_schedule(seed: u64) {
    let mut rig = Rig::new(seed);
    let steps = 20 + rig.net.lock().throw(150);
    for _ in 0..steps {
        rig.step();
    }
    rig.finish();
}

const CYCLE: usize = 65_521;
const LARGEST: usize = 3 << 20;

/// What the peer of a socket sends, from a position on: each socket's bytes begin at another place of one cycle.
fn bytes_of(socket: usize, position: usize, len: usize) -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut dice = Random::new(7);
        let cycle: Vec<u8> = (0..CYCLE).map(|_| dice.next() as u8).collect();
        cycle.into_iter().cycle().take(CYCLE + LARGEST).collect()
    });
    let start = (socket * 7919 + position) % CYCLE;
    &BYTES[start..start + len]
}

/// The simulated network and what the host asked for, shared by all that takes part in it.
#[derive(Clone)]
struct Net(Arc<Mutex<World>>);

impl Net {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct World {
    dice: Random,
    now: Instant,
    sockets: Vec<Socket>,
    /// The clients that nobody has accepted yet.
    backlog: VecDeque<usize>,
    /// The listener's event, and whether the loop has been told that nobody waits, so that the next client makes one.
    backlog_event: bool,
    /// How many of the next calls that need a descriptor fail.
    short_of: usize,
    set: BTreeMap<&'static str, &'static str>,
    /// The updates since the last that was applied: each with its limit if it drains.
    submitted: Vec<(BTreeMap<&'static str, &'static str>, Option<Duration>)>,
    draining: BTreeMap<&'static str, Instant>,
    drain_until: Option<Instant>,
    is_shut_down: bool,
    accepted: u64,
    ended: HashSet<u64>,
    removed: usize,
    applied: Option<Applied>,
    moved: [u64; 2],
}

/// A socket of the balancer's, with its peer.
struct Socket {
    /// The target of a backend; `None` for a client.
    target: Option<&'static str>,
    /// The other socket of the pair: a client's is that of the last dial made for it.
    partner: Option<usize>,
    began: Instant,
    connect: Connect,
    tried: BTreeSet<(&'static str, &'static str, u32)>,
    /// What the peer has sent, and how much of it was read.
    sent: usize,
    read: usize,
    mark: Option<usize>,
    has_ended: bool,
    end_was_read: bool,
    is_reset: bool,
    error: Option<ErrorKind>,
    /// What it is sent first, and how much it has taken, of the preface too.
    preface: usize,
    taken: usize,
    room: usize,
    is_flushed: bool,
    /// How often a flush or an end of the write side will block.
    stubborn: u64,
    is_blocked: bool,
    is_shut: bool,
    /// When a byte moved last, or the first of the streams ended.
    active_at: Instant,
    short_reads_drain: bool,
    translates: bool,
    /// Whether to drop it takes it off the event queue, and ends its stream.
    drop_closes: bool,
    token: Option<Token>,
    /// What an event is going to tell.
    event: Readiness,
    is_aborted: bool,
    is_dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connect {
    Pending,
    Up,
    Refused,
    /// The loop knows that it is connected.
    Known,
}

impl World {
    fn throw(&mut self, sides: u64) -> u64 {
        self.dice.next() % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.throw(sides) == 0
    }

    /// Mostly small, at times large.
    fn some_bytes(&mut self) -> usize {
        match self.throw(60) {
            0 => self.throw(LARGEST as u64 / 2) as usize + 1,
            1..10 => self.throw(40_000) as usize + 1,
            _ => self.throw(300) as usize + 1,
        }
    }

    fn socket(&mut self, target: Option<&'static str>, partner: Option<usize>, connect: Connect) -> usize {
        let room = if self.one_in(3) { self.some_bytes() } else { usize::MAX };
        let socket = Socket {
            target,
            partner,
            began: self.now,
            connect,
            tried: BTreeSet::new(),
            sent: 0,
            read: 0,
            mark: None,
            has_ended: false,
            end_was_read: false,
            is_reset: false,
            error: None,
            preface: 0,
            taken: 0,
            room,
            is_flushed: true,
            stubborn: if self.one_in(3) { self.throw(3) } else { 0 },
            is_blocked: false,
            is_shut: false,
            active_at: self.now,
            short_reads_drain: self.one_in(2),
            translates: self.one_in(4),
            drop_closes: self.one_in(2),
            token: None,
            event: Readiness::default(),
            is_aborted: false,
            is_dropped: false,
        };
        self.sockets.push(socket);
        self.sockets.len() - 1
    }

    /// The set in force in the turn that is being made, in which all that was submitted comes first.
    fn next_set(&self) -> &BTreeMap<&'static str, &'static str> {
        self.submitted.last().map_or(&self.set, |(set, _)| set)
    }

    fn is_named(&self, target: &str) -> bool {
        self.next_set().values().any(|named| *named == target)
    }

    fn is_live(&self, socket: usize) -> bool {
        self.sockets[socket].token.is_some()
    }

    /// Whether its peer reads all that there was, and then the end, if it is dropped now.
    fn is_ended_by_now(&self, socket: usize) -> bool {
        let socket = &self.sockets[socket];
        let is_last = |partner: usize| {
            let partner = &self.sockets[partner];
            let is_delivered = socket.is_flushed && socket.taken == socket.preface + partner.sent;
            partner.end_was_read && socket.end_was_read && is_delivered
        };
        socket.is_shut || (socket.drop_closes && socket.partner.is_some_and(is_last))
    }

    fn live(&self) -> Vec<usize> {
        (0..self.sockets.len()).filter(|&socket| self.is_live(socket)).collect()
    }

    /// A backend's socket that is connected, with its client's.
    fn connected(&self) -> Vec<(usize, usize)> {
        let pair = |socket: usize| {
            let Socket { target: Some(_), connect: Connect::Known, partner: Some(client), .. } = self.sockets[socket]
            else {
                return None;
            };
            Some((client, socket))
        };
        self.live().into_iter().filter_map(pair).collect()
    }

    /// Notes the updates that were submitted as applied.
    fn apply(&mut self) {
        for (set, limit) in std::mem::take(&mut self.submitted) {
            let open = self.connected().into_iter().map(|(_, backend)| self.sockets[backend].target.unwrap());
            for target in open.collect::<BTreeSet<_>>() {
                match limit {
                    _ if set.values().any(|named| *named == target) => drop(self.draining.remove(target)),
                    None => drop(self.draining.remove(target)),
                    Some(limit) => {
                        let until = self.now + limit;
                        let earliest = self.draining.get(target).map_or(until, |earlier| until.min(*earlier));
                        self.draining.insert(target, earliest);
                    }
                }
            }
            self.set = set;
        }
        let open: BTreeSet<_> =
            self.connected().into_iter().map(|(_, backend)| self.sockets[backend].target.unwrap()).collect();
        self.draining.retain(|target, _| open.contains(target));
    }
}

/// A stream of the simulated network.
struct Wire(Net, usize);

impl Wire {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock()
    }

    /// The loop moves bytes here: it may only when both sockets are connected.
    fn assert_connected(world: &World, socket: usize) -> usize {
        let partner = world.sockets[socket].partner.expect("bytes are moved of a client without a backend");
        let backend = if world.sockets[socket].target.is_some() { socket } else { partner };
        let target = world.sockets[backend].target.unwrap();
        assert_eq!(world.sockets[backend].connect, Connect::Known, "bytes are moved before the connect");
        assert!(world.is_named(target) || world.draining.contains_key(target) || !world.submitted.is_empty());
        partner
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut world = self.lock();
        Self::assert_connected(&world, self.1);
        let is_cautious = world.sockets[self.1].short_reads_drain || !world.one_in(4);
        let some = world.some_bytes();
        let now = world.now;
        let socket = &mut world.sockets[self.1];
        let available = socket.mark.unwrap_or(socket.sent) - socket.read;
        if available == 0 && socket.mark.is_none() {
            if let Some(error) = socket.error.take() {
                return Err(error.into());
            }
            if socket.is_reset {
                return Ok(0); // as the kernel does once the error was taken
            }
            if socket.has_ended {
                let is_first = !socket.end_was_read;
                socket.end_was_read = true;
                let partner = socket.partner.unwrap();
                if is_first && !world.sockets[partner].end_was_read {
                    world.sockets[self.1].active_at = now;
                }
                return Ok(0);
            }
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut len = available.min(room.len());
        if !is_cautious {
            len = len.min(some);
        }
        if socket.mark.is_some() && len == available {
            socket.mark = None; // a read stops here, and the next one goes on
            if len == 0 {
                len = (socket.sent - socket.read).min(room.len());
            }
        }
        room[..len].copy_from_slice(bytes_of(self.1, socket.read, len));
        socket.read += len;
        Ok(len)
    }
}

impl Wire {
    /// What stands in the way of any output.
    fn obstacle(socket: &mut Socket) -> Option<io::Error> {
        socket.is_reset.then(|| socket.error.take().unwrap_or(ErrorKind::BrokenPipe).into())
    }

    fn grumble(socket: &mut Socket) -> Option<io::Error> {
        if socket.stubborn == 0 {
            return None;
        }
        socket.stubborn -= 1;
        socket.is_blocked = true;
        Some(ErrorKind::WouldBlock.into())
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.lock();
        if bytes.is_empty() {
            return Self::obstacle(&mut world.sockets[self.1]).map_or(Ok(0), Err);
        }
        let partner = Self::assert_connected(&world, self.1);
        let some = if world.one_in(4) { world.some_bytes() } else { usize::MAX };
        let (now, read) = (world.now, world.sockets[partner].read);
        let socket = &mut world.sockets[self.1];
        assert!(!socket.is_shut, "written to after its end");
        if let Some(err) = Self::obstacle(socket) {
            return Err(err);
        }
        if socket.room == 0 {
            socket.is_blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut len = bytes.len().min(socket.room).min(some);
        if socket.taken < socket.preface {
            len = len.min(socket.preface - socket.taken);
            assert!(bytes[..len].iter().all(|byte| *byte == b'P'), "no preface");
        } else {
            let position = socket.taken - socket.preface;
            assert!(position + len <= read, "more than was read");
            assert!(bytes[..len] == *bytes_of(partner, position, len), "other bytes than were sent");
        }
        socket.taken += len;
        socket.room -= len;
        socket.is_flushed = false;
        socket.active_at = now;
        let is_up = socket.target.is_some();
        world.moved[usize::from(!is_up)] += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut world = self.lock();
        let socket = &mut world.sockets[self.1];
        if let Some(err) = Self::obstacle(socket).or_else(|| Self::grumble(socket)) {
            return Err(err);
        }
        socket.is_flushed = true;
        Ok(())
    }
}

impl Stream for Wire {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let mut world = self.lock();
        let partner = Self::assert_connected(&world, self.1);
        assert!(world.sockets[partner].end_was_read, "an end that nobody sent");
        let sent = world.sockets[partner].sent;
        let socket = &mut world.sockets[self.1];
        assert_eq!(socket.taken, socket.preface + sent, "ended before all is delivered");
        assert!(socket.is_flushed && !socket.is_shut);
        if let Some(err) = Self::obstacle(socket).or_else(|| Self::grumble(socket)) {
            return Err(err);
        }
        socket.is_shut = true;
        Ok(())
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        let mut world = self.lock();
        let now = world.now;
        let socket = &mut world.sockets[self.1];
        match socket.connect {
            Connect::Pending => Ok(false),
            Connect::Refused => Err(ErrorKind::ConnectionRefused.into()),
            Connect::Up if socket.is_reset => Err(ErrorKind::ConnectionReset.into()),
            Connect::Up => {
                socket.connect = Connect::Known;
                socket.active_at = now;
                Ok(true)
            }
            Connect::Known => panic!("asked again"),
        }
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Ok(self.lock().sockets[self.1].error.take().map(Into::into))
    }

    fn abort(&mut self) {
        self.lock().sockets[self.1].is_aborted = true;
    }

    fn short_read_means_drained(&self) -> bool {
        self.lock().sockets[self.1].short_reads_drain
    }

    fn translate(&self, event: Readiness) -> Readiness {
        match self.lock().sockets[self.1].translates {
            true => Readiness { readable: true, writable: true, ..event },
            false => event,
        }
    }

    fn drop_closes(&self) -> bool {
        self.lock().sockets[self.1].drop_closes
    }
}

impl mio::event::Source for Wire {
    fn register(&mut self, _: &Registry, token: Token, _: Interest) -> io::Result<()> {
        let mut world = self.lock();
        take_descriptor(&mut world)?;
        let socket = &mut world.sockets[self.1];
        assert!(!socket.is_dropped && socket.token.replace(token).is_none(), "registered twice");
        // What there is by now is an event.
        socket.event.readable |= socket.sent > 0 || socket.has_ended || socket.is_reset;
        socket.event.read_closed |= socket.has_ended || socket.is_reset;
        socket.event.write_closed |= socket.is_reset;
        socket.event.error |= socket.is_reset || socket.connect == Connect::Refused;
        socket.event.writable |= socket.connect != Connect::Pending;
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("streams are registered once")
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        self.lock().sockets[self.1].token = None;
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut world = self.lock();
        let is_ended = world.is_ended_by_now(self.1);
        let socket = &mut world.sockets[self.1];
        assert!(!std::mem::replace(&mut socket.is_dropped, true));
        if socket.drop_closes {
            socket.token = None;
        }
        assert!(std::thread::panicking() || socket.token.is_none(), "dropped before it was deregistered");
        if !socket.is_aborted {
            assert!(socket.end_was_read && is_ended, "a cut that looks like an end");
        }
    }
}

fn take_descriptor(world: &mut World) -> io::Result<()> {
    if world.short_of > 0 {
        world.short_of -= 1;
        return Err(io::Error::from_raw_os_error(24));
    }
    Ok(())
}

struct Door(Net);

impl Listener for Door {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let mut world = self.0.lock();
        assert!(world.live_clients() < MAX_CONNECTIONS, "too many");
        if world.backlog.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        take_descriptor(&mut world)?;
        if world.one_in(20) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let client = world.backlog.pop_front().unwrap();
        world.sockets[client].began = world.now;
        Ok((Box::new(Wire(self.0.clone(), client)), Address::Other(client.to_string().into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Other("listener".into()))
    }
}

impl mio::event::Source for Door {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }
    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("the listener is registered once")
    }
    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

/// A backend that is up, hangs or refuses as the dice will.
struct Node {
    net: Net,
    key: &'static str,
    target: &'static str,
}

fn client_of(addr: &Address) -> usize {
    addr.to_string().parse().expect("not one of ours")
}

impl Backend for Node {
    fn target_name(&self) -> String {
        self.target.to_owned()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let mut world = self.net.lock();
        let client = client_of(request.client_addr());
        assert!(world.is_live(client) && world.is_named(self.target), "nobody wants it");
        assert!(request.attempt() < self.attempts());
        take_descriptor(&mut world)?;
        let is_new = world.sockets[client].tried.insert((self.key, self.target, request.attempt()));
        assert!(is_new, "tried again");
        let connect = match world.throw(10) {
            0 => return Err(ErrorKind::ConnectionRefused.into()),
            1 => Connect::Refused,
            2..5 => Connect::Pending,
            _ => Connect::Up,
        };
        let socket = world.socket(Some(self.target), Some(client), connect);
        world.sockets[client].partner = Some(socket);
        let preface = if world.one_in(5) { world.throw(50) as usize } else { 0 };
        world.sockets[socket].preface = preface;
        drop(world);
        Ok(Dial::new(Wire(self.net.clone(), socket)).with_preface(vec![b'P'; preface]))
    }

    fn attempts(&self) -> u32 {
        if self.target == TARGETS[0] { 2 } else { 1 }
    }
}

struct Eye(Net);

impl Observer for Eye {
    fn accepted(&mut self, client: &Client<'_>) {
        let mut world = self.0.lock();
        assert_eq!(client.id, world.accepted);
        world.accepted += 1;
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let mut world = self.0.lock();
        assert!(world.ended.insert(ended.client.id), "ended twice");
        let now = world.now;
        let client = &world.sockets[client_of(ended.client.addr)];
        let backend = client.partner.map(|backend| &world.sockets[backend]);
        let target = ended.backend.map(|(_, target)| target);
        let active_at = client.active_at.max(backend.map_or(client.active_at, |backend| backend.active_at));
        let is_over = |limit: Option<&Instant>| limit.is_some_and(|limit| *limit <= now);
        let fits = match ended.reason {
            EndReason::Finished => client.partner.is_some_and(|backend| {
                [client_of(ended.client.addr), backend].iter().all(|&socket| world.is_ended_by_now(socket))
            }),
            EndReason::ClientFailed => client.is_reset,
            EndReason::BackendFailed => backend.is_some_and(|backend| backend.is_reset),
            EndReason::TargetRemoved => {
                let lacks = |set: &BTreeMap<_, _>| set.values().all(|named| Some(*named) != target);
                world.submitted.iter().any(|(set, limit)| limit.is_none() && lacks(set))
            }
            EndReason::DrainLimit => {
                is_over(target.and_then(|target| world.draining.get(target))) || is_over(world.drain_until.as_ref())
            }
            EndReason::IdleTimeout => active_at + LIMITS.idle_timeout.unwrap() <= now,
            EndReason::HalfClosedTimeout => active_at + LIMITS.half_closed_timeout <= now,
            EndReason::Shutdown => world.is_shut_down,
            EndReason::NoBackend => world.next_set().is_empty(),
            EndReason::BackendsFailed => {
                let has_tried =
                    |(key, target): (&&'static str, &&'static str)| client.tried.contains(&(*key, *target, 0));
                !world.next_set().is_empty() && world.next_set().iter().all(has_tried)
            }
            EndReason::DialLimit => client.began + LIMITS.dial_limit <= now,
            EndReason::LocalFailure => client.token.is_none(),
        };
        assert!(fits, "not a case of {:?}", ended.reason);
        world.removed += usize::from(ended.reason == EndReason::TargetRemoved);
    }

    fn updated(&mut self, applied: &Applied) {
        let mut world = self.0.lock();
        world.apply();
        assert_eq!(applied.closed, std::mem::take(&mut world.removed));
        assert_eq!(applied.backends, world.set.len());
        let drains =
            |(_, backend): &(usize, usize)| world.draining.contains_key(world.sockets[*backend].target.unwrap());
        assert_eq!(applied.draining, world.connected().iter().filter(|pair| drains(pair)).count());
        world.applied = Some(*applied);
    }
}

impl World {
    fn live_clients(&self) -> usize {
        self.sockets.iter().filter(|socket| socket.target.is_none() && socket.token.is_some()).count()
    }
}

/// The loop, its host, and the network around it.
struct Rig {
    net: Net,
    event_loop: EventLoop,
    control: Control,
    /// When the loop wants its next turn.
    next: Option<Instant>,
    has_commands: bool,
    stale: Vec<Token>,
    _poll: Poll,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let net = Net(Arc::new(Mutex::new(World {
            dice: Random::new(seed),
            now,
            sockets: Vec::new(),
            backlog: VecDeque::new(),
            backlog_event: false,
            short_of: 0,
            set: BTreeMap::new(),
            submitted: Vec::new(),
            draining: BTreeMap::new(),
            drain_until: None,
            is_shut_down: false,
            accepted: 0,
            ended: HashSet::new(),
            removed: 0,
            applied: None,
            moved: [0; 2],
        })));
        let poll = Poll::new().unwrap();
        let (sender, receiver) = command::channel(Arc::new(Waker::new(poll.registry(), token::COMMANDS).unwrap()));
        let config = Config {
            limits: LIMITS,
            max_connections: MAX_CONNECTIONS,
            buffer_size: 64 * 1024,
            socket_options: SocketOptions::default(),
        };
        let event_loop = EventLoop::new(
            config,
            poll.registry().try_clone().unwrap(),
            Box::new(Door(net.clone())),
            receiver,
            Rotation::new(Ejection::default(), false, Random::new(seed)),
            Box::new(Eye(net.clone())),
        );
        Self {
            event_loop: event_loop.unwrap(),
            control: Control::new(sender, Address::Other("listener".into())),
            next: Some(now),
            net,
            has_commands: false,
            stale: Vec::new(),
            _poll: poll,
        }
    }

    /// Something happens, of which the loop may learn at once or later.
    fn step(&mut self) {
        let throw = self.net.lock().throw(40);
        match throw {
            0..5 => self.arrive(),
            5..8 => self.update(),
            8..10 => self.pass(),
            10 => self.net.lock().short_of = 2,
            _ => self.happen(),
        }
        let throw = self.net.lock().throw(10);
        match throw {
            0..2 => {}
            2..6 => self.turn(),
            _ => self.settle(),
        }
    }

    fn arrive(&mut self) {
        let mut world = self.net.lock();
        let client = world.socket(None, None, Connect::Known);
        world.backlog.push_back(client);
        world.backlog_event = true;
    }

    fn update(&mut self) {
        let more = self.net.lock().throw(3);
        for _ in 0..=more {
            let mut world = self.net.lock();
            let mut set = BTreeMap::new();
            for key in KEYS {
                if !world.one_in(3) {
                    set.insert(key, TARGETS[world.throw(4) as usize]);
                }
            }
            if world.one_in(3) {
                set = world.next_set().clone(); // nothing changes, but what is missing on the way
            }
            let limit = world.one_in(2).then(|| SECOND * (1 + world.throw(20) as u32));
            world.submitted.push((set.clone(), limit));
            drop(world);
            let node = |(key, target)| (key, Node { net: self.net.clone(), key, target });
            let set: BackendSet = set.into_iter().map(node).collect();
            let _ = match limit {
                Some(limit) => self.control.update_draining(set, limit),
                None => self.control.update(set),
            }
            .unwrap();
            self.has_commands = true;
        }
    }

    /// Something happens at one of the sockets.
    fn happen(&mut self) {
        let mut world = self.net.lock();
        let live = world.live();
        if live.is_empty() {
            return;
        }
        let socket = live[world.throw(live.len() as u64) as usize];
        let (throw, bytes) = (world.throw(40), world.some_bytes());
        let socket = &mut world.sockets[socket];
        if socket.connect == Connect::Pending {
            match throw {
                0..15 => socket.connect = Connect::Up,
                15..20 => {
                    socket.connect = Connect::Refused;
                    socket.event.error = true;
                }
                20 => {} // a false alarm
                _ => return,
            }
            socket.event.writable = true;
            return;
        }
        if socket.connect == Connect::Refused || socket.is_reset {
            return;
        }
        match throw {
            0..14 if !socket.has_ended => {
                socket.sent += bytes;
                socket.event.readable = true;
            }
            14..16 if !socket.has_ended => {
                socket.mark = Some(socket.sent);
                socket.sent += 1;
                (socket.event.readable, socket.event.priority) = (true, true);
            }
            16..24 => {
                socket.has_ended = true;
                (socket.event.readable, socket.event.read_closed) = (true, true);
            }
            24 => {
                (socket.is_reset, socket.error) = (true, Some(ErrorKind::ConnectionReset));
                let all = Readiness { read_closed: true, write_closed: true, ..Readiness::READ_WRITE };
                socket.event = Readiness { error: true, ..all };
            }
            25 => socket.room = 0,
            26 => socket.stubborn += 1,
            27..36 => {
                socket.room = socket.room.saturating_add(bytes);
                if std::mem::take(&mut socket.is_blocked) {
                    socket.event.writable = true;
                }
            }
            36 => (socket.event.readable, socket.event.writable) = (true, true), // spurious
            _ => {}
        }
    }

    /// Time passes, with a turn whenever the loop has asked for one, and later when it was busy elsewhere.
    fn pass(&mut self) {
        self.settle();
        let (time, late) = {
            let mut world = self.net.lock();
            let longest = if world.one_in(3) { 60_000 } else { 4_000 };
            (Duration::from_millis(world.throw(longest)), Duration::from_millis(world.throw(2) * world.throw(50)))
        };
        let end = self.net.lock().now + time;
        while let Some(next) = self.next.filter(|next| *next <= end) {
            self.net.lock().now = next + late;
            self.settle();
        }
        let mut world = self.net.lock();
        world.now = world.now.max(end);
    }

    /// A turn with some of the events that there are, or all.
    fn turn_with(&mut self, all: bool) {
        if self.event_loop.is_over() {
            return;
        }
        let events = {
            let mut world = self.net.lock();
            let mut events = Vec::new();
            for socket in world.live() {
                if world.sockets[socket].event != Readiness::default() && (all || world.one_in(2)) {
                    let event = std::mem::take(&mut world.sockets[socket].event);
                    let token = world.sockets[socket].token.unwrap();
                    events.insert(world.throw(events.len() as u64 + 1) as usize, (token, event));
                    if world.one_in(10) {
                        events.push((token, event));
                    }
                    self.stale.push(token);
                }
            }
            if world.backlog_event && (all || world.one_in(2)) {
                world.backlog_event = false;
                events.push((token::LISTENER, Readiness { readable: true, ..Readiness::default() }));
            }
            if !self.stale.is_empty() && world.one_in(3) {
                let stale = self.stale[world.throw(self.stale.len() as u64) as usize];
                events.push((stale, Readiness { read_closed: true, error: true, ..Readiness::READ_WRITE }));
            }
            if std::mem::take(&mut self.has_commands) && world.one_in(2) {
                events.push((token::COMMANDS, Readiness::default()));
            }
            events
        };
        let now = self.net.lock().now;
        self.next = self.event_loop.turn(events.into_iter(), now).filter(|_| !self.event_loop.is_over());
        self.judge_turn();
    }

    fn turn(&mut self) {
        self.turn_with(false);
    }

    /// Turns as long as there is anything to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let is_busy = {
                let world = self.net.lock();
                let has_event = |socket: &usize| world.sockets[*socket].event != Readiness::default();
                self.next.is_some_and(|next| next <= world.now)
                    || self.has_commands
                    || world.backlog_event
                    || world.live().iter().any(has_event)
            };
            if !is_busy || self.event_loop.is_over() {
                return self.judge_rest();
            }
            self.turn_with(true);
        }
        panic!("the loop never rests");
    }

    /// What holds after every turn.
    fn judge_turn(&mut self) {
        let world = self.net.lock();
        assert!(world.submitted.is_empty(), "an update waits for another turn");
        let stats = self.event_loop.stats(world.now);
        assert_eq!(stats.accepted, stats.refused.total() + stats.ended.total() + stats.dialling + stats.open);
        assert_eq!(
            (stats.accepted, world.ended.len() as u64),
            (world.accepted, stats.refused.total() + stats.ended.total())
        );
        assert_eq!(stats.dialling + stats.open, world.live_clients() as u64);
        assert_eq!(stats.open, world.connected().len() as u64);
        assert_eq!([stats.bytes_up, stats.bytes_down], world.moved);
        let usages = || stats.backends.iter().map(|backend| backend.usage).chain([stats.departed]);
        assert_eq!(stats.open, usages().map(|usage| usage.open).sum());
        assert_eq!(stats.bytes_up, usages().map(|usage| usage.bytes_up).sum());
        assert_eq!(stats.bytes_down, usages().map(|usage| usage.bytes_down).sum());
        for socket in world.live() {
            let Socket { target: Some(target), connect, .. } = world.sockets[socket] else { continue };
            let drains = connect == Connect::Known && world.draining.contains_key(target);
            assert!(world.is_named(target) || drains, "still open though its target has left");
        }
    }

    /// What holds when there is no event and nothing due: nothing is left to do, and nobody was forgotten.
    fn judge_rest(&self) {
        let world = self.net.lock();
        let now = world.now;
        let is_serving = !self.event_loop.is_over() && world.drain_until.is_none();
        if is_serving && !world.backlog.is_empty() && world.live_clients() < MAX_CONNECTIONS {
            assert!(self.next.is_some(), "clients are forgotten");
        }
        for socket in world.live().into_iter().map(|socket| &world.sockets[socket]) {
            match (socket.target, socket.connect) {
                (Some(_), Connect::Pending) => assert!(socket.began + LIMITS.connect_timeout > now),
                (Some(_), Connect::Up | Connect::Refused) => panic!("not asked whether it is connected"),
                _ => assert!(!socket.is_reset, "a reset is not noticed"),
            }
            let is_connected = socket.partner.is_some_and(|partner| {
                [socket.connect, world.sockets[partner].connect] == [Connect::Known; 2] && world.is_live(partner)
            });
            if !is_connected {
                assert!(socket.target.is_some() || socket.began + LIMITS.dial_limit > now);
                continue;
            }
            let to = &world.sockets[socket.partner.unwrap()];
            let active_at = socket.active_at.max(to.active_at);
            assert!(active_at + LIMITS.idle_timeout.unwrap() > now);
            assert!(!socket.end_was_read || active_at + LIMITS.half_closed_timeout > now);
            if let Some(until) = socket.target.and_then(|target| world.draining.get(target)) {
                assert!(*until > now);
            }
            if !to.is_blocked {
                assert_eq!(to.taken, to.preface + socket.sent, "bytes are held back");
                assert!(to.is_flushed && socket.has_ended == to.is_shut, "an end is held back");
            }
            assert!(!(socket.is_shut && to.is_shut), "over, and still open");
        }
    }

    /// Ends the balancer in one way or another.
    fn finish(mut self) {
        let (throw, limit) = {
            let mut world = self.net.lock();
            (world.throw(2), SECOND * world.throw(30) as u32)
        };
        if throw == 0 {
            self.control.drain(limit).unwrap();
            let now = self.net.lock().now;
            self.net.lock().drain_until = Some(now + limit);
            self.has_commands = true;
            for _ in 0..20 {
                self.step();
            }
        }
        if !self.event_loop.is_over() {
            let throw = self.net.lock().throw(2);
            if throw == 0 || self.net.lock().drain_until.is_none() {
                self.net.lock().is_shut_down = true;
                self.control.shutdown().unwrap();
                self.has_commands = true;
                self.turn();
            } else {
                self.net.lock().now += limit;
                self.settle();
            }
        }
        assert!(self.event_loop.is_over(), "it does not end");
        let world = self.net.lock();
        assert_eq!(world.accepted, world.ended.len() as u64);
        for (index, socket) in world.sockets.iter().enumerate() {
            assert!(socket.is_dropped || world.backlog.contains(&index), "not closed");
            assert_eq!(socket.token, None);
        }
    }
}
