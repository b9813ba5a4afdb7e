//! Building a balancer, and running it on the caller's thread or one of its own.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::backend::BackendSet;
use crate::control::Control;
use crate::error::Error;
use crate::event_loop::{Config, EventLoop, Limits, token};
use crate::log::{info, warn};
use crate::mailbox;
use crate::net::{Address, IntoListener, Keepalive, Readiness, SocketOptions};
use crate::observer::{Observer, Unobserved};
use crate::pool::rotation::{Ejection, Random, Rotation};
use crate::stats::{EndReason, Summary};
use crate::sync::Waker;

/// How many events one turn takes up at most.
const EVENTS_PER_TURN: usize = 1024;
/// The event queue counts milliseconds in 32 bits, so longer waits are cut into pieces.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// A balancer that is ready to run.
///
/// It has its listener, whose backlog takes clients from the start, but accepts nobody until [`run`](Self::run) or
/// [`spawn`](Self::spawn).
pub struct Server {
    event_loop: EventLoop,
    poll: Poll,
    control: Control,
}

impl Server {
    /// Begins to choose settings; [`Builder::build`] makes the server.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A handle to steer the balancer with, before, while and after it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The address listened on, with the real port where port 0 was asked for.
    pub fn local_addr(&self) -> &Address {
        self.control.local_addr()
    }

    /// Runs the balancer on the calling thread until [`Control::shutdown`] or [`Control::drain`] ends it.
    ///
    /// When it returns, all its sockets are closed and nothing of it is left.
    ///
    /// # Errors
    /// [`Error::Poll`] if the system fails to tell of events, for which there is no known cause in production. All
    /// connections are cut then too.
    pub fn run(self) -> Result<Summary, Error> {
        let Self { mut event_loop, mut poll, control } = self;
        info!("listening on {}", control.local_addr());
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        let mut now = Instant::now();
        let mut next = event_loop.turn(std::iter::empty(), now);
        while !event_loop.is_over() {
            let timeout =
                next.map(|at| at.saturating_duration_since(Instant::now()).min(LONGEST_WAIT)); // the turn took time
            match poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::Interrupted => events.clear(),
                Err(err) => {
                    event_loop.stop_now(EndReason::Shutdown, now);
                    return Err(Error::Poll(err));
                }
            }
            now = Instant::now();
            next = event_loop
                .turn(events.iter().map(|event| (event.token(), Readiness::from(event))), now);
        }
        Ok(event_loop.summary(now))
    }

    /// Runs the balancer on a thread of its own, named `tinylb`, that ends with the handle returned.
    ///
    /// # Errors
    /// [`Error::Thread`] if the thread cannot be started.
    pub fn spawn(self) -> Result<ServerThread, Error> {
        let control = self.control();
        let thread = std::thread::Builder::new()
            .name("tinylb".to_owned())
            .spawn(|| self.run())
            .map_err(Error::Thread)?;
        control.note_thread(thread.thread().id());
        Ok(ServerThread { control, thread: Some(thread) })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addr", self.local_addr()).finish_non_exhaustive()
    }
}

/// A balancer that runs on a thread of its own. Dropping it shuts the balancer down and waits for the thread's end.
#[derive(Debug)]
#[must_use = "dropping it shuts the balancer down"]
pub struct ServerThread {
    control: Control,
    thread: Option<JoinHandle<Result<Summary, Error>>>,
}

impl ServerThread {
    /// A handle to steer the balancer with.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The address listened on.
    pub fn local_addr(&self) -> &Address {
        self.control.local_addr()
    }

    /// Waits until the balancer has ended, which somebody has to ask for: [`Control::shutdown`] or
    /// [`Control::drain`].
    ///
    /// # Errors
    /// What [`Server::run`] returned, [`Error::Panicked`] if it panicked, or [`Error::OwnThread`] on the balancer's own
    /// thread, where it does what dropping the handle does.
    pub fn join(mut self) -> Result<Summary, Error> {
        if self.is_own_thread() {
            return Err(Error::OwnThread);
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::Panicked),
            None => Err(Error::Stopped),
        }
    }

    /// Also while the loop is being dropped, with an observer or a backend that owns this.
    fn is_own_thread(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == std::thread::current().id())
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        let is_own_thread = self.is_own_thread();
        let Some(thread) = self.thread.take() else { return };
        if let Err(err) = self.control.shutdown() {
            warn!("{err}, so its thread is left to itself");
            return;
        }
        // On its own thread, in an observer that owns it, it ends after this.
        if !is_own_thread {
            // Its panic, if it had one, has been reported by the panic hook; its error has no one to go to.
            let _ = thread.join();
        }
    }
}

