//! One value from the loop to any number of waiters.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// The end that sends the value. Dropped without sending, it closes the other ends.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// An end that waits for the value.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    is_settled: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Waiting,
    Sent(T),
    Closed,
}

impl<T> Sender<T> {
    pub(crate) fn new() -> Self {
        let (state, is_settled) = (Mutex::new(State::Waiting), Condvar::new());
        Self(Arc::new(Shared { state, is_settled }))
    }

    /// Returns another receiver.
    pub(crate) fn receiver(&self) -> Receiver<T> {
        Receiver(self.0.clone())
    }

    pub(crate) fn send(self, value: T) {
        self.0.settle(State::Sent(value));
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.settle(State::Closed);
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    /// The first settlement stands: a sender that is dropped may have sent.
    fn settle(&self, settled: State<T>) {
        let mut state = self.lock();
        if matches!(*state, State::Waiting) {
            *state = settled;
            self.is_settled.notify_all();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Receiver<T> {
    /// Returns the value if it was sent by now.
    ///
    /// # Errors
    /// `Stopped` if it never will be.
    pub(crate) fn try_wait(&self) -> Result<Option<T>, Error> {
        match &*self.0.lock() {
            State::Waiting => Ok(None),
            State::Sent(value) => Ok(Some(value.clone())),
            State::Closed => Err(Error::Stopped),
        }
    }

    /// Waits for the value until the deadline, if there is one.
    ///
    /// # Errors
    /// `Stopped` if it will never be sent.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<T>, Error> {
        let mut state = self.0.lock();
        while matches!(*state, State::Waiting) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.0.is_settled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.0.is_settled.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        drop(state);
        self.try_wait()
    }
}
