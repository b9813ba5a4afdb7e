//! Accepting (C4).

use std::io::ErrorKind;

use super::rig::*;

use super::super::*;
use crate::testing::script::{Script, Seen};

#[test]
fn c4_3_a_shortage_pauses_accepting_and_a_timer_ends_the_pause() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).expect("no timer");
    assert!(pause > Duration::ZERO && pause <= SECOND);
    assert_eq!(rig.event_loop.cx.counters.accepted, 0);
    rig.pass(pause); // and no event
    assert_eq!(rig.event_loop.cx.counters.accepted, 1);
}

#[test]
fn c4_3_a_shortage_ends_when_a_pair_closes() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, _) = rig.pair(Script::new(), &backend);
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    rig.settle(&[(token::LISTENER, READABLE)]);
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::default() });
    assert_eq!(rig.event_loop.cx.counters.accepted, 2);
}

#[test]
fn c4_3_errors_of_one_client_are_skipped_and_not_for_ever() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients
        .lock()
        .unwrap()
        .extend([Err(ErrorKind::ConnectionAborted.into()), Ok(Script::new())]);
    rig.settle(&[(token::LISTENER, READABLE)]);
    assert_eq!(rig.event_loop.cx.counters.accepted, 1);
    let always = (0..1000).map(|_| Err(ErrorKind::ConnectionAborted.into()));
    rig.clients.lock().unwrap().extend(always);
    let wait = rig.settle(&[(token::LISTENER, READABLE)]);
    assert!(wait.is_some_and(|wait| wait <= SECOND), "spins or forgets: {wait:?}");
    assert!(rig.clients.lock().unwrap().len() > 900);
}

#[test]
fn c4_3_who_lacks_a_descriptor_to_dial_with_waits_in_order_and_nobody_is_accepted_before() {
    let backend = Scripted::new("a").then(Err(shortage())).then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Ok(Script::new()), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).unwrap();
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (1, 0));
    rig.pass(pause);
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (1, 0));
    rig.pass(pause);
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (2, 2));
    assert_eq!(rig.event_loop.stats(rig.now).backends[0].usage.dial_failures, 0);
}

#[test]
fn c4_3_a_descriptor_waiter_is_refused_at_the_dial_limit() {
    let mut backend = Scripted::new("a");
    for _ in 0..1000 {
        backend = backend.then(Err(shortage()));
    }
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Ok(Script::new()), Ok(Script::new())]);
    rig.settle(&[(token::LISTENER, READABLE)]);
    let start = rig.now;
    while rig.event_loop.cx.counters.refused.total() == 0 {
        assert!(rig.now - start <= LIMITS.dial_limit);
        let wait = rig.pass(Duration::ZERO).unwrap();
        rig.pass(wait);
        assert!(rig.event_loop.fd_waiters.len() <= 1, "it queues up anew with each attempt");
    }
    assert_eq!(rig.notes.take(), ["0 ended: dial limit"]);
    assert_eq!(rig.event_loop.cx.counters.accepted, 2);
}

#[test]
fn c4_3_a_pause_is_not_made_longer_by_those_who_run_short_during_it() {
    let a = Scripted::new("a");
    let b = Scripted::new("b").then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    rig.clients.lock().unwrap().push_back(Err(shortage()));
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).unwrap();
    rig.now += pause / 2;
    let dialled = a.dialled().pop().unwrap();
    dialled.then_error(ErrorKind::ConnectionRefused);
    let wait = rig.event(&dialled, Readiness { error: true, ..Readiness::default() });
    assert_eq!((rig.event_loop.fd_waiters.len(), wait), (1, Some(pause / 2)));
}

#[test]
fn c4_3_a_client_that_cannot_be_watched_is_refused_and_the_next_one_waits() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let unwatchable = Script::new().register_error(ErrorKind::OutOfMemory);
    rig.clients.lock().unwrap().extend([Ok(unwatchable), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).expect("no timer");
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (1, 0));
    assert_eq!(rig.notes.take(), ["0 ended: local failure"]);
    rig.pass(pause);
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (2, 1));
}

#[test]
fn c4_3_a_backends_stream_that_cannot_be_watched_is_dialled_again_and_no_failure_of_the_backend() {
    let backend = Scripted::new("a").then(Ok(Script::new().register_error(ErrorKind::OutOfMemory)));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let wait = rig.pass(Duration::ZERO).expect("no timer");
    assert!(backend.dialled()[0].is_dropped());
    rig.pass(wait);
    assert_eq!(backend.dialled().len(), 2);
    assert_eq!(rig.event_loop.stats(rig.now).backends[0].usage.dial_failures, 0);
}

