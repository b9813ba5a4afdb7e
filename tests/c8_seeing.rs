//! Chapter 8 of the contract: seeing. Its third clause, the log, has a program of its own.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tinylb::{
    Applied, AttemptFailed, BackendSet, BackendStats, Client, Connected, Ejection, EndReason,
    Ended, Observer, Server, Stats, Usage,
};
use tinylb_tests::*;

/// The counters, once all sums are seen to be right.
#[track_caller]
fn checked(stats: Stats) -> Stats {
    let sum = |of: fn(&Usage) -> u64| {
        stats.backends.iter().map(|backend| of(&backend.usage)).sum::<u64>() + of(&stats.departed)
    };
    assert_eq!(
        stats.accepted,
        stats.refused.total() + stats.ended.total() + stats.dialling + stats.open,
        "{stats:?}"
    );
    assert_eq!(stats.open, sum(|usage| usage.open), "{stats:?}");
    assert_eq!(stats.open + stats.ended.total(), sum(|usage| usage.total), "{stats:?}");
    assert_eq!(
        (stats.bytes_up, stats.bytes_down),
        (sum(|usage| usage.bytes_up), sum(|usage| usage.bytes_down))
    );
    stats
}

#[track_caller]
fn usage(stats: &Stats, key: &str) -> Usage {
    stats.backend(key).unwrap().usage
}

/// `open`, `total`, `bytes_up` and `bytes_down`.
fn counts(usage: Usage) -> (u64, u64, u64, u64) {
    (usage.open, usage.total, usage.bytes_up, usage.bytes_down)
}

#[test]
fn c8_1_counters_add_up_in_every_situation() {
    let (one, two, hole) = (TestBackend::echo("one"), TestBackend::echo("two"), BlackHole::new());
    let balancer = Balancer::start(BackendSet::new());
    assert_refused(balancer.addr);
    let stats = checked(balancer.wait_for("a refusal", |stats| stats.refused.total() == 1));
    assert_eq!((stats.accepted, stats.refused.of(EndReason::NoBackend)), (1, 1));

    // Connected, and counted while bytes flow.
    balancer.update(set([("a", one.addr), ("b", two.addr)]));
    let (mut of_a, mut of_b) = (balancer.tagged_client().0, balancer.tagged_client().0);
    assert_echo(&mut of_a, &[0; 1000]);
    assert_echo(&mut of_b, &[0; 50]);
    let stats = checked(balancer.stats());
    assert_eq!((stats.open, stats.dialling, stats.bytes_up, stats.bytes_down), (2, 0, 1050, 1058));
    assert_eq!(counts(usage(&stats, "a")), (1, 1, 1000, 1004));
    assert_eq!(counts(usage(&stats, "b")), (1, 1, 50, 54));
    let names: Vec<_> = stats
        .backends
        .iter()
        .map(|BackendStats { key, target_name, .. }| (&**key, &**target_name))
        .collect();
    assert_eq!(names, [("a", &*one.addr.to_string()), ("b", &*two.addr.to_string())]);

    // A key that leaves while another keeps its target: its pair stays, and stays with the key it was picked by.
    balancer.update(set([("b", two.addr), ("c", one.addr)]));
    assert_echo(&mut of_a, &[0; 100]);
    let stats = checked(balancer.stats());
    assert_eq!(counts(stats.departed), (1, 1, 1100, 1104));
    assert_eq!(counts(usage(&stats, "c")), (0, 0, 0, 0));

    // A key that comes back begins at zero, and its earlier pairs stay apart.
    balancer.update(set([("a", one.addr), ("b", two.addr)]));
    assert_echo(&mut of_a, &[0; 1]);
    let stats = checked(balancer.stats());
    assert_eq!(counts(stats.departed), (1, 1, 1101, 1105));
    assert_eq!(counts(usage(&stats, "a")), (0, 0, 0, 0));

    // Ends: in order, by a removal, by a reset.
    drop(of_b);
    checked(balancer.wait_for("an orderly end", |stats| stats.ended.of(EndReason::Finished) == 1));
    balancer.update(set([("b", two.addr)]));
    let stats = checked(balancer.stats());
    assert_eq!((stats.open, stats.ended.of(EndReason::TargetRemoved)), (0, 1));
    assert_eq!(counts(stats.departed), (0, 1, 1101, 1105));
    reset(balancer.tagged_client().0);
    let stats =
        checked(balancer.wait_for("a reset", |stats| stats.ended.of(EndReason::ClientFailed) == 1));
    assert_eq!(counts(usage(&stats, "b")), (0, 2, 50, 58));

    // A dial in flight, and its cancellation.
    balancer.update(set([("z", hole.addr)]));
    let mut dialling = balancer.client();
    let stats = checked(balancer.wait_for("a dial", |stats| stats.dialling == 1));
    assert_eq!((stats.accepted, stats.open), (5, 0));
    assert_eq!(balancer.update(BackendSet::new()).cancelled, 1);
    assert_cut(&mut dialling);
    let stats = checked(balancer.wait_for("the refusal", |stats| stats.dialling == 0));
    assert_eq!(
        (stats.refused.of(EndReason::NoBackend), stats.refused.total(), stats.ended.total()),
        (2, 2, 3)
    );
    assert_eq!(counts(stats.departed), (0, 3, 1151, 1163));
    assert_eq!((stats.bytes_up, stats.bytes_down), (1151, 1163));
}

