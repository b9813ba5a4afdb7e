//! Mixed load on two balancers for minutes or hours, while their sets change ten times a second: no
//! byte is lost or doubled, what is removed is closed, the counters add up, and all that was taken
//! is given back.
//!
//! ```sh
//! cargo test --release --test soak -- --seconds 120
//! ```
//!
//! One balancer listens on TCP, the other on a Unix-domain socket; both have backends of both
//! kinds, and some that refuse, are missing or do not answer. A seed repeats the conversations and
//! the changes of the sets, though not how threads take turns.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Parser;
use socket2::{SockAddr, Socket, Type};
use tinylb::{
    BackendSet, Client, Connected, EndReason, Ended, Observer, Server, TcpBackend, UnixBackend,
};
use tinylb_tests::*;

/// Puts mixed load on two balancers while their sets change, and checks every byte of it.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How long to keep the load up, after the warm-up
    #[arg(long, value_name = "N", default_value_t = 120, conflicts_with = "minutes")]
    seconds: u64,
    /// The same in minutes
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Repeats the conversations and the changes of a run
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients each balancer has at a time
    #[arg(long, default_value_t = 48)]
    clients: u64,
    /// How often the set of each balancer changes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    updates_per_second: u32,
}

/// What the C library of GNU systems is told before the program begins: to have one heap, and to
/// set nothing aside for each thread. Otherwise threads that free each other's memory hold ever
/// more of it, which looks like a leak.
const ONE_HEAP: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0");
/// How much memory may be kept after the load beyond what the warm-up has kept.
const KEPT: usize = 6_000_000;
/// How many ticks of CPU time both balancers may take in two seconds of rest.
const TICKS: u64 = 2;
/// A dial that is not answered keeps its client from others for so long.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let options = Options::parse();
    if !std::env::var(ONE_HEAP.0).is_ok_and(|set| set.contains(ONE_HEAP.1)) {
        let program = std::env::current_exe().expect("a program knows where it is");
        let mut again = Command::new(program);
        let err = again.args(std::env::args_os().skip(1)).env(ONE_HEAP.0, ONE_HEAP.1).exec();
        println!("soak: it cannot begin anew with one heap: {err}");
        return ExitCode::FAILURE;
    }
    let seed = options.seed.unwrap_or_else(|| {
        std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64)
    });
    println!("soak: seed {seed}, {options:?}");
    let outcome = catch_unwind(|| soak(&options, seed));
    println!("soak: {} with --seed {seed}", if outcome.is_ok() { "clean" } else { "FAILED" });
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn soak(options: &Options, seed: u64) {
    rlimit::increase_nofile_limit(options.clients * 16 + 300).unwrap();
    let before = (process::descriptors(), process::threads().len());
    let dir = tempfile::tempdir().unwrap();
    let rigs = [true, false].map(|is_unix| Rig::start(is_unix, dir.path(), seed));
    let idle = (process::descriptors(), process::threads().len());
    let time = Duration::from_secs(options.minutes.map_or(options.seconds, |minutes| minutes * 60));
    // The first round takes memory that is kept: slots, what allocators hold back.
    load(&rigs, options, (time / 4).clamp(Duration::from_secs(2), Duration::from_secs(20)));
    let warm = process::resident();
    load(&rigs, options, time);

    let now = || (process::descriptors(), process::threads().len());
    wait_for("descriptors and threads are what they were", || {
        let (descriptors, threads) = now();
        // Each balancer that splices keeps an empty pipe, whose ends have the same name.
        let (pipes, others): (Vec<_>, Vec<_>) =
            descriptors.difference(&idle.0).partition(|it| it.contains("pipe:"));
        let most = if cfg!(feature = "splice") { rigs.len() } else { 0 };
        let same = descriptors.is_superset(&idle.0) && others.is_empty() && threads == idle.1;
        (same && pipes.len() <= most).then_some(())
    });
    let kept = process::resident().saturating_sub(warm);
    assert!(kept <= KEPT, "{kept} bytes more are kept than after the warm-up");
    let ticks = process::cpu_ticks("tinylb");
    thread::sleep(Duration::from_secs(2));
    let ticks = process::cpu_ticks("tinylb") - ticks;
    assert!(ticks <= TICKS, "{ticks} ticks of CPU time with nobody there");
    rigs.into_iter().for_each(Rig::finish);
    wait_for("nothing is left", || (now() == before).then_some(()));
    println!("soak: {kept} bytes more kept than after the warm-up");
}

