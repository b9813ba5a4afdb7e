//! Updates: one backend of a set gets another target, from `Control::update` until it is applied.
//!
//! 10 to 10,000 backends, without a pair and with 9,000 (or as many as there are descriptors for)
//! on targets that stay. An update looks at each backend and at each pair once: throughput counts
//! both. How a host comes to its new set is not measured; here it clones the old one and inserts.
//! There is nothing to set beside it: neither a direct connection nor a loop around tokio's
//! `copy_bidirectional` has updates.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use tinylb::{BackendSet, Server, TcpBackend};

use tinylb_benches::idle_clients::{self, IdleClients};
use tinylb_benches::{echo, loopback};

fn main() {
    tinylb_benches::run(updates);
}

fn updates(criterion: &mut Criterion) {
    let sizes = idle_clients::sizes(&[0, 9_000]);
    let clients = IdleClients::new();
    let backend_port = echo::start();
    let mut group = tinylb_benches::group(criterion, "updates", 4);
    for pairs in sizes {
        for backends in [10, 100, 1_000, 10_000] {
            let mut addrs = loopback::addrs(backends + 1, backend_port);
            let one_or_other = addrs.split_off(backends as usize - 1);
            let staying: BackendSet =
                addrs.iter().map(|addr| (addr.to_string(), TcpBackend::new(*addr))).collect();
            let server =
                Server::builder().backends(staying.clone()).build(loopback::listener()).unwrap();
            let balancer = server.spawn().unwrap();
            let control = balancer.control();
            clients.replace(balancer.local_addr().ip().unwrap().port(), pairs);

            let mut turns = one_or_other.iter().cycle();
            let mut next_set = || {
                let mut set = staying.clone();
                set.insert("changing", TcpBackend::new(*turns.next().unwrap()));
                set
            };
            group.throughput(Throughput::Elements(u64::from(backends) + pairs as u64));
            group.bench_function(BenchmarkId::new(format!("{pairs}_pairs"), backends), |bencher| {
                let update =
                    |set| assert_eq!(control.update(set).unwrap().wait().unwrap().closed, 0);
                bencher.iter_batched(&mut next_set, update, BatchSize::PerIteration);
            });
        }
    }
}
