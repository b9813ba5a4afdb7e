//! Whom to pick next: round robin in key order, passing over backends that keep failing. Knows no socket and no clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When a backend that keeps failing is passed over, and for how long.
///
/// The time doubles with each ejection that no success came between, from `base` up to `max`, and is then shortened by
/// up to a quarter at random, so that a fleet does not return to a backend all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// How many consecutive failed dials eject a backend. Defaults to 3; 0 never ejects.
    pub failures: u32,
    /// The first time. Defaults to 1 second.
    pub base: Duration,
    /// The longest time. Defaults to 30 seconds.
    pub max: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 3, base: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

impl Ejection {
    /// The time of an ejection after `earlier` ones in a row; `chance` is from 0 to 1.
    fn duration(&self, earlier: u32, chance: f64) -> Duration {
        // As good as for ever, and no clock overflows by it.
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(earlier));
        doubled.min(self.max).min(CENTURY).mul_f64(1.0 - chance / 4.0)
    }
}

/// Where randomness comes from: a sequence that its seed determines (SplitMix64).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0, inclusive, to 1, exclusive.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The order of the backends, where the rotation stands, and who is passed over.
///
/// Backends are known by their index in key order, which [`replace`](Self::replace) changes.
#[derive(Debug)]
pub(crate) struct Rotation {
    seats: Vec<Seat>,
    /// The key served last, which outlives the backend it belonged to.
    last: Option<Arc<str>>,
    /// The first index after `last`, or the number of seats if it is the last one.
    next: usize,
    /// Each index is either here …
    healthy: BTreeSet<usize>,
    /// … or here, by the time of its return.
    ejected: BTreeSet<(Instant, usize)>,
    random_first_pick: bool,
    policy: Ejection,
    random: Random,
}

#[derive(Debug, Clone)]
struct Seat {
    key: Arc<str>,
    target_name: Arc<str>,
    health: Health,
}

/// How a backend has answered lately.
///
/// ```text
/// failed: 0 ── `failures` failed dials ──> Ejected ──time──> failed: failures - 1 ──one more──> Ejected, for longer
/// any ── success ──> failed: 0, and no ejection before
/// ```
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// Consecutive failed dials since the last ejection's end.
    failed: u32,
    /// Consecutive ejections.
    ejections: u32,
    ejected_until: Option<Instant>,
}

impl Rotation {
    pub(crate) fn new(policy: Ejection, random_first_pick: bool, random: Random) -> Self {
        Self {
            seats: Vec::new(),
            last: None,
            next: 0,
            healthy: BTreeSet::new(),
            ejected: BTreeSet::new(),
            random_first_pick,
            policy,
            random,
        }
    }

    /// Takes over a new set of keys and target names, in key order. A key that keeps its target keeps its health.
    pub(crate) fn replace(&mut self, new: impl Iterator<Item = (Arc<str>, Arc<str>)>) {
        let mut old = std::mem::take(&mut self.seats).into_iter().peekable();
        for (key, target_name) in new {
            while old.next_if(|seat| seat.key < key).is_some() {}
            let same = old.next_if(|seat| seat.key == key && seat.target_name == target_name);
            let health = same.map(|seat| seat.health).unwrap_or_default();
            self.seats.push(Seat { key, target_name, health });
        }
        self.index();
    }

    /// Works out all that is known by index.
    fn index(&mut self) {
        let Self { seats, last, .. } = self;
        self.next = last.as_ref().map_or(0, |last| seats.partition_point(|seat| seat.key <= *last));
        let ejected = |(index, seat): (usize, &Seat)| seat.health.ejected_until.map(|until| (until, index));
        self.ejected = seats.iter().enumerate().filter_map(ejected).collect();
        self.healthy = (0..seats.len()).filter(|&index| seats[index].health.ejected_until.is_none()).collect();
    }

