//! Dialling (C5), and what backends may be (C1).

use std::io::ErrorKind;

use super::rig::*;

use super::super::*;
use crate::pool::Picked;
use crate::testing::script::{Act, Script, Seen};

#[test]
fn c5_2_a_spurious_event_connects_nothing_and_a_true_one_does() {
    let backend = Scripted::new("a").then(Ok(Script::new().connect([Ok(false), Ok(false)])));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let dialled = backend.dialled().pop().unwrap();
    rig.event(&dialled, Readiness::READ_WRITE);
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), [""; 0]);
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
}

#[test]
fn c1_2_what_a_handshake_has_read_along_the_way_is_asked_for_without_an_event_of_it() {
    let backend = Scripted::new("a").then(Ok(Script::new().reads([Act::Data(b"early".to_vec())])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, _) = rig.pair(Script::new(), &backend);
    assert_eq!(client.written(), b"early");
}

#[test]
fn c5_1_no_byte_is_read_from_a_client_without_a_backend() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = rig.client(Script::new().reads([Act::Data(b"early".to_vec())]));
    rig.event(&client, READABLE);
    assert_eq!(client.reads(), 0);
}

#[test]
fn c5_2_each_attempt_has_its_limit() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    assert_eq!(rig.pass(5 * SECOND - Duration::from_nanos(1)), Some(Duration::from_nanos(1)));
    assert_eq!(rig.notes.take(), [""; 0]);
    assert_eq!(rig.pass(Duration::from_nanos(1)), Some(5 * SECOND));
    assert_eq!(rig.notes.take(), ["0 failed a/0: timed out"]);
    assert!(a.dialled()[0].is_dropped());
    assert_eq!(a.dialled()[0].token(), None, "still registered");
    assert_eq!(b.dialled().len(), 1);
}

#[test]
fn c5_2_each_attempt_has_a_fair_share_of_the_time_that_is_left() {
    let two = Scripted { addresses: 2, ..Scripted::new("a") };
    let (b, c, d) = (Scripted::new("b"), Scripted::new("c"), Scripted::new("d"));
    let mut rig = Rig::new(&[("a", &two), ("b", &b), ("c", &c), ("d", &d)]);
    let client = rig.client(Script::new());
    for failed in ["a/0", "a/1", "b/0", "c/0"] {
        rig.pass(3 * SECOND);
        assert_eq!(rig.notes.take(), [format!("0 failed {failed}: timed out")]);
    }
    assert_eq!(rig.pass(3 * SECOND), None);
    assert_eq!(rig.notes.take(), ["0 failed d/0: timed out", "0 ended: dial limit"]);
    assert!(client.is_aborted() && client.is_dropped());
}

#[test]
fn c5_2_six_dead_backends_before_a_healthy_one_are_survived() {
    let dead: Vec<_> = (0..6).map(|_| Scripted::new("dead")).collect();
    let healthy = Scripted::new("healthy").then(connects());
    let keys = ["a", "b", "c", "d", "e", "f"];
    let mut backends: Vec<_> = keys.into_iter().zip(&dead).collect();
    backends.push(("g", &healthy));
    let mut rig = Rig::new(&backends);
    rig.client(Script::new());
    for _ in 0..15 {
        rig.pass(SECOND);
    }
    let dialled = healthy.dialled().pop().expect("it is tried in time");
    rig.event(&dialled, Readiness { writable: true, ..Readiness::default() });
    assert_eq!(rig.notes.take().pop().unwrap(), "0 connected g");
}

