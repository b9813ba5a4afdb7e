//! Chapter 3 of the contract: updates, and how they close what vanishes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tinylb::mio::event::Source;
use tinylb::mio::{self, Interest, Registry, Token};
use tinylb::{
    Address, Applied, Backend, BackendSet, Client, Control, Dial, DialRequest, EndReason, Error,
    Listener, Observer, Readiness, Server, Stream, TcpBackend, Update,
};
use tinylb_tests::*;

/// A limit that no test lives to see.
const LONG: Duration = Duration::from_secs(3600);
/// A limit that tests wait for.
const SHORT: Duration = Duration::from_millis(200);

// What the tests are made with.

/// A backend whose connections the test holds in its own hands.
struct Hand {
    addr: SocketAddr,
    listener: TcpListener,
}

impl Hand {
    fn new() -> Self {
        let listener = listener();
        listener.set_nonblocking(true).unwrap();
        Self { addr: listener.local_addr().unwrap(), listener }
    }

    #[track_caller]
    fn accept(&self) -> TcpStream {
        let stream = wait_for("a connection at the backend", || match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(err) => (err.kind() != ErrorKind::WouldBlock).then(|| panic!("{err}")),
        });
        stream.set_nonblocking(false).unwrap();
        impatient(&stream);
        stream
    }

    /// A new client and the connection that serves it, over which bytes have gone both ways.
    #[track_caller]
    fn pair(&self, balancer: &Balancer) -> (TcpStream, TcpStream) {
        let mut client = balancer.client();
        let mut server = self.accept();
        pass(&mut client, &mut server, b"up");
        pass(&mut server, &mut client, b"down");
        (client, server)
    }
}

/// Sends at one end and reads at the other.
#[track_caller]
fn pass(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) {
    from.write_all(message).unwrap();
    let mut received = vec![0; message.len()];
    to.read_exact(&mut received).unwrap();
    assert_eq!(received, message);
}

/// Ends a stream, and sees that the end arrives.
#[track_caller]
fn end(from: &mut TcpStream, to: &mut TcpStream) {
    from.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(to), (Vec::new(), StreamEnd::Clean));
}

/// Whoever is gone takes nothing more.
#[track_caller]
fn assert_writes_fail(stream: &mut TcpStream) {
    wait_for("a write that fails", || stream.write_all(b"?").err());
}

/// Writes until nothing more is taken, by the peer, the balancer, or any buffer between.
#[track_caller]
fn flood(stream: &mut TcpStream, balancer: &Balancer) {
    stream.set_nonblocking(true).unwrap();
    let junk = vec![7; 256 * 1024];
    let moved = || {
        balancer
            .control
            .stats()
            .and_then(|stats| stats.wait())
            .map(|stats| stats.bytes_up + stats.bytes_down)
            .unwrap()
    };
    let mut blocked = 0;
    wait_for("blocked all the way", || {
        let before = moved();
        match stream.write(&junk) {
            Ok(_) => blocked = 0,
            Err(err) => assert_eq!(err.kind(), ErrorKind::WouldBlock),
        }
        // Each look at the counters is a turn of the loop.
        blocked = if moved() == before { blocked + 1 } else { 0 };
        (blocked > 5).then_some(())
    });
    stream.set_nonblocking(false).unwrap();
}

/// A client whose dial to a black hole is in flight.
#[track_caller]
fn dialling_client(balancer: &Balancer) -> TcpStream {
    let before = balancer.stats().dialling;
    let client = balancer.client();
    balancer.wait_for("a dial in flight", |stats| stats.dialling == before + 1);
    client
}

/// Holds the loop still, so that what a test does meanwhile comes to it at once.
struct Gate {
    is_armed: Arc<AtomicBool>,
    entered: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
}

struct Gatekeeper {
    is_armed: Arc<AtomicBool>,
    entered: mpsc::Sender<()>,
    release: mpsc::Receiver<()>,
}

impl Gate {
    fn new() -> (Self, Gatekeeper) {
        let is_armed = Arc::new(AtomicBool::new(false));
        let (enter, entered) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let keeper = Gatekeeper { is_armed: is_armed.clone(), entered: enter, release: released };
        (Self { is_armed, entered, release }, keeper)
    }

    /// Hands the set in force over once more, and holds the loop when that is applied. What is handed over from then on
    /// is applied in the turn after [`release`](Self::release).
    #[track_caller]
    fn hold(&self, balancer: &Balancer, in_force: &BackendSet) {
        self.hold_at(|| balancer.control.update(in_force.clone()));
    }

    /// Holds the loop when this update is applied.
    #[track_caller]
    fn hold_at(&self, update: impl FnOnce() -> Result<Update, Error>) {
        self.is_armed.store(true, Ordering::SeqCst);
        update().unwrap();
        self.entered.recv_timeout(PATIENCE).unwrap();
    }

    fn release(&self) {
        self.release.send(()).unwrap();
    }
}

impl Observer for Gatekeeper {
    fn updated(&mut self, _: &Applied) {
        if self.is_armed.swap(false, Ordering::SeqCst) {
            self.entered.send(()).unwrap();
            let _ = self.release.recv_timeout(PATIENCE);
        }
    }
}

/// A backend whose target name is not the address that is dialled.
struct Named(String, SocketAddr);

impl Backend for Named {
    fn target_name(&self) -> String {
        self.0.clone()
    }
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        TcpBackend::new(self.1).dial(request)
    }
}

#[track_caller]
fn wait(update: &Update) -> Applied {
    update.wait_timeout(PATIENCE).unwrap().expect("the update is not applied")
}

fn totals(applied: Applied) -> (usize, usize, usize) {
    (applied.closed, applied.cancelled, applied.draining)
}

/// A client that may be cut as soon as it is connected, of which `connect` itself may tell.
fn try_client(balancer: &Balancer) -> Option<TcpStream> {
    let client = TcpStream::connect_timeout(&balancer.addr, PATIENCE).ok()?;
    impatient(&client);
    Some(client)
}

/// Room for the tests that open many connections, whatever the others do meanwhile.
fn raise_descriptor_limit() {
    rlimit::increase_nofile_limit(10_000).unwrap();
}

// C3.1

