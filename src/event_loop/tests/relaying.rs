//! Relaying (C6).

use std::io::ErrorKind;

use super::rig::*;

use super::super::*;
use crate::testing::script::{Act, Script, Seen};

#[test]
fn c6_4_a_reset_is_noticed_although_nothing_is_read_and_what_came_before_goes_on() {
    let backend = Scripted::new("a")
        .then(Ok(Script::new().reads([Act::Data(vec![1; 100]), Act::Data(vec![2; 100])])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new().takes([10, 0, 90, 50, 0]), &backend);
    rig.event(&server, READABLE);
    rig.notes.take();
    server.then_error(ErrorKind::ConnectionReset);
    rig.now += SECOND;
    // The error is known while the client is blocked: there is no way to deliver the rest.
    rig.event(&server, Readiness { error: true, ..Readiness::default() });
    assert_eq!(client.written().len(), 10);
    assert_eq!(rig.notes.take(), ["0 ended: backend failed"]);
    assert!(client.is_aborted());
}

#[test]
fn c6_5_a_pair_whose_backend_has_finished_is_half_closed_too_and_may_be_idle_for_less() {
    let backend = Scripted::new("a").then(connects()).then(connects());
    for (idle, ends_as) in [(None, "half closed timeout"), (Some(5 * SECOND), "idle timeout")] {
        let limits = Limits { idle_timeout: idle, half_closed_timeout: 10 * SECOND, ..LIMITS };
        let mut rig = Rig::with(limits, 9, &[("a", &backend)]);
        let (_, server) = rig.pair(Script::new(), &backend);
        server.then_reads([Act::End]);
        rig.event(&server, READABLE);
        rig.pass(idle.unwrap_or(10 * SECOND));
        assert_eq!(rig.notes.take(), ["0 connected a".to_owned(), format!("0 ended: {ends_as}")]);
    }
}

#[test]
fn c6_5_timeouts_count_from_the_last_byte_and_only_where_they_apply() {
    let backend = Scripted::new("a").then(connects());
    let limits =
        Limits { idle_timeout: Some(100 * SECOND), half_closed_timeout: 10 * SECOND, ..LIMITS };
    let mut rig = Rig::with(limits, 9, &[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    rig.pass(99 * SECOND);
    client.then_reads([Act::Data(b"x".to_vec()), Act::Block]);
    rig.event(&client, READABLE);
    rig.pass(50 * SECOND);
    client.then_reads([Act::End]);
    rig.event(&client, READABLE);
    assert!(server.is_shut());
    rig.pass(9 * SECOND);
    server.then_reads([Act::Data(b"y".to_vec()), Act::Block]);
    rig.event(&server, READABLE);
    rig.pass(9 * SECOND);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
    rig.pass(SECOND);
    assert_eq!(rig.notes.take(), ["0 ended: half closed timeout"]);

    let idle = Scripted::new("b").then(connects());
    rig.update(&[("b", &idle)]);
    rig.pair(Script::new(), &idle);
    let wait = rig.pass(Duration::ZERO).unwrap();
    assert!(wait <= 100 * SECOND);
    rig.pass(100 * SECOND);
    assert_eq!(rig.notes.take(), ["1 connected b", "1 ended: idle timeout"]);
}

#[test]
fn c6_6_a_flood_leaves_room_for_others_and_for_updates() {
    let flood = |len| Act::Data(vec![7; len]);
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (greedy, source) = rig.pair(Script::new(), &backend);
    let (modest, answer) = rig.pair(Script::new(), &backend);
    source.then_reads([flood(64 << 20)]);
    answer.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
    let of = |seen: &Seen| (seen.token().unwrap(), READABLE);
    let next = rig.turn(&[of(&source), of(&answer)]);
    assert_eq!(modest.written(), b"hello");
    assert!(greedy.written().len() <= 2 * BYTES_PER_DIRECTION);
    assert_eq!(next, Some(rig.now), "the rest needs no event");
    let update = rig.submit(&[]);
    rig.turn(COMMANDED);
    assert_eq!(update.try_wait().unwrap().unwrap().closed, 2);
    assert!(greedy.written().len() <= 3 * BYTES_PER_DIRECTION);
}

#[test]
fn c6_6_small_messages_do_not_wait_for_the_bulk_transfers_before_them() {
    let (mut rig, pairs) = pairs(20);
    let (small, bulk) = pairs.split_at(5);
    for (_, server) in bulk {
        server.then_reads((0..24).map(|_| Act::Data(vec![7; 128 << 10])));
        rig.turn(&[(server.token().unwrap(), READABLE)]);
    }
    assert!(rig.event_loop.pairs.queue_len(Queue::Unfinished) > 10, "nothing to wait for");
    let event = |(_, server): &(Seen, Seen)| {
        server.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
        (server.token().unwrap(), READABLE)
    };
    let moved = rig.event_loop.cx.counters.bytes_down;
    rig.turn(&small.iter().map(event).collect::<Vec<_>>());
    assert!(small.iter().all(|(client, _)| client.written() == b"hello"));
    assert!(rig.event_loop.cx.counters.bytes_down - moved < 2 * BYTES_PER_TURN, "a long turn");
}

#[test]
fn c6_6_a_failed_attempt_does_not_wait_for_bulk_transfers() {
    let a = (0..20).fold(Scripted::new("a"), |a, _| a.then(connects()));
    let b = Scripted::new("b").then(refused());
    let mut rig = Rig::new(&[("a", &a)]);
    let pairs: Vec<_> = (0..20).map(|_| rig.pair(Script::new(), &a)).collect();
    rig.update(&[("a", &a), ("b", &b)]);
    for (_, server) in &pairs {
        server.then_reads((0..24).map(|_| Act::Data(vec![7; 128 << 10])));
        rig.turn(&[(server.token().unwrap(), READABLE)]);
    }
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.turn(&[(token::LISTENER, READABLE)]);
    assert_eq!(rig.notes.take().last().unwrap(), "20 failed b/0: connection refused");
    rig.turn(&[]);
    assert_eq!(a.dialled().len(), 21, "the next backend is not dialled yet");
    assert!(rig.event_loop.pairs.queue_len(Queue::Unfinished) > 10, "nothing to wait for");
}

#[test]
fn c6_6_a_turn_of_nothing_but_bulk_transfers_is_bounded() {
    let (mut rig, pairs) = pairs(20);
    for (_, server) in &pairs {
        server.then_reads((0..24).map(|_| Act::Data(vec![7; 128 << 10])));
    }
    let events: Vec<_> =
        pairs.iter().map(|(_, server)| (server.token().unwrap(), READABLE)).collect();
    for (events, queue) in [(&events[..], Queue::Ready), (&[], Queue::Unfinished)] {
        while rig.event_loop.pairs.queue_len(Queue::Ready) > 0 {
            rig.turn(&[]);
        }
        let moved = rig.event_loop.cx.counters.bytes_down;
        rig.turn(events);
        let moved = rig.event_loop.cx.counters.bytes_down - moved;
        assert!(
            (BYTES_PER_TURN / 2..2 * BYTES_PER_TURN).contains(&moved),
            "{moved} bytes in a turn of {queue:?} pairs"
        );
    }
}

#[test]
fn c6_6_a_bulk_transfer_goes_on_however_many_small_messages_there_are() {
    let (mut rig, pairs) = pairs(500);
    let (client, server) = &pairs[0];
    server.then_reads((0..100).map(|_| Act::Data(vec![7; 128 << 10])));
    rig.turn(&[(server.token().unwrap(), READABLE)]);
    for _ in 0..10 {
        let written = client.written().len();
        let spurious: Vec<_> =
            pairs[1..].iter().map(|(_, server)| (server.token().unwrap(), READABLE)).collect();
        rig.turn(&spurious);
        assert!(rig.event_loop.pairs.queue_len(Queue::Ready) > 0, "the turn was not full");
        assert!(client.written().len() > written, "starved");
    }
}

#[test]
fn c6_6_many_events_are_handled_in_batches() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend((0..1500).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    let spurious: Vec<_> =
        backend.dialled().iter().map(|seen| (seen.token().unwrap(), READABLE)).collect();
    let next = rig.turn(&spurious);
    let left = rig.event_loop.pairs.queue_len(Queue::Connect);
    assert!((1..=1450).contains(&left), "{left} are left");
    assert_eq!(next, Some(rig.now), "the rest needs no event");
}

#[test]
fn c6_5_a_pair_that_a_full_turn_has_left_unread_is_not_idle() {
    let limits = Limits { idle_timeout: Some(10 * SECOND), ..LIMITS };
    let mut backend = Scripted::new("a");
    for _ in 0..10 {
        backend = backend.then(connects());
    }
    let mut rig = Rig::with(limits, 99, &[("a", &backend)]);
    let pairs: Vec<_> = (0..10).map(|_| rig.pair(Script::new(), &backend)).collect();
    rig.now += 10 * SECOND;
    for (index, (_, server)) in pairs.iter().enumerate() {
        let len = if index < 9 { BYTES_PER_DIRECTION } else { 1 };
        server.then_reads([Act::Data(vec![7; len]), Act::Block]);
    }
    let events: Vec<_> =
        pairs.iter().map(|(_, server)| (server.token().unwrap(), READABLE)).collect();
    let (last, _) = &pairs[9];
    rig.turn(&events);
    assert_eq!(last.written(), b"", "the turn was not full");
    rig.settle(&[]);
    assert_eq!((last.written().len(), last.is_dropped()), (1, false));
}

/// How many turns a message waits behind 2,000 events of one kind, of which the loop reads half.
fn turns_behind(failing: impl Fn(&mut Rig, &[Seen]) -> Readiness) -> usize {
    const CLIENTS: usize = 2000;
    let (a, b) = (Scripted::new("a"), Scripted::new("b").then(connects()));
    let mut rig = Rig::new(&[("b", &b)]);
    let (client, server) = rig.pair(Script::new(), &b);
    rig.update(&[("b", &b), ("a", &a)]);
    b.dials.lock().unwrap().extend((0..CLIENTS).map(|_| refused()));
    a.dials.lock().unwrap().extend((0..CLIENTS).map(|_| connects()));
    rig.clients.lock().unwrap().extend((0..CLIENTS).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    let dialled = a.dialled();
    let readiness = failing(&mut rig, &dialled);
    let mut events: Vec<_> =
        dialled.iter().map(|seen| (seen.token().unwrap(), readiness)).collect();
    server.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
    events.insert(CLIENTS / 2, (server.token().unwrap(), READABLE));
    rig.turn(&events);
    let mut turns = 1;
    while client.written().is_empty() {
        rig.turn(&[]);
        turns += 1;
    }
    turns
}

#[test]
fn c3_4_a_message_does_not_wait_for_what_ends_fails_or_connects_at_the_same_time() {
    let writable = Readiness { writable: true, ..Readiness::default() };
    assert_eq!(turns_behind(|_, _| writable), 1, "behind dials");
    let behind_relays = turns_behind(|rig, dialled| {
        let events: Vec<_> = dialled.iter().map(|seen| (seen.token().unwrap(), writable)).collect();
        rig.settle(&events);
        dialled.iter().for_each(|seen| seen.then_error(ErrorKind::ConnectionReset));
        Readiness { readable: true, error: true, ..writable }
    });
    assert_eq!(behind_relays, 1, "behind relays");
}
