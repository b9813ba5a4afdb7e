//! Chapter 4 of the contract: accepting.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tinylb::mio::event::Source;
use tinylb::mio::{self, Interest, Registry, Token};
use tinylb::{
    Address, Applied, Backend, BackendSet, Client, Control, Dial, DialRequest, EndReason, Listener,
    Observer, Server, Stream, TcpBackend,
};
use tinylb_tests::*;

/// How long the balancer waits when this machine is short of something.
const PAUSE: Duration = Duration::from_millis(100);

fn spawn(server: Server) -> Balancer {
    let control = server.control();
    Balancer { addr: server.local_addr().ip().unwrap(), control, thread: server.spawn().unwrap() }
}

/// A listener whose backlog holds a storm.
fn roomy_listener() -> std::net::TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}

// C4.1

#[test]
fn c4_1_clients_are_cut_and_counted_while_no_set_was_given_or_it_is_empty() {
    let balancer = spawn(Server::builder().build(listener()).unwrap());
    assert_refused(balancer.addr);

    let backend = TestBackend::echo("a");
    balancer.update(set([("a", backend.addr)]));
    balancer.tagged_client();
    balancer.update(BackendSet::new());
    assert_refused(balancer.addr);

    let stats = balancer.wait_for("all are counted", |stats| stats.accepted == 3);
    assert_eq!(stats.refused.of(EndReason::NoBackend), 2);
    assert_eq!(stats.refused.total(), 2);
}

// C4.2

/// More than three turns accept.
const STORM: usize = 250;

/// A server and clients who have all connected before it runs, so that one event tells of them all.
fn storm(builder: tinylb::Builder) -> (Server, Vec<TcpStream>) {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = builder.build(roomy_listener()).unwrap();
    let addr = server.local_addr().ip().unwrap();
    (server, (0..STORM).map(|_| connect(addr)).collect())
}

#[test]
fn c4_2_a_storm_is_served_to_the_last_client_though_no_further_event_tells_of_it() {
    let backends = ["a", "b", "c"].map(TestBackend::echo);
    let backend_set =
        set(["a", "b", "c"].into_iter().zip(backends.each_ref().map(|backend| backend.addr)));
    let (server, mut clients) = storm(Server::builder().backends(backend_set));

    let balancer = spawn(server);

    for client in &mut clients {
        read_tag(client);
        assert_echo(client, b"hello");
    }
    assert_eq!(balancer.stats().open, STORM as u64);
}

#[test]
fn c4_2_a_storm_that_is_refused_needs_no_further_event_either() {
    // Unlike served clients, refused ones cause no events, of the backends', that could make up for a missing turn.
    let (server, mut clients) = storm(Server::builder());

    let balancer = spawn(server);

    clients.iter_mut().for_each(|client| assert_cut(client));
    assert_eq!(balancer.stats().refused.of(EndReason::NoBackend), STORM as u64);
}

/// Gives an update when it sees the first client, and counts the clients accepted before it is applied.
#[derive(Clone, Default)]
struct UpdatesInAStorm {
    control: Arc<OnceLock<Control>>,
    accepted: Arc<AtomicU64>,
    before_update: Arc<OnceLock<u64>>,
}

impl Observer for UpdatesInAStorm {
    fn accepted(&mut self, _: &Client<'_>) {
        if self.accepted.fetch_add(1, Ordering::SeqCst) == 0 {
            self.control.get().unwrap().update(BackendSet::new()).unwrap();
        }
    }

    fn updated(&mut self, _: &Applied) {
        let _ = self.before_update.set(self.accepted.load(Ordering::SeqCst));
    }
}

#[test]
fn c4_2_a_storm_does_not_hold_an_update_back() {
    let observer = UpdatesInAStorm::default();
    let (server, mut clients) = storm(Server::builder().observer(observer.clone()));
    observer.control.set(server.control()).unwrap();

    let _balancer = spawn(server);

    clients.iter_mut().for_each(|client| assert_cut(client));
    let before_update = *observer.before_update.get().expect("never applied");
    assert!(before_update <= STORM as u64 / 3, "applied after {before_update} of {STORM} clients");
}

// C4.3: errors of accept(2), by a listener that makes them up

/// Fails as it is told to, and counts how often it is asked.
#[derive(Clone)]
struct Script(Arc<Mutex<ScriptState>>);

struct ScriptState {
    errors: VecDeque<io::Error>,
    /// Once `errors` is empty, until this is cleared.
    for_ever: Option<io::ErrorKind>,
    asked: Vec<Instant>,
}

