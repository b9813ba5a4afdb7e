//! Chapter 6 of the contract: relaying.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tinylb::mio::{self, Interest, Registry, Token, event::Source};
use tinylb::{
    Address, Backend, BackendSet, Builder, Connected, Dial, DialRequest, EndReason, Listener,
    Observer, Server, SocketOptions, Stream, TcpBackend,
};
use tinylb_tests::*;

/// A balancer with one backend, whose connections the test accepts and handles itself.
struct Rig {
    balancer: Balancer,
    backend: TcpListener,
    is_narrow: bool,
}

impl Rig {
    fn new(builder: Builder) -> Self {
        let backend = listener();
        Self {
            balancer: Balancer::with(builder, set([("a", backend.local_addr().unwrap())])),
            backend,
            is_narrow: false,
        }
    }

    /// With small kernel buffers all along the way, so that a reader that stops is soon felt.
    fn narrow(builder: Builder) -> Self {
        let (front, backend) = (listener(), listener());
        narrow(&front);
        narrow(&backend);
        let target = TcpBackend::new(backend.local_addr().unwrap()).on_socket(|socket| {
            narrow(socket);
            Ok(())
        });
        let server = builder.backends([("a", target)].into()).build(front).unwrap();
        let (addr, control) = (server.local_addr().ip().unwrap(), server.control());
        Self {
            balancer: Balancer { addr, control, thread: server.spawn().unwrap() },
            backend,
            is_narrow: true,
        }
    }

    /// Both ends of a new pair: the client's socket and the backend's.
    #[track_caller]
    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.balancer.client();
        if self.is_narrow {
            narrow(&client);
        }
        (client, accept(&self.backend))
    }

    #[track_caller]
    fn wait_for_end(&self, reason: EndReason) {
        self.balancer.wait_for(&format!("an end: {reason}"), |stats| stats.ended.of(reason) == 1);
    }
}

#[cfg(unix)]
fn narrow(socket: &impl std::os::fd::AsFd) {
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(32 * 1024).unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
}

/// Accepts within [`PATIENCE`].
#[track_caller]
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let stream = wait_for("the balancer dials", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    impatient(&stream);
    stream
}

/// What may be under way in one direction of a narrow rig: 64 KiB in each of four kernel buffers with some overhead,
/// and the default `buffer_size`.
const NARROW_ROOM: usize = 1024 * 1024;

/// Sends until nothing more is taken for a while, and returns what was taken.
#[track_caller]
fn stuff(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let bytes = pattern(NARROW_ROOM);
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..bytes.len().min(sent + 8192)]) {
            Ok(len) => sent += len,
            Err(err) if err.kind() == ErrorKind::WouldBlock => return bytes[..sent].to_vec(),
            Err(err) => panic!("{err} after {sent} bytes"),
        }
    }
    panic!("nothing holds the sender back");
}

/// Sends in pieces of these sizes and ends the stream, while it reads to the end.
#[track_caller]
fn exchange(stream: &TcpStream, bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, mut rest, mut sizes) = (stream, bytes, pieces.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                stream.write_all(piece).unwrap();
                rest = after;
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (received, end) = read_to_end(&mut &*stream);
        assert_eq!(end, StreamEnd::Clean);
        received
    })
}

#[track_caller]
fn assert_same(received: &[u8], sent: &[u8]) {
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "bytes were changed or moved");
}

#[test]
fn c6_1_megabytes_go_both_ways_at_once_unchanged() {
    let rig = Rig::new(Server::builder());
    let (client, backend) = rig.pair();
    let (up, down) = (pattern(8_000_000), pattern(6_000_001)[1..].to_vec());
    let (at_backend, at_client) = thread::scope(|scope| {
        let backend = scope.spawn(|| exchange(&backend, &down, &[100_000]));
        let at_client = exchange(&client, &up, &[100_000]);
        (backend.join().unwrap(), at_client)
    });
    assert_same(&at_backend, &up);
    assert_same(&at_client, &down);
    rig.wait_for_end(EndReason::Finished);
}

#[test]
fn c6_1_pieces_of_any_size_arrive_in_order() {
    const SIZES: [usize; 11] = [1, 1, 2, 3, 7, 1460, 4095, 16_383, 16_384, 16_385, 70_001];
    let rig = Rig::narrow(Server::builder().buffer_size(5_000));
    let (client, backend) = rig.pair();
    let bytes = pattern(1_000_003);
    let (at_backend, at_client) = thread::scope(|scope| {
        let backend = scope.spawn(|| exchange(&backend, &bytes, &SIZES));
        let at_client = exchange(&client, &bytes, &SIZES[3..]);
        (backend.join().unwrap(), at_client)
    });
    assert_same(&at_backend, &bytes);
    assert_same(&at_client, &bytes);
}

