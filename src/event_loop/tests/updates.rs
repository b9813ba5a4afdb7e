//! Updates (C3).

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use super::rig::*;

use super::super::*;
use crate::backend::{Backend, BackendSet, Dial, DialRequest};
use crate::control::Update;
use crate::stats::Applied;
use crate::testing::script::{Act, Script, Seen};

#[test]
fn c3_2_who_waits_to_dial_a_vanished_target_goes_on_to_another_and_is_no_cancelled_dial() {
    let lacks_descriptors = Scripted::new("a").then(Err(shortage()));
    let has_two_addresses = Scripted { addresses: 2, ..Scripted::new("a") }.then(refused());
    for (a, at_once) in [(lacks_descriptors, 0), (has_two_addresses, 1)] {
        let b = Scripted::new("b");
        let mut rig = Rig::new(&[("a", &a)]);
        rig.clients.lock().unwrap().push_back(Ok(Script::new()));
        rig.turn(&[(token::LISTENER, READABLE)]);
        let update = rig.submit(&[("b", &b)]);
        rig.settle(COMMANDED);
        assert_eq!(update.try_wait().unwrap().unwrap().cancelled, 0);
        assert_eq!(b.dialled().len(), at_once, "a descriptor waiter keeps its place");
        rig.pass(SECOND);
        assert_eq!((a.dialled().len(), b.dialled().len()), (0, 1));
    }
}

#[test]
fn c3_2_a_cancelled_dial_does_not_count_as_tried() {
    let a = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &a)]);
    rig.client(Script::new());
    drop((rig.submit(&[]), rig.submit(&[("a", &a)])));
    rig.settle(COMMANDED);
    assert_eq!((rig.notes.take(), a.dialled().len()), (vec![], 2));
    assert!(a.dialled()[0].is_dropped());
}

#[test]
fn c3_2_a_pair_blocked_on_either_side_is_closed_on_both() {
    let backend = Scripted::new("a").then(Ok(Script::new().reads([Act::Data(vec![1; 100])])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new().takes([10, 0]), &backend);
    rig.event(&server, READABLE);
    assert_eq!(client.written().len(), 10);
    assert_eq!(rig.update(&[]).closed, 1);
    for side in [client, server] {
        assert!(side.is_aborted() && side.is_dropped());
        assert_eq!(side.token(), None, "still registered");
    }
}

#[test]
fn c3_6_a_target_that_comes_back_before_the_loop_wakes_has_its_pairs_closed() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.pair(Script::new(), &backend);
    let updates = [rig.submit(&[]), rig.submit(&[("a", &backend)])];
    rig.settle(COMMANDED);
    for update in updates {
        let applied = update.try_wait().unwrap().unwrap();
        assert_eq!((applied.closed, applied.backends), (1, 1));
    }
}

#[test]
fn c3_1_c3_5_commands_go_before_the_clients_and_the_bytes_of_the_same_turn() {
    let (old, new) = (Scripted::new("old").then(connects()), Scripted::new("new"));
    let mut rig = Rig::new(&[("k", &old)]);
    let (client, server) = rig.pair(Script::new().reads([Act::Data(b"late".to_vec())]), &old);
    let asked_before = server.reads();
    let update = rig.submit(&[("k", &new)]);
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    let of = |seen: &Seen| (seen.token().unwrap(), READABLE);
    rig.turn(&[of(&client), of(&server), (token::LISTENER, READABLE), (token::MAILBOX, READABLE)]);
    assert_eq!(update.try_wait().unwrap().unwrap().closed, 1);
    assert_eq!((client.reads(), server.reads(), server.written().len()), (0, asked_before, 0));
    assert_eq!((old.dialled().len(), new.dialled().len()), (1, 1));
}

