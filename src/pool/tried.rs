//! What a client has been given without success.

use std::sync::Arc;

use super::position_set::PositionSet;
use crate::backend::Entry;

/// The backends that failed for one client. Each (key, target) is tried at most once.
#[derive(Default)]
pub(crate) struct Tried {
    entries: Vec<Arc<Entry>>,
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
        self.entries.is_empty()
    }

    /// Adds a backend, which is at this position of the order if it is still there.
    pub(super) fn add(&mut self, entry: Arc<Entry>, position: Option<usize>, version: u64) {
        self.entries.push(entry);
        if let Some(position) = position.filter(|_| self.untried.version == version) {
            self.untried.positions.remove(position);
        }
    }

    /// Returns the candidates that are left, where `position_of` finds those that were tried.
    pub(super) fn untried(
        &mut self,
        version: u64,
        candidates: &PositionSet,
        position_of: impl Fn(&Entry) -> Option<usize>,
    ) -> &PositionSet {
        if self.untried.version != version {
            let mut positions = candidates.clone();
            for position in self.entries.iter().filter_map(|entry| position_of(entry)) {
                positions.remove(position);
            }
            self.untried = Untried { version, positions };
        }
        &self.untried.positions
    }
}
