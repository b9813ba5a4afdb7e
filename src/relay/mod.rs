//! Moving bytes between the two sides of a pair. Knows streams, but no event queue, no backend set
//! and no clock.
//!
//! A [`Side`] is a stream and what events said of it. A [`Direction`] goes from one side to the
//! other. A [`Duplex`] is both sides with both directions.

mod direction;
mod duplex;
mod side;

pub(crate) use direction::{Direction, Drive};
pub(crate) use duplex::{Duplex, Progress};
pub(crate) use side::Side;
