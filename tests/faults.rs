//! What becomes of pairs when calls of their sockets fail, fall short, block or are interrupted, or
//! when a peer goes away right before a call. The sockets and the event queue are real, and errors
//! come between them and the balancer.

#![cfg(target_os = "linux")] // whose error numbers these are, and whose event queue

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use tinylb::{BackendSet, Builder, Ejection, EndReason, Server};
use tinylb_tests::fake::{Call, Fault, Lab, Moment};
use tinylb_tests::*;

const EINTR: i32 = 4;

/// A balancer all of whose streams follow a plan, with backends `a`, `b` and so on that answer.
struct Rig {
    balancer: Balancer,
    lab: Arc<Lab>,
    watch: Watch,
    backends: Vec<TestBackend>,
    reports: mpsc::Receiver<(Talk, Received)>,
}

impl Rig {
    #[track_caller]
    fn new(builder: Builder, backends: usize, lab: Arc<Lab>) -> Self {
        let (sender, reports) = mpsc::channel();
        let answering = |_| {
            let sender = sender.clone();
            TestBackend::new(move |stream| {
                if let Some(report) = Talk::answer(stream) {
                    let _ = sender.send(report); // if nobody waits for it, all have come
                }
            })
        };
        let backends: Vec<_> = (0..backends).map(answering).collect();
        let set = set_of(&lab, &backends);
        let watch = Watch::default();
        let builder = builder.backends(set).observer(watch.clone());
        let balancer = Balancer::of(builder.build(lab.listener(listener())).unwrap());
        Self { balancer, lab, watch, backends, reports }
    }

    /// What a backend got in the conversation that ended next.
    #[track_caller]
    fn report(&self) -> (Talk, Received) {
        self.reports.recv_timeout(PATIENCE).expect("no conversation has ended")
    }

    /// Has one more conversation, in which nothing goes wrong, and shuts down: nothing is left, and
    /// all adds up.
    #[track_caller]
    fn assert_serves_and_ends(self) {
        let talk = Talk::new(u64::MAX, 100, 100, Order::Together);
        talk.assert_came_down(&talk.hold(self.balancer.client()));
        self.end();
    }

    #[track_caller]
    fn end(self) {
        wait_for("all have ended", || {
            let seen = self.watch.lock();
            (seen.ended.len() as u64 == seen.accepted).then_some(())
        });
        self.balancer.stats();
        self.balancer.control.shutdown().unwrap();
        self.watch.assert_agrees(&self.balancer.thread.join().unwrap());
        assert_eq!(self.lab.open(), 0, "streams are still open");
    }
}

fn set_of(lab: &Arc<Lab>, backends: &[TestBackend]) -> BackendSet {
    let keys = (b'a'..).map(|key| char::from(key).to_string());
    keys.zip(backends).map(|(key, backend)| (key, lab.backend(backend.addr))).collect()
}

/// Has several conversations at once, all of which come to their end in order, and no backend is
/// blamed.
#[track_caller]
fn assert_nothing_changes(rig: Rig, len: u64) {
    let lens = [(len, len), (len / 2, len), (0, len), (len, 1)];
    let talks = (0..)
        .zip(lens)
        .map(|(seed, (up, down))| Talk::new(seed, up, down, Order::ALL[seed as usize % 3]));
    thread::scope(|scope| {
        for talk in talks {
            let client = rig.balancer.client();
            scope.spawn(move || talk.assert_came_down(&talk.hold(client)));
        }
    });
    for _ in lens {
        let (talk, received) = rig.report();
        talk.assert_came_up(&received);
    }
    rig.balancer.wait_for("the ends", |stats| stats.ended.of(EndReason::Finished) == 4);
    assert_eq!(rig.watch.lock().failed, []);
    rig.end();
}

/// A stream that is made to block goes on by the socket's own, edge-triggered event.
#[test]
fn c6_1_every_byte_arrives_whatever_blocks_and_falls_short() {
    let one_byte_then_blocked: fn(Moment) -> Fault = |moment| match moment.call {
        Call::Read | Call::Write if moment.nth % 2 == 0 => Fault::Block,
        Call::Read | Call::Write => Fault::AtMost(1),
        _ => Fault::Nothing,
    };
    let all_that_may_block: fn(Moment) -> Fault = |moment| match moment.call {
        Call::Read | Call::Write if moment.nth % 3 == 0 => Fault::Block,
        Call::Read | Call::Write => Fault::AtMost(1 << (moment.nth % 12)),
        Call::Flush | Call::ShutdownWrite | Call::CheckConnect if moment.nth % 2 == 0 => {
            Fault::Block
        }
        _ => Fault::Nothing,
    };
    for buffer_size in [1, 256 * 1024] {
        for (plan, len) in [(one_byte_then_blocked, 1_500), (all_that_may_block, 30_000)] {
            let builder = Server::builder().buffer_size(buffer_size);
            assert_nothing_changes(Rig::new(builder, 2, Lab::new(plan)), len);
        }
    }
}

