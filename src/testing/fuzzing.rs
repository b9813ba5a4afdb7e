//! What the fuzz targets call, in builds with `--cfg fuzzing` only: see `tests/fuzz/`. Not part of
//! the crate's interface.

use crate::testing::schedules;

/// Plays the schedule that these bytes stand for against the whole loop.
pub fn balancer(bytes: &[u8]) {
    schedules::play_bytes(bytes);
}

/// Plays the schedule that these bytes stand for against the relay of one pair.
pub fn relay(bytes: &[u8]) {
    super::relay::play(bytes);
}
