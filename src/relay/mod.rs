//! Moving bytes between the two sides of a pair. Knows streams, but no event queue, no backend set
//! and no clock.
//!
//! A [`Side`] is a stream and what events said of it. A [`Direction`] goes from one side to the
//! other. A [`Duplex`] is both sides with both directions. Bulk may move through [`Pipes`].
//!
//! To follow a reset from the backend to its client: an event with an error or a read that fails
//! gives the backend's side its failure ([`Side::set_ready`], [`Side::read`]). [`Duplex::drive`]
//! passes on what was sent before, and returns [`Progress::Over`]. `EventLoop::close_pair` takes the
//! pair apart with [`Duplex::into_sides`]. The client's side is not marked orderly, so dropping it
//! calls [`Stream::abort`](crate::net::Stream::abort): for TCP, a linger time of 0 in `net/tcp.rs`.

mod direction;
mod duplex;
#[cfg(all(feature = "splice", target_os = "linux"))]
mod kernel_pipes;
mod pipes;
mod side;
mod splice;

pub(crate) use direction::{Direction, DirectionProgress, DriveContext};
pub(crate) use duplex::{Duplex, Progress};
#[cfg(all(feature = "splice", target_os = "linux"))]
pub(crate) use kernel_pipes::Kernel;
pub(crate) use pipes::Pipes;
#[cfg(any(test, fuzzing))]
pub(crate) use pipes::{PipeEnds, PipeSystem};
pub(crate) use side::Side;
