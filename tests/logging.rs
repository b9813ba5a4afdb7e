//! C8.3 and C4.1: the log. A program of its own with one test, since a program has one logger.

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use tinylb::{BackendSet, Server};
use tinylb_tests::*;

/// Keeps what tinylb logs.
struct Capture(Mutex<Vec<(Level, String)>>);

static CAPTURE: Capture = Capture(Mutex::new(Vec::new()));

impl Log for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tinylb")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push((record.level(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// What was logged since the last call: the lines at `info` and above, and how many there were
/// below.
fn logged() -> (Vec<String>, usize) {
    let lines = std::mem::take(&mut *CAPTURE.0.lock().unwrap());
    let (told, details): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|(level, _)| *level <= Level::Info);
    (told.into_iter().map(|(level, line)| format!("{level} {line}")).collect(), details.len())
}

/// Exactly these lines are told of all that the balancer has done by now.
#[track_caller]
fn assert_told(balancer: &Balancer, expected: &[&str]) {
    balancer.stats(); // answered when the turn has logged all it has to
    assert_eq!(logged().0, expected);
}

#[test]
fn c8_3_c4_1_starts_stops_and_changes_are_told_once_and_clients_and_bytes_never() {
    log::set_logger(&CAPTURE).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::of(Server::builder().build(listener()).unwrap());
    let listening = format!("INFO listening on {}", balancer.addr);
    let warning = "WARN there is no backend: clients are refused";
    let refuse_some = |already: u64| {
        (0..20).for_each(|_| assert_refused(balancer.addr));
        balancer.wait_for("all are refused", |stats| stats.refused.total() == already + 20);
    };
    refuse_some(0);
    let (told, details) = logged();
    assert_eq!(told, [&listening, warning]);
    assert!(details >= 20, "each client shows at debug");
    balancer.update(BackendSet::new());
    refuse_some(20);
    assert_eq!(logged().0, [""; 0], "a line for each client, or for the same state");

    balancer.update(set([("a", one.addr), ("b", two.addr)]));
    let nothing = "closed 0 connections, cancelled 0 dials, 0 connections draining";
    let added = format!("INFO 2 backends (added a, b); {nothing}");
    assert_told(&balancer, &[&added, "INFO there is a backend again: clients are served"]);
    balancer.update(set([("a", one.addr), ("b", two.addr)]));
    assert_told(&balancer, &[]);

    let (mut client, _) = balancer.tagged_client();
    let (told, details) = logged();
    assert!(told.is_empty() && details > 0);
    (0..500).for_each(|_| assert_echo(&mut client, b"a message"));
    balancer.stats();
    assert_eq!(logged(), (Vec::new(), 0), "nothing is logged for a read");

    balancer.update(set([("b", one.addr), ("c", two.addr)]));
    let changed = format!("INFO 2 backends (added c, removed a, changed b); {nothing}");
    assert_told(&balancer, &[&changed]);
    let mut held = set([("b", one.addr), ("c", two.addr)]);
    assert!(held.set_weight("b", 0) && held.set_weight("c", 0));
    balancer.update(held);
    let all_held = format!("INFO 2 backends (changed b, c); {nothing}");
    let held_warning = "WARN every backend is held: clients are refused";
    assert_told(&balancer, &[&all_held, held_warning]);
    balancer.update(BackendSet::new());
    assert_aborted(&mut client);
    let one_closed = "closed 1 connection, cancelled 0 dials, 0 connections draining";
    assert_told(&balancer, &[&format!("INFO 0 backends (removed b, c); {one_closed}"), warning]);

    #[cfg(feature = "socket2")]
    assert_a_missing_source_is_told(&balancer);

    balancer.control.shutdown().unwrap();
    let summary = balancer.thread.join().unwrap();
    let (up, down) = (summary.bytes_up, summary.bytes_down);
    let clients = summary.accepted;
    let stopped =
        format!("INFO stopped after {clients} clients, {up} bytes up and {down} bytes down");
    assert_eq!(logged().0, [stopped]);
}

/// C5.5: the warning names the address, which the target name does not.
#[cfg(feature = "socket2")]
fn assert_a_missing_source_is_told(balancer: &Balancer) {
    let addr = ([127, 0, 0, 1], 9).into();
    let backend = tinylb::TcpBackend::with_addrs("db:80", [addr]).unwrap();
    balancer.update([("d", backend.bind_to([192, 0, 2, 1].into()))].into_iter().collect());
    logged();
    assert_refused(balancer.addr);
    balancer.stats();
    let lines = logged().0;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let expected = "WARN no local address or port to reach 127.0.0.1:9: ";
    assert!(lines[0].starts_with(expected), "{lines:?}");
}
