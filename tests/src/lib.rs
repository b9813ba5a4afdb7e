//! What the tests share: a balancer that ends with its test, peers, a fake stream, an observer that
//! remembers, and random numbers.
//!
//! Sockets have a time limit that only a failing test reaches ([`PATIENCE`]).

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::new_without_default,
    reason = "only the tests use it"
)]

mod backend;
pub mod fake;
mod peer;
#[cfg(target_os = "linux")]
pub mod process;
mod random;
mod talk;
mod watch;

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tinylb::{Applied, BackendSet, Builder, Control, Server, ServerThread, Stats, TcpBackend};

pub use backend::{BlackHole, ManualBackend, TestBackend, refusing_addr};
pub use peer::{Peer, StreamEnd, assert_aborted, assert_echo, pattern, read_tag, read_to_end};
pub use random::Random;
pub use talk::{Order, Received, Side, Talk, fill};
pub use watch::{End, Moment, OnMoment, Watch};

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A limit that no test reaches.
pub const LONG: Duration = Duration::from_secs(3600);
/// A limit that tests wait for.
pub const SHORT: Duration = Duration::from_millis(200);
/// Whether a TCP stream that is aborted ends in a reset. Otherwise it is closed.
pub const HAS_RESETS: bool = cfg!(feature = "socket2");

/// A balancer on a thread of its own.
pub struct Balancer {
    /// Where it listens, if that is a TCP address.
    pub addr: SocketAddr,
    pub control: Control,
    pub thread: ServerThread,
}

impl Balancer {
    /// Starts a balancer with default settings on a free port.
    #[track_caller]
    pub fn start(backends: BackendSet) -> Self {
        Self::with(Server::builder(), backends)
    }

    #[track_caller]
    pub fn with(builder: Builder, backends: BackendSet) -> Self {
        Self::of(builder.backends(backends).build(listener()).unwrap())
    }

    #[track_caller]
    pub fn of(server: Server) -> Self {
        let addr = server.local_addr().ip().unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        Self { addr, control: server.control(), thread: server.spawn().unwrap() }
    }

    #[track_caller]
    pub fn client(&self) -> TcpStream {
        connect(self.addr)
    }

    /// A new client that a backend has greeted, and the backend's tag.
    #[track_caller]
    pub fn tagged_client(&self) -> (TcpStream, String) {
        let mut client = self.client();
        let tag = read_tag(&mut client);
        (client, tag)
    }

    /// The tags of the backends that serve this many new clients, one after the other.
    #[track_caller]
    pub fn tags(&self, clients: usize) -> String {
        (0..clients).map(|_| self.tagged_client().1).collect()
    }

    /// A new client that waits for a backend that does not answer.
    #[track_caller]
    pub fn dialling_client(&self) -> TcpStream {
        let before = self.stats().dialling;
        let client = self.client();
        self.wait_for("a dial in flight", |stats| stats.dialling == before + 1);
        client
    }

    /// Replaces the set and waits until that is applied.
    #[track_caller]
    pub fn update(&self, backends: BackendSet) -> Applied {
        let update = self.control.update(backends).unwrap();
        update.wait_timeout(PATIENCE).unwrap().expect("the update is not applied")
    }

    /// Replaces the set, lets removed targets finish within the limit, and waits until that is
    /// applied.
    #[track_caller]
    pub fn update_draining(&self, backends: BackendSet, limit: Duration) -> Applied {
        let update = self.control.update_draining(backends, limit).unwrap();
        update.wait_timeout(PATIENCE).unwrap().expect("the update is not applied")
    }

    /// Returns the counters, having checked their sums (C8.1).
    #[track_caller]
    pub fn stats(&self) -> Stats {
        let stats = self.control.stats().unwrap().wait().unwrap();
        assert_adds_up(&stats);
        stats
    }

    /// Waits until the counters are as they should become.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Stats) -> bool) -> Stats {
        wait_for(what, || Some(self.stats()).filter(|stats| is_so(stats)))
    }
}