#[test]
fn c9_1_c5_5_interrupted_calls_are_made_again_and_blame_nobody() {
    for times in [1, 3] {
        let plan = move |moment: Moment| {
            let count = match moment.call {
                Call::Accept | Call::Dial => moment.stream, // each is another stream
                Call::Translate | Call::Register | Call::Deregister => return Fault::Nothing,
                _ => moment.nth,
            };
            if count % (times + 1) < times { Fault::Fail(EINTR) } else { Fault::Nothing }
        };
        let builder = Server::builder().ejection(Ejection::new(
            1,
            Duration::from_secs(1),
            Duration::from_secs(30),
        ));
        assert_nothing_changes(Rig::new(builder, 2, Lab::new(plan)), 20_000);
    }
}

/// Every call that may fail, by the side of the pair.
const CALLS: [(Side, Call); 14] = [
    (Side::Client, Call::Register),
    (Side::Client, Call::Read),
    (Side::Client, Call::Write),
    (Side::Client, Call::Flush),
    (Side::Client, Call::ShutdownWrite),
    (Side::Client, Call::Deregister),
    (Side::Backend, Call::Dial),
    (Side::Backend, Call::Register),
    (Side::Backend, Call::CheckConnect),
    (Side::Backend, Call::Read),
    (Side::Backend, Call::Write),
    (Side::Backend, Call::Flush),
    (Side::Backend, Call::ShutdownWrite),
    (Side::Backend, Call::Deregister),
];

/// One call fails in each run: the runs go on until one passes that has no such call any more.
#[test]
fn c6_4_an_error_of_any_call_ends_its_own_pair_or_its_dial_and_nothing_else() {
    let mut reached = BTreeSet::new();
    for blocks in [false, true] {
        for (order, (side, call)) in Order::ALL.into_iter().flat_map(|o| CALLS.map(|c| (o, c))) {
            let lives = (0..1_000).position(|nth| !fails_at(blocks, order, side, call, nth));
            if lives.expect("such calls never end") > 0 {
                reached.insert((side, call));
            }
        }
    }
    assert_eq!(reached, BTreeSet::from(CALLS), "not all were ever made");
}

/// Has one pair of which a call fails, beside a pair that was there before. Returns whether there
/// was such a call.
#[track_caller]
fn fails_at(blocks: bool, order: Order, side: Side, call: Call, nth: usize) -> bool {
    println!("{call:?} of {side:?} #{nth}, {order:?}, {blocks}"); // shown if it fails
    let error = [104, 32, 110, 5][nth % 4]; // ECONNRESET, EPIPE, ETIMEDOUT, EIO
    let has_struck = Arc::new(AtomicBool::new(false));
    let struck = has_struck.clone();
    let plan = move |moment: Moment| {
        // The pair in question is the second that there is.
        if (moment.side, moment.call, moment.stream, moment.nth) == (side, call, 1, nth) {
            struck.store(true, SeqCst);
            return Fault::Fail(error);
        }
        match moment.call {
            Call::Read | Call::Flush | Call::ShutdownWrite if blocks && moment.nth % 2 == 0 => {
                Fault::Block
            }
            Call::Write if blocks && moment.nth % 3 > 0 => Fault::Block,
            Call::Write if blocks => Fault::AtMost(900),
            _ => Fault::Nothing,
        }
    };
    let lab = if blocks { Lab::new(plan) } else { Lab::of_plain_sockets(plan) };
    let rig = Rig::new(Server::builder(), 2, lab);
    let talk = |seed| Talk::new(seed, 2_500, 2_500, order);
    let (bystander, client) = (rig.balancer.client(), talk(2));
    rig.balancer.wait_for("it is connected", |stats| stats.open == 1);

    let received = client.hold_at(rig.balancer.addr);

    talk(1).assert_came_down(&talk(1).hold(bystander));
    let end = rig.watch.end_of(1);
    let has_struck = has_struck.load(SeqCst);
    let due = match (side, call) {
        _ if !has_struck => EndReason::Finished,
        (Side::Client, Call::Register) => EndReason::LocalFailure,
        (_, Call::Deregister) => EndReason::Finished,
        (Side::Client, _) => EndReason::ClientFailed,
        (_, Call::Dial | Call::Register | Call::CheckConnect) => EndReason::Finished, // failed over
        _ => EndReason::BackendFailed,
    };
    assert_eq!(end.reason, due);
    received.assert_honest(client.down);
    if due == EndReason::Finished {
        client.assert_came_down(&received);
    }
    let failed_over = has_struck && due == EndReason::Finished && call != Call::Deregister;
    assert_eq!(rig.watch.lock().failed.len(), usize::from(failed_over));
    rig.assert_serves_and_ends();
    has_struck
}

const LAST_WORDS: &[u8] = b"gone fishing";

/// Does something right before the first such call of the first pair.
fn before(side: Side, call: Call, act: impl Fn() + Send + Sync + 'static) -> Arc<Lab> {
    Lab::of_plain_sockets(move |moment: Moment| {
        if (moment.side, moment.call, moment.stream, moment.nth) == (side, call, 0, 0) {
            act();
        }
        Fault::Nothing
    })
}

