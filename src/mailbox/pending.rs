//! [`Pending`]: the answer to a request, to be waited for or awaited.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{Sender, oneshot};
use crate::error::Error;

/// An answer of the balancer, which may not be there yet. What was asked for is done whether or not
/// anyone waits.
///
/// A thread waits for it with [`wait`](Self::wait) or [`wait_timeout`](Self::wait_timeout), or asks
/// with [`try_wait`](Self::try_wait). A task awaits it, on any executor:
///
/// ```
/// # use tinylb::{BackendSet, Control, Error};
/// # async fn replace(control: Control, set: BackendSet) -> Result<(), Error> {
/// let applied = control.update(set)?.await?;
/// println!("{} connections closed", applied.closed);
/// # Ok(())
/// # }
/// ```
///
/// Each clone waits by itself. Waiting again returns the same answer, also after the end.
///
/// # Errors
/// When the balancer ends without an answer, everyone who waits is told: [`Error::Stopped`], or
/// what [`Control::ended`](crate::Control::ended) says.
///
/// # Tasks
/// The task is woken on the balancer's thread, so the executor's `wake` must not block. Dropping
/// the future frees its waker and does not cancel the request. Blocking on the future *on the
/// balancer's own thread*, in an observer or a backend, is a deadlock: the future cannot know that
/// its executor blocks. `wait` and `wait_timeout` return an error there.
pub struct Pending<T> {
    answer: oneshot::Receiver<T>,
    sender: Sender,
}

impl<T> Pending<T> {
    pub(crate) fn new(answer: oneshot::Receiver<T>, sender: Sender) -> Self {
        Self { answer, sender }
    }
}

impl<T: Clone> Pending<T> {
    /// Waits for the answer.
    ///
    /// Before the start, an update is answered only once another thread runs the server or drops
    /// it. While waiting, hold no lock that your [`Observer`](crate::Observer) or
    /// [`Backend`](crate::Backend) takes.
    ///
    /// # Errors
    /// Why there will be no answer. [`Error::OwnThread`] on the balancer's own thread, unless the
    /// answer is there already.
    pub fn wait(&self) -> Result<T, Error> {
        let value = self.wait_until(None)?;
        Ok(value.expect("without a deadline, only an answer or an error ends the wait"))
    }

    /// Waits for the answer, at most this long. Returns `None` if there is none by then.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<T>, Error> {
        match Instant::now().checked_add(limit) {
            Some(deadline) => self.wait_until(Some(deadline)),
            None => self.wait().map(Some),
        }
    }

    /// Returns the answer if it is there by now. Never waits.
    ///
    /// # Errors
    /// Why there will be no answer.
    pub fn try_wait(&self) -> Result<Option<T>, Error> {
        self.answer.try_wait()
    }

    /// Waits until the deadline, if there is one. The loop's own thread gets the answer only if it
    /// is there already.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<T>, Error> {
        if let Some(value) = self.try_wait()? {
            return Ok(Some(value));
        }
        if self.sender.is_own_thread() {
            return Err(Error::OwnThread);
        }
        self.answer.wait_until(deadline)
    }
}

impl<T> Clone for Pending<T> {
    fn clone(&self) -> Self {
        Self::new(self.answer.clone(), self.sender.clone())
    }
}

/// Resolves to what [`wait`](Self::wait) returns. May be polled again afterwards.
impl<T: Clone> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.poll(context.waker())
    }
}

/// Shows the answer if it is there.
impl<T: Clone + fmt::Debug> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pending").field(&self.try_wait()).finish()
    }
}