#[test]
fn c3_1_updates_before_the_start_are_applied_before_the_first_accept() {
    /// Tells what it is told, in order.
    struct Diary(mpsc::Sender<&'static str>);
    impl Observer for Diary {
        fn accepted(&mut self, _: &Client<'_>) {
            self.0.send("accepted").unwrap();
        }
        fn updated(&mut self, _: &Applied) {
            self.0.send("updated").unwrap();
        }
    }
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let (diary, entries) = mpsc::channel();
    let builder = Server::builder().backends(set([("a", one.addr)])).observer(Diary(diary));
    let server = builder.build(listener()).unwrap();
    let mut client = connect(server.local_addr().ip().unwrap());
    let update = server.control().update(set([("a", two.addr)])).unwrap();
    assert_eq!(update.try_wait().unwrap(), None);

    let _running = server.spawn().unwrap();

    assert_eq!(read_tag(&mut client), "two");
    assert_eq!([entries.recv().unwrap(), entries.recv().unwrap()], ["updated", "accepted"]);
    assert_eq!(wait(&update).backends, 1);
}

#[test]
fn c3_1_an_update_does_not_wait_for_the_loop() {
    let (one, (gate, keeper)) = (TestBackend::echo("one"), Gate::new());
    let backends = set([("a", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    gate.hold(&balancer, &backends);

    let (sender, updates) = mpsc::channel();
    let control = balancer.control.clone();
    std::thread::spawn(move || {
        (0..100).try_for_each(|_| sender.send(control.update(backends.clone()).unwrap()))
    });
    let updates: Vec<Update> = (0..100).map(|_| updates.recv_timeout(PATIENCE).unwrap()).collect();

    assert!(updates.iter().all(|update| update.try_wait().unwrap().is_none()));
    gate.release();
    assert_eq!(wait(&updates[99]).backends, 1);
}

#[test]
fn c3_1_updates_from_many_threads_are_all_answered_and_end_in_the_last_of_one() {
    let one = TestBackend::echo("one");
    let balancer = Balancer::start(BackendSet::new());
    let last_of = |thread: usize| format!("thread-{thread}-last");

    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (balancer, one, last) = (&balancer, &one, last_of(thread));
            scope.spawn(move || {
                for round in 0..50 {
                    let key = if round == 49 { &last } else { "a" };
                    assert_eq!(balancer.update(set([(key, one.addr)])).backends, 1);
                }
            });
        }
    });

    let stats = balancer.stats();
    assert!((0..8).any(|thread| *stats.backends[0].key == *last_of(thread)), "{stats:?}");
    assert_eq!(balancer.tagged_client().1, "one");
}

// C3.2: what an update closes.

#[test]
fn c3_2_a_removed_target_is_closed_on_both_sides() {
    let (gone, stays) = (Hand::new(), Hand::new());
    let balancer = Balancer::start(set([("a", gone.addr), ("b", stays.addr)]));
    let (mut client, mut server) = gone.pair(&balancer);
    let (mut other_client, mut other_server) = stays.pair(&balancer);

    let applied = balancer.update(set([("b", stays.addr)]));

    assert_eq!((totals(applied), applied.backends), ((1, 0, 0), 1));
    assert_cut(&mut client);
    assert_cut(&mut server);
    pass(&mut other_client, &mut other_server, b"still here");
    let stats = balancer.stats();
    assert_eq!((stats.open, stats.ended.of(EndReason::TargetRemoved)), (1, 1));
}

#[test]
fn c3_2_an_empty_set_closes_everything() {
    let (one, two) = (Hand::new(), Hand::new());
    let balancer = Balancer::start(set([("a", one.addr), ("b", two.addr)]));
    let mut ends = [one.pair(&balancer), two.pair(&balancer), one.pair(&balancer)];

    let applied = balancer.update(BackendSet::new());

    assert_eq!((totals(applied), applied.backends), ((3, 0, 0), 0));
    for (client, server) in &mut ends {
        assert_cut(client);
        assert_cut(server);
    }
}

#[test]
fn c3_2_a_removed_target_is_closed_though_the_client_has_ended_its_stream() {
    let gone = Hand::new();
    let balancer = Balancer::start(set([("a", gone.addr)]));
    let (mut client, mut server) = gone.pair(&balancer);
    end(&mut client, &mut server);
    pass(&mut server, &mut client, b"half of the ans");

    let applied = balancer.update(BackendSet::new());

    assert_eq!(totals(applied), (1, 0, 0));
    assert_cut(&mut client);
    assert_writes_fail(&mut server);
}

#[test]
fn c3_2_a_removed_target_is_closed_though_the_backend_has_ended_its_stream() {
    let gone = Hand::new();
    let balancer = Balancer::start(set([("a", gone.addr)]));
    let (mut client, mut server) = gone.pair(&balancer);
    end(&mut server, &mut client);
    pass(&mut client, &mut server, b"half of the requ");

    let applied = balancer.update(BackendSet::new());

    assert_eq!(totals(applied), (1, 0, 0));
    assert_cut(&mut server);
    assert_writes_fail(&mut client);
}

#[test]
fn c3_2_a_removed_target_is_closed_even_if_its_client_never_reads() {
    let gone = Hand::new();
    let balancer = Balancer::start(set([("a", gone.addr)]));
    let (mut client, mut server) = gone.pair(&balancer);
    flood(&mut server, &balancer);

    let applied = balancer.update(BackendSet::new());

    assert_eq!(totals(applied), (1, 0, 0));
    assert_cut(&mut server);
    assert_cut(&mut client); // after what its kernel had already
}

#[test]
fn c3_2_a_removed_target_is_closed_even_if_it_never_reads() {
    let gone = Hand::new();
    let balancer = Balancer::start(set([("a", gone.addr)]));
    let (mut client, mut server) = gone.pair(&balancer);
    flood(&mut client, &balancer);

    let applied = balancer.update(BackendSet::new());

    assert_eq!(totals(applied), (1, 0, 0));
    assert_cut(&mut client);
    assert_cut(&mut server); // after what its kernel had already
}

#[test]
fn c3_2_a_dial_in_flight_is_cancelled_and_its_client_goes_on_with_all_that_it_had_sent() {
    let (hole, one) = (BlackHole::new(), TestBackend::echo("one"));
    let balancer = Balancer::start(set([("a", hole.addr), ("b", one.addr)]));
    let mut client = dialling_client(&balancer);
    client.write_all(b"said before").unwrap();
    client.shutdown(Shutdown::Write).unwrap();

    let applied = balancer.update(set([("b", one.addr)]));

    assert_eq!((totals(applied), applied.backends), ((0, 1, 0), 1));
    assert_eq!(read_to_end(&mut client), (b"one\nsaid before".to_vec(), StreamEnd::Clean));
    let stats = balancer.wait_for("finished", |stats| stats.ended.of(EndReason::Finished) == 1);
    assert_eq!((stats.refused.total(), stats.departed.dial_failures), (0, 0));
}

#[test]
fn c3_2_the_client_of_a_cancelled_dial_goes_on_to_what_the_new_set_brings() {
    let (hole, one) = (BlackHole::new(), TestBackend::echo("one"));
    let balancer = Balancer::start(set([("a", hole.addr)]));
    let mut client = dialling_client(&balancer);

    // The key is the one already tried; the target is not.
    let applied = balancer.update(set([("a", one.addr)]));

    assert_eq!(totals(applied), (0, 1, 0));
    assert_eq!(read_tag(&mut client), "one");
}

#[test]
fn c3_2_the_client_of_a_cancelled_dial_is_refused_if_no_candidate_is_left() {
    let (hole, dead) = (BlackHole::new(), refusing_addr());
    let balancer = Balancer::start(set([("a", dead), ("b", hole.addr)]));
    let mut client = dialling_client(&balancer);
    balancer.wait_for("the first candidate to fail", |stats| {
        stats.backends[0].usage.dial_failures == 1
    });

    // What is left has been tried for this client already.
    let applied = balancer.update(set([("a", dead)]));

    assert_eq!(totals(applied), (0, 1, 0));
    assert_cut(&mut client);
    let stats = balancer.stats();
    assert_eq!(
        (stats.refused.of(EndReason::BackendsFailed), stats.backends[0].usage.dial_failures),
        (1, 1)
    );
}

#[test]
fn c3_2_the_client_of_a_cancelled_dial_is_refused_if_the_new_set_is_empty() {
    let hole = BlackHole::new();
    let balancer = Balancer::start(set([("a", hole.addr)]));
    let mut client = dialling_client(&balancer);

    let applied = balancer.update(BackendSet::new());

    assert_eq!(totals(applied), (0, 1, 0));
    assert_cut(&mut client);
    assert_eq!(balancer.stats().refused.of(EndReason::NoBackend), 1);
}

/// When each target was out of the set, by a clock that ticks with each removal and each return.
#[derive(Default)]
struct Absences {
    clock: AtomicU64,
    of: [Mutex<Vec<Absence>>; 3],
}

/// From when to when.
type Absence = (u64, Option<u64>);

impl Absences {
    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn begin(&self, target: usize) {
        let tick = self.now() + 1;
        self.of[target].lock().unwrap().push((tick, None));
        self.clock.store(tick, Ordering::SeqCst);
    }

    fn end(&self, target: usize) {
        let tick = self.now() + 1;
        self.of[target].lock().unwrap().last_mut().unwrap().1 = Some(tick);
        self.clock.store(tick, Ordering::SeqCst);
    }

    /// Whether a connection of the target that was there at one time may still carry what was sent at another.
    fn allow(&self, target: usize, connected: u64, sent: u64) -> bool {
        let absences = self.of[target].lock().unwrap();
        absences.iter().all(|(from, to)| sent < *from || to.is_some_and(|to| to <= connected))
    }
}

/// Answers each stamp with its own number, when it took the connection, and a stamp of its own.
fn witness(target: usize, absences: &Arc<Absences>, violations: &Arc<AtomicUsize>) -> SocketAddr {
    let (listener, absences, violations) = (listener(), absences.clone(), violations.clone());
    let addr = listener.local_addr().unwrap();
    // It ends with the process; its connections end with the balancer.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, absences, violations) =
                (stream.unwrap(), absences.clone(), violations.clone());
            let connected = absences.now();
            std::thread::spawn(move || {
                let mut stamp = [0; 8];
                while stream.read_exact(&mut stamp).is_ok() {
                    if !absences.allow(target, connected, u64::from_be_bytes(stamp)) {
                        violations.fetch_add(1, Ordering::SeqCst);
                    }
                    let answer =
                        [target as u64, connected, absences.now()].map(u64::to_be_bytes).concat();
                    if stream.write_all(&answer).is_err() {
                        break;
                    }
                }
            });
        }
    });
    addr
}

