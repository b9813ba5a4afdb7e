//! Dialling: what connects, refusals, silence and resets look like to a kernel, and that limits are
//! real time.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use tinylb::{Ejection, EndReason, Server};
use tinylb_tests::*;

#[test]
fn c5_1_a_backend_that_does_not_answer_stalls_nobody_else() {
    let (hole, alive) = (BlackHole::new(), TestBackend::echo("b"));
    let builder = Server::builder().connect_timeout(LONG).dial_limit(LONG);
    let balancer = Balancer::with(builder, set([("a", hole.addr), ("b", alive.addr)]));
    let mut stalled = Vec::new();
    for _ in 0..3 {
        stalled.push(balancer.dialling_client());
        let (mut served, tag) = balancer.tagged_client();
        assert_eq!(tag, "b");
        assert_echo(&mut served, b"hello");
    }
    assert_eq!(balancer.update(set([("b", alive.addr)])).cancelled, 3);
    stalled.iter_mut().for_each(|client| assert_eq!(read_tag(client), "b"));
}

#[test]
fn c5_2_c5_3_refusal_and_silence_fail_over_and_each_attempt_has_its_time() {
    let (hole, alive, watch) = (BlackHole::new(), TestBackend::echo("d"), Watch::default());
    let builder = Server::builder().connect_timeout(SHORT).observer(watch.clone());
    let addrs = [("a", refusing_addr()), ("b", hole.addr), ("c", hole.addr), ("d", alive.addr)];
    let balancer = Balancer::with(builder, set(addrs));
    let start = Instant::now();
    let mut client = balancer.client();
    client.write_all(b"sent early").unwrap();
    client.shutdown(Shutdown::Write).unwrap();

    assert_eq!(read_to_end(&mut client), (b"d\nsent early".to_vec(), StreamEnd::Clean));

    assert!(start.elapsed() >= 2 * SHORT);
    let (refused, timed_out) = (ErrorKind::ConnectionRefused, ErrorKind::TimedOut);
    let failed = [("a", refused), ("b", timed_out), ("c", timed_out)];
    assert_eq!(watch.lock().failed, failed.map(|(key, error)| (key.to_owned(), error)));
}

#[test]
fn c5_2_all_attempts_for_a_client_together_have_a_limit() {
    let hole = BlackHole::new();
    let builder = Server::builder().connect_timeout(LONG).dial_limit(SHORT);
    let balancer = Balancer::with(builder, set([("a", hole.addr), ("b", hole.addr)]));
    let start = Instant::now();

    assert_aborted(&mut balancer.client());

    assert!(start.elapsed() >= SHORT);
    assert_eq!(balancer.stats().refused.of(EndReason::DialLimit), 1);
}

#[test]
fn c5_4_a_client_that_resets_ends_its_dial_and_one_that_only_finished_sending_does_not() {
    let (hole, alive) = (BlackHole::new(), TestBackend::echo("b"));
    let balancer = Balancer::start(set([("a", hole.addr)]));
    let [resets, finishes_and_resets, mut finishes] = [(); 3].map(|()| balancer.dialling_client());
    for mut client in [&finishes_and_resets, &finishes] {
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!(balancer.stats().dialling, 3);

    reset(resets);
    reset(finishes_and_resets);

    let stats = balancer.wait_for("two are gone", |stats| stats.dialling == 1);
    assert_eq!(stats.refused.of(EndReason::ClientFailed), 2);
    assert_eq!(balancer.update(set([("b", alive.addr)])).cancelled, 1);
    assert_eq!(read_to_end(&mut finishes), (b"b\nrequest".to_vec(), StreamEnd::Clean));
}

#[test]
fn c5_5_a_backend_is_skipped_after_three_failures_and_comes_back_after_its_time() {
    let base = Duration::from_millis(400);
    let down = bound_socket();
    let other = TestBackend::echo("b");
    let balancer = Balancer::with(
        Server::builder().ejection(Ejection::new(3, base, base)),
        set([("a", addr_of(&down)), ("b", other.addr)]),
    );
    let of_a = || {
        let stats = balancer.stats();
        let a = stats.backend("a").unwrap();
        (a.usage.dial_failures, a.ejected)
    };
    assert_eq!(balancer.tags(2), "bb");
    assert_eq!(of_a(), (2, false));
    let start = Instant::now();
    assert_eq!(balancer.tags(4), "bbbb");
    assert_eq!(of_a(), (3, true));

    let back = ManualBackend::of({
        down.listen(16).unwrap();
        down.into()
    });
    let mut accepted = balancer.stats().accepted;
    let mut client = wait_for("a client goes to it", || {
        let client = balancer.client();
        accepted += 1;
        let stats = balancer
            .wait_for("it is served", |stats| stats.accepted == accepted && stats.dialling == 0);
        (stats.backend("a").unwrap().usage.total == 1).then_some(client)
    });
    let mut server = back.accept();

    assert!(start.elapsed() >= base * 3 / 4, "jitter takes off a quarter at most");
    pass(&mut server, &mut client, b"back");
    assert!(!of_a().1);
}
