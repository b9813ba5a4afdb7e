//! C1.2: Unix-domain sockets on either side, alone and together with TCP.

#![cfg(unix)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use tempfile::TempDir;
use tinylb::{
    Address, Backend, BackendSet, Builder, Dial, DialRequest, EndReason, IntoListener, Server,
    TcpBackend, UnixBackend,
};
use tinylb_tests::*;

// What the tests need besides.

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Unix,
}
use Kind::{Tcp, Unix};

const COMBINATIONS: [(Kind, Kind); 4] = [(Tcp, Tcp), (Tcp, Unix), (Unix, Tcp), (Unix, Unix)];

/// A client's or a backend's end, of either kind.
trait Peer: Read + Write + Send {
    /// Ends its stream; the other direction goes on.
    fn end(&self);
    /// The same socket, to be used on another thread.
    fn share(&self) -> Box<dyn Peer>;
}

impl Peer for TcpStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }

    fn share(&self) -> Box<dyn Peer> {
        Box::new(self.try_clone().unwrap())
    }
}

impl Peer for UnixStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }

    fn share(&self) -> Box<dyn Peer> {
        Box::new(self.try_clone().unwrap())
    }
}

/// A backend of either kind whose connections the test takes itself.
struct Accepting {
    backends: BackendSet,
    accepted: mpsc::Receiver<Box<dyn Peer>>,
    _dir: TempDir,
}

impl Accepting {
    fn new(kind: Kind) -> Self {
        let (sender, accepted) = mpsc::channel::<Box<dyn Peer>>();
        let dir = TempDir::new().unwrap();
        let backends = match kind {
            Tcp => {
                let listener = listener();
                let addr = listener.local_addr().unwrap();
                std::thread::spawn(move || {
                    while let Ok((stream, _)) = listener.accept() {
                        impatient(&stream);
                        let _ = sender.send(Box::new(stream));
                    }
                });
                set([("a", addr)])
            }
            Unix => {
                let path = dir.path().join("backend");
                let listener = UnixListener::bind(&path).unwrap();
                std::thread::spawn(move || {
                    while let Ok((stream, _)) = listener.accept() {
                        impatient_unix(&stream);
                        let _ = sender.send(Box::new(stream));
                    }
                });
                BackendSet::from([("a", UnixBackend::new(path))])
            }
        };
        Self { backends, accepted, _dir: dir }
    }

    #[track_caller]
    fn accept(&self) -> Box<dyn Peer> {
        self.accepted.recv_timeout(PATIENCE).expect("nobody dials")
    }
}

/// A balancer that listens on either kind, and how to reach it.
struct Front {
    balancer: Balancer,
    path: Option<PathBuf>,
    _dir: TempDir,
}

impl Front {
    fn start(kind: Kind, builder: Builder, backends: BackendSet) -> Self {
        let dir = TempDir::new().unwrap();
        match kind {
            Tcp => Self { balancer: Balancer::with(builder, backends), path: None, _dir: dir },
            Unix => {
                let path = dir.path().join("front");
                let balancer = unix_balancer(UnixListener::bind(&path).unwrap(), builder, backends);
                Self { balancer, path: Some(path), _dir: dir }
            }
        }
    }

    fn client(&self) -> Box<dyn Peer> {
        match &self.path {
            None => Box::new(self.balancer.client()),
            Some(path) => Box::new(connect_unix(path)),
        }
    }
}

fn unix_balancer(listener: impl IntoListener, builder: Builder, backends: BackendSet) -> Balancer {
    let server = builder.backends(backends).build(listener).unwrap();
    let control = server.control();
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    Balancer { addr: nowhere, control, thread: server.spawn().unwrap() }
}

#[track_caller]
fn connect_unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    impatient_unix(&stream);
    stream
}

