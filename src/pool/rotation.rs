//! Whom to pick next: round robin in key order, passing over backends that keep failing. Knows no socket and no clock.

use std::collections::BTreeSet;
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

/// Where the rotation stands, and who is passed over.
///
/// Backends are known by their index in key order alone. Whoever [replaces](Self::replace) them knows the keys.
#[derive(Debug)]
pub(crate) struct Rotation {
    health: Vec<Health>,
    /// The index after the one served last.
    next: usize,
    has_begun: bool,
    /// Each index is either here …
    healthy: BTreeSet<usize>,
    /// … or here, by the time of its return.
    ejected: BTreeSet<(Instant, usize)>,
    random_first_pick: bool,
    policy: Ejection,
    random: Random,
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
            health: Vec::new(),
            next: 0,
            has_begun: false,
            healthy: BTreeSet::new(),
            ejected: BTreeSet::new(),
            random_first_pick,
            policy,
            random,
        }
    }

    /// Takes over a new set: for each backend the index it had, if it keeps its health, and the first index after the
    /// key served last.
    pub(crate) fn replace(&mut self, changes: impl Iterator<Item = Option<usize>>, next: usize) {
        let old = &self.health;
        self.health =
            changes.map(|index| index.map_or_else(Health::default, |index| old[index])).collect();
        self.next = next;
        let ejected =
            |(index, health): (usize, &Health)| health.ejected_until.map(|until| (until, index));
        self.ejected = self.health.iter().enumerate().filter_map(ejected).collect();
        self.healthy = (0..self.health.len())
            .filter(|&index| self.health[index].ejected_until.is_none())
            .collect();
    }

    /// The first backend after the one served last that `is_candidate`; an ejected one only if there is no other.
    pub(crate) fn pick(
        &mut self,
        now: Instant,
        is_candidate: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        self.readmit(now);
        let count = self.health.len();
        if !self.has_begun && self.random_first_pick && count > 0 {
            self.next = (self.random.next() % count as u64) as usize;
        }
        let is_candidate = |index: &usize| is_candidate(*index);
        let healthy = self
            .healthy
            .range(self.next..)
            .chain(self.healthy.range(..self.next))
            .copied()
            .find(is_candidate);
        let picked =
            healthy.or_else(|| (self.next..count).chain(0..self.next).find(is_candidate))?;
        self.has_begun = true;
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
            self.health[index].ejected_until = None;
        }
    }

    /// A dial succeeded: the backend's record is clean.
    pub(crate) fn succeeded(&mut self, index: usize) {
        if let Some(until) = self.health[index].ejected_until {
            self.ejected.remove(&(until, index));
            self.healthy.insert(index);
        }
        self.health[index] = Health::default();
    }

    /// A dial failed. If that ejects the backend, returns for how long.
    ///
    /// While it is ejected, further failures tell nothing new: they are of dials begun before, or for want of any
    /// other candidate.
    pub(crate) fn failed(&mut self, index: usize, now: Instant) -> Option<Duration> {
        self.readmit(now);
        let health = &mut self.health[index];
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
        self.health[index].ejected_until.is_some_and(|until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Ejection =
        Ejection { failures: 3, base: Duration::from_secs(1), max: Duration::from_secs(30) };

    fn rotation(seats: usize) -> Rotation {
        with_policy(POLICY, seats)
    }

    fn with_policy(policy: Ejection, seats: usize) -> Rotation {
        let mut rotation = Rotation::new(policy, false, Random::new(1));
        rotation.replace((0..seats).map(|_| None), 0);
        rotation
    }

    fn pick(rotation: &mut Rotation, now: Instant) -> Option<usize> {
        rotation.pick(now, |_| true)
    }

    fn picks(rotation: &mut Rotation, count: usize) -> Vec<usize> {
        let now = Instant::now();
        (0..count).filter_map(|_| pick(rotation, now)).collect()
    }

    fn fail(rotation: &mut Rotation, index: usize, times: u32, now: Instant) -> Option<Duration> {
        (0..times).map(|_| rotation.failed(index, now)).last().flatten()
    }

    #[test]
    fn randomness_is_that_of_split_mix_64() {
        // The values that implementations of it are checked against.
        let mut random = Random::new(1_234_567);
        for number in [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
        ] {
            assert_eq!(random.next(), number);
        }
    }

    #[test]
    fn c2_1_picks_go_round_from_where_the_rotation_stands() {
        let mut rotation = rotation(3);
        assert_eq!(picks(&mut rotation, 7), [0, 1, 2, 0, 1, 2, 0]);
        rotation.replace([None, Some(0), Some(1), Some(2)].into_iter(), 2);
        assert_eq!(picks(&mut rotation, 3), [2, 3, 0]);
        assert_eq!(pick(&mut with_policy(POLICY, 0), Instant::now()), None);
    }

    #[test]
    fn c2_1_failover_takes_the_next_untried_and_moves_the_cursor() {
        let mut rotation = rotation(4);
        let now = Instant::now();
        assert_eq!(pick(&mut rotation, now), Some(0));
        assert_eq!(rotation.pick(now, |index| index != 0), Some(1)); // a failed for this client
        assert_eq!(pick(&mut rotation, now), Some(2)); // the next client
        assert_eq!(rotation.pick(now, |_| false), None);
        assert_eq!(pick(&mut rotation, now), Some(3)); // that nobody was found moved nothing
    }

    #[test]
    fn c2_2_the_first_pick_is_the_first_key_unless_chance_is_asked_for() {
        assert_eq!(picks(&mut rotation(2), 1), [0]);
        let first = |seed| {
            let mut rotation = Rotation::new(POLICY, true, Random::new(seed));
            assert_eq!(picks(&mut rotation, 1), []);
            rotation.replace([None; 3].into_iter(), 0);
            picks(&mut rotation, 3)
        };
        let starts: BTreeSet<Vec<usize>> = (0..50).map(first).collect();
        assert_eq!(starts.into_iter().collect::<Vec<_>>(), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        assert_eq!(first(7), first(7));
    }

    #[test]
    fn c5_5_consecutive_failures_eject_and_a_success_between_does_not() {
        let mut rotation = rotation(3);
        let now = Instant::now();
        assert_eq!(fail(&mut rotation, 1, 2, now), None);
        rotation.succeeded(1);
        assert_eq!(fail(&mut rotation, 1, 2, now), None);
        assert!(!rotation.is_ejected(1, now));
        assert!(rotation.failed(1, now).is_some());
        assert!(rotation.is_ejected(1, now));
        assert_eq!(picks(&mut rotation, 4), [0, 2, 0, 2]);
    }

    #[test]
    fn c5_5_the_time_grows_is_bounded_and_varies() {
        let mut rotation = rotation(2);
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
        let mut rotation = rotation(2);
        let now = Instant::now();
        assert!(fail(&mut rotation, 0, 3, now).is_some());
        assert_eq!(fail(&mut rotation, 0, 20, now), None);
        let later = now + Duration::from_secs(1);
        let second = rotation.failed(0, later).unwrap();
        assert!(second <= Duration::from_secs(2), "{second:?}");
    }

    #[test]
    fn c5_5_an_ejection_ends_with_its_time_with_success_and_with_a_new_target() {
        let mut rotation = rotation(2);
        let now = Instant::now();
        let time = fail(&mut rotation, 0, 3, now).unwrap();
        let just_before = now + time - Duration::from_nanos(1);
        assert_eq!([now, just_before].map(|at| pick(&mut rotation, at)), [Some(1); 2]);
        assert_eq!([now + time; 2].map(|at| pick(&mut rotation, at)), [Some(0), Some(1)]);

        assert!(rotation.failed(0, now + time).is_some());
        rotation.succeeded(0);
        assert_eq!(picks(&mut rotation, 2), [0, 1]);

        assert!(fail(&mut rotation, 0, 3, now).is_some());
        rotation.replace([None, Some(0), Some(1)].into_iter(), 0); // elsewhere in the order, still ejected
        assert_eq!([now; 2].map(|at| pick(&mut rotation, at)), [Some(0), Some(2)]);
        rotation.replace([Some(0), None, Some(2)].into_iter(), 0);
        assert_eq!([now; 3].map(|at| pick(&mut rotation, at)), [0, 1, 2].map(Some));
    }

    #[test]
    fn c5_5_an_ejection_that_success_has_ended_does_not_shorten_the_next() {
        let mut rotation = rotation(2);
        let now = Instant::now();
        let first = fail(&mut rotation, 0, 3, now).unwrap();
        rotation.succeeded(0);
        let later = now + first - Duration::from_millis(1);
        assert!(fail(&mut rotation, 0, 3, later).is_some());
        assert_eq!(pick(&mut rotation, now + first), Some(1));
        assert!(rotation.is_ejected(0, now + first));
    }

    #[test]
    fn c8_1_a_backend_is_not_shown_as_ejected_longer_than_it_is() {
        let mut rotation = rotation(2);
        let now = Instant::now();
        let time = fail(&mut rotation, 0, 3, now).unwrap();
        assert!(rotation.is_ejected(0, now + time - Duration::from_nanos(1)));
        assert!(!rotation.is_ejected(0, now + time), "though nobody has picked since");
    }

    #[test]
    fn c5_5_if_all_are_ejected_all_are_candidates() {
        let mut rotation = rotation(3);
        let now = Instant::now();
        for index in 0..3 {
            assert!(fail(&mut rotation, index, 3, now).is_some());
        }
        assert_eq!(picks(&mut rotation, 4), [0, 1, 2, 0]);
    }

    #[test]
    fn c2_3_an_ejected_backend_is_tried_when_the_client_has_no_other_left() {
        let mut rotation = rotation(2);
        let now = Instant::now();
        assert!(fail(&mut rotation, 0, 3, now).is_some());
        assert_eq!(rotation.pick(now, |index| index != 1), Some(0));
    }

    #[test]
    fn c9_1_no_ejection_is_too_long() {
        let forever = Ejection { failures: 1, base: Duration::MAX, max: Duration::MAX };
        assert!(forever.duration(u32::MAX, 0.0) > Duration::from_secs(1 << 31));
        let mut rotation = with_policy(forever, 2);
        assert!(rotation.failed(0, Instant::now()).is_some());
        assert_eq!(picks(&mut rotation, 2), [1, 1]);
    }

    #[test]
    fn c5_5_an_update_forgets_neither_failures_nor_ejections_of_those_that_stay() {
        let mut rotation = rotation(2);
        let now = Instant::now();
        let replace = |rotation: &mut Rotation| rotation.replace([Some(0), Some(1)].into_iter(), 0);
        assert_eq!(fail(&mut rotation, 0, 2, now), None);
        replace(&mut rotation);
        let first = rotation.failed(0, now).expect("the third failure in a row ejects");
        replace(&mut rotation);
        let second =
            rotation.failed(0, now + first).expect("after an ejection one failure is enough");
        assert!(second > POLICY.base, "{second:?}");
    }

    #[test]
    fn c5_5_after_a_success_ejections_begin_anew() {
        let mut rotation = rotation(2);
        let now = Instant::now();
        let first = fail(&mut rotation, 0, 3, now).unwrap();
        let second = rotation.failed(0, now + first).unwrap();
        rotation.succeeded(0);
        let third = fail(&mut rotation, 0, 3, now + first + second).unwrap();
        assert!(third <= POLICY.base, "{third:?}");
    }

    #[test]
    fn c5_5_zero_failures_never_eject() {
        let mut rotation = with_policy(Ejection { failures: 0, ..POLICY }, 2);
        assert_eq!(fail(&mut rotation, 0, 100, Instant::now()), None);
    }
}
