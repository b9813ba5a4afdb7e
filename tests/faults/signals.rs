//! Signals that arrive on the balancer's own thread, as a host that handles some may have them: real `EINTR`, of the
//! wait for events above all.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use tinylb::{Client, Observer, Server};

use tinylb_tests::{Balancer, PATIENCE, TestBackend, assert_echo, set, wait_for};

/// Learns which thread it is on.
#[derive(Clone, Default)]
struct WhereItRuns(Arc<OnceLock<Pthread>>);

impl Observer for WhereItRuns {
    fn accepted(&mut self, _: &Client<'_>) {
        let _ = self.0.set(pthread_self());
    }
}

#[test]
fn c9_1_signals_on_its_thread_end_and_hold_up_nothing() {
    let (handled, is_over) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    signal_hook::flag::register_usize(signal_hook::consts::SIGUSR1, handled.clone(), 1).unwrap();
    let (backend, observer) = (TestBackend::echo("a"), WhereItRuns::default());
    let balancer =
        Balancer::with(Server::builder().observer(observer.clone()), set([("a", backend.addr)]));
    let (mut client, _) = balancer.tagged_client();
    let balancers = *observer.0.get().unwrap();

    thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now(); // lest a test that fails never ends
            while !is_over.load(Ordering::SeqCst) && start.elapsed() < 2 * PATIENCE {
                pthread_kill(balancers, Signal::SIGUSR1).unwrap();
                thread::sleep(Duration::from_micros(100));
            }
        });
        for _ in 0..50 {
            // Most of the time it is waiting for events.
            handled.store(0, Ordering::SeqCst);
            wait_for("a signal is handled", || (handled.load(Ordering::SeqCst) == 1).then_some(()));
            assert_echo(&mut client, b"still here");
            assert_echo(&mut balancer.tagged_client().0, b"so am I");
        }
        is_over.store(true, Ordering::SeqCst);
    });

    balancer.control.shutdown().unwrap();
    assert_eq!(balancer.thread.join().unwrap().accepted, 51);
}