fn impatient_unix(stream: &UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// A pair over these kinds of socket: the balancer and both ends.
fn pair(front: Kind, back: Kind) -> (Front, Box<dyn Peer>, Box<dyn Peer>) {
    let backend = Accepting::new(back);
    let front = Front::start(front, Server::builder(), backend.backends.clone());
    let client = front.client();
    let at_backend = backend.accept();
    front.balancer.wait_for("the pair", |stats| stats.open == 1);
    (front, client, at_backend)
}

/// Writes to the end on a thread of its own.
fn send(peer: &dyn Peer, data: Vec<u8>) -> std::thread::JoinHandle<()> {
    let mut peer = peer.share();
    std::thread::spawn(move || {
        peer.write_all(&data).unwrap();
        peer.end();
    })
}

#[test]
fn c1_2_unix_and_tcp_go_together_on_either_side_both_ways_at_once() {
    const LEN: usize = 4 << 20;
    for (front, back) in COMBINATIONS {
        let (front, mut client, mut at_backend) = pair(front, back);
        let sending = [send(&*client, pattern(LEN)), send(&*at_backend, pattern(LEN + 1))];

        let upload = std::thread::spawn(move || read_to_end(&mut at_backend));
        let (download, end) = read_to_end(&mut client);

        assert!(download == pattern(LEN + 1) && end == StreamEnd::Clean);
        assert!(upload.join().unwrap() == (pattern(LEN), StreamEnd::Clean));
        front.balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
        for sender in sending {
            sender.join().unwrap();
        }
    }
}

#[test]
fn c6_2_either_side_may_end_first_and_the_other_goes_on() {
    for (front, back) in COMBINATIONS {
        for client_first in [true, false] {
            let (front, client, backend) = pair(front, back);
            let (mut first, mut second) =
                if client_first { (client, backend) } else { (backend, client) };
            first.write_all(b"a request").unwrap();
            first.end();
            assert_eq!(read_to_end(&mut second), (b"a request".to_vec(), StreamEnd::Clean));
            assert_eq!(front.balancer.stats().open, 1);

            second.write_all(b"an answer").unwrap();
            second.end();

            assert_eq!(read_to_end(&mut first), (b"an answer".to_vec(), StreamEnd::Clean));
            front.balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
        }
    }
}

#[test]
fn c1_2_addresses_are_shown_as_what_they_are() {
    #[derive(Clone)]
    struct Asked(UnixBackend, Arc<Mutex<Vec<(Address, Address)>>>);
    impl Backend for Asked {
        fn target_name(&self) -> String {
            self.0.target_name()
        }
        fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
            self.1.lock().unwrap().push((request.client_addr().clone(), request.local_addr()?));
            self.0.dial(request)
        }
    }
    let dir = TempDir::new().unwrap();
    let (front, back) = (dir.path().join("front"), dir.path().join("back"));
    let (_listener, backend) = (UnixListener::bind(&back).unwrap(), UnixBackend::new(&back));
    assert_eq!(backend.target_name(), format!("unix:{}", back.display()));
    let backend = Asked(backend, Arc::default());
    let balancer = unix_balancer(
        UnixListener::bind(&front).unwrap(),
        Server::builder(),
        BackendSet::from([("a", backend.clone())]),
    );

    let _anonymous = connect_unix(&front);
    balancer.wait_for("the pair", |stats| stats.open == 1);
    let named = dir.path().join("named");
    let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    client.bind(&socket2::SockAddr::unix(&named).unwrap()).unwrap();
    client.connect(&socket2::SockAddr::unix(&front).unwrap()).unwrap();
    balancer.wait_for("the pair", |stats| stats.open == 2);

    let front_addr = Address::Unix(Some(front.clone()));
    assert_eq!(*balancer.control.local_addr(), front_addr);
    assert_eq!(front_addr.to_string(), format!("unix:{}", front.display()));
    assert_eq!((front_addr.ip(), Address::Unix(None).to_string()), (None, "unix:".to_owned()));
    let asked = backend.1.lock().unwrap().clone();
    assert_eq!(
        asked,
        [(Address::Unix(None), front_addr.clone()), (Address::Unix(Some(named)), front_addr)]
    );
}

