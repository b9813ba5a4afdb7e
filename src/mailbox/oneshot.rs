//! One value from the loop to any number of waiters: threads that block, and tasks that are woken.

use std::mem;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::error::Error;
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// The end that sends the value. Dropped without sending, it closes the other ends.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
    if_dropped: Closed,
}

/// An end that waits for the value. Each clone has a waker of its own.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The key of the waker in [`State::Waiting`], if a task has polled this end.
    waker: Option<usize>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    is_settled: Condvar,
}

#[derive(Debug)]
enum State<T> {
    /// The tasks that wait; threads wait on the condition variable. Allocates for the first task.
    Waiting(Slab<Waker>),
    Sent(T),
    Closed(Closed),
}

/// Why a value will never be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Stopped,
    Panicked,
    Failed,
}

impl From<Closed> for Error {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Stopped => Self::Stopped,
            Closed::Panicked => Self::Panicked,
            Closed::Failed => Self::Failed,
        }
    }
}

impl<T> Sender<T> {
    pub(crate) fn new() -> Self {
        let (state, is_settled) = (Mutex::new(State::Waiting(Slab::new())), Condvar::new());
        Self { shared: Arc::new(Shared { state, is_settled }), if_dropped: Closed::Stopped }
    }

    /// Returns another receiver.
    pub(crate) fn receiver(&self) -> Receiver<T> {
        Receiver { shared: self.shared.clone(), waker: None }
    }

    pub(crate) fn send(self, value: T) {
        self.shared.settle(State::Sent(value));
    }

    /// Sets what receivers are told if this end is dropped without sending. `Stopped` until then.
    pub(crate) fn set_if_dropped(&mut self, closed: Closed) {
        self.if_dropped = closed;
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.settle(State::Closed(self.if_dropped));
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    /// Sets the final state and wakes everyone who waits. Only the first call counts: a sender that
    /// is dropped may have sent before.
    fn settle(&self, settled: State<T>) {
        let mut state = self.lock();
        let State::Waiting(wakers) = &mut *state else { return };
        let wakers = mem::take(wakers);
        *state = settled;
        self.is_settled.notify_all();
        // A waker is the executor's code, which may poll at once.
        drop(state);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl<T: Clone> State<T> {
    fn result(&self) -> Result<Option<T>, Error> {
        match self {
            Self::Waiting(_) => Ok(None),
            Self::Sent(value) => Ok(Some(value.clone())),
            Self::Closed(closed) => Err((*closed).into()),
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), waker: None }
    }
}

/// Frees the waker of a task that gives up.
impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let Some(waker) = self.waker else { return };
        let mut state = self.shared.lock();
        let State::Waiting(wakers) = &mut *state else { return };
        let waker = wakers.try_remove(waker);
        if wakers.is_empty() {
            *wakers = Slab::new(); // with its memory
        }
        // Dropping a waker may drop a task, and with it another receiver.
        drop(state);
        drop(waker);
    }
}

impl<T: Clone> Receiver<T> {
    /// Returns the value if it was sent by now.
    ///
    /// # Errors
    /// Why it never will be.
    pub(crate) fn try_wait(&self) -> Result<Option<T>, Error> {
        self.shared.lock().result()
    }

    /// Returns the value if it was sent by now; otherwise wakes the task when it is.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Result<T, Error>> {
        // Not while the state is locked: a waker is the executor's code, even to clone and to drop.
        let waker = waker.clone();
        let mut state = self.shared.lock();
        let State::Waiting(wakers) = &mut *state else {
            return state.result().transpose().map_or(Poll::Pending, Poll::Ready);
        };
        let replaced = match self.waker {
            Some(known) => Some(mem::replace(&mut wakers[known], waker)),
            None => {
                self.waker = Some(wakers.insert(waker));
                None
            }
        };
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Waits for the value until the deadline, if there is one.
    ///
    /// # Errors
    /// Why it will never be sent.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<T>, Error> {
        let mut state = self.shared.lock();
        while matches!(*state, State::Waiting(_)) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let is_settled = &self.shared.is_settled;
            state = match left {
                None => is_settled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = is_settled.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.result()
    }
}

