//! Round trips of 64 bytes on connections that stay open.
//!
//! With 1, 64 and 1,000 connections: all send, then all read the echo. Beside tinylb: the backend
//! itself, the loop around tokio's `copy_bidirectional`, and tinylb with an idle timeout, which has
//! to note when bytes moved. The ratios tell: clients and backend are measured along, on the same
//! core.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use tinylb::Server;

use tinylb_benches::clients::{connect, exchange};
use tinylb_benches::{echo, loopback, routes};

fn main() {
    tinylb_benches::run(round_trips);
}

fn round_trips(criterion: &mut Criterion) {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let backends = loopback::addrs(1, echo::start());
    let idle_timeout = Server::builder().idle_timeout(Some(Duration::from_secs(60)));
    let mut routes = Vec::from(routes::all(&backends));
    routes.push(routes::tinylb("tinylb_idle_timeout", idle_timeout, &backends));
    let mut group = tinylb_benches::group(criterion, "round_trips", 3);
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