#[test]
fn c5_2_an_attempt_that_the_dial_limit_ends_too_early_says_nothing_of_the_backend() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig =
        Rig::with(Limits { dial_limit: 3 * SECOND, ..LIMITS }, 9, &[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    assert_eq!(rig.pass(2 * SECOND), Some(SECOND));
    rig.pass(SECOND);
    assert_eq!(rig.notes.take(), ["0 failed a/0: timed out", "0 ended: dial limit"]);
    assert_eq!(rig.event_loop.stats(rig.now).backends[1].usage.dial_failures, 0);
}

fn busy() -> io::Result<Script> {
    Err(ErrorKind::WouldBlock.into())
}

fn slot_of(seen: &Seen) -> usize {
    match Source::from(seen.token().unwrap()) {
        Source::Pair(pair, _) => pair.slot,
        other => panic!("{other:?}"),
    }
}

/// How long after it was found to be busy a backend is tried again.
const RETRY: Duration = Duration::from_millis(5);

#[test]
fn c5_6_a_busy_backend_is_neither_failed_nor_tried() {
    let a = Scripted::new("a").then(busy()).then(busy()).then(connects());
    let b = Scripted::new("b").then(refused());
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    assert_eq!(rig.notes.take(), ["0 failed b/0: connection refused"], "others are tried first");
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.dialling, stats.backends[0].dialling), (1, 0), "it waits for nobody's count");
    assert_eq!(rig.pass(RETRY), Some(RETRY));
    rig.pass(RETRY);
    let dialled = a.dialled().pop().expect("it is tried again");
    rig.event(&dialled, Readiness { writable: true, ..Readiness::default() });
    assert_eq!(rig.notes.take(), ["0 connected a"]);
    assert_eq!(rig.event_loop.stats(rig.now).backends[0].usage.dial_failures, 0);
}

#[test]
fn c5_6_clients_wait_for_a_busy_backend_in_order_and_at_most_for_the_dial_limit() {
    let a = Scripted::new("a").then(busy()).then(busy());
    let mut rig = Rig::new(&[("a", &a)]);
    (0..2).for_each(|_| drop(rig.client(Script::new())));
    rig.pass(RETRY); // the first is still told that it is busy
    rig.client(Script::new()); // there would be room for it now, but others come first
    assert_eq!(a.dialled().len(), 0);
    rig.pass(RETRY);
    assert_eq!(a.dialled().iter().map(slot_of).collect::<Vec<_>>(), [0, 1, 2]);

    let always = (0..10_000).fold(Scripted::new("b"), |b, _| b.then(busy()));
    let mut rig = Rig::new(&[("b", &always)]);
    rig.client(Script::new());
    rig.pass(LIMITS.dial_limit);
    assert_eq!(rig.notes.take(), ["0 ended: dial limit"]);
}

#[test]
fn c5_6_one_busy_target_does_not_hold_up_the_clients_of_another() {
    let a = (0..10_000).fold(Scripted::new("a"), |a, _| a.then(busy()));
    let b = Scripted::new("b").then(busy());
    let mut rig = Rig::new(&[("a", &a)]);
    (0..100).for_each(|_| drop(rig.client(Script::new())));
    rig.update(&[("b", &b)]);
    rig.pass(RETRY);
    assert_eq!(b.dialled().len(), 100, "an update has them all pick anew");
    let mut rig = Rig::new(&[("a", &a), ("c", &Scripted::new("c"))]);
    rig.client(Script::new());
    assert_eq!(rig.event_loop.stats(rig.now).backends[1].dialling, 1);
}

#[test]
fn c5_6_though_several_targets_are_busy_few_are_asked_again_and_the_order_stays() {
    let always = |name| (0..10_000).fold(Scripted::new(name), |backend, _| backend.then(busy()));
    let (a, b) = (always("a"), always("b"));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    (0..300).for_each(|_| drop(rig.client(Script::new())));
    let left = |backend: &Scripted| backend.dials.lock().unwrap().len();
    let before = left(&a) + left(&b);
    rig.now += RETRY;
    rig.turn(&[]);
    let dials = before - left(&a) - left(&b);
    assert!(dials <= 4, "{dials} dials: of the first of each target, at both");
    assert_eq!(rig.event_loop.budget.dials, dial::DIALS_PER_TURN - 2, "both count");
    b.dials.lock().unwrap().clear();
    rig.pass(RETRY);
    assert_eq!(b.dialled().len(), 300);
    let clients = b.dialled().iter().map(slot_of).collect::<Vec<_>>();
    assert!(clients.is_sorted(), "not in order: {clients:?}");
}

#[test]
fn c5_6_an_update_has_a_busy_backend_tried_again_at_once() {
    let a = Scripted::new("a").then(busy());
    let mut rig = Rig::new(&[("a", &a)]);
    rig.client(Script::new());
    assert_eq!(a.dialled().len(), 0);
    rig.update(&[("a", &a)]);
    assert_eq!(a.dialled().len(), 1);
}

