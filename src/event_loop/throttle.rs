//! Warnings that a stranger can cause must not fill the log.

use std::time::{Duration, Instant};

/// Lets one warning through a second, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    last: Option<Instant>,
    withheld: u64,
}

impl Throttle {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Whether to warn now, and if so, how many warnings were withheld since the last.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < Self::INTERVAL) {
            self.withheld += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c8_3_one_a_second_and_the_rest_are_counted() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(throttle.pass(at(0)), Some(0));
        assert_eq!([throttle.pass(at(1)), throttle.pass(at(999))], [None, None]);
        assert_eq!(throttle.pass(at(1000)), Some(2));
        assert_eq!(throttle.pass(at(5000)), Some(0));
    }
}
