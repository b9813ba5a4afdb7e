//! Hosts that vanish without a word: dials fail over, idle pairs end by keepalive, those with bytes
//! on their way by `user_timeout`, and the rest goes on.
//!
//! Each test has hosts of its own: network namespaces of this machine, behind a router that can
//! swallow what comes from one of them or goes to it. That takes Linux, root, and `ip` of iproute2.
//! Elsewhere each test says that it is skipped, or fails if `TINYLB_REQUIRE_NETNS=1` asks for it.

#![cfg(all(target_os = "linux", feature = "socket2"))] // without it there is no keepalive

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tinylb::{BackendSet, Builder, Ejection, EndReason, Keepalive, Server};
use tinylb_tests::*;

/// What a busy machine may add to a time that was configured.
const SLACK: Duration = Duration::from_secs(6);
/// The kernel counts in ticks of up to 10 ms, and a time has two ends.
const TICK: Duration = Duration::from_millis(20);
const KEEPALIVE: Keepalive = Keepalive::new(Duration::from_secs(1), Duration::from_secs(1), 2);
/// When keepalive gives a silent peer up.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(3);
/// The same, but more patient than any test.
const MANY_PROBES: Keepalive = Keepalive::new(Duration::from_secs(1), Duration::from_secs(1), 100);
const USER_TIMEOUT: Duration = Duration::from_millis(2500);

/// Runs `ip` to its end, with commands for its batch mode if there are any. What it complained of
/// is the error.
fn ip(args: &[&str], batch: &str) -> Result<(), String> {
    let explain = |err: std::io::Error| format!("ip {}: {err}", args.join(" "));
    let mut command = Command::new("ip");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(explain)?;
    let _ = child.stdin.take().unwrap().write_all(batch.as_bytes()); // it may have given up
    let output = child.wait_with_output().map_err(explain)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {}: {complaint}", args.join(" ")))
    }
}

/// A network namespace with a name that no other process has.
struct Namespace {
    name: String,
    entrance: File,
}

impl Namespace {
    fn new() -> Result<Self, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tinylb-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        ip(&["netns", "add", &name], "")?;
        let entrance = File::open(Path::new("/var/run/netns").join(&name));
        Ok(Self { name, entrance: entrance.map_err(|err| err.to_string())? })
    }

    fn configure(&self, commands: &str) -> Result<(), String> {
        ip(&["-n", &self.name, "-batch", "-"], commands)
    }

    /// Does something on a thread that has entered it. Sockets and threads that are made there stay
    /// there.
    #[track_caller]
    fn on<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter_and_act = || {
            setns(&self.entrance, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        let outcome = thread::scope(|scope| scope.spawn(enter_and_act).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name], "");
    }
}

struct Host {
    ip: Ipv4Addr,
    namespace: Namespace,
    router: Arc<Namespace>,
}

impl Host {
    fn new(number: u8, router: &Arc<Namespace>) -> Result<Self, String> {
        let (namespace, ip) = (Namespace::new()?, Ipv4Addr::new(10, 77, number, 2));
        let (name, gateway) = (&namespace.name, Ipv4Addr::new(10, 77, number, 1));
        router.configure(&format!(
            "link add port{number} type veth peer name eth0 netns {name}\n\
             addr add {gateway}/24 dev port{number}\nlink set port{number} up\n"
        ))?;
        namespace.configure(&format!(
            "link set lo up\nlink set eth0 up\naddr add {ip}/24 dev eth0\n\
             route add default via {gateway}\n"
        ))?;
        Ok(Self { ip, namespace, router: router.clone() })
    }

    /// Cuts it off: what comes from it or goes to it is swallowed, and nobody is told.
    fn unplug(&self) {
        self.rules("add");
    }

    fn plug_in(&self) {
        self.rules("del");
    }

    fn rules(&self, verb: &str) {
        let ip = self.ip;
        let rules = format!("rule {verb} from {ip} blackhole\nrule {verb} to {ip} blackhole\n");
        self.router.configure(&rules).unwrap();
    }

    /// Has the router say that there is no such host.
    fn be_unreachable(&self) {
        self.router.configure(&format!("route add unreachable {}/32\n", self.ip)).unwrap();
    }

    #[track_caller]
    fn listener(&self) -> TcpListener {
        self.namespace.on(|| TcpListener::bind((self.ip, 0))).unwrap()
    }

