//! Running and stopping: threads, and which of them waits for another.

use std::fmt::Debug;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tinylb::{
    Applied, Backend, BackendSet, Control, Dial, DialRequest, EndReason, Error, Observer, Server,
    ServerThread, Stats, Summary, Update,
};
use tinylb_tests::*;

#[track_caller]
fn join(thread: ServerThread) -> Summary {
    in_time("the balancer's thread ends", || thread.join()).unwrap()
}

#[track_caller]
fn assert_own_thread<T: Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::OwnThread)), "{result:?}");
}

fn server() -> Server {
    Server::builder().build(listener()).unwrap()
}

#[test]
fn c7_1_run_works_on_the_thread_that_calls_it_and_sums_its_life_up() {
    let (echo, start, (threads, seen)) =
        (TestBackend::echo("echo"), Instant::now(), mpsc::channel());
    let observer = OnMoment(move |_| threads.send(thread::current().id()).unwrap());
    let builder = Server::builder().observer(observer).backends(set([("a", echo.addr)]));
    let server = builder.build(listener()).unwrap();
    let (addr, control) = (server.local_addr().ip().unwrap(), server.control());
    let host = thread::spawn(move || {
        let mut client = connect(addr);
        assert_eq!(read_tag(&mut client), "echo");
        assert_echo(&mut client, b"hello");
        drop(client);
        wait_for("it ends", || {
            (control.stats().unwrap().wait().unwrap().ended.total() == 1).then_some(())
        });
        control.update(BackendSet::new()).unwrap().wait().unwrap();
        assert_refused(addr);
        control.shutdown().unwrap();
    });

    let summary = server.run().unwrap();

    host.join().unwrap();
    assert!(seen.iter().all(|id| id == thread::current().id()));
    assert_eq!((summary.accepted, summary.refused.total(), summary.ended.total()), (2, 1, 1));
    assert_eq!(summary.refused.of(EndReason::NoBackend), 1);
    assert_eq!(summary.ended.of(EndReason::Finished), 1);
    assert_eq!((summary.bytes_up, summary.bytes_down, summary.updates), (5, 10, 2));
    assert!(summary.ran_for > Duration::ZERO && summary.ran_for <= start.elapsed());
}

#[test]
fn c7_2_shutdown_ends_the_listener_dials_and_pairs_at_once() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    let balancer = Balancer::start(set([("a", echo.addr), ("b", hole.addr)]));
    let (mut quiet, _) = balancer.tagged_client();
    let mut dialling = balancer.dialling_client();
    let busy = balancer.client();
    let busy = thread::spawn(move || drop(io::copy(&mut &busy, &mut &busy))); // round and round
    balancer.wait_for("two pairs", |stats| stats.open == 2);

    balancer.control.shutdown().unwrap();

    let summary = join(balancer.thread);
    assert_eq!(summary.ended.of(EndReason::Shutdown), 2);
    assert_eq!((summary.refused.of(EndReason::Shutdown), summary.accepted), (1, 3));
    TcpStream::connect(balancer.addr).unwrap_err();
    assert_aborted(&mut quiet);
    assert_aborted(&mut dialling);
    in_time("the busy one is at its end", || busy.join().unwrap());
}

#[test]
fn c7_2_a_drain_closes_the_listener_lets_pairs_and_dials_finish_and_aborts_the_rest_at_its_limit() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    for limit in [LONG, SHORT] {
        let timeout = if limit == LONG { Duration::from_secs(1) } else { LONG };
        let builder = Server::builder().connect_timeout(timeout).dial_limit(LONG);
        let balancer = Balancer::with(builder, set([("a", echo.addr), ("b", hole.addr)]));
        let (mut open, _) = balancer.tagged_client();
        let mut dialling = balancer.dialling_client();
        let start = Instant::now();

        balancer.control.drain(limit).unwrap();

        // The turn that begins to drain accepts whoever is there, and is over when the second is
        // answered.
        for _ in 0..2 {
            balancer.control.stats().unwrap().wait().unwrap();
        }
        assert!(TcpStream::connect(balancer.addr).is_err(), "the listener is closed");
        let (ended, refused) = if limit == LONG {
            assert_echo(&mut open, b"still here");
            drop(open);
            assert_eq!(read_tag(&mut dialling), "echo");
            drop(dialling);
            let summary = join(balancer.thread);
            (summary.ended.of(EndReason::Finished), summary.refused.total())
        } else {
            assert_aborted(&mut open);
            assert_aborted(&mut dialling);
            assert!(start.elapsed() >= limit);
            let summary = join(balancer.thread);
            let reason = EndReason::DrainLimit;
            (summary.ended.of(reason), summary.refused.of(reason))
        };
        assert_eq!((ended, refused), if limit == LONG { (2, 0) } else { (1, 1) });
    }
}

#[test]
fn c7_2_stopped_before_the_start_run_returns_at_once_and_serves_nobody() {
    let stops: [fn(&Control); 2] =
        [|control| control.shutdown().unwrap(), |control| control.drain(LONG).unwrap()];
    for stop in stops {
        let server = server();
        let mut client = connect(server.local_addr().ip().unwrap());
        stop(&server.control());
        assert_eq!(in_time("it returns", || server.run()).unwrap().accepted, 0);
        assert_aborted(&mut client);
    }
}