#[test]
fn c4_3_many_descriptor_waiters_are_served_in_order_in_batches_before_anyone_is_accepted() {
    const CLIENTS: usize = 3 * accept::ACCEPTS_PER_TURN;
    let pair_of = |seen: &Seen| match Source::from(seen.token().unwrap()) {
        Source::Pair(pair, _) => pair,
        other => panic!("{other:?}"),
    };
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    b.dials.lock().unwrap().extend((0..2 * CLIENTS).map(|_| Err(shortage())));
    let mut rig = Rig::new(&[("a", &a)]);
    let waiters: Vec<Seen> = (0..CLIENTS).map(|_| rig.client(Script::new())).collect();
    drop(rig.submit(&[("b", &b)])); // they all want another dial now
    let pause = rig.settle(COMMANDED).unwrap();
    assert_eq!(rig.event_loop.fd_waiters.len(), CLIENTS);
    b.dials.lock().unwrap().clear();
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));

    rig.now += pause;
    let next = rig.turn(&[(token::LISTENER, READABLE)]);

    let in_order = |dialled: Vec<Seen>| {
        dialled.iter().map(pair_of).eq(waiters[..dialled.len()].iter().map(pair_of))
    };
    assert!(b.dialled().len() == accept::ACCEPTS_PER_TURN && in_order(b.dialled()));
    assert_eq!(
        (rig.event_loop.cx.counters.accepted, next),
        (CLIENTS as u64, Some(rig.now)),
        "the rest needs no event"
    );
    rig.settle(&[]);
    assert!(in_order(b.dialled()[..CLIENTS].to_vec()));
    assert_eq!(rig.event_loop.cx.counters.accepted, CLIENTS as u64 + 1);
}

#[test]
fn c4_4_at_the_limit_nobody_is_accepted_until_a_pair_closes() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::with(LIMITS, 1, &[("a", &backend)]);
    let (client, _) = rig.pair(Script::new(), &backend);
    rig.client(Script::new());
    assert_eq!(rig.event_loop.cx.counters.accepted, 1);
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::default() });
    assert_eq!(rig.event_loop.cx.counters.accepted, 2);
}

#[test]
fn c4_4_a_pair_counts_until_both_of_its_sockets_are_closed() {
    const CLIENTS: usize = 300;
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    a.dials.lock().unwrap().extend((0..CLIENTS).map(|_| connects()));
    let mut rig = Rig::with(LIMITS, CLIENTS, &[("a", &a)]);
    let pairs: Vec<(Seen, Seen)> = (0..CLIENTS).map(|_| rig.pair(Script::new(), &a)).collect();
    drop(rig.submit(&[("b", &b)]));
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.turn(&[COMMANDED[0], (token::LISTENER, READABLE)]);
    assert_eq!(rig.event_loop.cx.counters.open, 0);
    while rig.event_loop.cx.counters.accepted == CLIENTS as u64 {
        assert!(rig.turn(&[]).is_some(), "the client is forgotten");
    }
    let is_closed = |pair: &&(Seen, Seen)| pair.0.is_dropped() && pair.1.is_dropped();
    assert!(pairs.iter().any(|pair| is_closed(&pair)), "accepted in the place of nobody");
}

#[test]
fn c4_3_a_pause_ends_early_when_the_close_queue_frees_descriptors() {
    let Removal { mut rig, victims, .. } = large_removal();
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    let accepted = rig.event_loop.cx.counters.accepted;
    rig.turn(&[(token::MAILBOX, READABLE), (token::LISTENER, READABLE)]);
    assert_eq!(rig.event_loop.cx.counters.accepted, accepted);
    let closed =
        |victims: &[(Seen, Seen)]| victims.iter().filter(|(client, _)| client.is_dropped()).count();
    assert_eq!(closed(&victims), 128);
    rig.turn(&[]);
    assert_eq!((rig.event_loop.cx.counters.accepted, closed(&victims)), (accepted + 1, 256));
}

#[test]
fn c4_2_a_storm_is_taken_in_pieces_without_further_events() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend((0..500).map(|_| Ok(Script::new())));
    let next = rig.turn(&[(token::LISTENER, READABLE)]);
    assert_eq!(
        (rig.event_loop.cx.counters.accepted, next),
        (accept::ACCEPTS_PER_TURN as u64, Some(rig.now))
    );
    rig.settle(&[]);
    assert_eq!(rig.event_loop.cx.counters.accepted, 500);
}

#[test]
fn c8_2_a_shortage_that_lasts_is_told_as_one_pause() {
    let backend = Scripted::new("a").then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Err(shortage()), Err(shortage()), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).unwrap();
    assert_eq!(rig.notes.take_others(), ["paused: Some(24)"]);
    rig.pass(pause);
    assert!(rig.notes.take_others().is_empty());
    rig.pass(pause); // the client comes in, and has no descriptor to be dialled for
    assert!(rig.notes.take_others().is_empty());
    rig.pass(pause);
    assert_eq!((rig.notes.take_others(), backend.dialled().len()), (vec!["resumed".into()], 1));
}

#[test]
fn c8_2_no_pause_is_told_once_the_listener_is_closed() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    rig.control.drain(SECOND).unwrap();
    rig.settle(COMMANDED);
    let b = Scripted::new("b").then(Err(shortage()));
    drop(rig.submit(&[("b", &b)])); // the client is to be dialled for again
    rig.settle(COMMANDED);
    assert_eq!((rig.event_loop.fd_waiters.len(), rig.notes.take_others().len()), (1, 0));
}
