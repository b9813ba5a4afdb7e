//! The listener, and whether it is worth calling `accept`.

use std::io;
use std::time::{Duration, Instant};

use mio::Registry;

use super::token::LISTENER;
use crate::net::{self, Address, Listener, Stream};
use crate::observer::AcceptChanged;

/// How long an accept pause lasts if no pair closes before.
const PAUSE: Duration = Duration::from_millis(100);

/// The listener, until the balancer drains.
pub(super) struct Acceptor {
    /// `None` once it is closed.
    listener: Option<Box<dyn Listener>>,
    /// Set by an event, cleared only by `WouldBlock`.
    is_ready: bool,
    /// Set when `accept` or `dial` fails because this machine is short of something. No event tells
    /// when that ends.
    paused_until: Option<Instant>,
    /// The error that the pause is for.
    pause_error: Option<io::Error>,
    /// Whether the last change that the observer was told of is a pause.
    is_pause_reported: bool,
}

/// What came of a call to `accept`.
pub(super) enum Accept {
    Client(Box<dyn Stream>, Address),
    WouldBlock,
    /// One client is gone already.
    ClientFailed(io::Error),
    /// This machine is short of something, or the listener is broken.
    ListenerFailed(io::Error),
}

impl Acceptor {
    /// Registers the listener.
    pub(super) fn new(mut listener: Box<dyn Listener>, registry: &Registry) -> io::Result<Self> {
        registry.register(&mut *listener, LISTENER, mio::Interest::READABLE)?;
        Ok(Self {
            listener: Some(listener),
            is_ready: false,
            paused_until: None,
            pause_error: None,
            is_pause_reported: false,
        })
    }

    /// Closes the listener. The kernel resets the clients that are left in its backlog.
    pub(super) fn close(&mut self, registry: &Registry) {
        if let Some(mut listener) = self.listener.take() {
            // An error changes nothing: the listener is closed next.
            let _ = registry.deregister(&mut *listener);
        }
    }

    pub(super) fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// Returns whether calling `accept` is worthwhile.
    pub(super) fn may_accept(&self) -> bool {
        self.listener.is_some() && self.is_ready && self.paused_until.is_none()
    }

    pub(super) fn accept(&mut self) -> Accept {
        let Some(listener) = &mut self.listener else { return Accept::WouldBlock };
        match listener.accept() {
            Ok((stream, addr)) => Accept::Client(stream, addr),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                self.is_ready = false;
                Accept::WouldBlock
            }
            Err(err) if net::is_client_error(&err) => Accept::ClientFailed(err),
            Err(err) => Accept::ListenerFailed(err),
        }
    }

    /// Pauses accepting. A pause under way does not get longer.
    pub(super) fn pause(&mut self, err: io::Error, now: Instant) {
        if self.paused_until.is_none() {
            self.paused_until = Some(now + PAUSE);
            self.pause_error = Some(err);
        }
    }

    /// Returns when the pause is over, if there is one.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends a pause, because a socket was closed: there may be room now.
    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Ends a pause whose time is over.
    pub(super) fn expire_pause(&mut self, now: Instant) {
        self.paused_until = self.paused_until.filter(|until| *until > now);
    }

    /// Returns the change that the observer must be told of, once. A shortage that lasts is one
    /// pause, even if accepting is tried in between.
    pub(super) fn take_change(&mut self) -> Option<AcceptChanged<'_>> {
        let is_paused = self.paused_until.is_some();
        if is_paused == self.is_pause_reported || self.listener.is_none() {
            return None;
        }
        self.is_pause_reported = is_paused;
        match &self.pause_error {
            Some(error) if is_paused => Some(AcceptChanged::Paused { error }),
            _ => Some(AcceptChanged::Resumed),
        }
    }
}