/// The settings of a balancer. What is not set has a default that suits a client-side proxy.
///
/// ```
/// use std::time::Duration;
/// use tinylb::Server;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let server = Server::builder()
///     .connect_timeout(Duration::from_secs(2))
///     .idle_timeout(Some(Duration::from_secs(3600)))
///     .build(listener)?;
/// # Ok(())
/// # }
/// ```
pub struct Builder {
    backends: Option<BackendSet>,
    limits: Limits,
    max_connections: usize,
    buffer_size: usize,
    socket_options: SocketOptions,
    ejection: Ejection,
    random_first_pick: bool,
    seed: Option<u64>,
    observer: Box<dyn Observer>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            backends: None,
            limits: Limits {
                connect_timeout: Duration::from_secs(5),
                dial_limit: Duration::from_secs(15),
                idle_timeout: None,
                half_closed_timeout: Duration::from_secs(60),
            },
            max_connections: usize::MAX,
            buffer_size: 256 * 1024,
            socket_options: SocketOptions::default(),
            ejection: Ejection::default(),
            random_first_pick: false,
            seed: None,
            observer: Box::new(Unobserved),
        }
    }
}

impl Builder {
    /// Sets the backends to begin with, as an update before the start would. Defaults to none, so that clients are
    /// refused until there is an update.
    pub fn backends(mut self, set: BackendSet) -> Self {
        self.backends = Some(set);
        self
    }