#[test]
fn c8_1_a_key_with_a_new_target_keeps_its_counters() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::start(set([("a", one.addr)]));
    balancer.tagged_client();
    balancer.update(set([("a", two.addr)]));
    balancer.tagged_client();
    let stats = checked(balancer.stats());
    assert_eq!(*stats.backends[0].target_name, *two.addr.to_string());
    assert_eq!((usage(&stats, "a").total, usage(&stats, "a").bytes_down), (2, 8));
    assert_eq!(stats.departed, Usage::default());
}

#[test]
fn c8_1_failed_dials_and_ejections_are_seen() {
    let (refusing, echo) = (refusing_addr(), TestBackend::echo("echo"));
    let ejection = Ejection::new(2, Duration::from_secs(3600), Duration::from_secs(3600));
    let balancer = Balancer::with(
        Server::builder().ejection(ejection),
        set([("a", refusing), ("b", echo.addr)]),
    );
    let seen = || {
        let stats = checked(balancer.stats());
        let of = |key| (usage(&stats, key).dial_failures, stats.backend(key).unwrap().ejected);
        (of("a"), of("b"))
    };
    balancer.tagged_client();
    assert_eq!(seen(), ((1, false), (0, false)));
    balancer.tagged_client();
    assert_eq!(seen(), ((2, true), (0, false)));
    balancer.update(set([("b", echo.addr)]));
    assert_eq!(balancer.stats().departed.dial_failures, 2);
}

#[test]
fn c8_1_clients_no_backend_takes_are_refused_and_counted() {
    let balancer = Balancer::start(set([("a", refusing_addr()), ("b", refusing_addr())]));
    assert_refused(balancer.addr);
    let stats = checked(
        balancer.wait_for("a refusal", |stats| stats.refused.of(EndReason::BackendsFailed) == 1),
    );
    assert_eq!((usage(&stats, "a").dial_failures, usage(&stats, "b").dial_failures), (1, 1));
    assert_eq!((stats.open, stats.ended.total()), (0, 0));
}

#[test]
fn c8_1_snapshots_taken_under_load_are_consistent_and_never_go_back() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::start(set([("a", one.addr), ("b", two.addr)]));
    let addr = balancer.addr;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                for _ in 0..40 {
                    let mut client = connect(addr);
                    read_tag(&mut client);
                    assert_echo(&mut client, &[7; 3000]);
                }
            })
        })
        .collect();
    let mut before = balancer.stats();
    while !clients.iter().all(|client| client.is_finished()) {
        let stats = checked(balancer.stats());
        assert!(stats.accepted >= before.accepted && stats.ended.total() >= before.ended.total());
        assert!(stats.bytes_up >= before.bytes_up && stats.bytes_down >= before.bytes_down);
        before = stats;
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    let stats =
        checked(balancer.wait_for("all ended", |stats| stats.ended.of(EndReason::Finished) == 160));
    assert_eq!((stats.bytes_up, stats.bytes_down), (160 * 3000, 160 * 3004));
}

/// What an observer was told, put down in words; addresses are checked on the way.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    events: Vec<String>,
    clients: Vec<SocketAddr>,
    /// From accept to connect, and from accept to end.
    durations: Vec<Duration>,
}

impl Record {
    fn note(&self, event: String) {
        self.0.lock().unwrap().events.push(event);
    }

