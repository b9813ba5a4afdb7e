//! The mailbox in every order that its threads may come in.
//!
//! Each model is small, since loom runs it once for each order; a wake-up that is lost or an answer
//! that never comes shows as a deadlock.
//!
//! ```sh
//! RUSTFLAGS="--cfg tinylb_loom" cargo test --release --lib --target-dir target/loom loom
//! ```

use std::ops::ControlFlow;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::{Duration, Instant};

use loom::thread::{self, JoinHandle};

use crate::backend::BackendSet;
use crate::backend::TcpBackend;
use crate::error::Error;
use crate::mailbox::{Pending, Receiver, Requests, Sender, Stop, UpdateRequest, channel, oneshot};
use crate::pool::merged_update::Outcome as TargetOutcome;
use crate::pool::merged_update::{LiveTargets, Removal};
use crate::stats::{Applied, Stats, Summary};
use crate::sync::LOOP;
use crate::sync::Waker;

const TARGET: &str = "127.0.0.1:1";
const OTHER: &str = "127.0.0.1:2";
const ANOTHER: &str = "127.0.0.1:3";

/// Both ends of a mailbox, and the bed of the loop.
fn mailbox() -> (Sender, EventLoop) {
    let waker = Arc::new(Waker::of_nothing_else());
    let (sender, receiver) = channel(waker.clone());
    (
        sender,
        EventLoop {
            receiver,
            waker,
            in_force: BackendSet::new(),
            has_closed_target: false,
            stop: None,
        },
    )
}

/// The same when there may be pairs to `TARGET` already.
fn mailbox_with_pairs() -> (Sender, EventLoop) {
    let (sender, mut event_loop) = mailbox();
    update(&sender, &[TARGET]).unwrap();
    assert!(event_loop.turn(&|_| false).is_continue());
    (sender, event_loop)
}

/// As much of the loop as the mailbox sees.
struct EventLoop {
    receiver: Receiver,
    waker: Arc<Waker>,
    in_force: BackendSet,
    /// Whether any pair to `TARGET` has been closed.
    has_closed_target: bool,
    stop: Option<Stop>,
}

/// What the loop came to.
struct Outcome {
    in_force: BackendSet,
    has_closed_target: bool,
    stop: Option<Stop>,
    waker: Arc<Waker>,
}

impl EventLoop {
    fn spawn(self, until: impl Fn(&Self) -> bool + Send + 'static) -> JoinHandle<Outcome> {
        thread::Builder::new().name(LOOP.to_owned()).spawn(move || self.run(until)).unwrap()
    }

    /// Takes turns, and sleeps in between, until it has seen enough.
    fn run(mut self, until: impl Fn(&Self) -> bool) -> Outcome {
        self.receiver.start();
        while self.turn(&until).is_continue() {
            self.waker.sleep();
        }
        let Self { in_force, has_closed_target, stop, waker, .. } = self;
        Outcome { in_force, has_closed_target, stop, waker }
    }

    fn turn(&mut self, until: &impl Fn(&Self) -> bool) -> ControlFlow<()> {
        if let Some(Requests { update, stats, stop }) = self.receiver.take_pending() {
            if let Some(update) = update {
                self.apply_update(update);
            }
            self.stop = stop.or(self.stop);
            if let Some(reply) = stats {
                reply.send(Stats { accepted: 7, ..Stats::default() });
            }
        }
        if until(self) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn apply_update(&mut self, request: UpdateRequest) {
        let update = self.receiver.merged(&request);
        if self.in_force.contains_key(TARGET) {
            let outcome = update.outcome(TARGET, update.set.contains_key(TARGET));
            self.has_closed_target |= outcome == TargetOutcome::Close;
        }
        self.in_force = update.set.clone();
        self.receiver.set_live_targets(LiveTargets::new(self.in_force.clone(), Arc::new([])));
        request.applied.send(Applied { backends: self.in_force.len(), ..Applied::default() });
    }
}

fn set(targets: &[&str]) -> BackendSet {
    targets.iter().map(|target| (*target, TcpBackend::new(target.parse().unwrap()))).collect()
}

fn update(sender: &Sender, targets: &[&str]) -> Result<Pending<Applied>, Error> {
    sender.update(set(targets), Removal::Close)
}

/// Another host's thread.
fn host<T: Send + 'static>(
    sender: &Sender,
    act: impl FnOnce(Sender) -> T + Send + 'static,
) -> JoinHandle<T> {
    let sender = sender.clone();
    thread::spawn(move || act(sender))
}

/// Every answer but "stopped" is an answer.
fn unless_stopped<T>(answer: Result<T, Error>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(Error::Stopped) => None,
        Err(err) => panic!("{err}"),
    }
}

#[test]
fn loom_c3_1_an_update_wakes_the_loop_and_its_waiter_is_told() {
    loom::model(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| !event_loop.in_force.is_empty());
        assert_eq!(update(&sender, &[TARGET]).unwrap().wait().unwrap().backends, 1);
        event_loop.join().unwrap();
    });
}

