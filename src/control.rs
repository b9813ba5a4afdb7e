//! The handle that controls a running balancer.

use std::fmt;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::backend::BackendSet;
use crate::error::Error;
use crate::mailbox::{Reply, Sender, Stop};
use crate::net::Address;
use crate::pool::pending_update::Removal;
use crate::stats::{Applied, Stats};

/// Controls a balancer from any thread: replaces the backend set, reads the counters, stops it.
///
/// Returned by [`Server::control`](crate::Server::control). Clones control the same balancer.
/// Dropping them stops nothing. No method waits for traffic.
#[derive(Clone)]
pub struct Control {
    sender: Sender,
    local_addr: Address,
}

impl Control {
    pub(crate) fn new(sender: Sender, local_addr: Address) -> Self {
        Self { sender, local_addr }
    }

    /// Returns the address that the balancer listens on.
    pub fn local_addr(&self) -> &Address {
        &self.local_addr
    }

    /// Replaces the whole backend set, and closes every connection to a target that the new set
    /// does not name.
    ///
    /// Returns at once; wait for the returned [`Update`] to know that it is applied. The loop
    /// replaces the set in its next turn. In the same step it ends the connections to targets that
    /// are gone: none of their bytes is read or written from then on. Their sockets are closed in
    /// that step too; if there are many, in batches over the next turns, so that other connections
    /// do not wait.
    ///
    /// If updates come faster than they are applied, the last set wins. A target that any of them
    /// lacks still loses its earlier connections, even if a later update names it again.
    ///
    /// # Errors
    /// [`Error::Stopped`] after the end. [`Error::Wake`] if the balancer's thread cannot be woken;
    /// it then applies the update when something else wakes it.
    pub fn update(&self, set: BackendSet) -> Result<Update, Error> {
        self.sender.update(set, Removal::Close).map(Update)
    }

    /// Replaces the whole backend set, and lets connections to targets that it does not name finish
    /// within `limit`.
    ///
    /// New connections go to the new set only, and dials of removed targets are cancelled at once.
    /// When the limit runs out, the connections that are left are closed as by
    /// [`update`](Self::update). The limit counts from the turn that applies the update. A plain
    /// `update` that lacks the target closes its connections at once; any update that names it
    /// again lifts the limit. Of two limits for a target the earlier holds.
    ///
    /// # Errors
    /// Those of [`update`](Self::update).
    pub fn update_draining(&self, set: BackendSet, limit: Duration) -> Result<Update, Error> {
        self.sender.update(set, Removal::Drain(limit)).map(Update)
    }

    /// Returns a snapshot of the counters. Waits until the loop's next turn takes it.
    ///
    /// Before the start all counters are zero and no backend is listed, because updates are applied
    /// only then.
    ///
    /// # Errors
    /// [`Error::Stopped`] after the end. [`Error::OwnThread`] in an observer or backend.
    /// [`Error::Wake`] if the balancer's thread cannot be woken.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.sender.stats()
    }

    /// Ends the balancer: closes the listener, cancels dials, and aborts all connections.
    ///
    /// Returns at once; `run` returns when everything is closed. Before the start, it makes `run`
    /// return at once. After the end it does nothing.
    ///
    /// # Errors
    /// [`Error::Wake`] if the balancer's thread cannot be woken.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.sender.stop(Stop::Now)
    }

    /// Closes the listener and lets dials and connections finish within `limit`. Then aborts the
    /// rest and ends the balancer.
    ///
    /// The balancer ends sooner if no connection is left. Of two limits the earlier holds, and
    /// [`shutdown`](Self::shutdown) overrides both. Updates are still applied meanwhile. Like
    /// `shutdown`, it returns at once, may be called before the start, and does nothing after the
    /// end.
    ///
    /// # Errors
    /// [`Error::Wake`] if the balancer's thread cannot be woken.
    pub fn drain(&self, limit: Duration) -> Result<(), Error> {
        self.sender.stop(Stop::Drain(limit))
    }

    pub(crate) fn note_thread(&self, thread: ThreadId) {
        self.sender.note_thread(thread);
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// A submitted update. Dropping it does not cancel the update.
///
/// Once the update is *applied*, the balancer reads no byte from a removed target and writes none
/// to it, and both sockets of each connection to it are closed. Bytes already in a kernel, and the
/// last bytes of a stream that had ended before, may still arrive. A socket that another process
/// inherited stays open until that process closes it. After
/// [`update_draining`](Control::update_draining) all this holds once the limit has run out and the
/// sockets are closed, not yet when the update is applied.
///
/// Updates applied in one step all report the totals of that step.
#[derive(Clone)]
pub struct Update(Reply<Applied>);

impl Update {
    /// Waits until the update is applied.
    ///
    /// Before the start this waits until another thread runs the server or drops it. While waiting,
    /// hold no lock that your [`Observer`](crate::Observer) or [`Backend`](crate::Backend) takes.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the balancer ended first. [`Error::OwnThread`] on the balancer's own
    /// thread, unless the update is applied already.
    pub fn wait(&self) -> Result<Applied, Error> {
        self.0.wait()
    }

    /// Waits until the update is applied, at most this long. Returns `None` if it is not applied by
    /// then.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<Applied>, Error> {
        match Instant::now().checked_add(limit) {
            Some(deadline) => self.0.wait_until(Some(deadline)),
            None => self.0.wait().map(Some),
        }
    }

    /// Returns what the update did, if it is applied by now. Never waits: for threads that must not
    /// block.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let balancer = tinylb::Server::builder().build(listener)?.spawn()?;
    /// # let set = tinylb::BackendSet::new();
    /// let update = balancer.control().update(set)?;
    /// let applied = loop {
    ///     match update.poll()? {
    ///         Some(applied) => break applied,
    ///         // Or your runtime's sleep, with `.await`.
    ///         None => std::thread::sleep(std::time::Duration::from_millis(1)),
    ///     }
    /// };
    /// println!("{} connections closed", applied.closed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Stopped`] if the balancer ended first.
    pub fn poll(&self) -> Result<Option<Applied>, Error> {
        self.0.try_wait()
    }
}

impl fmt::Debug for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Update").field(&self.0.try_wait()).finish()
    }
}
