//! Random schedules: whatever happens, in whatever order, the balancer keeps its promises.
//!
//! A schedule is a list of [steps], drawn by dice from a seed. It is played against the loop in a
//! [simulated] world, where time and every call are under control.

mod shrink;
mod simulated;
mod steps;

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};

    use super::steps::Schedule;
    use super::*;

    const SCHEDULES: u64 = 3000;

    /// A number that the environment gives, to play one schedule again or more of them.
    fn given(variable: &str) -> Option<u64> {
        std::env::var(variable).ok().map(|number| number.parse().expect(variable))
    }

    fn fails(schedule: &Schedule) -> bool {
        panic::catch_unwind(AssertUnwindSafe(|| simulated::play(schedule))).is_err()
    }

    /// Plays the schedules of these seeds. Of the first that fails, it tells what is left of it when it is shrunk.
    fn play(seeds: std::ops::Range<u64>) {
        for seed in seeds {
            let mut schedule = Schedule::of(seed);
            if fails(&schedule) {
                let hook = panic::take_hook();
                panic::set_hook(Box::new(|_| {}));
                schedule.steps = shrink::shrink(&schedule.steps, 3000, |steps| {
                    fails(&Schedule { steps: steps.to_vec(), ..schedule.clone() })
                });
                panic::set_hook(hook);
                eprintln!("seed {seed} breaks it, with no more than this in {:?}:", schedule.setting);
                schedule.steps.iter().for_each(|step| eprintln!("    {:?}", step.action));
                simulated::play(&schedule);
            }
        }
    }

    #[test]
    fn the_promises_hold_in_every_simulated_schedule() {
        match given("TINYLB_SEED") {
            Some(seed) => play(seed..seed + 1),
            None => {
                let first = given("TINYLB_FIRST_SEED").unwrap_or(0);
                play(first..first + given("TINYLB_SCHEDULES").unwrap_or(SCHEDULES));
            }
        }
    }
}