    /// The id, for a client that is known by this address.
    fn id(&self, client: &Client<'_>) -> u64 {
        let known = self.0.lock().unwrap().clients[client.id as usize];
        assert_eq!(client.addr.ip(), Some(known));
        client.id
    }

    #[track_caller]
    fn assert_ends_with(&self, expected: &[&str]) {
        wait_for(&format!("{expected:?}"), || {
            (self.0.lock().unwrap().events.len() >= expected.len()).then_some(())
        });
        assert_eq!(std::mem::take(&mut self.0.lock().unwrap().events), expected);
    }
}

impl Observer for Record {
    fn accepted(&mut self, client: &Client<'_>) {
        let mut recorded = self.0.lock().unwrap();
        assert_eq!(client.id, recorded.clients.len() as u64);
        recorded.clients.push(client.addr.ip().unwrap());
        recorded.events.push(format!("{} accepted", client.id));
    }

    fn connected(&mut self, connected: &Connected<'_>) {
        let Connected { client, key, target_name, took, .. } = connected;
        self.0.lock().unwrap().durations.push(*took);
        self.note(format!("{} connected {key}={target_name}", self.id(client)));
    }

    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        let AttemptFailed { client, key, target_name, attempt, error, .. } = failed;
        self.note(format!(
            "{} failed {key}={target_name} #{attempt} {:?}",
            self.id(client),
            error.kind()
        ));
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let Ended { client, backend, lasted, bytes_up, bytes_down, reason, error, .. } = ended;
        self.0.lock().unwrap().durations.push(*lasted);
        let backend = backend
            .map(|backend| format!(" {}={}", backend.key, backend.target_name))
            .unwrap_or_default();
        let error = error.map(|error| format!(", {:?}", error.kind())).unwrap_or_default();
        self.note(format!(
            "{} ended{backend} {bytes_up}/{bytes_down} {reason:?}{error}",
            self.id(client)
        ));
    }

    fn updated(&mut self, applied: &Applied) {
        let Applied { closed, cancelled, draining, backends, .. } = applied;
        self.note(format!("updated to {backends}: {closed} {cancelled} {draining}"));
    }
}

#[test]
fn c8_2_an_observer_is_told_all_that_becomes_of_each_client_in_order() {
    let (echo, refusing) = (TestBackend::echo("echo"), refusing_addr());
    let record = Record::default();
    let balancer = Balancer::with(Server::builder().observer(record.clone()), BackendSet::new());
    record.assert_ends_with(&["updated to 0: 0 0 0"]);

    assert_refused(balancer.addr);
    record.assert_ends_with(&["0 accepted", "0 ended 0/0 NoBackend"]);

    balancer.update(set([("a", refusing), ("b", echo.addr)]));
    record.assert_ends_with(&["updated to 2: 0 0 0"]);

    let (mut finished, _) = balancer.tagged_client();
    assert_echo(&mut finished, b"12345678");
    drop(finished);
    record.assert_ends_with(&[
        "1 accepted",
        &format!("1 failed a={refusing} #0 ConnectionRefused"),
        &format!("1 connected b={}", echo.addr),
        &format!("1 ended b={} 8/13 Finished", echo.addr),
    ]);

    let (resets, _) = balancer.tagged_client();
    reset(resets);
    record.assert_ends_with(&[
        "2 accepted",
        &format!("2 failed a={refusing} #0 ConnectionRefused"),
        &format!("2 connected b={}", echo.addr),
        &format!("2 ended b={} 0/5 ClientFailed, ConnectionReset", echo.addr),
    ]);

    balancer.update(set([("b", echo.addr)]));
    let _removed = balancer.tagged_client();
    balancer.update(set([("a", refusing)]));
    record.assert_ends_with(&[
        "updated to 1: 0 0 0",
        "3 accepted",
        &format!("3 connected b={}", echo.addr),
        &format!("3 ended b={} 0/5 TargetRemoved", echo.addr),
        "updated to 1: 1 0 0",
    ]);

    assert_refused(balancer.addr);
    record.assert_ends_with(&[
        "4 accepted",
        &format!("4 failed a={refusing} #0 ConnectionRefused"),
        "4 ended 0/0 BackendsFailed",
    ]);

    balancer.update(set([("b", echo.addr)]));
    let _draining = balancer.tagged_client();
    balancer.control.update_draining(BackendSet::new(), PATIENCE).unwrap().wait().unwrap();
    balancer.control.shutdown().unwrap();
    balancer.thread.join().unwrap();
    record.assert_ends_with(&[
        "updated to 1: 0 0 0",
        "5 accepted",
        &format!("5 connected b={}", echo.addr),
        "updated to 0: 0 0 1",
        &format!("5 ended b={} 0/5 Shutdown", echo.addr),
    ]);
}

