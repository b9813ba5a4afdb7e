//! All of it at once, by chance: whatever happens, what arrives is true, and all is accounted for.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tinylb::{BackendSet, EndReason, Server};

use crate::faulty::{Call, Fault, Flags, Lab, Moment, Side};
use crate::random::{Random, with_seeds};
use crate::rig::Rig;
use crate::talk::{Order, Talk};
use tinylb_tests::StreamEnd;

const CLIENTS: u64 = 6;
const TALKS: u64 = 5;

/// What this seed has in store for a call, the same in each run.
fn fault(seed: u64, moment: Moment) -> Fault {
    let Moment { side, call, stream, nth } = moment;
    let mut chance = Random::of(&[seed, side as u64, call as u64, stream as u64, nth as u64]);
    // ECONNRESET, EPIPE, ETIMEDOUT, EIO; then EINTR, EMFILE, ENOBUFS, EADDRNOTAVAIL, ENOSPC
    let fatal = chance.pick(&[104, 32, 110, 5]);
    let local = chance.pick(&[4, 4, 24, 105, 99, 28]);
    match call {
        Call::Translate if chance.one_in(3) => Fault::Say(chance.next() as Flags & 63),
        Call::Translate => Fault::Nothing,
        Call::Accept | Call::Dial | Call::Register => match chance.within(0..24) {
            0 => Fault::Fail(fatal),
            1 => Fault::Fail(local),
            2 if call == Call::Accept => Fault::Block,
            _ => Fault::Nothing,
        },
        Call::TakeError | Call::Deregister if chance.one_in(40) => Fault::Fail(fatal),
        Call::TakeError | Call::Deregister => Fault::Nothing,
        _ => match chance.within(0..100) {
            0 if chance.one_in(3) => Fault::Fail(fatal),
            0..10 => Fault::Fail(4),
            10..25 => Fault::Block,
            25..30 => Fault::Ring,
            30..60 => Fault::AtMost(1 << chance.within(0..14)),
            _ => Fault::Nothing,
        },
    }
}

fn talk(seed: u64, number: u64) -> Talk {
    let mut chance = Random::of(&[seed, number]);
    let len = |chance: &mut Random| match chance.within(0..4) {
        0 => chance.within(0..10),
        1 => chance.within(0..300_000),
        _ => chance.within(0..5_000),
    };
    let (up, down) = (len(&mut chance), len(&mut chance));
    let mut talk = Talk::new(number, up, down, chance.pick(&Order::ALL));
    talk.reset = match chance.within(0..6) {
        0 => Some((Side::Client, chance.within(0..up + 1))),
        1 => Some((Side::Backend, chance.within(0..down + 1))),
        _ => None,
    };
    talk
}

/// Changes the set a few times while the clients are at it.
fn change_sets(rig: &Rig, chance: &mut Random) {
    for _ in 0..8 {
        let mut set: BackendSet = rig.set();
        set.retain(|_| !chance.one_in(3));
        let update = match chance.one_in(3) {
            true => {
                rig.balancer.control.update_draining(set, Duration::from_millis(chance.next() % 50))
            }
            false => rig.balancer.control.update(set),
        };
        update
            .unwrap()
            .wait_timeout(tinylb_tests::PATIENCE)
            .unwrap()
            .expect("the update is not applied");
        rig.assert_adds_up();
        thread::sleep(Duration::from_millis(chance.next() % 8));
    }
    rig.balancer.update(rig.set());
}

#[test]
fn c6_1_whatever_goes_wrong_what_arrives_is_true_and_each_client_is_accounted_for() {
    with_seeds(0..24, |seed| {
        let mut chance = Random::of(&[seed]);
        let lab = Arc::new(Lab::new(move |moment| fault(seed, moment)));
        let builder = Server::builder()
            .seed(seed)
            .max_connections(chance.within(2..12))
            .buffer_size(chance.pick(&[1, 100, 16 * 1024, 256 * 1024]));
        let rig = Rig::with(builder, 3, &lab, tinylb_tests::listener());
        let addr = rig.balancer.addr;
        let whole = thread::scope(|scope| {
            let client = |client| {
                move || {
                    let talks =
                        (client * TALKS..(client + 1) * TALKS).map(|number| talk(seed, number));
                    talks
                        .filter(|talk| {
                            let received = talk.hold(addr);
                            received.assert_honest(&talk.bytes_down());
                            received.end == StreamEnd::Clean
                        })
                        .count()
                }
            };
            let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(client(number))).collect();
            change_sets(&rig, &mut chance);
            clients.into_iter().map(|client| client.join().unwrap() as u64).sum::<u64>()
        });
        for (talk, received) in rig.reports_so_far() {
            if let Some(talk) = talk {
                received.assert_honest(&talk.bytes_up());
            }
        }
        if chance.one_in(2) {
            rig.balancer.control.drain(Duration::from_millis(chance.next() % 20)).unwrap();
            rig.end_by_itself();
        } else {
            rig.wait_for_ends((CLIENTS * TALKS) as usize);
            let finished = rig.balancer.stats().ended.of(EndReason::Finished);
            assert!(
                finished <= whole || cfg!(not(feature = "socket2")),
                "{finished} finished, and {whole} saw that"
            );
            rig.end();
        }
    });
}
