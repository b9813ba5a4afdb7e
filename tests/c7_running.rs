//! Chapter 7 of the contract: running and stopping.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tinylb::{
    Applied, BackendSet, Client, Connected, Control, EndReason, Ended, Error, Observer, Server,
    ServerThread, Stats, Summary,
};
use tinylb_tests::*;

/// Longer than any test.
const AN_HOUR: Duration = Duration::from_secs(3600);
/// A limit that a test waits for.
const SOON: Duration = Duration::from_millis(200);

/// A server that does not run yet, and its address.
fn server(backends: BackendSet) -> (Server, SocketAddr) {
    let server = Server::builder().backends(backends).build(listener()).unwrap();
    let addr = server.local_addr().ip().unwrap();
    (server, addr)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Accepted,
    Connected,
    Updated,
    Ended,
}
use Moment::*;

/// Does something at each moment, on the balancer's thread.
struct At<F>(F);

impl<F: FnMut(Moment) + Send> Observer for At<F> {
    fn accepted(&mut self, _: &Client<'_>) {
        (self.0)(Accepted);
    }
    fn connected(&mut self, _: &Connected<'_>) {
        (self.0)(Connected);
    }
    fn updated(&mut self, _: &Applied) {
        (self.0)(Updated);
    }
    fn ended(&mut self, _: &Ended<'_>) {
        (self.0)(Ended);
    }
}

/// Does it on a thread of its own and hands over what came of it, within [`PATIENCE`].
#[track_caller]
fn in_time<T: Send + 'static>(what: &str, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(job()));
    result.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never came to pass: {what}"))
}

#[track_caller]
fn join(thread: ServerThread) -> Summary {
    in_time("the balancer's thread ends", || thread.join()).unwrap()
}

#[track_caller]
fn run(server: Server) -> Summary {
    in_time("the balancer ends", || server.run()).unwrap()
}

#[track_caller]
fn assert_stopped<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
}

#[track_caller]
fn assert_own_thread<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::OwnThread)), "{result:?}");
}

#[test]
fn c7_1_run_works_on_the_thread_that_calls_it_and_sums_its_life_up() {
    let echo = TestBackend::echo("echo");
    let start = Instant::now();
    let (threads, seen) = mpsc::channel();
    let observer = At(move |_| threads.send(thread::current().id()).unwrap());
    let server = Server::builder()
        .observer(observer)
        .backends(set([("a", echo.addr)]))
        .build(listener())
        .unwrap();
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
    assert_eq!(
        (summary.refused.of(EndReason::NoBackend), summary.ended.of(EndReason::Finished)),
        (1, 1)
    );
    assert_eq!((summary.bytes_up, summary.bytes_down, summary.updates), (5, 10, 2));
    assert!(summary.ran_for > Duration::ZERO && summary.ran_for <= start.elapsed());
}

#[test]
fn c7_1_the_thread_of_spawn_has_a_name() {
    let (names, seen) = mpsc::channel();
    let observer = At(move |_| names.send(thread::current().name().map(str::to_owned)).unwrap());
    let _balancer = Balancer::with(Server::builder().observer(observer), BackendSet::new());
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap().as_deref(), Some("tinylb"));
}

#[test]
fn c7_2_shutdown_ends_the_listener_dials_and_pairs_at_once() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    let balancer = Balancer::start(set([("a", echo.addr), ("b", hole.addr)]));
    let (mut quiet, _) = balancer.tagged_client();
    let mut dialling = balancer.client();
    let mut busy = balancer.client();
    balancer.wait_for("two pairs and a dial", |stats| (stats.open, stats.dialling) == (2, 1));
    let busy = thread::spawn(move || while busy.write_all(&[0; 1000]).is_ok() {});

    balancer.control.shutdown().unwrap();

    let summary = join(balancer.thread);
    assert_eq!(
        (summary.ended.of(EndReason::Shutdown), summary.refused.of(EndReason::Shutdown)),
        (2, 1)
    );
    assert_eq!(summary.accepted, 3);
    TcpStream::connect(balancer.addr).unwrap_err();
    assert_cut(&mut quiet);
    assert_cut(&mut dialling);
    busy.join().unwrap();
}

