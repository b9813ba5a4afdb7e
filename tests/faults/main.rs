//! What becomes of pairs when the calls of their sockets fail, fall short, block, or are interrupted, at any moment of
//! their lives.
//!
//! The sockets are real, and what stands between them and the balancer is written with the public traits alone. Where
//! chance plays, a failing test names its seed, and `TINYLB_FAULT_SEED=<n>` replays it.

#![cfg(target_os = "linux")] // whose error numbers these are, and whose event queue

mod dying;
mod every_call;
mod faulty;
mod mix;
mod pieces;
mod random;
mod reuse;
mod rig;
mod shortages;
mod signals;
mod talk;
