//! What a run has to measure with, and how much of it.

use crate::measure::Counter;
use crate::process::Cores;

pub(crate) struct Lab {
    pub(crate) cores: Cores,
    pub(crate) sizes: Sizes,
    pub(crate) counter: Option<Counter>,
    /// How many pairs the descriptors of a proxy suffice for.
    pub(crate) pairs: usize,
}

/// How much of each there is.
pub(crate) struct Sizes {
    pub(crate) short: usize,
    pub(crate) round_trips: usize,
    pub(crate) bulk: u64,
    pub(crate) pairs: [usize; 2],
    pub(crate) stalled: usize,
    pub(crate) removed_of_four: usize,
    pub(crate) removed_at_once: [usize; 3],
    pub(crate) beside_bulk: usize,
}

impl Sizes {
    pub(crate) const FULL: Self = Self {
        short: 20_000,
        round_trips: 100_000,
        bulk: 4_000_000_000,
        pairs: [1000, 5000],
        stalled: 1000,
        removed_of_four: 250,
        removed_at_once: [100, 1000, 9000],
        beside_bulk: 200_000,
    };
    /// Enough to show that all of it works.
    pub(crate) const QUICK: Self = Self {
        short: 1000,
        round_trips: 10_000,
        bulk: 400_000_000,
        pairs: [200, 400],
        stalled: 50,
        removed_of_four: 50,
        removed_at_once: [20, 100, 500],
        beside_bulk: 100,
    };
}
