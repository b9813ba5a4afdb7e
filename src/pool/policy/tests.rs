//! Policies in their pool: proportions, runs, turns across changes, ejection, failover, loads.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::tests::Rig;
use super::super::{Assignment, PickSettings, Tried};
use super::Policy;
use crate::random::Random;

fn least_connections(entries: &[&str]) -> Rig {
    let settings = PickSettings { policy: Policy::LeastConnections, ..PickSettings::default() };
    Rig::with(settings, 1, entries)
}

/// Entries of these weights, under the keys a, b, c and so on.
fn entries(weights: &[usize]) -> Vec<String> {
    let entry = |(index, weight)| format!("{}*{weight}", (b'a' + index as u8) as char);
    weights.iter().enumerate().map(entry).collect()
}

fn rig(weights: &[usize]) -> Rig {
    let mut rig = Rig::new(&[]);
    replace(&mut rig, weights);
    rig
}

fn replace(rig: &mut Rig, weights: &[usize]) {
    let entries = entries(weights);
    rig.replace(&entries.iter().map(String::as_str).collect::<Vec<_>>());
}

/// How often each of the keys a, b, c and so on was picked.
fn counts(picks: &str, keys: usize) -> Vec<usize> {
    let count = |key: u8| picks.bytes().filter(|picked| *picked == key).count();
    (0..keys).map(|key| count(b'a' + key as u8)).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Has no member picked more often in a row than its share needs.
fn judge_runs(picks: &str, weights: &[usize]) {
    let sum: usize = weights.iter().sum();
    let (mut last, mut run) = (None, 0);
    for key in picks.bytes() {
        run = if last == Some(key) { run + 1 } else { 1 };
        last = Some(key);
        let weight = weights[usize::from(key - b'a')];
        let needed = weight.div_ceil(sum - weight);
        assert!(run <= needed, "{weights:?}: {run} in a row in {picks}");
    }
}

/// Judges proportions, from the start, over each whole cycle and, less strictly, each part of that
/// length, and runs.
fn judge(weights: &[usize]) {
    let divisor = weights.iter().copied().fold(0, gcd);
    let shares: Vec<_> = weights.iter().map(|weight| weight / divisor).collect();
    let cycle: usize = shares.iter().sum();
    let picks = rig(weights).picks(4 * cycle);
    assert!(picks.starts_with('a'), "C2.2: {weights:?}: {picks}");
    for start in (0..=3 * cycle).step_by(cycle.div_ceil(300)) {
        let counts = counts(&picks[start..start + cycle], weights.len());
        let is_fair = |(count, share): (&usize, &usize)| count.abs_diff(*share) <= 1;
        assert!(counts.iter().zip(&shares).all(is_fair), "{weights:?}: {start} of {picks}");
        assert!(start % cycle > 0 || counts == shares, "{weights:?}: {counts:?} in {picks}");
    }
    judge_runs(&picks, weights);
}

#[test]
fn c2_4_round_robin_gives_each_its_share_without_long_runs() {
    for a in 1..=6 {
        for b in 1..=6 {
            judge(&[a, b]);
            for c in 1..=6 {
                judge(&[a, b, c]);
                judge(&[c, a, 1, b]);
            }
        }
    }
    judge(&[100, 1]);
    judge(&[1, 3000]);
    judge(&[5, 1, 1, 1, 1, 1]);
    let mut random = Random::new(1);
    for _ in 0..100 {
        let count = 2 + random.next() as usize % 8;
        judge(&(0..count).map(|_| 1 + random.next() as usize % 40).collect::<Vec<_>>());
    }
}

#[test]
fn c2_1_equal_weights_are_plain_round_robin() {
    assert_eq!(rig(&[7, 7, 7]).picks(7), "abcabca");
    let mut rig = rig(&[2, 1, 1]);
    let last = rig.picks(3).pop().unwrap();
    replace(&mut rig, &[5, 5, 5]);
    let next = (last as u8 - b'a' + 1) % 3 + b'a';
    assert_eq!(rig.picks(1).as_bytes(), [next], "the cursor is the last key served");
}

#[test]
fn c2_4_weights_hold_whatever_comes_and_goes_and_nobody_waits_for_more_than_a_cycle() {
    let mut random = Random::new(1);
    let mut rig = rig(&[3, 1, 2]);
    let (mut picks, mut waits) = (String::new(), [0; 3]);
    for _ in 0..6000 {
        // d, e and f come and go, in front of no one's turn.
        let weights: Vec<_> =
            [3, 1, 2].into_iter().chain((0..3).map(|_| random.next() as usize % 3)).collect();
        replace(&mut rig, &weights);
        let picked = rig.picks(1);
        for (index, wait) in waits.iter_mut().enumerate() {
            *wait = if picked.as_bytes()[0] == b'a' + index as u8 { 0 } else { *wait + 1 };
            assert!(*wait <= 2 * weights.iter().sum::<usize>().max(12), "{index} is starved");
        }
        picks += &picked;
    }
    let counts = counts(&picks, 3);
    let unit = counts.iter().sum::<usize>() / 6;
    for (count, weight) in counts.iter().zip([3, 1, 2]) {
        assert!(count.abs_diff(weight * unit) <= unit / 20, "{counts:?}");
    }
}

#[test]
fn c2_1_one_that_flaps_takes_nobodys_turn_even_if_weights_are_equal_without_it() {
    // Of another weight than the others, and there just when the rotation comes to its key.
    for (flapping, keys) in [("aa*3=z", "bc"), ("d*2", "abc"), ("bb*9=z", "abc")] {
        let mut rig = Rig::new(&["a", "b", "c"]);
        let mut counts = BTreeMap::<String, u32>::new();
        let mut last = String::new();
        for _ in 0..3000 {
            let is_its_time = flapping.starts_with(&last) || last == "c";
            rig.replace(&["a", "b", "c", flapping][..if is_its_time { 4 } else { 3 }]);
            last = rig.picks(1);
            *counts.entry(last.clone()).or_default() += 1;
        }
        for key in keys.chars().map(String::from).chain(["a".into()]) {
            assert!(counts.get(&key).is_some_and(|count| *count >= 300), "{flapping}: {counts:?}");
        }
    }
}

#[test]
fn c2_4_a_weight_that_changes_in_mid_flight_counts_from_then_on() {
    let mut rig = rig(&[1, 1, 4]);
    rig.picks(8); // in the middle of a cycle
    replace(&mut rig, &[4, 1, 1]);
    let picks = rig.picks(600);
    let counts = counts(&picks, 3);
    let is_fair = |(count, share): (&usize, usize)| count.abs_diff(share) <= 1;
    assert!(counts.iter().zip([400, 100, 100]).all(is_fair), "{counts:?}");
    judge_runs(&picks, &[4, 1, 1]);
}

#[test]
fn c2_3_one_that_was_ejected_does_not_make_up_for_what_it_missed() {
    let mut rig = rig(&[3, 2, 1]);
    let time = rig.eject("a");
    let without = rig.picks(300);
    assert_eq!(counts(&without, 3), [0, 200, 100]);
    judge_runs(&without[2..], &[0, 2, 1]);
    rig.pass(time);
    let mut probe = rig.pick();
    while probe.key() != "a" {
        rig.pool.release(probe);
        probe = rig.pick();
    }
    rig.pool.connected(&mut probe);
    rig.pool.release(probe);
    let with = rig.picks(600);
    let counts = counts(&with, 3);
    let is_fair = |(count, share): (&usize, usize)| count.abs_diff(share) <= 1;
    assert!(counts.iter().zip([300, 200, 100]).all(is_fair), "{counts:?}");
    judge_runs(&with, &[3, 2, 1]);
}

/// Has `failing` fail for each client, and returns what was picked first, and instead of it.
fn fail_over(rig: &mut Rig, failing: &str, clients: usize) -> (String, String) {
    let (mut first, mut instead) = (String::new(), String::new());
    for _ in 0..clients {
        let mut tried = Tried::default();
        let picked = rig.pick_again(&mut tried).backend().unwrap();
        first += picked.key();
        if picked.key() != failing {
            rig.pool.release(picked);
            continue;
        }
        rig.pool.backend_failed(picked, false, &mut tried, rig.now);
        let next = rig.pick_again(&mut tried).backend().unwrap();
        instead += next.key();
        rig.pool.release(next);
    }
    (first, instead)
}

#[test]
fn c2_4_failover_goes_on_in_rotation_order_and_counts_as_a_pick() {
    let mut rig = rig(&[2, 3, 5]);
    let (first, instead) = fail_over(&mut rig, "a", 1000);
    assert!(instead.bytes().all(|key| key == b'b') && instead.len() > 150, "{instead}");
    // b has its share in all, of which the clients of a are a part.
    let counts = counts(&(first + &instead), 3);
    let sum = counts.iter().sum::<usize>();
    assert!(counts[1].abs_diff(sum * 3 / 10) <= 5, "{counts:?}");
}

#[test]
fn c2_4_standing_in_for_another_for_long_is_not_paid_for_later() {
    let mut rig = rig(&[100, 1, 2]);
    fail_over(&mut rig, "a", 5000); // b gets nearly all of them
    assert!(rig.picks(103 * 10).contains('b'));
    // The same as a last resort.
    let times: Vec<Duration> = ["a", "b", "c"].map(|key| rig.eject(key)).into();
    rig.picks(3000);
    rig.pass(*times.iter().max().unwrap());
    for _ in 0..3 {
        let mut probe = rig.pick();
        rig.pool.connected(&mut probe);
        rig.pool.release(probe);
    }
    let counts = counts(&rig.picks(103 * 3), 3);
    let is_fair = |(count, share): (&usize, usize)| count.abs_diff(share) <= 3;
    assert!(counts.iter().zip([300, 3, 6]).all(is_fair), "{counts:?}");
}

#[test]
fn c2_2_a_random_first_pick_is_kept_by_both_policies() {
    for policy in [Policy::RoundRobin, Policy::LeastConnections] {
        let settings = PickSettings { policy, random_first_pick: true, ..PickSettings::default() };
        let first = |seed| Rig::with(settings, seed, &["a*3", "b", "c*2"]).picks(1);
        let firsts: std::collections::BTreeSet<String> = (0..50).map(first).collect();
        assert_eq!(firsts.into_iter().collect::<String>(), "abc");
    }
}

#[test]
fn c2_4_least_connections_picks_the_fewest_for_the_weight_and_equals_in_rotation_order() {
    let mut rig = least_connections(&["a", "b*2", "c"]);
    let mut picks = String::new();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = rig.pick();
        picks += client.key();
        clients.push(client);
    }
    // 0/1 0/2 0/1, then b at 1/2, then all at 1.
    assert_eq!(picks, "abcbcabb");
    clients.into_iter().for_each(|client| rig.pool.release(client));
}

