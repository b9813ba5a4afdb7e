//! What never happens: spinning, leaks, panics.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use tinylb::{BackendSet, Builder, Control, Ejection, Error, Keepalive, Server, TcpBackend};
#[cfg(target_os = "linux")]
use tinylb_tests::process::{cpu_ticks, descriptors, resident, threads};
use tinylb_tests::*;

/// A loop that spins would use half a second of CPU time here, or a good part of it on a busy
/// machine.
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
fn c9_1_nothing_that_lasts_keeps_the_cpu_busy() {
    in_own_process("c9_never::c9_1_nothing_that_lasts_keeps_the_cpu_busy", || {
        let (hand, hole) = (ManualBackend::new(), BlackHole::new());
        let builder = Server::builder()
            .max_connections(8)
            .connect_timeout(LONG)
            .dial_limit(LONG)
            .half_closed_timeout(LONG)
            .idle_timeout(Some(LONG));
        let balancer = Balancer::with(builder, set([("a", hand.addr)]));
        let pair = || (balancer.client(), hand.accept());
        drop(pair());
        assert_at_rest("nobody is there");

        let (_idle, mut finished, mut urgent) = (pair(), pair(), pair());
        finished.0.write_all(b"x").unwrap();
        finished.0.shutdown(Shutdown::Write).unwrap();
        SockRef::from(&urgent.0).send_out_of_band(b"!").unwrap();
        urgent.0.write_all(b"x").unwrap();
        urgent.1.read_exact(&mut [0; if HAS_RESETS { 2 } else { 1 }]).unwrap();
        assert_at_rest("pairs are idle, half-closed, or have urgent data");

        // Blocked both ways; one of them is half-closed as well.
        let mut blocked = [pair(), pair()];
        for (client, backend) in &mut blocked {
            fill_until_blocked(client);
            fill_until_blocked(backend);
        }
        blocked[1].0.shutdown(Shutdown::Write).unwrap();
        assert_at_rest("pairs are blocked");
        assert_eq!(balancer.stats().open, 5);

        reset(pair().0);
        balancer.wait_for("a fault", |stats| stats.ended.total() == 2);
        balancer.update(set([("a", hand.addr), ("b", refusing_addr()), ("c", hole.addr)]));
        let clients: Vec<TcpStream> = (0..8).map(|_| balancer.client()).collect();
        clients.iter().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
        balancer
            .wait_for("the limit", |stats| stats.dialling > 0 && stats.dialling + stats.open == 8);
        assert_at_rest("dials are in flight, and clients wait beyond the limit");

        balancer.control.drain(LONG).unwrap();
        balancer.stats();
        assert_at_rest("it drains");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn c9_1_timeouts_leave_the_cpu_at_rest_once_they_have_fired() {
    in_own_process("c9_never::c9_1_timeouts_leave_the_cpu_at_rest_once_they_have_fired", || {
        let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
        let soon = Duration::from_millis(50);
        let builder = Server::builder()
            .idle_timeout(Some(soon))
            .half_closed_timeout(soon)
            .connect_timeout(soon)
            .dial_limit(soon * 2);
        let balancer = Balancer::with(builder, set([("a", echo.addr), ("b", hole.addr)]));
        let _clients: Vec<_> = (0..20).map(|_| TcpStream::connect(balancer.addr)).collect();
        balancer.wait_for("all have timed out", |stats| {
            stats.refused.total() + stats.ended.total() == 20
        });
        assert_at_rest("all have timed out");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn c9_1_idle_pairs_hold_no_buffers() {
    const PAIRS: usize = 400;
    in_own_process("c9_never::c9_1_idle_pairs_hold_no_buffers", || {
        rlimit::increase_nofile_limit(16_384).unwrap();
        let back = listener();
        shrink_buffers(&back, 4096).unwrap();
        let target = TcpBackend::new(back.local_addr().unwrap())
            .on_socket(|socket| shrink_buffers(socket, 4096));
        let (balancer, hand) = (Balancer::start([("a", target)].into()), ManualBackend::of(back));
        let mut bytes = vec![7; 60_000];
        // Each pair has unsent bytes, and then has none.
        let mut pair = || {
            let (mut client, mut server) = (balancer.client(), hand.accept());
            client.write_all(&bytes).unwrap();
            server.read_exact(&mut bytes).unwrap();
            pass(&mut server, &mut client, b"x");
            (client, server)
        };
        let _first: Vec<_> = (0..10).map(|_| pair()).collect();
        let before = resident();
        let _pairs: Vec<_> = (0..PAIRS).map(|_| pair()).collect();
        let grown = resident().saturating_sub(before);
        assert!(grown < PAIRS * 6 * 1024, "{} bytes for each idle pair", grown / PAIRS);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn c9_2_nothing_outlives_run_nor_a_server_that_never_runs() {
    in_own_process("c9_never::c9_2_nothing_outlives_run_nor_a_server_that_never_runs", || {
        let (hand, hole) = (ManualBackend::new(), BlackHole::new());
        let backends = set([("a", hand.addr), ("b", hole.addr)]);
        let (before, threads_before) = (descriptors(), threads());
        let server = Server::builder().backends(backends.clone()).build(listener()).unwrap();
        let pending = server.control().update(backends).unwrap();
        let Balancer { addr, control, thread } = Balancer::of(server);
        let (client, dialling) = (connect(addr), connect(addr));
        let accepted = hand.accept();
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

        let unrun = Server::builder().build(listener()).unwrap();
        let held = (unrun.control(), unrun.control().update(BackendSet::new()).unwrap());
        assert!(descriptors().len() > before.len());
        drop(unrun);
        assert_eq!(descriptors(), before);
        drop((control, pending, held));
    });
}

#[test]
fn c9_1_no_order_of_host_calls_panics_or_hangs() {
    type Call = fn(&Control, &BackendSet);
    let calls: [Call; 8] = [
        |control, set| drop(control.update(set.clone())),
        |control, _| {
            let update = control.update(BackendSet::new());
            drop(update.map(|update| update.wait_timeout(Duration::ZERO)));
        },
        |control, set| drop(control.update_draining(set.clone(), Duration::ZERO)),
        |control, _| drop(control.update_draining(BackendSet::new(), Duration::MAX)),
        |control, _| drop(control.stats().map(|stats| stats.wait())),
        |control, _| control.drain(Duration::MAX).unwrap(),
        |control, _| control.drain(Duration::ZERO).unwrap(),
        |control, _| control.shutdown().unwrap(),
    ];
    let echo = TestBackend::echo("echo");
    let backends = set([("a", echo.addr), ("b", refusing_addr())]);
    // Every order of two calls, each before the start, while it runs, or after the end.
    for (first, second) in
        calls.iter().flat_map(|first| calls.iter().map(move |next| (first, next)))
    {
        let server = Server::builder().build(listener()).unwrap();
        let control = server.control();
        let _client = connect(server.local_addr().ip().unwrap());
        first(&control, &backends);
        let thread = server.spawn().unwrap();
        second(&control, &backends);
        first(&control, &backends);
        control.shutdown().unwrap();
        thread.join().unwrap();
        second(&control, &backends);
    }
}

#[test]
fn c9_1_c6_7_settings_that_make_no_sense_or_that_no_system_takes_are_errors_by_name() {
    let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
    let keepalive = |idle, interval, probes| {
        Server::builder().keepalive(Some(Keepalive::new(idle, interval, probes)))
    };
    let ejection = |base, max| Server::builder().ejection(Ejection::new(3, base, max));
    let user_timeout = |limit| Server::builder().user_timeout(Some(limit));
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
        (keepalive(second * 12 * 60 * 60, second, 1), "keepalive"),
        (keepalive(second, Duration::from_millis(999), 1), "keepalive"),
        (keepalive(second, second, 128), "keepalive"),
        (keepalive(Duration::MAX, Duration::MAX, u32::MAX), "keepalive"),
        (user_timeout(Duration::from_micros(999)), "user_timeout"),
        (user_timeout(Duration::MAX), "user_timeout"),
        (ejection(zero, second), "ejection"),
        (ejection(second, second / 2), "ejection"),
    ];
    for (builder, name) in wrong {
        match builder.build(listener()) {
            Err(err @ Error::Setting { setting, problem }) => {
                assert_eq!((setting, err.to_string()), (name, format!("{name} {problem}")));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let longest = second * 32_767;
    keepalive(longest, longest, 127).build(listener()).unwrap();
    user_timeout(Duration::from_millis(i32::MAX as u64)).build(listener()).unwrap();
}

/// Works, however long or short its limits are.
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
    let (max, least) = (Duration::MAX, Duration::from_nanos(1));
    let timeouts = Server::builder().connect_timeout(max).dial_limit(max).half_closed_timeout(max);
    let often = Ejection::new(1, max, max);
    let seldom = Ejection::new(u32::MAX, least, least);
    let never = Ejection::new(0, Duration::from_secs(1), Duration::from_secs(30));
    assert_works(timeouts.idle_timeout(Some(max)).ejection(often));
    assert_works(Server::builder().buffer_size(1).max_connections(1).ejection(seldom));
    assert_works(Server::builder().buffer_size(16 << 20).ejection(never));
}