#[test]
fn c5_6_a_client_of_a_busy_backend_that_was_removed_is_refused_if_there_is_no_other() {
    let a = (0..10).fold(Scripted::new("a"), |a, _| a.then(busy()));
    let mut rig = Rig::new(&[("a", &a)]);
    let client = rig.client(Script::new());
    rig.update(&[]);
    assert_eq!(rig.notes.take(), ["0 ended: no backend"]);
    assert!(client.is_dropped());
}

/// A backend that has been ejected and is probed next, beside another.
fn half_open() -> (Rig, Scripted, Scripted) {
    let a = (0..3).fold(Scripted::new("a"), |a, _| a.then(refused()));
    let b = Scripted::new("b");
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    (0..6).for_each(|_| drop(rig.client(Script::new())));
    rig.pass(SECOND);
    assert!(rig.event_loop.stats(rig.now).backends[0].half_open);
    (rig, a, b)
}

#[test]
fn c5_5_a_backend_is_probed_anew_though_its_last_probe_was_cancelled_by_an_update() {
    for is_merged in [false, true] {
        let (mut rig, a, b) = half_open();
        (0..2).for_each(|_| drop(rig.client(Script::new())));
        assert_eq!(a.dialled().len(), 1, "the probe");
        drop(rig.submit(&[("b", &b)]));
        if !is_merged {
            rig.settle(COMMANDED);
        }
        rig.update(&[("a", &a), ("b", &b)]);
        (0..10).for_each(|_| drop(rig.client(Script::new())));
        assert!(a.dialled().len() > 1, "merged {is_merged}");
    }
}

#[test]
fn c5_5_a_probe_that_waits_for_a_descriptor_leaves_its_place_to_others() {
    let (mut rig, a, _) = half_open();
    a.dials.lock().unwrap().push_back(Err(shortage()));
    (0..2).for_each(|_| drop(rig.client(Script::new())));
    let pool = &mut rig.event_loop.cx.pool;
    let picks = [(); 2].map(|()| pool.pick(&mut crate::pool::Tried::default(), |_| false));
    let is_of_a = |pick: &Picked| matches!(pick, Picked::Backend(of) if of.key() == "a");
    assert_eq!(picks.iter().filter(|pick| is_of_a(pick)).count(), 1, "the next probe");
}

#[test]
fn c5_5_many_ejections_that_are_over_at_once_end_in_batches() {
    let keys: Vec<&'static str> = (0..200).map(|key| &*format!("{key:03}").leak()).collect();
    let a = (0..3 * keys.len()).fold(Scripted::new("a"), |a, _| a.then(refused()));
    let mut rig = Rig::new(&keys.iter().map(|key| (*key, &a)).collect::<Vec<_>>());
    (0..3).for_each(|_| drop(rig.client(Script::new())));
    assert_eq!(rig.notes.take_others().len(), keys.len(), "ejected");
    rig.now += SECOND;
    let next = rig.turn(&[]);
    assert_eq!((rig.notes.take_others().len(), next), (64, Some(rig.now)));
    rig.settle(&[]);
    assert_eq!(rig.notes.take_others().len(), keys.len() - 64);
}

#[test]
fn c5_2_an_error_that_its_event_told_of_fails_the_attempt_though_it_can_be_taken_only_once() {
    let a = Scripted::new("a").then(Ok(Script::new().connect([Ok(false)])));
    let b = Scripted::new("b").then(connects());
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    let dialled = a.dialled().pop().unwrap();
    dialled.then_error(ErrorKind::ConnectionRefused);
    rig.event(&dialled, Readiness { error: true, ..Readiness::READ_WRITE });
    assert_eq!(rig.notes.take(), ["0 failed a/0: connection refused"]);
    assert_eq!((dialled.is_dropped(), dialled.token(), b.dialled().len()), (true, None, 1));
}

#[test]
fn c5_2_a_connect_that_would_block_or_is_interrupted_goes_on() {
    let checks = [Err(ErrorKind::WouldBlock), Err(ErrorKind::Interrupted), Ok(true)];
    let backend = Scripted::new("a").then(Ok(Script::new().connect(checks)));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let dialled = backend.dialled().pop().unwrap();
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), [""; 0]);
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
}

