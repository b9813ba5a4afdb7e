//! Plays schedules over real sockets: a [`Server`] on a thread of its own between TCP clients and
//! backends.
//!
//! Time is not moved here, and calls cannot be judged one by one. What is judged is what the peers
//! see: after each step only what they may see, and whenever all has come to rest, all that they
//! must.

mod peer;

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use self::peer::{End, Peer};
use super::steps::{Action, Change, Dice, Happening, Schedule, Setting, TARGETS};
use crate::backend::{Backend, BackendSet, Dial, DialRequest, TcpBackend};
use crate::control::Control;
use crate::error::Error;
use crate::net::{Address, IntoListener, Listener, SocketOptions, Stream};
use crate::observer::{Client, Ended, Observer};
use crate::pool::Ejection;
use crate::random::Random;
use crate::server::{Server, ServerThread};
use crate::stats::{Applied, EndReason};

/// How long anything may take that has to happen. Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// A backend that does not answer is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(50);
/// So many clients at a time are enough.
const MOST_CLIENTS: usize = 24;

/// Plays a schedule, and panics if the balancer breaks a promise.
pub(crate) fn play(schedule: &Schedule) {
    let mut player = Player::new(schedule);
    for step in &schedule.steps {
        *player.world.dice.lock().unwrap_or_else(PoisonError::into_inner) = Random::new(step.seed);
        player.take(&step.action);
        if player.is_over {
            break;
        }
    }
    player.finish();
}

/// What the balancer's thread needs of the world around it.
#[derive(Clone)]
struct World {
    dice: Arc<Mutex<Random>>,
    /// How many of the next accepts and dials find no descriptor.
    short_of: Arc<AtomicUsize>,
    addrs: Arc<Addrs>,
}

struct Addrs {
    targets: [SocketAddr; TARGETS.len()],
    /// Where nobody listens, and where nobody answers.
    refusing: SocketAddr,
    hanging: SocketAddr,
}

impl World {
    fn take_descriptor(&self) -> io::Result<()> {
        const EMFILE: i32 = 24;
        let one_less = |calls: usize| calls.checked_sub(1);
        match self.short_of.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Err(io::Error::from_raw_os_error(EMFILE)),
            Err(_) => Ok(()),
        }
    }

    fn throw(&self, sides: u64) -> u64 {
        Dice::throw(&mut *self.dice.lock().unwrap_or_else(PoisonError::into_inner), sides)
    }
}

/// A backend that is up, refuses or does not answer as the dice will, and is told who the client
/// is.
struct FaultyBackend {
    world: World,
    target: &'static str,
}

impl Backend for FaultyBackend {
    fn target_name(&self) -> String {
        self.target.to_owned()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        self.world.take_descriptor()?;
        let addrs = &self.world.addrs;
        let addr = match self.world.throw(24) {
            0 => return Err(ErrorKind::ConnectionRefused.into()),
            1 | 2 => addrs.refusing,
            3 => addrs.hanging,
            _ => {
                TARGETS
                    .iter()
                    .zip(addrs.targets)
                    .find(|(target, _)| **target == self.target)
                    .unwrap()
                    .1
            }
        };
        Ok(TcpBackend::new(addr)
            .dial(request)?
            .with_preface(format!("{}\n", request.client_addr())))
    }
}

/// A TCP listener that runs short of descriptors.
struct FaultyListener {
    listener: Box<dyn Listener>,
    world: World,
}

impl Listener for FaultyListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        self.world.take_descriptor()?;
        self.listener.accept()
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.listener.local_addr()
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        self.listener.set_options(options)
    }
}

impl Source for FaultyListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        registry.register(&mut *self.listener, token, interests)
    }
    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        registry.reregister(&mut *self.listener, token, interests)
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut *self.listener)
    }
}

/// What the observer tells the player.
enum Told {
    Accepted { client: String },
    Ended { client: String, target: Option<String>, reason: EndReason },
    Updated(Applied),
}

struct Witness(mpsc::Sender<Told>);

