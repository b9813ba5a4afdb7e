//! The pool by itself: picking, the breaker in its rotation, updates, and what is counted.

use super::merged_update::Removal;
use super::replace::Replaced;
use super::*;
use crate::backend::{BackendSet, TcpBackend};

/// A pool with a clock, whose targets are named by letters.
pub(super) struct Rig {
    pub(super) pool: Pool,
    pub(super) now: Instant,
}

/// Makes a set of `key`, `key*weight`, `key=target` or `key*weight=target`. A key alone names a
/// target of its own.
fn set(entries: &[&str]) -> BackendSet {
    let mut set = BackendSet::new();
    for entry in entries {
        let (key, target) = entry.split_once('=').unwrap_or((entry, &entry[..1]));
        let (key, weight) = key.split_once('*').unwrap_or((key, "1"));
        let port = u16::from_be_bytes([1, target.as_bytes()[0]]);
        let backend = TcpBackend::new(([127, 0, 0, 1], port).into());
        set.insert_weighted(key, backend, weight.parse().unwrap());
    }
    set
}

impl Rig {
    pub(super) fn new(entries: &[&str]) -> Self {
        Self::with(PickSettings::default(), 1, entries)
    }

    pub(super) fn with(settings: PickSettings, seed: u64, entries: &[&str]) -> Self {
        let mut rig = Self { pool: Pool::new(settings, Random::new(seed)), now: Instant::now() };
        rig.replace(entries);
        rig
    }

    pub(super) fn replace(&mut self, entries: &[&str]) -> Replaced {
        self.pool.replace(&MergedUpdate::new(set(entries), Removal::Close), self.now)
    }

    fn replace_draining(&mut self, entries: &[&str], secs: u64) -> Replaced {
        let removal = Removal::Drain(Duration::from_secs(secs));
        self.pool.replace(&MergedUpdate::new(set(entries), removal), self.now)
    }

    /// Passes time, as the loop does at the beginning of a turn.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        while self.pool.has_ended_ejections(self.now) {
            self.pool.end_ejections(self.now);
        }
    }

    pub(super) fn pick_again(&mut self, tried: &mut Tried) -> Picked {
        self.pool.pick(tried, |_| false)
    }

    pub(super) fn pick(&mut self) -> Assignment {
        self.pick_again(&mut Tried::default()).backend().expect("there is a backend")
    }

    pub(super) fn open(&mut self) -> Assignment {
        let mut assignment = self.pick();
        self.pool.connected(&mut assignment);
        assignment
    }

    /// Picks for so many clients, one after the other, and returns the keys.
    pub(super) fn picks(&mut self, count: usize) -> String {
        let pick = |_| {
            let Some(assignment) = self.pick_again(&mut Tried::default()).backend() else {
                return "-".into();
            };
            let key = assignment.key().to_owned();
            self.pool.release(assignment);
            key
        };
        (0..count).map(pick).collect()
    }

    /// Has a backend fail for a client of its own until it is ejected. Returns for how long.
    pub(super) fn eject(&mut self, key: &str) -> Duration {
        for _ in 0..1000 {
            let assignment = self.pick();
            if assignment.key() != key {
                self.pool.release(assignment);
            } else if let Some(time) = self.fail(assignment) {
                return time;
            }
        }
        panic!("{key} is not picked any more");
    }

    pub(super) fn fail(&mut self, assignment: Assignment) -> Option<Duration> {
        self.pool.backend_failed(assignment, true, &mut Tried::default(), self.now)
    }

    fn ejected(&self) -> Vec<bool> {
        self.pool.backend_stats(self.now).iter().map(|backend| backend.ejected).collect()
    }

    fn dialling(&self) -> Vec<u64> {
        self.pool.backend_stats(self.now).iter().map(|backend| backend.dialling).collect()
    }
}

#[test]
fn c2_1_picks_go_round_in_key_order() {
    assert_eq!(Rig::new(&["c", "a", "b"]).picks(7), "abcabca");
    assert_eq!(Rig::new(&[]).picks(1), "-");
}