#[test]
fn c5_2_many_timeouts_are_handled_in_batches() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().extend((0..1000).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    rig.update(&[("a", &a), ("b", &b)]);
    rig.now += LIMITS.connect_timeout;
    let next = rig.turn(&[]);
    assert!((1..500).contains(&rig.notes.take().len()), "all in one turn, or none");
    assert!(next <= Some(rig.now), "the rest needs no event");
    rig.settle(&[]);
    assert_eq!(b.dialled().len(), 1000);
}

#[test]
fn c5_2_the_dial_limit_holds_also_while_every_attempt_fails_at_once() {
    let mut a = Scripted { addresses: 1000, ..Scripted::new("a") };
    for _ in 0..1000 {
        a = a.then(refused());
    }
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.turn(&[(token::LISTENER, READABLE)]);
    let accepted_at = rig.now;
    while rig.event_loop.cx.counters.refused.total() == 0 {
        rig.now += SECOND / 10; // the time of a turn that has much else to do
        rig.turn(&[]);
    }
    assert!(
        rig.now - accepted_at <= LIMITS.dial_limit + SECOND,
        "after {:?}",
        rig.now - accepted_at
    );
    assert_eq!(rig.notes.take().last().unwrap(), "0 ended: dial limit");
}

#[test]
fn c1_4_the_addresses_of_a_backend_are_tried_in_turn_before_the_next_backend() {
    let a = Scripted { addresses: 2, ..Scripted::new("a") }.then(refused()).then(refused());
    let b = Scripted::new("b").then(connects());
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.pair(Script::new(), &b);
    assert_eq!(
        rig.notes.take(),
        ["0 failed a/0: connection refused", "0 failed a/1: connection refused", "0 connected b"]
    );
}

#[test]
fn c5_3_each_candidate_is_tried_once_and_then_the_client_is_refused() {
    let (a, b) = (Scripted::new("a").then(refused()), Scripted::new("b").then(refused()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    let client = rig.client(Script::new());
    assert_eq!(
        rig.notes.take(),
        [
            "0 failed a/0: connection refused",
            "0 failed b/0: connection refused",
            "0 ended: backends failed"
        ]
    );
    assert!(client.is_aborted());
}

#[test]
fn c5_3_a_new_sets_candidates_are_tried_and_vanished_ones_are_not() {
    let (a, b, c) = (Scripted::new("a"), Scripted::new("b"), Scripted::new("c"));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    let applied = rig.update(&[("c", &c)]);
    assert_eq!((applied.closed, applied.cancelled), (0, 1));
    assert!(a.dialled()[0].is_dropped());
    assert_eq!(a.dialled()[0].token(), None, "still registered");
    assert_eq!((b.dialled().len(), c.dialled().len()), (0, 1));
    assert_eq!(rig.update(&[]).cancelled, 1);
    assert_eq!(rig.notes.take(), ["0 ended: no backend"]);
}

#[test]
fn c5_3_two_keys_of_one_target_are_two_candidates() {
    let a = Scripted::new("a").then(refused()).then(refused());
    let mut rig = Rig::new(&[("k1", &a), ("k2", &a)]);
    rig.client(Script::new());
    assert_eq!(
        rig.notes.take(),
        [
            "0 failed k1/0: connection refused",
            "0 failed k2/0: connection refused",
            "0 ended: backends failed"
        ]
    );
}

#[test]
fn c5_4_a_client_that_resets_ends_its_dial_and_one_that_only_finished_does_not() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = rig.client(Script::new());
    rig.event(&client, Readiness { readable: true, read_closed: true, ..Readiness::default() });
    assert_eq!(rig.notes.take(), [""; 0]);
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::default() });
    assert_eq!(rig.notes.take(), ["0 ended: client failed"]);
    assert!(backend.dialled()[0].is_dropped());
    assert_eq!(backend.dialled()[0].token(), None, "still registered");
}

