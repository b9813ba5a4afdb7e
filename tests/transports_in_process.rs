//! C1.2: a transport without sockets, inside one process, through the public traits alone.
//!
//! Bytes go through bounded queues. The only thing the event queue sees of them is a bell: a socket pair whose bytes
//! mean nothing but "look again".

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tinylb::mio::event::Source;
use tinylb::mio::{self, Interest, Registry, Token};
use tinylb::{
    Address, Backend, BackendSet, Builder, Dial, DialRequest, EndReason, Listener, Readiness,
    Server, Stream,
};
use tinylb_tests::*;

// The transport.

/// Rings at the event queue. Made in pairs with a [`Bell`].
struct Rope(UnixStream);

impl Rope {
    fn pull(&self) {
        // A bell that is too full to ring has rung already and was not listened to yet.
        let _ = (&self.0).write(&[0]);
    }
}

struct Bell(mio::net::UnixStream);

impl Bell {
    fn new() -> io::Result<(Self, Rope)> {
        let (bell, rope) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        rope.set_nonblocking(true)?;
        Ok((Self(mio::net::UnixStream::from_std(bell)), Rope(rope)))
    }

    /// Makes it ring anew at the next pull, even if nobody listened for long.
    fn silence(&self) {
        while (&self.0).read(&mut [0; 64]).is_ok_and(|len| len > 0) {}
    }
}

impl Source for Bell {
    fn register(&mut self, registry: &Registry, token: Token, _: Interest) -> io::Result<()> {
        self.0.register(registry, token, Interest::READABLE)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, _: Interest) -> io::Result<()> {
        self.0.reregister(registry, token, Interest::READABLE)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }
}

/// Both directions of a connection.
struct Connection {
    state: Mutex<State>,
    changed: Condvar,
    rope: Rope,
    capacity: usize,
}

#[derive(Default)]
struct State {
    to_peer: Queue,
    from_peer: Queue,
    /// Whether the peer knows of the connection.
    is_accepted: bool,
    /// Whether one of the ends has cut it.
    is_cut: bool,
    /// Whether the peer has gone, both ways, but in order.
    is_left: bool,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    is_ended: bool,
}

impl Queue {
    fn push(&mut self, bytes: &[u8], capacity: usize) -> io::Result<usize> {
        match bytes.len().min(capacity - self.bytes.len()) {
            0 if !bytes.is_empty() => Err(ErrorKind::WouldBlock.into()),
            len => {
                self.bytes.extend(&bytes[..len]);
                Ok(len)
            }
        }
    }

    fn pop(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.bytes.read(room)? {
            0 if !self.is_ended => Err(ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }
}

impl Connection {
    /// The balancer's end and the other.
    fn open(capacity: usize) -> io::Result<(InProcessStream, Peer)> {
        let (bell, rope) = Bell::new()?;
        let connection = Self { state: Mutex::default(), changed: Condvar::new(), rope, capacity };
        let connection = Arc::new(connection);
        Ok((
            InProcessStream { connection: connection.clone(), bell, is_ended: false },
            Peer { connection },
        ))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The balancer's end.
struct InProcessStream {
    connection: Arc<Connection>,
    bell: Bell,
    is_ended: bool,
}

impl InProcessStream {
    fn attempt<T>(&self, operation: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.connection.state();
        if state.is_cut {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let result = operation(&mut state);
        self.connection.changed.notify_all();
        result
    }
}

impl Read for InProcessStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.attempt(|state| state.from_peer.pop(room))
    }
}

impl Write for InProcessStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|state| match state.is_left {
            true => Err(ErrorKind::BrokenPipe.into()),
            false => state.to_peer.push(bytes, self.connection.capacity),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for InProcessStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.is_ended = true;
        self.attempt(|state| {
            state.to_peer.is_ended = true;
            Ok(())
        })
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        self.attempt(|state| Ok(state.is_accepted))
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Ok(self.attempt(|_| Ok(())).err())
    }

    fn abort(&mut self) {
        self.is_ended = false;
    }

    fn short_read_means_drained(&self) -> bool {
        true
    }

    /// The event is the bell's, and says nothing: the state does.
    fn translate(&self, _: Readiness) -> Readiness {
        self.bell.silence();
        let state = self.connection.state();
        let mut readiness = Readiness::default();
        readiness.readable = !state.from_peer.bytes.is_empty();
        readiness.writable = state.to_peer.bytes.len() < self.connection.capacity;
        readiness.read_closed = state.from_peer.is_ended;
        readiness.write_closed = state.is_left;
        readiness.error = state.is_cut;
        readiness
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Other("balancer".into()))
    }
}

/// What was not ended in order is cut, and the peer must see that.
impl Drop for InProcessStream {
    fn drop(&mut self) {
        self.connection.state().is_cut |= !self.is_ended;
        self.connection.changed.notify_all();
    }
}

impl Source for InProcessStream {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.bell.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.bell.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.bell.deregister(registry)
    }
}

