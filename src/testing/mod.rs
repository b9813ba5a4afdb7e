//! What the crate is tested with beside the tests in its files: scripts, simulations with a model,
//! models of the mailbox.

#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(all(test, tinylb_loom))]
mod mailbox_model;
pub(crate) mod pipes;
pub(crate) mod relay;
pub(crate) mod schedules;
#[cfg(test)]
pub(crate) mod script;
