//! Chapter 2 of the contract: picking. The pure logic has its own tests; these see it at work over real connections.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tinylb::{BackendSet, Ejection, Server};
use tinylb_tests::*;

/// Backends whose tags are their keys.
struct Fleet(Vec<(&'static str, TestBackend)>);

impl Fleet {
    fn new(keys: &[&'static str]) -> Self {
        Self(keys.iter().map(|&key| (key, TestBackend::echo(key))).collect())
    }

    /// The set of those with these keys.
    fn set(&self, keys: &[&str]) -> BackendSet {
        set(self
            .0
            .iter()
            .filter(|(key, _)| keys.contains(key))
            .map(|(key, backend)| (*key, backend.addr)))
    }

    /// All of them, and one more.
    fn set_and(&self, key: &'static str, addr: SocketAddr) -> BackendSet {
        set(self.0.iter().map(|(key, backend)| (*key, backend.addr)).chain([(key, addr)]))
    }
}

/// Which backends the next clients go to, one after the other.
#[track_caller]
fn picks(balancer: &Balancer, count: usize) -> Vec<String> {
    (0..count).map(|_| balancer.tagged_client().1).collect()
}

const NEVER: Ejection = Ejection::new(0, Duration::from_secs(1), Duration::from_secs(1));
/// By the first failure, for longer than any test.
const AT_ONCE: Ejection = Ejection::new(1, Duration::from_secs(3600), Duration::from_secs(3600));

#[test]
fn c2_1_clients_go_round_in_key_order_whatever_the_order_of_insertion() {
    let fleet = Fleet::new(&["c", "a", "b"]);
    let balancer = Balancer::start(fleet.set(&["a", "b", "c"]));

    assert_eq!(picks(&balancer, 7), ["a", "b", "c", "a", "b", "c", "a"]);
}

#[test]
fn c2_1_the_cursor_is_the_last_key_served_whatever_becomes_of_it() {
    let fleet = Fleet::new(&["a", "b", "bb", "c", "d"]);
    let balancer = Balancer::start(fleet.set(&["a", "b", "c", "d"]));
    assert_eq!(picks(&balancer, 2), ["a", "b"]);

    // What is in force now, and who is next by it.
    let story: &[(&[&str], &str)] = &[
        (&["a", "c", "d"], "c"),            // the key served last has left
        (&["a", "bb", "c", "d"], "d"),      // one came before it
        (&["a", "bb"], "a"),                // all from there on have left
        (&["a", "b", "bb", "c", "d"], "b"), // one came right after it
        (&["d"], "d"),
        (&["c", "d"], "c"),
    ];
    for (keys, next) in story {
        balancer.update(fleet.set(keys));
        assert_eq!(picks(&balancer, 1), [*next], "of {keys:?}");
    }
}

#[test]
fn c2_1_a_flapping_backend_starves_nobody() {
    let fleet = Fleet::new(&["a", "b", "bb", "c"]);
    let (with, without) = (fleet.set(&["a", "b", "bb", "c"]), fleet.set(&["a", "b", "c"]));
    let balancer = Balancer::start(with.clone());
    let mut served = Vec::new();

    for round in 0..60 {
        // It comes and goes in another rhythm than that of the cycle, so at every place of the cursor.
        balancer.update(if round % 4 < 2 { without.clone() } else { with.clone() });
        served.extend(picks(&balancer, 1));
    }

    let steady: Vec<&str> = served.iter().map(String::as_str).filter(|tag| *tag != "bb").collect();
    assert!(steady.len() < served.len(), "it was never picked itself");
    assert!(
        steady.iter().zip(["a", "b", "c"].iter().cycle()).all(|(tag, due)| tag == due),
        "{served:?}"
    );
}

#[test]
fn c2_1_failover_moves_the_cursor_so_that_no_neighbour_bears_a_failing_backends_share() {
    let fleet = Fleet::new(&["a", "c", "d"]);
    let backends = fleet.set_and("b", refusing_addr());
    let balancer = Balancer::with(Server::builder().ejection(NEVER), backends);

    // Without it, `c` would be served twice in a row.
    assert_eq!(picks(&balancer, 6), ["a", "c", "d", "a", "c", "d"]);
    assert_eq!(balancer.stats().backend("b").unwrap().usage.dial_failures, 2);
}

#[test]
fn c2_1_a_cancelled_dial_goes_on_after_the_target_that_vanished() {
    let (fleet, hole) = (Fleet::new(&["a", "c", "d"]), BlackHole::new());
    let backends = fleet.set_and("b", hole.addr);
    let balancer = Balancer::start(backends);
    assert_eq!(picks(&balancer, 1), ["a"]);
    let mut waiting = balancer.client();
    balancer.wait_for("a dial in flight", |stats| stats.dialling == 1);

    balancer.update(fleet.set(&["a", "c", "d"]));

    assert_eq!(read_tag(&mut waiting), "c");
    assert_eq!(picks(&balancer, 2), ["d", "a"]);
}

#[test]
fn c2_2_the_first_pick_is_the_first_key_of_the_set_then_in_force() {
    let fleet = Fleet::new(&["a", "b", "c"]);
    let balancer = Balancer::start(fleet.set(&["b", "c"]));

    balancer.update(fleet.set(&["a", "b", "c"]));

    assert_eq!(picks(&balancer, 2), ["a", "b"]);
}

#[test]
fn c2_2_a_random_first_pick_spreads_a_fleet_and_the_rotation_goes_on_from_there() {
    let fleet = Fleet::new(&["a", "b", "c"]);
    let mut firsts = Vec::new();
    for seed in 0..24 {
        let builder = Server::builder().random_first_pick(true).seed(seed);
        let balancer = Balancer::with(builder, fleet.set(&["a", "b", "c"]));
        let served = picks(&balancer, 4).concat();
        assert!(["abca", "bcab", "cabc"].contains(&served.as_str()), "{served}");
        firsts.push(served.chars().next());
    }
    assert!("abc".chars().all(|key| firsts.contains(&Some(key))), "{firsts:?}");
}

#[test]
fn c2_3_an_ejected_backend_is_passed_over_while_another_is_left() {
    let fleet = Fleet::new(&["a", "c"]);
    let backends = fleet.set_and("b", refusing_addr());
    let balancer = Balancer::with(Server::builder().ejection(AT_ONCE), backends);

    assert_eq!(picks(&balancer, 6), ["a", "c", "a", "c", "a", "c"]);

    let stats = balancer.stats();
    let b = stats.backend("b").unwrap();
    assert_eq!((b.usage.dial_failures, b.ejected), (1, true));
}

#[test]
fn c2_3_an_ejected_backend_is_tried_when_the_others_have_failed_and_success_clears_it() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let down = socket.local_addr().unwrap().as_socket().unwrap();
    let (one, dead) = (TestBackend::echo("one"), refusing_addr());
    let balancer = Balancer::with(
        Server::builder().ejection(AT_ONCE),
        set([("a", down), ("b", one.addr), ("c", dead)]),
    );
    // The first client finds `a` down; the second goes to `c`, which is down too, and on to `b` again.
    assert_eq!(picks(&balancer, 2), ["one", "one"]);
    balancer.update(set([("a", down), ("b", refusing_addr()), ("c", dead)]));

    socket.listen(16).unwrap();
    let backend = TcpListener::from(socket);
    let mut client = balancer.client();
    backend.set_nonblocking(true).unwrap();
    let (mut server, _) = wait_for("the ejected one to be tried", || backend.accept().ok());
    server.write_all(b"back\n").unwrap();

    assert_eq!(read_tag(&mut client), "back");
    let stats = balancer.stats();
    let ejected: Vec<bool> = stats.backends.iter().map(|backend| backend.ejected).collect();
    assert_eq!(ejected, [false, true, true]);
}
