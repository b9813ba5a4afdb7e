//! Reads and writes that move little, block though they need not, or are interrupted; events that say too much.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tinylb::{EndReason, Server, UnixBackend};

use crate::faulty::{
    Call, ERROR, Fault, FaultyBackend, Flags, Lab, Moment, PRIORITY, READ_CLOSED, READABLE, Side,
    WRITABLE, WRITE_CLOSED,
};
use crate::random::{Random, with_seeds};
use crate::rig::Rig;
use crate::talk::{Order, Talk};

const EINTR: i32 = 4;

/// The chance that belongs to a moment, the same in each run with this seed.
fn chance(seed: u64, moment: Moment) -> Random {
    let Moment { side, call, stream, nth } = moment;
    Random::of(&[seed, side as u64, call as u64, stream as u64, nth as u64])
}

/// Several conversations at once, all of which come to their end in order.
#[track_caller]
fn assert_nothing_changes(rig: Rig, talks: &[Talk]) {
    let addr = rig.balancer.addr;
    thread::scope(|scope| {
        let clients: Vec<_> =
            talks.iter().map(|talk| (talk, scope.spawn(move || talk.hold(addr)))).collect();
        for (talk, client) in clients {
            client.join().unwrap().assert_complete(&talk.bytes_down());
        }
    });
    let reports = rig.reports(talks.len());
    for talk in talks {
        reports[&talk.seed].1.assert_complete(&talk.bytes_up());
    }
    rig.wait_for_ends(talks.len());
    let stats = rig.balancer.stats();
    assert_eq!(stats.ended.of(EndReason::Finished), talks.len() as u64, "{stats:?}");
    assert_eq!(stats.backends.iter().map(|backend| backend.usage.dial_failures).sum::<u64>(), 0);
    rig.end();
}

/// One conversation in each order, and of each length.
fn talks(len: usize) -> Vec<Talk> {
    let orders = Order::ALL.into_iter().cycle();
    let lens = [(len, len), (len / 2, len), (0, len), (len, 1)];
    lens.into_iter()
        .zip(orders)
        .enumerate()
        .map(|(i, ((up, down), order))| Talk::new(i as u64, up, down, order))
        .collect()
}

#[test]
fn c6_1_every_byte_arrives_once_and_in_order_whatever_pieces_the_sockets_take_and_give() {
    for (piece, len) in [(1, 4_000), (2, 7_000), (3, 9_000), (100, 50_000), (1_000, 200_000)] {
        for buffer_size in [1, 2 * piece + 1, 256 * 1024] {
            let plan = move |moment: Moment| match moment.call {
                Call::Read | Call::Write => Fault::AtMost(piece),
                _ => Fault::Nothing,
            };
            let len = if buffer_size == 1 { 4_000 } else { len };
            let rig = Rig::new(Server::builder().buffer_size(buffer_size), 2, Lab::new(plan));
            assert_nothing_changes(rig, &talks(len));
        }
    }
}

#[test]
fn c6_1_so_it_does_if_each_call_blocks_after_one_byte_and_only_its_own_event_tells_that_it_can_go_on()
 {
    for blocked in [&[Call::Read][..], &[Call::Write], &[Call::Read, Call::Write]] {
        for side in [Some(Side::Client), Some(Side::Backend), None] {
            let plan = move |moment: Moment| match blocked.contains(&moment.call)
                && side.is_none_or(|s| s == moment.side)
            {
                true if moment.nth % 2 == 0 => Fault::Block,
                true => Fault::AtMost(1),
                false => Fault::Nothing,
            };
            assert_nothing_changes(Rig::new(Server::builder(), 2, Lab::new(plan)), &talks(1_500));
        }
    }
}

#[test]
fn c6_1_so_it_does_if_all_that_may_block_does() {
    with_seeds(0..6, |seed| {
        let plan = move |moment: Moment| {
            let mut chance = chance(seed, moment);
            match moment.call {
                Call::Read | Call::Write => match chance.within(0..4) {
                    0 => Fault::Block,
                    1 => Fault::Nothing,
                    _ => Fault::AtMost(1 << chance.within(0..12)),
                },
                Call::Flush | Call::ShutdownWrite | Call::CheckConnect | Call::Accept
                    if chance.one_in(2) =>
                {
                    Fault::Block
                }
                _ => Fault::Nothing,
            }
        };
        assert_nothing_changes(
            Rig::new(Server::builder().seed(seed), 3, Lab::new(plan)),
            &talks(60_000),
        );
    });
}

