//! Removal: all pairs closed by one update, which gives every backend another target, from
//! `Control::update` until it is applied.
//!
//! 100, 1,000 and 9,000 pairs, or as many as there are descriptors for. The time for one should not
//! depend on it. No loop around tokio's `copy_bidirectional` does this. Beside tinylb is the
//! kernel's share: as many sockets (two for each pair) closed by a reset, and nothing else.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput};
use socket2::SockRef;
use tinylb::{BackendSet, Server, TcpBackend};

use tinylb_benches::idle_clients::{self, IdleClients};
use tinylb_benches::{echo, loopback};

fn main() {
    // On all cores: what is measured is the balancer's alone.
    let mut criterion = Criterion::default().configure_from_args();
    removal(&mut criterion);
    criterion.final_summary();
}

fn removal(criterion: &mut Criterion) {
    let sizes = idle_clients::sizes(&[100, 1_000, 9_000]);
    let clients = IdleClients::new();
    let backend_port = echo::start();
    let targets = loopback::addrs(128, backend_port);
    let [before, after] = [&targets[..64], &targets[64..]].map(backends);
    let balancer = Server::builder().build(loopback::listener()).unwrap().spawn().unwrap();
    let port = balancer.local_addr().ip().unwrap().port();
    let control = balancer.control();
    let update = |set: &BackendSet| control.update(set.clone()).unwrap().wait().unwrap();

    let mut group = criterion.benchmark_group("removal");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_secs(4));
    group.sampling_mode(SamplingMode::Flat);
    for pairs in sizes {
        group.throughput(Throughput::Elements(pairs as u64));
        group.bench_function(BenchmarkId::new("kernel", pairs), |bencher| {
            let open = || sockets_to_reset(backend_port, 2 * pairs);
            bencher.iter_batched(open, drop, BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new("tinylb", pairs), |bencher| {
            let open = || {
                update(&before);
                clients.replace(port, pairs);
            };
            let remove = |()| assert_eq!(update(&after).closed, pairs);
            bencher.iter_batched(open, remove, BatchSize::PerIteration);
        });
    }
}

fn backends(targets: &[SocketAddr]) -> BackendSet {
    targets
        .iter()
        .enumerate()
        .map(|(n, &addr)| (format!("{n:02}"), TcpBackend::new(addr)))
        .collect()
}

/// Connected sockets that reset their connections when they are dropped.
fn sockets_to_reset(port: u16, count: usize) -> Vec<TcpStream> {
    let sockets = idle_clients::gather(port, count);
    for socket in &sockets {
        SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
    sockets
}