#[test]
fn c3_5_a_client_for_whom_no_candidate_is_left_is_closed_when_its_update_is_applied() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let clients: Vec<Seen> = (0..300).map(|_| rig.client(Script::new())).collect();
    let update = rig.submit(&[]);
    rig.turn(COMMANDED);
    assert_eq!(rig.event_loop.cx.counters.refused.of(EndReason::NoBackend), 300, "in one step");
    rig.settle(&[]);
    assert_eq!(update.try_wait().unwrap().unwrap().cancelled, 300);
    assert!(clients.iter().all(Seen::is_dropped));
}

#[test]
fn c3_7_an_update_is_applied_in_the_next_turn_though_its_event_is_behind_in_the_queue() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, _) = rig.pair(Script::new().reads([Act::Data(b"late".to_vec())]), &backend);
    let update = rig.submit(&[]);
    rig.turn(&[(client.token().unwrap(), READABLE)]);
    assert_eq!(update.try_wait().unwrap().expect("not applied").closed, 1);
    assert_eq!(client.reads(), 0);
}

#[test]
fn c3_4_many_pairs_end_in_one_step_and_are_closed_in_batches_that_hold_up_nobody() {
    let Removal { mut rig, victims, survivor: (client, server), update, .. } = large_removal();
    rig.turn(COMMANDED);
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.ended.of(EndReason::TargetRemoved), stats.open), (300, 1));
    let sockets = || victims.iter().flat_map(|(client, backend)| [client, backend]);
    let registered = sockets().filter(|socket| !socket.is_dropped()).count() + 2 + 2;
    assert_eq!(
        rig.event_loop.sources(),
        registered,
        "the survivor, the listener and the waker too"
    );
    let (last, _) = &victims[299];
    last.then_reads([Act::Data(b"late".to_vec())]);
    server.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
    rig.turn(&[(last.token().unwrap(), READABLE), (server.token().unwrap(), READABLE)]);
    assert_eq!((client.written(), last.reads()), (b"hello".to_vec(), 0));
    assert!(
        update.try_wait().unwrap().is_none() && !last.is_dropped(),
        "all was closed in one turn"
    );
    assert!(
        victims.iter().all(|(_, backend)| !backend.is_dropped()),
        "a client has to wait for backends"
    );
    rig.settle(&[]);
    assert_eq!(update.try_wait().unwrap().unwrap().closed, 300);
    assert!(sockets().all(|socket| socket.is_dropped() && socket.is_aborted()));
    assert!(!client.is_dropped());
}

#[test]
fn c3_5_an_update_is_applied_once_the_batches_of_earlier_updates_are_closed() {
    let Removal { mut rig, b, victims, update: first, .. } = large_removal();
    rig.turn(COMMANDED);
    let second = rig.submit(&[("b", &b)]);
    rig.turn(COMMANDED);
    assert!(first.try_wait().unwrap().is_none() && second.try_wait().unwrap().is_none());
    rig.settle(&[]);
    assert_eq!([first, second].map(|update| update.try_wait().unwrap().unwrap().closed), [300, 0]);
    assert!(victims.iter().all(|(client, backend)| client.is_dropped() && backend.is_dropped()));
}

#[test]
fn c3_3_a_pair_stays_when_another_key_names_its_target_and_counts_for_the_key_that_picked_it() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("k1", &backend)]);
    rig.pair(Script::new(), &backend);
    assert_eq!(rig.update(&[("k2", &backend)]).closed, 0);
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.open, stats.departed.open), (0, 1));
    rig.update(&[]);
    assert_eq!(rig.event_loop.stats(rig.now).departed.open, 0);
}

#[test]
fn c3_9_a_drained_target_gets_no_dial_and_its_pairs_end_at_the_limit() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a)]);
    let (relaying, _) = rig.pair(Script::new(), &a);
    rig.client(Script::new());
    let update = rig.control.update_draining([("b", b.clone())].into(), 10 * SECOND).unwrap();
    rig.settle(COMMANDED);
    let applied = update.try_wait().unwrap().unwrap();
    assert_eq!((applied.closed, applied.cancelled, applied.draining), (0, 1, 1));
    assert_eq!((a.dialled().len(), b.dialled().len()), (2, 1), "the cancelled dial went on");
    rig.notes.take();
    rig.pass(10 * SECOND - Duration::from_nanos(1));
    assert!(!relaying.is_dropped());
    rig.pass(Duration::from_nanos(1));
    assert!(relaying.is_aborted());
    assert!(rig.notes.take().contains(&"0 ended: drain limit".to_owned()));
}

