//! Timeouts, and the events that have to be read before (C7.5); what a pair that they end has sent.

use std::io::ErrorKind;

use super::super::*;
use super::rig::*;
use crate::testing::script::{Act, Script, Seen};

const IDLE: Limits = Limits { idle_timeout: Some(Duration::from_secs(2)), ..LIMITS };

/// A loop with so many pairs, which may be idle for two seconds.
fn idle_pairs(count: usize) -> (Rig, Vec<Seen>) {
    let a = (0..count).fold(Scripted::new("a"), |a, _| a.then(connects()));
    let mut rig = Rig::with(IDLE, usize::MAX, &[("a", &a)]);
    let clients = (0..count).map(|_| rig.pair(Script::new(), &a).0).collect();
    (rig, clients)
}

/// Has each client send a byte, and returns what events will tell of that.
fn send(clients: &[Seen]) -> Vec<(Token, Readiness)> {
    let event = |client: &Seen| {
        client.then_reads([Act::Data(b"x".to_vec())]);
        (client.token().unwrap(), READABLE)
    };
    clients.iter().map(event).collect()
}

#[test]
fn c7_5_no_pair_is_idle_whose_bytes_may_be_unread_after_an_interrupted_poll() {
    let (mut rig, clients) = idle_pairs(300);
    let (events, asleep) = (send(&clients), rig.now);
    rig.now += 3 * SECOND; // stopped meanwhile
    let next = rig.turn_after(&[], asleep, Completeness::Interrupted);
    assert_eq!(rig.event_loop.cx.counters.ended.total(), 0);
    assert!(next.is_some_and(|next| next <= rig.now), "it polls again at once");
    rig.settle(&events);
    assert!(clients.iter().all(|client| client.reads() > 0));
    assert_eq!(rig.event_loop.cx.counters.ended.total(), 0);
}

#[test]
fn c7_5_a_poll_that_began_before_the_deadline_proves_nothing() {
    let (mut rig, clients) = idle_pairs(1);
    let asleep = rig.now;
    rig.now += 3 * SECOND; // between the return of the poll and the reading of the clock
    rig.turn_after(&[], asleep, Completeness::Complete);
    assert!(!clients[0].is_dropped());
    rig.turn_after(&[], rig.now, Completeness::Complete);
    assert!(clients[0].is_aborted());
}

#[test]
fn c7_5_no_pair_is_idle_whose_bytes_may_be_unread_behind_a_full_batch() {
    let (mut rig, clients) = idle_pairs(900);
    let events = send(&clients);
    rig.now += 3 * SECOND;
    for batch in events.chunks(100) {
        rig.turn_after(batch, rig.now, Completeness::Full);
        assert_eq!(rig.event_loop.cx.counters.ended.total(), 0);
    }
    rig.settle(&[]);
    assert_eq!(rig.event_loop.cx.counters.ended.total(), 0);
}

#[test]
fn c7_5_batches_that_are_full_for_ever_delay_a_timeout_by_a_round_of_all_sources() {
    let (mut rig, clients) = idle_pairs(10);
    let busy: Vec<_> =
        clients[1..].iter().map(|client| (client.token().unwrap(), READABLE)).collect();
    rig.now += 2 * SECOND;
    let mut events = 0;
    while !clients[0].is_dropped() {
        for client in &clients[1..4] {
            client.then_reads([Act::Data(b"x".to_vec()), Act::Block]);
        }
        rig.turn_after(&busy[..3], rig.now, Completeness::Full);
        events += 3;
        assert!(events <= 2 * (2 * 10 + 2) + 3, "suspended for as long as the load lasts");
    }
    assert!(events >= 2 * 10 + 2);
}

#[test]
fn c7_5_a_dial_that_was_answered_meanwhile_has_not_timed_out() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    let (dialled, asleep) = (a.dialled().pop().unwrap(), rig.now);
    rig.now += 6 * SECOND;
    rig.turn_after(&[], asleep, Completeness::Interrupted);
    rig.event(&dialled, Readiness { writable: true, ..Readiness::default() });
    assert_eq!(rig.notes.take(), ["0 connected a"]);
}

#[test]
fn c7_5_a_dial_is_asked_once_more_before_it_is_given_up() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let client = rig.client(Script::new());
    client.then_reads([Act::Data(b"question".to_vec())]);
    rig.event(&client, READABLE);
    rig.pass(LIMITS.connect_timeout);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
    assert_eq!(a.dialled()[0].written(), b"question");
    let b = Scripted::new("b").then(Ok(Script::new().connect([Err(ErrorKind::ConnectionRefused)])));
    let mut rig = Rig::new(&[("b", &b)]);
    rig.client(Script::new());
    rig.pass(LIMITS.connect_timeout);
    assert_eq!(rig.notes.take()[0], "0 failed b/0: connection refused");
}

#[test]
fn c7_5_a_dial_is_asked_once_more_at_the_dial_limit_too() {
    for connect_timeout in [15 * SECOND, 20 * SECOND] {
        let limits = Limits { connect_timeout, ..LIMITS };
        let a = Scripted::new("a").then(connects());
        let mut rig = Rig::with(limits, usize::MAX, &[("a", &a)]);
        rig.client(Script::new());
        rig.pass(limits.dial_limit);
        assert_eq!(rig.notes.take(), ["0 connected a"]);
    }
}