#[test]
fn c7_2_c7_4_after_the_end_stopping_does_nothing_and_the_rest_answers_stopped() {
    let balancer = Balancer::start(BackendSet::new());
    let applied = balancer.control.update(BackendSet::new()).unwrap();
    let result = applied.wait().unwrap();
    thread::scope(|scope| {
        for index in 0..8 {
            let control = &balancer.control;
            scope.spawn(
                move || if index % 2 == 0 { control.shutdown() } else { control.drain(LONG) },
            );
        }
    });
    join(balancer.thread);

    let control = balancer.control.clone();
    in_time("all answers", move || {
        assert_stopped(control.update(BackendSet::new()));
        assert_stopped(control.update_draining(BackendSet::new(), SHORT));
        assert_stopped(control.stats().and_then(|stats| stats.wait()));
        control.shutdown().unwrap();
        control.drain(SHORT).unwrap();
    });
    assert_eq!(applied.wait().unwrap(), result, "what was applied stays applied");
    assert_eq!(applied.wait_timeout(Duration::ZERO).unwrap(), Some(result));
    assert_eq!(applied.try_wait().unwrap(), Some(result));
}

#[test]
fn c7_3_dropping_what_spawn_returned_stops_and_joins_and_dropping_controls_does_nothing() {
    /// Takes its time to be dropped, at the very end of the balancer's thread.
    struct Slow(Arc<AtomicBool>);
    impl Observer for Slow {}
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(SHORT);
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (echo, is_over) = (TestBackend::echo("echo"), Arc::new(AtomicBool::new(false)));
    let builder = Server::builder().observer(Slow(is_over.clone()));
    let balancer = Balancer::with(builder, set([("a", echo.addr)]));
    let (mut client, _) = balancer.tagged_client();
    let Balancer { control, thread, .. } = balancer;
    drop((control.clone(), control));
    assert_echo(&mut client, b"still here");
    let control = thread.control();

    in_time("the drop returns", || drop(thread));

    assert!(is_over.load(Ordering::SeqCst));
    assert_aborted(&mut client);
    assert_stopped(control.stats());
}

#[test]
fn c7_4_a_server_that_is_dropped_unrun_releases_waiters() {
    let server = server();
    let (addr, control) = (server.local_addr().ip().unwrap(), server.control());
    let update = control.update(BackendSet::new()).unwrap();
    assert_eq!(update.try_wait().unwrap(), None);
    assert_eq!(update.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    let waiters = [None, Some(LONG), Some(Duration::MAX)].map(|limit| {
        let update = update.clone();
        thread::spawn(move || match limit {
            None => update.wait().map(Some),
            Some(limit) => update.wait_timeout(limit),
        })
    });

    drop(server);

    for waiter in waiters {
        assert_stopped(in_time("the waiter is released", || waiter.join().unwrap()));
    }
    assert_stopped(update.try_wait());
    assert_stopped(control.stats());
    assert_stopped(control.update(BackendSet::new()));
    control.shutdown().unwrap();
    TcpStream::connect(addr).unwrap_err();
}

#[test]
fn c7_4_a_panic_in_host_code_aborts_everything_and_releases_waiters() {
    let (echo, (waiting, is_waiting)) = (TestBackend::echo("echo"), mpsc::channel::<()>());
    let mut updates = 0;
    let observer = OnMoment(move |moment| {
        updates += u32::from(moment == Moment::Updated);
        if updates == 2 {
            is_waiting.recv().unwrap();
            panic!("on purpose");
        }
    });
    let balancer = Balancer::with(Server::builder().observer(observer), set([("a", echo.addr)]));
    let (mut client, _) = balancer.tagged_client();
    let update = balancer.control.update(set([("a", echo.addr)])).unwrap();
    let control = balancer.control.clone();
    let next = thread::spawn(move || {
        let next = control.update(BackendSet::new());
        waiting.send(()).unwrap();
        next.unwrap().wait()
    });

    let (waited, next) =
        in_time("both are released", move || (update.wait(), next.join().unwrap()));

    assert_stopped(waited);
    assert_stopped(next);
    assert_aborted(&mut client);
    let result = in_time("it ends", || balancer.thread.join());
    assert!(matches!(result, Err(Error::Panicked)), "{result:?}");
    assert_stopped(balancer.control.stats());
}

/// A balancer's handles, to be used on its own thread.
type Own = Arc<Mutex<Option<(Control, ServerThread)>>>;

/// Has a balancer do something on its own thread, once. Returns what came of it, a control, and the
/// handles.
#[track_caller]
fn on_own_thread<T: Send + 'static>(act: impl Fn(&Own) -> T + Send + 'static) -> (T, Control, Own) {
    let (own, (done, result)) = (Own::default(), mpsc::channel());
    let handles = own.clone();
    let observer = OnMoment(move |moment| {
        if moment == Moment::Accepted {
            done.send(act(&handles)).unwrap();
        }
    });
    let builder = Server::builder().observer(observer);
    let Balancer { addr, control, thread } = Balancer::with(builder, BackendSet::new());
    *own.lock().unwrap() = Some((control.clone(), thread));
    let _ = TcpStream::connect(addr); // which may be reset before it knows that it is connected
    (result.recv_timeout(PATIENCE).expect("a deadlock"), control, own)
}