impl Observer for Witness {
    fn accepted(&mut self, client: &Client<'_>) {
        let _ = self.0.send(Told::Accepted { client: client.addr.to_string() });
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let target = ended.backend.map(|backend| backend.target_name.to_owned());
        let _ = self.0.send(Told::Ended {
            client: ended.client.addr.to_string(),
            target,
            reason: ended.reason,
        });
    }

    fn updated(&mut self, applied: &Applied) {
        let _ = self.0.send(Told::Updated(*applied));
    }
}

/// A client, with the backend's end of its pair once that is known.
struct Couple {
    client: Peer,
    addr: String,
    backend: Option<(Peer, &'static str)>,
    is_accepted: bool,
    /// What the balancer has told of its end.
    ended: Option<EndReason>,
}

/// The balancer, with its peers.
struct Player {
    world: World,
    setting: Setting,
    listeners: Vec<(&'static str, TcpListener)>,
    control: Control,
    thread: ServerThread,
    told: mpsc::Receiver<Told>,
    couples: Vec<Couple>,
    /// Connections of backends that do not know their client yet.
    strangers: Vec<(Peer, &'static str)>,
    /// How many peers there have been.
    peers: usize,
    /// Every update so far.
    changes: Vec<Change>,
    /// One was told to be applied.
    is_updated: bool,
    /// How many pairs were told to be removed since the last report of an update.
    removed: usize,
    accepted: u64,
    ended: u64,
    is_drained: bool,
    is_over: bool,
    _hanging: (socket2::Socket, Vec<TcpStream>),
    _refusing: socket2::Socket,
}

impl Player {
    fn new(schedule: &Schedule) -> Self {
        let listeners = TARGETS.map(|target| (target, listener()));
        let (refusing, hanging) = (bound(), hanging());
        let world = World {
            dice: Arc::new(Mutex::new(Random::new(0))),
            short_of: Arc::default(),
            addrs: Arc::new(Addrs {
                targets: listeners.each_ref().map(|(_, listener)| listener.local_addr().unwrap()),
                refusing: addr_of(&refusing),
                hanging: addr_of(&hanging.0),
            }),
        };
        let door =
            FaultyListener { listener: listener().into_listener().unwrap(), world: world.clone() };
        let (sender, told) = mpsc::channel();
        let failures = schedule.setting.ejecting_failures;
        let server = Server::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .dial_limit(10 * PATIENCE)
            .half_closed_timeout(10 * PATIENCE)
            .max_connections(schedule.setting.max_connections)
            .buffer_size(schedule.setting.buffer_size)
            .ejection(Ejection { failures, base: CONNECT_TIMEOUT, max: 2 * CONNECT_TIMEOUT })
            .observer(Witness(sender))
            .build(door)
            .unwrap();
        let thread = server.spawn().unwrap();
        Self {
            world,
            setting: schedule.setting,
            listeners: listeners.into(),
            control: thread.control(),
            thread,
            told,
            couples: Vec::new(),
            strangers: Vec::new(),
            peers: 0,
            changes: Vec::new(),
            is_updated: false,
            removed: 0,
            accepted: 0,
            ended: 0,
            is_drained: false,
            is_over: false,
            _hanging: hanging,
            _refusing: refusing,
        }
    }

    fn take(&mut self, action: &Action) {
        match action {
            Action::Arrive(count) => (0..*count).for_each(|_| self.arrive()),
            Action::Update(changes) => self.update(changes),
            Action::RunShort(calls) => self.world.short_of.store(*calls, Ordering::SeqCst),
            Action::Happen { peer, what } => self.happen(*peer, *what),
            Action::Drain(limit) => self.drain(*limit),
            Action::Shutdown => self.shut_down(),
            Action::Turn | Action::Storm(_) => drop(self.go_on()),
            Action::Pass { .. } | Action::Settle => self.settle(),
        }
    }

    fn arrive(&mut self) {
        if self.couples.len() >= MOST_CLIENTS {
            return;
        }
        let Some(addr) = self.control.local_addr().ip() else { return };
        match TcpStream::connect_timeout(&addr, PATIENCE) {
            Ok(stream) => {
                let addr = stream.local_addr().unwrap().to_string();
                let client = Peer::client(self.peers, stream);
                self.peers += 1;
                self.couples.push(Couple {
                    client,
                    addr,
                    backend: None,
                    is_accepted: false,
                    ended: None,
                });
            }
            // It was accepted and refused at once, so that what is told of it concerns nobody.
            Err(err) => assert_eq!(err.kind(), ErrorKind::ConnectionReset),
        }
    }

    fn update(&mut self, changes: &[Change]) {
        let mut updates = Vec::new();
        for Change { names, weights, limit } in changes {
            let mut set = BackendSet::new();
            for (key, target) in names {
                let backend = FaultyBackend { world: self.world.clone(), target };
                set.insert_weighted(*key, backend, weights[key]);
            }
            let limit = limit.map(scaled);
            let update = match limit {
                Some(limit) => self.control.update_draining(set, limit),
                None => self.control.update(set),
            };
            updates.push(update.unwrap());
        }
        let concerned = self.couples.iter().map(|couple| couple.client.id).collect::<Vec<_>>();
        self.changes.extend(changes.iter().cloned());
        for update in updates {
            update.wait_timeout(PATIENCE).unwrap().expect("an update is not applied");
        }
        self.listen();
        // From here on nothing is left of what the updates removed.
        for couple in self.couples.iter().filter(|couple| concerned.contains(&couple.client.id)) {
            let Some((_, target)) = couple.backend else { continue };
            let is_removed = changes.iter().any(|change| change.closes(target));
            assert!(!is_removed || couple.ended.is_some(), "applied, and still open");
        }
    }

    /// One of those peers does something that have a pair.
    fn happen(&mut self, peer: usize, what: Happening) {
        let most = self.setting.most();
        let what = match what {
            Happening::Send(bytes) => Happening::Send(bytes.min(most)),
            what => what,
        };
        let backends = self.couples.iter_mut().flat_map(|couple| {
            let backend = couple.backend.as_mut().map(|(backend, _)| backend);
            [Some(&mut couple.client), backend].into_iter().flatten()
        });
        let mut peers: Vec<_> = backends.collect();
        if !peers.is_empty() {
            let index = peer % peers.len();
            peers[index].act(what);
        }
    }

    fn drain(&mut self, limit: Duration) {
        self.control.drain(scaled(limit)).unwrap();
        (self.is_drained, self.is_over) = (true, true);
    }

    fn shut_down(&mut self) {
        self.control.shutdown().unwrap();
        self.is_over = true;
    }

    /// All peers do what they can. Whether that was anything.
    fn go_on(&mut self) -> bool {
        let mut has_moved = self.listen();
        for (target, listener) in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                self.strangers.push((Peer::backend(self.peers, stream), target));
                self.peers += 1;
                has_moved = true;
            }
        }
        for (mut stranger, target) in std::mem::take(&mut self.strangers) {
            has_moved |= stranger.go_on(None);
            match stranger.preface() {
                Some(addr) => {
                    let is_its =
                        |couple: &&mut Couple| couple.addr == addr && couple.backend.is_none();
                    // A client that has been given up has none.
                    if let Some(couple) = self.couples.iter_mut().find(is_its) {
                        couple.backend = Some((stranger, target));
                    }
                }
                None if stranger.end.is_none() => self.strangers.push((stranger, target)),
                None => {} // a dial that came to nothing
            }
        }
        for Couple { client, backend, .. } in &mut self.couples {
            has_moved |= client.go_on(backend.as_ref().map(|(backend, _)| backend.id));
            if let Some((backend, _)) = backend {
                has_moved |= backend.go_on(Some(client.id));
            }
        }
        has_moved
    }

