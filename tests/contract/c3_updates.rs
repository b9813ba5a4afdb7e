//! Updates, and how they close what they remove. Which pairs those are, the simulated world
//! decides.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tinylb::{
    Applied, Backend, BackendSet, Dial, DialRequest, EndReason, Observer, Server, TcpBackend,
    Update,
};
use tinylb_tests::*;

fn totals(applied: Applied) -> [usize; 4] {
    [applied.closed, applied.cancelled, applied.draining, applied.backends]
}

/// Ends a stream, and sees that the end arrives.
#[track_caller]
fn end(from: &mut TcpStream, to: &mut TcpStream) {
    from.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(to), (Vec::new(), StreamEnd::Clean));
}

/// A peer that is gone takes nothing more.
#[track_caller]
fn assert_writes_fail(stream: &mut TcpStream) {
    wait_for("a write that fails", || stream.write_all(b"?").err());
}

/// Holds the loop from the second update on, until something is sent.
fn held_from_the_second_update() -> (impl Observer, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (entered, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let mut updates = 0;
    let observer = OnMoment(move |moment| {
        updates += usize::from(moment == Moment::Updated);
        if moment == Moment::Updated && updates == 2 {
            entered.send(()).unwrap();
            let _ = released.recv_timeout(PATIENCE);
        }
    });
    (observer, is_held, release)
}

#[test]
fn c3_1_c3_5_updates_do_not_wait_for_the_loop_and_can_be_waited_for_in_every_way() {
    let (observer, is_held, release) = held_from_the_second_update();
    let one = ManualBackend::new();
    let backends = set([("a", one.addr)]);
    let balancer = Balancer::with(Server::builder().observer(observer), backends.clone());
    let _pair = one.pair(&balancer);
    balancer.control.update(backends).unwrap();
    is_held.recv_timeout(PATIENCE).unwrap();
    let control = balancer.control.clone();
    let update: Update = in_time("a hundred updates", move || {
        (0..100).map(|_| control.update(BackendSet::new()).unwrap()).next_back().unwrap()
    });

    let start = Instant::now();
    assert_eq!(update.try_wait().unwrap(), None);
    assert_eq!(update.wait_timeout(SHORT).unwrap(), None);
    assert!(start.elapsed() >= SHORT);
    let waiting = [(); 2].map(|()| {
        let update = update.clone();
        std::thread::spawn(move || update.wait())
    });
    release.send(()).unwrap();

    let applied = update.wait().unwrap();
    assert_eq!(totals(applied), [1, 0, 0, 0]);
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap().unwrap(), applied);
    }
    // The answer stays.
    assert_eq!(update.try_wait().unwrap(), Some(applied));
    assert_eq!(update.clone().wait_timeout(Duration::ZERO).unwrap(), Some(applied));
    assert_eq!(update.wait_timeout(Duration::MAX).unwrap(), Some(applied));
}

/// Each state of a pair is brought about, and then its target is removed.
#[test]
fn c3_2_removal_closes_both_sides_of_a_pair_in_any_state() {
    type BringAbout = fn((&mut TcpStream, &mut TcpStream));
    let states: [(&str, BringAbout); 5] = [
        ("relaying", |(client, server)| pass(client, server, b"hello")),
        ("its client has ended", |(client, server)| end(client, server)),
        ("its backend has ended", |(client, server)| end(server, client)),
        ("its client never reads", |(_, server)| drop(fill_until_blocked(server))),
        ("its backend never reads", |(client, _)| drop(fill_until_blocked(client))),
    ];
    for (name, bring_about) in states {
        println!("{name}"); // shown if it fails
        let (gone, stays) = (ManualBackend::new(), ManualBackend::new());
        let balancer = Balancer::start(set([("a", gone.addr), ("b", stays.addr)]));
        let (mut client, mut server) = gone.pair(&balancer);
        let (mut other_client, mut other_server) = stays.pair(&balancer);
        bring_about((&mut client, &mut server));

        let applied = balancer.update(set([("b", stays.addr)]));

        assert_eq!(totals(applied), [1, 0, 0, 1]);
        assert_eq!(balancer.stats().ended.of(EndReason::TargetRemoved), 1);
        if name == "its backend has ended" {
            assert_writes_fail(&mut client);
        } else {
            assert_aborted(&mut client);
        }
        if name == "its client has ended" {
            assert_writes_fail(&mut server);
        } else {
            assert_aborted(&mut server);
        }
        pass(&mut other_client, &mut other_server, b"still here");
        pass(&mut other_server, &mut other_client, b"so am I");
    }
}

#[test]
fn c3_2_the_client_of_a_cancelled_dial_goes_on_with_all_that_it_had_sent_or_is_refused() {
    let (hole, one) = (BlackHole::new(), TestBackend::echo("one"));
    let balancer = Balancer::start(set([("a", hole.addr)]));
    let mut client = balancer.dialling_client();
    client.write_all(b"said before").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // The key is the one already tried; the target is not.
    assert_eq!(totals(balancer.update(set([("a", one.addr)]))), [0, 1, 0, 1]);
    assert_eq!(read_to_end(&mut client), (b"one\nsaid before".to_vec(), StreamEnd::Clean));

    balancer.update(set([("a", hole.addr)]));
    let mut client = balancer.dialling_client();
    assert_eq!(totals(balancer.update(BackendSet::new())), [0, 1, 0, 0]);
    assert_aborted(&mut client);
    let stats = balancer.stats();
    assert_eq!((stats.refused.of(EndReason::NoBackend), stats.departed.dial_failures), (1, 0));
}