#[test]
fn c7_2_a_stop_leaves_no_relay_running() {
    let (ended, ends) = mpsc::channel();
    let echo = TestBackend::new(move |stream| {
        let _ = io::copy(&mut &stream, &mut &stream);
        ended.send(()).unwrap();
    });
    let balancer = Balancer::start(set([("a", echo.addr)]));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = balancer.client();
            client.write_all(&[0; 1000]).unwrap();
            thread::spawn(move || drop(io::copy(&mut &client, &mut &client))) // round and round
        })
        .collect();
    balancer.wait_for("all go round", |stats| stats.open == 8 && stats.bytes_down > 100_000);

    balancer.control.shutdown().unwrap();
    join(balancer.thread);

    for client in clients {
        in_time("each client's side is at its end", || client.join().unwrap());
        ends.recv_timeout(PATIENCE).expect("each backend's side is at its end");
    }
}

#[test]
fn c7_2_a_drain_closes_the_listener_and_lets_pairs_and_dials_finish() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    let builder = Server::builder().connect_timeout(Duration::from_secs(1));
    let balancer = Balancer::with(builder, set([("a", echo.addr), ("b", hole.addr)]));
    let (mut open, _) = balancer.tagged_client();
    let mut dialling = balancer.client();
    balancer.wait_for("a dial in flight", |stats| stats.dialling == 1);

    balancer.control.drain(AN_HOUR).unwrap();

    wait_for("the listener is closed", || TcpStream::connect(balancer.addr).err());
    assert_echo(&mut open, b"still here");
    drop(open);
    balancer.wait_for("only the dial is left", |stats| stats.ended.total() == 1);
    assert_eq!(read_tag(&mut dialling), "echo");
    assert_echo(&mut dialling, b"here, too");
    drop(dialling);
    let summary = join(balancer.thread);
    assert_eq!((summary.accepted, summary.ended.of(EndReason::Finished)), (2, 2));
}

#[test]
fn c7_2_a_drain_cuts_the_rest_when_its_limit_runs_out() {
    let (echo, hole) = (TestBackend::echo("echo"), BlackHole::new());
    let balancer = Balancer::start(set([("a", echo.addr), ("b", hole.addr)]));
    let (mut open, _) = balancer.tagged_client();
    let mut dialling = balancer.client();
    balancer.wait_for("a dial in flight", |stats| stats.dialling == 1);
    let start = Instant::now();

    balancer.control.drain(SOON).unwrap();

    let summary = join(balancer.thread);
    assert!(start.elapsed() >= SOON);
    assert_eq!(
        (summary.ended.of(EndReason::DrainLimit), summary.refused.of(EndReason::DrainLimit)),
        (1, 1)
    );
    assert_cut(&mut open);
    assert_cut(&mut dialling);
}

#[test]
fn c7_2_of_two_drains_the_earlier_limit_holds() {
    let echo = TestBackend::echo("echo");
    for limits in [[AN_HOUR, SOON], [SOON, AN_HOUR]] {
        for at_once in [true, false] {
            let balancer = Balancer::start(set([("a", echo.addr)]));
            let (_client, _) = balancer.tagged_client();
            for limit in limits {
                balancer.control.drain(limit).unwrap();
                if !at_once {
                    drop(balancer.control.stats().and_then(|stats| stats.wait())); // it is obeyed by now
                }
            }
            assert_eq!(join(balancer.thread).ended.of(EndReason::DrainLimit), 1);
        }
    }
}

#[test]
fn c7_2_shutdown_overrides_a_drain_whichever_comes_first() {
    let echo = TestBackend::echo("echo");
    type Call = fn(&Control);
    let drain: Call = |control| control.drain(AN_HOUR).unwrap();
    let until_obeyed: Call = |control| drop(control.stats().and_then(|stats| stats.wait()));
    let shutdown: Call = |control| control.shutdown().unwrap();
    let orders: [&[Call]; 3] =
        [&[drain, shutdown], &[shutdown, drain], &[drain, until_obeyed, shutdown, shutdown]];
    for calls in orders {
        let balancer = Balancer::start(set([("a", echo.addr)]));
        let (mut client, _) = balancer.tagged_client();
        calls.iter().for_each(|call| call(&balancer.control));
        assert_eq!(join(balancer.thread).ended.of(EndReason::Shutdown), 1);
        assert_cut(&mut client);
    }
}

