//! The errors that a host gets from the balancer.

use std::io;

/// A call that failed.
///
/// Trouble on a connection is never an error of the balancer: it closes that connection, is
/// counted, and is reported to the [`Observer`](crate::Observer).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of the [`Builder`](crate::Builder) makes no sense.
    #[error("{setting} {problem}")]
    Setting {
        /// The builder's method.
        setting: &'static str,
        /// What is wrong with the value.
        problem: &'static str,
    },
    /// The listener cannot be made non-blocking or registered, or one of its options cannot be set.
    #[error("the listener cannot be used")]
    Listener(#[source] io::Error),
    /// The event queue cannot be created, for example because no descriptor is left.
    #[error("the event queue cannot be created")]
    Setup(#[source] io::Error),
    /// The system cannot start a thread.
    #[error("the thread cannot be started")]
    Thread(#[source] io::Error),
    /// Waiting for events failed. This ended the balancer and aborted all its connections.
    #[error("waiting for events failed")]
    Poll(#[source] io::Error),
    /// The balancer's thread cannot be woken.
    #[error("the balancer cannot be woken")]
    Wake(#[source] io::Error),
    /// The balancer has ended, or ended before it did what was asked.
    #[error("the balancer has stopped")]
    Stopped,
    /// The balancer has ended because waiting for events failed. [`Server::run`] returned the
    /// details, as [`Poll`](Self::Poll).
    ///
    /// [`Server::run`]: crate::Server::run
    #[error("the balancer has failed")]
    Failed,
    /// The balancer's own thread, in an observer or a backend, would wait for itself.
    #[error("the balancer's own thread cannot wait for itself")]
    OwnThread,
    /// The balancer's thread panicked in code of the host: an observer, a backend or a stream.
    #[error("the balancer's thread panicked")]
    Panicked,
}
