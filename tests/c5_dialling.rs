//! Chapter 5 of the contract: dialling.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tinylb::mio::event::Source;
use tinylb::mio::{self, Interest, Registry, Token};
use tinylb::{
    Address, Applied, AttemptFailed, Backend, BackendSet, Dial, DialRequest, Ejection, EndReason,
    Ended, Listener, Observer, Server, Stream, TcpBackend,
};
use tinylb_tests::*;

const LONG: Duration = Duration::from_secs(60);

/// Remembers what an observer is told.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Testimony>>);

#[derive(Clone, Default)]
struct Testimony {
    /// The balancer's thread, as a path in /proc.
    thread: PathBuf,
    failed: Vec<(String, ErrorKind)>,
    ended: Vec<EndReason>,
}

impl Witness {
    fn tell(&self) -> Testimony {
        self.0.lock().unwrap().clone()
    }

    /// The keys of the backends to which an attempt failed, in order.
    fn failed_keys(&self) -> Vec<String> {
        self.tell().failed.into_iter().map(|(key, _)| key).collect()
    }
}

impl Observer for Witness {
    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        self.0.lock().unwrap().failed.push((failed.key.to_owned(), failed.error.kind()));
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        self.0.lock().unwrap().ended.push(ended.reason);
    }

    fn updated(&mut self, _: &Applied) {
        self.0.lock().unwrap().thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    }
}

/// A backend whose connections are up when the test says so, and of which the test holds the far end.
///
/// Whatever is sent from there is an event, and a reason for the balancer to ask whether the connection is up.
struct Gate {
    listener: TcpListener,
    shared: Arc<GateState>,
}

struct GateState {
    addr: SocketAddr,
    answer: Mutex<Answer>,
    asked: AtomicU64,
}

#[derive(Clone, Copy)]
enum Answer {
    NotYet,
    Up,
    Refused,
}

impl Gate {
    fn new() -> Self {
        let listener = listener();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared =
            GateState { addr, answer: Mutex::new(Answer::NotYet), asked: AtomicU64::new(0) };
        Self { listener, shared: Arc::new(shared) }
    }

    fn backend(&self) -> GatedBackend {
        GatedBackend(self.shared.clone())
    }

    /// The far end of the next dial, about which the balancer has asked once, when it was ready to be written to.
    #[track_caller]
    fn take_dial(&self) -> TcpStream {
        let (stream, _) = wait_for("a dial", || self.listener.accept().ok());
        stream.set_nonblocking(false).unwrap(); // which some systems have it inherit
        impatient(&stream);
        wait_for("the connection is asked about", || (self.asked() > 0).then_some(()));
        stream
    }

    fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Sends something, and waits until that has made the balancer ask.
    #[track_caller]
    fn knock(&self, far: &mut TcpStream) {
        let before = self.asked();
        far.write_all(b".").unwrap();
        wait_for("the connection is asked about", || (self.asked() > before).then_some(()));
    }

    /// Gives the answer from now on, and has the balancer ask for it.
    fn answer(&self, far: &mut TcpStream, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
        far.write_all(b".").unwrap();
    }
}

struct GatedBackend(Arc<GateState>);

impl Backend for GatedBackend {
    fn target_name(&self) -> String {
        self.0.addr.to_string()
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        let stream = mio::net::TcpStream::connect(self.0.addr)?;
        Ok(Dial::new(Wrapped { stream, gate: Some(self.0.clone()), reads: None }))
    }
}

/// A TCP stream that asks a gate whether it is up, or counts its reads.
struct Wrapped {
    stream: mio::net::TcpStream,
    gate: Option<Arc<GateState>>,
    reads: Option<Arc<AtomicU64>>,
}

impl Stream for Wrapped {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Stream::shutdown_write(&mut self.stream)
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        let Some(gate) = &self.gate else { return self.stream.check_connect() };
        let result = match *gate.answer.lock().unwrap() {
            Answer::NotYet => Ok(false),
            Answer::Up => self.stream.check_connect(),
            Answer::Refused => Err(ErrorKind::ConnectionRefused.into()),
        };
        gate.asked.fetch_add(1, Ordering::SeqCst);
        result
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Stream::take_error(&mut self.stream)
    }

    fn abort(&mut self) {
        Stream::abort(&mut self.stream);
    }
}

impl Read for Wrapped {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if let Some(reads) = &self.reads {
            reads.fetch_add(1, Ordering::SeqCst);
        }
        self.stream.read(room)
    }
}

