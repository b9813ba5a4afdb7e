//! Where clients come in, and whether they may now.

use std::io;
use std::time::{Duration, Instant};

use mio::Registry;

use super::token::LISTENER;
use crate::net::{self, Address, Listener, Stream};

/// How long to wait when this machine is short of something, if no pair closes before.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// The listener, and what keeps it from being asked for clients.
pub(crate) struct Acceptor {
    /// Gone once the balancer drains.
    listener: Option<Box<dyn Listener>>,
    /// An event has told of clients, and the listener has not said since that none waits. No further event would come.
    has_clients: bool,
    /// Set when accepting or dialling failed for want of descriptors or memory: when to try again.
    short_until: Option<Instant>,
}

/// What came of asking for a client.
pub(crate) enum Accept {
    Client(Box<dyn Stream>, Address),
    /// One client is gone already.
    Gone(io::Error),
    Nobody,
    /// This machine is short of something, or the listener is out of order.
    Failed(io::Error),
}

impl Acceptor {
    /// Has events tell of clients.
    pub(crate) fn open(mut listener: Box<dyn Listener>, registry: &Registry) -> io::Result<Self> {
        registry.register(&mut *listener, LISTENER, mio::Interest::READABLE)?;
        Ok(Self { listener: Some(listener), has_clients: false, short_until: None })
    }

    pub(crate) fn close(&mut self, registry: &Registry) {
        if let Some(mut listener) = self.listener.take() {
            // It is about to be closed, whatever the event queue says.
            let _ = registry.deregister(&mut *listener);
        }
    }

    pub(crate) fn set_ready(&mut self) {
        self.has_clients = true;
    }

    /// Whether a client may be waiting whom nothing keeps out.
    pub(crate) fn may_accept(&self) -> bool {
        self.listener.is_some() && self.has_clients && self.short_until.is_none()
    }

    pub(crate) fn ask(&mut self) -> Accept {
        let Some(listener) = &mut self.listener else { return Accept::Nobody };
        match listener.accept() {
            Ok((stream, addr)) => Accept::Client(stream, addr),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                self.has_clients = false;
                Accept::Nobody
            }
            Err(err) if net::is_of_one_client(&err) => Accept::Gone(err),
            Err(err) => Accept::Failed(err),
        }
    }

    /// Something has run short; whoever needs it waits. A pause under way is not made longer.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.short_until.get_or_insert(now + SHORTAGE_PAUSE);
    }

    /// When the pause is over, if there is one.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        self.short_until
    }

    /// A pair has closed: there is room again.
    pub(crate) fn resume(&mut self) {
        self.short_until = None;
    }

    /// Ends a pause whose time is over. Whether none is left.
    pub(crate) fn resume_if_due(&mut self, now: Instant) -> bool {
        if self.short_until.is_some_and(|until| until <= now) {
            self.short_until = None;
        }
        self.short_until.is_none()
    }
}
