//! Short connections: connect, send 64 bytes, read the echo, end the stream, see the backend end
//! its own.
//!
//! One at a time, and 64 at once. Beside tinylb: the backend itself, and the loop around tokio's
//! `copy_bidirectional`. The ratios tell: clients and backend are measured along, on the same core.

use std::io::Read;
use std::net::{Shutdown, TcpStream};

use criterion::{BenchmarkId, Criterion, Throughput};

use tinylb_benches::clients::{connect, exchange};
use tinylb_benches::{echo, loopback, routes};

fn main() {
    tinylb_benches::run(connections);
}

fn connections(criterion: &mut Criterion) {
    let backends = loopback::addrs(64, echo::start());
    let routes = routes::all(&backends);
    let mut group = tinylb_benches::group(criterion, "connections", 5);
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