#[test]
fn c8_2_an_attempt_that_times_out_is_told_and_so_is_the_time_it_took() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    let record = Record::default();
    let (start, limit) = (Instant::now(), Duration::from_millis(100));
    let builder = Server::builder().observer(record.clone()).connect_timeout(limit);
    let balancer = Balancer::with(builder, set([("a", hole.addr), ("b", echo.addr)]));
    drop(balancer.tagged_client());
    record.assert_ends_with(&[
        "updated to 2: 0 0 0",
        "0 accepted",
        &format!("0 failed a={} #0 TimedOut", hole.addr),
        &format!("0 connected b={}", echo.addr),
        &format!("0 ended b={} 0/5 Finished", echo.addr),
    ]);
    let durations = record.0.lock().unwrap().durations.clone();
    assert!(durations.len() == 2 && durations.is_sorted(), "{durations:?}");
    assert!(durations[0] >= limit && durations[1] <= start.elapsed(), "{durations:?}");
}

#[test]
fn c8_2_the_error_that_ended_a_client_is_told_on_whichever_side_it_was_met() {
    let (hole, backend) = (BlackHole::new(), listener());
    let addr = backend.local_addr().unwrap();
    let record = Record::default();
    let balancer = Balancer::with(Server::builder().observer(record.clone()), set([("a", addr)]));
    let mut client = balancer.client();
    balancer.wait_for("it is connected", |stats| stats.open == 1);
    reset(backend.accept().unwrap().0);
    assert_cut(&mut client);
    record.assert_ends_with(&[
        "updated to 1: 0 0 0",
        "0 accepted",
        &format!("0 connected a={addr}"),
        &format!("0 ended a={addr} 0/0 BackendFailed, ConnectionReset"),
    ]);

    balancer.update(set([("a", hole.addr)]));
    let waiting = balancer.client();
    balancer.wait_for("a dial in flight", |stats| stats.dialling == 1);
    reset(waiting);
    record.assert_ends_with(&[
        "updated to 1: 0 0 0",
        "1 accepted",
        "1 ended 0/0 ClientFailed, ConnectionReset",
    ]);
}

#[test]
fn c8_2_a_cancelled_dial_is_no_failed_attempt() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    let record = Record::default();
    let balancer =
        Balancer::with(Server::builder().observer(record.clone()), set([("a", hole.addr)]));
    let mut client = balancer.client();
    balancer.wait_for("a dial in flight", |stats| stats.dialling == 1);
    balancer.update(set([("b", echo.addr)]));
    read_tag(&mut client);
    drop(client);
    record.assert_ends_with(&[
        "updated to 1: 0 0 0",
        "0 accepted",
        "updated to 1: 0 1 0",
        &format!("0 connected b={}", echo.addr),
        &format!("0 ended b={} 0/5 Finished", echo.addr),
    ]);
}

#[test]
fn c8_2_an_observer_sees_the_same_ends_as_the_counters() {
    let echo = TestBackend::echo("echo");
    let record = Record::default();
    let balancer =
        Balancer::with(Server::builder().observer(record.clone()), set([("a", echo.addr)]));
    for index in 0..100 {
        let mut client = balancer.client();
        if index % 2 == 0 {
            reset(client);
        } else {
            client.write_all(b"123").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            read_to_end(&mut client);
        }
    }
    let stats = checked(balancer.wait_for("all have ended", |stats| {
        stats.accepted == 100 && stats.dialling + stats.open == 0
    }));
    let recorded = std::mem::take(&mut record.0.lock().unwrap().events);
    let count = |word: &str| recorded.iter().filter(|event| event.contains(word)).count() as u64;
    assert_eq!((count(" accepted"), count(" ended")), (100, 100));
    for reason in EndReason::ALL.iter().copied() {
        let of_reason = stats.ended.of(reason) + stats.refused.of(reason);
        assert_eq!(count(&format!(" {reason:?}")), of_reason, "{reason}");
    }
}