/// One round: load for so long, and then all that it began comes to an end.
fn load(rigs: &[Rig; 2], options: &Options, time: Duration) {
    let threads: Vec<JoinHandle<()>> =
        rigs.iter().flat_map(|rig| rig.start_load(options)).collect();
    let start = Instant::now();
    while start.elapsed() < time && !threads.iter().any(JoinHandle::is_finished) {
        thread::sleep(Duration::from_secs(1));
        rigs.iter().for_each(|rig| rig.show(start.elapsed()));
    }
    rigs.iter().for_each(|rig| rig.shared.is_over.store(true, SeqCst));
    let outcomes: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
    assert!(outcomes.iter().all(Result::is_ok), "a thread of the load has failed");
    for rig in rigs {
        rig.balancer.wait_for("all have ended", |stats| stats.open + stats.dialling == 0);
        rig.shared.assert_sound();
        rig.assert_at_rest();
    }
}

/// A balancer that listens on one kind of socket, and has backends of both.
struct Rig {
    balancer: Balancer,
    seed: u64,
    front: SockAddr,
    targets: Arc<Vec<Target>>,
    shared: Arc<Shared>,
    _backends: Vec<TestBackend>,
    _unanswering: (BlackHole, Socket),
}

/// Something to dial: a place for TCP or a path.
#[derive(Clone)]
enum Target {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
}

/// What clients, backends and the observer of a balancer have seen.
#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// The conversations that were begun, and those that came to their planned end.
    begun: AtomicU64,
    complete: AtomicU64,
    updates: AtomicU64,
    slowest_update: AtomicU64,
    /// What went wrong on threads of backends.
    faults: Mutex<Vec<String>>,
    seen: Mutex<Seen>,
}

/// What the observer was told.
#[derive(Default)]
struct Seen {
    accepted: u64,
    ended: u64,
    bytes: [u64; 2],
    /// The targets of open pairs.
    open: HashMap<u64, String>,
}

struct Scribe(Arc<Shared>);

impl Observer for Scribe {
    fn accepted(&mut self, _: &Client<'_>) {
        self.0.seen.lock().unwrap().accepted += 1;
    }

    fn connected(&mut self, connected: &Connected<'_>) {
        let mut seen = self.0.seen.lock().unwrap();
        seen.open.insert(connected.client.id, connected.target_name.to_owned());
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let mut seen = self.0.seen.lock().unwrap();
        let target = seen.open.remove(&ended.client.id);
        assert_eq!(ended.backend.map(|backend| backend.target_name), target.as_deref(), "C8.2");
        assert_ne!(ended.reason, EndReason::LocalFailure);
        seen.ended += 1;
        seen.bytes[0] += ended.bytes_up;
        seen.bytes[1] += ended.bytes_down;
    }
}

impl Shared {
    fn assert_sound(&self) {
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }

    /// What a backend does with a connection. A client that leaves its Unix-domain socket looks as
    /// if it had ended.
    fn answer(&self, stream: Socket, [client_is_unix, is_unix]: [bool; 2]) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some((talk, received)) = Talk::answer(stream) {
                let sees_aborts =
                    HAS_RESETS && !is_unix && !(client_is_unix && talk.leaves.is_some());
                assert!(received.is_honest(talk.up, sees_aborts), "{received:?} of {talk:?}");
            }
        }));
        if outcome.is_err() {
            self.faults.lock().unwrap().push("a backend has failed, as it says above".to_owned());
        }
    }
}

impl Rig {
    fn start(is_unix: bool, dir: &Path, seed: u64) -> Self {
        let (shared, hole) = (Arc::<Shared>::default(), BlackHole::new());
        let refusing = bound_socket();
        let path = |name: &str| dir.join(format!("{name}-{is_unix}"));
        let mut targets = vec![
            Target::Tcp(hole.addr),
            Target::Tcp(addr_of(&refusing)),
            Target::Unix(path("missing")),
        ];
        let mut backends = Vec::new();
        for index in 0..6 {
            let shared = shared.clone();
            if index % 2 == 0 {
                backends
                    .push(TestBackend::new(move |stream| shared.answer(stream, [is_unix, false])));
                targets.push(Target::Tcp(backends[index].addr));
            } else {
                let path = path(&index.to_string());
                backends.push(TestBackend::unix(&path, move |stream| {
                    shared.answer(stream, [is_unix, true])
                }));
                targets.push(Target::Unix(path));
            }
        }
        let builder = Server::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .dial_limit(Duration::from_secs(2))
            .observer(Scribe(shared.clone()));
        let (server, front) = if is_unix {
            let path = path("front");
            (builder.build(UnixListener::bind(&path).unwrap()), SockAddr::unix(path).unwrap())
        } else {
            let listener = listener_with_backlog(1024);
            let front = listener.local_addr().unwrap().into();
            (builder.build(listener), front)
        };
        let balancer = Balancer::of(server.unwrap());
        let targets = Arc::new(targets);
        let _unanswering = (hole, refusing);
        Self { balancer, seed, front, targets, shared, _backends: backends, _unanswering }
    }