    /// The first backend after the one served last that `is_candidate`; an ejected one only if there is no other.
    pub(crate) fn pick(&mut self, now: Instant, is_candidate: impl Fn(&Arc<str>, &Arc<str>) -> bool) -> Option<usize> {
        self.readmit(now);
        if self.last.is_none() && self.random_first_pick && !self.seats.is_empty() {
            self.next = (self.random.next() % self.seats.len() as u64) as usize;
        }
        let seats = &self.seats;
        let is_candidate = |index: &usize| is_candidate(&seats[*index].key, &seats[*index].target_name);
        let healthy =
            self.healthy.range(self.next..).chain(self.healthy.range(..self.next)).copied().find(is_candidate);
        let picked = healthy.or_else(|| (self.next..seats.len()).chain(0..self.next).find(is_candidate))?;
        self.last = Some(seats[picked].key.clone());
        self.next = picked + 1;
        Some(picked)
    }

    /// Ends the ejections whose time is over. One more failure will eject again.
    fn readmit(&mut self, now: Instant) {
        while let Some(&(until, index)) = self.ejected.first() {
            if until > now {
                break;
            }
            self.ejected.pop_first();
            self.healthy.insert(index);
            self.seats[index].health.ejected_until = None;
        }
    }

    /// A dial succeeded: the backend's record is clean.
    pub(crate) fn succeeded(&mut self, index: usize) {
        if let Some(until) = self.seats[index].health.ejected_until {
            self.ejected.remove(&(until, index));
            self.healthy.insert(index);
        }
        self.seats[index].health = Health::default();
    }

    /// A dial failed. If that ejects the backend, returns for how long.
    ///
    /// While it is ejected, further failures tell nothing new: they are of dials begun before, or for want of any
    /// other candidate.
    pub(crate) fn failed(&mut self, index: usize, now: Instant) -> Option<Duration> {
        self.readmit(now);
        let health = &mut self.seats[index].health;
        if health.ejected_until.is_some() || self.policy.failures == 0 {
            return None;
        }
        health.failed += 1;
        if health.failed < self.policy.failures {
            return None;
        }
        let time = self.policy.duration(health.ejections, self.random.unit());
        let until = now + time;
        *health = Health {
            failed: self.policy.failures - 1,
            ejections: health.ejections.saturating_add(1),
            ejected_until: Some(until),
        };
        self.healthy.remove(&index);
        self.ejected.insert((until, index));
        Some(time)
    }

