//! Faults that were found once, each named by the behaviour that was missing.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tinylb::{Backend, Dial, DialRequest, Ejection, Server, TcpBackend};
use tinylb_tests::*;

/// A backend whose dials a signal interrupts, so many times in a row.
struct Interrupted {
    backend: TcpBackend,
    times: AtomicU64,
}

impl Backend for Interrupted {
    fn target_name(&self) -> String {
        self.backend.target_name()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let is_left = |times: u64| times.checked_sub(1);
        match self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_left) {
            Ok(_) => Err(io::ErrorKind::Interrupted.into()),
            Err(_) => self.backend.dial(request),
        }
    }
}

/// It failed the backend, and one such failure in a row with others ejected it.
#[test]
fn c5_5_a_dial_that_was_interrupted_is_begun_again_and_not_held_against_the_backend() {
    let backend = TestBackend::echo("a");
    let interrupted = Interrupted { backend: TcpBackend::new(backend.addr), times: 3.into() };
    let builder = Server::builder().ejection(Ejection::new(
        1,
        std::time::Duration::from_secs(1),
        std::time::Duration::from_secs(30),
    ));
    let balancer = Balancer::with(builder, [("a", interrupted)].into());

    let (mut client, tag) = balancer.tagged_client();

    assert_eq!(tag, "a");
    assert_echo(&mut client, b"hello");
    let stats = balancer.stats();
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (0, false));
}
