//! The handle that controls a running balancer.

use std::fmt;
use std::thread::ThreadId;
use std::time::Duration;

use crate::backend::BackendSet;
use crate::error::Error;
use crate::mailbox::{Pending, Sender, Stop, oneshot};
use crate::net::Address;
use crate::pool::merged_update::Removal;
use crate::stats::{Applied, Stats, Summary};

/// Controls a balancer from any thread: replaces the backend set, reads the counters, stops it.
///
/// Returned by [`Server::control`](crate::Server::control). Clones control the same balancer.
/// Dropping them stops nothing. No method waits for traffic.
#[derive(Clone)]
pub struct Control {
    sender: Sender,
    local_addr: Address,
    ended: oneshot::Receiver<Summary>,
}

impl Control {
    pub(crate) fn new(
        sender: Sender,
        local_addr: Address,
        ended: oneshot::Receiver<Summary>,
    ) -> Self {
        Self { sender, local_addr, ended }
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
        self.sender.update(set, Removal::Close)
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
        self.sender.update(set, Removal::Drain(limit))
    }

    /// Asks for a snapshot of the counters. The loop's next turn takes it.
    ///
    /// Before the start it is there at once: all counters are zero and no backend is listed,
    /// because updates are applied only then.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let balancer = tinylb::Server::builder().build(listener)?.spawn()?;
    /// # let control = balancer.control();
    /// let stats = control.stats()?.wait()?; // or `.await?` in a task
    /// println!("{} connections open", stats.open);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Stopped`] after the end. [`Error::Wake`] if the balancer's thread cannot be woken.
    pub fn stats(&self) -> Result<Pending<Stats>, Error> {
        self.sender.stats()
    }

    /// Returns a [`Pending`] that is answered at the end. It can be called before the start, and
    /// after the end.
    ///
    /// The answer is the summary that [`Server::run`] returns. It is there once all sockets are
    /// closed; the balancer's thread ends shortly after. Waiting for the end does not end the
    /// balancer.
    ///
    /// # Errors
    /// Of the returned [`Pending`]: [`Error::Stopped`] if the server was dropped without being run.
    /// [`Error::Panicked`] if it panicked. [`Error::Failed`] if `run` returned an error.
    ///
    /// [`Server::run`]: crate::Server::run
    pub fn ended(&self) -> Pending<Summary> {
        Pending::new(self.ended.clone(), self.sender.clone())
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

    /// Accepts the clients that wait in the backlog, closes the listener, and lets dials and
    /// connections finish within `limit`. Then aborts the rest and ends the balancer.
    ///
    /// At most 4,096 waiting clients are accepted, and no more than
    /// [`max_connections`](crate::Builder::max_connections) allows; closing the listener resets the
    /// others. The balancer ends sooner if no connection is left. Of two limits the earlier holds,
    /// and [`shutdown`](Self::shutdown) overrides both. Updates are still applied meanwhile. Like
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
pub type Update = Pending<Applied>;