impl Write for Wrapped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Source for Wrapped {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.stream.register(registry, token, interests)
    }
    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.stream.reregister(registry, token, interests)
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.stream.deregister(registry)
    }
}

/// A listener that counts the reads of its clients.
struct CountingListener {
    listener: mio::net::TcpListener,
    reads: Arc<AtomicU64>,
}

impl Listener for CountingListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (stream, addr) = self.listener.accept()?;
        Ok((Box::new(Wrapped { stream, gate: None, reads: Some(self.reads.clone()) }), addr.into()))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.listener.local_addr().map(Address::from)
    }
}

impl Source for CountingListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.listener.register(registry, token, interests)
    }
    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.listener.reregister(registry, token, interests)
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.listener.deregister(registry)
    }
}

/// A balancer with one backend behind a gate, and a client who waits for it.
#[track_caller]
fn balancer_at(gate: &Gate) -> (Balancer, TcpStream, TcpStream) {
    let mut backends = BackendSet::new();
    backends.insert("gate", gate.backend());
    let balancer = Balancer::start(backends);
    let client = balancer.client();
    (balancer, client, gate.take_dial())
}

/// A backend that counts its dials and fails as it is told to.
#[derive(Clone)]
struct Moody(Arc<MoodyState>);

struct MoodyState {
    backend: TcpBackend,
    dials: AtomicU64,
    error: Mutex<Option<ErrorKind>>,
}

impl Moody {
    fn new(addr: SocketAddr, error: Option<ErrorKind>) -> Self {
        let (dials, error) = (AtomicU64::new(0), Mutex::new(error));
        Self(Arc::new(MoodyState { backend: TcpBackend::new(addr), dials, error }))
    }

    fn dials(&self) -> u64 {
        self.0.dials.load(Ordering::SeqCst)
    }

    fn fail(&self, error: impl Into<Option<ErrorKind>>) {
        *self.0.error.lock().unwrap() = error.into();
    }
}

impl Backend for Moody {
    fn target_name(&self) -> String {
        self.0.backend.target_name()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        self.0.dials.fetch_add(1, Ordering::SeqCst);
        match *self.0.error.lock().unwrap() {
            Some(error) => Err(error.into()),
            None => self.0.backend.dial(request),
        }
    }
}

// C5.1

#[test]
fn c5_1_a_backend_that_does_not_answer_stalls_nobody_else() {
    let (hole, alive) = (BlackHole::new(), TestBackend::echo("b"));
    let builder = Server::builder().connect_timeout(LONG).dial_limit(LONG);
    let balancer = Balancer::with(builder, set([("a", hole.addr), ("b", alive.addr)]));
    let mut stalled = Vec::new();

    for nth in 1..=5 {
        stalled.push(balancer.client());
        balancer.wait_for("one more is stalled", |stats| stats.dialling == nth);
        let (mut served, tag) = balancer.tagged_client();
        assert_eq!(tag, "b");
        assert_echo(&mut served, b"hello");
    }

    assert_eq!(balancer.update(set([("b", alive.addr)])).cancelled, 5);
    for client in &mut stalled {
        assert_eq!(read_tag(client), "b");
    }
}