#[test]
fn c2_1_a_change_of_the_set_skips_nobody_and_repeats_nobody() {
    let mut rig = Rig::new(&["b", "d", "f"]);
    assert_eq!(rig.picks(2), "bd");
    rig.replace(&["a", "b", "c", "d", "e", "f"]);
    assert_eq!(rig.picks(2), "ef");
    rig.replace(&["a", "b", "g"]); // the one served last is gone
    assert_eq!(rig.picks(4), "gabg");
    rig.replace(&[]);
    assert_eq!(rig.picks(1), "-");
    rig.replace(&["a", "h"]);
    assert_eq!(rig.picks(2), "ha");
}

#[test]
fn c2_1_a_flapping_backend_starves_nobody() {
    let mut rig = Rig::new(&["a", "b", "c"]);
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..3000 {
        rig.replace(if round % 5 < 2 { &["a", "b", "c"] } else { &["a", "c"] });
        *counts.entry(rig.picks(1)).or_default() += 1;
    }
    let (a, b, c) = (counts["a"], counts["b"], counts["c"]);
    assert!(a.abs_diff(c) <= 1 && a + b + c == 3000 && a >= 1000, "{counts:?}");
}

#[test]
fn c2_1_failover_takes_the_next_untried_and_moves_the_cursor() {
    let mut rig = Rig::new(&["a", "b", "c", "d"]);
    let mut tried = Tried::default();
    let first = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!(first.key(), "a");
    rig.pool.backend_failed(first, true, &mut tried, rig.now);
    let second = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!((second.key(), rig.picks(1)), ("b", "c".into()));
    rig.pool.backend_failed(second, true, &mut tried, rig.now);
    let rest: Vec<_> = std::iter::from_fn(|| {
        let assignment = rig.pick_again(&mut tried).backend()?;
        let key = assignment.key().to_owned();
        rig.pool.backend_failed(assignment, true, &mut tried, rig.now);
        Some(key)
    })
    .collect();
    assert_eq!(rest, ["d", "c"]);
    assert!(!rig.pool.has_candidate(&mut tried));
    assert_eq!(rig.picks(1), "d", "a pick that finds nobody moves nothing");
}

#[test]
fn c5_3_what_was_tried_stays_tried_wherever_it_is_now_and_a_new_target_is_not() {
    let mut rig = Rig::new(&["b", "d"]);
    let mut tried = Tried::default();
    let failed = rig.pick_again(&mut tried).backend().unwrap();
    rig.pool.backend_failed(failed, true, &mut tried, rig.now);
    let mut next = |rig: &mut Rig, entries: &[&str]| {
        rig.replace(entries);
        let assignment = rig.pick_again(&mut tried).backend()?;
        let key = assignment.key().to_owned();
        rig.pool.release(assignment);
        Some(key)
    };
    assert_eq!(next(&mut rig, &["a", "b"]).as_deref(), Some("a"));
    assert_eq!(next(&mut rig, &["b"]), None);
    assert_eq!(next(&mut rig, &["b=x"]).as_deref(), Some("b"));
    assert_eq!(next(&mut rig, &["b"]), None);
}

#[test]
fn c2_2_the_first_pick_is_the_first_key_unless_the_host_asks_for_chance() {
    let random = PickSettings { random_first_pick: true, ..PickSettings::default() };
    let first = |seed| {
        let mut rig = Rig::with(random, seed, &[]);
        assert_eq!(rig.picks(1), "-");
        rig.replace(&["a", "b", "c"]);
        rig.picks(3)
    };
    let starts: BTreeSet<String> = (0..50).map(first).collect();
    assert_eq!(starts.into_iter().collect::<Vec<_>>(), ["abc", "bca", "cab"]);
    assert_eq!(first(7), first(7));
}

#[test]
fn c5_5_an_ejected_backend_is_skipped_until_its_time_is_over_and_then_probed_by_one() {
    let mut rig = Rig::new(&["a", "b", "c"]);
    let time = rig.eject("b");
    assert_eq!((rig.picks(4).contains('b'), rig.ejected()), (false, vec![false, true, false]));
    rig.pass(time - Duration::from_nanos(1));
    assert!(!rig.picks(3).contains('b'));
    rig.pass(Duration::from_nanos(1));
    assert_eq!(rig.ejected(), [false; 3]);
    while rig.picks(1) != "a" {}
    let probe = rig.pick();
    assert_eq!((probe.key(), rig.picks(4)), ("b", "caca".into()), "one client probes it");
    rig.pool.release(probe);
    assert!(rig.picks(3).contains('b'), "without a verdict the next client does");
}