#[test]
fn c6_1_many_connections_do_not_get_each_others_bytes() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::start(set([("a", one.addr), ("b", two.addr)]));
    let message = |index: usize| pattern(20_000 + index)[index..].to_vec();
    let mut clients: Vec<_> = (0..150).map(|_| balancer.client()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.write_all(&message(index)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    }
    for (index, client) in clients.iter_mut().enumerate() {
        read_tag(client);
        assert_same(&read_to_end(client).0, &message(index));
    }
    balancer.wait_for("all have finished", |stats| stats.ended.of(EndReason::Finished) == 150);
}

/// Sends something, urgent data and something more, and waits until all of it lies in the peer's kernel.
fn send_with_urgent_data(stream: &mut TcpStream) {
    stream.write_all(b"before ").unwrap();
    SockRef::from(&*stream).send_out_of_band(b"!").unwrap();
    stream.write_all(b"after").unwrap();
}

/// What arrives of it: urgent data stays in line only with socket2.
const WITH_URGENT_DATA: &[u8] =
    if cfg!(feature = "socket2") { b"before !after" } else { b"before after" };

#[test]
fn c6_1_what_a_client_sends_after_urgent_data_is_not_left_lying() {
    let backend = listener();
    let server = Server::builder()
        .backends(set([("a", backend.local_addr().unwrap())]))
        .build(listener())
        .unwrap();
    // All is there before the balancer looks, so that one event has to do for it.
    let mut client = connect(server.local_addr().ip().unwrap());
    send_with_urgent_data(&mut client);
    let _thread = server.spawn().unwrap();
    let mut received = [0; WITH_URGENT_DATA.len()];
    accept(&backend).read_exact(&mut received).unwrap();
    assert_eq!(received, WITH_URGENT_DATA);
}

#[test]
fn c6_1_what_a_backend_sends_after_urgent_data_is_not_left_lying() {
    let backend = listener();
    let addr = backend.local_addr().unwrap();
    let accepted = Arc::new(Mutex::new(None));
    // As above: the balancer's thread is here while the bytes arrive.
    let target = TcpBackend::new(addr).on_socket({
        let accepted = accepted.clone();
        move |_| {
            let mut stream = accept(&backend);
            send_with_urgent_data(&mut stream);
            *accepted.lock().unwrap() = Some(stream);
            Ok(())
        }
    });
    let balancer = Balancer::start([("a", target)].into());
    let mut received = [0; WITH_URGENT_DATA.len()];
    balancer.client().read_exact(&mut received).unwrap();
    assert_eq!(received, WITH_URGENT_DATA);
}

#[test]
fn c6_2_a_client_that_has_finished_gets_its_whole_answer() {
    let rig = Rig::new(Server::builder());
    let (mut client, mut backend) = rig.pair();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut backend), (b"question".to_vec(), StreamEnd::Clean));
    let answer = pattern(3_000_000);
    let receiver = thread::spawn(move || read_to_end(&mut client));
    backend.write_all(&answer).unwrap();
    drop(backend);
    let (received, end) = receiver.join().unwrap();
    assert_same(&received, &answer);
    assert_eq!(end, StreamEnd::Clean);
    rig.wait_for_end(EndReason::Finished);
}

#[test]
fn c6_2_a_backend_that_has_finished_still_gets_what_the_client_sends() {
    let rig = Rig::new(Server::builder());
    let (mut client, mut backend) = rig.pair();
    backend.write_all(b"greeting").unwrap();
    backend.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), (b"greeting".to_vec(), StreamEnd::Clean));
    let report = pattern(3_000_000);
    let receiver = thread::spawn(move || read_to_end(&mut backend));
    client.write_all(&report).unwrap();
    drop(client);
    let (received, end) = receiver.join().unwrap();
    assert_same(&received, &report);
    assert_eq!(end, StreamEnd::Clean);
    rig.wait_for_end(EndReason::Finished);
}