#[test]
fn c5_3_a_unix_backend_that_is_full_stale_or_missing_fails_over_at_once() {
    let dir = TempDir::new().unwrap();
    let path = |name| dir.path().join(name);
    let full = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let full_addr = socket2::SockAddr::unix(path("full")).unwrap();
    full.bind(&full_addr).unwrap();
    full.listen(0).unwrap();
    let mut fill = Vec::new();
    loop {
        let socket =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        if socket.connect(&full_addr).is_err() {
            break;
        }
        fill.push(socket);
    }
    drop(UnixListener::bind(path("stale")).unwrap());
    std::fs::write(path("file"), "not a socket").unwrap();
    let good = TestBackend::echo("good");
    let names = ["full", "stale", "missing", "file"];
    let mut backends: BackendSet =
        names.into_iter().map(|name| (name, UnixBackend::new(path(name)))).collect();
    backends.insert("too long", UnixBackend::new(path(&"x".repeat(200))));
    backends.insert("zz good", TcpBackend::new(good.addr));
    // So long that it fails the test if one of them is waited for.
    let balancer = Balancer::with(
        Server::builder().dial_limit(PATIENCE * 2).connect_timeout(PATIENCE * 2),
        backends,
    );

    let (mut client, tag) = balancer.tagged_client();

    assert_eq!(tag, "good");
    assert_echo(&mut client, b"served");
    for name in names.into_iter().chain(["too long"]) {
        assert_eq!(balancer.stats().backend(name).unwrap().usage.dial_failures, 1, "{name}");
    }
}

#[test]
fn c5_4_a_unix_client_that_is_gone_ends_its_dial_and_one_that_ended_its_stream_does_not() {
    let hole = BlackHole::new();
    let good = TestBackend::echo("good");
    let front = Front::start(Unix, Server::builder(), set([("a", hole.addr)]));
    let (gone, ended, mut waits) = (front.client(), front.client(), front.client());
    front.balancer.wait_for("the dials", |stats| stats.dialling == 3);

    ended.end();
    drop(gone);

    let stats = front.balancer.wait_for("the end", |stats| stats.dialling < 3);
    assert_eq!(stats.refused.of(EndReason::ClientFailed), 1);
    let applied = front.balancer.update(set([("b", good.addr)]));
    assert_eq!(applied.cancelled, 2);
    assert_eq!(read_tag(&mut waits), "good");
    let mut ended = ended;
    assert_eq!(read_to_end(&mut ended), (b"good\n".to_vec(), StreamEnd::Clean));
}

#[test]
fn c3_2_removal_closes_both_sides_even_if_nobody_reads() {
    for (front, back) in COMBINATIONS {
        let (front, client, at_backend) = pair(front, back);
        let mut blocked = client.share();
        let writer = std::thread::spawn(move || blocked.write_all(&vec![0; 64 << 20]));
        front.balancer.wait_for("traffic", |stats| stats.bytes_up > 100_000);

        let applied = front.balancer.update(BackendSet::new());

        assert_eq!(applied.closed, 1);
        writer.join().unwrap().expect_err("a closed connection took everything");
        drop((client, at_backend));
    }
}

#[test]
fn c3_10_a_unix_peer_that_is_gone_with_bytes_unread_is_a_cut_for_the_other_side() {
    let (front, client, mut at_backend) = pair(Unix, Tcp);
    at_backend.write_all(b"never read").unwrap();
    front.balancer.wait_for("the bytes", |stats| stats.bytes_down == 10);

    drop(client);

    assert_cut(&mut at_backend);
    front.balancer.wait_for("the cut", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
}

#[test]
#[cfg(feature = "socket2")]
fn c3_10_a_tcp_peers_reset_closes_the_unix_side() {
    let listener = listener();
    let front = Front::start(Unix, Server::builder(), set([("a", listener.local_addr().unwrap())]));
    let mut client = front.client();
    let (at_backend, _) = listener.accept().unwrap();
    front.balancer.wait_for("the pair", |stats| stats.open == 1);

    reset(at_backend);

    // Such sockets cannot reset: the docs say that a cut is a plain close there.
    assert_eq!(read_to_end(&mut client), (vec![], StreamEnd::Clean));
    front.balancer.wait_for("the cut", |stats| stats.ended.of(EndReason::BackendFailed) == 1);
}