#[test]
fn c3_4_c3_9_pairs_whose_drain_is_over_are_closed_in_batches() {
    let (mut rig, victims) = pairs(300);
    drop(rig.control.update_draining(BackendSet::new(), SECOND).unwrap());
    rig.settle(COMMANDED);
    rig.now += SECOND;
    rig.turn(&[]);
    assert_eq!(rig.event_loop.stats(rig.now).ended.of(EndReason::DrainLimit), 300);
    let open = || victims.iter().filter(|(_, backend)| !backend.is_dropped()).count();
    assert_eq!(open(), 300, "all was closed in one turn");
    rig.settle(&[]);
    assert_eq!(open(), 0);
}

/// An update is reported when all is closed: first to the observer, which may be asked by anyone who
/// waits, then to those. The host's old backends are dropped last, since that may take a while.
#[test]
fn c3_5_the_observer_is_told_first_then_those_who_wait_and_old_backends_are_dropped_last() {
    #[derive(Clone, Default)]
    struct Order {
        update: Arc<Mutex<Option<Update>>>,
        seen: Arc<Mutex<Vec<String>>>,
    }
    impl Order {
        fn note(&self, what: &str) {
            let update = self.update.lock().unwrap();
            let is_answered =
                update.as_ref().is_some_and(|update| update.try_wait().unwrap().is_some());
            self.seen.lock().unwrap().push(format!("{what}, answered: {is_answered}"));
        }
    }
    impl Observer for Order {
        fn updated(&mut self, _: &Applied) {
            self.note("updated");
        }
    }
    struct Noisy(Order);
    impl Drop for Noisy {
        fn drop(&mut self) {
            self.0.note("dropped");
        }
    }
    impl Backend for Noisy {
        fn target_name(&self) -> String {
            "noisy".to_owned()
        }
        fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
            unreachable!()
        }
    }
    let order = Order::default();
    let mut rig = Rig::new(&[]);
    rig.event_loop.cx.observer = Box::new(order.clone());
    drop(rig.control.update([("a", Noisy(order.clone()))].into_iter().collect()).unwrap());
    rig.settle(COMMANDED);
    order.seen.lock().unwrap().clear();
    *order.update.lock().unwrap() = Some(rig.control.update(BackendSet::new()).unwrap());
    rig.settle(COMMANDED);
    let expected = ["updated, answered: false", "dropped, answered: true"];
    assert_eq!(*order.seen.lock().unwrap(), expected);
}

#[test]
fn c3_9_of_two_limits_the_earlier_holds_unless_the_target_was_named_between() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let (client, _) = rig.pair(Script::new(), &a);
    rig.pass(LIMITS.connect_timeout); // uses up the reminder of the dial
    let drain = |rig: &mut Rig, secs| {
        drop(rig.control.update_draining(BackendSet::new(), secs * SECOND).unwrap());
        rig.settle(COMMANDED)
    };
    assert_eq!(drain(&mut rig, 5), Some(5 * SECOND));
    assert_eq!(drain(&mut rig, 9), Some(5 * SECOND));
    assert_eq!(drain(&mut rig, 3), Some(3 * SECOND));
    assert_eq!(rig.update(&[("a", &a)]).draining, 0);
    assert_eq!(drain(&mut rig, 9), Some(9 * SECOND));
    assert_eq!(rig.update(&[]).closed, 1, "a plain update does not wait");
    assert!(client.is_dropped());
}

