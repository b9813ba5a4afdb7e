//! Sockets that die at an awkward moment: accepted and not yet registered, dialled and not yet registered, connected
//! and not yet read from. Here nothing is made up: the peer goes away right before the call.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tinylb::{BackendSet, EndReason, Server, TcpBackend};

use crate::faulty::{Call, Fault, FaultyBackend, Lab, Moment, Side};
use crate::rig::Rig;
use crate::talk::{Order, Talk};
use tinylb_tests::{StreamEnd, connect, impatient, read_to_end, reset};

/// How a peer goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Reset,
    Close,
}

/// Has the first stream's peer do this right before its first such call.
fn lab_in_which(side: Side, call: Call, act: impl Fn() + Send + Sync + 'static) -> Lab {
    Lab::new(move |moment: Moment| {
        if (moment.side, moment.call, moment.stream, moment.nth) == (side, call, 0, 0) {
            act();
        }
        Fault::Nothing
    })
}

#[test]
fn c6_4_a_client_may_be_gone_before_any_call_of_its_pair() {
    let moments = [
        (Side::Client, Call::Accept),
        (Side::Client, Call::Register),
        (Side::Backend, Call::Dial),
        (Side::Backend, Call::Register),
        (Side::Client, Call::Translate),
        (Side::Backend, Call::CheckConnect),
        (Side::Client, Call::Read),
        (Side::Backend, Call::Write),
    ];
    for (side, call) in moments {
        for death in [Death::Reset, Death::Close] {
            for is_plain in [false, true] {
                client_dies(side, call, death, is_plain);
            }
        }
    }
}

/// The client sends all that it has to and expects no answer, so that to close is to have finished.
fn client_dies(side: Side, call: Call, death: Death, is_plain: bool) {
    println!("{death:?} before {call:?} of {side:?}, {is_plain}"); // shown if it fails
    let client = Arc::new(Mutex::new(None::<TcpStream>));
    let lab = lab_in_which(side, call, {
        let client = client.clone();
        move || {
            let client = client.lock().unwrap().take().expect("it is there before it is accepted");
            if death == Death::Reset {
                reset(client);
            }
        }
    });
    let rig = Rig::new(Server::builder(), 1, if is_plain { lab.of_plain_sockets() } else { lab });
    let talk = Talk::new(7, 3_000, 0, Order::ClientFirst);
    {
        // It has sent all before the balancer can do anything to it.
        let mut held = client.lock().unwrap();
        *held = Some(talk.say(rig.balancer.addr));
    }

    let end = rig.books.end_of(0);

    match death {
        Death::Close => {
            assert_eq!(end.reason, EndReason::Finished);
            rig.reports(1)[&talk.seed].1.assert_complete(&talk.bytes_up());
        }
        Death::Reset => {
            assert_eq!(end.reason, EndReason::ClientFailed);
            if end.was_connected {
                let (_, received) = rig.report();
                received.assert_honest(&talk.bytes_up());
            }
        }
    }
    assert_serves(rig, 1);
}

/// It goes on with others as if nothing had been.
#[track_caller]
fn assert_serves(rig: Rig, ended_before: usize) {
    let talk = Talk::new(8, 100, 100, Order::Together);
    talk.hold(rig.balancer.addr).assert_complete(&talk.bytes_down());
    rig.wait_for_ends(ended_before + 1);
    rig.end();
}

/// A backend whose first connection is answered before this call by an unasked-for message, if any, and its end.
struct Mortal {
    rig: Rig,
    talk: Talk,
}

const LAST_WORDS: &[u8] = b"gone fishing";

impl Mortal {
    fn new(side: Side, call: Call, death: Death, is_plain: bool) -> Self {
        println!("{death:?} before {call:?} of {side:?}, {is_plain}"); // shown if it fails
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = Mutex::new(Some(listener));
        let lab = lab_in_which(side, call, move || {
            let listener = listener.lock().unwrap().take().unwrap(); // nobody is answered after this one
            let (mut peer, _) = listener.accept().unwrap();
            impatient(&peer);
            match death {
                Death::Reset => reset(peer),
                Death::Close => peer.write_all(LAST_WORDS).unwrap(),
            }
        });
        let rig =
            Rig::new(Server::builder(), 1, if is_plain { lab.of_plain_sockets() } else { lab });
        rig.balancer.update(Self::set(&rig, addr));
        Self { rig, talk: Talk::new(7, 3_000, 3_000, Order::Together) }
    }

    /// It comes first, and the one that answers after it.
    fn set(rig: &Rig, addr: SocketAddr) -> BackendSet {
        let mut set = rig.set();
        set.insert("0", FaultyBackend::new(TcpBackend::new(addr), &rig.lab));
        set
    }
}

#[test]
fn c5_3_a_backend_that_resets_before_it_counts_as_connected_is_failed_over() {
    for call in [Call::Register, Call::CheckConnect] {
        for is_plain in [false, true] {
            let Mortal { rig, talk } = Mortal::new(Side::Backend, call, Death::Reset, is_plain);

            talk.hold(rig.balancer.addr).assert_complete(&talk.bytes_down());

            rig.reports(1)[&talk.seed].1.assert_complete(&talk.bytes_up());
            let end = rig.books.end_of(0);
            assert_eq!((end.reason, rig.books.lock().failed.len()), (EndReason::Finished, 1));
            assert_serves(rig, 1);
        }
    }
}

#[test]
fn c3_10_a_backend_that_resets_once_it_counts_as_connected_is_a_reset_for_its_client() {
    for (side, call) in
        [(Side::Client, Call::Read), (Side::Backend, Call::Write), (Side::Backend, Call::Read)]
    {
        // A plain socket is not asked to read before an event tells of something.
        let is_read = (side, call) == (Side::Backend, Call::Read);
        for is_plain in [false, !is_read] {
            let Mortal { rig, talk } = Mortal::new(side, call, Death::Reset, is_plain);

            let received = talk.hold(rig.balancer.addr);

            assert_eq!(rig.books.end_of(0).reason, EndReason::BackendFailed);
            assert!(received.bytes.is_empty());
            assert!(received.end == StreamEnd::Reset || cfg!(not(feature = "socket2")));
            assert_serves(rig, 1);
        }
    }
}

/// No event but the first tells of any of it.
#[test]
fn c6_1_what_a_backend_says_and_its_end_reach_the_client_though_they_came_before_it_was_looked_at()
{
    let moments = [
        (Side::Backend, Call::Register),
        (Side::Backend, Call::Translate),
        (Side::Backend, Call::CheckConnect),
    ];
    for (side, call) in moments {
        for is_plain in [false, true] {
            let Mortal { rig, .. } = Mortal::new(side, call, Death::Close, is_plain);
            let mut client = connect(rig.balancer.addr);

            assert_eq!(read_to_end(&mut client), (LAST_WORDS.to_vec(), StreamEnd::Clean));

            // Its direction is over, and the other is once the client says so.
            drop(client);
            assert_eq!(rig.books.end_of(0).reason, EndReason::Finished);
            assert_serves(rig, 1);
        }
    }
}