#[test]
fn c3_2_c3_5_not_one_byte_from_or_to_a_removed_target_after_applied_under_connection_load() {
    raise_descriptor_limit();
    let (absences, violations) = (Arc::new(Absences::default()), Arc::new(AtomicUsize::new(0)));
    let addrs = [0, 1, 2].map(|target| witness(target, &absences, &violations));
    let all = set(["a", "b", "c"].into_iter().zip(addrs));
    let balancer = Balancer::start(all.clone());
    let (is_over, answers) = (AtomicBool::new(false), AtomicU64::new(0));

    std::thread::scope(|scope| {
        for patience in [1, 2, 5, 50] {
            let (balancer, absences, violations, is_over, answers) =
                (&balancer, &absences, &violations, &is_over, &answers);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    let Some(mut client) = try_client(balancer) else { continue };
                    for _ in 0..patience {
                        let mut answer = [0; 24];
                        let sent = client.write_all(&absences.now().to_be_bytes());
                        if sent.and_then(|()| client.read_exact(&mut answer)).is_err() {
                            break; // cut
                        }
                        let word =
                            |at: usize| u64::from_be_bytes(answer[at..at + 8].try_into().unwrap());
                        if !absences.allow(word(0) as usize, word(8), word(16)) {
                            violations.fetch_add(1, Ordering::SeqCst);
                        }
                        answers.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        for round in 0..300 {
            let gone = round % 3;
            let mut rest = all.clone();
            rest.remove(["a", "b", "c"][gone]);
            balancer.update(rest);
            absences.begin(gone);
            let before = answers.load(Ordering::SeqCst);
            wait_for("the others to serve on", || {
                (answers.load(Ordering::SeqCst) >= before + 3).then_some(())
            });
            absences.end(gone);
            balancer.control.update(all.clone()).unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
    });

    assert_eq!(violations.load(Ordering::SeqCst), 0);
    let stats = balancer.stats();
    assert!(
        stats.ended.of(EndReason::TargetRemoved) > 50,
        "hardly a connection was there to be closed: {stats:?}"
    );
}

// C3.3: the target name decides.

#[test]
fn c3_3_a_key_that_gets_another_target_closes_the_old_targets_connections() {
    let (old, new) = (Hand::new(), TestBackend::echo("new"));
    let balancer = Balancer::start(set([("a", old.addr)]));
    let (mut client, mut server) = old.pair(&balancer);

    let applied = balancer.update(set([("a", new.addr)]));

    assert_eq!(totals(applied), (1, 0, 0));
    assert_cut(&mut client);
    assert_cut(&mut server);
    assert_eq!(balancer.tagged_client().1, "new");
}

#[test]
fn c3_3_a_target_that_another_key_still_names_keeps_its_connections() {
    let one = Hand::new();
    let balancer = Balancer::start(set([("a", one.addr), ("b", one.addr)]));
    let mut ends = [one.pair(&balancer), one.pair(&balancer)];

    assert_eq!(totals(balancer.update(set([("b", one.addr)]))), (0, 0, 0));
    for (client, server) in &mut ends {
        pass(client, server, b"still here");
    }

    assert_eq!(totals(balancer.update(BackendSet::new())), (2, 0, 0));
    for (client, server) in &mut ends {
        assert_cut(client);
        assert_cut(server);
    }
}

#[test]
fn c3_3_a_target_that_moves_to_another_key_keeps_its_connections() {
    let (one, two) = (Hand::new(), Hand::new());
    let balancer = Balancer::start(set([("a", one.addr), ("b", two.addr)]));
    let mut ends = [one.pair(&balancer), two.pair(&balancer)];

    let moves = [[("a", two.addr), ("b", one.addr)], [("b", one.addr), ("z", two.addr)]];
    for moved in moves {
        assert_eq!(totals(balancer.update(set(moved))), (0, 0, 0));
        for (client, server) in &mut ends {
            pass(client, server, b"still here");
            pass(server, client, b"so am I");
        }
    }

    assert_eq!(totals(balancer.update(set([("b", one.addr)]))), (1, 0, 0));
    assert_cut(&mut ends[1].0);
    pass(&mut ends[0].0, &mut ends[0].1, b"still here");
}

#[test]
fn c3_3_a_dial_to_a_target_that_moves_to_another_key_goes_on() {
    let hole = BlackHole::new();
    let balancer = Balancer::start(set([("a", hole.addr)]));
    let mut client = dialling_client(&balancer);

    assert_eq!(totals(balancer.update(set([("b", hole.addr)]))), (0, 0, 0));

    assert_eq!(balancer.stats().dialling, 1);
    assert_eq!(totals(balancer.update(BackendSet::new())), (0, 1, 0));
    assert_cut(&mut client);
}

// C3.4

/// Sends the pattern again and again until told to stop, reads it back, and returns how many bytes that were.
fn echo_until(is_over: &AtomicBool, client: TcpStream) -> usize {
    let (mut reader, block) = (client.try_clone().unwrap(), pattern(100_003));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut client, mut sent) = (client, 0);
            // At least once, however late this thread got to run.
            loop {
                client.write_all(&block).unwrap();
                sent += block.len();
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
            }
            client.shutdown(Shutdown::Write).unwrap();
            sent
        });
        let (mut received, mut room) = (0, vec![0; 64 * 1024]);
        loop {
            let len = reader.read(&mut room).expect("a surviving connection was cut");
            if len == 0 {
                break;
            }
            let mut at = 0;
            while at < len {
                let expected = &block[(received + at) % block.len()..];
                let piece = expected.len().min(len - at);
                assert!(
                    room[at..at + piece] == expected[..piece],
                    "changed after {} bytes",
                    received + at
                );
                at += piece;
            }
            received += len;
        }
        assert_eq!(received, sender.join().unwrap());
        received
    })
}