    /// Takes up what the observer tells. Whether that was anything.
    fn listen(&mut self) -> bool {
        let mut has_heard = false;
        while let Ok(told) = self.told.try_recv() {
            has_heard = true;
            match told {
                Told::Accepted { client } => {
                    self.accepted += 1;
                    let is_it = |couple: &&mut Couple| couple.addr == client && !couple.is_accepted;
                    if let Some(couple) = self.couples.iter_mut().find(is_it) {
                        couple.is_accepted = true;
                    }
                }
                Told::Ended { client, target, reason } => {
                    self.judge_end(&client, target.as_deref(), reason)
                }
                Told::Updated(applied) => {
                    self.is_updated = true;
                    assert_eq!(applied.closed, std::mem::take(&mut self.removed));
                }
            }
        }
        has_heard
    }

    fn judge_end(&mut self, client: &str, target: Option<&str>, reason: EndReason) {
        self.ended += 1;
        self.removed += usize::from(reason == EndReason::TargetRemoved);
        let is_it = |couple: &&mut Couple| {
            couple.addr == client && couple.is_accepted && couple.ended.is_none()
        };
        let Some(couple) = self.couples.iter_mut().find(is_it) else { return };
        couple.ended = Some(reason);
        let backend = couple.backend.as_ref().map(|(backend, _)| backend);
        let has_ended = |peer: &Peer| peer.has_ended || peer.has_left;
        let fits = match reason {
            EndReason::Finished => has_ended(&couple.client) && backend.is_none_or(has_ended),
            EndReason::ClientFailed => couple.client.has_left,
            EndReason::BackendFailed => backend.is_none_or(|backend| backend.has_left),
            EndReason::TargetRemoved => {
                target.is_some_and(|target| self.changes.iter().any(|c| c.closes(target)))
            }
            EndReason::DrainLimit => {
                self.is_drained || self.changes.iter().any(|change| change.limit.is_some())
            }
            EndReason::Shutdown => self.is_over,
            EndReason::NoBackend => {
                let is_none_open = |change: &Change| !TARGETS.iter().any(|t| change.is_open(t));
                !self.is_updated || self.changes.iter().any(is_none_open)
            }
            // Any dial may fail, by dice.
            EndReason::BackendsFailed => self.changes.iter().any(|change| !change.names.is_empty()),
            EndReason::IdleTimeout
            | EndReason::HalfClosedTimeout
            | EndReason::DialLimit
            | EndReason::LocalFailure => false,
        };
        assert!(fits, "not a case of {reason:?}");
    }