/// A backend whose target name is not the address that is dialled.
struct Named(String, SocketAddr);

impl Backend for Named {
    fn target_name(&self) -> String {
        self.0.clone()
    }
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        TcpBackend::new(self.1).dial(request)
    }
}

#[test]
fn c3_8_one_change_among_ten_thousand_backends_closes_its_own_connections_and_soon() {
    let one = TestBackend::echo("one");
    let named = |index: usize, name: String| (format!("key-{index:05}"), Named(name, one.addr));
    let backends = (0..10_000).map(|index| named(index, format!("name-{index}")));
    let mut backends: BackendSet = backends.collect();
    let balancer = Balancer::start(backends.clone());
    let mut clients: Vec<_> = (0..50).map(|_| balancer.tagged_client().0).collect();
    backends.extend([named(42, "another name".to_owned())]);
    let start = Instant::now();

    let applied = balancer.update(backends);

    let took = start.elapsed();
    assert_eq!(totals(applied), [1, 0, 0, 10_000]);
    assert!(took < Duration::from_secs(5), "it took {took:?}, which should be milliseconds");
    assert_aborted(&mut clients.remove(42));
    clients.iter_mut().for_each(|client| assert_echo(client, b"still here"));
}

#[test]
fn c3_9_a_draining_target_keeps_its_connections_until_they_finish_or_its_limit_runs_out() {
    let (old, new) = (ManualBackend::new(), TestBackend::echo("new"));
    let balancer = Balancer::start(set([("a", old.addr)]));
    let (mut finishes, mut its_server) = old.pair(&balancer);
    let (mut left, mut left_server) = old.pair(&balancer);
    let start = Instant::now();

    let applied = balancer.update_draining(set([("b", new.addr)]), 2 * SHORT);

    assert_eq!(totals(applied), [0, 0, 2, 1]);
    assert_eq!(balancer.tags(2), "newnew");
    pass(&mut finishes, &mut its_server, b"still here");
    end(&mut finishes, &mut its_server);
    end(&mut its_server, &mut finishes);
    assert_aborted(&mut left);
    assert!(start.elapsed() >= 2 * SHORT, "aborted after {:?}", start.elapsed());
    assert_aborted(&mut left_server);
    assert_eq!(balancer.stats().ended.of(EndReason::DrainLimit), 1);
}

/// By removal, and by a reset of either peer.
#[test]
fn c3_10_c6_4_what_was_sent_before_an_abort_arrives_and_does_not_pass_for_all() {
    const SENT: &[u8] = b"half of the ans";
    let one = ManualBackend::new();
    for aborter in [None, Some(Side::Client), Some(Side::Backend)] {
        let balancer = Balancer::start(set([("a", one.addr)]));
        let (client, server) = one.pair(&balancer);
        let is_client = aborter == Some(Side::Client);
        let (mut from, mut to) = if is_client { (client, server) } else { (server, client) };
        from.write_all(SENT).unwrap();
        let reason = match aborter {
            None => {
                balancer.wait_for("delivered", |stats| stats.bytes_down > SENT.len() as u64);
                balancer.update(BackendSet::new());
                EndReason::TargetRemoved
            }
            Some(Side::Client) => {
                reset(from);
                EndReason::ClientFailed
            }
            Some(Side::Backend) => {
                reset(from);
                EndReason::BackendFailed
            }
        };
        assert_eq!(assert_aborted(&mut to), SENT);
        balancer.wait_for("the end", |stats| stats.ended.of(reason) == 1);
    }
}

#[test]
fn c3_10_c6_4_a_reset_is_noticed_although_nothing_is_read_and_reaches_a_peer_that_does_not_read() {
    let one = ManualBackend::new();
    for is_client in [true, false] {
        let balancer = Balancer::start(set([("a", one.addr)]));
        let (client, server) = one.pair(&balancer);
        let (mut from, mut to) = if is_client { (client, server) } else { (server, client) };
        fill_until_blocked(&mut from);

        reset(from);

        let reason = if is_client { EndReason::ClientFailed } else { EndReason::BackendFailed };
        balancer.wait_for("the end", |stats| stats.ended.of(reason) == 1);
        assert_aborted(&mut to);
    }
}

#[test]
fn c3_10_refused_clients_see_a_reset() {
    let (dead, hole) = (refusing_addr(), BlackHole::new());
    for backends in [BackendSet::new(), set([("a", dead), ("b", dead)]), set([("a", hole.addr)])] {
        let server = Server::builder().dial_limit(SHORT).backends(backends).build(listener());
        let server = server.unwrap();
        // Connected before the start, or the reset might come while it still connects.
        let mut client = connect(server.local_addr().ip().unwrap());

        let _balancer = Balancer::of(server);

        assert_eq!(assert_aborted(&mut client), b"");
    }
}
