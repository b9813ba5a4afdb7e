//! C1.5 over real sockets: what a set made from an EndpointSlice says in one update.

use std::sync::Mutex;

use tinylb::{BackendSet, EndReason, TcpBackend};
use tinylb_tests::*;

/// Keeps the warnings.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn c1_5_one_update_holds_a_terminating_pod_removes_another_and_adds_a_third() {
    log::set_logger(&WARNINGS).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let pods = ["a", "b", "c", "d"].map(TestBackend::echo);
    let pod = |index: usize| TcpBackend::new(pods[index].addr);
    let balancer = Balancer::start(BackendSet::from([("a", pod(0)), ("b", pod(1)), ("c", pod(2))]));
    let mut clients: Vec<_> = (0..6).map(|_| balancer.tagged_client()).collect();

    // a terminates, b is gone, c stays, d is new.
    let mut set = BackendSet::from([("c", pod(2)), ("d", pod(3))]);
    set.insert_weighted("a", pod(0), 0);
    let applied = balancer.update(set);

    assert_eq!((applied.closed, applied.draining), (2, 0));
    assert_eq!((applied.added, applied.removed, applied.changed), (1, 1, 1));
    for (client, tag) in &mut clients {
        match tag.as_str() {
            "b" => {
                let end = read_to_end(client).1;
                assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")));
            }
            _ => assert_echo(client, b"still there"),
        }
    }
    let tags: String = (0..4).map(|_| balancer.tagged_client().1).collect();
    assert_eq!(tags, "dcdc");
    let stats = balancer.stats();
    let a = stats.backend("a").unwrap();
    assert_eq!((a.weight, a.usage.open, a.usage.total), (0, 2, 2));

    // Nothing is left but what is held.
    let mut held = BackendSet::new();
    held.insert_weighted("a", pod(0), 0);
    balancer.update(held);
    assert_refused(balancer.addr);
    assert_eq!(balancer.stats().refused.of(EndReason::NoBackend), 1);
    assert_eq!(*WARNINGS.0.lock().unwrap(), ["every backend is held: clients are refused"]);
    for (client, _) in clients.iter_mut().filter(|(_, tag)| tag == "a") {
        assert_echo(client, b"to the end");
    }
}
