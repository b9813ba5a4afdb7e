//! What fuzzing gets at, in builds with `--cfg fuzzing` only: see `fuzz/`. No part of the crate's interface.

use crate::event_loop::relay_schedules;
use crate::schedules;

/// Plays the schedule that these bytes stand for against the whole loop.
pub fn balancer(bytes: &[u8]) {
    schedules::play_bytes(bytes);
}

/// Plays the schedule that these bytes stand for against the relay of one pair.
pub fn relay(bytes: &[u8]) {
    relay_schedules::play(bytes);
}