#[test]
fn c5_5_the_probes_failure_ejects_for_longer_and_any_success_closes() {
    let mut rig = Rig::new(&["a"]);
    let first = rig.eject("a");
    rig.pass(first);
    let (probe, last_resort) = (rig.pick(), rig.pick());
    assert_eq!(rig.fail(last_resort), None, "only the probe counts");
    let second = rig.fail(probe).expect("the probe failed");
    assert!(second > Duration::from_secs(1), "{second:?}");
    let mut succeeded = rig.pick();
    rig.pool.connected(&mut succeeded);
    assert_eq!(rig.ejected(), [false]);
    rig.pool.release(succeeded);
    assert!(rig.eject("a") <= Duration::from_secs(1), "the record is clean");
}

#[test]
fn c5_5_success_between_failures_starts_the_count_anew() {
    let mut rig = Rig::new(&["a"]);
    for _ in 0..3 {
        for _ in 0..2 {
            let assignment = rig.pick();
            assert_eq!(rig.fail(assignment), None);
        }
        let assignment = rig.open();
        rig.pool.release(assignment);
    }
    assert_eq!(rig.ejected(), [false]);
}

#[test]
fn c2_3_ejected_backends_are_picked_when_a_client_has_no_other_left() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.eject("a");
    rig.eject("b");
    let picks = rig.picks(4);
    assert!(picks == "abab" || picks == "baba", "{picks}");
}

#[test]
fn c5_5_local_failures_say_nothing() {
    let mut rig = Rig::new(&["a"]);
    for _ in 0..5 {
        let assignment = rig.pick();
        let failed = rig.pool.backend_failed(assignment, false, &mut Tried::default(), rig.now);
        assert_eq!(failed, None);
    }
    let time = rig.eject("a");
    rig.pass(time);
    let probe = rig.pick();
    rig.pool.backend_failed(probe, false, &mut Tried::default(), rig.now);
    assert!(rig.pick().state == AssignmentState::Probing, "the next client probes");
}

#[test]
fn c5_5_an_ejection_stays_with_its_key_and_ends_with_a_new_target() {
    let mut rig = Rig::new(&["b", "c"]);
    let first = rig.eject("b");
    rig.replace(&["a", "b", "c"]);
    assert_eq!(rig.ejected(), [false, true, false]);
    rig.pass(first);
    assert_eq!(rig.ejected(), [false; 3]);
    rig.eject("b");
    rig.replace(&["b=x"]);
    assert_eq!(rig.ejected(), [false]);
    assert_eq!(rig.picks(1), "b");
}

#[test]
fn c8_1_a_dial_to_a_former_target_says_nothing_about_the_present_one() {
    let mut rig = Rig::new(&["a=x", "b=x"]);
    let (former, other) = (rig.pick(), rig.pick());
    rig.replace(&["a=y", "b=x"]);
    assert!(rig.pool.may_dial(&former), "b still names x");
    let mut failures = 0;
    while failures < 2 {
        let assignment = rig.pick();
        if assignment.key() == "a" {
            failures += 1;
            assert_eq!(rig.fail(assignment), None);
        } else {
            rig.pool.release(assignment);
        }
    }
    let mut former = former;
    rig.pool.connected(&mut former); // must not clear the failures of y
    rig.pool.release(former);
    rig.pool.release(other);
    assert!(rig.eject("a") > Duration::ZERO);
    assert_eq!(rig.ejected(), [true, false]);
}

#[test]
fn c8_1_dialling_is_counted_off_however_a_pair_leaves() {
    let mut rig = Rig::new(&["a", "b"]);
    let (a, b) = (rig.pick(), rig.pick());
    assert_eq!(rig.dialling(), [1, 1]);
    rig.fail(a);
    assert_eq!(rig.dialling(), [0, 1]);
    rig.pool.release(b);
    assert_eq!(rig.dialling(), [0, 0]);
    let open = rig.open();
    assert_eq!(rig.dialling(), [0, 0]);
    let before = rig.pick();
    rig.replace(&["b"]);
    rig.pool.release(open);
    rig.pool.release(before);
    assert_eq!((rig.dialling(), rig.pool.departed().open), (vec![0], 0));
}