#[test]
fn c5_1_no_byte_of_the_client_is_read_before_its_backend_is_connected_and_none_is_lost() {
    let (gate, reads) = (Gate::new(), Arc::new(AtomicU64::new(0)));
    let mut backends = BackendSet::new();
    backends.insert("gate", gate.backend());
    let listener = mio::net::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: Box<dyn Listener> = Box::new(CountingListener { listener, reads: reads.clone() });
    let server = Server::builder().backends(backends).build(listener).unwrap();
    let (control, addr) = (server.control(), server.local_addr().ip().unwrap());
    let _thread = server.spawn().unwrap();
    let sent = pattern(20_000);
    let mut client = connect(addr);
    client.write_all(&sent[..10_000]).unwrap();
    let mut far = gate.take_dial();
    client.write_all(&sent[10_000..]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    gate.knock(&mut far);
    assert_eq!(control.stats().unwrap().wait().unwrap().dialling, 1);
    assert_eq!(reads.load(Ordering::SeqCst), 0);

    gate.answer(&mut far, Answer::Up);

    assert!(read_to_end(&mut far) == (sent, StreamEnd::Clean));
    assert!(reads.load(Ordering::SeqCst) > 0);
}

// C5.2

#[test]
fn c5_2_each_attempt_has_its_own_time() {
    let (hole, alive, witness) = (BlackHole::new(), TestBackend::echo("c"), Witness::default());
    let limit = Duration::from_millis(150);
    let builder = Server::builder().connect_timeout(limit).observer(witness.clone());
    let balancer =
        Balancer::with(builder, set([("a", hole.addr), ("b", hole.addr), ("c", alive.addr)]));
    let start = Instant::now();

    let (_client, tag) = balancer.tagged_client();

    assert_eq!(tag, "c");
    assert!(start.elapsed() >= 2 * limit);
    let timed_out = |key: &str| (key.to_owned(), ErrorKind::TimedOut);
    assert_eq!(witness.tell().failed, [timed_out("a"), timed_out("b")]);
}

#[test]
fn c5_2_all_attempts_for_a_client_together_have_a_limit() {
    let (hole, witness) = (BlackHole::new(), Witness::default());
    let builder = Server::builder()
        .connect_timeout(Duration::from_millis(200))
        .dial_limit(Duration::from_millis(300))
        .observer(witness.clone());
    let balancer = Balancer::with(builder, set(["a", "b", "c", "d"].map(|key| (key, hole.addr))));
    let start = Instant::now();

    assert_cut(&mut balancer.client());

    assert!(start.elapsed() >= Duration::from_millis(300));
    let stats = balancer.stats();
    assert_eq!((stats.refused.of(EndReason::DialLimit), stats.refused.total()), (1, 1));
    let failed = witness.failed_keys();
    assert!(failed == ["a"] || failed == ["a", "b"], "{failed:?}");
}

#[test]
fn c5_2_a_spurious_event_connects_nothing() {
    let gate = Gate::new();
    let (balancer, mut client, mut far) = balancer_at(&gate);

    for _ in 0..3 {
        gate.knock(&mut far);
        let stats = balancer.stats();
        assert_eq!((stats.dialling, stats.open), (1, 0));
    }

    gate.answer(&mut far, Answer::Up);
    far.write_all(b"up\n").unwrap();
    assert_eq!(read_tag(&mut client), "....up");
    assert_eq!(balancer.stats().open, 1);
}

// C5.3

#[test]
fn c5_3_a_refused_dial_does_not_close_the_client_while_another_backend_is_up() {
    let (alive, witness) = (TestBackend::echo("c"), Witness::default());
    let dead = [refusing_addr(), refusing_addr()];
    let builder = Server::builder().observer(witness.clone());
    let balancer =
        Balancer::with(builder, set([("a", dead[0]), ("b", dead[1]), ("c", alive.addr)]));
    let mut client = balancer.client();
    client.write_all(b"sent early").unwrap();

    assert_eq!(read_tag(&mut client), "c");

    let mut echo = [0; 10];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"sent early");
    let refused = |key: &str| (key.to_owned(), ErrorKind::ConnectionRefused);
    assert_eq!(witness.tell().failed, [refused("a"), refused("b")]);
}

#[test]
fn c5_3_when_all_have_failed_once_the_client_is_refused() {
    let (dead, witness) = (refusing_addr(), Witness::default());
    let builder = Server::builder().observer(witness.clone());
    // Two keys of one target are two candidates.
    let backends = set([("a", dead), ("b", dead), ("c", refusing_addr())]);
    let balancer = Balancer::with(builder, backends);

    assert_refused(balancer.addr);

    let stats = balancer.wait_for("the client is counted", |stats| stats.refused.total() == 1);
    assert_eq!(stats.refused.of(EndReason::BackendsFailed), 1);
    assert_eq!(witness.failed_keys(), ["a", "b", "c"]);
    assert_eq!(witness.tell().ended, [EndReason::BackendsFailed]);
}

#[test]
fn c5_3_a_candidate_that_vanished_is_not_tried_and_one_of_a_new_set_is() {
    let (gate, vanished, new) = (Gate::new(), TestBackend::echo("b"), TestBackend::echo("c"));
    let mut backends = BackendSet::new();
    backends.insert("a", gate.backend());
    backends.insert("b", TcpBackend::new(vanished.addr));
    let balancer = Balancer::start(backends.clone());
    let mut client = balancer.client();
    let mut far = gate.take_dial();
    backends.remove("b");
    backends.insert("c", TcpBackend::new(new.addr));
    assert_eq!(balancer.update(backends).cancelled, 0);

    gate.answer(&mut far, Answer::Refused);

    assert_eq!(read_tag(&mut client), "c");
    assert_eq!(vanished.accepted(), 0);
    assert_cut(&mut far);
}