    /// Clients come, and the set changes, until it is over.
    fn start_load(&self, options: &Options) -> Vec<JoinHandle<()>> {
        self.shared.is_over.store(false, SeqCst);
        let mut threads: Vec<_> = (0..options.clients)
            .map(|_| {
                let (shared, front, seed) = (self.shared.clone(), self.front.clone(), self.seed);
                thread::spawn(move || {
                    while !shared.is_over.load(SeqCst) {
                        talk(&shared, &front, seed);
                    }
                })
            })
            .collect();
        let mut changer = Changer {
            control: self.balancer.control.clone(),
            targets: self.targets.clone(),
            shared: self.shared.clone(),
            random: Random::new(self.seed ^ self.shared.updates.load(SeqCst)),
            set: HashMap::new(),
            draining: HashMap::new(),
        };
        let interval = Duration::from_secs(1) / options.updates_per_second;
        threads.push(thread::spawn(move || {
            while !changer.shared.is_over.load(SeqCst) {
                changer.change();
                thread::sleep(interval);
            }
        }));
        threads
    }

    fn show(&self, time: Duration) {
        let (stats, shared) = (self.balancer.stats(), &self.shared);
        shared.assert_sound();
        println!(
            "{:5.0} s  {}  {} clients, {} whole, {} open, {} removed, {} refused, {:.0} MB; {} \
             updates, slowest {:.1} ms; {} descriptors, {:.1} MB",
            time.as_secs_f64(),
            if self.balancer.addr.port() == 0 { "unix" } else { "tcp " },
            stats.accepted,
            shared.complete.load(SeqCst),
            stats.open,
            stats.ended.of(EndReason::TargetRemoved),
            stats.refused.total(),
            (stats.bytes_up + stats.bytes_down) as f64 / 1e6,
            shared.updates.load(SeqCst),
            shared.slowest_update.load(SeqCst) as f64 / 1e3,
            process::descriptors().len(),
            process::resident() as f64 / 1e6,
        );
    }

    /// Nobody is there any more: what was counted is what was told.
    fn assert_at_rest(&self) {
        let (stats, seen) = (self.balancer.stats(), self.shared.seen.lock().unwrap());
        assert_eq!((seen.accepted, seen.ended), (stats.accepted, stats.accepted));
        assert_eq!(seen.bytes, [stats.bytes_up, stats.bytes_down]);
        assert!(seen.open.is_empty());
        let [begun, complete] = [&self.shared.begun, &self.shared.complete].map(|n| n.load(SeqCst));
        assert!(complete * 3 > begun, "hardly anybody was served: {complete} of {begun}");
    }

    fn finish(self) {
        self.balancer.control.drain(Duration::from_secs(1)).unwrap();
        self.balancer.thread.join().unwrap();
    }
}

/// One conversation. Which, its number and the seed determine.
fn talk(shared: &Shared, front: &SockAddr, seed: u64) {
    let number = shared.begun.fetch_add(1, SeqCst);
    let mut random = Random::new(seed ^ number << 20);
    let random = &mut random;
    let most = random.pick(&[2_000, 2_000, 2_000, 30_000, 1 << 20, 8 << 20]);
    let (up, down) = (random.below(most), random.below(most));
    let mut talk = Talk::new(random.word(), up, down, random.pick(&Order::ALL));
    match random.below(10) {
        0 => talk.leaves = Some((Side::Client, random.below(up + 1))),
        1 => talk.leaves = Some((Side::Backend, random.below(down + 1))),
        2 => talk.lags = Some(random.pick(&[Side::Client, Side::Backend])),
        _ => {}
    }
    let socket = Socket::new(front.domain(), Type::STREAM, None).unwrap();
    set_io_timeouts(&socket);
    let received = match socket.connect(front) {
        Ok(()) => talk.hold(socket),
        Err(err) => {
            assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset); // refused very soon
            return thread::sleep(CONNECT_TIMEOUT);
        }
    };
    // A backend that leaves its Unix-domain socket looks as if it had ended.
    let sees_aborts = HAS_RESETS && !front.is_unix() && talk.leaves.is_none();
    assert!(received.is_honest(down, sees_aborts), "{received:?} of {talk:?}");
    let is_whole = received.end == StreamEnd::Clean && received.len == down;
    shared.complete.fetch_add(u64::from(is_whole && talk.leaves.is_none()), SeqCst);
    // A client that got nothing does not come again at once.
    thread::sleep(if is_whole { Duration::from_millis(random.below(60)) } else { CONNECT_TIMEOUT });
}