#[test]
fn c3_4_survivors_lose_nothing_in_a_storm_of_updates() {
    raise_descriptor_limit();
    let (stays, comes_and_goes) = (TestBackend::echo("stays"), TestBackend::echo("goes"));
    let balancer = Balancer::start(set([("a", stays.addr)]));
    let survivors = [balancer.tagged_client().0, balancer.tagged_client().0];
    let (is_over, mut passenger) = (AtomicBool::new(false), None);

    std::thread::scope(|scope| {
        let transfers = survivors.map(|client| scope.spawn(|| echo_until(&is_over, client)));
        for round in 0..300 {
            // Its key changes with each, and its place among the others.
            let (key, more) = (["m", "a", "z"][round % 3], round % 4);
            let others =
                ["b", "c", "n", "y"].into_iter().take(more).map(|key| (key, comes_and_goes.addr));
            balancer.update(set(others.chain([(key, stays.addr)])));
            if round % 8 == 0 {
                passenger = Some(balancer.client()); // somebody to be closed by the updates
            }
        }
        let moved = balancer.stats().bytes_down;
        balancer.wait_for("the transfers to go on", |stats| stats.bytes_down > moved + 1_000_000);
        is_over.store(true, Ordering::SeqCst);
        let echoed: Vec<usize> =
            transfers.into_iter().map(|transfer| transfer.join().unwrap()).collect();
        assert!(echoed.iter().all(|len| *len > 0), "{echoed:?}");
    });
    drop(passenger);
}

// C3.5: waiting for an update.