/// The client sends all that it has to and expects no answer, so that to close is to have finished.
#[test]
fn c6_4_a_client_may_be_gone_before_any_call_of_its_pair() {
    let moments = [
        (Side::Client, Call::Accept),
        (Side::Client, Call::Register),
        (Side::Backend, Call::Dial),
        (Side::Backend, Call::Register),
        (Side::Client, Call::Translate),
        (Side::Backend, Call::CheckConnect),
        (Side::Client, Call::Read),
        (Side::Backend, Call::Write),
    ];
    for (side, call) in moments {
        for resets in [true, false] {
            println!("{call:?} of {side:?}, {resets}"); // shown if it fails
            let client = Arc::new(Mutex::new(None::<TcpStream>));
            let held = client.clone();
            let lab = before(side, call, move || {
                let client = held.lock().unwrap().take().unwrap();
                if resets {
                    reset(client);
                }
            });
            let rig = Rig::new(Server::builder(), 1, lab);
            {
                let mut client = client.lock().unwrap(); // until it has sent all
                let mut stream = rig.balancer.client();
                stream.write_all(LAST_WORDS).and_then(|()| stream.end()).unwrap();
                *client = Some(stream);
            }
            let due = if resets { EndReason::ClientFailed } else { EndReason::Finished };
            assert_eq!(rig.watch.end_of(0).reason, due);
            rig.assert_serves_and_ends();
        }
    }
}

/// A backend that resets or says something and ends before a call: before it counts as connected
/// the client goes on to another, after it the client sees what became of it.
#[test]
fn c5_3_c3_10_a_backend_may_be_gone_before_any_call_of_its_pair() {
    let moments = [
        (Side::Backend, Call::Register, true),
        (Side::Backend, Call::CheckConnect, true),
        (Side::Client, Call::Read, false),
        (Side::Backend, Call::Write, false),
    ];
    for (side, call, is_dialling) in moments {
        for resets in [true, false] {
            println!("{call:?} of {side:?}, {resets}"); // shown if it fails
            let mortal = ManualBackend::new();
            let addr = mortal.addr;
            let mortal = Mutex::new(Some(mortal)); // nobody is answered after the first
            let lab = before(side, call, move || {
                let mut peer = mortal.lock().unwrap().take().unwrap().accept();
                if resets {
                    reset(peer);
                } else {
                    peer.write_all(LAST_WORDS).unwrap();
                }
            });
            let rig = Rig::new(Server::builder(), 1, lab);
            let mut set = set_of(&rig.lab, &rig.backends);
            set.insert("0", rig.lab.backend(addr)); // comes first
            rig.balancer.update(set);
            let mut client = rig.balancer.client();
            client.write_all(b"anybody there?").unwrap();

            if resets && is_dialling {
                // It has gone on to the other, which hears what the client says.
                wait_for("the other", || rig.watch.lock().connected.get(&0).cloned());
                assert_eq!(rig.watch.lock().connected[&0], "a");
                drop(client);
            } else if resets {
                assert_eq!(assert_aborted(&mut client), b"");
                assert_eq!(rig.watch.end_of(0).reason, EndReason::BackendFailed);
            } else {
                let mut words = [0; LAST_WORDS.len()];
                client.read_exact(&mut words).unwrap();
                assert_eq!(words, LAST_WORDS);
                drop(client);
            }
            rig.assert_serves_and_ends();
        }
    }
}

/// Real `EINTR`, of the wait for events above all, as a host that handles signals may have it.
#[test]
fn c9_1_signals_on_its_thread_end_and_hold_up_nothing() {
    let (handled, is_over) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    signal_hook::flag::register_usize(signal_hook::consts::SIGUSR1, handled.clone(), 1).unwrap();
    let (backend, thread_id) = (TestBackend::echo("a"), Arc::<OnceLock<Pthread>>::default());
    let id = thread_id.clone();
    let observer = OnMoment(move |_| {
        let _ = id.set(pthread_self());
    });
    let builder = Server::builder().observer(observer);
    let balancer = Balancer::with(builder, set([("a", backend.addr)]));
    let (mut client, _) = balancer.tagged_client();
    let balancers = *thread_id.get().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                pthread_kill(balancers, Signal::SIGUSR1).unwrap();
                thread::sleep(Duration::from_micros(100));
            }
        });
        for _ in 0..50 {
            // Most of the time it is waiting for events.
            handled.store(0, SeqCst);
            wait_for("a signal is handled", || (handled.load(SeqCst) == 1).then_some(()));
            assert_echo(&mut client, b"still here");
            assert_echo(&mut balancer.tagged_client().0, b"so am I");
        }
        is_over.store(true, SeqCst);
    });
    balancer.control.shutdown().unwrap();
    assert_eq!(balancer.thread.join().unwrap().accepted, 51);
}
