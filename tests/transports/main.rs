//! C1.2: other transports than TCP, on either side, through the public traits alone: Unix-domain
//! sockets, TLS by rustls, and one inside a process. What is promised of all of them is tried in
//! each combination.

#![cfg(unix)]

mod in_process;
mod kind;
mod tls;
mod unix;

use std::io::Write;
use std::thread;

use tinylb::{BackendSet, EndReason, Server};
use tinylb_tests::*;

use kind::{Back, Front, Kind, pair};

/// Every kind of client with every kind of backend.
fn combinations() -> impl Iterator<Item = (Kind, Kind)> {
    Kind::ALL.into_iter().flat_map(|front| Kind::ALL.map(|back| (front, back)))
}

/// The peer is aborted, and sees that where its kind can.
#[track_caller]
fn assert_seen_aborted(kind: Kind, mut peer: Box<dyn Peer>) {
    let end = read_to_end(&mut peer).1;
    assert!(end == StreamEnd::Reset || !kind.sees_aborts(), "{kind:?} ended as if in order");
}

#[test]
fn c6_1_c6_2_bytes_and_ends_go_both_ways_whichever_side_ends_first() {
    for (front, back) in combinations() {
        for order in Order::ALL {
            if order == Order::Together && (front == Kind::Tls || back == Kind::Tls) {
                continue; // such a peer cannot read and write at once
            }
            println!("{front:?} {back:?} {order:?}"); // shown if it fails
            let talk = Talk::new(7, 400_000, 300_001, order);
            let (front, back) = (front, Back::new(back));
            let front = Front::start(front, Server::builder(), back.set.clone());
            let client = front.connect();
            let client = thread::spawn(move || talk.hold(client));

            let (_, received) = Talk::answer(back.accept()).unwrap();

            talk.assert_came_up(&received);
            talk.assert_came_down(&client.join().unwrap());
            let finished = EndReason::Finished;
            front.balancer.wait_for("the end", |stats| stats.ended.of(finished) == 1);
        }
    }
}

#[test]
fn c3_2_removal_closes_both_sides_even_if_nobody_reads() {
    for (front, back) in combinations() {
        println!("{front:?} {back:?}"); // shown if it fails
        let (balancer, mut client, server) = pair(front, back);
        let writer = thread::spawn(move || while client.write_all(&[0; 64 * 1024]).is_ok() {});
        balancer.wait_for("traffic", |stats| stats.bytes_up > 1_000);

        assert_eq!(balancer.update(BackendSet::new()).closed, 1);

        in_time("the writer sees it", || writer.join().unwrap());
        assert_seen_aborted(back, server);
    }
}

#[test]
fn c3_10_an_abort_of_one_side_is_an_abort_of_the_other() {
    for (front, back) in combinations() {
        for by_client in [true, false] {
            let (from, to) = if by_client { (front, back) } else { (back, front) };
            if !from.sees_aborts() {
                continue; // nor can it abort
            }
            println!("{front:?} {back:?} {by_client}"); // shown if it fails
            let (balancer, client, server) = pair(front, back);
            let (leaving, left) = if by_client { (client, server) } else { (server, client) };

            leaving.leave();

            assert_seen_aborted(to, left);
            let reason = if by_client { EndReason::ClientFailed } else { EndReason::BackendFailed };
            balancer.wait_for("the end", |stats| stats.ended.of(reason) == 1);
        }
    }
}

#[test]
fn c5_4_a_client_that_is_gone_ends_its_dial_and_one_that_has_ended_its_stream_does_not() {
    let (hole, good) = (BlackHole::new(), TestBackend::echo("good"));
    for kind in Kind::ALL {
        let front = Front::start(kind, Server::builder(), set([("a", hole.addr)]));
        let (gone, mut ends) = (front.connect(), front.connect());
        front.balancer.wait_for("the dials", |stats| stats.dialling == 2);
        if kind != Kind::Tls {
            ends.end().unwrap(); // over TLS it would have to shake hands first
        }

        gone.leave();

        let stats = front.balancer.wait_for("the end", |stats| stats.dialling == 1);
        assert_eq!(stats.refused.of(EndReason::ClientFailed), 1, "{kind:?}");
        assert_eq!(front.balancer.update(set([("b", good.addr)])).cancelled, 1);
        assert_eq!(read_tag(&mut ends), "good");
    }
}