    #[track_caller]
    fn connect(&self, addr: SocketAddr) -> TcpStream {
        self.namespace.on(|| connect(addr))
    }
}

/// Who may vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Client,
    Backend,
}
use Victim::{Backend, Client};

/// Says that this thread's test is skipped, past the capture of test output; panics if it must not
/// be.
fn skip(why: String) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    let is_required = std::env::var_os("TINYLB_REQUIRE_NETNS").is_some_and(|value| value == "1");
    assert!(!is_required, "TINYLB_REQUIRE_NETNS=1, but no hosts can be made here: {why}");
    // Unlike the macros, the handle itself is not captured.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no hosts can be made here: {why}");
}

/// A balancer on a host of its own. Its backend "a" and the clients of its pairs may vanish; "b"
/// and a client of it stay.
struct Scene {
    balancer: Balancer,
    watch: Watch,
    /// "b" alone, and both.
    sets: [BackendSet; 2],
    hand: ManualBackend,
    steady_client: TcpStream,
    hosts: [Host; 4],
    _steady: TestBackend,
}

/// Both ends of a pair with "a".
struct Pair {
    id: u64,
    client: TcpStream,
    server: TcpStream,
}

impl Scene {
    /// Returns `None` if this machine can make no hosts.
    #[track_caller]
    fn new(builder: Builder) -> Option<Self> {
        let hosts = make_hosts().map_err(skip).ok()?;
        let hand = ManualBackend::of(hosts[2].listener());
        let steady_addr = SocketAddr::from((hosts[3].ip, 9));
        let echo = TestBackend::echoing("b");
        let place = socket2::SockAddr::from(steady_addr);
        let steady = hosts[3].namespace.on(|| TestBackend::at(&place, echo));
        let both = set([("a", hand.addr), ("b", steady_addr)]);
        let sets = [set([("b", steady_addr)]), both.clone()];
        let watch = Watch::default();
        let builder = builder.observer(watch.clone()).backends(sets[0].clone());
        let listener = hosts[0].listener();
        let balancer = hosts[0].namespace.on(|| Balancer::of(builder.build(listener).unwrap()));
        let mut client = hosts[3].connect(balancer.addr);
        assert_eq!(read_tag(&mut client), "b");
        balancer.update(both);
        Some(Self { balancer, watch, sets, hand, steady_client: client, hosts, _steady: steady })
    }

    fn host(&self, victim: Victim) -> &Host {
        &self.hosts[if victim == Client { 1 } else { 2 }]
    }

    /// A new pair with "a", whose turn it is.
    #[track_caller]
    fn pair(&self) -> Pair {
        let id = self.watch.lock().accepted;
        let pair = Pair {
            id,
            client: self.host(Client).connect(self.balancer.addr),
            server: self.hand.accept(),
        };
        assert_eq!(self.serve_another(3), "b"); // whose turn is next
        pair
    }

    /// The others are served as if nothing had been.
    #[track_caller]
    fn assert_others_go_on(&mut self) {
        assert_echo(&mut self.steady_client, &pattern(8192));
    }

    /// The tag of the backend that serves a new client on this host.
    #[track_caller]
    fn serve_another(&self, host: usize) -> String {
        let mut client = self.hosts[host].connect(self.balancer.addr);
        let tag = read_tag(&mut client);
        assert_echo(&mut client, b"all is well");
        tag
    }
}

fn make_hosts() -> Result<[Host; 4], String> {
    let router = Arc::new(Namespace::new()?);
    let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    router.on(forward).map_err(|err| format!("no forwarding: {err}"))?;
    let hosts: Vec<_> =
        (1..=4).map(|number| Host::new(number, &router)).collect::<Result<_, _>>()?;
    hosts.try_into().map_err(|_| "there are four".to_owned())
}

impl Pair {
    /// Sends a little each way, the last of it from the victim, which acknowledges with it all that
    /// it was sent: if it vanishes now, no byte is on its way to it.
    #[track_caller]
    fn exchange(&mut self, victim: Victim) {
        let Self { client, server, .. } = self;
        let (first, last) = if victim == Client { (server, client) } else { (client, server) };
        pass(first, last, b"hello");
        pass(last, first, b"hello");
    }

    /// The end that is left when the victim has vanished.
    fn survivor(&mut self, victim: Victim) -> &mut TcpStream {
        if victim == Client { &mut self.server } else { &mut self.client }
    }
}

