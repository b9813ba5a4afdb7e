//! From the host's threads to the loop: a mailbox whose size does not depend on how much is put into it, and a waker.
//!
//! Whoever waits holds a [`Reply`] to a [`Promise`] that the loop keeps or, by ending, breaks.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::backend::BackendSet;
use crate::error::Error;
use crate::pool::pending::{PendingUpdate, Removal};
use crate::stats::{Applied, Stats};
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Waker, current_thread};

/// A mailbox that wakes the loop, and the loop's end of it.
pub(crate) fn channel(waker: Arc<Waker>) -> (Sender, Receiver) {
    let mailbox = Mailbox {
        run: Run::Unstarted,
        waker: Some(waker),
        update: None,
        stats: None,
        stop: None,
        targets: Arc::new([]),
    };
    let shared =
        Arc::new(Post { mailbox: Mutex::new(mailbox), take_pending: AtomicBool::new(true) });
    (Sender(shared.clone()), Receiver(shared))
}

/// The hosts' end; any number of clones.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Post>);

/// The loop's end. Dropping it answers everything with "stopped", now and from then on.
pub(crate) struct Receiver(Arc<Post>);

struct Post {
    mailbox: Mutex<Mailbox>,
    /// Set before the loop is woken, which looks at it in every turn: the waker's event may come many turns late, behind
    /// those of thousands of sockets.
    take_pending: AtomicBool,
}

struct Mailbox {
    run: Run,
    /// Gone with the loop, so that no control handle keeps a descriptor open.
    waker: Option<Arc<Waker>>,
    update: Option<(PendingUpdate, Promise<Applied>)>,
    stats: Option<Promise<Stats>>,
    stop: Option<Stop>,
    /// The targets that pairs can have, by which updates are merged.
    targets: Arc<[Arc<str>]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Unstarted,
    On(ThreadId),
    Over,
}

/// How the loop shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Now,
    Drain(Duration),
}

impl Stop {
    /// `shutdown` overrides, and of two limits given at once the shorter holds.
    fn merge(self, other: Option<Self>) -> Self {
        match (self, other) {
            (Self::Drain(limit), Some(Self::Drain(another))) => Self::Drain(limit.min(another)),
            (Self::Now, _) | (_, Some(Self::Now)) => Self::Now,
            (drain, None) => drain,
        }
    }
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        // No invariant spans an unlock, so a panic elsewhere has broken none.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the loop of what was put into the mailbox, which is still locked so that the waker stays.
    fn wake(&self, mailbox: &Mailbox) -> Result<(), Error> {
        self.take_pending.store(true, Ordering::Release);
        mailbox.waker.as_ref().map_or(Ok(()), |waker| waker.wake()).map_err(Error::Wake)
    }
}

impl Sender {
    pub(crate) fn update(
        &self,
        set: BackendSet,
        removal: Removal,
    ) -> Result<Reply<Applied>, Error> {
        let mut mailbox = self.0.lock();
        if mailbox.run == Run::Over {
            return Err(Error::Stopped);
        }
        let (earlier, promise) = mailbox.update.take().unzip();
        let merged = match &earlier {
            Some(earlier) => earlier.then(set, removal, &mailbox.targets),
            None => PendingUpdate::new(set, removal),
        };
        let promise = promise.unwrap_or_else(Promise::new);
        let answer = promise.answer.clone();
        mailbox.update = Some((merged, promise));
        let woken = self.0.wake(&mailbox);
        drop(mailbox); // before `earlier`, whose backends are the host's and may call in here as they are dropped
        woken?;
        Ok(Reply { answer, sender: self.clone() })
    }

    pub(crate) fn stats(&self) -> Result<Stats, Error> {
        let mut mailbox = self.0.lock();
        match mailbox.run {
            Run::Over => return Err(Error::Stopped),
            // Nothing has happened, and nobody knows whether `run` will ever be called.
            Run::Unstarted => return Ok(Stats::default()),
            Run::On(_) => {}
        }
        let answer = mailbox.stats.get_or_insert_with(Promise::new).answer.clone();
        self.0.wake(&mailbox)?;
        drop(mailbox);
        Reply { answer, sender: self.clone() }.wait()
    }

    pub(crate) fn stop(&self, stop: Stop) -> Result<(), Error> {
        let mut mailbox = self.0.lock();
        if mailbox.run == Run::Over {
            return Ok(());
        }
        mailbox.stop = Some(stop.merge(mailbox.stop));
        self.0.wake(&mailbox)
    }

    /// The loop is about to run on this thread: from now on whoever asks is answered.
    pub(crate) fn note_thread(&self, thread: ThreadId) {
        let mut mailbox = self.0.lock();
        if mailbox.run == Run::Unstarted {
            mailbox.run = Run::On(thread);
        }
    }

    fn is_own_thread(&self) -> bool {
        self.0.lock().run == Run::On(current_thread())
    }
}

/// What the loop is asked for, but for updates.
pub(crate) struct Orders {
    pub(crate) stats: Option<Promise<Stats>>,
    pub(crate) stop: Option<Stop>,
}