#[test]
fn c3_9_each_target_drains_by_its_own_limit() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b").then(connects()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    let ((first, _), (second, _)) = (rig.pair(Script::new(), &a), rig.pair(Script::new(), &b));
    rig.pass(LIMITS.connect_timeout); // uses up the reminders of the dials
    for (set, secs) in [(vec![("b", b.clone())], 5), (vec![], 9)] {
        drop(rig.control.update_draining(set.into_iter().collect(), secs * SECOND).unwrap());
        rig.settle(COMMANDED);
    }
    assert_eq!(rig.pass(5 * SECOND), Some(4 * SECOND));
    assert_eq!((first.is_aborted(), second.is_aborted()), (true, false));
    assert_eq!(rig.pass(4 * SECOND), None);
    assert!(second.is_aborted());
}

#[test]
fn c3_9_a_drain_that_was_lifted_and_given_anew_in_one_burst_has_the_new_limit() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    rig.pair(Script::new(), &a);
    rig.pass(LIMITS.connect_timeout);
    let drain = |rig: &Rig, secs| {
        drop(rig.control.update_draining(BackendSet::new(), secs * SECOND).unwrap())
    };
    drain(&rig, 3);
    assert_eq!(rig.settle(COMMANDED), Some(3 * SECOND));
    drop(rig.submit(&[("a", &a)]));
    drain(&rig, 9);
    assert_eq!(rig.settle(COMMANDED), Some(9 * SECOND));
}

#[test]
fn c3_9_a_pair_of_a_draining_target_may_finish_and_is_then_no_longer_counted() {
    let a = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let ((client, server), _) = (rig.pair(Script::new(), &a), rig.pair(Script::new(), &a));
    let drain = |rig: &mut Rig| {
        let update = rig.control.update_draining(BackendSet::new(), 9 * SECOND).unwrap();
        rig.settle(COMMANDED);
        update.try_wait().unwrap().unwrap().draining
    };
    assert_eq!(drain(&mut rig), 2);
    client.then_reads([Act::Data(b"last words".to_vec()), Act::End]);
    server.then_reads([Act::Data(b"an answer".to_vec()), Act::End]);
    rig.settle(&[(client.token().unwrap(), READABLE), (server.token().unwrap(), READABLE)]);
    assert_eq!(
        (client.written(), server.written()),
        (b"an answer".to_vec(), b"last words".to_vec())
    );
    assert!(client.is_dropped() && !client.is_aborted() && !server.is_aborted());
    assert_eq!(drain(&mut rig), 1);
}

#[test]
fn c3_6_targets_that_drain_are_remembered_only_while_they_have_pairs() {
    let mut rig = Rig::new(&[]);
    for name in ["a", "b", "c", "d"] {
        let set = [("k", Scripted::new(name))].into();
        drop(rig.control.update_draining(set, 3600 * SECOND).unwrap());
        rig.settle(COMMANDED);
    }
    assert_eq!(rig.event_loop.cx.pool.next_drain_limit(), None);
}

#[test]
fn c3_4_a_surviving_pair_keeps_unsent_bytes_and_those_that_come_with_the_update() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b").then(connects()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    let (client, server) = rig.pair(Script::new().takes([3, 0]), &a);
    rig.pair(Script::new(), &b);
    server.then_reads([Act::Data(b"unsent".to_vec()), Act::Block]);
    rig.event(&server, READABLE);
    client.then_reads([Act::Data(b"early".to_vec()), Act::Block]);
    let update = rig.submit(&[("0", &Scripted::new("0")), ("z", &a)]); // every index changes

    let writable = Readiness { writable: true, ..READABLE };
    rig.turn(&[(token::MAILBOX, READABLE), (client.token().unwrap(), writable)]);

    assert_eq!(update.try_wait().unwrap().unwrap().closed, 1);
    assert_eq!((client.written(), server.written()), (b"unsent".to_vec(), b"early".to_vec()));
    rig.update(&[("a", &a)]);
    client.then_reads([Act::End]);
    server.then_reads([Act::Data(b", late".to_vec()), Act::End]);
    rig.settle(&[(client.token().unwrap(), READABLE), (server.token().unwrap(), READABLE)]);
    assert_eq!((client.written(), client.is_aborted()), (b"unsent, late".to_vec(), false));
}