#[test]
fn c7_4_waiting_on_the_loops_own_thread_is_an_error_and_not_a_deadlock() {
    let ((stats, wait, wait_timeout, poll, update), _, _own) = on_own_thread(|own| {
        let control = own.lock().unwrap().as_ref().unwrap().0.clone();
        let update = control.update_draining(BackendSet::new(), SHORT).unwrap();
        (
            control.stats().and_then(|stats| stats.wait()),
            update.wait(),
            update.wait_timeout(LONG),
            update.try_wait(),
            update,
        )
    });
    assert_own_thread(stats);
    assert_own_thread(wait);
    assert_own_thread(wait_timeout);
    assert_eq!(poll.unwrap(), None);
    let applied = in_time("it is applied after all", move || update.wait());
    assert_eq!(applied.unwrap(), Applied::default());

    let (joined, control, _) = on_own_thread(|own| own.lock().unwrap().take().unwrap().1.join());
    assert_own_thread(joined);
    let ((), of_dropped, _) = on_own_thread(|own| drop(own.lock().unwrap().take()));
    for control in [control, of_dropped] {
        wait_for("it ends all the same", || control.stats().and_then(|stats| stats.wait()).err());
    }
}

#[test]
fn c7_4_c3_1_controls_work_before_the_start() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let watch = Watch::default();
    let builder = Server::builder().observer(watch.clone()).backends(set([("a", one.addr)]));
    let server = builder.build(listener()).unwrap();
    let control = server.control();
    assert_eq!(control.stats().unwrap().wait().unwrap(), Stats::default());
    let mut client = connect(server.local_addr().ip().unwrap());
    let update = control.update(set([("b", two.addr)])).unwrap();

    let _balancer = Balancer::of(server);

    assert_eq!(in_time("it is applied", move || update.wait()).unwrap().backends, 1);
    assert_eq!((read_tag(&mut client), one.accepted()), ("two".to_owned(), 0));
    assert_eq!(watch.lock().events[..2], ["updated to 1: 0 0 0", "0 accepted"]);
}

#[test]
fn c7_4_an_observer_may_own_the_handle_of_its_own_thread() {
    struct Owner(Arc<Mutex<Option<ServerThread>>>, mpsc::Sender<bool>);
    impl Observer for Owner {}
    impl Drop for Owner {
        fn drop(&mut self) {
            drop(self.0.lock().unwrap().take());
            let _ = self.1.send(!thread::panicking());
        }
    }
    let (handle, (dropped, is_dropped)) = (Arc::new(Mutex::new(None)), mpsc::channel());
    let builder = Server::builder().observer(Owner(handle.clone(), dropped));
    let server = builder.build(listener()).unwrap();
    let control = server.control();
    *handle.lock().unwrap() = Some(server.spawn().unwrap());
    control.shutdown().unwrap();
    assert_eq!(is_dropped.recv_timeout(PATIENCE), Ok(true));
}

/// A backend that does something when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut() + Send + Sync> Backend for OnDrop<F> {
    fn target_name(&self) -> String {
        "nowhere".to_owned()
    }
    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn c7_4_waiters_are_released_before_the_hosts_backends_are_dropped() {
    let slot = Arc::new(Mutex::new(None::<Update>));
    let (sender, was_released) = mpsc::channel();
    let server = server();
    let waiting = slot.clone();
    let backend = OnDrop(move || {
        let update = waiting.lock().unwrap().take().unwrap();
        let _ = sender.send(matches!(update.wait_timeout(PATIENCE), Err(Error::Stopped)));
    });
    *slot.lock().unwrap() = Some(server.control().update([("a", backend)].into()).unwrap());
    drop(server);
    assert_eq!(was_released.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn c7_4_backends_may_call_in_as_they_are_dropped() {
    let (sender, dropped) = mpsc::channel();
    // On a thread of its own, since what is tested for is that it does not hang.
    thread::spawn(move || {
        let update = |control: &Control, fate: &'static str| {
            let (asking, sender) = (control.clone(), sender.clone());
            let backend = OnDrop(move || {
                let _ = asking.stats(); // which must not find anything locked
                let _ = sender.send(fate);
            });
            control.update([("a", backend)].into()).unwrap()
        };
        let first = server();
        let control = first.control();
        update(&control, "superseded");
        let applied = update(&control, "replaced");
        let thread = first.spawn().unwrap();
        applied.wait().unwrap();
        update(&control, "in force at the end").wait().unwrap();
        drop(thread);
        let unrun = server();
        update(&unrun.control(), "never applied");
        drop(unrun);
    });
    for fate in ["superseded", "replaced", "in force at the end", "never applied"] {
        assert_eq!(dropped.recv_timeout(PATIENCE), Ok(fate));
    }
}