impl Receiver {
    /// The loop runs from now on, on this thread.
    pub(crate) fn start(&self) {
        self.0.lock().run = Run::On(current_thread());
    }

    /// Whether something was put in since this was last asked; the first time it says so in any case.
    pub(crate) fn take_pending(&self) -> bool {
        self.0.take_pending.load(Ordering::Relaxed)
            && self.0.take_pending.swap(false, Ordering::Acquire)
    }

    /// Hands the waiting update to `replace`, which returns the targets that pairs can have from then on.
    ///
    /// That is one step for the senders: an update is merged either before it or by the new targets.
    pub(crate) fn take_update<T>(
        &self,
        replace: impl FnOnce(PendingUpdate) -> (T, Arc<[Arc<str>]>),
    ) -> Option<(T, Promise<Applied>)> {
        let mut mailbox = self.0.lock();
        let (update, promise) = mailbox.update.take()?;
        let (replaced, targets) = replace(update);
        mailbox.targets = targets;
        Some((replaced, promise))
    }

    pub(crate) fn take_orders(&self) -> Orders {
        let mut mailbox = self.0.lock();
        Orders { stats: mailbox.stats.take(), stop: mailbox.stop.take() }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut mailbox = self.0.lock();
        mailbox.run = Run::Over;
        let (update, promise) = mailbox.update.take().unzip();
        let rest =
            (promise, mailbox.stats.take(), mailbox.waker.take(), mem::take(&mut mailbox.targets));
        // The host's backends are dropped with the update, and may call in here, or wait for who waits for it.
        drop(mailbox);
        drop(rest);
        drop(update);
    }
}

/// The loop's word to answer. Dropping it unkept answers "stopped".
#[derive(Debug)]
pub(crate) struct Promise<T> {
    answer: Arc<Answer<T>>,
}

#[derive(Debug)]
struct Answer<T> {
    state: Mutex<AnswerState<T>>,
    given: Condvar,
}

#[derive(Debug)]
enum AnswerState<T> {
    Awaited,
    Given(T),
    Broken,
}

impl<T> Promise<T> {
    fn new() -> Self {
        let answer = Answer { state: Mutex::new(AnswerState::Awaited), given: Condvar::new() };
        Self { answer: Arc::new(answer) }
    }

    pub(crate) fn keep(self, value: T) {
        self.answer.give(AnswerState::Given(value));
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.answer.give(AnswerState::Broken);
    }
}

impl<T> Answer<T> {
    fn lock(&self) -> MutexGuard<'_, AnswerState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first answer stands.
    fn give(&self, answer: AnswerState<T>) {
        let mut state = self.lock();
        if matches!(*state, AnswerState::Awaited) {
            *state = answer;
            self.given.notify_all();
        }
    }
}

/// Where the answer to a request will be.
#[derive(Clone)]
pub(crate) struct Reply<T> {
    answer: Arc<Answer<T>>,
    sender: Sender,
}

impl<T: Clone> Reply<T> {
    /// The answer, if there is one yet.
    pub(crate) fn poll(&self) -> Result<Option<T>, Error> {
        match &*self.answer.lock() {
            AnswerState::Awaited => Ok(None),
            AnswerState::Given(value) => Ok(Some(value.clone())),
            AnswerState::Broken => Err(Error::Stopped),
        }
    }

    /// Waits for the answer.
    pub(crate) fn wait(&self) -> Result<T, Error> {
        loop {
            if let Some(value) = self.wait_until(None)? {
                return Ok(value);
            }
        }
    }

    /// Waits for the answer until then.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<T>, Error> {
        if let Some(value) = self.poll()? {
            return Ok(Some(value));
        }
        if self.sender.is_own_thread() {
            return Err(Error::OwnThread);
        }
        let mut state = self.answer.lock();
        while matches!(*state, AnswerState::Awaited) {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.answer.given.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.answer
                        .given
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        drop(state);
        self.poll()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c9_1_the_loop_looks_into_its_mailbox_only_if_something_was_put_in() {
        let poll = mio::Poll::new().unwrap();
        let (sender, receiver) =
            channel(Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap()));
        assert!(receiver.take_pending() && !receiver.take_pending());
        sender.stop(Stop::Now).unwrap();
        assert!(receiver.take_pending() && !receiver.take_pending());
    }

    #[test]
    fn c7_2_of_two_limits_given_at_once_the_earlier_holds_and_shutdown_overrides() {
        let drain = |secs| Stop::Drain(Duration::from_secs(secs));
        for (new, old, both) in [
            (drain(2), None, drain(2)),
            (drain(2), Some(drain(1)), drain(1)),
            (drain(1), Some(drain(2)), drain(1)),
            (Stop::Now, None, Stop::Now),
            (Stop::Now, Some(drain(1)), Stop::Now),
            (drain(1), Some(Stop::Now), Stop::Now),
        ] {
            assert_eq!(new.merge(old), both, "{old:?}, then {new:?}");
        }
    }
}
