//! Accepting clients.

use std::io;
use std::time::Instant;

use super::acceptor::Accept;
use super::pair::{ClientInfo, Dialling, Pair, Stage};
use super::token::Role;
use super::{EventLoop, RunState};
use crate::end_reason::EndReason;
use crate::log::{debug, warn};
use crate::net::{self, Address, Stream};
use crate::observer::Client;
use crate::relay::Side;

/// The most clients that one turn accepts.
pub(super) const ACCEPTS_PER_TURN: usize = 64;

impl EventLoop {
    /// Returns whether calling `accept` is worthwhile and nothing forbids another client.
    pub(super) fn may_accept(&self) -> bool {
        let is_open = match self.run_state {
            RunState::Serving => true,
            RunState::Draining { accepts_left, .. } => accepts_left > 0,
            RunState::Starting | RunState::Over => false,
        };
        is_open
            && self.acceptor.may_accept()
            && self.fd_waiters.is_empty()
            && self.pairs.len() + self.close_queue.pairs() < self.cx.config.max_connections
            && self.pairs.has_room()
    }

    /// Accepts clients until the listener would block or the budget is spent. While draining, the
    /// listener is closed as soon as no more can be accepted.
    pub(super) fn accept(&mut self, now: Instant) {
        self.accept_some(now);
        if matches!(self.run_state, RunState::Draining { .. }) && !self.may_accept() {
            self.acceptor.close(&self.cx.registry);
        }
    }

    fn accept_some(&mut self, now: Instant) {
        let mut failed = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.may_accept() {
                return;
            }
            match self.acceptor.accept() {
                Accept::Client(stream, addr) => self.accept_client(stream, addr, now),
                Accept::WouldBlock => return,
                Accept::ClientFailed(err) => {
                    debug!("a client was gone before it was accepted: {err}");
                    failed += 1;
                }
                Accept::ListenerFailed(err)
                    if net::is_shortage(&err) && self.cx.pipes.close_empty(now) => {}
                Accept::ListenerFailed(err) => return self.pause_accepting(err, now),
            }
        }
        if failed == ACCEPTS_PER_TURN {
            // A listener that keeps failing like this would keep the loop busy.
            self.pause_accepting(io::ErrorKind::ConnectionAborted.into(), now);
        }
    }

    fn pause_accepting(&mut self, err: io::Error, now: Instant) {
        if let Some(suppressed) = self.cx.accept_warnings.pass(now) {
            warn!("cannot accept clients for now: {err}{suppressed}");
        }
        self.acceptor.pause(err, now);
    }

    fn accept_client(&mut self, stream: Box<dyn Stream>, addr: Address, now: Instant) {
        if let RunState::Draining { accepts_left, .. } = &mut self.run_state {
            *accepts_left -= 1;
        }
        let counters = &mut self.cx.counters;
        let id = counters.accepted;
        counters.accepted += 1;
        counters.dialling += 1;
        debug!("client {id} ({addr}): accepted");
        self.cx.observer.accepted(&Client { id, addr: &addr });
        let token = self.pairs.next_token(id);
        let mut side = Side::new(stream);
        let registered = side.register(&self.cx.registry, token.of(Role::Client));
        let stage = Stage::Dialling(Dialling::new(side, now, &self.cx.config.limits));
        let slot = self
            .pairs
            .insert(Pair { client_info: ClientInfo { id, addr, accepted_at: now }, stage });
        match registered {
            Ok(()) => self.advance_dial(slot, now),
            Err(err) => {
                self.close_pair(slot, EndReason::LocalFailure, now);
                self.pause_accepting(err, now);
            }
        }
    }
}