impl Script {
    fn new(errors: impl IntoIterator<Item = io::Error>) -> Self {
        Self::with(ScriptState {
            errors: errors.into_iter().collect(),
            for_ever: None,
            asked: Vec::new(),
        })
    }

    fn for_ever(error: io::ErrorKind) -> Self {
        Self::with(ScriptState {
            errors: VecDeque::new(),
            for_ever: Some(error),
            asked: Vec::new(),
        })
    }

    fn with(state: ScriptState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut ScriptState) -> T) -> T {
        edit(&mut self.0.lock().unwrap())
    }

    fn times_asked(&self) -> usize {
        self.edit(|state| state.asked.len())
    }

    /// A balancer whose listener follows the script.
    fn balancer(&self, backends: BackendSet) -> Balancer {
        let inner = mio::net::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: Box<dyn Listener> =
            Box::new(ScriptedListener { inner, script: self.clone() });
        spawn(Server::builder().backends(backends).build(listener).unwrap())
    }
}

struct ScriptedListener {
    inner: mio::net::TcpListener,
    script: Script,
}

impl Listener for ScriptedListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let error = self.script.edit(|state| {
            state.asked.push(Instant::now());
            state.errors.pop_front().or_else(|| state.for_ever.map(io::Error::from))
        });
        if let Some(error) = error {
            return Err(error);
        }
        let (stream, addr) = self.inner.accept()?;
        Ok((Box::new(stream), addr.into()))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.inner.local_addr().map(Address::from)
    }
}

impl Source for ScriptedListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.inner.register(registry, token, interests)
    }
    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.inner.reregister(registry, token, interests)
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.inner.deregister(registry)
    }
}

fn emfile() -> io::Error {
    io::Error::from_raw_os_error(24)
}

#[test]
fn c4_3_an_error_of_accept_neither_ends_nor_spins_it_and_the_client_behind_it_is_served() {
    let backend = TestBackend::echo("a");
    let of_one_client = || io::ErrorKind::ConnectionAborted.into();
    let errors = [
        of_one_client(),
        emfile(),
        of_one_client(),
        io::Error::other("never heard of"),
        of_one_client(),
    ];
    let script = Script::new(errors);
    let balancer = script.balancer(set([("a", backend.addr)]));
    let start = Instant::now();

    balancer.tagged_client();

    assert!(
        start.elapsed() >= 2 * PAUSE * 9 / 10,
        "did not pause for the errors that are not of one client"
    );
    assert!(script.times_asked() <= 5 + 2, "asked {} times", script.times_asked());
}

#[test]
#[cfg(target_os = "linux")] // whose error numbers these are
fn c4_3_errors_of_single_clients_do_not_pause_accepting() {
    let backend = TestBackend::echo("a");
    let script = Script::new([103, 104, 110, 113, 71].map(io::Error::from_raw_os_error));
    let balancer = script.balancer(set([("a", backend.addr)]));

    balancer.tagged_client();

    let asked = script.edit(|state| state.asked.clone());
    // Judged by the time between two neighbours, of which the machine can hold up one or the other, but not all.
    let paused = asked.windows(2).filter(|pair| pair[1] - pair[0] >= PAUSE * 9 / 10).count();
    assert!(paused < 3, "paused {paused} times");
}

#[test]
fn c4_3_a_listener_that_fails_for_ever_is_asked_now_and_then_and_the_pairs_go_on() {
    let backend = TestBackend::echo("a");
    for error in
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::Interrupted, io::ErrorKind::OutOfMemory]
    {
        let script = Script::new([]);
        let balancer = script.balancer(set([("a", backend.addr)]));
        let (mut served, _) = balancer.tagged_client();
        script.edit(|state| state.for_ever = Some(error));
        let mut waiting = balancer.client();
        let (start, asked_before) = (Instant::now(), script.times_asked());

        std::thread::sleep(3 * PAUSE);

        let asked = script.times_asked() - asked_before;
        let pauses = start.elapsed().as_millis() / PAUSE.as_millis() + 2;
        assert!(
            (1..=64 * pauses).contains(&(asked as u128)),
            "{error}: asked {asked} times in {pauses} pauses"
        );
        assert_echo(&mut served, b"still here");
        script.edit(|state| state.for_ever = None);
        assert_eq!(read_tag(&mut waiting), "a");
    }
}

#[test]
fn c4_3_a_listener_that_fails_from_the_start_does_not_hold_up_updates_and_the_end() {
    let script = Script::for_ever(io::ErrorKind::ConnectionAborted);
    let balancer = script.balancer(BackendSet::new());
    let _client = balancer.client();
    wait_for("the listener is asked", || (script.times_asked() > 64).then_some(()));

    balancer.update(BackendSet::new());
    balancer.control.shutdown().unwrap();
    assert_eq!(balancer.thread.join().unwrap().accepted, 0);
}

