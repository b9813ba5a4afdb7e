//! Sockets of pairs that have been ended by the crowd, closed in pieces so that nobody else waits for all of them.

use std::collections::VecDeque;
use std::vec;

use crate::mailbox::Promise;
use crate::relay::Side;
use crate::stats::Applied;

/// The sides of ended pairs that are still to be closed: no byte goes through them any more.
#[derive(Default)]
pub(crate) struct Closing(VecDeque<Batch>);

/// The sides of pairs that end in one step.
#[derive(Default)]
pub(crate) struct Batch0 {
    clients: Vec<Side>,
    backends: Vec<Side>,
}

impl Batch0 {
    pub(crate) fn push(&mut self, client: Side, backend: Option<Side>) {
        self.clients.push(client);
        self.backends.extend(backend);
    }
}

/// What ended in one step, and what is to be reported once all of it is closed.
struct Batch {
    /// How many pairs it is of, each of which has two sides.
    pairs: usize,
    /// Dropped first, so that nobody waits who may be waited for by a stream of the host's as it is dropped.
    report: Option<Report>,
    sides: vec::IntoIter<Side>,
}

/// An update that is applied once its batch is closed.
pub(crate) struct Report {
    pub(crate) applied: Applied,
    pub(crate) promise: Promise<Applied>,
}

/// What came of asking for the next side.
pub(crate) enum Next {
    Close(Side),
    Report(Report),
}

impl Closing {
    /// Adds what has ended. The clients come first, since they are who can do something about it: the last of a thousand
    /// should not have to wait for a thousand closes on the other side.
    pub(crate) fn add(&mut self, crowd: Batch0, report: Option<Report>) {
        let pairs = crowd.clients.len();
        let mut sides = crowd.clients;
        sides.extend(crowd.backends);
        self.0.push_back(Batch { pairs, report, sides: sides.into_iter() });
    }

    /// How many pairs have a socket that is still open.
    pub(crate) fn pairs(&self) -> usize {
        self.0.iter().map(|batch| batch.sides.len().min(batch.pairs)).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is to be done next. Updates are reported in their order.
    pub(crate) fn next(&mut self) -> Option<Next> {
        loop {
            let batch = self.0.front_mut()?;
            if let Some(side) = batch.sides.next() {
                return Some(Next::Close(side));
            }
            if let Some(Batch { report: Some(report), .. }) = self.0.pop_front() {
                return Some(Next::Report(report));
            }
        }
    }
}