#[test]
fn c6_2_an_end_waits_for_all_that_is_buffered_before_it() {
    let rig = Rig::narrow(Server::builder());
    for turned_round in [false, true] {
        let (mut sender, mut receiver) = rig.pair();
        if turned_round {
            std::mem::swap(&mut sender, &mut receiver);
        }
        let sent = stuff(&mut sender);
        sender.shutdown(Shutdown::Write).unwrap();
        let (received, end) = read_to_end(&mut receiver);
        assert_same(&received, &sent);
        assert_eq!(end, StreamEnd::Clean);
        // The opposite direction is as good as new.
        receiver.write_all(b"thanks").unwrap();
        drop(receiver);
        assert_eq!(read_to_end(&mut sender), (b"thanks".to_vec(), StreamEnd::Clean));
    }
    rig.balancer.wait_for("both have finished", |stats| stats.ended.of(EndReason::Finished) == 2);
}

#[test]
fn c6_3_a_slow_reader_stops_the_sender_and_gets_everything_in_the_end() {
    let rig = Rig::narrow(Server::builder());
    let (mut client, mut backend) = rig.pair();
    let up = stuff(&mut client); // panics if more is taken than there is room for
    let down = stuff(&mut backend);
    rig.balancer.wait_for("what is stuck is not counted as delivered", |stats| {
        stats.bytes_up < up.len() as u64 && stats.bytes_down < down.len() as u64
    });
    let read = |stream: &mut TcpStream, len| {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    assert_same(&read(&mut backend, up.len()), &up);
    assert_same(&read(&mut client, down.len()), &down);
    rig.balancer.wait_for("all is counted", |stats| {
        (stats.bytes_up, stats.bytes_down) == (up.len() as u64, down.len() as u64)
    });
}

#[test]
fn c6_3_a_stuck_direction_does_not_hold_up_the_other() {
    let rig = Rig::narrow(Server::builder());
    let (mut client, mut backend) = rig.pair();
    stuff(&mut client);
    let answer = pattern(2_000_000);
    let receiver = thread::spawn({
        let mut client = client.try_clone().unwrap();
        move || {
            let mut received = vec![0; 2_000_000];
            client.read_exact(&mut received).unwrap();
            received
        }
    });
    backend.write_all(&answer).unwrap();
    assert_same(&receiver.join().unwrap(), &answer);
}

#[test]
fn c6_4_a_backends_reset_is_seen_though_its_client_does_not_read() {
    let rig = Rig::narrow(Server::builder());
    let (mut client, mut backend) = rig.pair();
    stuff(&mut backend);
    reset(backend);
    rig.wait_for_end(EndReason::BackendFailed);
    assert_cut(&mut client);
}

#[test]
fn c6_4_a_clients_reset_is_seen_though_its_backend_does_not_read() {
    let rig = Rig::narrow(Server::builder());
    let (mut client, mut backend) = rig.pair();
    stuff(&mut client);
    reset(client);
    rig.wait_for_end(EndReason::ClientFailed);
    assert_cut(&mut backend);
}

#[test]
fn c6_4_a_reset_of_a_quiet_peer_is_a_cut_and_not_an_end() {
    let rig = Rig::new(Server::builder());
    let (client, mut backend) = rig.pair();
    reset(client);
    assert_cut(&mut backend);
    rig.wait_for_end(EndReason::ClientFailed);
    let (mut client, backend) = rig.pair();
    reset(backend);
    assert_cut(&mut client);
    rig.wait_for_end(EndReason::BackendFailed);
}

/// Holds the balancer's thread up between a connect and the first byte moved.
struct OnConnected<F>(F);

impl<F: FnMut() + Send> Observer for OnConnected<F> {
    fn connected(&mut self, _: &Connected<'_>) {
        (self.0)();
    }
}

#[test]
fn c6_4_what_was_sent_before_a_reset_goes_first() {
    let backend = listener();
    let addr = backend.local_addr().unwrap();
    let observer = OnConnected(move || {
        let mut stream = accept(&backend);
        stream.write_all(b"last words").unwrap();
        reset(stream);
    });
    let server = Server::builder()
        .observer(observer)
        .backends(set([("a", addr)]))
        .build(listener())
        .unwrap();
    let mut client = connect(server.local_addr().ip().unwrap()); // before anyone can reset it
    let _thread = server.spawn().unwrap();
    let (received, end) = read_to_end(&mut client);
    assert_eq!(received, b"last words");
    assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")));
}

#[test]
fn c6_5_an_idle_pair_is_cut_and_an_active_one_is_not() {
    const LIMIT: Duration = Duration::from_millis(400);
    let rig = Rig::new(Server::builder().idle_timeout(Some(LIMIT)));
    let start = Instant::now();
    let (mut idle, mut idle_backend) = rig.pair();
    // Only the download moves: a byte either way counts.
    keep_receiving(LIMIT, || {
        let (client, backend) = rig.pair();
        (backend, client)
    });
    assert_cut(&mut idle);
    assert_cut(&mut idle_backend);
    assert!(start.elapsed() >= LIMIT);
    rig.balancer.wait_for("its reason", |stats| stats.ended.of(EndReason::IdleTimeout) >= 1);
}

#[test]
fn c6_5_any_byte_puts_the_end_of_a_half_closed_pair_off() {
    const LIMIT: Duration = Duration::from_millis(400);
    let rig = Rig::new(Server::builder().half_closed_timeout(LIMIT));
    let (_backend, mut client) = keep_receiving(LIMIT, || {
        let (client, backend) = rig.pair();
        client.shutdown(Shutdown::Write).unwrap();
        (backend, client)
    });
    let silent_since = Instant::now();
    assert_cut(&mut client);
    assert!(silent_since.elapsed() >= LIMIT / 2, "the last byte was less than half a limit ago");
    rig.balancer.wait_for("its reason", |stats| stats.ended.of(EndReason::HalfClosedTimeout) >= 1);
}

/// Has a byte go from the first to the second of two sockets now and then, for several times `limit`. A machine that is
/// busy elsewhere for that long has it begin anew, with other sockets.
#[track_caller]
fn keep_receiving(
    limit: Duration,
    sockets: impl Fn() -> (TcpStream, TcpStream),
) -> (TcpStream, TcpStream) {
    'anew: loop {
        let (mut from, mut to) = sockets();
        let (start, mut sent_at) = (Instant::now(), Instant::now());
        while start.elapsed() < limit * 3 {
            thread::sleep(limit / 20);
            let last_sent_at = std::mem::replace(&mut sent_at, Instant::now());
            let arrived = from.write_all(b"x").and_then(|()| to.read_exact(&mut [0]));
            if last_sent_at.elapsed() >= limit / 2 {
                continue 'anew;
            }
            arrived.expect("cut although it was not quiet for the limit");
        }
        return (from, to);
    }
}

