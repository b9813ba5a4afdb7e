//! Short connections: connect, send 64 bytes, read the echo, end the stream, see the backend end its own.
//!
//! One at a time, and 64 at once. Beside tinylb: the backend itself, and the loop around tokio's `copy_bidirectional`.
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

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

use common::clients::{connect, exchange};
use common::{echo, loopback, routes};

fn main() {
    common::one_core::stay_on_one();
    let mut criterion = Criterion::default().configure_from_args();
    connections(&mut criterion);
    criterion.final_summary();
}

fn connections(criterion: &mut Criterion) {
    let backends = loopback::addrs(64, echo::start());
    let routes = routes::all(&backends);
    let mut group = criterion.benchmark_group("connections");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    for at_once in [1, 64] {
        group.throughput(Throughput::Elements(at_once));
        for route in &routes {
            let mut addrs = route.addrs();
            group.bench_function(BenchmarkId::new(route.name, at_once), |bencher| {
                bencher.iter(|| {
                    let clients = connect(addrs.by_ref().take(at_once as usize));
                    exchange(&clients);
                    end(clients);
                });
            });
        }
    }
}

/// Has all clients end their streams, and then all see the backend end its own.
fn end(clients: Vec<TcpStream>) {
    for client in &clients {
        client.shutdown(Shutdown::Write).unwrap();
    }
    for mut client in clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}
