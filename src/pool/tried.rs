//! What a client has been given without success.

use std::sync::Arc;

use super::position_set::PositionSet;
use crate::backend::Entry;

/// The backends that failed for one client, and those that were busy when it was given them. Each
/// (key, target) fails at most once for a client; a busy one may be tried again.
#[derive(Default)]
pub(crate) struct Tried {
    failed: Vec<Arc<Entry>>,
    busy: Vec<Arc<Entry>>,
    untried: Untried,
}

/// The candidates left, by position, as of a version of the pool's order. Made again when the
/// order has changed since.
#[derive(Default)]
struct Untried {
    version: u64,
    positions: PositionSet,
}

impl Tried {
    pub(crate) fn is_empty(&self) -> bool {
        self.failed.is_empty() && self.busy.is_empty()
    }

    /// Adds a backend that has failed, which is at this position of the order if it is still there.
    pub(super) fn add_failed(&mut self, entry: Arc<Entry>, position: Option<usize>, version: u64) {
        self.failed.push(entry);
        self.exclude(position, version);
    }

    /// Adds a backend that is busy.
    pub(super) fn add_busy(&mut self, entry: Arc<Entry>, position: Option<usize>, version: u64) {
        self.busy.push(entry);
        self.exclude(position, version);
    }

    fn exclude(&mut self, position: Option<usize>, version: u64) {
        if let Some(position) = position.filter(|_| self.untried.version == version) {
            self.untried.positions.remove(position);
        }
    }

    /// Returns the backends that were busy.
    pub(crate) fn busy(&self) -> &[Arc<Entry>] {
        &self.busy
    }

    /// Lets the client try the busy backends again.
    pub(crate) fn forget_busy(&mut self) {
        if !self.busy.is_empty() {
            self.busy.clear();
            self.untried = Untried::default();
        }
    }

    /// Returns the candidates that are neither failed nor busy. `position_of` finds where one is.
    pub(super) fn untried(
        &mut self,
        version: u64,
        candidates: &PositionSet,
        position_of: impl Fn(&Entry) -> Option<usize>,
    ) -> &PositionSet {
        if self.untried.version != version {
            let mut positions = candidates.clone();
            let tried = self.failed.iter().chain(&self.busy);
            for position in tried.filter_map(|entry| position_of(entry)) {
                positions.remove(position);
            }
            self.untried = Untried { version, positions };
        }
        &self.untried.positions
    }
}