    /// Goes on until all has happened that must.
    fn settle(&mut self) {
        self.wait_until(Self::is_at_rest);
        self.couples.retain(|couple| !couple.is_over());
        let stats = self.control.stats().unwrap().wait().unwrap();
        assert_eq!(
            stats.accepted,
            stats.refused.total() + stats.ended.total() + stats.dialling + stats.open
        );
    }

    #[track_caller]
    fn wait_until(&mut self, is_so: impl Fn(&Self) -> Result<(), String>) {
        let start = Instant::now();
        loop {
            let has_moved = self.go_on();
            match is_so(self) {
                Ok(()) => return,
                Err(missing) => {
                    assert!(start.elapsed() < PATIENCE, "never came to pass: {missing}")
                }
            }
            if !has_moved {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Whether nothing is left to happen, or what is.
    fn is_at_rest(&self) -> Result<(), String> {
        let open = self
            .couples
            .iter()
            .filter(|couple| couple.is_accepted && couple.ended.is_none())
            .count();
        let is_full = open >= self.setting.max_connections;
        for couple in &self.couples {
            couple.is_at_rest(is_full).map_err(|missing| format!("{} {missing}", couple.addr))?;
        }
        Ok(())
    }

    /// Ends the balancer, if it has not been by now, and sees everything closed.
    fn finish(mut self) {
        match self.world.throw(2) {
            _ if self.is_over => {}
            0 => self.drain(Duration::from_secs(5)),
            _ => self.shut_down(),
        }
        self.wait_until(|player| match player.control.stats() {
            Err(Error::Stopped) => Ok(()),
            _ => Err("the end of the balancer".to_owned()),
        });
        for Couple { client, backend, .. } in &mut self.couples {
            let backend = backend.as_mut().map(|(backend, _)| backend);
            [Some(client), backend]
                .into_iter()
                .flatten()
                .for_each(|peer| peer.act(Happening::Read(0)));
        }
        self.wait_until(|player| {
            let is_closed =
                |couple: &&Couple| couple.client.has_left || couple.client.end.is_some();
            player
                .couples
                .iter()
                .find(|couple| !is_closed(couple))
                .map_or(Ok(()), |couple| Err(couple.addr.clone()))
        });
        self.listen();
        for couple in self.couples.iter().filter(|couple| couple.ended.is_some()) {
            couple.judge();
        }
        let summary = self.thread.join().unwrap();
        let ended = summary.refused.total() + summary.ended.total();
        assert_eq!([self.accepted, self.ended, ended], [summary.accepted; 3]);
    }
}

impl Couple {
    /// Whether nothing is left to happen to it, or what is.
    fn is_at_rest(&self, is_full: bool) -> Result<(), &'static str> {
        let sees_end = |peer: &Peer| peer.has_left || peer.end.is_some();
        if !self.is_accepted {
            return if is_full { Ok(()) } else { Err("is not accepted") };
        }
        let Some((backend, _)) = &self.backend else {
            return match self.ended {
                Some(_) if sees_end(&self.client) => Ok(()),
                Some(_) => Err("is not told that it is refused"),
                None => Err("has no backend"),
            };
        };
        if self.ended.is_some() {
            let may_read = |peer: &Peer| peer.has_left || peer.is_reading();
            return match sees_end(&self.client) && sees_end(backend) {
                false if may_read(&self.client) && may_read(backend) => {
                    Err("has ended, and its peers do not see it")
                }
                _ => Ok(()),
            };
        }
        arrives(&self.client, backend)?;
        arrives(backend, &self.client)?;
        let is_finished = [&self.client, backend].iter().all(|peer| peer.end.is_some());
        if is_finished { Err("is over, and not ended") } else { Ok(()) }
    }

    /// Whether it is over for both of its peers.
    fn is_over(&self) -> bool {
        if self.ended.is_some() {
            self.judge();
        }
        self.ended.is_some()
    }

    /// How it came to its end is how it looks to its peers.
    fn judge(&self) {
        if cfg!(not(feature = "socket2")) {
            return; // a cut is a plain close there
        }
        match &self.backend {
            Some((backend, _)) => {
                judge_end_of(&self.client, backend, self.ended);
                judge_end_of(backend, &self.client, self.ended);
            }
            None => assert!(
                self.client.end != Some(End::Clean) || self.ended == Some(EndReason::Finished)
            ),
        }
    }
}

/// What one peer has sent has come to the other, if that reads.
fn arrives(from: &Peer, to: &Peer) -> Result<(), &'static str> {
    if !to.is_reading() {
        return Ok(());
    }
    match to.end {
        _ if !from.has_sent_all() => Err("does not take what is sent"),
        _ if from.has_left && to.end.is_none() => Err("does not pass on that its peer has left"),
        None if to.received < from.sent => Err("holds bytes back"),
        None if from.has_ended => Err("holds an end back"),
        _ => Ok(()),
    }
}

/// Only what has come in full has a clean end.
fn judge_end_of(to: &Peer, from: &Peer, reason: Option<EndReason>) {
    assert!(to.received <= from.sent);
    if to.end == Some(End::Clean) {
        assert!(
            from.has_ended || from.has_left,
            "{reason:?}: an end that nobody sent, of {from:?} to {to:?}"
        );
        assert_eq!(
            to.received, from.sent,
            "{reason:?}: a cut that looks like an end, of {from:?} to {to:?}"
        );
    }
    let looks_cut = to.end == Some(End::Reset) && reason == Some(EndReason::Finished);
    assert!(!looks_cut, "an end that looks like a cut, of {from:?} to {to:?}");
}

/// Times of schedules are shorter here.
fn scaled(limit: Duration) -> Duration {
    limit / 50
}

fn bound() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket
}

fn addr_of(socket: &socket2::Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

fn listener() -> TcpListener {
    let socket = bound();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// A listener that answers nobody: its backlog is full.
fn hanging() -> (socket2::Socket, Vec<TcpStream>) {
    let socket = bound();
    socket.listen(0).unwrap();
    let addr = addr_of(&socket);
    let fill =
        std::iter::from_fn(|| TcpStream::connect_timeout(&addr, Duration::from_millis(100)).ok())
            .collect();
    (socket, fill)
}
