//! Chapter 8 of the contract, clause 3: the log. A program of its own, since a program has one logger.

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use tinylb::BackendSet;
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

/// What was logged since the last call: at `info` and above, and below.
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
fn c8_3_starts_stops_and_differences_are_told_once_and_bytes_never() {
    log::set_logger(&CAPTURE).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::start(BackendSet::new());
    balancer.update(BackendSet::new());
    assert_told(
        &balancer,
        &[
            &format!("INFO listening on {}", balancer.addr),
            "WARN there is no backend: clients are refused",
        ],
    );

    for _ in 0..20 {
        assert_refused(balancer.addr);
    }
    balancer.wait_for("all are refused", |stats| stats.refused.total() == 20);
    let (told, details) = logged();
    assert_eq!(told, [""; 0], "a line for each client");
    assert!(details >= 20, "each client shows at debug");

    balancer.update(set([("a", one.addr), ("b", two.addr)]));
    let nothing = "closed 0 connections, cancelled 0 dials, 0 connections draining";
    assert_told(
        &balancer,
        &[
            &format!("INFO 2 backends (added a, b); {nothing}"),
            "INFO there is a backend again: clients are served",
        ],
    );
    balancer.update(set([("a", one.addr), ("b", two.addr)]));
    assert_told(&balancer, &[]);

    let (mut client, _) = balancer.tagged_client();
    let (told, details) = logged();
    assert!(told.is_empty() && details > 0);
    for _ in 0..500 {
        assert_echo(&mut client, b"a message");
    }
    balancer.stats();
    assert_eq!(logged(), (Vec::new(), 0), "nothing is logged for a read");

    balancer.update(set([("b", one.addr), ("c", two.addr)]));
    assert_told(
        &balancer,
        &[&format!("INFO 2 backends (added c, removed a, changed b); {nothing}")],
    );
    balancer.update(set([("c", two.addr)]));
    assert_cut(&mut client);
    let one_closed = "closed 1 connections, cancelled 0 dials, 0 connections draining";
    assert_told(&balancer, &[&format!("INFO 1 backends (removed b); {one_closed}")]);

    balancer.control.shutdown().unwrap();
    let summary = balancer.thread.join().unwrap();
    let (up, down) = (summary.bytes_up, summary.bytes_down);
    assert_eq!(
        logged().0,
        [format!("INFO stopped after 21 clients, {up} bytes up and {down} bytes down")]
    );
}
