//! The [`Observer`] trait, and what an observer is told.

use std::io;
use std::time::Duration;

use crate::end_reason::EndReason;
use crate::net::Address;
use crate::stats::Applied;

/// Is told what happens, as it happens, on the balancer's thread.
///
/// All traffic waits while a method runs, so keep it short: count, or send to a channel. Every
/// method does nothing by default. `Box<O>` and `Option<O>` are observers, too. The methods of
/// [`Control`] work here, but [`Pending::wait`] returns [`Error::OwnThread`]. A panic ends the
/// balancer and aborts every connection; [`ended`](Self::ended) is not called for those.
///
/// [`Control`]: crate::Control
/// [`Pending::wait`]: crate::Pending::wait
/// [`Error::OwnThread`]: crate::Error::OwnThread
///
/// ```
/// use std::sync::mpsc;
/// use tinylb::{Ended, Observer, Server};
///
/// /// Tells another thread why connections end.
/// struct Ends(mpsc::Sender<String>);
///
/// impl Observer for Ends {
///     fn ended(&mut self, ended: &Ended<'_>) {
///         let key = ended.backend.map_or("no backend", |backend| backend.key);
///         // Fails only if nobody listens any more.
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
#[allow(unused_variables, reason = "the default methods do nothing")]
pub trait Observer: Send {
    /// A client was accepted. Exactly one call of [`ended`](Self::ended) follows.
    fn accepted(&mut self, client: &Client<'_>) {}

    /// A client's backend is connected.
    fn connected(&mut self, connected: &Connected<'_>) {}

    /// An attempt to reach one address of a backend failed.
    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {}

    /// A client's connection ended, or the client was refused.
    fn ended(&mut self, ended: &Ended<'_>) {}

    /// Updates were applied. Those who wait for them are told after this call.
    fn updated(&mut self, applied: &Applied) {}

    /// A backend was ejected, may be probed, or is back: see [`Ejection`](crate::Ejection).
    ///
    /// Called at the end of the turn. An update that removes a backend or gives it a new target
    /// also drops its breaker; that is not reported.
    fn breaker_changed(&mut self, changed: &BreakerChanged<'_>) {}

    /// Accepting has paused, because this machine is short of something, or has resumed.
    ///
    /// Called at the end of the turn, but not after the listener is closed. Waiting because of
    /// [`max_connections`](crate::Builder::max_connections) is not a pause.
    fn accept_changed(&mut self, changed: &AcceptChanged<'_>) {}
}

/// Implements the trait for owners of an observer: `Box<O>`, and `Option<O>` where `None` observes
/// nothing. Every method must be listed.
macro_rules! impl_observer_for_owners {
    ($($method:ident: $event:ty),*) => {
        impl<O: Observer + ?Sized> Observer for Box<O> {
            $(fn $method(&mut self, event: &$event) { (**self).$method(event); })*
        }

        impl<O: Observer> Observer for Option<O> {
            $(fn $method(&mut self, event: &$event) {
                if let Some(observer) = self { observer.$method(event); }
            })*
        }
    };
}

impl_observer_for_owners!(
    accepted: Client<'_>, connected: Connected<'_>, attempt_failed: AttemptFailed<'_>,
    ended: Ended<'_>, updated: Applied, breaker_changed: BreakerChanged<'_>,
    accept_changed: AcceptChanged<'_>
);

/// A client, as an [`Observer`] is told of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Client<'a> {
    /// The number of the client: 0 for the first that is accepted, then 1, and so on.
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
    /// The time from accept to connected, failed attempts included.
    pub took: Duration,
}

/// An attempt to reach one address of a backend failed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttemptFailed<'a> {
    /// The client it was made for.
    pub client: Client<'a>,
    /// The backend's key.
    pub key: &'a str,
    /// The backend's target name.
    pub target_name: &'a str,
    /// Which dial of this backend it was, from 0: see [`Backend::attempts`].
    ///
    /// [`Backend::attempts`]: crate::Backend::attempts
    pub attempt: u32,
    /// Why it failed; `TimedOut` if the attempt's time ran out.
    pub error: &'a io::Error,
    /// The time since the dial was begun. Zero if it could not be begun.
    pub took: Duration,
}

/// A backend, as an [`Observer`] is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendRef<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its target name.
    pub target_name: &'a str,
}

/// A client's connection ended, or the client was refused.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ended<'a> {
    /// The client.
    pub client: Client<'a>,
    /// The backend it was connected to; `None` if it reached none.
    pub backend: Option<BackendRef<'a>>,
    /// The time since its accept.
    pub lasted: Duration,
    /// Bytes written to the backend.
    pub bytes_up: u64,
    /// Bytes written to the client.
    pub bytes_down: u64,
    /// Why it ended.
    pub reason: EndReason,
    /// The error of the client's or the backend's connection, if that is why it ended.
    pub error: Option<&'a io::Error>,
}

/// The circuit breaker of a backend changed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BreakerChanged<'a> {
    /// The backend's key.
    pub key: &'a str,
    /// The backend's target name.
    pub target_name: &'a str,
    /// What it is now.
    pub state: BreakerState,
}

