//! What a host can see: counters in a snapshot, and events as they happen.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::net::Address;

/// Why a client's connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EndReason {
    /// Both streams ended in order.
    Finished,
    /// The client reset the connection, or it failed on the client's side.
    ClientFailed,
    /// The backend reset the connection, or it failed on the backend's side.
    BackendFailed,
    /// An update took its target out of the set.
    TargetRemoved,
    /// The limit ran out of an update that drained its target, or of a drain of the whole balancer.
    DrainLimit,
    /// No byte moved for `idle_timeout`.
    IdleTimeout,
    /// One direction had finished, and no byte moved for `half_closed_timeout`.
    HalfClosedTimeout,
    /// The balancer was shut down.
    Shutdown,
    /// Refused: there is no backend to try, the set being empty.
    NoBackend,
    /// Refused: every backend was tried and failed.
    BackendsFailed,
    /// Refused: no backend was reached within `dial_limit`.
    DialLimit,
    /// Refused: this machine could not take the connection in, for want of memory, say.
    LocalFailure,
}

impl EndReason {
    /// Every reason there is.
    pub const ALL: &'static [Self] = &[
        Self::Finished,
        Self::ClientFailed,
        Self::BackendFailed,
        Self::TargetRemoved,
        Self::DrainLimit,
        Self::IdleTimeout,
        Self::HalfClosedTimeout,
        Self::Shutdown,
        Self::NoBackend,
        Self::BackendsFailed,
        Self::DialLimit,
        Self::LocalFailure,
    ];
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::ClientFailed => "client failed",
            Self::BackendFailed => "backend failed",
            Self::TargetRemoved => "target removed",
            Self::DrainLimit => "drain limit",
            Self::IdleTimeout => "idle time-out",
            Self::HalfClosedTimeout => "half-closed time-out",
            Self::Shutdown => "shut down",
            Self::NoBackend => "no backend",
            Self::BackendsFailed => "all backends failed",
            Self::DialLimit => "dial limit",
            Self::LocalFailure => "local failure",
        })
    }
}

/// How many connections ended, by reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct EndCounts([u64; EndReason::ALL.len()]);

impl EndCounts {
    /// How many ended for this reason.
    pub fn of(&self, reason: EndReason) -> u64 {
        self.0[reason as usize]
    }

    /// How many ended, for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, each with its count.
    pub fn iter(&self) -> impl Iterator<Item = (EndReason, u64)> + '_ {
        EndReason::ALL
            .iter()
            .map(|&reason| (reason, self.of(reason)))
            .filter(|(_, count)| *count > 0)
    }

    pub(crate) fn count(&mut self, reason: EndReason) {
        self.0[reason as usize] += 1;
    }
}

/// As a map from the reasons that occurred to their counts.
impl fmt::Debug for EndCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The balancer's counters at one moment.
///
/// They add up: `accepted == refused.total() + ended.total() + dialling + open`, and likewise `open` and the bytes are
/// the sums of what `backends` and `departed` have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Clients taken from the listener, ever.
    pub accepted: u64,
    /// Clients for whom no backend is connected yet, now.
    pub dialling: u64,
    /// Clients connected with a backend, now.
    pub open: u64,
    /// Clients that ended without ever having reached a backend.
    pub refused: EndCounts,
    /// Clients that ended after they had reached a backend.
    pub ended: EndCounts,
    /// Bytes that backends have taken, ever, up to this moment.
    pub bytes_up: u64,
    /// Bytes that clients have taken, ever, up to this moment.
    pub bytes_down: u64,
    /// The backends of the set, in key order.
    pub backends: Vec<BackendStats>,
    /// The sum of what belongs to keys that are no longer in the set. A key that comes back begins at zero.
    pub departed: Usage,
}

impl Stats {
    /// The counters of one backend of the set.
    pub fn backend(&self, key: &str) -> Option<&BackendStats> {
        let index = self.backends.binary_search_by(|backend| (*backend.key).cmp(key)).ok()?;
        self.backends.get(index)
    }
}

/// The counters of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendStats {
    /// Its key.
    pub key: Arc<str>,
    /// The target name that the key has now. Connections made under an earlier one count here too.
    pub target_name: Arc<str>,
    /// Whether it is passed over for now, after failed dials.
    pub ejected: bool,
    /// What it was used for.
    pub usage: Usage,
}

/// What a backend was used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Clients connected with it, now.
    pub open: u64,
    /// Clients connected with it, ever.
    pub total: u64,
    /// Dials that failed, one for each address tried.
    pub dial_failures: u64,
    /// Bytes it has taken.
    pub bytes_up: u64,
    /// Bytes that clients have taken from it.
    pub bytes_down: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, other: &Self) {
        self.open += other.open;
        self.total += other.total;
        self.dial_failures += other.dial_failures;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
    }
}

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Connections that were closed, since their target is gone.
    pub closed: usize,
    /// Dials in flight that were cancelled, since their target is gone. Their clients go on to other backends, or are
    /// refused if none is left.
    pub cancelled: usize,
    /// Connections to targets that are gone but may finish, since an update asked to drain them.
    pub draining: usize,
    /// Backends in the set that is in force with it.
    pub backends: usize,
}

