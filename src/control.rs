//! The host's hand on a running balancer.

use std::fmt;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::backend::BackendSet;
use crate::error::Error;
use crate::mailbox::{Reply, Sender, Stop};
use crate::net::Address;
use crate::pool::pending::Removal;
use crate::stats::{Applied, Stats};

/// Steers a balancer from any thread: hands it new backend sets, asks for its counters, and stops it.
///
/// Got from [`Server::control`](crate::Server::control). Clones steer the same balancer, and dropping them stops
/// nothing. Nothing here waits for traffic.
#[derive(Clone)]
pub struct Control {
    sender: Sender,
    local_addr: Address,
}

impl Control {
    pub(crate) fn new(sender: Sender, local_addr: Address) -> Self {
        Self { sender, local_addr }
    }

    /// The address that the balancer listens on.
    pub fn local_addr(&self) -> &Address {
        &self.local_addr
    }

    /// Replaces the whole backend set, and closes every connection to a target that the new set does not name.
    ///
    /// It returns at once. The loop takes the set over in its next turn, and in the same step ends what has to go: no byte
    /// is moved for it from then on. Its sockets are closed with it, those of a crowd over a few turns, so that other
    /// connections go on meanwhile. Wait for the [`Update`] to know that all is done. Updates that come faster than they
    /// are applied end in the last set, and a target that any of them lacked has its connections closed, even if a later
    /// one brings it back.
    ///
    /// # Errors
    /// [`Error::Stopped`] after the end, [`Error::Wake`] if the system cannot wake the balancer's thread, which then
    /// applies the update when it wakes for another reason.
    pub fn update(&self, set: BackendSet) -> Result<Update, Error> {
        self.sender.update(set, Removal::Close).map(Update)
    }

    /// Replaces the whole backend set, and lets connections to targets that it does not name finish within `limit`.
    ///
    /// New connections go to the new set alone, and dials of the vanished targets are cancelled at once. An
    /// [`update`](Self::update) that still lacks such a target closes its connections before the limit, and any update
    /// that names it again lifts the limit. Of two limits for one target the earlier holds. A limit counts from the
    /// beginning of the turn in which the loop takes the set over.
    ///
    /// # Errors
    /// As those of [`update`](Self::update).
    pub fn update_draining(&self, set: BackendSet, limit: Duration) -> Result<Update, Error> {
        self.sender.update(set, Removal::Drain(limit)).map(Update)
    }

    /// A snapshot of the counters, all taken at one moment. Waits for the loop to come round, which takes it a turn.
    ///
    /// Before the balancer runs, all are zero and no backend is listed, since updates wait to be applied until then.
    ///
    /// # Errors
    /// [`Error::Stopped`] after the end, [`Error::OwnThread`] in an observer or backend, [`Error::Wake`] if the system
    /// cannot wake the balancer's thread.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.sender.stats()
    }

    /// Ends the balancer at once: the listener, dials in flight, and all connections, which are cut.
    ///
    /// It returns at once; `run` returns when all is closed. Before the start, it makes `run` return immediately, and
    /// after the end it does nothing.
    ///
    /// # Errors
    /// [`Error::Wake`] if the system cannot wake the balancer's thread.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.sender.stop(Stop::Now)
    }

    /// Closes the listener, lets dials and connections finish, and ends the balancer when none is left or the limit runs
    /// out, by which the rest are cut.
    ///
    /// Of two limits the earlier holds, and [`shutdown`](Self::shutdown) overrides. Updates are still applied
    /// meanwhile. Like `shutdown`, it returns at once, can be called before the start, and does nothing after the end.
    ///
    /// # Errors
    /// [`Error::Wake`] if the system cannot wake the balancer's thread.
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

/// An update on its way. It need not be waited for.
///
/// Once it is applied, the balancer reads no byte from a vanished target and writes none to it, and both sockets of each
/// connection to one are closed. Bytes that a kernel had already, and the tail of a connection that had ended in order,
/// may still arrive. (For [`update_draining`](Control::update_draining), that holds soon after the limit has run out.)
///
/// Updates that were applied in one step all report what that step did.
#[derive(Clone)]
pub struct Update(Reply<Applied>);

impl Update {
    /// Waits until the update is applied. Before the balancer runs, that is until somebody runs it or drops it: do not
    /// wait on the thread that is going to.
    ///
    /// While you wait, hold no lock that your [`Observer`](crate::Observer) or [`Backend`](crate::Backend) takes.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the balancer ended before, [`Error::OwnThread`] on the balancer's own thread, unless the
    /// answer is there already.
    pub fn wait(&self) -> Result<Applied, Error> {
        self.0.wait()
    }

    /// Waits until the update is applied, at most this long; `None` if it is not applied by then.
    ///
    /// # Errors
    /// As those of [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<Applied>, Error> {
        match Instant::now().checked_add(limit) {
            Some(deadline) => self.0.wait_until(Some(deadline)),
            None => self.0.wait().map(Some),
        }
    }

    /// What the update did, if it is applied by now. Never waits: for hosts whose threads must not block.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let balancer = tinylb::Server::builder().build(std::net::TcpListener::bind("127.0.0.1:0")?)?.spawn()?;
    /// # let set = tinylb::BackendSet::new();
    /// let update = balancer.control().update(set)?;
    /// let applied = loop {
    ///     match update.poll()? {
    ///         Some(applied) => break applied,
    ///         None => std::thread::sleep(std::time::Duration::from_millis(1)), // or your runtime's, with `.await`
    ///     }
    /// };
    /// println!("{} connections closed", applied.closed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Stopped`] if the balancer ended before.
    pub fn poll(&self) -> Result<Option<Applied>, Error> {
        self.0.poll()
    }
}

impl fmt::Debug for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Update").field(&self.0.poll()).finish()
    }
}