/// C8.1: what is counted apart adds up to what is counted together.
#[track_caller]
pub fn assert_adds_up(stats: &Stats) {
    let ended = stats.ended.total();
    let mut sum = stats.departed;
    for usage in stats.backends.iter().map(|backend| backend.usage) {
        sum.open += usage.open;
        sum.total += usage.total;
        sum.bytes_up += usage.bytes_up;
        sum.bytes_down += usage.bytes_down;
    }
    let clients = stats.refused.total() + ended + stats.dialling + stats.open;
    let counted =
        [stats.accepted, stats.open, stats.open + ended, stats.bytes_up, stats.bytes_down];
    let sums = [clients, sum.open, sum.total, sum.bytes_up, sum.bytes_down];
    assert_eq!(counted, sums, "C8.1: {stats:?}");
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Does the job on a thread of its own and returns its result, which must come within [`PATIENCE`].
#[track_caller]
pub fn in_time<T: Send + 'static>(what: &str, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(job()));
    result.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// A listener on a free port of the loopback interface.
#[track_caller]
pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// The same with a backlog of this size.
#[track_caller]
pub fn listener_with_backlog(clients: i32) -> TcpListener {
    let socket = bound_socket();
    socket.listen(clients).unwrap();
    socket.into()
}

/// A socket on a free port of the loopback interface that does not listen yet.
#[track_caller]
pub fn bound_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket
}

#[track_caller]
pub fn addr_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// A client whose reads and writes fail rather than hang.
#[track_caller]
pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    set_io_timeouts(&stream);
    stream
}

/// Has reads and writes fail rather than hang.
#[cfg(unix)]
pub fn set_io_timeouts(socket: &impl std::os::fd::AsFd) {
    let socket = socket2::SockRef::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// Gives a socket small kernel buffers, so that a reader that stops is soon felt.
#[cfg(unix)]
pub fn shrink_buffers(socket: &impl std::os::fd::AsFd, bytes: usize) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_send_buffer_size(bytes)?;
    socket.set_recv_buffer_size(bytes)
}

/// Has the peer see a reset.
#[cfg(unix)]
pub fn reset(stream: impl std::os::fd::AsFd) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A set of TCP backends by key and address.
pub fn set<'a>(backends: impl IntoIterator<Item = (&'a str, SocketAddr)>) -> BackendSet {
    backends.into_iter().map(|(key, addr)| (key, TcpBackend::new(addr))).collect()
}

/// A client that comes now is refused, which may be before its connect returns.
#[track_caller]
pub fn assert_refused(addr: SocketAddr) {
    match TcpStream::connect_timeout(&addr, PATIENCE) {
        Ok(mut client) => {
            set_io_timeouts(&client);
            assert_aborted(&mut client);
        }
        Err(err) => assert_eq!(err.kind(), ErrorKind::ConnectionReset),
    }
}

/// Sends at one end and reads at the other.
#[track_caller]
pub fn pass(from: &mut impl Write, to: &mut impl Read, message: &[u8]) {
    from.write_all(message).unwrap();
    let mut received = vec![0; message.len()];
    to.read_exact(&mut received).unwrap();
    assert_eq!(received, message);
}

/// Sends until nothing more is taken for a while, by the peer, the balancer, or any buffer between.
/// Returns what was.
#[track_caller]
pub fn fill_until_blocked(stream: &mut TcpStream) -> Vec<u8> {
    const MOST: usize = 64 << 20;
    stream.set_write_timeout(Some(SHORT)).unwrap();
    let (mut sent, block) = (Vec::new(), pattern(64 * 1024));
    while sent.len() < MOST {
        let from = sent.len() % block.len();
        match stream.write(&block[from..]) {
            Ok(len) => sent.extend_from_slice(&block[from..from + len]),
            Err(err) => {
                assert_eq!(err.kind(), ErrorKind::WouldBlock, "after {} bytes", sent.len());
                set_io_timeouts(stream);
                return sent;
            }
        }
    }
    panic!("nothing holds the sender back");
}

#[track_caller]
pub fn assert_same(received: &[u8], sent: &[u8]) {
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "bytes were changed or moved");
}

/// Runs the test of this name in a process of its own, which has threads, descriptors and memory
/// for itself.
#[track_caller]
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "TINYLB_TEST_ALONE";
    if std::env::var(VARIABLE).is_ok_and(|name| name == test) {
        return body();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, test)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let shown = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
}

#[track_caller]
pub fn assert_stopped<T: Debug>(result: Result<T, tinylb::Error>) {
    assert!(matches!(result, Err(tinylb::Error::Stopped)), "{result:?}");
}