#[test]
fn loom_c3_6_the_last_update_wins_and_every_waiter_is_told() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| event_loop.in_force.len() == 2);
        let first = update(&sender, &[TARGET]).unwrap();
        let last = update(&sender, &[TARGET, OTHER]).unwrap();
        assert!(matches!(first.wait().unwrap().backends, 1 | 2));
        assert_eq!(last.wait().unwrap().backends, 2);
        assert_eq!(event_loop.join().unwrap().in_force, set(&[TARGET, OTHER]));
    });
}

#[test]
fn loom_c3_6_a_removal_between_two_updates_is_never_lost() {
    loom::model(|| {
        let (sender, event_loop) = mailbox_with_pairs();
        let event_loop = event_loop.spawn(|event_loop| event_loop.in_force.len() == 2);
        update(&sender, &[OTHER]).unwrap();
        update(&sender, &[OTHER, TARGET]).unwrap();
        assert!(event_loop.join().unwrap().has_closed_target);
    });
}

#[test]
fn loom_c3_6_nor_is_a_removal_lost_between_two_hosts() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox_with_pairs();
        let event_loop = event_loop.spawn(|event_loop| event_loop.stop.is_some());
        let another = host(&sender, |sender| update(&sender, &[OTHER]).unwrap().wait().unwrap());
        update(&sender, &[OTHER, TARGET]).unwrap().wait().unwrap();
        another.join().unwrap();
        sender.stop(Stop::Now).unwrap();
        assert!(
            event_loop.join().unwrap().has_closed_target,
            "one of the updates lacks it, whichever was first"
        );
    });
}

#[test]
fn loom_c3_6_updates_are_merged_by_the_targets_that_are_in_force_then() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox_with_pairs();
        let event_loop = event_loop.spawn(|event_loop| event_loop.in_force.len() == 3);
        // If it is taken by itself, there are two targets to judge from then on.
        update(&sender, &[TARGET, OTHER]).unwrap();
        update(&sender, &[OTHER]).unwrap();
        update(&sender, &[OTHER, TARGET, ANOTHER]).unwrap();
        assert!(event_loop.join().unwrap().has_closed_target);
    });
}

#[test]
fn loom_c3_5_all_who_wait_for_one_update_are_told() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| !event_loop.in_force.is_empty());
        let reply = update(&sender, &[TARGET]).unwrap();
        let copy = reply.clone();
        let another = thread::spawn(move || copy.wait().unwrap());
        assert_eq!(reply.wait().unwrap(), another.join().unwrap());
        assert_eq!(reply.try_wait().unwrap().map(|applied| applied.backends), Some(1));
        event_loop.join().unwrap();
    });
}

/// A task, and the thread that sleeps until it is woken.
struct Task(Waker);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.wake().unwrap();
    }
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self(Waker::of_nothing_else()))
    }

    fn poll<T: Clone>(self: &Arc<Self>, pending: &mut Pending<T>) -> Poll<Result<T, Error>> {
        let waker = self.clone().into();
        Pin::new(pending).poll(&mut Context::from_waker(&waker))
    }
}

/// Awaits an answer as an executor does, which polls again only if the task was woken.
fn block_on<T: Clone>(mut pending: Pending<T>) -> Result<T, Error> {
    let task = Task::new();
    loop {
        match task.poll(&mut pending) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => task.0.sleep(),
        }
    }
}

#[test]
fn loom_c7_6_all_tasks_that_await_one_update_are_woken() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| !event_loop.in_force.is_empty());
        let update = update(&sender, &[TARGET]).unwrap();
        let copy = update.clone();
        let another = thread::spawn(move || block_on(copy).unwrap());
        assert_eq!(block_on(update.clone()).unwrap(), another.join().unwrap());
        assert_eq!(block_on(update).unwrap().backends, 1, "awaited again");
        event_loop.join().unwrap();
    });
}

#[test]
fn loom_c7_6_a_task_that_gives_up_while_it_is_answered_leaves_no_waker() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| !event_loop.in_force.is_empty());
        let mut given_up = update(&sender, &[TARGET]).unwrap();
        let update = given_up.clone();
        let (first, second) = (Task::new(), Task::new());
        let is_told = first.poll(&mut given_up).is_ready() || second.poll(&mut given_up).is_ready();
        drop(given_up);
        assert_eq!(update.wait().unwrap().backends, 1);
        event_loop.join().unwrap(); // which may be waking the task until then
        assert_eq!([first, second].map(|task| Arc::strong_count(&task)), [1, 1], "{is_told}");
    });
}

#[test]
fn loom_c7_6_a_task_that_awaits_an_update_is_woken_when_the_balancer_is_dropped_unrun() {
    loom::model(|| {
        let (sender, event_loop) = mailbox();
        let another = host(&sender, |sender| update(&sender, &[TARGET]).and_then(block_on));
        drop(event_loop);
        assert!(unless_stopped(another.join().unwrap()).is_none());
    });
}