#[test]
fn c5_3_a_key_that_was_tried_is_tried_again_only_under_a_new_target() {
    let (gate, alive, dead) = (Gate::new(), TestBackend::echo("b"), refusing_addr());
    let witness = Witness::default();
    let mut backends = set([("a", dead), ("c", dead)]);
    backends.insert("b", gate.backend());
    let balancer = Balancer::with(Server::builder().observer(witness.clone()), backends.clone());
    let mut client = balancer.client();
    let mut far = gate.take_dial();
    assert_eq!(witness.failed_keys(), ["a"]);

    // "a" stays as it is and has been tried; "b" is being tried, and what it is now has not been.
    backends.insert("b", TcpBackend::new(alive.addr));
    assert_eq!(balancer.update(backends).cancelled, 1);

    assert_eq!(read_tag(&mut client), "b");
    assert_eq!(witness.failed_keys(), ["a", "c"]);
    assert_cut(&mut far);
}

// C5.4

#[test]
fn c5_4_a_client_that_resets_while_it_waits_ends_the_dial() {
    let gate = Gate::new();
    let (balancer, client, mut far) = balancer_at(&gate);

    reset(client);

    assert_cut(&mut far);
    let stats = balancer.wait_for("the client is counted", |stats| stats.dialling == 0);
    assert_eq!((stats.refused.of(EndReason::ClientFailed), stats.refused.total()), (1, 1));
}

#[test]
fn c5_4_a_client_that_resets_after_it_finished_sending_ends_the_dial() {
    let gate = Gate::new();
    let (balancer, mut client, mut far) = balancer_at(&gate);
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(balancer.stats().dialling, 1);

    reset(client);

    assert_cut(&mut far);
    balancer
        .wait_for("the client is counted", |stats| stats.refused.of(EndReason::ClientFailed) == 1);
}

#[test]
fn c5_4_a_client_that_only_finished_sending_gets_its_answer() {
    let gate = Gate::new();
    let (balancer, mut client, mut far) = balancer_at(&gate);
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(balancer.stats().dialling, 1);

    gate.answer(&mut far, Answer::Up);

    assert_eq!(read_to_end(&mut far), (b"request".to_vec(), StreamEnd::Clean));
    far.write_all(b"answer").unwrap();
    drop(far);
    assert_eq!(read_to_end(&mut client), (b".answer".to_vec(), StreamEnd::Clean));
}

#[cfg(unix)]
mod unix {
    use std::os::unix::net::{UnixListener, UnixStream};

    use tinylb::{Control, ServerThread};

    use super::*;

    /// A balancer that listens on a Unix-domain socket, with a gate behind it and a client who waits.
    fn unix_balancer_at(gate: &Gate) -> (Control, ServerThread, UnixStream, TcpStream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut backends = BackendSet::new();
        backends.insert("gate", gate.backend());
        let server =
            Server::builder().backends(backends).build(UnixListener::bind(&path).unwrap()).unwrap();
        let (control, thread) = (server.control(), server.spawn().unwrap());
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        (control, thread, client, gate.take_dial())
    }

    #[test]
    fn c5_4_a_unix_client_that_is_gone_both_ways_ends_the_dial() {
        let gate = Gate::new();
        let (control, _thread, client, mut far) = unix_balancer_at(&gate);

        drop(client);

        assert_cut(&mut far);
        wait_for("the client is counted", || {
            (control.stats().unwrap().wait().unwrap().refused.of(EndReason::ClientFailed) == 1)
                .then_some(())
        });
    }

    #[test]
    fn c5_4_a_unix_client_that_only_finished_sending_gets_its_answer() {
        let gate = Gate::new();
        let (control, _thread, mut client, mut far) = unix_balancer_at(&gate);
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(control.stats().unwrap().wait().unwrap().dialling, 1);

        gate.answer(&mut far, Answer::Up);

        assert_eq!(read_to_end(&mut far), (b"request".to_vec(), StreamEnd::Clean));
        far.write_all(b"answer").unwrap();
        drop(far);
        assert_eq!(read_to_end(&mut client), (b".answer".to_vec(), StreamEnd::Clean));
    }
}

// C5.5