/// Clients of the model, with the loads they make.
#[derive(Default)]
struct Model {
    clients: Vec<Assignment>,
}

impl Model {
    fn load(&self, target: &str) -> usize {
        self.clients.iter().filter(|client| client.target_name() == target).count()
    }

    /// The fewest for the weight, the first after the cursor of those that are equal.
    fn next(&self, rig: &Rig, cursor: &str) -> String {
        let stats = rig.pool.backend_stats(rig.now);
        let (after, before): (Vec<_>, Vec<_>) =
            stats.iter().filter(|stats| stats.weight > 0).partition(|stats| &*stats.key > cursor);
        let by_weight = |stats: &&crate::stats::BackendStats| {
            // 27,720 is a multiple of all weights.
            self.load(&stats.target_name) * (27_720 / stats.weight as usize)
        };
        let order = after.into_iter().chain(before);
        order.min_by_key(by_weight).map_or_else(|| "-".into(), |stats| stats.key.to_string())
    }
}

#[test]
fn c2_4_least_connections_is_equal_to_the_model_after_every_step() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut rig = least_connections(&["a", "b", "c"]);
        let (mut model, mut cursor) = (Model::default(), String::new());
        for _ in 0..200 {
            match random.next() % 8 {
                0 => {
                    let entry = |key: char| {
                        let weight = random.next() % 6;
                        let target = (b'w' + (random.next() % 4) as u8) as char;
                        format!("{key}*{weight}={target}")
                    };
                    let entries: Vec<_> = "abcdefg".chars().map(entry).collect();
                    let count = random.next() as usize % 8;
                    let entries: Vec<_> = entries[..count].iter().map(String::as_str).collect();
                    rig.replace(&entries);
                    let pool = &rig.pool;
                    let (kept, gone) = model.clients.into_iter().partition(|c| pool.serves(c));
                    model.clients = kept;
                    gone.into_iter().for_each(|client| rig.pool.release(client));
                }
                1..4 if !model.clients.is_empty() => {
                    let index = random.next() as usize % model.clients.len();
                    rig.pool.release(model.clients.swap_remove(index));
                }
                _ => {
                    let expected = model.next(&rig, &cursor);
                    let Some(mut client) = rig.pick_again(&mut Tried::default()).backend() else {
                        assert_eq!(expected, "-");
                        continue;
                    };
                    assert_eq!(client.key(), expected, "seed {seed}");
                    cursor = client.key().to_owned();
                    if random.next() % 2 == 0 {
                        rig.pool.connected(&mut client);
                    }
                    model.clients.push(client);
                }
            }
        }
    }
}