#[test]
fn c6_5_half_closed_pairs_end_by_their_own_limit_and_open_ones_do_not() {
    const LIMIT: Duration = Duration::from_millis(200);
    let rig = Rig::new(Server::builder().half_closed_timeout(LIMIT));
    let (mut open, mut open_backend) = rig.pair();
    for client_first in [true, false] {
        let (mut client, mut backend) = rig.pair();
        let start = Instant::now();
        let (finished, other) =
            if client_first { (&mut client, &mut backend) } else { (&mut backend, &mut client) };
        finished.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(other), (Vec::new(), StreamEnd::Clean));
        assert_cut(finished);
        assert!(start.elapsed() >= LIMIT);
        wait_for("the other side is closed too", || other.write(b"x").err());
    }
    rig.balancer.wait_for("both ends", |stats| stats.ended.of(EndReason::HalfClosedTimeout) == 2);
    open.write_all(b"!").unwrap(); // it has been quiet for twice the limit
    open_backend.read_exact(&mut [0]).unwrap();
}

#[test]
fn c6_5_an_idle_timeout_holds_for_half_closed_pairs_too() {
    let rig = Rig::new(Server::builder().idle_timeout(Some(Duration::from_millis(100))));
    let (mut client, _backend) = rig.pair();
    client.shutdown(Shutdown::Write).unwrap();
    assert_cut(&mut client);
    rig.wait_for_end(EndReason::IdleTimeout);
}

/// A TCP stream that, once asked to, is never blocked: it takes and gives bytes without end.
struct Bottomless {
    stream: mio::net::TcpStream,
    is_bottomless: bool,
}

impl Read for Bottomless {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.is_bottomless { Ok(room.len()) } else { self.stream.read(room) }
    }
}

impl Write for Bottomless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_bottomless { Ok(bytes.len()) } else { self.stream.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Bottomless {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.stream.shutdown_write()
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        self.stream.check_connect()
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Stream::take_error(&mut self.stream)
    }
}

/// Its first client is bottomless.
struct BottomlessListener {
    listener: mio::net::TcpListener,
    accepted: u64,
}

impl Listener for BottomlessListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (stream, addr) = self.listener.accept()?;
        self.accepted += 1;
        Ok((Box::new(Bottomless { stream, is_bottomless: self.accepted == 1 }), addr.into()))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.listener.local_addr().map(Address::from)
    }
}

