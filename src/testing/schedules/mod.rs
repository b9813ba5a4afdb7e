//! Random schedules: whatever happens, in whatever order, the balancer keeps its promises.
//!
//! A schedule is a list of [steps], drawn by dice from a seed: all that clients, backends, the host
//! and the machine may do. It is played against the loop in a [simulated] world, where time and
//! every call are under control. One that fails is shrunk to the steps that it takes.
//!
//! `TINYLB_SCHEDULES` and `TINYLB_BURSTS` say how many are played, without and with bursts of a
//! thousand and more, and `TINYLB_FIRST_SEED` from where on. `TINYLB_SEED` has one of each played.

mod pattern;
#[cfg(test)]
mod shrink;
mod simulated;
mod steps;
mod tally;

use self::steps::Schedule;

/// Plays the schedule that these bytes stand for in the simulated world.
pub(crate) fn play_bytes(bytes: &[u8]) {
    simulated::play(&Schedule::of_bytes(bytes));
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};

    use super::*;
    use crate::random::Random;

    /// A number that the environment gives, to play one schedule again or more of them.
    fn given(variable: &str) -> Option<u64> {
        std::env::var(variable).ok().map(|number| number.parse().expect(variable))
    }

    fn fails(schedule: &Schedule) -> bool {
        panic::catch_unwind(AssertUnwindSafe(|| simulated::play(schedule))).is_err()
    }

    /// Plays so many schedules. Of the first that fails, it tells what is left of it when it is
    /// shrunk.
    fn play_all(of: fn(u64) -> Schedule, count: u64, tries_to_shrink: usize) {
        let first = given("TINYLB_FIRST_SEED").unwrap_or(0);
        let seeds = match given("TINYLB_SEED") {
            Some(seed) => seed..seed + 1,
            None => first..first + count,
        };
        for seed in seeds {
            let mut schedule = of(seed);
            if fails(&schedule) {
                let hook = panic::take_hook();
                panic::set_hook(Box::new(|_| {}));
                schedule.steps = shrink::shrink(&schedule.steps, tries_to_shrink, |steps| {
                    fails(&Schedule { steps: steps.to_vec(), ..schedule.clone() })
                });
                panic::set_hook(hook);
                eprintln!(
                    "seed {seed} breaks it, with no more than this in {:?}:",
                    schedule.setting
                );
                schedule.steps.iter().for_each(|step| eprintln!("    {:?}", step.action));
                simulated::play(&schedule);
                panic!("seed {seed} broke it once, and not again");
            }
        }
    }

    #[test]
    fn the_promises_hold_in_every_simulated_schedule() {
        play_all(Schedule::of, given("TINYLB_SCHEDULES").unwrap_or(3000), 3000);
        assert_happened(&simulated::HAPPENS);
    }

    #[test]
    fn bursts_hold_up_nobody() {
        play_all(Schedule::of_bursts, given("TINYLB_BURSTS").unwrap_or(3), 50);
        assert_happened(&simulated::BURSTS);
    }

    fn assert_happened(what: &[&str]) {
        let tallies = tally::tallies();
        eprintln!("{tallies:#?}");
        if given("TINYLB_SEED").is_none() {
            for what in what {
                assert!(tallies.contains_key(what), "it never happened: {what}");
            }
        }
    }

    #[test]
    fn any_bytes_stand_for_a_schedule() {
        let mut dice = Random::new(1);
        for len in 0..300 {
            play_bytes(&(0..len).map(|_| dice.next() as u8).collect::<Vec<_>>());
        }
    }
}