/// Changes the set of one balancer.
struct Changer {
    control: tinylb::Control,
    targets: Arc<Vec<Target>>,
    shared: Arc<Shared>,
    random: Random,
    /// Which target each key names.
    set: HashMap<u64, usize>,
    /// Until when pairs of removed targets may go on, by name.
    draining: HashMap<String, Instant>,
}

impl Changer {
    fn change(&mut self) {
        let random = &mut self.random;
        match random.below(20) {
            0 => self.set.clear(),
            1..6 => drop(self.set.remove(&random.below(8))),
            6 | 7 => return self.flap(),
            _ => drop(self.set.insert(random.below(8), random.below(9) as usize)),
        }
        // Most of the time somebody is there to serve.
        if random.below(20) > 0 {
            self.set.insert(8, 3 + (random.below(40) == 0) as usize);
            self.set.insert(9, 6);
        }
        let drain = random.one_in(5).then(|| Duration::from_millis(50 + random.below(1_000)));
        self.apply(std::slice::from_ref(&self.set.clone()), drain);
    }

    /// A target goes and comes back in the next moment, maybe before the balancer has looked
    /// (C3.6).
    fn flap(&mut self) {
        let Some(&target) = self.set.values().next() else { return };
        let mut gone = self.set.clone();
        gone.retain(|_, named| *named != target);
        let name = name_of(&self.targets[target]);
        let of_target: Vec<u64> = {
            let seen = self.shared.seen.lock().unwrap();
            seen.open.iter().filter(|(_, open)| **open == name).map(|(id, _)| *id).collect()
        };
        self.apply(&[gone, self.set.clone()], None);
        let seen = self.shared.seen.lock().unwrap();
        assert!(of_target.iter().all(|id| !seen.open.contains_key(id)), "C3.6: {name} is back");
    }

    /// Hands these sets over without a pause, waits until they are applied, and looks at what is
    /// left.
    fn apply(&mut self, sets: &[HashMap<u64, usize>], drain: Option<Duration>) {
        let start = Instant::now();
        let hand_over = |set: &HashMap<u64, usize>| {
            let backends = set.iter().map(|(key, target)| {
                let backend: Box<dyn tinylb::Backend> = match &self.targets[*target] {
                    Target::Tcp(addr) => Box::new(TcpBackend::new(*addr)),
                    Target::Unix(path) => Box::new(UnixBackend::new(path)),
                };
                (key.to_string(), backend)
            });
            let backends: BackendSet = backends.collect();
            match drain {
                None => self.control.update(backends).unwrap(),
                Some(limit) => self.control.update_draining(backends, limit).unwrap(),
            }
        };
        for update in sets.iter().map(hand_over).collect::<Vec<_>>() {
            update.wait_timeout(PATIENCE).unwrap().expect("an update is not applied");
            self.shared.updates.fetch_add(1, SeqCst);
        }
        self.shared.slowest_update.fetch_max(start.elapsed().as_micros() as u64, SeqCst);
        let named: Vec<String> =
            sets[sets.len() - 1].values().map(|target| name_of(&self.targets[*target])).collect();
        let seen = self.shared.seen.lock().unwrap();
        let now = Instant::now();
        match drain {
            None => self.draining.clear(),
            Some(limit) => {
                self.draining.retain(|name, _| !named.contains(name));
                for name in seen.open.values().filter(|name| !named.contains(name)) {
                    let until = self.draining.entry(name.clone()).or_insert(now + limit);
                    *until = (*until).min(now + limit);
                }
            }
        }
        for name in seen.open.values().filter(|name| !named.contains(name)) {
            let until = self.draining.get(name).expect("C3.5: open though its target is gone");
            assert!(now < *until + PATIENCE, "C3.9: open though its drain is over");
        }
    }
}

fn name_of(target: &Target) -> String {
    match target {
        Target::Tcp(addr) => addr.to_string(),
        Target::Unix(path) => format!("unix:{}", path.display()),
    }
}