struct BottomlessBackend(TcpBackend);

impl Backend for BottomlessBackend {
    fn target_name(&self) -> String {
        self.0.target_name()
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        Ok(Dial::new(Bottomless {
            stream: mio::net::TcpStream::connect(self.0.addrs()[0])?,
            is_bottomless: true,
        }))
    }
}

macro_rules! source {
    ($type:ty, $field:tt) => {
        impl Source for $type {
            fn register(
                &mut self,
                registry: &Registry,
                token: Token,
                interest: Interest,
            ) -> io::Result<()> {
                self.$field.register(registry, token, interest)
            }

            fn reregister(
                &mut self,
                registry: &Registry,
                token: Token,
                interest: Interest,
            ) -> io::Result<()> {
                self.$field.reregister(registry, token, interest)
            }

            fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
                self.$field.deregister(registry)
            }
        }
    };
}
source!(Bottomless, stream);
source!(BottomlessListener, listener);

#[test]
fn c6_6_a_transfer_that_never_blocks_holds_nothing_up_and_goes_on() {
    let (endless, echo) = (TestBackend::echo("endless"), TestBackend::echo("echo"));
    let front = mio::net::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut backends = set([("b", echo.addr)]);
    backends.insert("a", BottomlessBackend(TcpBackend::new(endless.addr)));
    let front: Box<dyn Listener> = Box::new(BottomlessListener { listener: front, accepted: 0 });
    let server = Server::builder().backends(backends.clone()).build(front).unwrap();
    let (addr, control) = (server.local_addr().ip().unwrap(), server.control());
    let balancer = Balancer { addr, control, thread: server.spawn().unwrap() };
    let mut bottomless = balancer.client();
    bottomless.write_all(b"x").unwrap(); // an event has to tell that there is something to read
    let moved = balancer
        .wait_for("the endless transfer runs", |stats| stats.bytes_up > 0 && stats.bytes_down > 0);

    let (mut client, tag) = balancer.tagged_client();
    assert_eq!(tag, "echo");
    for _ in 0..20 {
        assert_echo(&mut client, b"a short message");
    }
    balancer.update(backends);

    balancer.wait_for("both its directions go on", |stats| {
        stats.bytes_up > 2 * moved.bytes_up && stats.bytes_down > 2 * moved.bytes_down
    });
}

#[test]
fn c6_6_round_trips_complete_among_bulk_transfers_none_of_which_starves() {
    let bulk = TestBackend::new(|mut stream| {
        let bytes = pattern(256 * 1024);
        while stream.write_all(&bytes).is_ok() {}
    });
    let echo = TestBackend::echo("echo");
    let balancer = Balancer::start(set([("bulk", bulk.addr)]));
    let received: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    for index in 0..received.len() {
        let (mut client, received) = (balancer.client(), received.clone());
        thread::spawn(move || {
            let mut room = vec![0; 64 * 1024];
            while let Ok(len @ 1..) = client.read(&mut room) {
                received[index].fetch_add(len as u64, Ordering::Relaxed);
            }
        });
    }
    balancer.wait_for("all transfers run", |stats| stats.open == 4);
    balancer.update(set([("bulk", bulk.addr), ("echo", echo.addr)]));
    let (mut client, tag) = balancer.tagged_client();
    assert_eq!(tag, "echo");

    for _ in 0..30 {
        assert_echo(&mut client, b"a short message");
    }
    let so_far: Vec<u64> = received.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect();
    wait_for("each transfer goes on", || {
        let goes_on =
            |(bytes, before): (&AtomicU64, &u64)| bytes.load(Ordering::Relaxed) > before + 100_000;
        received.iter().zip(&so_far).all(goes_on).then_some(())
    });
}

/// What is set on a socket.
#[derive(Debug, PartialEq, Eq)]
struct Set {
    nodelay: bool,
    /// Idle time and interval in seconds, and probes.
    keepalive: Option<(u64, u64, u32)>,
    user_timeout: Option<Duration>,
}

impl Set {
    #[cfg(unix)]
    fn on(socket: &impl std::os::fd::AsFd) -> io::Result<Self> {
        let socket = SockRef::from(socket);
        let seconds = |time: io::Result<Duration>| time.map(|time| time.as_secs());
        let keepalive = (
            seconds(socket.tcp_keepalive_time())?,
            seconds(socket.tcp_keepalive_interval())?,
            socket.tcp_keepalive_retries()?,
        );
        Ok(Self {
            nodelay: socket.tcp_nodelay()?,
            keepalive: socket.keepalive()?.then_some(keepalive),
            user_timeout: socket.tcp_user_timeout()?,
        })
    }
}