/// After three failures, for so long that no test sees the end of it.
const FOR_GOOD: Ejection = Ejection::new(3, LONG, LONG);

/// A backend "a" of which the test decides, and "b", which is fine.
fn moody_and_fine(
    error: Option<ErrorKind>,
    ejection: Ejection,
) -> (Balancer, Moody, [TestBackend; 2]) {
    let backends = [TestBackend::echo("a"), TestBackend::echo("b")];
    let moody = Moody::new(backends[0].addr, error);
    let mut backend_set = set([("b", backends[1].addr)]);
    backend_set.insert("a", moody.clone());
    (Balancer::with(Server::builder().ejection(ejection), backend_set), moody, backends)
}

/// The tags of the backends that serve so many new clients, one after the other.
fn tags(balancer: &Balancer, clients: usize) -> String {
    (0..clients).map(|_| balancer.tagged_client().1).collect()
}

fn is_ejected(balancer: &Balancer, key: &str) -> bool {
    balancer.stats().backend(key).unwrap().ejected
}

#[test]
fn c5_5_a_dead_backend_is_no_longer_dialled_after_three_failures() {
    let (alive, witness) = (TestBackend::echo("b"), Witness::default());
    let builder = Server::builder().ejection(FOR_GOOD).observer(witness.clone());
    let balancer = Balancer::with(builder, set([("a", refusing_addr()), ("b", alive.addr)]));
    assert_eq!(tags(&balancer, 2), "bb");
    assert!(!is_ejected(&balancer, "a"));

    assert_eq!(tags(&balancer, 8), "bbbbbbbb");

    assert_eq!(witness.failed_keys(), ["a", "a", "a"]);
    let stats = balancer.stats();
    assert_eq!(
        stats.backends.iter().map(|backend| backend.ejected).collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(stats.backend("a").unwrap().usage.dial_failures, 3);
}

#[test]
fn c5_5_a_black_hole_is_ejected_as_well() {
    let (hole, alive) = (BlackHole::new(), TestBackend::echo("b"));
    let builder = Server::builder().ejection(FOR_GOOD).connect_timeout(Duration::from_millis(50));
    let balancer = Balancer::with(builder, set([("a", hole.addr), ("b", alive.addr)]));

    assert_eq!(tags(&balancer, 6), "bbbbbb");

    assert!(is_ejected(&balancer, "a"));
    assert_eq!(balancer.stats().backend("a").unwrap().usage.dial_failures, 3);
}

#[test]
fn c5_5_a_black_hole_is_ejected_also_where_the_dial_limit_leaves_it_less_than_the_connect_timeout()
{
    let (hole, limit) = (BlackHole::new(), Duration::from_millis(50));
    let balancer = Balancer::with(
        Server::builder().connect_timeout(LONG).dial_limit(limit),
        set([("a", hole.addr)]),
    );

    for _ in 0..3 {
        assert_cut(&mut balancer.client());
    }

    assert!(is_ejected(&balancer, "a"));
}

#[test]
fn c5_5_an_ejected_backend_comes_back_after_its_time_and_one_failure_ejects_it_for_longer() {
    let base = Duration::from_millis(200);
    let ejection = Ejection::new(3, base, LONG);
    let (balancer, moody, _backends) = moody_and_fine(Some(ErrorKind::ConnectionRefused), ejection);
    // Returns a time shortly before the dial, from which on its failure counts.
    let until_dialled = |dials| {
        wait_for("the dead backend is tried", || {
            let before = Instant::now();
            balancer.tagged_client();
            (moody.dials() == dials).then_some(before)
        })
    };

    // The jitter takes off a quarter at most.
    let before_third = until_dialled(3);
    let before_fourth = until_dialled(4);
    assert!(before_third.elapsed() >= base * 3 / 4);
    until_dialled(5);
    assert!(before_fourth.elapsed() >= 2 * base * 3 / 4);
}

#[test]
fn c5_5_success_clears_the_record() {
    let (balancer, moody, _backends) = moody_and_fine(Some(ErrorKind::ConnectionRefused), FOR_GOOD);
    assert_eq!(tags(&balancer, 2), "bb");
    moody.fail(None);
    assert_eq!(tags(&balancer, 2), "ab");
    moody.fail(ErrorKind::ConnectionRefused);

    assert_eq!(tags(&balancer, 2), "bb");
    assert!(
        !is_ejected(&balancer, "a"),
        "two failures, and two before the success, are not three in a row"
    );

    tags(&balancer, 1);
    assert!(is_ejected(&balancer, "a"));
}

#[test]
fn c5_5_errors_of_this_machine_never_count() {
    for error in [ErrorKind::AddrNotAvailable, ErrorKind::AddrInUse] {
        let (balancer, moody, _backends) = moody_and_fine(Some(error), FOR_GOOD);

        assert_eq!(tags(&balancer, 10), "bbbbbbbbbb");

        assert_eq!(moody.dials(), 10);
        assert!(!is_ejected(&balancer, "a"));
    }
}

#[test]
fn c5_5_if_all_are_ejected_all_are_candidates() {
    let alive = TestBackend::echo("a");
    let moody = Moody::new(alive.addr, Some(ErrorKind::ConnectionRefused));
    let mut backends = set([("b", refusing_addr())]);
    backends.insert("a", moody.clone());
    let balancer = Balancer::with(Server::builder().ejection(FOR_GOOD), backends);
    (0..3).for_each(|_| assert_refused(balancer.addr));
    balancer
        .wait_for("both are ejected", |stats| stats.backends.iter().all(|backend| backend.ejected));
    assert_eq!(moody.dials(), 3);
    assert_refused(balancer.addr);
    assert_eq!(moody.dials(), 4);

    moody.fail(None);

    assert_eq!(tags(&balancer, 2), "aa");
    assert!(!is_ejected(&balancer, "a"), "success did not clear it");
}

#[test]
fn c5_5_a_new_target_under_the_key_clears_the_record() {
    let (balancer, _moody, [a, b]) = moody_and_fine(Some(ErrorKind::ConnectionRefused), FOR_GOOD);
    tags(&balancer, 3);
    assert!(is_ejected(&balancer, "a"));
    let mut same_target = set([("a", a.addr), ("b", b.addr)]);
    balancer.update(same_target.clone());
    assert!(is_ejected(&balancer, "a"), "the target is still the same");
    let elsewhere = TestBackend::echo("A");
    same_target.insert("a", TcpBackend::new(elsewhere.addr));

    balancer.update(same_target);

    assert!(!is_ejected(&balancer, "a"));
    assert_eq!(tags(&balancer, 2), "Ab");
}

#[test]
fn c5_5_ejection_closes_no_live_pair() {
    let (balancer, moody, _backends) = moody_and_fine(None, FOR_GOOD);
    let (mut live, tag) = balancer.tagged_client();
    assert_eq!(tag, "a");
    moody.fail(ErrorKind::ConnectionRefused);

    assert_eq!(tags(&balancer, 6), "bbbbbb");

    assert!(is_ejected(&balancer, "a"));
    assert_echo(&mut live, b"still here");
    assert_eq!(balancer.stats().backend("a").unwrap().usage.open, 1);
}

// And at rest

#[test]
#[cfg(target_os = "linux")]
fn c9_1_dials_in_flight_leave_the_cpu_at_rest() {
    let (hole, gate, witness) = (BlackHole::new(), Gate::new(), Witness::default());
    let builder =
        Server::builder().connect_timeout(LONG).dial_limit(LONG).observer(witness.clone());
    let mut backends = set([("hole", hole.addr)]);
    backends.insert("gate", gate.backend());
    let balancer = Balancer::with(builder, backends);
    let mut clients: Vec<_> = (0..20).map(|_| balancer.client()).collect();
    // Bytes and ends of stream that nobody takes must not be told again and again.
    clients.iter_mut().for_each(|client| client.write_all(b"early").unwrap());
    clients.iter().step_by(2).for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    let mut far_ends: Vec<_> = (0..10).map(|_| gate.take_dial()).collect();
    far_ends.iter_mut().for_each(|far| gate.knock(far));
    assert_eq!(balancer.stats().dialling, 20);
    let stat = std::path::Path::new("/proc").join(witness.tell().thread).join("stat");
    let before = cpu_time(&stat);

    std::thread::sleep(Duration::from_millis(400));

    let used = cpu_time(&stat) - before;
    assert!(used <= Duration::from_millis(50), "used {used:?} of 400 ms");
}

/// The processor time that a thread has used.
#[cfg(target_os = "linux")]
fn cpu_time(stat: &std::path::Path) -> Duration {
    let stat = std::fs::read_to_string(stat).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    // utime and stime, in hundredths of a second
    let ticks =
        after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(10 * ticks.sum::<u64>())
}