#[cfg(all(test, not(tinylb_loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn poll(receiver: &mut Receiver<u8>, task: &Arc<Wakes>) -> Poll<Option<u8>> {
        receiver.poll(&task.clone().into()).map(Result::ok)
    }

    #[test]
    fn c7_6_a_thousand_tasks_that_wait_for_one_value_are_all_woken_once() {
        let sender = Sender::new();
        let mut tasks: Vec<_> =
            (0..1000).map(|_| (sender.receiver(), Arc::new(Wakes::default()))).collect();
        for _ in 0..3 {
            for (receiver, task) in &mut tasks {
                assert!(poll(receiver, task).is_pending());
            }
        }
        sender.send(7);
        for (receiver, task) in &mut tasks {
            assert_eq!((task.count(), poll(receiver, task)), (1, Poll::Ready(Some(7))));
            assert_eq!(poll(receiver, task), Poll::Ready(Some(7)), "polled again");
            assert_eq!(Arc::strong_count(task), 1, "its waker is kept");
        }
    }

    #[test]
    fn c7_6_the_last_task_that_polled_is_woken_and_each_clone_has_its_own() {
        let sender = Sender::new();
        let tasks = [(); 3].map(|()| Arc::new(Wakes::default()));
        let mut receiver = sender.receiver();
        assert!(poll(&mut receiver, &tasks[0]).is_pending());
        let mut clone = receiver.clone();
        assert!(poll(&mut receiver, &tasks[1]).is_pending());
        assert!(poll(&mut clone, &tasks[2]).is_pending());
        assert_eq!(Arc::strong_count(&tasks[0]), 1, "its waker is kept");
        drop(sender);
        assert_eq!(tasks.each_ref().map(|task| task.count()), [0, 1, 1]);
        assert_eq!(poll(&mut clone, &tasks[2]), Poll::Ready(None));
    }

    #[test]
    fn c3_6_a_receiver_that_is_dropped_frees_its_waker_and_the_last_one_all_memory() {
        let sender = Sender::<u8>::new();
        let task = Arc::new(Wakes::default());
        let mut receivers: Vec<_> = (0..100).map(|_| sender.receiver()).collect();
        for receiver in &mut receivers {
            assert!(poll(receiver, &task).is_pending());
        }
        assert_eq!(Arc::strong_count(&task), 101);
        receivers.truncate(50);
        assert_eq!(Arc::strong_count(&task), 51);
        receivers.clear();
        assert_eq!(Arc::strong_count(&task), 1);
        let State::Waiting(wakers) = &*sender.shared.lock() else { panic!("settled") };
        assert_eq!(wakers.capacity(), 0);
    }

    /// A task that waits for the value, too. It is dropped with its last waker, and its executor
    /// polls it at once when it is woken.
    struct Eager(Mutex<Receiver<u8>>);

    impl Eager {
        fn waker(receiver: &Receiver<u8>) -> Waker {
            let mut receiver = receiver.clone();
            assert!(receiver.poll(Waker::noop()).is_pending());
            Arc::new(Self(Mutex::new(receiver))).into()
        }
    }

    impl Wake for Eager {
        fn wake(self: Arc<Self>) {
            assert!(lock(&self.0).poll(Waker::noop()).is_ready());
        }
    }

    #[test]
    fn c7_6_wakers_are_called_and_dropped_while_nothing_is_locked() {
        let sender = Sender::new();
        let receiver = sender.receiver();
        let mut polled = receiver.clone();
        for _ in 0..2 {
            assert!(polled.poll(&Eager::waker(&receiver)).is_pending()); // drops the one before
        }
        drop(polled);
        let mut polled = receiver.clone();
        let waker = Eager::waker(&receiver);
        assert!(polled.poll(&waker).is_pending());
        sender.send(7);
        assert!(polled.poll(&waker).is_ready());
    }

    #[test]
    fn c7_6_it_may_be_moved_and_shared_between_threads() {
        fn is_all<T: Send + Sync + Clone + Unpin>() {}
        is_all::<crate::Pending<u8>>();
    }
}