#[test]
fn c3_3_a_target_that_another_key_names_keeps_its_pairs() {
    let mut rig = Rig::new(&["a=x", "b=x"]);
    let pair = rig.open();
    assert!(!rig.replace(&["b=x"]).affects_pairs && rig.pool.serves(&pair));
    assert!(!rig.replace(&["c=x", "d"]).affects_pairs && rig.pool.serves(&pair));
    assert!(rig.replace(&["d"]).affects_pairs && !rig.pool.serves(&pair));
}

#[test]
fn c3_6_a_target_that_an_earlier_update_closed_comes_back_without_its_pairs() {
    let mut rig = Rig::new(&["a", "b"]);
    let (a, b) = (rig.open(), rig.open());
    let live = rig.pool.live_targets(&MergedUpdate::new(set(&["a", "b"]), Removal::Close));
    let updates = [&["b"][..], &["a", "b"]]
        .map(|entries| Arc::new(MergedUpdate::new(set(entries), Removal::Close)));
    let replaced = rig.pool.replace(&MergedUpdate::merge(&updates, &live), rig.now);
    assert!(replaced.affects_pairs && replaced.difference.is_empty());
    assert_eq!((rig.pool.serves(&a), rig.pool.serves(&b)), (false, true));
    let usage = |rig: &Rig| rig.pool.backend_stats(rig.now)[0].usage;
    assert_eq!(usage(&rig).open, 1, "the key never left, so it still counts its pair");
    rig.pool.release(a);
    assert_eq!(usage(&rig).open, 0);
    let again = rig.open();
    assert!(rig.pool.serves(&again));
}

#[test]
fn c3_9_a_draining_target_serves_its_pairs_and_is_not_dialled() {
    let mut rig = Rig::new(&["a", "b"]);
    let (open, dial) = (rig.open(), rig.pick());
    let both = rig.replace_draining(&[], 5);
    assert!(both.affects_pairs, "the dial");
    assert_eq!((rig.pool.serves(&open), rig.pool.may_dial(&open)), (true, false));
    assert_eq!((rig.pool.serves(&dial), rig.pool.draining_pairs()), (false, 1));
    assert_eq!(rig.pool.next_drain_limit(), Some(rig.now + Duration::from_secs(5)));
    assert!(!rig.replace_draining(&[], 9).affects_pairs);
    assert_eq!(rig.pool.next_drain_limit(), Some(rig.now + Duration::from_secs(5)));
    rig.replace_draining(&[], 2);
    assert_eq!(rig.pool.next_drain_limit(), Some(rig.now + Duration::from_secs(2)));
    rig.replace_draining(&["a"], 1);
    assert_eq!((rig.pool.next_drain_limit(), rig.pool.may_dial(&open)), (None, true));
    rig.replace_draining(&[], 2);
    rig.pool.end_drains(rig.now + Duration::from_secs(1));
    assert!(rig.pool.serves(&open));
    rig.pool.end_drains(rig.now + Duration::from_secs(2));
    assert_eq!((rig.pool.serves(&open), rig.pool.next_drain_limit()), (false, None));
}

#[test]
fn c1_5_a_held_backend_gets_no_client_and_keeps_its_pairs() {
    let mut rig = Rig::new(&["a", "b"]);
    let (open, dial) = (rig.open(), rig.pick());
    assert_eq!((open.key(), dial.key()), ("a", "b"));
    let replaced = rig.replace(&["a*0", "b*0", "c"]);
    assert!(replaced.affects_pairs, "the dial");
    assert_eq!(&*replaced.difference.changed, ["a".into(), "b".into()]);
    assert!(rig.pool.serves(&open) && !rig.pool.may_dial(&dial));
    rig.pool.release(dial);
    assert_eq!(rig.picks(3), "ccc");
    assert!(!rig.replace(&["a*0", "b*0"]).affects_pairs, "no dial is left, and c has no pair");
    assert_eq!(rig.picks(1), "-", "not even as a last resort");
    assert!(!rig.pool.has_candidate(&mut Tried::default()));
    let stats = rig.pool.backend_stats(rig.now);
    assert_eq!((stats[0].weight, stats[0].usage.open), (0, 1));
    rig.replace(&["a", "b*0"]);
    assert_eq!(rig.picks(2), "aa");
    rig.pool.release(open);
}

