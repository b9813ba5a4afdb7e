//! Clients come in.

use std::io;
use std::time::Instant;

use crate::log::{debug, warn};

use super::acceptor::Accept;
use super::pair::{ClientSide, Dialling, Pair, Stage};
use super::token::End;
use super::{EventLoop, RunState};
use crate::net::{Address, Stream};
use crate::observer::Client;
use crate::relay::Side;
use crate::stats::EndReason;

/// How many clients one turn accepts at most.
pub(super) const ACCEPTS_PER_TURN: usize = 64;

impl EventLoop {
    pub(super) fn may_accept(&self) -> bool {
        self.run_state == RunState::Serving
            && self.acceptor.may_accept()
            && self.fd_waiters.is_empty()
            && self.pairs.len() + self.closing.pairs() < self.balancer.config.max_connections
            && self.pairs.has_room()
    }

    pub(super) fn accept(&mut self, now: Instant) {
        let mut gone = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.may_accept() {
                return;
            }
            match self.acceptor.ask() {
                Accept::Client(stream, addr) => self.accept_client(stream, addr, now),
                Accept::Nobody => return,
                Accept::Gone(err) => {
                    debug!("a client was gone before it was accepted: {err}");
                    gone += 1;
                }
                Accept::Failed(err) => return self.pause_accepting(&err, now),
            }
        }
        if gone == ACCEPTS_PER_TURN {
            // A listener that fails in this way for good would be asked for ever.
            self.pause_accepting(&io::ErrorKind::ConnectionAborted.into(), now);
        }
    }

    fn pause_accepting(&mut self, err: &io::Error, now: Instant) {
        self.acceptor.pause(now);
        if let Some(withheld) = self.balancer.shortage_warnings.pass(now) {
            warn!("cannot accept clients for now: {err}{withheld}");
        }
    }

    fn accept_client(&mut self, stream: Box<dyn Stream>, addr: Address, now: Instant) {
        let id = self.balancer.totals.accepted;
        self.balancer.totals.accepted += 1;
        self.balancer.totals.dialling += 1;
        debug!("client {id} ({addr}): accepted");
        self.balancer.observer.accepted(&Client { id, addr: &addr });
        let token = self.pairs.insert(Pair {
            client: ClientSide { id, addr, accepted_at: now, side: Side::new(stream) },
            stage: Stage::Dialling(Dialling::new(now, &self.balancer.config.limits)),
        });
        let Some(pair) = self.pairs.find(token) else { return };
        if let Err(err) = pair.client.side.register(&self.balancer.registry, token.of(End::Client))
        {
            self.end(token.slot, EndReason::LocalFailure, now);
            return self.pause_accepting(&err, now);
        }
        self.advance(token.slot, now);
    }
}