    pub(crate) fn is_ejected(&self, index: usize, now: Instant) -> bool {
        self.seats[index].health.ejected_until.is_some_and(|until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Ejection = Ejection { failures: 3, base: Duration::from_secs(1), max: Duration::from_secs(30) };

    fn rotation(keys: &[&str]) -> Rotation {
        let mut rotation = Rotation::new(POLICY, false, Random::new(1));
        set(&mut rotation, keys);
        rotation
    }

    /// `key` stands for a key and a target of the same name, `key=target` for the two.
    fn set(rotation: &mut Rotation, keys: &[&str]) {
        rotation.replace(keys.iter().map(|text| {
            let (key, target) = text.split_once('=').unwrap_or((text, text));
            (key.into(), target.into())
        }));
    }

    fn pick(rotation: &mut Rotation, now: Instant) -> String {
        match rotation.pick(now, |_, _| true) {
            Some(index) => rotation.seats[index].key.to_string(),
            None => "none".to_owned(),
        }
    }

    fn picks(rotation: &mut Rotation, count: usize) -> String {
        let now = Instant::now();
        (0..count).map(|_| pick(rotation, now)).collect()
    }

    fn fail(rotation: &mut Rotation, index: usize, times: u32, now: Instant) -> Option<Duration> {
        (0..times).map(|_| rotation.failed(index, now)).last().flatten()
    }

    #[test]
    fn c2_1_picks_go_round_in_key_order() {
        assert_eq!(picks(&mut rotation(&["a", "b", "c"]), 7), "abcabca");
        assert_eq!(picks(&mut rotation(&[]), 1), "none");
    }

    #[test]
    fn c2_1_a_change_of_the_set_skips_nobody_and_repeats_nobody() {
        let mut rotation = rotation(&["b", "d", "f"]);
        assert_eq!(picks(&mut rotation, 2), "bd");
        set(&mut rotation, &["a", "b", "c", "d", "e", "f"]);
        assert_eq!(picks(&mut rotation, 2), "ef");
        set(&mut rotation, &["a", "b", "g"]); // the one served last is gone
        assert_eq!(picks(&mut rotation, 4), "gabg");
        set(&mut rotation, &[]);
        set(&mut rotation, &["a", "h"]);
        assert_eq!(picks(&mut rotation, 2), "ha");
    }

    #[test]
    fn c2_1_a_flapping_backend_starves_nobody() {
        let mut rotation = rotation(&["a", "b", "c"]);
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for round in 0..3000 {
            set(&mut rotation, if round % 5 < 2 { &["a", "b", "c"] } else { &["a", "c"] });
            *counts.entry(picks(&mut rotation, 1)).or_default() += 1;
        }
        let (a, b, c) = (counts["a"], counts["b"], counts["c"]);
        assert!(a.abs_diff(c) <= 1 && a + b + c == 3000 && a >= 1000, "{counts:?}");
    }

    #[test]
    fn c2_1_failover_takes_the_next_untried_and_moves_the_cursor() {
        let mut rotation = rotation(&["a", "b", "c", "d"]);
        let now = Instant::now();
        assert_eq!(rotation.pick(now, |_, _| true), Some(0));
        assert_eq!(rotation.pick(now, |key, _| **key != *"a"), Some(1)); // a failed for this client
        assert_eq!(rotation.pick(now, |_, _| true), Some(2)); // the next client
        assert_eq!(rotation.pick(now, |_, _| false), None);
        assert_eq!(rotation.pick(now, |_, _| true), Some(3)); // that nobody was found moved nothing
    }

    #[test]
    fn c2_2_the_first_pick_is_the_first_key_unless_chance_is_asked_for() {
        assert_eq!(picks(&mut rotation(&["a", "b"]), 1), "a");
        let first = |seed| {
            let mut rotation = Rotation::new(POLICY, true, Random::new(seed));
            set(&mut rotation, &[]);
            assert_eq!(picks(&mut rotation, 1), "none");
            set(&mut rotation, &["a", "b", "c"]);
            picks(&mut rotation, 3)
        };
        let starts: BTreeSet<String> = (0..50).map(first).collect();
        assert_eq!(starts.into_iter().collect::<Vec<_>>(), ["abc", "bca", "cab"]);
        assert_eq!(first(7), first(7));
    }

    #[test]
    fn c5_5_consecutive_failures_eject_and_a_success_between_does_not() {
        let mut rotation = rotation(&["a", "b", "c"]);
        let now = Instant::now();
        assert_eq!(fail(&mut rotation, 1, 2, now), None);
        rotation.succeeded(1);
        assert_eq!(fail(&mut rotation, 1, 2, now), None);
        assert!(!rotation.is_ejected(1, now));
        assert!(rotation.failed(1, now).is_some());
        assert!(rotation.is_ejected(1, now));
        assert_eq!(picks(&mut rotation, 4), "acac");
    }

    #[test]
    fn c5_5_the_time_grows_is_bounded_and_varies() {
        let mut rotation = rotation(&["a", "b"]);
        let mut now = Instant::now();
        let mut times = vec![fail(&mut rotation, 0, 3, now).unwrap()];
        for _ in 0..8 {
            now += *times.last().unwrap();
            times.push(rotation.failed(0, now).expect("after an ejection one failure is enough"));
        }
        for (earlier, time) in times.iter().enumerate() {
            let full = Duration::from_secs(1 << earlier).min(POLICY.max);
            assert!(*time <= full && *time >= full * 3 / 4, "{earlier}: {time:?}");
        }
        let at_the_bound: BTreeSet<_> = times[5..].iter().collect();
        assert!(at_the_bound.len() > 1, "not jittered: {times:?}");
    }

    #[test]
    fn c5_5_failures_of_one_burst_eject_once() {
        let mut rotation = rotation(&["a", "b"]);
        let now = Instant::now();
        assert!(fail(&mut rotation, 0, 3, now).is_some());
        assert_eq!(fail(&mut rotation, 0, 20, now), None);
        let later = now + Duration::from_secs(1);
        let second = rotation.failed(0, later).unwrap();
        assert!(second <= Duration::from_secs(2), "{second:?}");
    }

    #[test]
    fn c5_5_an_ejection_ends_with_its_time_with_success_and_with_a_new_target() {
        let mut rotation = rotation(&["a", "b"]);
        let now = Instant::now();
        let time = fail(&mut rotation, 0, 3, now).unwrap();
        let just_before = now + time - Duration::from_nanos(1);
        assert_eq!([pick(&mut rotation, now), pick(&mut rotation, just_before)].concat(), "bb");
        assert_eq!([pick(&mut rotation, now + time), pick(&mut rotation, now + time)].concat(), "ab");

        assert!(rotation.failed(0, now + time).is_some());
        rotation.succeeded(0);
        assert_eq!(picks(&mut rotation, 2), "ab");

        assert!(fail(&mut rotation, 0, 3, now).is_some());
        set(&mut rotation, &["0", "a", "b"]); // elsewhere in the order, still ejected
        assert_eq!([pick(&mut rotation, now), pick(&mut rotation, now)].concat(), "0b");
        set(&mut rotation, &["0", "a=new", "b"]);
        assert_eq!([pick(&mut rotation, now), pick(&mut rotation, now), pick(&mut rotation, now)].concat(), "0ab");
    }

    #[test]
    fn c5_5_an_ejection_that_success_has_ended_does_not_shorten_the_next() {
        let mut rotation = rotation(&["a", "b"]);
        let now = Instant::now();
        let first = fail(&mut rotation, 0, 3, now).unwrap();
        rotation.succeeded(0);
        let later = now + first - Duration::from_millis(1);
        assert!(fail(&mut rotation, 0, 3, later).is_some());
        assert_eq!(pick(&mut rotation, now + first), "b");
        assert!(rotation.is_ejected(0, now + first));
    }

    #[test]
    fn c8_1_a_backend_is_not_shown_as_ejected_longer_than_it_is() {
        let mut rotation = rotation(&["a", "b"]);
        let now = Instant::now();
        let time = fail(&mut rotation, 0, 3, now).unwrap();
        assert!(rotation.is_ejected(0, now + time - Duration::from_nanos(1)));
        assert!(!rotation.is_ejected(0, now + time), "though nobody has picked since");
    }

    #[test]
    fn c5_5_if_all_are_ejected_all_are_candidates() {
        let mut rotation = rotation(&["a", "b", "c"]);
        let now = Instant::now();
        for index in 0..3 {
            assert!(fail(&mut rotation, index, 3, now).is_some());
        }
        assert_eq!(picks(&mut rotation, 4), "abca");
    }

    #[test]
    fn c2_3_an_ejected_backend_is_tried_when_the_client_has_no_other_left() {
        let mut rotation = rotation(&["a", "b"]);
        let now = Instant::now();
        assert!(fail(&mut rotation, 0, 3, now).is_some());
        assert_eq!(rotation.pick(now, |key, _| **key != *"b"), Some(0));
    }

    #[test]
    fn c9_1_no_ejection_is_too_long() {
        let forever = Ejection { failures: 1, base: Duration::MAX, max: Duration::MAX };
        assert!(forever.duration(u32::MAX, 0.0) > Duration::from_secs(1 << 31));
        let mut rotation = Rotation::new(forever, false, Random::new(1));
        set(&mut rotation, &["a", "b"]);
        assert!(rotation.failed(0, Instant::now()).is_some());
        assert_eq!(picks(&mut rotation, 2), "bb");
    }

    #[test]
    fn c5_5_zero_failures_never_eject() {
        let mut rotation = Rotation::new(Ejection { failures: 0, ..POLICY }, false, Random::new(1));
        set(&mut rotation, &["a", "b"]);
        assert_eq!(fail(&mut rotation, 0, 100, Instant::now()), None);
    }
}
