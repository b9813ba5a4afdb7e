//! Slots of pairs that have just ended are taken by others, while events of the old ones are still under way.

use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;

use socket2::SockRef;
use tinylb::{EndReason, Server, TcpBackend};

use crate::faulty::{Call, ERROR, Fault, FaultyBackend, Lab, Moment, PRIORITY, Side};
use crate::rig::Rig;
use crate::talk::{Order, Talk};
use tinylb_tests::connect;

/// So many that their sockets are closed over several turns, when others have their slots already.
const CROWD: usize = 300;
const NEWCOMERS: usize = 150;

/// What happens as the sockets of the crowd are closed.
#[derive(Default)]
struct Scene {
    /// The far ends of the crowd's backend connections.
    peers: Vec<TcpStream>,
    newcomers: Vec<TcpStream>,
}

#[test]
fn c3_2_events_of_a_crowd_that_was_removed_do_not_reach_those_who_have_its_slots_now() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let scene = Arc::<Mutex<Scene>>::default();
    let listener = roomy_listener();
    let addr = listener.local_addr().unwrap();
    let lab = Arc::new(Lab::new({
        let scene = scene.clone();
        move |moment: Moment| {
            if moment.call == Call::Deregister && moment.stream < CROWD {
                let mut scene = scene.lock().unwrap();
                if scene.newcomers.is_empty() {
                    scene.newcomers = (0..NEWCOMERS).map(|_| connect(addr)).collect();
                }
                // Urgent data, which nobody else sends, so that an event that goes astray shows.
                if moment.stream % 16 == 0 {
                    for peer in &scene.peers {
                        let _ = SockRef::from(peer).send_out_of_band(b"!");
                    }
                }
            }
            Fault::Nothing
        }
    }));
    let rig = Rig::with(Server::builder(), 1, &lab, listener);
    let old = roomy_listener();
    let old_target = TcpBackend::new(old.local_addr().unwrap());
    rig.balancer.update([("old", FaultyBackend::new(old_target, &lab))].into());
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(addr)).collect();
    let peers: Vec<TcpStream> = (0..CROWD).map(|_| old.accept().unwrap().0).collect();
    rig.balancer.wait_for("the crowd is served", |stats| stats.open == CROWD as u64);
    scene.lock().unwrap().peers = peers;

    let applied = rig.balancer.update(rig.set());

    assert_eq!(applied.closed, CROWD);
    let newcomers = std::mem::take(&mut scene.lock().unwrap().newcomers);
    for (seed, newcomer) in (0..).zip(newcomers) {
        let talk = Talk::new(seed, 200, 200, Order::ALL[seed as usize % 3]);
        talk.hold_by(newcomer).assert_complete(&talk.bytes_down());
        assert_eq!(
            lab.told(Side::Client, CROWD + seed as usize) & (PRIORITY | ERROR),
            0,
            "an event of another"
        );
        assert_eq!(
            lab.told(Side::Backend, CROWD + seed as usize) & (PRIORITY | ERROR),
            0,
            "an event of another"
        );
    }
    rig.reports(NEWCOMERS);
    rig.wait_for_ends(CROWD + NEWCOMERS);
    assert_eq!(rig.balancer.stats().ended.of(EndReason::Finished), NEWCOMERS as u64);
    drop(crowd);
    rig.end();
}

/// With room for a storm in its backlog.
fn roomy_listener() -> std::net::TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}

/// Clients and backends reset while both sides of their pairs have events in one batch, and the next client is let in
/// by the end of the last.
#[test]
fn c6_1_short_pairs_that_follow_each_other_in_few_slots_do_not_get_each_others_bytes() {
    const CLIENTS: u64 = 8;
    const TALKS: u64 = 40;
    for is_plain in [false, true] {
        let lab = Lab::new(|_| Fault::Nothing);
        let lab = if is_plain { lab.of_plain_sockets() } else { lab };
        let rig = Rig::new(Server::builder().max_connections(3), 2, lab);
        let addr = rig.balancer.addr;
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                scope.spawn(move || {
                    for seed in client * TALKS..(client + 1) * TALKS {
                        let order = Order::ALL[seed as usize % 3];
                        let mut talk = Talk::new(seed, 300, 300, order);
                        talk.reset = match seed % 5 {
                            0 => Some((Side::Client, seed as usize % 300)),
                            1 => Some((Side::Backend, seed as usize % 300)),
                            _ => None,
                        };
                        let received = talk.hold(addr);
                        match talk.reset {
                            None => received.assert_complete(&talk.bytes_down()),
                            Some(_) => received.assert_honest(&talk.bytes_down()),
                        }
                    }
                });
            }
        });
        rig.wait_for_ends((CLIENTS * TALKS) as usize);
        let stats = rig.balancer.stats();
        assert!(stats.ended.of(EndReason::Finished) >= CLIENTS * TALKS * 3 / 5, "{stats:?}");
        rig.end();
    }
}