/// The other end, a client's or a backend's, on threads that block.
#[derive(Clone)]
struct Peer {
    connection: Arc<Connection>,
}

impl Peer {
    /// Blocks until the operation can go on.
    fn wait<T>(&self, mut operation: impl FnMut(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.connection.state();
        loop {
            match operation(&mut state) {
                Err(_) if state.is_cut => return Err(ErrorKind::ConnectionReset.into()),
                Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                result => {
                    self.connection.rope.pull();
                    return result;
                }
            }
            let (woken, timeout) = self.connection.changed.wait_timeout(state, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "nothing has changed");
            state = woken;
        }
    }

    /// What the queue takes, without waiting.
    fn write_some(&self, bytes: &[u8]) -> usize {
        let written = self.connection.state().from_peer.push(bytes, self.connection.capacity);
        self.connection.rope.pull();
        written.unwrap_or(0)
    }

    /// How many bytes wait to be read.
    fn readable(&self) -> usize {
        self.connection.state().to_peer.bytes.len()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.connection.state());
        self.connection.rope.pull();
    }

    fn end(&self) {
        self.change(|state| state.from_peer.is_ended = true);
    }

    fn leave(&self) {
        self.change(|state| (state.is_left, state.from_peer.is_ended) = (true, true));
    }

    fn cut(&self) {
        self.change(|state| state.is_cut = true);
    }
}