#[test]
fn c1_5_a_target_is_dialled_as_long_as_one_of_its_keys_is_not_held() {
    let mut rig = Rig::new(&["a=x", "b=x"]);
    let dial = rig.pick();
    assert_eq!(dial.key(), "a");
    assert!(!rig.replace(&["a*0=x", "b=x"]).affects_pairs);
    assert!(rig.pool.may_dial(&dial), "b names its target");
    assert_eq!(rig.picks(2), "bb");
    assert!(rig.replace(&["a*0=x", "b*0=x"]).affects_pairs);
    assert!(!rig.pool.may_dial(&dial));
    rig.replace(&["a*0=x", "b=y"]);
    assert!(rig.pool.serves(&dial) && !rig.pool.may_dial(&dial));
    rig.pool.release(dial);
}

#[test]
fn c1_5_a_change_of_weight_keeps_counters_and_the_breaker() {
    let mut rig = Rig::new(&["a", "b"]);
    let open = rig.open();
    let time = rig.eject("b");
    let replaced = rig.replace(&["a*3", "b*7"]);
    assert!(!replaced.affects_pairs && replaced.difference.changed.len() == 2);
    assert_eq!((rig.ejected(), rig.picks(2)), (vec![false, true], "aa".into()));
    assert_eq!(rig.pool.backend_stats(rig.now)[0].usage.open, 1);
    rig.replace(&["a*3", "b*0"]);
    rig.pass(time);
    assert_eq!(rig.picks(2), "aa", "it is half-open now, and held");
    let again = rig.replace(&["a*3", "b*7"]);
    assert_eq!(&*again.difference.changed, ["b".into()]);
    assert!(rig.picks(2).contains('b'), "its probe");
    assert!(rig.replace(&["a*3", "b*7"]).difference.is_empty());
    rig.pool.release(open);
}

