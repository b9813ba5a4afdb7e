//! Values that options and commands share.

use std::time::Duration;

use log::LevelFilter;
use tinylb::Policy;

/// Parses seconds, decimals allowed.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if number.is_sign_negative() && number != 0.0 {
        return Err("seconds cannot be negative".to_owned());
    }
    Duration::try_from_secs_f64(number)
        .map_err(|_| "not a finite number of seconds, or too large".to_owned())
}

pub(crate) fn log_level(text: &str) -> Result<LevelFilter, String> {
    // The parser's own error does not say which levels there are.
    text.parse().map_err(|_| "must be off, error, warn, info, debug or trace".to_owned())
}

pub(crate) fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "round-robin" => Ok(Policy::RoundRobin),
        "least-connections" => Ok(Policy::LeastConnections),
        _ => Err("must be round-robin or least-connections".to_owned()),
    }
}

/// A number of bytes, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeLimit(pub(crate) Option<u32>);

/// Parses a number of bytes, or `off`.
pub(crate) fn size_limit(text: &str) -> Result<SizeLimit, String> {
    match text {
        "off" => Ok(SizeLimit(None)),
        bytes => match bytes.parse() {
            Ok(bytes) => Ok(SizeLimit(Some(bytes))),
            Err(_) => Err(format!("must be off or a number of bytes up to {}", u32::MAX)),
        },
    }
}