#[test]
fn c3_5_an_update_can_be_waited_for_with_and_without_a_limit_or_asked() {
    let (one, (gate, keeper)) = (Hand::new(), Gate::new());
    let backends = set([("a", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    let (_client, _server) = one.pair(&balancer);
    gate.hold(&balancer, &backends);
    let update = balancer.control.update(BackendSet::new()).unwrap();
    let start = Instant::now();

    assert_eq!(update.try_wait().unwrap(), None);
    assert_eq!(update.wait_timeout(SHORT).unwrap(), None);
    assert!(start.elapsed() >= SHORT);

    let waiting: Vec<_> = [update.clone(), update.clone()]
        .map(|update| std::thread::spawn(move || update.wait()))
        .into();
    gate.release();
    let applied = update.wait().unwrap();
    assert_eq!((totals(applied), applied.backends), ((1, 0, 0), 0));
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap().unwrap(), applied);
    }
    // The answer stays, for who asks again and who asks late.
    assert_eq!(update.try_wait().unwrap(), Some(applied));
    assert_eq!(update.clone().wait_timeout(Duration::ZERO).unwrap(), Some(applied));
    assert_eq!(update.wait_timeout(Duration::MAX).unwrap(), Some(applied));
}

#[test]
fn c3_5_it_tells_how_many_pairs_were_closed_and_how_many_dials_were_cancelled() {
    let (gone, stays, hole) = (Hand::new(), Hand::new(), BlackHole::new());
    let balancer = Balancer::start(set([("a", gone.addr), ("b", stays.addr)]));
    let ends: Vec<_> = (0..6).map(|index| [&gone, &stays][index % 2].pair(&balancer)).collect();
    balancer.update(set([("a", gone.addr), ("b", stays.addr), ("c", hole.addr)]));
    let _to_nowhere = dialling_client(&balancer);

    let applied = balancer.update(set([("b", stays.addr)]));

    assert_eq!((totals(applied), applied.backends), ((3, 1, 0), 1));
    drop(ends);
}

#[test]
fn c3_5_updates_applied_in_one_step_all_report_that_steps_totals() {
    let (one, two, (gate, keeper)) = (Hand::new(), Hand::new(), Gate::new());
    let backends = set([("a", one.addr), ("b", two.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    let _ends = [one.pair(&balancer), two.pair(&balancer)];
    gate.hold(&balancer, &backends);

    let burst =
        [set([("b", two.addr)]), set([("a", one.addr)]), set([("c", one.addr), ("d", one.addr)])]
            .map(|backends| balancer.control.update(backends).unwrap());
    gate.release();

    let applied = burst.map(|update| wait(&update));
    assert_eq!((totals(applied[0]), applied[0].backends), ((2, 0, 0), 2));
    assert_eq!([applied[1], applied[2]], [applied[0]; 2]);
}

/// How many streams there are, and how many of them are registered with the event queue.
struct Census {
    streams: AtomicUsize,
    registered: AtomicUsize,
    /// When what never ends does end, so that a test that has failed does.
    end: Instant,
}

impl Census {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
            end: Instant::now() + 2 * PATIENCE,
        })
    }

    fn go_on(&self) -> io::Result<()> {
        if Instant::now() < self.end { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    fn count(&self) -> (usize, usize) {
        (self.streams.load(Ordering::SeqCst), self.registered.load(Ordering::SeqCst))
    }
}

/// A stream that always has more to read and always takes what is written, and that counts in the census. Its socket is
/// there for the events alone.
struct Bottomless {
    socket: Option<mio::net::TcpStream>,
    census: Arc<Census>,
}

impl Bottomless {
    fn new(socket: Option<mio::net::TcpStream>, census: &Arc<Census>) -> Self {
        census.streams.fetch_add(1, Ordering::SeqCst);
        Self { socket, census: census.clone() }
    }
}

impl Drop for Bottomless {
    fn drop(&mut self) {
        self.census.streams.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Read for Bottomless {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.census.go_on().map(|()| room.len())
    }
}

impl Write for Bottomless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Bottomless {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.census.registered.fetch_add(1, Ordering::SeqCst);
        self.socket.as_mut().map_or(Ok(()), |socket| socket.register(registry, token, interests))
    }
    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.socket.as_mut().map_or(Ok(()), |socket| socket.reregister(registry, token, interests))
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.census.registered.fetch_sub(1, Ordering::SeqCst);
        self.socket.as_mut().map_or(Ok(()), |socket| socket.deregister(registry))
    }
}

impl Stream for Bottomless {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn check_connect(&mut self) -> io::Result<bool> {
        self.socket.as_mut().map_or(Ok(true), Stream::check_connect)
    }
    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Ok(None)
    }
    fn translate(&self, _: Readiness) -> Readiness {
        Readiness::READ_WRITE
    }
}

/// Where bottomless clients come in; if it is crowded, there always is another once there has been one.
struct Door {
    listener: mio::net::TcpListener,
    is_crowded: bool,
    census: Arc<Census>,
}

impl Source for Door {
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

impl Listener for Door {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (socket, addr) = match self.listener.accept() {
            Ok((socket, addr)) => (Some(socket), addr.into()),
            Err(_) if self.is_crowded => {
                self.census.go_on()?;
                (None, Address::Other("one of many".into()))
            }
            Err(err) => return Err(err),
        };
        Ok((Box::new(Bottomless::new(socket, &self.census)), addr))
    }
    fn local_addr(&self) -> io::Result<Address> {
        self.listener.local_addr().map(Address::from)
    }
}

struct BottomlessBackend(SocketAddr, Arc<Census>);

impl Backend for BottomlessBackend {
    fn target_name(&self) -> String {
        self.0.to_string()
    }
    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        Ok(Dial::new(Bottomless::new(Some(mio::net::TcpStream::connect(self.0)?), &self.1)))
    }
}

/// A balancer whose clients come in by a [`Door`].
fn start_behind_door(is_crowded: bool, census: &Arc<Census>, backends: BackendSet) -> Balancer {
    let listener = listener();
    listener.set_nonblocking(true).unwrap();
    let listener = mio::net::TcpListener::from_std(listener);
    let door: Box<dyn Listener> = Box::new(Door { listener, is_crowded, census: census.clone() });
    let server = Server::builder().backends(backends).build(door).unwrap();
    let (control, addr) = (server.control(), server.local_addr().ip().unwrap());
    Balancer { addr, control, thread: server.spawn().unwrap() }
}

