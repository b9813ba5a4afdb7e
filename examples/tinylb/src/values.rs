//! Values that options and commands share.

use std::time::Duration;

use log::LevelFilter;

/// Seconds, decimals allowed.
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