#[test]
fn loom_c7_6_tasks_that_await_the_end_are_told_even_if_the_loop_is_dropped_first() {
    for panics in [false, true] {
        within_bounds(move || {
            let (sender, event_loop) = mailbox();
            let mut ended = oneshot::Sender::new();
            let end = Pending::new(ended.receiver(), sender.clone());
            let run = move || {
                ended.set_if_dropped(oneshot::Closed::Panicked);
                drop(event_loop.run(|event_loop| event_loop.stop.is_some()));
                if !panics {
                    ended.send(Summary { accepted: 7, ..Summary::default() });
                }
            };
            let event_loop = thread::Builder::new().name(LOOP.to_owned()).spawn(run).unwrap();
            let copy = end.clone();
            let another = thread::spawn(move || copy.wait());
            sender.stop(Stop::Now).unwrap();
            for end in [block_on(end), another.join().unwrap()] {
                match end {
                    Ok(summary) => assert!(summary.accepted == 7 && !panics),
                    Err(err) => assert!(matches!(err, Error::Panicked) && panics, "{err}"),
                }
            }
            event_loop.join().unwrap();
        });
    }
}

#[test]
fn loom_c3_5_who_waits_with_a_limit_is_told_or_goes_on() {
    loom::model(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| !event_loop.in_force.is_empty());
        let reply = update(&sender, &[TARGET]).unwrap();
        let now = Instant::now();
        assert!(reply.wait_until(Some(now)).unwrap().is_none_or(|applied| applied.backends == 1));
        // Loom's time stands still, so this is a wait without a limit by another way.
        assert!(reply.wait_until(Some(now + Duration::from_secs(3600))).unwrap().is_some());
        event_loop.join().unwrap();
    });
}

#[test]
fn loom_c7_4_who_waits_for_an_update_is_released_when_the_loop_ends() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| event_loop.stop.is_some());
        let another = host(&sender, |sender| sender.stop(Stop::Now).unwrap());
        let answer = update(&sender, &[TARGET]).and_then(|reply| reply.wait());
        let is_in_force = !event_loop.join().unwrap().in_force.is_empty();
        assert_eq!(
            unless_stopped(answer).is_some(),
            is_in_force,
            "what is applied is told, and nothing else"
        );
        another.join().unwrap();
    });
}

#[test]
fn loom_c7_4_who_waits_is_released_when_the_balancer_is_dropped_unrun() {
    loom::model(|| {
        let (sender, event_loop) = mailbox();
        let another =
            host(&sender, |sender| update(&sender, &[TARGET]).and_then(|reply| reply.wait()));
        drop(event_loop);
        assert!(unless_stopped(another.join().unwrap()).is_none());
    });
}

#[test]
fn loom_c7_4_counters_are_told_or_refused_while_the_loop_begins_and_ends() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| event_loop.stop.is_some());
        let another = host(&sender, |sender| sender.stop(Stop::Now).unwrap());
        let accepted = unless_stopped(sender.stats().and_then(|stats| stats.wait()))
            .map(|stats| stats.accepted);
        assert!(
            matches!(accepted, None | Some(0 | 7)),
            "the loop's, or those of one that does not run yet"
        );
        event_loop.join().unwrap();
        another.join().unwrap();
    });
}

#[test]
fn loom_c7_4_after_the_end_everything_says_so_and_the_waker_is_gone() {
    loom::model(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| event_loop.stop.is_some());
        sender.stop(Stop::Drain(Duration::ZERO)).unwrap();
        let outcome = event_loop.join().unwrap();
        assert_eq!(Arc::strong_count(&outcome.waker), 1);
        assert!(unless_stopped(update(&sender, &[TARGET])).is_none());
        assert!(unless_stopped(sender.stats()).is_none());
        sender.stop(Stop::Now).unwrap();
    });
}

#[test]
fn loom_c7_2_of_two_orders_to_stop_neither_is_lost() {
    within_bounds(|| {
        let (sender, event_loop) = mailbox();
        let event_loop = event_loop.spawn(|event_loop| event_loop.stop == Some(Stop::Now));
        let another =
            host(&sender, |sender| sender.stop(Stop::Drain(Duration::from_secs(1))).unwrap());
        sender.stop(Stop::Now).unwrap();
        another.join().unwrap();
        event_loop.join().unwrap();
    });
}

#[test]
fn loom_c7_4_the_loops_own_thread_is_told_that_it_cannot_wait_for_itself() {
    loom::model(|| {
        let (sender, event_loop) = mailbox();
        let reply = update(&sender, &[TARGET]).unwrap();
        let event_loop = event_loop.spawn(move |event_loop| {
            if event_loop.in_force.is_empty() {
                assert!(matches!(reply.wait(), Err(Error::OwnThread)));
            }
            assert!(matches!(sender.stats().unwrap().wait(), Err(Error::OwnThread)));
            true
        });
        event_loop.join().unwrap();
    });
}

/// Some models have too many orders to try them all: those in which threads are interrupted at most
/// so often, which finds what is to be found.
fn within_bounds(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
