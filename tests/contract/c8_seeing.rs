//! Seeing: counters and observers. The log has a program of its own.

use std::time::Instant;

use tinylb::{BackendSet, EndReason, Server, Usage};
use tinylb_tests::*;

/// `open`, `total`, `dial_failures`, `bytes_up` and `bytes_down`.
fn counts(usage: Usage) -> [u64; 5] {
    [usage.open, usage.total, usage.dial_failures, usage.bytes_up, usage.bytes_down]
}

/// That all counters are right whatever happens, the simulated world sees.
#[test]
fn c8_1_counters_are_kept_by_key_and_those_of_removed_keys_are_summed_apart() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let refusing = refusing_addr();
    let balancer = Balancer::start(set([("a", one.addr), ("b", refusing), ("c", two.addr)]));
    let (mut of_a, mut of_c) = (balancer.tagged_client().0, balancer.tagged_client().0);
    assert_echo(&mut of_a, &[0; 1000]);
    assert_echo(&mut of_c, &[0; 50]);
    let stats = balancer.stats();
    let keys = stats.backends.iter().map(|backend| (&*backend.key, &*backend.target_name));
    let names = [one.addr, refusing, two.addr].map(|addr| addr.to_string());
    assert!(keys.eq(["a", "b", "c"].into_iter().zip(names.iter().map(String::as_str))));
    let usage = |key| counts(stats.backend(key).unwrap().usage);
    assert_eq!(usage("a"), [1, 1, 0, 1000, 1004]);
    assert_eq!(usage("b"), [0, 0, 1, 0, 0]);
    assert_eq!(usage("c"), [1, 1, 0, 50, 54]);

    // Its target has another key now, so its pair stays, and stays with the key it was picked by.
    balancer.update(set([("c", two.addr), ("d", one.addr)]));
    assert_echo(&mut of_a, &[0; 100]);

    let stats = balancer.stats();
    assert_eq!(counts(stats.departed), [1, 1, 1, 1100, 1104]);
    assert_eq!(counts(stats.backend("d").unwrap().usage), [0; 5]);
    drop(of_c);
    balancer.wait_for("an orderly end", |stats| stats.ended.of(EndReason::Finished) == 1);
}

#[test]
fn c8_1_a_balancer_that_was_spawned_tells_of_its_first_backends_at_once() {
    for _ in 0..100 {
        let balancer = Balancer::start(set([("a", refusing_addr())]));
        assert!(balancer.stats().backend("a").is_some());
    }
}

#[test]
fn c8_2_an_observer_is_told_all_that_becomes_of_each_client_in_order() {
    let (echo, refusing, hole) = (TestBackend::echo("echo"), refusing_addr(), BlackHole::new());
    let (watch, start) = (Watch::default(), Instant::now());
    let builder = Server::builder().observer(watch.clone()).connect_timeout(SHORT);
    let balancer = Balancer::with(builder, BackendSet::new());
    let to_echo = format!("b={}", echo.addr);
    let failed = format!("failed a={refusing} #0 ConnectionRefused");
    watch.assert_tells(&["updated to 0: 0 0 0"]);

    assert_refused(balancer.addr);
    watch.assert_tells(&["0 accepted", "0 ended 0/0 NoBackend"]);

    balancer.update(set([("a", refusing), ("b", echo.addr)]));
    watch.assert_tells(&["updated to 2: 0 0 0"]);
    let (mut finished, _) = balancer.tagged_client();
    assert_echo(&mut finished, b"12345678");
    drop(finished);
    watch.assert_tells(&[
        "1 accepted",
        &format!("1 {failed}"),
        &format!("1 connected {to_echo}"),
        &format!("1 ended {to_echo} 8/13 Finished"),
    ]);

    reset(balancer.tagged_client().0);
    watch.assert_tells(&[
        "2 accepted",
        &format!("2 {failed}"),
        &format!("2 connected {to_echo}"),
        &format!("2 ended {to_echo} 0/5 ClientFailed, ConnectionReset"),
    ]);

    balancer.update(set([("b", echo.addr)]));
    let _removed = balancer.tagged_client();
    balancer.update(set([("a", refusing)]));
    watch.assert_tells(&[
        "updated to 1: 0 0 0",
        "3 accepted",
        &format!("3 connected {to_echo}"),
        &format!("3 ended {to_echo} 0/5 TargetRemoved"),
        "updated to 1: 1 0 0",
    ]);

    assert_refused(balancer.addr);
    watch.assert_tells(&["4 accepted", &format!("4 {failed}"), "4 ended 0/0 BackendsFailed"]);

    balancer.update(set([("b", hole.addr), ("c", echo.addr)]));
    drop(balancer.tagged_client());
    watch.assert_tells(&[
        "updated to 2: 0 0 0",
        "5 accepted",
        &format!("5 failed b={} #0 TimedOut", hole.addr),
        &format!("5 connected c={}", echo.addr),
        &format!("5 ended c={} 0/5 Finished", echo.addr),
    ]);
    let took = watch.lock().took[3];
    let lasted = watch.lock().ended[&5].lasted;
    assert!((SHORT..=lasted).contains(&took) && lasted <= start.elapsed(), "{took:?} {lasted:?}");

    balancer.update(set([("b", echo.addr)]));
    let _draining = balancer.tagged_client();
    balancer.update_draining(BackendSet::new(), LONG);
    balancer.control.shutdown().unwrap();
    watch.assert_tells(&[
        "updated to 1: 0 0 0",
        "6 accepted",
        &format!("6 connected {to_echo}"),
        "updated to 0: 0 0 1",
        &format!("6 ended {to_echo} 0/5 Shutdown"),
    ]);
    watch.assert_agrees(&balancer.thread.join().unwrap());
}

#[test]
fn c8_2_the_error_that_ended_a_client_is_told_on_whichever_side_it_was_met() {
    let (hole, hand, watch) = (BlackHole::new(), ManualBackend::new(), Watch::default());
    let builder = Server::builder().observer(watch.clone());
    let balancer = Balancer::with(builder, set([("a", hand.addr)]));
    let addr = hand.addr;
    let mut client = balancer.client();
    balancer.wait_for("it is connected", |stats| stats.open == 1);
    reset(hand.accept());
    assert_aborted(&mut client);
    watch.assert_tells(&[
        "updated to 1: 0 0 0",
        "0 accepted",
        &format!("0 connected a={addr}"),
        &format!("0 ended a={addr} 0/0 BackendFailed, ConnectionReset"),
    ]);

    balancer.update(set([("a", hole.addr)]));
    reset(balancer.dialling_client());
    watch.assert_tells(&[
        "updated to 1: 0 0 0",
        "1 accepted",
        "1 ended 0/0 ClientFailed, ConnectionReset",
    ]);
}