#[test]
fn c6_1_so_it_does_over_unix_domain_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backend");
    // What is reached by the path is a balancer of its own, in front of a backend that answers.
    let plan = |moment: Moment| match moment.call {
        Call::Read | Call::Write if moment.nth % 3 == 0 => Fault::Block,
        Call::Read | Call::Write => Fault::AtMost(1 + moment.nth % 7),
        _ => Fault::Nothing,
    };
    let listener = UnixListener::bind(&path).unwrap();
    let inner = Rig::with(Server::builder(), 1, &Arc::new(Lab::new(plan)), listener);
    let lab = Arc::new(Lab::new(plan));
    let outer = Rig::with(Server::builder(), 0, &lab, tinylb_tests::listener());
    let backend = FaultyBackend::new(UnixBackend::new(&path), &lab);
    outer.balancer.update([("a", backend)].into());
    for talk in talks(5_000) {
        talk.hold(outer.balancer.addr).assert_complete(&talk.bytes_down());
        inner.report().1.assert_complete(&talk.bytes_up());
    }
    outer.end();
    inner.end();
}

#[test]
fn c9_1_interrupted_calls_are_made_again_and_change_nothing() {
    for times in [1, 3] {
        let plan = move |moment: Moment| match moment.call {
            // Of these, each is another stream.
            Call::Accept | Call::Dial if moment.stream % (times + 1) < times => Fault::Fail(EINTR),
            Call::Read | Call::Write | Call::Flush | Call::ShutdownWrite | Call::CheckConnect
                if moment.nth % (times + 1) < times =>
            {
                Fault::Fail(EINTR)
            }
            _ => Fault::Nothing,
        };
        let rig = Rig::new(Server::builder(), 2, Lab::new(plan));
        let lab = rig.lab.clone();
        assert_nothing_changes(rig, &talks(20_000));
        for call in [
            Call::Accept,
            Call::Dial,
            Call::CheckConnect,
            Call::Read,
            Call::Write,
            Call::Flush,
            Call::ShutdownWrite,
        ] {
            let struck = lab.faults().iter().any(|(moment, _)| moment.call == call);
            assert!(struck, "{call:?} was never interrupted");
        }
    }
}

/// Every combination of flags is met, by events of both sides and at all stages of a pair.
#[test]
fn c6_1_events_that_say_more_than_is_so_change_nothing() {
    with_seeds(0..8, |seed| {
        let plan = move |moment: Moment| {
            let mut chance = chance(seed, moment);
            match moment.call {
                Call::Translate => Fault::Say(chance.next() as Flags & 63),
                // Events that nobody waits for, and dials that take their time.
                Call::CheckConnect if moment.nth < 5 => Fault::Block,
                Call::Read | Call::Write if chance.one_in(3) => Fault::Ring,
                Call::Read | Call::Write => Fault::AtMost(1 << chance.within(0..14)),
                _ => Fault::Nothing,
            }
        };
        let rig = Rig::new(Server::builder().seed(seed), 2, Lab::new(plan));
        assert_nothing_changes(rig, &talks(30_000));
    });
}

#[test]
fn c5_4_a_dial_in_flight_outlives_every_false_alarm_about_its_client() {
    let all = READABLE | WRITABLE | READ_CLOSED | WRITE_CLOSED | ERROR | PRIORITY;
    let plan = move |moment: Moment| match (moment.side, moment.call) {
        (_, Call::Translate) => Fault::Say(all),
        (Side::Client, Call::Write) if moment.nth < 3 => Fault::Block, // the write that asks whether the client is gone
        (Side::Backend, Call::CheckConnect) if moment.nth < 20 => Fault::Block,
        _ => Fault::Nothing,
    };
    assert_nothing_changes(Rig::new(Server::builder(), 1, Lab::new(plan)), &talks(1_000));
}

/// Only Unix-domain sockets have such clients: of a TCP client that is gone, an error tells.
#[test]
fn c5_4_a_client_that_is_gone_ends_its_dial_though_the_look_at_it_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front");
    let plan = |moment: Moment| match (moment.side, moment.call) {
        (Side::Client, Call::Write) if moment.nth < 2 => Fault::Fail(EINTR),
        (Side::Backend, Call::CheckConnect) => Fault::Fail(11), // EAGAIN: for ever on its way
        _ => Fault::Nothing,
    };
    let long = Duration::from_secs(3600);
    let builder = Server::builder().connect_timeout(long).dial_limit(long);
    let rig = Rig::with(builder, 1, &Arc::new(Lab::new(plan)), UnixListener::bind(&path).unwrap());
    let client = UnixStream::connect(&path).unwrap();
    rig.balancer.wait_for("it is dialled for", |stats| stats.dialling == 1);

    drop(client);

    assert_eq!(rig.books.end_of(0).reason, EndReason::ClientFailed);
    rig.end();
}
