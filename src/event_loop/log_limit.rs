//! Warnings that a stranger can cause must not fill the log.

use std::fmt;
use std::time::{Duration, Instant};

/// Lets one warning through a second, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    last: Option<Instant>,
    withheld: u64,
}

impl LogLimit {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Whether to warn now, and if so, how many warnings were withheld since the last.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<Suppressed> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < Self::INTERVAL) {
            self.withheld += 1;
            return None;
        }
        self.last = Some(now);
        Some(Suppressed(std::mem::take(&mut self.withheld)))
    }
}

/// How many warnings were withheld, as a remark behind the next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more such warnings were withheld)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c8_3_one_a_second_and_the_rest_are_counted() {
        let (mut throttle, start) = (LogLimit::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(throttle.pass(at(0)), Some(Suppressed(0)));
        assert_eq!([throttle.pass(at(1)), throttle.pass(at(999))], [None, None]);
        let withheld = throttle.pass(at(1000)).unwrap();
        assert_eq!(format!("{withheld}"), " (2 more such warnings were withheld)");
        assert_eq!(throttle.pass(at(5000)).unwrap().to_string(), "");
    }
}
