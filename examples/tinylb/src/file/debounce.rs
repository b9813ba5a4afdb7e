//! When a change of the file is taken: not at first sight, since it may be half-written, and yet
//! within a second, however often the file is replaced.
//!
//! This knows neither the file nor a clock, but is told what was read and when.

use std::time::{Duration, Instant};

use super::parse::has_backends;
use super::reading::Reading;

/// How often the file is read while it does not change.
const INTERVAL: Duration = Duration::from_millis(200);
/// How often it is read while a change is awaited.
const PENDING_INTERVAL: Duration = Duration::from_millis(20);
/// How long content stands that may be the beginning of something longer.
const INCOMPLETE_FOR: Duration = Duration::from_secs(1);

/// What the file is, as far as it is believed.
#[derive(Debug)]
pub(crate) struct Debounce {
    /// What was taken last.
    taken: Reading,
    change: Option<Change>,
    /// Whether the file is to be taken even if it is the same.
    is_requested: bool,
}

/// Something else, seen but not taken yet.
#[derive(Debug)]
struct Change {
    /// When the file was first seen to be different, and whole.
    first_whole: Option<Instant>,
    reading: Reading,
    /// When it was first seen to be as it is now.
    since: Instant,
    completeness: Completeness,
}

/// How far a reading is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Completeness {
    /// It has backends, and its last line is complete.
    Whole,
    /// Perhaps the beginning of something longer.
    Incomplete,
    /// The file could not be read.
    Unreadable,
}

/// What is to be done about the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) reading: Reading,
    /// By SIGHUP, and not only because it changed.
    pub(crate) is_requested: bool,
}

impl Debounce {
    /// Begins with what has been taken already.
    pub(crate) fn new(taken: Reading) -> Self {
        Self { taken, change: None, is_requested: false }
    }

    /// Returns how long to wait before the file is read again.
    pub(crate) fn interval(&self) -> Duration {
        if self.change.is_some() { PENDING_INTERVAL } else { INTERVAL }
    }

    /// Asks for the file to be taken as soon as it is whole, the same or not.
    pub(crate) fn request(&mut self) {
        self.is_requested = true;
    }

    /// Notes what the file is now, and returns it if it is time to take it.
    pub(crate) fn look(&mut self, reading: Reading, now: Instant) -> Option<Taken> {
        let is_same = reading == self.taken;
        if is_same && (self.change.is_none() || self.is_requested) {
            self.change = None;
            return self.is_requested.then(|| self.take(reading));
        }
        let change = match self.change.take() {
            Some(change) if change.reading == reading => change,
            before => Change::new(before, reading, now),
        };
        if !change.is_due(self.is_requested, now) {
            self.change = Some(change);
            return None;
        }
        // It may have changed back: then there is nothing to do.
        (!is_same).then(|| self.take(change.reading))
    }

    fn take(&mut self, reading: Reading) -> Taken {
        self.taken = reading.clone();
        Taken { reading, is_requested: std::mem::take(&mut self.is_requested) }
    }
}

impl Change {
    /// Begins another change, or goes on with one that is still going on.
    fn new(before: Option<Self>, reading: Reading, now: Instant) -> Self {
        let completeness = completeness(&reading);
        let first_whole = before
            .and_then(|change| change.first_whole)
            .or((completeness == Completeness::Whole).then_some(now));
        Self { first_whole, reading, since: now, completeness }
    }

    fn is_due(&self, is_requested: bool, now: Instant) -> bool {
        let stood = now.duration_since(self.since);
        match self.completeness {
            Completeness::Incomplete => stood >= INCOMPLETE_FOR,
            _ if is_requested => true,
            Completeness::Unreadable => stood >= INTERVAL,
            Completeness::Whole => {
                stood >= required(now.duration_since(self.first_whole.unwrap_or(now)))
            }
        }
    }
}

