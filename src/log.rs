//! The `log` macros with one stable target, `tinylb`, whatever module a line comes from.
//!
//! `use crate::log::{debug, info, warn};` stands in for `use log::{debug, info, warn};`.

macro_rules! info_ {
    ($($message:tt)+) => { ::log::info!(target: "tinylb", $($message)+) };
}

macro_rules! warn_ {
    ($($message:tt)+) => { ::log::warn!(target: "tinylb", $($message)+) };
}

macro_rules! debug_ {
    ($($message:tt)+) => { ::log::debug!(target: "tinylb", $($message)+) };
}

/// Returns a count with its noun: "1 backend", "2 backends".
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

// Exported under other names because `warn` is also a built-in attribute.
pub(crate) use {debug_ as debug, info_ as info, warn_ as warn};
