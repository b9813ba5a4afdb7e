//! Chapter 9 of the contract: what never happens.

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use tinylb::{BackendSet, Builder, Control, Ejection, Error, Keepalive, Server, TcpBackend};
#[cfg(target_os = "linux")]
use tinylb_tests::process::{cpu_ticks, descriptors, resident, threads};
use tinylb_tests::*;

/// Accepts within [`PATIENCE`].
#[track_caller]
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let stream = wait_for("the balancer dials", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    impatient(&stream);
    stream
}

/// Runs the test of this name in a process of its own, where nothing but it has threads, descriptors and memory.
#[track_caller]
fn alone(test: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "TINYLB_TEST_ALONE";
    if env::var(VARIABLE).is_ok_and(|name| name == test) {
        return body();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, test)
        .output()
        .unwrap();
    let shown = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
}

/// A loop that spins would use half a second of CPU time here, or a good part of it on a busy machine.
#[cfg(target_os = "linux")]
#[track_caller]
fn assert_at_rest(when: &str) {
    let before = cpu_ticks("tinylb");
    thread::sleep(Duration::from_millis(500));
    let used = cpu_ticks("tinylb") - before;
    assert!(used <= 3, "{used} ticks of CPU time, {when}");
}

#[test]
#[cfg(target_os = "linux")]
fn c9_1_idle_pairs_time_outs_and_faults_leave_the_cpu_at_rest() {
    alone("c9_1_idle_pairs_time_outs_and_faults_leave_the_cpu_at_rest", || {
        let (backend, hole) = (listener(), BlackHole::new());
        let addr = backend.local_addr().unwrap();
        let builder = Server::builder()
            .max_connections(8)
            .connect_timeout(Duration::from_secs(3600))
            .dial_limit(Duration::from_secs(3600))
            .half_closed_timeout(Duration::from_secs(3600))
            .idle_timeout(Some(Duration::from_secs(3600)));
        let balancer = Balancer::with(builder, set([("a", addr)]));
        let pair = || {
            let client = balancer.client();
            (client, accept(&backend))
        };
        drop(pair()); // it runs
        assert_at_rest("nobody is there");
        let (idle, mut finished, mut urgent) = (pair(), pair(), pair());
        finished.0.write_all(b"x").unwrap();
        finished.0.shutdown(Shutdown::Write).unwrap();
        SockRef::from(&urgent.0).send_out_of_band(b"!").unwrap();
        urgent.0.write_all(b"x").unwrap();
        urgent.1.read_exact(&mut [0]).unwrap();
        assert_at_rest("pairs are idle, half-closed, or have urgent data");

        // Stuck both ways, then one that is gone in one direction while its bytes are stuck in the other.
        let stuck = [pair(), pair()];
        for (client, backend) in &stuck {
            for mut stream in [client, backend] {
                stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                while stream.write(&[0; 64 * 1024]).is_ok() {}
            }
        }
        stuck[1].0.shutdown(Shutdown::Write).unwrap();
        assert_at_rest("pairs are stuck");

        let stats = balancer.stats();
        assert_eq!(stats.open, 5);
        reset(pair().0);
        balancer.wait_for("a fault", |stats| stats.ended.total() == 2);
        balancer.update(set([("a", addr), ("b", refusing_addr()), ("c", hole.addr)]));
        let dialling = [balancer.client(), balancer.client()];
        balancer.wait_for("dials in flight", |stats| stats.dialling + stats.open == 7);
        dialling[0].shutdown(Shutdown::Write).unwrap();
        dialling[1].shutdown(Shutdown::Write).unwrap();
        let _at_the_limit: Vec<_> = (0..5).map(|_| balancer.client()).collect();
        balancer.wait_for("the limit", |stats| stats.dialling + stats.open == 8);
        assert_at_rest("dials are in flight, and clients wait beyond the limit");

        balancer.control.drain(Duration::from_secs(3600)).unwrap();
        balancer.stats();
        assert_at_rest("it drains");
        drop((idle, finished, urgent, stuck, dialling));
    });
}