#[test]
fn c7_2_updates_are_applied_while_it_drains() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::start(set([("a", one.addr), ("b", two.addr)]));
    let (mut of_one, mut of_two) = (balancer.tagged_client().0, balancer.tagged_client().0);
    balancer.control.drain(AN_HOUR).unwrap();

    assert_eq!(balancer.update(set([("b", two.addr)])).closed, 1);

    assert_cut(&mut of_one);
    assert_echo(&mut of_two, b"still here");
    drop(of_two);
    join(balancer.thread);
}

#[test]
fn c7_2_stopped_before_the_start_run_returns_at_once_and_serves_nobody() {
    let echo = TestBackend::echo("echo");
    let stops: [&dyn Fn(&Control); 2] =
        [&|control| control.shutdown().unwrap(), &|control| control.drain(AN_HOUR).unwrap()];
    for stop in stops {
        let (server, addr) = server(set([("a", echo.addr)]));
        let mut client = connect(addr);
        stop(&server.control());
        assert_eq!(run(server).accepted, 0);
        assert_cut(&mut client);
    }
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn c7_2_stopping_works_from_any_thread_twice_and_after_the_end() {
    let balancer = Balancer::start(BackendSet::new());
    let threads: Vec<_> = (0..8)
        .map(|index| {
            let control = balancer.control.clone();
            thread::spawn(
                move || if index % 2 == 0 { control.shutdown() } else { control.drain(AN_HOUR) },
            )
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    join(balancer.thread);
    balancer.control.shutdown().unwrap();
    balancer.control.drain(SOON).unwrap();
}

#[test]
fn c7_3_dropping_what_spawn_returned_stops_and_joins() {
    /// Takes its time to be dropped, at the very end of the balancer's thread.
    struct Slow(Arc<AtomicBool>);
    impl Observer for Slow {}
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(50));
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (echo, is_over) = (TestBackend::echo("echo"), Arc::new(AtomicBool::new(false)));
    let balancer =
        Balancer::with(Server::builder().observer(Slow(is_over.clone())), set([("a", echo.addr)]));
    let (mut client, _) = balancer.tagged_client();
    let thread = balancer.thread;

    in_time("the drop returns", || drop(thread));

    assert!(is_over.load(Ordering::SeqCst));
    assert_cut(&mut client);
    assert_stopped(balancer.control.stats().and_then(|stats| stats.wait()));
}

#[test]
fn c7_3_dropping_control_handles_stops_nothing() {
    let echo = TestBackend::echo("echo");
    let balancer = Balancer::start(set([("a", echo.addr)]));
    let (mut client, _) = balancer.tagged_client();
    let Balancer { addr, control, thread } = balancer;
    drop((control.clone(), control));
    assert_echo(&mut client, b"still here");
    assert_eq!(read_tag(&mut connect(addr)), "echo");
    thread.control().shutdown().unwrap();
    join(thread);
}

#[test]
fn c7_4_after_the_end_what_needs_the_loop_answers_stopped() {
    let balancer = Balancer::start(BackendSet::new());
    let applied = balancer.control.update(BackendSet::new()).unwrap();
    let result = applied.wait().unwrap();
    balancer.control.shutdown().unwrap();
    join(balancer.thread);

    let control = balancer.control.clone();
    in_time("all answers", move || {
        assert_stopped(control.update(BackendSet::new()));
        assert_stopped(control.update_draining(BackendSet::new(), SOON));
        assert_stopped(control.stats().and_then(|stats| stats.wait()));
        control.shutdown().unwrap();
        control.drain(SOON).unwrap();
    });
    assert_eq!(applied.wait().unwrap(), result, "what was applied stays applied");
    assert_eq!(applied.wait_timeout(Duration::ZERO).unwrap(), Some(result));
    assert_eq!(applied.try_wait().unwrap(), Some(result));
}

#[test]
fn c7_4_a_server_that_is_dropped_unrun_releases_who_waits() {
    let (server, addr) = server(BackendSet::new());
    let control = server.control();
    let update = control.update(BackendSet::new()).unwrap();
    assert_eq!(update.try_wait().unwrap(), None);
    assert_eq!(update.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    let waiters: Vec<_> = [None, Some(AN_HOUR), Some(Duration::MAX)]
        .map(|limit| {
            let update = update.clone();
            thread::spawn(move || match limit {
                None => update.wait().map(Some),
                Some(limit) => update.wait_timeout(limit),
            })
        })
        .into();

    drop(server);

    for waiter in waiters {
        assert_stopped(in_time("the waiter is released", || waiter.join().unwrap()));
    }
    assert_stopped(update.try_wait());
    assert_stopped(control.stats().and_then(|stats| stats.wait()));
    assert_stopped(control.update(BackendSet::new()));
    control.shutdown().unwrap();
    TcpStream::connect(addr).unwrap_err();
}

#[test]
fn c7_4_a_panic_in_host_code_cuts_everything_and_releases_who_waits() {
    let echo = TestBackend::echo("echo");
    let (waiting, is_waiting) = mpsc::channel::<()>();
    let mut updates = 0;
    let observer = At(move |moment| {
        updates += u32::from(moment == Updated);
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
    assert_cut(&mut client);
    let result = in_time("it ends", || balancer.thread.join());
    assert!(matches!(result, Err(Error::Panicked)), "{result:?}");
    assert_stopped(balancer.control.stats().and_then(|stats| stats.wait()));
}

#[test]
fn c7_4_waiting_on_the_loops_own_thread_is_an_error() {
    let own: Arc<OnceLock<Control>> = Arc::default();
    let (done, results) = mpsc::channel();
    let control = own.clone();
    let observer = At(move |moment| {
        if moment == Accepted {
            let control = control.get().unwrap();
            let update = control.update_draining(BackendSet::new(), SOON).unwrap();
            let poll = update.try_wait();
            done.send((
                control.stats().and_then(|stats| stats.wait()),
                update.wait(),
                update.wait_timeout(AN_HOUR),
                poll,
                update,
            ))
            .unwrap();
        }
    });
    let balancer = Balancer::with(Server::builder().observer(observer), BackendSet::new());
    own.set(balancer.control.clone()).unwrap();

    let _ = TcpStream::connect(balancer.addr); // which may be reset before it knows that it is connected

    let (stats, wait, wait_timeout, poll, update) =
        results.recv_timeout(PATIENCE).expect("a deadlock");
    assert_own_thread(stats);
    assert_own_thread(wait);
    assert_own_thread(wait_timeout);
    assert_eq!(poll.unwrap(), None);
    assert_eq!(
        in_time("it is applied after all", move || update.wait()).unwrap(),
        Applied::default()
    );
}

#[test]
fn c7_4_the_loops_own_thread_can_neither_join_itself_nor_deadlock_in_a_drop() {
    for drops in [true, false] {
        let own: Arc<Mutex<Option<ServerThread>>> = Arc::default();
        let (done, joined) = mpsc::channel();
        let thread = own.clone();
        let observer = At(move |moment| {
            if moment == Accepted {
                let thread = thread.lock().unwrap().take().unwrap();
                let result = if drops {
                    drop(thread);
                    None
                } else {
                    Some(thread.join())
                };
                done.send(result).unwrap();
            }
        });
        let Balancer { addr, control, thread } =
            Balancer::with(Server::builder().observer(observer), BackendSet::new());
        *own.lock().unwrap() = Some(thread);

        let _ = TcpStream::connect(addr); // which may be reset before it knows that it is connected

        if let Some(result) = joined.recv_timeout(PATIENCE).expect("a deadlock") {
            assert_own_thread(result);
        }
        wait_for("it ends all the same", || {
            matches!(control.stats().and_then(|stats| stats.wait()), Err(Error::Stopped))
                .then_some(())
        });
    }
}

#[test]
fn c7_4_controls_work_before_the_start() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let (server, addr) = server(set([("a", one.addr)]));
    let control = server.control();
    assert_eq!(control.stats().unwrap().wait().unwrap(), Stats::default());
    let mut client = connect(addr);
    let update = control.update(set([("b", two.addr)])).unwrap();

    let _thread = server.spawn().unwrap();

    assert_eq!(in_time("it is applied", move || update.wait()).unwrap().backends, 1);
    assert_eq!(read_tag(&mut client), "two");
    assert_eq!(one.accepted(), 0);
}
