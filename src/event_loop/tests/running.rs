//! Running and stopping (C7), what is logged (C8), and memory (C9).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use super::rig::*;

use super::super::*;
use crate::backend::BackendSet;
use crate::error::Error;
use crate::testing::script::{Act, Script};

#[test]
fn c7_2_the_end_closes_what_is_still_to_be_closed() {
    let Removal { mut rig, victims, update, .. } = large_removal();
    rig.turn(COMMANDED);
    rig.control.shutdown().unwrap();
    rig.turn(COMMANDED);
    assert!(rig.event_loop.is_over());
    assert_eq!(update.try_wait().unwrap().unwrap().closed, 300);
    assert!(victims.iter().all(|(client, backend)| client.is_dropped() && backend.is_dropped()));
}

#[test]
fn a_stale_event_does_not_reach_the_next_occupant_of_a_slot() {
    let backend = Scripted::new("a").then(connects()).then(Ok(Script::new().connect([Ok(false)])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    let (stale_client, stale_server) = (client.token().unwrap(), server.token().unwrap());
    rig.update(&[]);
    rig.update(&[("a", &backend)]);
    let index_pair = rig.client(Script::new().reads([Act::Data(b"x".to_vec())]));
    assert_ne!(index_pair.token(), Some(stale_client));
    rig.settle(&[(stale_client, Readiness::READ_WRITE), (stale_server, Readiness::READ_WRITE)]);
    rig.settle(&[(stale_server, Readiness::READ_WRITE)]);
    assert_eq!((index_pair.reads(), rig.event_loop.cx.counters.dialling), (0, 1));
}

#[test]
fn events_of_a_pair_that_ended_in_the_same_batch_are_passed_over() {
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    let tokens = (client.token().unwrap(), server.token().unwrap());
    client.then_reads([Act::End]);
    server.then_reads([Act::End]);
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.settle(&[
        (tokens.0, READABLE),
        (tokens.1, READABLE),
        (tokens.0, READABLE),
        (token::LISTENER, READABLE),
    ]);
    assert_eq!(rig.notes.take(), ["0 connected a", "0 ended: finished"]);
    assert!(client.is_dropped() && !client.is_aborted(), "an orderly end is no abort");
    assert_eq!(rig.event_loop.cx.counters.dialling, 1);
}

#[test]
fn c7_2_a_drain_lets_pairs_finish_and_cuts_the_rest_at_the_earlier_limit() {
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (first, first_server) = rig.pair(Script::new(), &backend);
    let (second, _) = rig.pair(Script::new(), &backend);
    rig.control.drain(9 * SECOND).unwrap();
    rig.settle(COMMANDED);
    rig.control.drain(30 * SECOND).unwrap();
    rig.settle(COMMANDED);
    rig.client(Script::new());
    assert_eq!(rig.event_loop.cx.counters.accepted, 2, "a draining balancer accepts nobody");
    first.then_reads([Act::End]);
    first_server.then_reads([Act::End]);
    rig.settle(&[(first.token().unwrap(), READABLE), (first_server.token().unwrap(), READABLE)]);
    assert!(!first.is_aborted() && !rig.event_loop.is_over());
    assert_eq!(rig.pass(5 * SECOND), Some(4 * SECOND));
    rig.pass(4 * SECOND);
    assert!(rig.event_loop.is_over() && second.is_aborted());
    assert_eq!(rig.notes.take().last().unwrap(), "1 ended: drain limit");
}

#[test]
fn c7_2_a_drain_ends_as_soon_as_nobody_is_left() {
    let mut rig = Rig::new(&[]);
    rig.control.drain(Duration::MAX).unwrap();
    rig.turn(COMMANDED);
    assert!(rig.event_loop.is_over());
}

#[test]
fn c7_4_waiters_are_told_when_the_loop_is_dropped() {
    let rig = Rig::new(&[]);
    let update = rig.submit(&[]);
    let control = rig.control.clone();
    drop(rig.event_loop);
    assert!(matches!(update.wait(), Err(Error::Stopped)));
    assert!(matches!(control.update(BackendSet::new()), Err(Error::Stopped)));
    assert!(matches!(control.stats(), Err(Error::Stopped)));
    assert!(control.shutdown().is_ok() && control.drain(SECOND).is_ok());
}

#[test]
fn c7_4_the_loops_own_thread_does_not_wait_for_itself() {
    let rig = Rig::new(&[]); // whose turns run on this thread
    let update = rig.submit(&[]);
    assert!(matches!(update.wait(), Err(Error::OwnThread)));
    assert!(matches!(update.wait_timeout(SECOND), Err(Error::OwnThread)));
    assert!(matches!(rig.control.stats().unwrap().wait(), Err(Error::OwnThread)));
}

#[test]
fn c7_6_on_the_loops_own_thread_a_task_may_ask_and_is_woken_as_anywhere_else() {
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let mut rig = Rig::new(&[]); // whose turns run on this thread
    let woken = Arc::new(Flag(AtomicBool::new(false)));
    let waker = woken.clone().into();
    let mut stats = rig.control.stats().unwrap();
    assert!(matches!(stats.try_wait(), Ok(None)));
    assert!(Pin::new(&mut stats).poll(&mut Context::from_waker(&waker)).is_pending());
    rig.turn(COMMANDED);
    assert!(woken.0.load(Ordering::SeqCst));
    assert_eq!(stats.wait().unwrap().updates, 1);
}

#[test]
fn c9_1_an_idle_pair_asks_for_no_turn() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.pair(Script::new(), &backend);
    assert_eq!(rig.pass(LIMITS.connect_timeout), None);
}

#[test]
fn c7_2_a_drain_accepts_who_waits_in_the_backlog_and_nobody_after() {
    let a = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().extend((0..200).map(|_| Ok(Script::new())));
    rig.control.drain(SECOND).unwrap();
    rig.settle(COMMANDED);
    assert_eq!((rig.event_loop.cx.counters.accepted, a.dialled().len()), (200, 200));
    rig.client(Script::new());
    assert_eq!(rig.event_loop.cx.counters.accepted, 200);
    rig.pass(SECOND);
    assert!(rig.event_loop.is_over());
}

#[test]
fn c7_2_a_drain_accepts_no_more_than_its_limits_and_not_through_a_pause() {
    for (max_connections, accepted) in [(10, 10), (usize::MAX, 4096)] {
        let mut rig = Rig::with(LIMITS, max_connections, &[("a", &Scripted::new("a"))]);
        rig.clients.lock().unwrap().extend((0..4100).map(|_| Ok(Script::new())));
        rig.control.drain(SECOND).unwrap();
        rig.settle(COMMANDED);
        assert_eq!(rig.event_loop.cx.counters.accepted, accepted);
    }

    let mut rig = Rig::new(&[("a", &Scripted::new("a"))]);
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    rig.control.drain(SECOND).unwrap();
    rig.settle(COMMANDED);
    assert!(rig.event_loop.is_over() && rig.event_loop.cx.counters.accepted == 0);
}

#[test]
fn c9_1_the_memory_of_a_peak_is_freed_with_its_timers() {
    const PEAK: usize = 2000;
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend((0..PEAK).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    let slots =
        |rig: &Rig| (rig.event_loop.pairs.slot_numbers().end, rig.event_loop.timers.slots());
    assert!(slots(&rig).0 >= PEAK && slots(&rig).1 >= PEAK);
    rig.update(&[]);
    let (pairs, timers) = slots(&rig);
    assert!(pairs < PEAK / 4 && timers < PEAK / 4, "{pairs} and {timers} slots");
}

#[test]
fn c8_3_each_kind_of_warning_has_a_rate_limit_of_its_own() {
    let limited = |client: io::Result<Script>, dials: &[fn() -> io::Result<Script>]| {
        let backend = dials.iter().fold(Scripted::new("a"), |backend, dial| backend.then(dial()));
        let mut rig = Rig::new(&[("a", &backend)]);
        rig.clients.lock().unwrap().push_back(client);
        rig.clients.lock().unwrap().extend(dials[1..].iter().map(|_| Ok(Script::new())));
        rig.settle(&[(token::LISTENER, READABLE)]);
        let cx = &mut rig.event_loop.cx;
        let limits = [
            &mut cx.accept_warnings,
            &mut cx.dial_warnings,
            &mut cx.port_warnings,
            &mut cx.ejection_warnings,
        ];
        limits.map(|limit| limit.pass(rig.now).is_none())
    };
    let client = || Ok(Script::new());
    assert_eq!(limited(Err(shortage()), &[connects]), [true, false, false, false]);
    let no_descriptor = || Err(shortage());
    assert_eq!(limited(client(), &[no_descriptor]), [false, true, false, false]);
    let no_port = || Err(io::ErrorKind::AddrNotAvailable.into());
    assert_eq!(limited(client(), &[no_port]), [false, false, true, false]);
    assert_eq!(limited(client(), &[refused, refused, refused]), [false, false, false, true]);
}
