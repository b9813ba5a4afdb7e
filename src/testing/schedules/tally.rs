//! What happened in all schedules together, so that a run can show that it did happen.

use std::collections::BTreeMap;
use std::sync::Mutex;

static TALLIES: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// Counts one more of what happened.
pub(crate) fn tally(what: &'static str) {
    *TALLIES.lock().unwrap().entry(what).or_default() += 1;
}

/// Returns the counts.
#[cfg(test)]
pub(crate) fn tallies() -> BTreeMap<&'static str, u64> {
    TALLIES.lock().unwrap().clone()
}