#[test]
fn c4_3_a_pause_ends_early_when_a_pair_closes() {
    let backend = TestBackend::echo("a");
    let script = Script::new([]);
    let balancer = script.balancer(set([("a", backend.addr)]));

    // Whether it was early, only a clock can tell, and a busy machine may be late: so, as often as it takes.
    wait_for("a pause that is not waited out", || {
        let (served, _) = balancer.tagged_client();
        script.edit(|state| state.errors.push_back(emfile()));
        let asked_before = script.times_asked();
        let mut waiting = balancer.client();
        wait_for("accepting fails", || (script.times_asked() > asked_before).then_some(()));

        drop(served);

        read_tag(&mut waiting);
        let asked = script.edit(|state| state.asked[asked_before..].to_vec());
        (asked[1] - asked[0] < PAUSE / 2).then_some(())
    });
}

/// A backend that cannot be dialled for want of descriptors, until there are some.
struct Starved {
    backend: TcpBackend,
    dials: Arc<AtomicU64>,
    fails_until_dial: u64,
}

impl Backend for Starved {
    fn target_name(&self) -> String {
        self.backend.target_name()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        if self.dials.fetch_add(1, Ordering::SeqCst) < self.fails_until_dial {
            return Err(emfile());
        }
        self.backend.dial(request)
    }
}

#[test]
fn c4_3_nobody_is_accepted_while_a_client_waits_for_a_descriptor_to_dial_with() {
    let (backend, dials) = (TestBackend::echo("a"), Arc::new(AtomicU64::new(0)));
    let starved = Starved {
        backend: TcpBackend::new(backend.addr),
        dials: dials.clone(),
        fails_until_dial: 3,
    };
    let mut backends = BackendSet::new();
    backends.insert("a", starved);
    let script = Script::new([]);
    let balancer = script.balancer(backends);

    let mut first = balancer.client();
    wait_for("the first client waits", || (dials.load(Ordering::SeqCst) > 0).then_some(()));
    let mut second = balancer.client();
    let accepted_meanwhile = wait_for("another try", || {
        let accepted = balancer.stats().accepted;
        (dials.load(Ordering::SeqCst) > 1).then_some(accepted)
    });

    assert_eq!(accepted_meanwhile, 1);
    assert_eq!((read_tag(&mut first), read_tag(&mut second)), ("a".to_owned(), "a".to_owned()));
    let stats = balancer.stats();
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (0, false));
}

// C4.3: with descriptors that really run out

/// A balancer in a process of its own, which has few descriptors left.
///
/// A client and its backend take one each. Its backend is here, as are its clients.
#[cfg(target_os = "linux")]
mod scarce {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::fd::AsRawFd;
    use std::process::{Child, ChildStdout, Command, Stdio};

    use super::*;

    const SETTINGS: &str = "TINYLB_TEST_OF_SCARCITY";
    const MARK: &str = "#> ";

    pub(super) struct Scarce {
        process: Child,
        answers: BufReader<ChildStdout>,
        addr: SocketAddr,
        _backend: TestBackend,
    }