/// A balancer with pairs whose bytes never come to an end, either way.
struct Torrent {
    balancer: Balancer,
    backends: BackendSet,
    census: Arc<Census>,
    _ends: (TcpListener, Vec<TcpStream>),
}

impl Torrent {
    fn new(pairs: usize) -> Self {
        let (sink, census) = (listener(), Census::new());
        let backends: BackendSet =
            [("a", BottomlessBackend(sink.local_addr().unwrap(), census.clone()))].into();
        let balancer = start_behind_door(false, &census, backends.clone());
        let clients = (0..pairs).map(|_| balancer.client()).collect();
        balancer.wait_for("all are connected", |stats| stats.open == pairs as u64);
        Self { balancer, backends, census, _ends: (sink, clients) }
    }
}

#[test]
fn c3_5_once_applied_both_streams_of_each_pair_are_deregistered_and_gone() {
    let torrent = Torrent::new(5);
    assert_eq!(torrent.census.count(), (10, 10));

    let applied = torrent.balancer.update(BackendSet::new());

    let left = torrent.census.count(); // at once
    assert_eq!((totals(applied), left), ((5, 0, 0), (0, 0)));
}

// C3.6: bursts.

#[test]
fn c3_6_remove_and_re_add_in_one_burst_closes_the_old_connections() {
    let (one, (gate, keeper)) = (Hand::new(), Gate::new());
    let backends = set([("a", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    let (mut client, mut server) = one.pair(&balancer);
    gate.hold(&balancer, &backends);

    let burst =
        [BackendSet::new(), backends].map(|backends| balancer.control.update(backends).unwrap());
    gate.release();

    let applied = burst.map(|update| wait(&update));
    assert_eq!((totals(applied[0]), applied[0].backends), ((1, 0, 0), 1));
    assert_eq!(applied[0], applied[1]);
    assert_cut(&mut client);
    assert_cut(&mut server);
    let (mut newcomer, mut server) = one.pair(&balancer);
    pass(&mut newcomer, &mut server, b"the new ones stay");
}

#[test]
fn c3_6_remove_and_re_add_in_one_burst_cancels_the_old_dials() {
    let (hole, one, (gate, keeper)) = (BlackHole::new(), TestBackend::echo("one"), Gate::new());
    let backends = set([("a", hole.addr), ("b", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    let mut client = dialling_client(&balancer);
    gate.hold(&balancer, &backends);

    let burst =
        [BackendSet::new(), backends].map(|backends| balancer.control.update(backends).unwrap());
    gate.release();

    assert_eq!(burst.map(|update| totals(wait(&update))), [(0, 1, 0); 2]);
    assert_eq!(read_tag(&mut client), "one");
}

#[test]
fn c3_6_rapid_updates_end_in_the_last_set_and_lose_no_removal() {
    let one = Hand::new();
    let (with, without) = (set([("a", one.addr)]), BackendSet::new());
    let balancer = Balancer::start(with.clone());

    for _ in 0..200 {
        let (mut client, mut server) = one.pair(&balancer);
        // Merged or not, as it happens.
        let burst = [&without, &with, &without, &with]
            .map(|backends| balancer.control.update(backends.clone()));
        for update in burst {
            wait(&update.unwrap());
        }
        assert_cut(&mut client);
        assert_cut(&mut server);
    }

    assert_eq!(balancer.stats().ended.of(EndReason::TargetRemoved), 200);
}

#[test]
fn c3_6_memory_does_not_grow_with_updates_that_are_not_applied_yet() {
    /// Something whose copies can be counted.
    struct Weighty(#[allow(dead_code, reason = "it is only counted")] Arc<()>);
    impl Backend for Weighty {
        fn target_name(&self) -> String {
            "weighty".to_owned()
        }
        fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
            Err(ErrorKind::ConnectionRefused.into())
        }
    }
    let ((gate, keeper), weight) = (Gate::new(), Arc::new(()));
    let balancer = Balancer::with(Server::builder().observer(keeper), BackendSet::new());
    gate.hold(&balancer, &BackendSet::new());

    for _ in 0..1000 {
        balancer.control.update([("a", Weighty(weight.clone()))].into()).unwrap();
    }

    assert_eq!(Arc::strong_count(&weight), 1 + 1, "only the last set is kept");
    gate.release();
}

// C3.7: what must not hold an update back.

#[test]
fn c3_7_no_bulk_transfer_holds_an_update_back() {
    let torrent = Torrent::new(20);

    // None of these connections ever has to wait for anything.
    for round in 0..10 {
        let mut backends = torrent.backends.clone();
        backends.insert(format!("more-{round}"), TcpBackend::new(refusing_addr()));
        assert_eq!(totals(torrent.balancer.update(backends)), (0, 0, 0));
    }

    assert_eq!(totals(torrent.balancer.update(BackendSet::new())), (20, 0, 0));
}

#[test]
fn c3_7_no_connection_storm_holds_an_update_back() {
    let census = Census::new();
    let balancer = start_behind_door(true, &census, BackendSet::new());
    let _first = TcpStream::connect(balancer.addr); // refused so soon that it may fail
    balancer.wait_for("the storm", |stats| stats.accepted > 100);

    for round in 0..10 {
        let backends =
            set([("a", refusing_addr()), ("b", refusing_addr())].into_iter().take(round % 3));
        assert_eq!(balancer.update(backends).backends, round % 3);
    }

    census.go_on().expect("the updates had to wait for the storm to end");
}

#[test]
fn c3_7_updates_are_applied_while_real_connections_storm_and_stream() {
    raise_descriptor_limit();
    let (stays, comes_and_goes) = (TestBackend::echo("stays"), TestBackend::echo("goes"));
    let balancer = Balancer::start(set([("a", stays.addr)]));
    let streams = [balancer.tagged_client().0, balancer.tagged_client().0];
    let (is_over, stormed) = (AtomicBool::new(false), AtomicUsize::new(0));

    std::thread::scope(|scope| {
        let transfers = streams.map(|client| scope.spawn(|| echo_until(&is_over, client)));
        scope.spawn(|| {
            // Bounded, since descriptors and ports are.
            while !is_over.load(Ordering::SeqCst) && stormed.fetch_add(1, Ordering::SeqCst) < 300 {
                let _ = try_client(&balancer).map(reset);
            }
        });
        wait_for("the storm", || (stormed.load(Ordering::SeqCst) > 20).then_some(()));
        for round in 0..50 {
            let others = [("b", comes_and_goes.addr)].into_iter().take(round % 2);
            assert_eq!(
                balancer.update(set(others.chain([("a", stays.addr)]))).backends,
                1 + round % 2
            );
        }
        is_over.store(true, Ordering::SeqCst);
        for transfer in transfers {
            assert!(transfer.join().unwrap() > 0);
        }
    });
}

// C3.8

#[test]
fn c3_8_one_change_among_ten_thousand_backends_closes_its_own_connections_and_soon() {
    raise_descriptor_limit();
    let one = TestBackend::echo("one");
    let named = |index: usize, name: String| (format!("key-{index:05}"), Named(name, one.addr));
    let mut backends: BackendSet =
        (0..10_000).map(|index| named(index, format!("name-{index}"))).collect();
    let balancer = Balancer::start(backends.clone());
    let mut clients: Vec<_> = (0..100).map(|_| balancer.tagged_client().0).collect();
    backends.extend([named(42, "another name".to_owned())]);
    let start = Instant::now();

    let applied = balancer.update(backends);

    let took = start.elapsed();
    assert_eq!((totals(applied), applied.backends), ((1, 0, 0), 10_000));
    assert!(took < Duration::from_secs(5), "it took {took:?}, which should be milliseconds");
    for (index, client) in clients.iter_mut().enumerate() {
        match index {
            42 => assert_cut(client),
            _ => assert_echo(client, b"still here"),
        }
    }
}

// C3.9: draining.

#[test]
fn c3_9_connections_to_a_draining_target_may_finish_and_get_no_company() {
    let (old, new) = (Hand::new(), TestBackend::echo("new"));
    let balancer = Balancer::start(set([("a", old.addr)]));
    let (mut client, mut server) = old.pair(&balancer);

    let applied = balancer.update_draining(set([("b", new.addr)]), LONG);

    assert_eq!((totals(applied), applied.backends), ((0, 0, 1), 1));
    assert_eq!([balancer.tagged_client().1, balancer.tagged_client().1], ["new", "new"]);
    pass(&mut client, &mut server, b"still here");
    pass(&mut server, &mut client, b"so am I");
    end(&mut client, &mut server);
    end(&mut server, &mut client);
    balancer.wait_for("the end of all, in order", |stats| stats.ended.of(EndReason::Finished) == 3);
    assert_eq!(totals(balancer.update(set([("b", new.addr)]))), (0, 0, 0));
}

#[test]
fn c3_9_a_drain_cuts_what_is_left_at_its_limit() {
    let (old, new) = (Hand::new(), Hand::new());
    let balancer = Balancer::start(set([("a", old.addr), ("b", new.addr)]));
    let (mut client, mut server) = old.pair(&balancer);
    let (mut other_client, mut other_server) = new.pair(&balancer);
    let start = Instant::now();

    balancer.update_draining(set([("b", new.addr)]), SHORT);

    assert_cut(&mut client);
    assert!(start.elapsed() >= SHORT, "cut after {:?}", start.elapsed());
    assert_cut(&mut server);
    pass(&mut other_client, &mut other_server, b"still here");
    assert_eq!(balancer.stats().ended.of(EndReason::DrainLimit), 1);
}

#[test]
fn c3_9_a_drain_cuts_at_its_limit_even_if_the_client_never_reads() {
    let old = Hand::new();
    let balancer = Balancer::start(set([("a", old.addr)]));
    let (_client, mut server) = old.pair(&balancer);
    flood(&mut server, &balancer);

    balancer.update_draining(BackendSet::new(), SHORT);

    assert_cut(&mut server);
    assert_eq!(balancer.stats().ended.of(EndReason::DrainLimit), 1);
}

#[test]
fn c3_9_a_plain_update_that_lacks_a_draining_target_closes_its_connections_at_once() {
    let (old, new) = (Hand::new(), Hand::new());
    let balancer = Balancer::start(set([("a", old.addr)]));
    let (mut client, mut server) = old.pair(&balancer);
    balancer.update_draining(set([("b", new.addr)]), LONG);

    let applied = balancer.update(set([("b", new.addr)]));

    assert_eq!(totals(applied), (1, 0, 0));
    assert_cut(&mut client);
    assert_cut(&mut server);
}

#[test]
fn c3_9_an_update_that_names_a_draining_target_again_lifts_the_drain() {
    type HandOver = fn(&Control, BackendSet) -> Result<Update, Error>;
    let either: [HandOver; 2] =
        [Control::update, |control, backends| control.update_draining(backends, LONG)];
    for lift in either {
        let (returns, leaves, (gate, keeper)) = (Hand::new(), Hand::new(), Gate::new());
        let both = set([("a", returns.addr), ("b", leaves.addr)]);
        let balancer = Balancer::with(Server::builder().observer(keeper), both);
        let (mut client, mut server) = returns.pair(&balancer);
        let (mut less_lucky, _server) = leaves.pair(&balancer);
        gate.hold_at(|| balancer.control.update_draining(set([("b", leaves.addr)]), SHORT));

        // Under another key; it is the target that counts.
        let lifted =
            lift(&balancer.control, set([("b", leaves.addr), ("z", returns.addr)])).unwrap();
        gate.release();

        assert_eq!(totals(wait(&lifted)), (0, 0, 0));
        // A drain that begins later has come to its limit, so the other's is over, too.
        balancer.update_draining(set([("z", returns.addr)]), SHORT);
        assert_cut(&mut less_lucky);
        pass(&mut client, &mut server, b"still here");
    }
}

#[test]
fn c3_9_of_two_limits_the_earlier_holds() {
    for limits in [[SHORT, LONG], [LONG, SHORT]] {
        let old = Hand::new();
        let balancer = Balancer::start(set([("a", old.addr)]));
        let (mut client, _server) = old.pair(&balancer);
        let start = Instant::now();

        for limit in limits {
            balancer.update_draining(BackendSet::new(), limit);
        }

        assert_cut(&mut client);
        assert!(start.elapsed() >= SHORT, "{limits:?}: cut after {:?}", start.elapsed());
    }
}

#[test]
fn c3_9_a_limit_that_was_lifted_does_not_count_in_a_later_drain() {
    let (one, two, (gate, keeper)) = (Hand::new(), Hand::new(), Gate::new());
    let both = set([("a", one.addr), ("b", two.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), both);
    let (mut client, mut server) = one.pair(&balancer);
    let (mut less_lucky, _server) = two.pair(&balancer);
    gate.hold_at(|| balancer.control.update_draining(BackendSet::new(), SHORT));

    balancer.control.update_draining(set([("a", one.addr)]), LONG).unwrap();
    let update = balancer.control.update_draining(BackendSet::new(), LONG).unwrap();
    gate.release();

    assert_eq!(totals(wait(&update)), (0, 0, 2));

    assert_cut(&mut less_lucky);
    pass(&mut client, &mut server, b"still here");
}

#[test]
fn c3_9_a_dial_to_a_target_that_drains_is_cancelled() {
    let (old, hole, one) = (Hand::new(), BlackHole::new(), TestBackend::echo("one"));
    // One target that is reached at first, and then no more.
    let mut backends = set([("c", one.addr)]);
    backends.extend(
        [("a", old.addr), ("b", hole.addr)].map(|(key, addr)| (key, Named("old".to_owned(), addr))),
    );
    let balancer = Balancer::start(backends);
    let (mut client, mut server) = old.pair(&balancer);
    let mut waiting = dialling_client(&balancer);

    let applied = balancer.update_draining(set([("c", one.addr)]), LONG);

    assert_eq!(totals(applied), (0, 1, 1));
    assert_eq!(read_tag(&mut waiting), "one");
    pass(&mut client, &mut server, b"still here");
}

#[test]
fn c3_9_a_burst_that_drains_a_target_and_names_it_again_leaves_its_connections() {
    let (one, (gate, keeper)) = (Hand::new(), Gate::new());
    let backends = set([("a", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    let (mut client, mut server) = one.pair(&balancer);
    gate.hold(&balancer, &backends);

    balancer.control.update_draining(BackendSet::new(), SHORT).unwrap();
    let update = balancer.control.update(backends).unwrap();
    gate.release();

    assert_eq!(totals(wait(&update)), (0, 0, 0));
    pass(&mut client, &mut server, b"still here");
}

#[test]
fn c3_9_a_plain_removal_in_a_burst_closes_though_the_others_drain() {
    let (one, (gate, keeper)) = (Hand::new(), Gate::new());
    let backends = set([("a", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(keeper), backends.clone());
    let (mut client, _server) = one.pair(&balancer);
    gate.hold(&balancer, &backends);

    balancer.control.update(BackendSet::new()).unwrap();
    let update = balancer.control.update_draining(BackendSet::new(), LONG).unwrap();
    gate.release();

    assert_eq!(totals(wait(&update)), (1, 0, 0));
    assert_cut(&mut client);
}

// C3.10: how a cut looks.

/// Reads what came before a cut.
#[track_caller]
fn assert_cut_after(stream: &mut TcpStream, message: &[u8]) {
    let (bytes, end) = read_to_end(stream);
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(message));
    assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")), "ended as if in order");
}

#[test]
fn c3_10_a_cut_answer_does_not_pass_for_a_complete_one() {
    let one = Hand::new();
    let balancer = Balancer::start(set([("a", one.addr)]));
    let (mut client, mut server) = one.pair(&balancer);
    server.write_all(b"half of the ans").unwrap();
    let before = b"down".len() as u64;
    balancer.wait_for("delivered", |stats| stats.bytes_down == before + 15);

    balancer.update(BackendSet::new());

    assert_cut_after(&mut client, b"half of the ans");
}

#[test]
fn c3_10_an_orderly_end_is_no_cut() {
    let one = Hand::new();
    let balancer = Balancer::start(set([("a", one.addr)]));
    let (mut client, mut server) = one.pair(&balancer);

    end(&mut client, &mut server);
    end(&mut server, &mut client);

    let stats = balancer.wait_for("the end", |stats| stats.open == 0);
    assert_eq!(stats.ended.of(EndReason::Finished), 1);
}

#[test]
fn c3_10_a_backends_reset_is_passed_on_after_what_it_had_sent() {
    let one = Hand::new();
    let balancer = Balancer::start(set([("a", one.addr)]));
    let (mut client, mut server) = one.pair(&balancer);

    server.write_all(b"half of the ans").unwrap();
    reset(server);

    assert_cut_after(&mut client, b"half of the ans");
    assert_eq!(balancer.stats().ended.of(EndReason::BackendFailed), 1);
}

#[test]
fn c3_10_a_clients_reset_is_passed_on_after_what_it_had_sent() {
    let one = Hand::new();
    let balancer = Balancer::start(set([("a", one.addr)]));
    let (mut client, mut server) = one.pair(&balancer);

    client.write_all(b"half of the requ").unwrap();
    reset(client);

    assert_cut_after(&mut server, b"half of the requ");
    assert_eq!(balancer.stats().ended.of(EndReason::ClientFailed), 1);
}

#[test]
fn c3_10_a_reset_is_passed_on_to_one_who_does_not_read() {
    let one = Hand::new();
    let balancer = Balancer::start(set([("a", one.addr)]));
    let (mut client, mut server) = one.pair(&balancer);
    flood(&mut server, &balancer);

    reset(server);

    let stats = balancer.wait_for("the end", |stats| stats.open == 0);
    assert_eq!(stats.ended.of(EndReason::BackendFailed), 1);
    assert_cut(&mut client);
}

#[test]
fn c3_10_refused_clients_see_a_reset() {
    let (dead, hole) = (refusing_addr(), BlackHole::new());
    for backends in [BackendSet::new(), set([("a", dead), ("b", dead)]), set([("a", hole.addr)])] {
        let server =
            Server::builder().dial_limit(SHORT).backends(backends).build(listener()).unwrap();
        // Connected before the start, lest the reset comes while it still connects.
        let mut client = connect(server.local_addr().ip().unwrap());

        let _running = server.spawn().unwrap();

        assert_cut_after(&mut client, b"");
    }
}