#[test]
fn c2_4_a_client_that_tries_all_is_cheap_even_if_every_other_backend_is_ejected() {
    const COUNT: u32 = 20_000;
    for policy in [Policy::RoundRobin, Policy::LeastConnections] {
        let ejection = Ejection { failures: 1, ..Ejection::default() };
        let settings = PickSettings { policy, ejection, ..PickSettings::default() };
        let mut rig = Rig::with(settings, 1, &[]);
        let backend = |index: u32| {
            let addr = ([127, 1, (index >> 8) as u8, index as u8], 1).into();
            (format!("{index:05}"), TcpBackend::new(addr))
        };
        let mut set: BackendSet = (0..COUNT).map(backend).collect();
        for index in 0..COUNT {
            set.set_weight(&format!("{index:05}"), index % 100 + 1);
        }
        rig.pool.replace(&MergedUpdate::new(set, Removal::Close), rig.now);
        let start = Instant::now();
        for has_failed in [true, false] {
            let mut tried = Tried::default();
            let mut count = 0;
            while let Some(assignment) = rig.pick_again(&mut tried).backend() {
                count += 1;
                let has_failed = has_failed && count % 2 == 0;
                rig.pool.backend_failed(assignment, has_failed, &mut tried, rig.now);
            }
            assert_eq!(count, COUNT);
        }
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}

#[test]
fn c3_8_a_burst_that_moves_many_targets_is_linear() {
    let keys: Vec<String> = (0..20_000).map(|key| format!("{key:05}")).collect();
    let set = |shift: usize| -> BackendSet {
        let target = |index: usize| {
            let host = (index + shift) % keys.len();
            TcpBackend::new(([127, 1, (host >> 8) as u8, host as u8], 1).into())
        };
        keys.iter().enumerate().map(|(index, key)| (key.clone(), target(index))).collect()
    };
    let mut rig = Rig::new(&[]);
    let mut took = Vec::new();
    for shift in 0..3 {
        let set = set(shift);
        let start = Instant::now();
        rig.pool.replace(&MergedUpdate::new(set, Removal::Close), rig.now);
        took.push(start.elapsed());
    }
    assert_eq!(rig.pool.target_by_name.len(), keys.len());
    assert!(took.iter().all(|took| took.as_secs() < 2), "{took:?}");
}

#[test]
fn c5_5_a_dial_to_its_keys_old_target_that_succeeds_closes_no_breaker_of_the_new_one() {
    let mut rig = Rig::new(&["k=o"]);
    let mut old = rig.pick();
    rig.replace(&["k=n", "other*0=o"]); // so that the dial goes on
    for _ in 0..2 {
        let new = rig.pick();
        assert_eq!(rig.fail(new), None);
    }
    rig.pool.connected(&mut old);
    let new = rig.pick();
    assert!(rig.fail(new).is_some(), "the third failure in a row");
    rig.pool.release(old);
}

#[test]
fn c5_6_a_busy_backend_is_waited_for_when_no_available_one_is_left() {
    let mut rig = Rig::new(&["a", "b", "c"]);
    rig.eject("c");
    while rig.picks(1) != "b" {}
    let mut tried = Tried::default();
    let a = rig.pick_again(&mut tried).backend().unwrap();
    let target = a.target;
    rig.pool.backend_busy(a, &mut tried);
    assert_eq!(rig.dialling(), [0, 0, 0]);
    let b = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!(b.key(), "b");
    rig.pool.backend_failed(b, true, &mut tried, rig.now);
    assert!(matches!(rig.pick_again(&mut tried), Picked::Busy(busy) if busy == target), "not c");
    assert!(rig.pool.has_candidate(&mut tried));
    tried.forget_busy();
    let again = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!(again.key(), "a", "busy is neither failed nor tried");
    rig.pool.backend_failed(again, true, &mut tried, rig.now);
    assert_eq!(rig.pick_again(&mut tried).backend().map(|c| c.key().to_owned()), Some("c".into()));
}

#[test]
fn c5_6_of_several_busy_backends_the_next_in_rotation_is_waited_for_if_it_is_still_there() {
    let mut rig = Rig::new(&["a", "b", "c"]);
    assert_eq!(rig.picks(1), "a");
    let mut tried = Tried::default();
    let [b, c, _] = [(); 3].map(|()| {
        let assignment = rig.pick_again(&mut tried).backend().unwrap();
        let target = assignment.target;
        rig.pool.backend_busy(assignment, &mut tried);
        target
    });
    assert!(matches!(rig.pick_again(&mut tried), Picked::Busy(busy) if busy == b));
    rig.replace(&["a", "c"]);
    assert!(matches!(rig.pick_again(&mut tried), Picked::Busy(busy) if busy == c));
    rig.replace(&[]);
    assert!(matches!(rig.pick_again(&mut tried), Picked::None));
}

#[test]
fn c5_2_others_left_are_those_whose_breaker_is_closed_while_there_is_one() {
    let mut rig = Rig::new(&["a", "b", "c", "d"]);
    let left = |rig: &Rig, assignment: &Assignment, tried: &mut Tried| {
        rig.pool.others_left(assignment, tried)
    };
    let mut tried = Tried::default();
    let first = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!(left(&rig, &first, &mut tried), 3);
    rig.pool.backend_failed(first, true, &mut tried, rig.now);
    rig.eject("c");
    while rig.picks(1) != "a" {}
    let second = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!((second.key(), left(&rig, &second, &mut tried)), ("b", 1), "d, not a nor c");
    rig.eject("d");
    assert_eq!(left(&rig, &second, &mut tried), 2, "c and d, as a last resort");
    rig.pool.backend_busy(second, &mut tried);
    let third = rig.pick_again(&mut tried);
    assert!(matches!(third, Picked::Busy(_)));
}

#[test]
fn c5_3_what_was_tried_stays_tried_though_its_key_left_and_came_back_meanwhile() {
    let mut rig = Rig::new(&["a=x", "b=x", "c"]);
    while rig.picks(1) != "b" {}
    let mut tried = Tried::default();
    let failed = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!(failed.key(), "c");
    rig.pool.backend_failed(failed, true, &mut tried, rig.now);
    let dial = rig.pick_again(&mut tried).backend().unwrap();
    rig.replace(&["b=x", "c"]);
    rig.replace(&["a=x", "b=x", "c"]);
    assert!(rig.pool.may_dial(&dial), "b has named its target all the time");
    assert_eq!(rig.pool.others_left(&dial, &mut tried), 1);
    rig.pool.backend_failed(dial, true, &mut tried, rig.now);
    let last = rig.pick_again(&mut tried).backend().unwrap();
    assert_eq!(last.key(), "b");
    rig.pool.backend_failed(last, true, &mut tried, rig.now);
    assert!(!rig.pool.has_candidate(&mut tried));
}