impl Read for Peer {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.wait(|state| state.to_peer.pop(room))
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(|state| {
            if state.is_cut {
                return Err(ErrorKind::ConnectionReset.into());
            }
            state.from_peer.push(bytes, self.connection.capacity)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where connections wait to be accepted: by the balancer that listens, or by a backend's thread.
#[derive(Clone, Default)]
struct Backlog {
    shared: Arc<(Mutex<Waiting>, Condvar)>,
}

#[derive(Default)]
struct Waiting {
    connections: VecDeque<Peer>,
    is_closed: bool,
}

/// A place to dial. Nothing is connected until the other side accepts.
struct InProcessBackend {
    name: &'static str,
    capacity: usize,
    backlog: Backlog,
    requests: Arc<Mutex<Vec<(Address, Address)>>>,
}

impl InProcessBackend {
    fn new(name: &'static str, capacity: usize) -> (Self, Backlog) {
        let backlog = Backlog::default();
        (Self { name, capacity, backlog: backlog.clone(), requests: Arc::default() }, backlog)
    }
}

impl Backlog {
    /// The next dial, connected.
    #[track_caller]
    fn accept(&self) -> Peer {
        let peer = self.next();
        peer.change(|state| state.is_accepted = true);
        peer
    }

    /// The next dial, left unanswered.
    #[track_caller]
    fn next(&self) -> Peer {
        let (waiting, arrived) = &*self.shared;
        let is_empty = |waiting: &mut Waiting| waiting.connections.is_empty();
        let (mut waiting, timeout) =
            arrived.wait_timeout_while(waiting.lock().unwrap(), PATIENCE, is_empty).unwrap();
        assert!(!timeout.timed_out(), "nobody dials");
        waiting.connections.pop_front().unwrap()
    }

    fn close(&self) {
        self.shared.0.lock().unwrap().is_closed = true;
    }
}

impl Backend for InProcessBackend {
    fn target_name(&self) -> String {
        self.name.to_owned()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        self.requests.lock().unwrap().push((request.client_addr().clone(), request.local_addr()?));
        let (waiting, arrived) = &*self.backlog.shared;
        let mut waiting = waiting.lock().unwrap();
        if waiting.is_closed {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (stream, peer) = Connection::open(self.capacity)?;
        waiting.connections.push_back(peer);
        arrived.notify_all();
        Ok(Dial::new(stream).with_preface(format!("for {}\n", request.client_addr())))
    }
}

/// Where clients arrive.
struct InProcessListener {
    arrivals: Arc<Mutex<Arrivals>>,
    bell: Bell,
}

#[derive(Default)]
struct Arrivals {
    streams: VecDeque<io::Result<InProcessStream>>,
    count: usize,
    is_closed: bool,
}

/// What clients connect by.
struct Door {
    arrivals: Arc<Mutex<Arrivals>>,
    rope: Rope,
    capacity: usize,
}

impl Door {
    fn connect(&self) -> io::Result<Peer> {
        let (stream, peer) = Connection::open(self.capacity)?;
        self.arrive(Ok(stream))?;
        Ok(peer)
    }

    fn arrive(&self, stream: io::Result<InProcessStream>) -> io::Result<()> {
        let mut arrivals = self.arrivals.lock().unwrap();
        if arrivals.is_closed {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        arrivals.streams.push_back(stream);
        self.rope.pull();
        Ok(())
    }
}

impl Listener for InProcessListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        self.bell.silence();
        let mut arrivals = self.arrivals.lock().unwrap();
        let stream = arrivals.streams.pop_front().ok_or(ErrorKind::WouldBlock)??;
        arrivals.count += 1;
        Ok((Box::new(stream), Address::Other(format!("client {}", arrivals.count).into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Other("in process".into()))
    }
}

impl Drop for InProcessListener {
    fn drop(&mut self) {
        let mut arrivals = self.arrivals.lock().unwrap();
        (arrivals.is_closed, arrivals.streams) = (true, VecDeque::new());
    }
}

impl Source for InProcessListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.bell.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.bell.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.bell.deregister(registry)
    }
}

// What the tests need besides.

const CAPACITY: usize = 1000;

fn start(builder: Builder, backends: BackendSet) -> (Balancer, Door) {
    let (bell, rope) = Bell::new().unwrap();
    let arrivals = Arc::<Mutex<Arrivals>>::default();
    let listener: Box<dyn Listener> =
        Box::new(InProcessListener { arrivals: arrivals.clone(), bell });
    let server = builder.backends(backends).build(listener).unwrap();
    assert_eq!(server.local_addr().to_string(), "in process");
    let control = server.control();
    let nowhere = ([0, 0, 0, 0], 0).into();
    let balancer = Balancer { addr: nowhere, control, thread: server.spawn().unwrap() };
    (balancer, Door { arrivals, rope, capacity: CAPACITY })
}

/// A balancer with one backend, a client of it, and the connection that the backend got for it.
fn pair(builder: Builder) -> (Balancer, Peer, Peer) {
    let (backend, backlog) = InProcessBackend::new("one", CAPACITY);
    let (balancer, door) = start(builder, BackendSet::from([("a", backend)]));
    let client = door.connect().unwrap();
    let mut at_backend = backlog.accept();
    assert_eq!(read_tag(&mut at_backend), "for client 1");
    (balancer, client, at_backend)
}

/// Sends until nothing more is taken, and returns how many bytes were.
fn fill(balancer: &Balancer, peer: &Peer) -> usize {
    let (data, mut sent) = (pattern(100_000), 0);
    loop {
        let len = peer.write_some(&data[sent..]);
        sent += len;
        // Two snapshots: what the bell told of before the first is done before the second.
        balancer.stats();
        balancer.stats();
        if len == 0 {
            return sent;
        }
    }
}

#[track_caller]
fn assert_seen_cut(mut peer: Peer) {
    assert_eq!(read_to_end(&mut peer).1, StreamEnd::Reset);
    assert_eq!(peer.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn c1_2_megabytes_go_through_small_queues_both_ways_at_once() {
    const LEN: usize = 2_000_000;
    let (balancer, mut client, mut at_backend) = pair(Server::builder());
    let echo = std::thread::spawn(move || {
        io::copy(&mut at_backend.clone(), &mut at_backend).unwrap();
        at_backend.end();
    });
    let writer = std::thread::spawn({
        let mut client = client.clone();
        move || {
            client.write_all(&pattern(LEN)).unwrap();
            client.end();
        }
    });

    let (bytes, end) = read_to_end(&mut client);

    assert!(bytes == pattern(LEN) && end == StreamEnd::Clean, "{} bytes, {end:?}", bytes.len());
    balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
    echo.join().unwrap();
    writer.join().unwrap();
}

#[test]
fn c6_3_a_backend_that_does_not_read_is_owed_one_buffer_and_no_more() {
    const BUFFER: usize = 100;
    let (balancer, client, mut at_backend) = pair(Server::builder().buffer_size(BUFFER));
    let sent = fill(&balancer, &client);
    assert!((2 * CAPACITY..=2 * CAPACITY + BUFFER).contains(&sent), "{sent}");
    assert_eq!(at_backend.readable(), CAPACITY);

    client.end();

    let (bytes, end) = read_to_end(&mut at_backend);
    assert!(bytes == pattern(100_000)[..sent] && end == StreamEnd::Clean);
}

#[test]
fn c6_2_either_side_may_end_first_and_the_other_goes_on() {
    for client_first in [true, false] {
        let (balancer, client, backend) = pair(Server::builder());
        let (mut first, mut second) =
            if client_first { (client, backend) } else { (backend, client) };
        first.write_all(b"a request").unwrap();
        first.end();
        assert_eq!(read_to_end(&mut second), (b"a request".to_vec(), StreamEnd::Clean));
        assert_eq!(balancer.stats().open, 1);

        second.write_all(&pattern(CAPACITY)).unwrap();
        second.end();

        assert_eq!(read_to_end(&mut first), (pattern(CAPACITY), StreamEnd::Clean));
        balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
    }
}

#[test]
fn c3_10_a_cut_of_one_side_is_a_cut_of_the_other() {
    for by_client in [true, false] {
        let (balancer, client, backend) = pair(Server::builder());
        let (from, to) = if by_client { (client, backend) } else { (backend, client) };

        from.cut();

        assert_seen_cut(to);
        let reason = if by_client { EndReason::ClientFailed } else { EndReason::BackendFailed };
        balancer.wait_for("the cut", |stats| stats.ended.of(reason) == 1);
    }
}

#[test]
fn c3_10_a_cut_after_a_half_close_is_a_cut_of_the_direction_that_is_left() {
    for by_client in [true, false] {
        let (_balancer, client, backend) = pair(Server::builder());
        let (from, mut to) = if by_client { (client, backend) } else { (backend, client) };
        from.end();
        assert_eq!(read_to_end(&mut to), (vec![], StreamEnd::Clean));

        from.cut();

        let err = wait_for("the cut", || to.write(b"x").err());
        assert_eq!(err.kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn c6_4_a_cut_is_seen_on_a_side_that_is_not_being_read() {
    let (balancer, client, _unread) = pair(Server::builder().buffer_size(1));
    fill(&balancer, &client);

    client.cut();

    balancer.wait_for("the cut", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
}

#[test]
fn c3_2_removal_cuts_both_sides_even_if_nobody_reads() {
    let (balancer, client, at_backend) = pair(Server::builder());
    fill(&balancer, &client);
    assert_eq!(at_backend.readable(), CAPACITY);

    let applied = balancer.update(BackendSet::new());

    assert_eq!(applied.closed, 1);
    assert_seen_cut(client);
    assert_seen_cut(at_backend);
}

#[test]
fn c3_2_a_dial_that_nobody_answered_is_cancelled_and_its_client_goes_on() {
    let ((one, backlog_one), (two, backlog_two)) =
        (InProcessBackend::new("one", 9), InProcessBackend::new("two", 9));
    let (balancer, door) = start(Server::builder(), BackendSet::from([("a", one)]));
    let mut client = door.connect().unwrap();
    client.write_all(b"hello\n").unwrap();
    let unanswered = backlog_one.next();

    let applied = balancer.update(BackendSet::from([("a", two)]));

    assert_eq!((applied.closed, applied.cancelled), (0, 1));
    assert_seen_cut(unanswered);
    let mut at_backend = backlog_two.accept();
    assert_eq!([read_tag(&mut at_backend), read_tag(&mut at_backend)], ["for client 1", "hello"]);
    client.cut();
}

#[test]
fn c5_3_refusals_and_silence_fail_over_and_the_last_refuses_the_client() {
    let backends =
        ["refuses", "cuts", "silent", "good"].map(|name| InProcessBackend::new(name, CAPACITY));
    let [refuses, cuts, silent, good] = backends.each_ref().map(|(_, backlog)| backlog.clone());
    refuses.close();
    let set: BackendSet =
        ["a", "b", "c", "d"].into_iter().zip(backends.map(|(backend, _)| backend)).collect();
    let (balancer, door) =
        start(Server::builder().connect_timeout(Duration::from_millis(100)), set.clone());

    let client = door.connect().unwrap();
    cuts.next().cut();
    let unanswered = silent.next();
    let mut at_backend = good.accept();

    assert_eq!(read_tag(&mut at_backend), "for client 1");
    assert_seen_cut(unanswered);
    let failures = balancer.stats().backends.into_iter().map(|backend| backend.usage.dial_failures);
    assert_eq!(failures.collect::<Vec<_>>(), [1, 1, 1, 0]);
    client.cut();

    let mut refusing = set;
    refusing.retain(|entry| entry.key() == "a");
    balancer.update(refusing);
    assert_seen_cut(door.connect().unwrap());
    assert_eq!(balancer.stats().refused.of(EndReason::BackendsFailed), 1);
}

#[test]
fn c5_4_a_client_that_is_gone_ends_its_dial_and_one_that_has_ended_its_stream_does_not() {
    let (backend, backlog) = InProcessBackend::new("one", CAPACITY);
    let (balancer, door) = start(Server::builder(), BackendSet::from([("a", backend)]));
    let [cut, left, ended] = [(); 3].map(|()| door.connect().unwrap());
    let (of_cut, of_left) = (backlog.next(), backlog.next());

    ended.end();
    left.leave();
    cut.cut();

    let stats = balancer.wait_for("the end", |stats| stats.dialling == 1);
    assert_eq!(stats.refused.of(EndReason::ClientFailed), 2);
    assert_seen_cut(of_cut);
    assert_seen_cut(of_left);
    assert_eq!(read_to_end(&mut backlog.accept()), (b"for client 3\n".to_vec(), StreamEnd::Clean));
}

#[test]
fn c4_3_a_listener_that_fails_for_one_client_goes_on_and_for_all_tries_again() {
    let (backend, backlog) = InProcessBackend::new("one", CAPACITY);
    let (_balancer, door) = start(Server::builder(), BackendSet::from([("a", backend)]));

    for error in [ErrorKind::ConnectionAborted, ErrorKind::OutOfMemory, ErrorKind::Other] {
        door.arrive(Err(error.into())).unwrap();
    }
    let _client = door.connect().unwrap();

    assert_eq!(read_tag(&mut backlog.accept()), "for client 1");
}

#[test]
fn c7_2_a_drain_closes_the_listener_and_lets_connections_finish() {
    let (backend, backlog) = InProcessBackend::new("one", CAPACITY);
    let (balancer, door) = start(Server::builder(), BackendSet::from([("a", backend)]));
    let mut client = door.connect().unwrap();
    let mut at_backend = backlog.accept();
    read_tag(&mut at_backend);

    balancer.control.drain(PATIENCE).unwrap();
    wait_for("the closed listener", || door.connect().err());

    client.write_all(b"last words").unwrap();
    client.end();
    assert_eq!(read_to_end(&mut at_backend), (b"last words".to_vec(), StreamEnd::Clean));
    at_backend.end();
    assert_eq!(read_to_end(&mut client), (vec![], StreamEnd::Clean));
    let summary = balancer.thread.join().unwrap();
    assert_eq!(summary.ended.of(EndReason::Finished), 1);
}

#[test]
fn c1_2_it_goes_together_with_tcp_and_backends_are_told_its_addresses() {
    let tcp = TestBackend::echo("tcp");
    let (backend, backlog) = InProcessBackend::new("one", CAPACITY);
    let requests = backend.requests.clone();
    let (balancer, door) = start(Server::builder(), set([("tcp", tcp.addr)]));
    let mut client = door.connect().unwrap();
    assert_eq!(read_tag(&mut client), "tcp");
    assert_echo(&mut client, &pattern(CAPACITY));

    let balancer_of_tcp = Balancer::start(BackendSet::from([("a", backend)]));
    let mut tcp_client = balancer_of_tcp.client();
    let mut at_backend = backlog.accept();

    let addr = tcp_client.local_addr().unwrap();
    assert_eq!(read_tag(&mut at_backend), format!("for {addr}"));
    assert_eq!(*requests.lock().unwrap(), [(addr.into(), balancer_of_tcp.addr.into())]);
    at_backend.write_all(b"answer\n").unwrap();
    assert_eq!(read_tag(&mut tcp_client), "answer");
    assert_eq!(balancer.stats().open, 1);
}
