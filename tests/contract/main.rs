//! The clauses of the [contract](../CONTRACT.md) over real sockets, a module for each chapter.
//!
//! What the simulated world and the unit tests of the crate decide is not tried here again, unless
//! the kernel or the machine has a say in it: resets, backlogs, descriptors, threads, CPU time,
//! socket options.

mod c1_backends;
mod c2_picking;
mod c3_updates;
mod c4_accepting;
mod c5_dialling;
mod c6_relaying;
mod c7_running;
mod c8_seeing;
mod c9_never;
