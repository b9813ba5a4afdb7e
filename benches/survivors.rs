//! Survivors: the worst round trip of a pair whose backend stays, beside a burst that one update
//! sets off. Either 9,000 pairs are closed, or 4,500 dials to a host that does not answer are
//! cancelled and their clients are given another backend. And the same beside 4,500 clients that
//! leave at once.
//!
//! Prints the worst of each round, since Criterion measures no maximum.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tinylb::{BackendSet, Server, ServerThread, Stats, TcpBackend};

use tinylb_benches::clients::{connect, exchange};
use tinylb_benches::idle_clients::{self, IdleClients};
use tinylb_benches::{descriptors, echo, loopback};

const ROUNDS: usize = 7;
/// How long the survivor goes on after the burst.
const AFTERMATH: Duration = Duration::from_secs(1);

fn main() {
    let (pairs, dials) = (idle_clients::sizes(&[9_000])[0], idle_clients::sizes(&[4_500])[0]);
    // Three backends, so that the survivor's has nothing else to do.
    let [survivor, removed, other] = [(); 3].map(|()| loopback::addrs(1, echo::start())[0]);
    let silent = SilentHost::start();
    println!("worst round trip of a survivor, in ms, in each of {ROUNDS} rounds");
    report("beside nothing", || worst_beside(survivor, |_, _| ()));
    report(&format!("beside {pairs} closes"), || {
        let clients = IdleClients::new();
        worst_beside(survivor, |balancer, watch| {
            update(balancer, &[(survivor, 0), (removed, 1)]);
            clients.replace(port_of(balancer), pairs);
            watch.begin();
            update(balancer, &[(survivor, 1)]);
        })
    });
    report(&format!("beside {dials} re-dials"), || {
        worst_beside(survivor, |balancer, watch| {
            update(balancer, &[(survivor, 0), (silent.addr, 1)]);
            let clients = Waiting::connect(port_of(balancer), dials);
            while stats(balancer).dialling < dials as u64 {
                thread::sleep(Duration::from_millis(5));
            }
            watch.begin();
            update(balancer, &[(survivor, 0), (other, 1)]);
            clients
        })
    });
    report(&format!("beside {dials} clients that leave"), || {
        worst_beside(survivor, |balancer, watch| {
            update(balancer, &[(survivor, 0), (other, 1)]);
            let clients = Waiting::connect(port_of(balancer), dials);
            while stats(balancer).open <= dials as u64 {
                thread::sleep(Duration::from_millis(5));
            }
            watch.begin();
            drop(clients);
        })
    });
}

fn report(name: &str, mut round: impl FnMut() -> Duration) {
    let mut worst: Vec<_> = (0..ROUNDS).map(|_| round().as_secs_f64() * 1e3).collect();
    worst.sort_by(f64::total_cmp);
    println!("{name}: median {:.1}, all {worst:.1?}", worst[ROUNDS / 2]);
}

/// Has a pair exchange messages, beside a burst and for a while after it, for which what the burst
/// returns is kept.
fn worst_beside<T>(
    survivor: SocketAddr,
    burst: impl FnOnce(&ServerThread, &Watch) -> T,
) -> Duration {
    let balancer = Server::builder().build(loopback::listener()).unwrap().spawn().unwrap();
    update(&balancer, &[(survivor, 1)]);
    let client = connect([loopback::addrs(1, port_of(&balancer))[0]]);
    exchange(&client);
    let watch = Watch::default();
    let watched = watch.clone();
    let worst = thread::spawn(move || watched.worst_round_trip(&client));
    let _kept = burst(&balancer, &watch);
    watch.begin();
    thread::sleep(AFTERMATH);
    watch.has_ended.store(true, Ordering::Relaxed);
    worst.join().unwrap()
}

/// When to take note of round trips.
#[derive(Clone, Default)]
struct Watch {
    has_begun: Arc<AtomicBool>,
    has_ended: Arc<AtomicBool>,
}

impl Watch {
    fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    fn worst_round_trip(&self, client: &[TcpStream]) -> Duration {
        let mut worst = Duration::ZERO;
        while !self.has_ended.load(Ordering::Relaxed) {
            let is_noted = self.has_begun.load(Ordering::Relaxed);
            let start = Instant::now();
            exchange(client);
            if is_noted {
                worst = worst.max(start.elapsed());
            }
            thread::sleep(Duration::from_micros(200)); // so that it does not take a core
        }
        worst
    }
}

/// Replaces the set by these targets and their weights.
fn update(balancer: &ServerThread, targets: &[(SocketAddr, u32)]) {
    let mut set = BackendSet::new();
    for (addr, weight) in targets {
        set.insert_weighted(addr.to_string(), TcpBackend::new(*addr), *weight);
    }
    balancer.control().update(set).unwrap().wait().unwrap();
}

fn port_of(balancer: &ServerThread) -> u16 {
    balancer.local_addr().ip().unwrap().port()
}

fn stats(balancer: &ServerThread) -> Stats {
    balancer.control().stats().unwrap().wait().unwrap()
}

/// A host that answers no SYN: its backlog is full.
struct SilentHost {
    addr: SocketAddr,
    _listener: TcpListener,
    _backlog: Vec<TcpStream>,
}

impl SilentHost {
    fn start() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let addr = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&addr, Duration::from_millis(200)).ok();
        let backlog = std::iter::from_fn(connect).collect();
        Self { addr, _listener: listener, _backlog: backlog }
    }
}

/// Clients that wait for an answer, with descriptors of their own.
struct Waiting {
    _leave_when_dropped: mpsc::Sender<()>,
}

impl Waiting {
    fn connect(port: u16, count: usize) -> Self {
        let (leave, until_they_leave) = mpsc::channel::<()>();
        let (tell, connected) = mpsc::channel();
        descriptors::spawn_with_own(move || {
            let clients = connect(loopback::addrs(64, port).into_iter().cycle().take(count));
            tell.send(()).unwrap();
            let _ = until_they_leave.recv();
            drop(clients);
        });
        connected.recv().unwrap();
        Self { _leave_when_dropped: leave }
    }
}