/// Returns how long whole content must stand, which is the shorter the longer a change is awaited.
///
/// A file that is replaced again and again is so taken within a second, with some time to spare
/// for what follows; and if at all possible when nobody is just writing it.
fn required(awaited: Duration) -> Duration {
    match awaited.as_millis() {
        ..600 => INTERVAL,
        600..750 => PENDING_INTERVAL,
        750.. => Duration::ZERO,
    }
}

fn completeness(reading: &Reading) -> Completeness {
    let Ok(content) = reading else { return Completeness::Unreadable };
    match content.ends_with(b"\n") && has_backends(content) {
        true => Completeness::Whole,
        false => Completeness::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "a=127.0.0.1:1\n";
    const NEW: &str = "b=127.0.0.1:2\n";

    /// A file that was taken as `OLD`, and the time since.
    struct File {
        debounce: Debounce,
        start: Instant,
    }

    impl File {
        fn new() -> Self {
            Self { debounce: Debounce::new(content(OLD)), start: Instant::now() }
        }

        /// What is taken if this is found at a time in milliseconds.
        fn look(&mut self, reading: Reading, at: u64) -> Option<Taken> {
            self.debounce.look(reading, self.start + Duration::from_millis(at))
        }

        fn request(&mut self, reading: Reading, at: u64) -> Option<Taken> {
            self.debounce.request();
            self.look(reading, at)
        }

        /// When this is taken, if it stands from a time in milliseconds on.
        fn taken_at(&mut self, reading: Reading, from: u64) -> u64 {
            (from..from + 5000)
                .step_by(20)
                .find(|at| self.look(reading.clone(), *at).is_some())
                .expect("it is never taken")
        }
    }

    fn content(text: &str) -> Reading {
        Ok(text.into())
    }

    fn unreadable() -> Reading {
        Err("unreadable".to_owned().into())
    }

    fn taken(reading: Reading) -> Option<Taken> {
        Some(Taken { reading, is_requested: false })
    }

    fn requested(reading: Reading) -> Option<Taken> {
        Some(Taken { reading, is_requested: true })
    }

    #[test]
    fn a_change_is_taken_once_when_it_has_stood_and_not_at_first_sight() {
        let mut file = File::new();
        assert_eq!(file.look(content(OLD), 0), None);
        assert_eq!(file.look(content(NEW), 1000), None, "perhaps half-written");
        assert_eq!(file.look(content(NEW), 1199), None);
        assert_eq!(file.look(content(NEW), 1200), taken(content(NEW)));
        assert_eq!(file.look(content(NEW), 1400), None);
        assert_eq!(file.look(content(NEW), 9999), None);
    }

    #[test]
    fn a_file_that_never_stands_still_is_taken_within_a_second() {
        for pause in [1, 20, 50, 110, 180] {
            let mut file = File::new();
            let at = (0..5000).step_by(20).find(|at| {
                let version = at / pause;
                file.look(content(&format!("b=127.0.0.1:{}\n", version + 1)), *at).is_some()
            });
            assert!(at.is_some_and(|at| (600..=800).contains(&at)), "every {pause} ms: {at:?}");
        }
    }

    #[test]
    fn a_file_that_never_stands_still_is_taken_when_nobody_just_writes_it_if_possible() {
        let mut file = File::new();
        for at in (0..600).step_by(100) {
            assert_eq!(file.look(content(&format!("b=127.0.0.1:{}\n", at + 1)), at), None);
        }
        assert_eq!(file.look(content("b=127.0.0.1:1\n"), 600), None, "at first sight");
        assert_eq!(file.look(content("b=127.0.0.1:1\n"), 620), taken(content("b=127.0.0.1:1\n")));
    }

    #[test]
    fn after_a_change_was_taken_the_next_has_its_full_time() {
        let mut file = File::new();
        file.look(content(NEW), 0);
        assert!(file.look(content(NEW), 200).is_some());
        assert_eq!(file.look(content("c=127.0.0.1:3\n"), 1000), None);
        assert_eq!(file.taken_at(content("c=127.0.0.1:3\n"), 1020), 1200);
    }

    #[test]
    fn a_change_that_is_undone_is_none() {
        let mut file = File::new();
        file.look(content(NEW), 0);
        assert!((20..2000).step_by(20).all(|at| file.look(content(OLD), at).is_none()));
        assert_eq!(file.look(content(NEW), 2000), None, "it has its full time again");
        assert_eq!(file.taken_at(content(NEW), 2020), 2200);
    }

    #[test]
    fn a_last_line_without_its_end_is_believed_when_it_has_stood_for_a_second() {
        let mut file = File::new();
        let torn = content("a=127.0.0.1:1\nb=127.0.0.1:36");
        assert_eq!(file.look(torn.clone(), 0), None);
        assert_eq!(file.look(torn.clone(), 999), None);
        assert_eq!(file.look(torn.clone(), 1000), taken(torn));
    }

    #[test]
    fn a_last_line_without_its_end_that_changes_again_is_not_believed_however_long_it_takes() {
        let mut file = File::new();
        for at in (0..5000).step_by(500) {
            assert_eq!(file.look(content(&format!("b=127.0.0.1:{}", at + 1)), at), None);
        }
        assert_eq!(file.look(content(NEW), 5000), None, "perhaps half-written, too");
        assert_eq!(file.taken_at(content(NEW), 5020), 5200);
    }

    #[test]
    fn a_file_without_backends_is_believed_when_it_has_stood_for_a_second() {
        for text in ["", "\n", "# to be continued\n", "\u{feff}# marked\n"] {
            assert_eq!(File::new().taken_at(content(text), 0), 1000, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_was_empty_only_while_it_was_rewritten_is_not_taken_as_empty() {
        let mut file = File::new();
        assert_eq!(file.look(content(""), 0), None);
        assert_eq!(file.look(content(""), 500), None);
        assert_eq!(file.look(content(NEW), 520), None);
        assert_eq!(file.taken_at(content(NEW), 540), 720);
    }

    #[test]
    fn an_unreadable_file_is_taken_once_and_only_when_it_was_seen_twice() {
        let mut file = File::new();
        assert_eq!(file.look(unreadable(), 0), None, "perhaps between two names");
        assert_eq!(file.look(unreadable(), 200), taken(unreadable()));
        assert!((220..9000).step_by(20).all(|at| file.look(unreadable(), at).is_none()));
        assert_eq!(file.taken_at(content(OLD), 9000), 9200, "back again");
    }

    #[test]
    fn a_request_takes_the_file_at_once_even_if_it_is_the_same() {
        let mut file = File::new();
        assert_eq!(file.request(content(OLD), 0), requested(content(OLD)));
        assert_eq!(file.look(content(OLD), 20), None, "once");
        assert_eq!(file.request(content(NEW), 40), requested(content(NEW)));
        assert_eq!(file.request(unreadable(), 60), requested(unreadable()));
        assert_eq!(file.request(unreadable(), 80), requested(unreadable()));
    }

    #[test]
    fn a_request_leaves_no_half_seen_change_standing() {
        for seen in [NEW, OLD] {
            let mut file = File::new();
            file.look(content(NEW), 0);
            assert_eq!(file.request(content(seen), 10), requested(content(seen)));
            let at = file.taken_at(content("c=127.0.0.1:3\n"), 900);
            assert_eq!(at, 1100, "the next change is one of its own");
        }
    }

    #[test]
    fn a_request_waits_for_what_is_doubtful() {
        let mut file = File::new();
        let torn = content("b=127.0.0.1:36");
        assert_eq!(file.request(torn.clone(), 0), None);
        assert_eq!(file.look(torn.clone(), 980), None);
        assert_eq!(file.look(torn.clone(), 1000), requested(torn.clone()));
        assert_eq!(file.request(torn.clone(), 1020), requested(torn), "it is believed by now");
    }
}
