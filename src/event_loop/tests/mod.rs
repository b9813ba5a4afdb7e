//! Whole turns without a socket, a file for each chapter of the contract.

mod accepting;
mod dialling;
mod relaying;
mod rig;
mod running;
mod timeouts;
mod updates;
