//! Clients come in.

use std::io;
use std::time::Instant;

use log::{debug, warn};

use super::door::Arrival;
use super::pair::{Dialling, Pair, Stage};
use super::token::End;
use super::{EventLoop, Life};
use crate::net::{Address, Stream};
use crate::observe::{Client, EndReason};
use crate::relay::Side;

/// How many clients one turn accepts at most.
pub(super) const ACCEPTS_PER_TURN: usize = 64;

impl EventLoop {
    pub(super) fn may_accept(&self) -> bool {
        self.life == Life::Serving
            && self.door.is_worth_asking()
            && self.starving.is_empty()
            && self.pairs.len() + self.closing.pairs() < self.config.max_connections
            && self.pairs.has_room()
    }

    pub(super) fn accept(&mut self, now: Instant) {
        let mut gone = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.may_accept() {
                return;
            }
            match self.door.ask() {
                Arrival::Client(stream, addr) => self.welcome(stream, addr, now),
                Arrival::Nobody => return,
                Arrival::Gone(err) => {
                    debug!("a client was gone before it was accepted: {err}");
                    gone += 1;
                }
                Arrival::Failed(err) => return self.pause_accepting(&err, now),
            }
        }
        if gone == ACCEPTS_PER_TURN {
            // A listener that fails in this way for good would be asked for ever.
            self.pause_accepting(&io::ErrorKind::ConnectionAborted.into(), now);
        }
    }

    fn pause_accepting(&mut self, err: &io::Error, now: Instant) {
        self.door.pause(now);
        if let Some(withheld) = self.shortage_warnings.pass(now) {
            warn!("cannot accept clients for now: {err}{withheld}");
        }
    }

    fn welcome(&mut self, stream: Box<dyn Stream>, addr: Address, now: Instant) {
        let id = self.totals.accepted;
        self.totals.accepted += 1;
        self.totals.dialling += 1;
        debug!("client {id} ({addr}): accepted");
        self.observer.accepted(&Client { id, addr: &addr });
        let token = self.pairs.insert(Pair {
            id,
            addr,
            accepted_at: now,
            client: Side::new(stream),
            stage: Stage::Dialling(Dialling::new(now, &self.config.limits)),
        });
        let Some(pair) = self.pairs.find(token) else { return };
        if let Err(err) = pair.client.register(&self.registry, token.of(End::Client)) {
            self.end(token.slot, EndReason::LocalFailure, now);
            return self.pause_accepting(&err, now);
        }
        self.proceed_dialling(token.slot, now);
    }
}