#[test]
fn c5_4_a_hang_up_counts_only_if_the_stream_bears_it_out() {
    let hang_up = Readiness { read_closed: true, write_closed: true, ..Readiness::default() };
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let still_there = rig.client(Script::new());
    rig.event(&still_there, hang_up);
    assert_eq!(rig.notes.take(), [""; 0]);
    let gone = rig.client(Script::new().write_error(ErrorKind::BrokenPipe));
    rig.event(&gone, hang_up);
    assert_eq!(rig.notes.take(), ["1 ended: client failed"]);
}

#[test]
fn c5_4_a_reset_is_noticed_whatever_the_stream_takes_its_events_for() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = rig.client(Script::new().translates());
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::READ_WRITE });
    assert_eq!(rig.notes.take(), ["0 ended: client failed"]);
}

#[test]
fn c5_5_local_failures_do_not_eject() {
    let mut a = Scripted::new("a");
    for _ in 0..10 {
        a = a.then(Err(ErrorKind::AddrNotAvailable.into()));
    }
    let mut rig = Rig::new(&[("a", &a)]);
    for _ in 0..10 {
        rig.client(Script::new());
    }
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (10, false));
    for _ in 0..3 {
        a = a.then(refused());
        rig.client(Script::new());
    }
    assert!(rig.event_loop.stats(rig.now).backends[0].ejected);
}

#[test]
fn c5_5_a_backend_has_failed_if_any_of_its_addresses_has_for_a_reason_that_is_not_local() {
    let (mut a, b) = (Scripted { addresses: 2, ..Scripted::new("a") }, Scripted::new("b"));
    for _ in 0..3 {
        a = a.then(Err(ErrorKind::AddrNotAvailable.into())).then(refused());
    }
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    (0..6).for_each(|_| drop(rig.client(Script::new())));
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (6, true));
}

#[test]
fn c5_5_a_missing_route_is_local_only_if_dial_itself_says_so() {
    let ejected = |dial: fn() -> io::Result<Script>| {
        let a = (0..3).fold(Scripted::new("a"), |a, _| a.then(dial()));
        let mut rig = Rig::new(&[("a", &a)]);
        for _ in 0..3 {
            rig.client(Script::new());
            if let Some(dialled) = a.dialled().pop() {
                rig.event(&dialled, Readiness::READ_WRITE);
            }
        }
        rig.event_loop.stats(rig.now).backends[0].ejected
    };
    assert!(!ejected(|| Err(ErrorKind::NetworkUnreachable.into())));
    assert!(ejected(|| Ok(Script::new().connect([Err(ErrorKind::NetworkUnreachable)]))));
}

#[test]
fn c5_5_a_dial_to_its_keys_old_target_says_nothing_of_the_new_one() {
    let (old, new) = (Scripted::new("old"), Scripted::new("new"));
    let mut rig = Rig::new(&[("k", &old)]);
    for _ in 0..3 {
        rig.client(Script::new());
    }
    rig.update(&[("k", &new), ("other", &old)]); // so that the dials go on
    for dialled in old.dialled() {
        dialled.then_error(ErrorKind::ConnectionRefused);
        rig.event(&dialled, Readiness { error: true, ..Readiness::default() });
    }
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (3, false));
}

#[test]
fn c5_5_a_dial_limit_that_ends_an_attempt_with_its_full_time_counts_against_the_backend() {
    let a = Scripted::new("a");
    let mut rig = Rig::with(
        Limits { connect_timeout: SECOND, dial_limit: SECOND, ..LIMITS },
        99,
        &[("a", &a)],
    );
    for _ in 0..3 {
        rig.client(Script::new());
        rig.pass(SECOND);
    }
    assert!(rig.event_loop.stats(rig.now).backends[0].ejected);
}

#[test]
fn c5_2_a_descriptor_waiter_is_not_dialled_for_after_the_dial_limit() {
    const CLIENTS: usize = 1000;
    let a = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &a)]);
    (0..CLIENTS).for_each(|_| drop(rig.client(Script::new())));
    a.dials.lock().unwrap().push_back(Err(shortage()));
    rig.client(Script::new());
    assert_eq!((a.dialled().len(), rig.event_loop.fd_waiters.len()), (CLIENTS, 1));
    rig.pass(LIMITS.dial_limit); // the loop was held up
    assert_eq!(a.dialled().len(), CLIENTS);
    assert_eq!(rig.event_loop.cx.counters.refused.of(EndReason::DialLimit), CLIENTS as u64 + 1);
}

