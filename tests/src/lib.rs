//! What the tests share: a balancer that ends with its test, backends that can be told apart, and sockets with
//! time-outs that only a failing test reaches.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::new_without_default,
    reason = "only the tests use it"
)]

#[cfg(target_os = "linux")]
pub mod process;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tinylb::{Applied, BackendSet, Builder, Control, Server, ServerThread, Stats, TcpBackend};

/// How long anything may take that has to happen. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A balancer on a thread of its own, on a port of its own.
pub struct Balancer {
    pub addr: SocketAddr,
    pub control: Control,
    pub thread: ServerThread,
}

impl Balancer {
    /// With the default settings.
    #[track_caller]
    pub fn start(backends: BackendSet) -> Self {
        Self::with(Server::builder(), backends)
    }

    #[track_caller]
    pub fn with(builder: Builder, backends: BackendSet) -> Self {
        let server = builder.backends(backends).build(listener()).unwrap();
        let control = server.control();
        Self { addr: server.local_addr().ip().unwrap(), control, thread: server.spawn().unwrap() }
    }

    /// A new client, connected with the balancer.
    #[track_caller]
    pub fn client(&self) -> TcpStream {
        connect(self.addr)
    }

    /// A new client that has been answered by the backend whose tag is returned.
    #[track_caller]
    pub fn tagged_client(&self) -> (TcpStream, String) {
        let mut client = self.client();
        let tag = read_tag(&mut client);
        (client, tag)
    }

    /// Replaces the set and waits until that is applied.
    #[track_caller]
    pub fn update(&self, backends: BackendSet) -> Applied {
        self.control
            .update(backends)
            .unwrap()
            .wait_timeout(PATIENCE)
            .unwrap()
            .expect("the update is not applied")
    }

    /// Replaces the set, lets what vanishes finish within the limit, and waits until that is applied.
    #[track_caller]
    pub fn update_draining(&self, backends: BackendSet, limit: Duration) -> Applied {
        let update = self.control.update_draining(backends, limit).unwrap();
        update.wait_timeout(PATIENCE).unwrap().expect("the update is not applied")
    }

    #[track_caller]
    pub fn stats(&self) -> Stats {
        let stats = self.control.stats().unwrap().wait().unwrap();
        let (refused, ended) = (stats.refused.total(), stats.ended.total());
        assert_eq!(
            stats.accepted,
            refused + ended + stats.dialling + stats.open,
            "C8.1: {stats:?}"
        );
        stats
    }

    /// Waits until the counters are as they should become.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Stats) -> bool) -> Stats {
        wait_for(what, || {
            let stats = self.stats();
            is_so(&stats).then_some(stats)
        })
    }
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "never came to pass: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A listener on a free port of the loopback interface.
#[track_caller]
pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A client whose reads and writes fail rather than hang.
#[track_caller]
pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    impatient(&stream);
    stream
}

pub fn impatient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// A set of TCP backends by key and address.
pub fn set<'a>(backends: impl IntoIterator<Item = (&'a str, SocketAddr)>) -> BackendSet {
    backends.into_iter().map(|(key, addr)| (key, TcpBackend::new(addr))).collect()
}

/// An address at which nobody listens.
pub fn refusing_addr() -> SocketAddr {
    // Bound but not listening, and leaked, so that nobody else gets the port while the test runs.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    addr
}

/// An address that answers nothing: a listening socket whose backlog is full.
pub struct BlackHole {
    pub addr: SocketAddr,
    _listener: socket2::Socket,
    _fill: Vec<TcpStream>,
}

impl BlackHole {
    pub fn new() -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        let mut fill = Vec::new();
        // A backlog of 0 holds one connection; from then on handshakes are not answered.
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
            fill.push(stream);
        }
        Self { addr, _listener: socket, _fill: fill }
    }
}

/// What a test backend does with a connection.
pub type Serve = dyn Fn(TcpStream) + Send + Sync;

/// A backend with a thread for each connection.
///
/// It counts what it got, and is gone, with all its connections, when it is dropped.
pub struct TestBackend {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    accepted: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
}

impl TestBackend {
    pub fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), serve)
    }

    pub fn at(addr: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept_all(&listener, &shared, Arc::new(serve))
        });
        Self { addr, shared, acceptor: Some(acceptor) }
    }

    /// Sends its tag and a line end, then sends back all that comes, to the end.
    pub fn echo(tag: &'static str) -> Self {
        Self::new(move |mut stream| {
            if stream.write_all(format!("{tag}\n").as_bytes()).is_ok() {
                let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            }
        })
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, serve: Arc<Serve>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        impatient(&stream);
        shared.connections.lock().unwrap().push(stream.try_clone().unwrap());
        let serve = serve.clone();
        std::thread::spawn(move || serve(stream));
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr); // wakes the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// The first line of what a backend sends.
#[track_caller]
pub fn read_tag(stream: &mut impl Read) -> String {
    let mut tag = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).expect("no tag");
        match byte[0] {
            b'\n' => return String::from_utf8(tag).unwrap(),
            byte => tag.push(byte),
        }
    }
}

/// Sends and reads back.
#[track_caller]
pub fn assert_echo(stream: &mut (impl Read + Write), message: &[u8]) {
    stream.write_all(message).unwrap();
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(echo, message);
}

/// How a stream came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// A clean end of stream.
    Clean,
    /// A reset.
    Reset,
}

/// A client that comes now is refused, which may be before its connect returns.
#[track_caller]
pub fn assert_refused(addr: SocketAddr) {
    match TcpStream::connect_timeout(&addr, PATIENCE) {
        Ok(mut client) => {
            impatient(&client);
            assert_cut(&mut client);
        }
        Err(err) => assert_eq!(err.kind(), ErrorKind::ConnectionReset),
    }
}

/// Reads to the end: what came, and how it ended.
#[track_caller]
pub fn read_to_end(stream: &mut impl Read) -> (Vec<u8>, StreamEnd) {
    let mut bytes = Vec::new();
    let mut room = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return (bytes, StreamEnd::Clean),
            Ok(len) => bytes.extend_from_slice(&room[..len]),
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            Err(err)
                if matches!(err.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
            {
                return (bytes, StreamEnd::Reset);
            }
            Err(err) => panic!("neither an end nor a reset after {} bytes: {err}", bytes.len()),
        }
    }
}

/// The stream is cut: by a reset, or by any end where the crate is built without `socket2` and cannot reset.
#[track_caller]
pub fn assert_cut(stream: &mut impl Read) {
    let end = read_to_end(stream).1;
    assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")), "ended as if in order");
}

/// Has the peer see a reset.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Bytes in which a lost, doubled or moved piece shows.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
