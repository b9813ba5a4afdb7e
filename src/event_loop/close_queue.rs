//! Sockets that are still to be closed: closing many at once would hold up everyone else.

use std::collections::VecDeque;

use crate::mailbox::oneshot;
use crate::relay::Side;
use crate::stats::Applied;

/// Sockets of pairs that were taken out of the table, and of dials that were given up. No byte goes
/// through them any more.
///
/// Client sockets come first, since clients can do something about it. Batches take turns, so that
/// a small update does not wait for a large one before it.
#[derive(Default)]
pub(super) struct CloseQueue {
    /// In the order of their updates. Their ids are consecutive, from `first_id` on.
    batches: VecDeque<ClosingBatch>,
    first_id: u64,
    /// The ids of the batches that have client sockets left, each once.
    with_clients: VecDeque<u64>,
    /// The ids of the batches that have backend sockets left, each once.
    with_backends: VecDeque<u64>,
    pairs: usize,
    sockets: usize,
}

/// The sockets that one step leaves to be closed, and what to report once they are.
#[derive(Default)]
pub(super) struct ClosingBatch {
    clients: VecDeque<Closing>,
    backends: VecDeque<Closing>,
    /// Pairs that have a socket in here.
    pairs: usize,
    report: Option<Report>,
}

struct Closing {
    side: Side,
    /// Whether it is the last socket of its pair.
    ends_pair: bool,
}

/// An update that is applied once its batch is closed.
pub(super) struct Report {
    pub(super) applied: Applied,
    pub(super) reply: oneshot::Sender<Applied>,
}

/// What to do next.
pub(super) enum Next {
    Close(Side),
    Report(Report),
}

impl ClosingBatch {
    /// Adds a pair. It has no backend if it was still looking for one.
    pub(super) fn push_pair(&mut self, client: Side, backend: Option<Side>) {
        self.pairs += 1;
        self.clients.push_back(Closing { side: client, ends_pair: backend.is_none() });
        self.backends.extend(backend.map(|side| Closing { side, ends_pair: true }));
    }

    /// Adds the socket of a cancelled dial, whose client is given another backend.
    pub(super) fn push_dial(&mut self, backend: Side) {
        self.backends.push_back(Closing { side: backend, ends_pair: false });
    }

    pub(super) fn set_report(&mut self, report: Report) {
        self.report = Some(report);
    }

    fn is_closed(&self) -> bool {
        self.clients.is_empty() && self.backends.is_empty()
    }
}

impl CloseQueue {
    /// Adds a batch. One without sockets may still have a report.
    pub(super) fn push(&mut self, batch: ClosingBatch) {
        let id = self.first_id + self.batches.len() as u64;
        if !batch.clients.is_empty() {
            self.with_clients.push_back(id);
        }
        if !batch.backends.is_empty() {
            self.with_backends.push_back(id);
        }
        self.pairs += batch.pairs;
        self.sockets += batch.clients.len() + batch.backends.len();
        self.batches.push_back(batch);
    }

    /// Returns how many pairs have a socket that is still open.
    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    /// Returns how many sockets are still open.
    pub(super) fn sockets(&self) -> usize {
        self.sockets
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Takes what to do next: a report, or a socket to close if it `may_close`. Updates are
    /// reported in order.
    pub(super) fn next(&mut self, may_close: bool) -> Option<Next> {
        while self.batches.front().is_some_and(ClosingBatch::is_closed) {
            self.first_id += 1;
            if let Some(report) = self.batches.pop_front().and_then(|batch| batch.report) {
                return Some(Next::Report(report));
            }
        }
        if !may_close {
            return None;
        }
        let is_client = !self.with_clients.is_empty();
        let ids = if is_client { &mut self.with_clients } else { &mut self.with_backends };
        let id = ids.pop_front()?;
        let batch = &mut self.batches[(id - self.first_id) as usize];
        let sockets = if is_client { &mut batch.clients } else { &mut batch.backends };
        let Closing { side, ends_pair } = sockets.pop_front()?;
        if !sockets.is_empty() {
            ids.push_back(id);
        }
        self.pairs -= usize::from(ends_pair);
        self.sockets -= 1;
        Some(Next::Close(side))
    }
}
