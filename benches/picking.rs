//! Picking: connections to one backend, and to as many as 10,000, with ejection and counting as
//! they are by default, by each policy, with equal weights and with different ones; and failing
//! over from one backend to the next until none is left.
//!
//! 64 at once: connect, read what the backend has to say, to its end. What one costs should not
//! depend on the number of backends. Beside tinylb: the backends themselves, and the loop around
//! tokio's `copy_bidirectional`, both in turn, since to the kernel one address and 10,000 are not
//! the same. The ratios tell: clients and backend are measured along, on the same core.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

use tinylb::{Backend, BackendSet, Dial, DialRequest, Policy, Server, TcpBackend};
use tinylb_benches::{loopback, routes};

const AT_ONCE: usize = 64;
const GREETING: [u8; 64] = [42; 64];

fn main() {
    tinylb_benches::run(|criterion| {
        picking(criterion);
        failing_over(criterion);
    });
}

/// A client for whom all backends fail at once, so that only the picks and the accounting take
/// time. What each takes should not depend on their number.
fn failing_over(criterion: &mut Criterion) {
    let mut group = tinylb_benches::group(criterion, "failing-over", 3);
    for backends in [100, 1_000, 10_000] {
        group.throughput(Throughput::Elements(backends as u64));
        let set = (0..backends).map(|index| (format!("{index:05}"), Refusing(index))).collect();
        let route = routes::tinylb_with("tinylb", Server::builder(), set);
        let mut addrs = route.addrs();
        group.bench_function(BenchmarkId::new("tinylb", backends), |bencher| {
            bencher.iter(|| {
                let mut client = connect(addrs.next().unwrap());
                let refused = client.read(&mut [0]).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
            });
        });
    }
}

/// A backend that refuses without having been asked.
struct Refusing(usize);

impl Backend for Refusing {
    fn target_name(&self) -> String {
        self.0.to_string()
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        Err(ErrorKind::ConnectionRefused.into())
    }
}

fn picking(criterion: &mut Criterion) {
    let backend_port = start_backend();
    let mut group = tinylb_benches::group(criterion, "picking", 3);
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    for backends in [1, 10, 100, 1_000, 10_000] {
        let addrs = loopback::addrs(backends, backend_port);
        let builder = |policy| Server::builder().policy(policy);
        let by_policy = [
            routes::tinylb("least-connections", builder(Policy::LeastConnections), &addrs),
            routes::tinylb_with("weighted", builder(Policy::RoundRobin), weighted(&addrs)),
            routes::tinylb_with(
                "weighted-least-connections",
                builder(Policy::LeastConnections),
                weighted(&addrs),
            ),
        ];
        for route in routes::all(&addrs).into_iter().chain(by_policy) {
            let mut addrs = route.addrs();
            group.bench_function(BenchmarkId::new(route.name, backends), |bencher| {
                bencher.iter(|| {
                    let clients: Vec<_> = addrs.by_ref().take(AT_ONCE).map(connect).collect();
                    clients.into_iter().for_each(read_greeting);
                });
            });
        }
    }
}

/// The backends with 100 different weights.
fn weighted(addrs: &[SocketAddr]) -> BackendSet {
    let mut set = BackendSet::new();
    for (index, addr) in addrs.iter().enumerate() {
        set.insert_weighted(format!("{index:05}"), TcpBackend::new(*addr), index as u32 % 100 + 1);
    }
    set
}

/// Greets and ends. Since it ends first, no port of a client or a balancer is used up, however few
/// the backends.
fn start_backend() -> u16 {
    let listener = loopback::listener();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(&GREETING).unwrap();
        }
    });
    port
}

fn connect(addr: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(addr).unwrap();
    // Only a bench that fails takes so long.
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client
}

fn read_greeting(mut client: TcpStream) {
    let mut greeting = Vec::with_capacity(GREETING.len() + 1);
    client.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting, GREETING);
}
