//! Round trips of 64 bytes on connections that stay open.
//!
//! With 1, 64 and 1,000 connections: all send, then all read the echo. Beside tinylb: the backend itself, the loop
//! around tokio's `copy_bidirectional`, and tinylb with an idle time-out, which has to note when bytes moved.
//! The ratios tell: clients and backend are measured along, on the same core.

mod common {
    pub(crate) mod clients;
    pub(crate) mod descriptors;
    pub(crate) mod echo;
    pub(crate) mod loopback;
    pub(crate) mod one_core;
    pub(crate) mod routes;
    pub(crate) mod tokio_twin;
}

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use tinylb::Server;

use common::clients::{connect, exchange};
use common::{echo, loopback, routes};

fn main() {
    common::one_core::stay_on_one();
    let mut criterion = Criterion::default().configure_from_args();
    round_trips(&mut criterion);
    criterion.final_summary();
}

fn round_trips(criterion: &mut Criterion) {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let backends = loopback::addrs(1, echo::start());
    let idle_timeout = Server::builder().idle_timeout(Some(Duration::from_secs(60)));
    let mut routes = Vec::from(routes::all(&backends));
    routes.push(routes::tinylb("tinylb_idle_timeout", idle_timeout, &backends));
    let mut group = criterion.benchmark_group("round_trips");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    for connections in [1, 64, 1_000] {
        group.throughput(Throughput::Elements(connections));
        for route in &routes {
            let clients = connect(route.addrs().take(connections as usize));
            group.bench_function(BenchmarkId::new(route.name, connections), |bencher| {
                bencher.iter(|| exchange(&clients));
            });
        }
    }
}