    /// Sets how long one attempt to reach a backend may take. Defaults to 5 seconds.
    ///
    /// The next candidate is tried when it runs out; a client waits at most this long times the number of addresses of
    /// all candidates, or [`dial_limit`](Self::dial_limit), whichever is less.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.limits.connect_timeout = limit;
        self
    }

    /// Sets how long all attempts for one client may take together, from its accept. Defaults to 15 seconds.
    ///
    /// The client is refused when it runs out. A client for whom this machine has no descriptor left waits within this
    /// limit too.
    pub fn dial_limit(mut self, limit: Duration) -> Self {
        self.limits.dial_limit = limit;
        self
    }

    /// Sets how long a connection may move no byte either way before it is cut. Defaults to `None`: for ever.
    ///
    /// Peers that vanish are noticed anyway, by [`keepalive`](Self::keepalive).
    pub fn idle_timeout(mut self, limit: Option<Duration>) -> Self {
        self.limits.idle_timeout = limit;
        self
    }

    /// Sets how long a connection of which one side has ended its stream may move no byte before it is cut. Defaults to
    /// 60 seconds; a shorter [`idle_timeout`](Self::idle_timeout) holds for it too.
    pub fn half_closed_timeout(mut self, limit: Duration) -> Self {
        self.limits.half_closed_timeout = limit;
        self
    }

    /// Sets how many clients there may be at a time, those still dialling included, and those whose sockets are still to
    /// be closed. Defaults to no limit but that of descriptors, of which each client takes two.
    ///
    /// Clients beyond it wait in the kernel's backlog. When that is full too, connecting takes them longer and may time
    /// out; `ListenOptions` opens a listener with a generous one.
    pub fn max_connections(mut self, clients: usize) -> Self {
        self.max_connections = clients;
        self
    }

    /// Sets how many bytes one direction of a connection holds at most when its reader is slow. Defaults to 256 KiB;
    /// at most 16 MiB.
    ///
    /// It is also the largest read, and larger reads cost less CPU: for a bulk transfer over loopback 0.58 s per GB
    /// with 16 KiB, 0.39 s with 64 KiB, 0.33 s with 256 KiB and 0.31 s with 512 KiB. One buffer of this size serves all
    /// connections; a connection holds bytes of its own only while its reader does not take them, and that many only if
    /// the reader had kept up for megabytes until then.
    pub fn buffer_size(mut self, bytes: usize) -> Self {
        self.buffer_size = bytes;
        self
    }

    /// Sets whether small writes are sent at once (`TCP_NODELAY`), on both sides. Defaults to `true`.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.socket_options.nodelay = nodelay;
        self
    }

    /// Sets how quiet connections are probed, on both sides. Defaults to that of [`Keepalive`]: a vanished peer is
    /// noticed after two and a half minutes. `None` switches it off. Has no effect without the feature `socket2`.
    pub fn keepalive(mut self, keepalive: Option<Keepalive>) -> Self {
        self.socket_options.keepalive = keepalive;
        self
    }

    /// Sets how long sent bytes may stay unacknowledged before the connection is cut, on both sides. Defaults to
    /// `None`: as long as the system pleases, about 15 minutes.
    ///
    /// Keepalive does not notice a peer that vanishes with bytes on their way to it; this does. It also ends a peer that
    /// refuses to read for that long. From a millisecond to 24 days. Works on Linux and Android, with the feature
    /// `socket2`; elsewhere it has no effect.
    ///
    /// There it also takes the place of [`Keepalive::probes`]: a quiet connection is given up at the first probe that is
    /// due once nothing has arrived for this long and a probe has stayed unanswered, however many that are. To have both
    /// end a connection at about the same time, set it to idle + interval × probes.
    pub fn user_timeout(mut self, limit: Option<Duration>) -> Self {
        self.socket_options.user_timeout = limit;
        self
    }

    /// Sets when a failing backend is passed over, and for how long. See [`Ejection`] for the defaults.
    pub fn ejection(mut self, ejection: Ejection) -> Self {
        self.ejection = ejection;
        self
    }

    /// Sets whether the first client goes to a backend chosen at random. Defaults to `false`: it goes to the first key.
    ///
    /// For a host that runs on many machines at once, all of which would begin with the same backend.
    pub fn random_first_pick(mut self, random: bool) -> Self {
        self.random_first_pick = random;
        self
    }

    /// Sets what all randomness is derived from: the first pick, if asked for, and the jitter of ejections. Defaults to
    /// another number in each run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Installs an observer, to be told what happens as it happens. Defaults to none.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Makes the server, which takes the listener over and sets its options.
    ///
    /// Clients who have been waiting at the listener since before this keep the options that it had. If it fails, the
    /// listener is closed.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that makes no sense (a time, count or size of zero, say), [`Error::Listener`] if the listener cannot be made ready,
    /// [`Error::Setup`] if the system has no event queue to spare.
    pub fn build(self, listener: impl IntoListener) -> Result<Server, Error> {
        self.check()?;
        let mut listener = listener.into_listener().map_err(Error::Listener)?;
        listener.set_options(&self.socket_options).map_err(Error::Listener)?;
        let local_addr = listener.local_addr().map_err(Error::Listener)?;
        let poll = Poll::new().map_err(Error::Setup)?;
        let registry = poll.registry().try_clone().map_err(Error::Setup)?;
        let waker = Waker::new(&registry, token::COMMANDS).map_err(Error::Setup)?;
        let (sender, receiver) = mailbox::channel(Arc::new(waker));
        let control = Control::new(sender, local_addr);
        if let Some(set) = self.backends {
            control.update(set)?;
        }
        let connect_timeout = self.limits.connect_timeout.min(self.limits.dial_limit);
        let config = Config {
            limits: Limits { connect_timeout, ..self.limits },
            max_connections: self.max_connections,
            buffer_size: self.buffer_size,
            socket_options: self.socket_options,
        };
        let seed = self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let rotation = Rotation::new(self.ejection, self.random_first_pick, Random::new(seed));
        let event_loop =
            EventLoop::new(config, registry, listener, receiver, rotation, self.observer)
                .map_err(Error::Listener)?;
        Ok(Server { event_loop, poll, control })
    }

    fn check(&self) -> Result<(), Error> {
        // Linux's limits. The listener's error would not tell which option it is, and a backend would be blamed for it.
        let is_unprobable = |Keepalive { idle, interval, probes }: Keepalive| {
            [idle, interval].iter().any(|time| !(1..=32_767).contains(&time.as_secs()))
                || !(1..=127).contains(&probes)
        };
        let is_unbearable = |limit: Duration| !(1..=i32::MAX as u128).contains(&limit.as_millis());
        let rules = [
            ("connect_timeout", self.limits.connect_timeout.is_zero(), "must not be zero"),
            ("dial_limit", self.limits.dial_limit.is_zero(), "must not be zero"),
            (
                "idle_timeout",
                self.limits.idle_timeout.is_some_and(|limit| limit.is_zero()),
                "must not be zero",
            ),
            ("half_closed_timeout", self.limits.half_closed_timeout.is_zero(), "must not be zero"),
            ("max_connections", self.max_connections == 0, "must not be zero"),
            ("buffer_size", self.buffer_size == 0, "must not be zero"),
            ("buffer_size", self.buffer_size > 16 << 20, "must not be over 16 MiB"),
            (
                "keepalive",
                self.socket_options.keepalive.is_some_and(is_unprobable),
                "needs 1 to 32,767 seconds and 1 to 127 probes",
            ),
            (
                "user_timeout",
                self.socket_options.user_timeout.is_some_and(is_unbearable),
                "must be from a millisecond to 24 days",
            ),
            ("ejection", self.ejection.base.is_zero(), "must begin with more than zero"),
            (
                "ejection",
                self.ejection.max < self.ejection.base,
                "must not end below where it begins",
            ),
        ];
        match rules.into_iter().find(|(_, is_broken, _)| *is_broken) {
            Some((setting, _, problem)) => Err(Error::Setting { setting, problem }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("backends", &self.backends)
            .field("limits", &self.limits)
            .field("max_connections", &self.max_connections)
            .field("buffer_size", &self.buffer_size)
            .field("socket_options", &self.socket_options)
            .field("ejection", &self.ejection)
            .field("random_first_pick", &self.random_first_pick)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_shows_all_that_was_set() {
        let secs = Duration::from_secs;
        let set = BackendSet::from([("key", crate::TcpBackend::new(([127, 0, 0, 1], 80).into()))]);
        let keepalive = Keepalive { idle: secs(101), ..Keepalive::default() };
        let builder = Server::builder()
            .seed(102)
            .backends(set)
            .connect_timeout(secs(103))
            .dial_limit(secs(104))
            .idle_timeout(Some(secs(105)))
            .half_closed_timeout(secs(106))
            .max_connections(107)
            .buffer_size(108)
            .nodelay(false)
            .keepalive(Some(keepalive))
            .user_timeout(Some(secs(109)))
            .ejection(Ejection { failures: 110, ..Ejection::default() })
            .random_first_pick(true)
            .observer(Unobserved);
        let shown = format!("{builder:?}");
        for value in (101..=110).map(|number| number.to_string()) {
            assert!(shown.contains(&value), "{value} is not in {shown}");
        }
        for value in ["key", "127.0.0.1:80", "nodelay: false", "random_first_pick: true"] {
            assert!(shown.contains(value), "{value} is not in {shown}");
        }
    }

    #[test]
    fn servers_and_their_handles_show_where_they_listen_and_what_came_of_updates() {
        let server =
            Server::builder().build(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let (control, addr) = (server.control(), server.local_addr().to_string());
        assert!(format!("{server:?}").contains(&addr) && format!("{control:?}").contains(&addr));
        let update = control.update(BackendSet::new()).unwrap();
        assert_eq!(format!("{update:?}"), "Update(Ok(None))");
        drop(server);
        assert_eq!(format!("{update:?}"), "Update(Err(Stopped))");
    }

    #[test]
    fn c9_1_limits_may_be_as_large_as_they_are_documented_to_be() {
        let build =
            |builder: Builder| builder.build(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let second = Duration::from_secs(1);
        assert!(build(Server::builder().buffer_size(16 << 20)).is_ok());
        assert!(build(Server::builder().buffer_size((16 << 20) + 1)).is_err());
        let steady = Ejection { base: second, max: second, ..Ejection::default() };
        assert!(build(Server::builder().ejection(steady)).is_ok());
        assert!(
            build(Server::builder().ejection(Ejection { base: 2 * second, ..steady })).is_err()
        );
    }

    #[test]
    fn c6_7_options_that_no_socket_takes_are_refused_when_the_server_is_built() {
        let build =
            |builder: Builder| builder.build(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let keepalive = Keepalive { idle: Duration::from_secs(32_768), ..Keepalive::default() };
        for builder in [
            Server::builder().keepalive(Some(keepalive)),
            Server::builder().keepalive(Some(Keepalive { probes: 128, ..Keepalive::default() })),
            Server::builder().user_timeout(Some(Duration::MAX)),
        ] {
            assert!(matches!(build(builder), Err(Error::Setting { .. })));
        }
        let longest = Keepalive {
            idle: Duration::from_secs(32_767),
            interval: Duration::from_secs(32_767),
            probes: 127,
        };
        let user_timeout = Duration::from_millis(i32::MAX as u64);
        assert!(
            build(Server::builder().keepalive(Some(longest)).user_timeout(Some(user_timeout)))
                .is_ok()
        );
    }
}