/// A state of a backend's circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// The backend gets clients as usual.
    Closed,
    /// Dials failed: the backend is skipped for this time while others are left.
    #[non_exhaustive]
    Ejected {
        /// For how long.
        time: Duration,
    },
    /// The time is over: the next client's dial is to tell whether the backend is back.
    HalfOpen,
}

/// Accepting has paused, or has resumed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AcceptChanged<'a> {
    /// No client is accepted for a moment. Clients wait in the backlog.
    #[non_exhaustive]
    Paused {
        /// The error of accepting a client, or of dialling for one.
        error: &'a io::Error,
    },
    /// Clients are accepted again.
    Resumed,
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;

    use super::*;

    /// Sends the name of each call.
    struct Calls(Sender<&'static str>);

    impl Observer for Calls {
        fn accepted(&mut self, _: &Client<'_>) {
            self.0.send("accepted").unwrap();
        }
        fn connected(&mut self, _: &Connected<'_>) {
            self.0.send("connected").unwrap();
        }
        fn attempt_failed(&mut self, _: &AttemptFailed<'_>) {
            self.0.send("attempt_failed").unwrap();
        }
        fn ended(&mut self, _: &Ended<'_>) {
            self.0.send("ended").unwrap();
        }
        fn updated(&mut self, _: &Applied) {
            self.0.send("updated").unwrap();
        }
        fn breaker_changed(&mut self, _: &BreakerChanged<'_>) {
            self.0.send("breaker_changed").unwrap();
        }
        fn accept_changed(&mut self, _: &AcceptChanged<'_>) {
            self.0.send("accept_changed").unwrap();
        }
    }

    fn tell_all(mut observer: impl Observer) {
        let (addr, error, zero) =
            (Address::Unix(None), io::ErrorKind::TimedOut.into(), Duration::ZERO);
        let (client, key, target_name) = (Client { id: 0, addr: &addr }, "key", "target");
        observer.accepted(&client);
        observer.connected(&Connected { client, key, target_name, took: zero });
        observer.attempt_failed(&AttemptFailed {
            client,
            key,
            target_name,
            attempt: 0,
            error: &error,
            took: zero,
        });
        observer.ended(&Ended {
            client,
            backend: None,
            lasted: zero,
            bytes_up: 0,
            bytes_down: 0,
            reason: EndReason::Finished,
            error: None,
        });
        observer.updated(&Applied::default());
        let state = BreakerState::Closed;
        observer.breaker_changed(&BreakerChanged { key, target_name, state });
        observer.accept_changed(&AcceptChanged::Resumed);
    }

    #[test]
    fn c8_2_a_boxed_or_optional_observer_is_told_everything() {
        let (sender, calls) = std::sync::mpsc::channel();
        let boxed: Box<dyn Observer> = Box::new(Calls(sender));
        tell_all(Some(boxed));
        tell_all(None::<Calls>);
        let all = [
            "accepted",
            "connected",
            "attempt_failed",
            "ended",
            "updated",
            "breaker_changed",
            "accept_changed",
        ];
        assert_eq!(calls.iter().collect::<Vec<_>>(), all);
    }
}