    impl Scarce {
        #[track_caller]
        pub(super) fn start(descriptors: usize, dial_limit: Duration) -> Self {
            let backend = TestBackend::echo("a");
            let settings = format!("{descriptors} {} {}", dial_limit.as_millis(), backend.addr);
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "--ignored",
                    "--nocapture",
                    "scarce::balancer_with_few_descriptors",
                ])
                .env(SETTINGS, settings)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(process.stdout.take().unwrap());
            let unknown = SocketAddr::from(([0; 4], 0));
            let mut scarce = Self { process, answers, addr: unknown, _backend: backend };
            scarce.addr = scarce.answer().parse().unwrap();
            scarce
        }

        pub(super) fn addr(&self) -> SocketAddr {
            self.addr
        }

        pub(super) fn client(&self) -> TcpStream {
            connect(self.addr)
        }

        /// Clients accepted, open, and refused, by reason.
        pub(super) fn stats(&mut self) -> String {
            self.ask("stats")
        }

        #[track_caller]
        pub(super) fn wait_for(&mut self, stats: &str) {
            wait_for(stats, || (self.stats() == stats).then_some(()));
        }

        pub(super) fn give_descriptors(&mut self) {
            self.ask("room");
        }

        #[track_caller]
        fn ask(&mut self, command: &str) -> String {
            writeln!(self.process.stdin.as_ref().unwrap(), "{command}").unwrap();
            self.answer()
        }

        #[track_caller]
        fn answer(&mut self) -> String {
            let lines = self.answers.by_ref().lines();
            // The test harness has its own words to say, perhaps on the same line.
            let answer = lines
                .map(Result::unwrap)
                .find_map(|line| Some(line.split_once(MARK)?.1.to_owned()));
            answer.expect("the process has ended")
        }

        /// Its processor time for a while, which is next to none. A loop that spins takes what it gets.
        #[track_caller]
        pub(super) fn assert_at_rest(&self) {
            let before = self.cpu_time();
            std::thread::sleep(Duration::from_millis(400));
            let used = self.cpu_time() - before;
            assert!(used <= Duration::from_millis(50), "used {used:?} of 400 ms");
        }

        fn cpu_time(&self) -> Duration {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
            let after_name = stat.rsplit_once(')').unwrap().1;
            // utime and stime, in hundredths of a second
            let ticks = after_name
                .split_whitespace()
                .skip(11)
                .take(2)
                .map(|field| field.parse::<u64>().unwrap());
            Duration::from_millis(10 * ticks.sum::<u64>())
        }
    }

    impl Drop for Scarce {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    #[test]
    #[ignore = "no test by itself: `Scarce` starts it as a process of its own in those above"]
    fn balancer_with_few_descriptors() {
        let Ok(settings) = std::env::var(SETTINGS) else { return };
        let [descriptors, dial_limit, backend] = settings.split(' ').collect::<Vec<_>>()[..] else {
            panic!()
        };
        let dial_limit = Duration::from_millis(dial_limit.parse().unwrap());
        // No other timer may do what the one of a pause has to.
        let builder = Server::builder().connect_timeout(dial_limit).dial_limit(dial_limit);
        let balancer = Balancer::with(builder, set([("a", backend.parse().unwrap())]));
        let nofile = rlimit::Resource::NOFILE;
        let hard = nofile.get_hard().unwrap();
        let spare =
            (0..descriptors.parse().unwrap()).map(|_| std::fs::File::open("/dev/null").unwrap());
        let spare: Vec<_> = spare.collect();
        nofile
            .set(spare.iter().map(|file| file.as_raw_fd() as u64 + 1).max().unwrap(), hard)
            .unwrap();
        drop(spare);
        println!("{MARK}{}", balancer.addr);

        std::thread::spawn(|| {
            std::thread::sleep(2 * PATIENCE);
            std::process::exit(1); // lest one who waits for an answer waits for ever
        });
        for command in io::stdin().lines() {
            match command.unwrap().as_str() {
                "room" => {
                    nofile.set(hard, hard).unwrap();
                    println!("{MARK}"); // without a word to the loop, which would wake it
                }
                _ => {
                    let stats = balancer.stats();
                    let refused: Vec<_> = stats.refused.iter().collect();
                    println!("{MARK}{} {} {refused:?}", stats.accepted, stats.open);
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
const LONG: Duration = Duration::from_secs(60);

#[test]
#[cfg(target_os = "linux")]
fn c4_3_emfile_at_accept_rests_and_the_backlog_is_served_as_pairs_close() {
    let mut balancer = scarce::Scarce::start(4, LONG);
    let mut clients: VecDeque<_> = (0..6).map(|_| balancer.client()).collect();
    clients.iter_mut().take(2).for_each(|client| assert_eq!(read_tag(client), "a"));
    balancer.assert_at_rest();
    assert_eq!(balancer.stats(), "2 2 []");

    while clients.len() > 2 {
        drop(clients.pop_front());
        assert_eq!(read_tag(&mut clients[1]), "a");
    }

    assert_echo(&mut clients[0], b"still here");
    balancer.wait_for("6 2 []");
}

#[test]
#[cfg(target_os = "linux")]
fn c4_3_emfile_at_accept_is_over_when_there_is_room_though_nothing_tells_of_it() {
    let mut balancer = scarce::Scarce::start(4, LONG);
    let mut clients: Vec<_> = (0..6).map(|_| balancer.client()).collect();
    clients.iter_mut().take(2).for_each(|client| assert_eq!(read_tag(client), "a"));

    balancer.give_descriptors();

    clients.iter_mut().skip(2).for_each(|client| assert_eq!(read_tag(client), "a"));
    assert_eq!(balancer.stats(), "6 6 []");
}

#[test]
#[cfg(target_os = "linux")]
fn c4_3_a_client_accepted_without_a_descriptor_to_dial_with_waits_for_one() {
    let mut balancer = scarce::Scarce::start(5, LONG);
    let mut clients: VecDeque<_> = (0..5).map(|_| balancer.client()).collect();
    clients.iter_mut().take(2).for_each(|client| assert_eq!(read_tag(client), "a"));
    balancer.wait_for("3 2 []");
    balancer.assert_at_rest();

    while clients.len() > 2 {
        drop(clients.pop_front());
        assert_eq!(read_tag(&mut clients[1]), "a");
    }

    assert_echo(&mut clients[0], b"still here");
}

#[test]
#[cfg(target_os = "linux")]
fn c4_3_a_client_for_whom_no_descriptor_comes_is_refused_by_the_dial_limit() {
    let limit = Duration::from_millis(300);
    let mut balancer = scarce::Scarce::start(5, limit);
    let mut clients: Vec<_> = (0..2).map(|_| balancer.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(read_tag(client), "a"));
    let start = Instant::now();

    assert_cut(&mut balancer.client());

    assert!(start.elapsed() >= limit);
    balancer.wait_for("3 2 [(DialLimit, 1)]");
    clients.iter_mut().for_each(|client| assert_echo(client, b"still here"));
}

/// More clients than the standard library's listener has room for: the handshakes of the last are not even answered.
#[cfg(target_os = "linux")]
const MORE_THAN_A_BACKLOG: usize = 128 + 12;

/// A client whose handshake may take its time.
#[cfg(target_os = "linux")]
fn begin_to_connect(addr: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let begun = socket.connect(&addr.into());
    assert!(begun.is_ok() || begun.unwrap_err().raw_os_error() == Some(115)); // EINPROGRESS
    socket
}

#[test]
#[cfg(target_os = "linux")]
fn c4_3_with_a_full_backlog_emfile_rests_both_at_accept_and_at_dial_and_all_are_served_in_the_end()
{
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    // With one descriptor more, a client is let in for whom there is none to dial with.
    for (descriptors, let_in) in [(4, 2), (5, 3)] {
        let mut balancer = scarce::Scarce::start(descriptors, LONG);
        let mut served: VecDeque<_> = (0..2).map(|_| balancer.client()).collect();
        served.iter_mut().for_each(|client| assert_eq!(read_tag(client), "a"));
        let waiting: Vec<_> =
            (0..MORE_THAN_A_BACKLOG).map(|_| begin_to_connect(balancer.addr())).collect();
        wait_for("the backlog is full", || {
            waiting.iter().rev().take(3).all(|client| client.peer_addr().is_err()).then_some(())
        });
        balancer.wait_for(&format!("{let_in} 2 []"));
        balancer.assert_at_rest();

        drop(served.pop_front());
        balancer.wait_for(&format!("{} 2 []", let_in + 1));
        balancer.assert_at_rest();
        balancer.give_descriptors();

        for client in waiting {
            wait_for("its handshake", || client.peer_addr().ok());
            client.set_nonblocking(false).unwrap();
            let mut client = TcpStream::from(client);
            impatient(&client);
            assert_eq!(read_tag(&mut client), "a");
        }
        assert_echo(&mut served[0], b"still here");
        balancer.wait_for(&format!("{} 1 []", 2 + MORE_THAN_A_BACKLOG));
    }
}

// C4.4

#[test]
fn c4_4_at_max_connections_clients_wait_in_the_backlog_and_are_served_as_pairs_close() {
    let backend = TestBackend::echo("a");
    let balancer = Balancer::with(Server::builder().max_connections(2), set([("a", backend.addr)]));
    let mut clients: VecDeque<_> = (0..6).map(|_| balancer.client()).collect();

    while clients.len() > 2 {
        read_tag(&mut clients[0]);
        read_tag(&mut clients[1]);
        assert_echo(&mut clients[0], b"still here");
        let stats = balancer.stats();
        assert_eq!((stats.open, stats.dialling, stats.accepted), (2, 0, 8 - clients.len() as u64));
        // Both pairs, in order and cut.
        drop(clients.pop_front());
        reset(clients.pop_front().unwrap());
    }

    read_tag(&mut clients[0]);
    read_tag(&mut clients[1]);
}

#[test]
fn c4_4_a_pair_that_is_still_dialling_counts() {
    let (hole, backend) = (BlackHole::new(), TestBackend::echo("b"));
    let balancer = Balancer::with(Server::builder().max_connections(1), set([("a", hole.addr)]));
    let first = balancer.client();
    balancer.wait_for("the first dials", |stats| stats.dialling == 1);
    let mut second = balancer.client();

    balancer.stats(); // of a turn that has seen the second client come, and would have accepted it at its end
    assert_eq!(balancer.stats().accepted, 1);

    reset(first);
    balancer.update(set([("b", backend.addr)]));
    assert_eq!(read_tag(&mut second), "b");
}