#[test]
fn c3_10_what_a_peer_sent_before_its_reset_goes_on_as_far_as_the_other_side_takes_it() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    server.then_reads([Act::Data(vec![1; 100_000]), Act::End]);
    server.then_error(ErrorKind::ConnectionReset);
    rig.event(
        &server,
        Readiness { readable: true, read_closed: true, error: true, ..Readiness::default() },
    );
    assert_eq!(client.written().len(), 100_000);
    assert!(client.is_aborted() && !client.is_shut(), "an abort must not look like an end");
}

#[test]
fn c3_10_what_was_sent_before_a_reset_goes_on_though_it_is_more_than_a_turns_share() {
    const LEN: usize = 3 * BYTES_PER_DIRECTION;
    let reset =
        Readiness { readable: true, read_closed: true, error: true, ..Readiness::default() };
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let ((client, server), (other_client, other_server)) =
        (rig.pair(Script::new(), &backend), rig.pair(Script::new(), &backend));
    for side in [&server, &other_client] {
        side.then_reads([Act::Data(vec![1; LEN]), Act::End]);
        side.then_error(ErrorKind::ConnectionReset);
        rig.event(side, reset);
    }
    assert_eq!((client.written().len(), other_server.written().len()), (LEN, LEN));
    assert!(client.is_aborted() && other_server.is_aborted());
    assert_eq!(rig.notes.take()[2..], ["0 ended: backend failed", "1 ended: client failed"]);
}

#[test]
fn c3_10_a_reset_that_shows_in_a_write_is_passed_on_after_what_its_peer_had_sent() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = Script::new()
        .write_error(ErrorKind::ConnectionReset)
        .reads([Act::Data(b"last words".to_vec())]);
    let (client, server) = rig.pair(client, &backend);
    server.then_reads([Act::Data(b"x".to_vec()), Act::Block]);
    rig.event(&server, READABLE);
    assert_eq!(server.written(), b"last words");
    assert!(client.is_dropped() && server.is_aborted() && !server.is_shut());
}

#[test]
fn c3_7_cancelled_dials_are_begun_anew_in_batches() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().extend((0..500).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    let update = rig.submit(&[("b", &b)]);
    let next = rig.turn(COMMANDED);
    assert!(
        (30..=accept::ACCEPTS_PER_TURN).contains(&b.dialled().len()),
        "{} dials in one turn",
        b.dialled().len()
    );
    assert_eq!(next, Some(rig.now), "the rest needs no event");
    rig.settle(&[]);
    assert_eq!(b.dialled().len(), 500);
    assert_eq!(update.try_wait().unwrap().unwrap().cancelled, 500);
}

#[test]
fn c3_10_pairs_that_are_dropped_with_the_loop_are_aborted() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    drop(rig.event_loop);
    assert!(client.is_aborted() && server.is_aborted());
}

#[test]
fn c3_3_an_update_is_reported_however_many_pairs_end_in_each_turn() {
    let Removal { mut rig, b, update, .. } = large_removal();
    let mut events = COMMANDED.to_vec();
    let mut turns = 0;
    while update.try_wait().unwrap().is_none() {
        turns += 1;
        assert!(turns < 50, "starved");
        let end = || Ok(Script::new().reads([Act::End]));
        b.dials.lock().unwrap().extend((0..accept::ACCEPTS_PER_TURN).map(|_| end()));
        rig.clients.lock().unwrap().extend((0..accept::ACCEPTS_PER_TURN).map(|_| end()));
        events.push((token::LISTENER, READABLE));
        let dialled_before = b.dialled().len();
        rig.turn(&events);
        events.clear();
        let ready = |seen: &Seen| {
            let backend = seen.token().unwrap();
            let ended = Readiness { read_closed: true, ..Readiness::READ_WRITE };
            [(backend, Readiness::READ_WRITE), (Token(backend.0 & !1), ended)]
        };
        events.extend(b.dialled()[dialled_before..].iter().flat_map(ready));
    }
}