/// What a balancer did in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How long it ran.
    pub ran_for: Duration,
    /// Clients taken from the listener: `refused.total() + ended.total()`.
    pub accepted: u64,
    /// Clients that never reached a backend.
    pub refused: EndCounts,
    /// Clients that reached one.
    pub ended: EndCounts,
    /// Bytes that backends took.
    pub bytes_up: u64,
    /// Bytes that clients took.
    pub bytes_down: u64,
    /// Times that the set was replaced; updates that came together count once.
    pub updates: u64,
}

/// Told of what happens, as it happens, on the balancer's own thread.
///
/// Everything waits while a method runs, so it should be quick: count, or send to a channel. All do nothing by default.
/// Methods of [`Control`](crate::Control) that wait, and waiting for an update, fail here with
/// [`Error::OwnThread`](crate::Error::OwnThread); the others can be called. A panic ends the balancer, and the clients
/// that it cuts are not told of any more.
///
/// ```
/// use std::sync::mpsc;
/// use tinylb::{Ended, Observer, Server};
///
/// /// Tells another thread why connections came to their ends.
/// struct Ends(mpsc::Sender<String>);
///
/// impl Observer for Ends {
///     fn ended(&mut self, ended: &Ended<'_>) {
///         let key = ended.backend.map_or("no backend", |(key, _)| key);
///         // Who no longer listens does not want to know.
///         let _ = self.0.send(format!("{}, {key}: {}", ended.client.addr, ended.reason));
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let (sender, ends) = mpsc::channel();
/// let server = Server::builder().observer(Ends(sender)).build(listener)?;
/// # Ok(())
/// # }
/// ```
pub trait Observer: Send {
    /// A client was accepted. One [`ended`](Self::ended) will follow.
    fn accepted(&mut self, client: &Client<'_>) {
        let _ = client;
    }

    /// A client's backend is connected.
    fn connected(&mut self, connected: &Connected<'_>) {
        let _ = connected;
    }

    /// An attempt to reach a backend failed: one address of it.
    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        let _ = failed;
    }

    /// A client's connection has come to its end; told once for each that was accepted, the refused included.
    fn ended(&mut self, ended: &Ended<'_>) {
        let _ = ended;
    }

    /// Updates were applied. Those who wait for them are told after this.
    fn updated(&mut self, applied: &Applied) {
        let _ = applied;
    }
}

/// The observer of a host that installs none.
pub(crate) struct Unobserved;

impl Observer for Unobserved {}

/// A client, in what an [`Observer`] is told.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Client<'a> {
    /// Counts up from 0 with each client that is accepted.
    pub id: u64,
    /// Its address.
    pub addr: &'a Address,
}

/// A client's backend is connected.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Connected<'a> {
    /// The client.
    pub client: Client<'a>,
    /// The backend's key.
    pub key: &'a str,
    /// The backend's target name.
    pub target_name: &'a str,
    /// How long it took, from the accept.
    pub took: Duration,
}

/// An attempt to reach a backend failed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttemptFailed<'a> {
    /// The client it was made for.
    pub client: Client<'a>,
    /// The backend's key.
    pub key: &'a str,
    /// The backend's target name.
    pub target_name: &'a str,
    /// Which dial of this backend it was, from 0: see [`Backend::attempts`](crate::Backend::attempts).
    pub attempt: u32,
    /// Why it failed; `TimedOut` when `connect_timeout` ran out.
    pub error: &'a io::Error,
}

/// A client's connection has come to its end.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ended<'a> {
    /// The client.
    pub client: Client<'a>,
    /// The key and target name of the backend it was connected with; `None` if it never was.
    pub backend: Option<(&'a str, &'a str)>,
    /// How long it lasted, from the accept.
    pub lasted: Duration,
    /// Bytes that the backend took.
    pub bytes_up: u64,
    /// Bytes that the client took.
    pub bytes_down: u64,
    /// Why it ended.
    pub reason: EndReason,
    /// The error behind it, if it was one of the client's or the backend's connection.
    pub error: Option<&'a io::Error>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        for (position, reason) in EndReason::ALL.iter().copied().enumerate() {
            assert_eq!(reason as usize, position);
            let mut counts = EndCounts::default();
            counts.count(reason);
            assert_eq!((counts.of(reason), counts.total()), (1, 1));
            assert_eq!(counts.iter().collect::<Vec<_>>(), [(reason, 1)]);
            assert_eq!(format!("{counts:?}"), format!("{{{reason:?}: 1}}"));
        }
    }
}
