//! The event queue of the simulated kernel: ready sources in the order in which they became ready.

use std::collections::{HashSet, VecDeque};

use mio::Token;

use super::network::Network;
use crate::event_loop::token;
use crate::net::Readiness;

#[derive(Default)]
pub(super) struct EventQueue {
    ready: VecDeque<Source>,
    is_queued: HashSet<Source>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Socket(usize),
    Listener,
}

impl EventQueue {
    /// Takes up to so many events, and tells whether there was no room for more.
    pub(super) fn poll(
        &mut self,
        network: &mut Network,
        capacity: usize,
    ) -> (Vec<(Token, Readiness)>, bool) {
        let is_ready = |socket: &usize| network.sockets[*socket].event != Readiness::default();
        let sockets = network.registered().filter(is_ready).map(Source::Socket);
        let listener = network.backlog_event.then_some(Source::Listener);
        for source in sockets.chain(listener).collect::<Vec<_>>() {
            if self.is_queued.insert(source) {
                self.ready.push_back(source);
            }
        }
        let mut events = Vec::new();
        while events.len() < capacity {
            let Some(source) = self.ready.pop_front() else { return (events, false) };
            self.is_queued.remove(&source);
            match source {
                Source::Listener => {
                    network.backlog_event = false;
                    let readable = Readiness { readable: true, ..Readiness::default() };
                    events.push((token::LISTENER, readable));
                }
                Source::Socket(socket) => {
                    network.note_told(socket);
                    let socket = &mut network.sockets[socket];
                    let event = std::mem::take(&mut socket.event);
                    socket.event_since = None;
                    // A socket that was closed meanwhile has left the queue.
                    events.extend(socket.token.map(|token| (token, event)));
                }
            }
        }
        (events, true)
    }
}
