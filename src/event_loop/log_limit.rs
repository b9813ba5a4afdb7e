//! A rate limit for warnings that a peer can cause, so that they do not fill the log.

use std::fmt;
use std::time::{Duration, Instant};

/// Lets one warning through per second, and counts the others.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Returns `None` if the warning must be suppressed, else how many were since the last one.
    pub(super) fn pass(&mut self, now: Instant) -> Option<Suppressed> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < Self::INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(Suppressed(std::mem::take(&mut self.suppressed)))
    }
}

/// How many warnings were suppressed, to be appended to the next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} similar warnings suppressed)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c8_3_one_warning_a_second_passes_and_the_others_are_counted() {
        let (mut limit, start) = (LogLimit::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(limit.pass(at(0)), Some(Suppressed(0)));
        assert_eq!([limit.pass(at(1)), limit.pass(at(999))], [None, None]);
        let suppressed = limit.pass(at(1000)).unwrap();
        assert_eq!(suppressed.to_string(), " (2 similar warnings suppressed)");
        assert_eq!(limit.pass(at(5000)).unwrap().to_string(), "");
    }
}