#[test]
fn c5_2_who_got_a_descriptor_at_last_has_the_connect_timeout_for_the_dial() {
    let backend = Scripted::new("a").then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let pause = rig.pass(Duration::ZERO).unwrap();
    assert_eq!(rig.pass(pause), Some(LIMITS.connect_timeout));
    rig.pass(LIMITS.connect_timeout);
    assert_eq!(rig.notes.take(), ["0 failed a/0: timed out", "0 ended: backends failed"]);
}

#[test]
fn c8_2_attempts_tell_how_long_they_took() {
    let mut backend = Scripted::new("a").then(refused());
    backend.addresses = 3;
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    rig.pass(SECOND); // of the second attempt, which is begun at once
    let dialled = backend.dialled().pop().unwrap();
    dialled.then_error(ErrorKind::ConnectionReset);
    rig.event(&dialled, Readiness { error: true, ..Readiness::default() });
    rig.pass(LIMITS.connect_timeout);
    assert_eq!(
        *rig.notes.took.lock().unwrap(),
        [Duration::ZERO, SECOND, LIMITS.connect_timeout],
        "{:?}",
        rig.notes.take()
    );
}

#[test]
fn c8_1_c8_2_what_becomes_of_a_breaker_is_told_and_counted() {
    let backend = Scripted::new("t").then(refused()).then(refused()).then(refused());
    let backend = backend.then(refused()).then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let stats = |rig: &Rig| rig.event_loop.stats(rig.now).backends.remove(0);
    let before = stats(&rig);
    assert_eq!((before.ejected_for, before.half_open, before.last_error), (None, false, None));

    (0..3).for_each(|_| drop(rig.client(Script::new())));
    assert_eq!(rig.notes.take_others(), ["a=t ejected for 1"]);
    let ejected = stats(&rig);
    let time = ejected.ejected_for.expect("not ejected");
    assert!(ejected.ejected && !ejected.half_open && time <= SECOND, "{ejected:?}");
    let error = ejected.last_error.unwrap();
    assert_eq!((&*error.text, error.age), ("connection refused", Duration::ZERO));

    rig.pass(time / 2);
    assert_eq!(stats(&rig).ejected_for, Some(time - time / 2));
    rig.pass(time - time / 2);
    assert_eq!(rig.notes.take_others(), ["a=t HalfOpen"]);
    let half_open = stats(&rig);
    assert!(half_open.half_open && !half_open.ejected && half_open.ejected_for.is_none());
    assert_eq!(half_open.last_error.unwrap().age, time);

    rig.client(Script::new());
    assert_eq!(rig.notes.take_others(), ["a=t ejected for 2"]);
    rig.pass(2 * SECOND);
    rig.pair(Script::new(), &backend);
    rig.pair(Script::new(), &backend); // which changes nothing
    assert_eq!(rig.notes.take_others(), ["a=t HalfOpen", "a=t Closed"]);
    let closed = stats(&rig);
    assert!(!closed.half_open && !closed.ejected);
    assert_eq!(closed.last_error.unwrap().age, 2 * SECOND, "a success does not clear it");

    rig.update(&[("a", &Scripted::new("another target"))]);
    assert_eq!((stats(&rig).last_error, rig.event_loop.stats(rig.now).updates), (None, 2));
    assert!(rig.notes.take_others().is_empty());
}

#[test]
fn c8_1_a_dial_of_a_keys_old_target_is_not_its_last_error() {
    let backend = Scripted::new("old");
    let mut rig = Rig::new(&[("a", &backend), ("b", &backend)]);
    rig.client(Script::new());
    rig.update(&[("a", &Scripted::new("new")), ("b", &backend)]);
    let dialled = backend.dialled().pop().unwrap();
    dialled.then_error(ErrorKind::ConnectionRefused);
    rig.event(&dialled, Readiness { error: true, ..Readiness::default() });
    let a = rig.event_loop.stats(rig.now).backends.remove(0);
    assert_eq!((a.usage.dial_failures, a.last_error), (1, None));
}