#[track_caller]
fn assert_took(took: Duration, limit: Duration) {
    assert!((limit - TICK..limit + SLACK).contains(&took), "it took {took:?}, not {limit:?}");
}

fn failure_of(victim: Victim) -> EndReason {
    if victim == Client { EndReason::ClientFailed } else { EndReason::BackendFailed }
}

fn with_keepalive() -> Builder {
    Server::builder().keepalive(Some(KEEPALIVE))
}

#[test]
fn c6_7_an_idle_pair_of_which_a_host_vanished_ends_by_keepalive() {
    for victim in [Client, Backend] {
        let Some(mut scene) = Scene::new(with_keepalive()) else { return };
        let mut pair = scene.pair();
        let quiet_since = Instant::now();
        pair.exchange(victim);
        scene.host(victim).unplug();

        let end = scene.watch.end_of(pair.id);

        assert_eq!((end.reason, end.error), (failure_of(victim), Some(ErrorKind::TimedOut)));
        assert_took(end.at - quiet_since, KEEPALIVE_LIMIT);
        assert_aborted(pair.survivor(victim));
        scene.assert_others_go_on();
    }
}

#[test]
fn c6_4_a_backend_host_that_vanished_is_noticed_although_its_client_reads_nothing() {
    let Some(mut scene) = Scene::new(with_keepalive()) else { return };
    let mut pair = scene.pair();
    pair.exchange(Backend);
    fill_until_blocked(&mut pair.server); // what nobody reads keeps the balancer from reading
    let quiet_since = Instant::now();
    scene.host(Backend).unplug();

    let end = scene.watch.end_of(pair.id);

    assert_eq!((end.reason, end.error), (EndReason::BackendFailed, Some(ErrorKind::TimedOut)));
    let took = end.at - quiet_since;
    assert!(took < KEEPALIVE_LIMIT + SLACK, "it took {took:?}");
    assert_aborted(&mut pair.client);
    scene.assert_others_go_on();
}

#[test]
fn c6_7_bytes_on_their_way_to_a_vanished_host_end_the_pair_by_user_timeout_alone() {
    for victim in [Client, Backend] {
        let limited = with_keepalive().user_timeout(Some(USER_TIMEOUT));
        let (Some(mut limited), Some(unlimited)) =
            (Scene::new(limited), Scene::new(with_keepalive()))
        else {
            return;
        };
        let [mut ended, mut lasting, mut idle] =
            [limited.pair(), unlimited.pair(), unlimited.pair()];
        [&mut ended, &mut lasting, &mut idle].into_iter().for_each(|pair| pair.exchange(victim));
        limited.host(victim).unplug();
        unlimited.host(victim).unplug();
        let sent_at = Instant::now();
        for pair in [&mut ended, &mut lasting] {
            pair.survivor(victim).write_all(b"is anybody there?").unwrap();
        }

        let end = limited.watch.end_of(ended.id);

        assert_eq!((end.reason, end.error), (failure_of(victim), Some(ErrorKind::TimedOut)));
        assert_took(end.at - sent_at, USER_TIMEOUT);
        assert_aborted(ended.survivor(victim));
        // Keepalive ends the pair that has been quiet for less time than the one with bytes on
        // their way.
        unlimited.watch.end_of(idle.id);
        assert!(
            !unlimited.watch.lock().ended.contains_key(&lasting.id),
            "keepalive does not notice"
        );
        limited.assert_others_go_on();
    }
}

#[test]
fn c6_7_a_user_timeout_takes_the_place_of_the_number_of_probes_for_idle_pairs_too() {
    const LONGER: Duration = Duration::from_secs(5);
    for (keepalive, limit) in [(MANY_PROBES, USER_TIMEOUT), (KEEPALIVE, LONGER)] {
        let builder = Server::builder().keepalive(Some(keepalive)).user_timeout(Some(limit));
        let Some(scene) = Scene::new(builder) else { return };
        let mut pair = scene.pair();
        let quiet_since = Instant::now();
        pair.exchange(Backend);
        scene.host(Backend).unplug();
        assert_took(scene.watch.end_of(pair.id).at - quiet_since, limit);
    }
}

