//! What a host asked for that could not be done.

use std::io;

/// What a host asked for that could not be done.
///
/// Trouble on one connection is never an error of the balancer: it is counted, told to the
/// [`Observer`](crate::Observer), and ends that connection.
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
    /// The listener could not be made ready, or an option not be set on it.
    #[error("the listener cannot be used")]
    Listener(#[source] io::Error),
    /// The system's event queue could not be set up, for want of descriptors, say.
    #[error("the event queue cannot be set up")]
    Setup(#[source] io::Error),
    /// The system would not start a thread.
    #[error("the thread cannot be started")]
    Thread(#[source] io::Error),
    /// Waiting for events failed, which ended the balancer and all its connections.
    #[error("waiting for events failed")]
    Poll(#[source] io::Error),
    /// The balancer could not be woken to be told.
    #[error("the balancer cannot be woken")]
    Wake(#[source] io::Error),
    /// The balancer has ended, or ended before it did what was asked.
    #[error("the balancer has stopped")]
    Stopped,
    /// The balancer's own thread was about to wait for itself, in an observer or a backend.
    #[error("the balancer's own thread cannot wait for itself")]
    OwnThread,
    /// The balancer's thread panicked, in an observer, a backend or a stream of the host's own.
    #[error("the balancer's thread panicked")]
    Panicked,
}