#[test]
fn c7_5_a_drain_is_not_over_while_events_may_be_unread() {
    let (mut rig, clients) = idle_pairs(1);
    rig.control.drain(SECOND).unwrap();
    rig.turn(COMMANDED);
    let (asleep, mut events) = (rig.now, send(&clients));
    rig.now += SECOND;
    rig.turn_after(&[], asleep, Completeness::Interrupted);
    assert!(!rig.event_loop.is_over());
    events[0].1.read_closed = true;
    rig.turn(&events);
    assert!(rig.event_loop.is_over() && clients[0].reads() > 0);
}

/// A pair whose backend has answered, ended its stream, and left the client's stream open.
fn answered(limits: Limits) -> (Rig, Seen, Seen) {
    let answer = [Act::Data(b"answer".to_vec()), Act::End];
    let a = Scripted::new("a").then(Ok(Script::new().reads(answer)));
    let mut rig = Rig::with(limits, usize::MAX, &[("a", &a)]);
    let (client, server) = rig.pair(Script::new(), &a);
    rig.event(&server, READABLE);
    assert!(client.is_shut() && client.written() == b"answer");
    (rig, client, server)
}

#[test]
fn c3_10_a_side_that_was_sent_the_end_is_closed_plainly_whatever_ends_the_pair() {
    let closers: [fn(&mut Rig, &Seen, &Seen); 5] = [
        |rig, _, _| _ = rig.pass(LIMITS.half_closed_timeout),
        |rig, _, _| rig.control.shutdown().unwrap(),
        |rig, _, _| rig.control.drain(Duration::ZERO).unwrap(),
        |rig, _, _| _ = rig.update(&[]),
        |rig, _, server| {
            server.then_error(ErrorKind::ConnectionReset);
            rig.event(server, Readiness { error: true, ..Readiness::default() });
        },
    ];
    for close in closers {
        let (mut rig, client, server) = answered(LIMITS);
        close(&mut rig, &client, &server);
        rig.settle(COMMANDED);
        assert!(client.is_dropped() && !client.is_aborted(), "the answer was complete");
        assert!(server.is_dropped() && server.is_aborted(), "its request was not");
    }
}

#[test]
fn c3_10_the_backend_of_a_removed_target_is_reset_even_if_it_was_sent_the_end() {
    for limit in [None, Some(SECOND)] {
        let a = Scripted::new("a").then(connects());
        let mut rig = Rig::new(&[("a", &a)]);
        let (client, server) = rig.pair(Script::new().reads([Act::End]), &a);
        rig.event(&client, READABLE);
        assert!(server.is_shut());
        let none = crate::backend::BackendSet::new();
        match limit {
            None => drop(rig.control.update(none).unwrap()),
            Some(limit) => drop(rig.control.update_draining(none, limit).unwrap()),
        }
        rig.settle(COMMANDED);
        rig.pass(SECOND);
        assert!(server.is_aborted() && client.is_aborted());
    }
}

#[test]
fn c6_4_an_end_that_was_read_before_an_error_is_delivered_to_a_slow_reader() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let (client, server) = rig.pair(Script::new().takes([2, 0]).shutdown_blocks(1), &a);
    server.then_reads([Act::Data(b"answer".to_vec()), Act::End]);
    rig.event(&server, Readiness { read_closed: true, ..READABLE });
    server.then_error(ErrorKind::ConnectionReset);
    rig.event(&server, Readiness { error: true, ..Readiness::default() });
    assert!(!client.is_dropped() && client.written() == b"an");
    let writable = Readiness { writable: true, ..Readiness::default() };
    rig.event(&client, writable);
    assert!(!client.is_dropped() && client.written() == b"answer", "its end is still held back");
    rig.event(&client, writable);
    assert!(client.is_shut() && !client.is_aborted());
    assert_eq!(rig.notes.take().pop().unwrap(), "0 ended: backend failed");
}

#[test]
fn c6_4_an_end_that_is_read_after_an_error_is_none() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let (client, server) = rig.pair(Script::new(), &a);
    server.then_reads([Act::Data(b"answer".to_vec()), Act::End]);
    server.then_error(ErrorKind::ConnectionReset);
    rig.event(&server, Readiness { error: true, read_closed: true, ..READABLE });
    assert!(client.is_aborted() && !client.is_shut() && client.written() == b"answer");
}

#[test]
fn c7_5_the_limit_of_a_drain_ends_no_pair_whose_event_was_read_and_not_dealt_with() {
    for is_whole in [false, true] {
        let a = (0..600).fold(Scripted::new("a"), |a, _| a.then(connects()));
        let mut rig = Rig::new(&[("a", &a)]);
        let pairs: Vec<_> = (0..600).map(|_| rig.pair(Script::new(), &a)).collect();
        if is_whole {
            rig.control.drain(9 * SECOND).unwrap();
        } else {
            drop(
                rig.control.update_draining(crate::backend::BackendSet::new(), 9 * SECOND).unwrap(),
            );
        }
        rig.settle(COMMANDED);
        let clients: Vec<_> = pairs.iter().map(|(client, _)| client.clone()).collect();
        let events = send(&clients);
        rig.now += 9 * SECOND;
        rig.settle(&events);
        assert!(pairs.iter().all(|(_, server)| server.written() == b"x"), "whole {is_whole}");
        assert!(clients.iter().all(Seen::is_dropped));
    }
}