#[test]
fn c3_2_an_update_closes_each_pair_of_a_vanished_host_at_once_and_serves_it_again_when_it_is_back()
{
    let Some(mut scene) = Scene::new(Server::builder().connect_timeout(LONG).dial_limit(LONG))
    else {
        return;
    };
    let mut pairs = [(); 4].map(|()| scene.pair());
    let [_idle, waiting, blocked, half_closed] = &mut pairs;
    half_closed.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half_closed.server.read(&mut [0]).unwrap(), 0);
    scene.host(Backend).unplug();
    waiting.client.write_all(b"is anybody there?").unwrap();
    fill_until_blocked(&mut blocked.client);
    let mut dialling = scene.host(Client).connect(scene.balancer.addr);
    scene.balancer.wait_for("a dial is in flight", |stats| stats.dialling == 1);

    let start = Instant::now();
    let applied = scene.balancer.update(scene.sets[0].clone());

    assert_eq!((applied.closed, applied.cancelled, applied.backends), (4, 1, 1), "{applied:?}");
    for pair in &mut pairs {
        assert_aborted(&mut pair.client);
        assert_eq!(scene.watch.end_of(pair.id).reason, EndReason::TargetRemoved);
    }
    assert_eq!(read_tag(&mut dialling), "b");
    assert!(start.elapsed() < SLACK, "it took {:?}", start.elapsed());
    scene.host(Backend).plug_in();
    scene.balancer.update(scene.sets[1].clone());
    scene.pair().exchange(Backend);
    // What was left of the old pairs on the host is told when it asks.
    for mut pair in pairs {
        wait_for("the old pair is reset", || pair.server.write(b"still here?").err());
    }
    scene.assert_others_go_on();
}

#[test]
fn c7_2_a_drain_ends_at_its_limit_although_a_vanished_host_cannot_finish() {
    let Some(scene) = Scene::new(Server::builder()) else { return };
    let mut pairs = [scene.pair(), scene.pair()];
    scene.host(Backend).unplug();
    pairs[1].client.write_all(b"is anybody there?").unwrap();
    let balancer = scene.balancer;
    let start = Instant::now();
    balancer.control.drain(2 * SHORT).unwrap();
    let ended = in_time("it ends", || balancer.thread.join()).unwrap().ended;
    assert_took(start.elapsed(), 2 * SHORT);
    assert_eq!(ended.of(EndReason::DrainLimit), 3, "with the one that stays");
    pairs.iter_mut().for_each(|pair| drop(assert_aborted(&mut pair.client)));
}

#[test]
fn c5_3_c5_5_a_vanished_host_is_failed_over_ejected_and_served_again_when_it_is_back() {
    const LIMIT: Duration = Duration::from_secs(1);
    let ejection = Ejection::new(2, 4 * LIMIT, 4 * LIMIT);
    let builder = Server::builder().connect_timeout(LIMIT).ejection(ejection);
    let Some(mut scene) = Scene::new(builder) else { return };
    drop(scene.pair());
    scene.host(Backend).unplug();
    for failures in 1..=2 {
        let start = Instant::now();
        assert_eq!(scene.serve_another(1), "b");
        assert_took(start.elapsed(), LIMIT);
        let failed = vec![("a".to_owned(), ErrorKind::TimedOut); failures];
        assert_eq!(scene.watch.lock().failed, failed);
    }
    let is_ejected = || scene.balancer.stats().backend("a").unwrap().ejected;
    assert!(is_ejected());
    let start = Instant::now();
    assert_eq!(scene.serve_another(1), "b");
    assert!(start.elapsed() < LIMIT, "it was waited for again");

    scene.host(Backend).plug_in();

    // "a" answers nobody by itself: a client that is not greeted is its.
    let mut accepted = scene.balancer.stats().accepted;
    wait_for("a client is served by it", || {
        let _client = scene.host(Client).connect(scene.balancer.addr);
        accepted += 1;
        let stats = scene
            .balancer
            .wait_for("it is served", |stats| stats.accepted == accepted && stats.dialling == 0);
        (stats.backend("a").unwrap().usage.total == 2).then_some(())
    });
    assert!(!is_ejected());
    scene.assert_others_go_on();
}

#[test]
fn c5_3_a_host_that_a_router_calls_unreachable_is_failed_over_at_once() {
    let Some(scene) = Scene::new(Server::builder().connect_timeout(LONG).dial_limit(LONG)) else {
        return;
    };
    scene.host(Backend).be_unreachable();
    assert_eq!(scene.serve_another(1), "b");
    assert_eq!(scene.watch.lock().failed, [("a".to_owned(), ErrorKind::HostUnreachable)]);
}
