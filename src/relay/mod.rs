//! Moving bytes between the two sides of a pair. Knows streams, but no event queue, no token and no clock.
//!
//! A [`Side`] is one end: its stream, and what events said of it. A [`Direction`] is one way, from a side to the other;
//! a pair has two, and both are the same code.

mod both_ways;
mod direction;
mod side;

pub(crate) use both_ways::{Progress, Relay};
use direction::{Direction, Drive};
pub(crate) use side::Side;
