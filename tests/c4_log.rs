//! Clause 4.1 of the contract, as far as the log goes: a program of its own, since there is one logger to a program.

use std::net::TcpStream;
use std::sync::Mutex;

use tinylb::{BackendSet, Server};
use tinylb_tests::*;

/// Keeps the lines from `info` up that tell of there being backends or not.
struct Capture(Mutex<Vec<(log::Level, String)>>);

static LOG: Capture = Capture(Mutex::new(Vec::new()));

impl log::Log for Capture {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info && metadata.target().starts_with("tinylb")
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        if self.enabled(record.metadata()) && line.starts_with("there") {
            self.0.lock().unwrap().push((record.level(), line));
        }
    }

    fn flush(&self) {}
}

#[test]
fn c4_1_the_log_says_once_per_change_that_there_is_no_backend_and_not_once_per_client() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let backend = TestBackend::echo("a");
    let refuse_some = |balancer: &Balancer| {
        let refused = balancer.stats().refused.total() + 5;
        // One that is refused very soon sees its connect fail.
        (0..5).for_each(|_| drop(TcpStream::connect(balancer.addr)));
        balancer.wait_for("all are refused", |stats| stats.refused.total() == refused);
    };

    let server = Server::builder().build(listener()).unwrap(); // to which no set was given yet
    let addr = server.local_addr().ip().unwrap();
    let balancer = Balancer { addr, control: server.control(), thread: server.spawn().unwrap() };
    assert_refused(addr);
    assert_eq!(LOG.0.lock().unwrap().len(), 1, "not told of its own accord");
    refuse_some(&balancer);
    balancer.update(BackendSet::new());
    refuse_some(&balancer);
    for _ in 0..2 {
        balancer.update(set([("a", backend.addr)]));
        balancer.tagged_client();
    }
    balancer.update(BackendSet::new());
    refuse_some(&balancer);

    let levels: Vec<_> = LOG.0.lock().unwrap().iter().map(|(level, _)| *level).collect();
    assert_eq!(
        levels,
        [log::Level::Warn, log::Level::Info, log::Level::Warn],
        "{:?}",
        LOG.0.lock().unwrap()
    );
}