#[test]
#[cfg(target_os = "linux")]
fn c9_1_time_outs_leave_the_cpu_at_rest_once_they_have_fired() {
    alone("c9_1_time_outs_leave_the_cpu_at_rest_once_they_have_fired", || {
        let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
        let soon = Duration::from_millis(50);
        let builder = Server::builder()
            .idle_timeout(Some(soon))
            .half_closed_timeout(soon)
            .connect_timeout(soon)
            .dial_limit(soon * 2);
        let balancer = Balancer::with(builder, set([("a", echo.addr), ("b", hole.addr)]));
        let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(balancer.addr)).collect();
        balancer.wait_for("all have timed out", |stats| {
            stats.refused.total() + stats.ended.total() == 20
        });
        assert_at_rest("all have timed out");
        drop(clients);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn c9_1_idle_pairs_hold_no_buffers() {
    const PAIRS: usize = 400;
    alone("c9_1_idle_pairs_hold_no_buffers", || {
        rlimit::increase_nofile_limit(16_384).unwrap();
        let backend = listener();
        narrow(&backend);
        let target = TcpBackend::new(backend.local_addr().unwrap()).on_socket(|socket| {
            narrow(socket);
            Ok(())
        });
        let balancer = Balancer::start([("a", target)].into());
        let mut bytes = vec![7; 60_000];
        // Each pair has bytes stuck, and then has not.
        let mut pair = || {
            let (mut client, mut backend) = (balancer.client(), accept(&backend));
            client.write_all(&bytes).unwrap();
            let delivered = balancer.stats().bytes_up;
            backend.read_exact(&mut bytes).unwrap();
            backend.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            (client, backend, delivered)
        };
        let _first: Vec<_> = (0..10).map(|_| pair()).collect();
        let before = resident();
        let pairs: Vec<_> = (0..PAIRS).map(|_| pair()).collect();
        let grown = resident().saturating_sub(before);
        assert!(grown < PAIRS * 6 * 1024, "{} bytes for each idle pair", grown / PAIRS);
        assert!(balancer.stats().open == 10 + PAIRS as u64 && pairs.len() == PAIRS);
    });
}

#[cfg(target_os = "linux")]
fn narrow(socket: &impl std::os::fd::AsFd) {
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(4 * 1024).unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn c9_2_nothing_outlives_run() {
    alone("c9_2_nothing_outlives_run", || {
        let (backend, hole) = (listener(), BlackHole::new());
        let addr = backend.local_addr().unwrap();
        let (before, threads_before) = (descriptors(), threads());
        let server = Server::builder()
            .backends(set([("a", addr), ("b", hole.addr)]))
            .build(listener())
            .unwrap();
        let (at, control) = (server.local_addr().ip().unwrap(), server.control());
        let pending = control.update(set([("a", addr), ("b", hole.addr)])).unwrap();
        let thread = server.spawn().unwrap();
        let (client, dialling) = (connect(at), connect(at));
        let accepted = accept(&backend);
        wait_for("a dial", || {
            (control.stats().unwrap().wait().unwrap().dialling == 1).then_some(())
        });
        assert!(threads().contains(&"tinylb\n".to_owned()));
        control.shutdown().unwrap();
        thread.join().unwrap();

        // Handles that are still held keep nothing open.
        let left: Vec<_> = descriptors().difference(&before).cloned().collect();
        assert_eq!(left.len(), 3, "more than the three sockets of the test: {left:?}");
        drop((client, dialling, accepted));
        assert_eq!(descriptors(), before);
        wait_for("the thread is gone", || (threads() == threads_before).then_some(()));
        drop((control, pending));
    });
}

#[test]
#[cfg(target_os = "linux")]
fn c9_2_a_server_that_never_runs_leaves_nothing_either() {
    alone("c9_2_a_server_that_never_runs_leaves_nothing_either", || {
        let before = descriptors();
        let server = Server::builder().build(listener()).unwrap();
        let (control, update) =
            (server.control(), server.control().update(BackendSet::new()).unwrap());
        assert!(descriptors().len() > before.len());
        drop(server);
        assert_eq!(descriptors(), before);
        drop((control, update));
    });
}

#[test]
fn c9_1_no_order_of_host_calls_panics_or_hangs() {
    type Call = fn(&Control, &BackendSet);
    let calls: [Call; 8] = [
        |control, set| drop(control.update(set.clone())),
        |control, _| {
            drop(
                control.update(BackendSet::new()).map(|update| update.wait_timeout(Duration::ZERO)),
            )
        },
        |control, set| drop(control.update_draining(set.clone(), Duration::ZERO)),
        |control, _| drop(control.update_draining(BackendSet::new(), Duration::MAX)),
        |control, _| drop(control.stats().and_then(|stats| stats.wait())),
        |control, _| control.drain(Duration::MAX).unwrap(),
        |control, _| control.drain(Duration::ZERO).unwrap(),
        |control, _| control.shutdown().unwrap(),
    ];
    let echo = TestBackend::echo("echo");
    let backends = set([("a", echo.addr), ("b", refusing_addr())]);
    // Every order of two calls, each before the start, while it runs, or after the end.
    for (first, second) in
        (0..calls.len()).flat_map(|first| (0..calls.len()).map(move |second| (first, second)))
    {
        let server = Server::builder().build(listener()).unwrap();
        let (control, addr) = (server.control(), server.local_addr().ip().unwrap());
        let _client = connect(addr);
        calls[first](&control, &backends);
        let thread = server.spawn().unwrap();
        calls[second](&control, &backends);
        calls[first](&control, &backends);
        control.shutdown().unwrap();
        thread.join().unwrap();
        calls[second](&control, &backends);
    }
}

#[test]
fn c9_1_settings_that_make_no_sense_are_errors() {
    let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
    let keepalive = |idle, interval, probes| {
        Server::builder().keepalive(Some(Keepalive::new(idle, interval, probes)))
    };
    let ejection = |base, max| Server::builder().ejection(Ejection::new(3, base, max));
    let wrong = [
        (Server::builder().connect_timeout(zero), "connect_timeout"),
        (Server::builder().dial_limit(zero), "dial_limit"),
        (Server::builder().idle_timeout(Some(zero)), "idle_timeout"),
        (Server::builder().half_closed_timeout(zero), "half_closed_timeout"),
        (Server::builder().max_connections(0), "max_connections"),
        (Server::builder().buffer_size(0), "buffer_size"),
        (Server::builder().buffer_size(usize::MAX), "buffer_size"),
        (keepalive(second / 2, second, 1), "keepalive"),
        (keepalive(second, zero, 1), "keepalive"),
        (keepalive(second, second, 0), "keepalive"),
        (Server::builder().user_timeout(Some(Duration::from_micros(999))), "user_timeout"),
        (ejection(zero, second), "ejection"),
        (ejection(second, second / 2), "ejection"),
    ];
    for (builder, name) in wrong {
        match builder.build(listener()) {
            Err(Error::Setting { setting, problem }) => {
                assert_eq!(setting, name);
                assert_eq!(
                    Error::Setting { setting, problem }.to_string(),
                    format!("{name} {problem}")
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Works, however long its limits are.
#[track_caller]
fn assert_works(builder: Builder) {
    let echo = TestBackend::echo("echo");
    let balancer = Balancer::with(builder, set([("a", refusing_addr()), ("b", echo.addr)]));
    for _ in 0..4 {
        let (mut client, _) = balancer.tagged_client();
        assert_echo(&mut client, b"hello");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client).1, StreamEnd::Clean);
    }
    let (mut client, _) = balancer.tagged_client();
    let update = balancer.control.update_draining(BackendSet::new(), Duration::MAX).unwrap();
    assert_eq!(update.wait_timeout(Duration::MAX).unwrap().unwrap().draining, 1);
    balancer.control.drain(Duration::MAX).unwrap();
    assert_echo(&mut client, b"still here");
    drop(client);
    balancer.thread.join().unwrap();
}

#[test]
fn c9_1_no_setting_is_too_large_or_too_small() {
    let max = Duration::MAX;
    assert_works(
        Server::builder()
            .connect_timeout(max)
            .dial_limit(max)
            .idle_timeout(Some(max))
            .half_closed_timeout(max)
            .ejection(Ejection::new(1, max, max)),
    );
    assert_works(Server::builder().buffer_size(1).max_connections(1).ejection(Ejection::new(
        u32::MAX,
        Duration::from_nanos(1),
        Duration::from_nanos(1),
    )));
    assert_works(Server::builder().buffer_size(16 << 20).ejection(Ejection::new(
        0,
        Duration::from_secs(1),
        Duration::from_secs(30),
    )));
    // What no system takes is an error that names the setting.
    let keepalive = Keepalive::new(max, max, u32::MAX);
    for builder in
        [Server::builder().keepalive(Some(keepalive)), Server::builder().user_timeout(Some(max))]
    {
        assert!(matches!(builder.build(listener()), Err(Error::Setting { .. })));
    }
}
