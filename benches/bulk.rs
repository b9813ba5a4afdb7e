//! Bulk transfer, from the connect until both sides have read everything to its end.
//!
//! 256 MiB on one connection one way, and on 16 connections both ways, 8 MiB each. Beside tinylb:
//! the backend itself, and the loop around tokio's `copy_bidirectional`. The ratios tell: both ends
//! are measured along, on the same core. Where the system's congestion control is BBR, its pacing
//! blurs even those.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};

use tinylb_benches::{loopback, routes};

const MIB: u64 = 1 << 20;
/// How long anything may take. Only a bench that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What moves in one iteration.
struct Load {
    name: &'static str,
    connections: u64,
    /// By each client to its backend.
    upload: u64,
    /// By each backend to its client.
    download: u64,
}

const LOADS: [Load; 2] = [
    Load { name: "one_way", connections: 1, upload: 256 * MIB, download: 0 },
    Load { name: "16_both_ways", connections: 16, upload: 8 * MIB, download: 8 * MIB },
];

fn main() {
    tinylb_benches::run(bulk);
}

fn bulk(criterion: &mut Criterion) {
    let mut group = tinylb_benches::group(criterion, "bulk", 5);
    group.sampling_mode(SamplingMode::Flat);
    for load in &LOADS {
        let (backend, served) = start_backend(load);
        group.throughput(Throughput::Bytes(load.connections * (load.upload + load.download)));
        for route in routes::all(&loopback::addrs(1, backend)) {
            group.bench_function(BenchmarkId::new(route.name, load.name), |bencher| {
                bencher.iter(|| {
                    thread::scope(|scope| {
                        for addr in route.addrs().take(load.connections as usize) {
                            scope.spawn(move || {
                                transfer(&connect(addr), load.upload, load.download)
                            });
                        }
                    });
                    for _ in 0..load.connections {
                        served.recv_timeout(PATIENCE).unwrap();
                    }
                });
            });
        }
    }
}

/// Starts a backend with a thread for each connection. Returns its port, and where it tells of each
/// that is over.
fn start_backend(load: &'static Load) -> (u16, Receiver<()>) {
    let listener = loopback::listener();
    let port = listener.local_addr().unwrap().port();
    let (tell, served) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let tell = tell.clone();
            thread::spawn(move || {
                transfer(&stream.unwrap(), load.download, load.upload);
                tell.send(()).unwrap();
            });
        }
    });
    (port, served)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends so many bytes and ends the stream, while reading so many until the other side has ended
/// its own.
fn transfer(stream: &TcpStream, sends: u64, receives: u64) {
    thread::scope(|scope| {
        scope.spawn(|| send(stream, sends));
        assert_eq!(read_to_end(stream), receives);
    });
}

fn send(mut stream: &TcpStream, bytes: u64) {
    let chunk = vec![42; MIB as usize];
    for _ in 0..bytes / MIB {
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn read_to_end(mut stream: &TcpStream) -> u64 {
    let mut buffer = vec![0; MIB as usize];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return received,
            len => received += len as u64,
        }
    }
}