/// What a builder sets: on the sockets of clients, and on those of backends.
fn options_set(builder: Builder) -> (Set, Set) {
    let (front, echo) = (listener(), TestBackend::echo("echo"));
    let twin = front.try_clone().unwrap();
    let seen = Arc::new(Mutex::new(None));
    let target = TcpBackend::new(echo.addr).on_socket({
        let seen = seen.clone();
        move |socket| {
            *seen.lock().unwrap() = Some(Set::on(socket)?);
            Ok(())
        }
    });
    let server = builder.backends([("a", target)].into()).build(front).unwrap();
    let addr = server.local_addr().ip().unwrap();
    // The twin takes a client in the balancer's place, since nobody else can look at a socket of its.
    let client = connect(addr);
    let of_clients = Set::on(&accept(&twin)).unwrap();
    drop(client);
    let _thread = server.spawn().unwrap();
    read_tag(&mut connect(addr));
    let of_backends = seen.lock().unwrap().take().unwrap();
    (of_clients, of_backends)
}

#[test]
#[cfg(feature = "socket2")]
fn c6_7_both_sides_send_at_once_and_probe_idle_peers() {
    let default = || Set { nodelay: true, keepalive: Some((15, 15, 9)), user_timeout: None };
    assert_eq!(options_set(Server::builder()), (default(), default()));
}

#[test]
#[cfg(feature = "socket2")]
fn c6_7_hosts_can_change_each_option_of_both_sides() {
    let (idle, interval) = (Duration::from_secs(40), Duration::from_secs(7));
    let user_timeout = Some(Duration::from_millis(2500));
    let builder = Server::builder()
        .nodelay(false)
        .keepalive(Some(tinylb::Keepalive::new(idle, interval, 3)))
        .user_timeout(user_timeout);
    let changed = || Set { nodelay: false, keepalive: Some((40, 7, 3)), user_timeout };
    assert_eq!(options_set(builder), (changed(), changed()));
}

#[test]
fn c6_7_hosts_can_switch_each_option_off() {
    let builder = Server::builder().nodelay(false).keepalive(None).user_timeout(None);
    let off = || Set { nodelay: false, keepalive: None, user_timeout: None };
    assert_eq!(options_set(builder), (off(), off()));
}

/// A listener that keeps what it is asked to set on its clients.
struct OptionsSeen(mio::net::TcpListener, Arc<Mutex<Option<SocketOptions>>>);
source!(OptionsSeen, 0);

impl Listener for OptionsSeen {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        self.0.accept().map(|(stream, addr)| (Box::new(stream) as _, addr.into()))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.0.local_addr().map(Address::from)
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        *self.1.lock().unwrap() = Some(*options);
        Ok(())
    }
}

#[test]
fn c6_7_a_listener_of_the_hosts_own_is_told_the_options() {
    let seen = Arc::default();
    let front = mio::net::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let front: Box<dyn Listener> = Box::new(OptionsSeen(front, Arc::clone(&seen)));
    let _server = Server::builder()
        .user_timeout(Some(Duration::from_secs(3)))
        .keepalive(None)
        .build(front)
        .unwrap();
    let options = seen.lock().unwrap().unwrap();
    assert_eq!((options.nodelay, options.keepalive), (true, None));
    assert_eq!(options.user_timeout, Some(Duration::from_secs(3)));
}

#[test]
fn c6_7_a_socket_that_cannot_be_prepared_is_a_failed_dial() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let mut backends: BackendSet = set([("b", two.addr)]);
    backends
        .insert("a", TcpBackend::new(one.addr).on_socket(|_| Err(ErrorKind::InvalidInput.into())));
    let balancer = Balancer::start(backends);
    assert_eq!(balancer.tagged_client().1, "two");
    assert_eq!(balancer.stats().backend("a").unwrap().usage.dial_failures, 1);
}

#[test]
#[cfg(all(feature = "socket2", target_os = "linux"))]
fn c6_7_user_timeout_ends_a_peer_that_refuses_to_read() {
    let rig = Rig::narrow(Server::builder().user_timeout(Some(Duration::from_millis(300))));
    let (_client, mut backend) = rig.pair();
    stuff(&mut backend);
    rig.wait_for_end(EndReason::ClientFailed);
    assert_cut(&mut backend);
}
