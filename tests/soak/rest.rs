//! What the process holds: it has to come back to what it was.

use std::collections::BTreeSet;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::Faults;
use tinylb_tests::{PATIENCE, process};

/// How long the balancers are watched at rest, and how much CPU time they may take together, in ticks of 10 ms.
const REST: Duration = Duration::from_secs(2);
const TICKS: u64 = 2;
const MEGA: usize = 1_000_000;
/// How much memory may be kept after the load beyond what the warm-up has kept, and how much more may be in use on average
/// in the last third of the load than in the first.
///
/// Half an hour with 670,000 clients kept 2.6 MB and used 0.6 MB more in its last third. A leak shows all the same: with
/// some 50,000 clients in 2 minutes it takes 100 bytes each, in half an hour 8.
const KEPT: usize = 5 * MEGA;
const GROWN: usize = 3 * MEGA;

/// What the process holds at a moment.
pub(crate) struct Baseline {
    descriptors: BTreeSet<String>,
    threads: usize,
    memory: usize,
}

impl Baseline {
    pub(crate) fn take() -> Self {
        Self {
            descriptors: process::descriptors(),
            threads: process::threads().len(),
            memory: process::resident(),
        }
    }
}

pub(crate) fn descriptors() -> usize {
    process::descriptors().len()
}

pub(crate) fn resident() -> usize {
    process::resident()
}

/// What became of memory, in bytes.
pub(crate) struct Memory {
    warm: usize,
    after: usize,
    first_third: usize,
    last_third: usize,
}

impl Memory {
    /// From what was in use after the warm-up, and each second from then on.
    pub(crate) fn of(warm: &Baseline, samples: &[usize]) -> Self {
        let third = (samples.len() / 3).max(1);
        let mean = |samples: &[usize]| samples.iter().sum::<usize>() / samples.len().max(1);
        Self {
            warm: warm.memory,
            after: process::resident(),
            first_third: mean(&samples[..third.min(samples.len())]),
            last_third: mean(&samples[samples.len().saturating_sub(third)..]),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mega = |bytes: usize| bytes as f64 / MEGA as f64;
        write!(
            f,
            "memory: {:.1} MB after the warm-up, {:.1} MB after the load; under it {:.1} MB in the first third, {:.1} MB in the last",
            mega(self.warm),
            mega(self.after),
            mega(self.first_third),
            mega(self.last_third)
        )
    }
}

/// The load is gone, the balancers are not: descriptors are what they were before it, memory what the warm-up left, and
/// the balancers sleep.
pub(crate) fn check(before: &Baseline, memory: &Memory, faults: &Faults) {
    check_threads(before.threads, faults);
    let now = process::descriptors();
    faults.unless(now == before.descriptors, || {
        let news: Vec<_> = now.difference(&before.descriptors).collect();
        let gone: Vec<_> = before.descriptors.difference(&now).collect();
        format!("descriptors are not what they were: {news:?} are open, {gone:?} are not")
    });
    faults.unless(memory.after <= memory.warm + KEPT, || {
        format!("more than {KEPT} bytes more are kept: {memory}")
    });
    faults.unless(memory.last_third <= memory.first_third + GROWN, || {
        format!("more than {GROWN} bytes more: {memory}")
    });
    let ticks = process::cpu_ticks("tinylb");
    thread::sleep(REST);
    let ticks = process::cpu_ticks("tinylb") - ticks;
    faults.unless(ticks <= TICKS, || {
        format!("{ticks} ticks of CPU time in {REST:?}, with nobody there")
    });
}

/// All is over: there is nothing that there was not before it began.
pub(crate) fn check_nothing_is_left(begin: &Baseline, faults: &Faults) {
    check_threads(begin.threads, faults);
    let left: Vec<_> = process::descriptors().difference(&begin.descriptors).cloned().collect();
    faults
        .unless(left.is_empty(), || format!("descriptors are still open after the end: {left:?}"));
}

/// A thread that was joined may still be seen for a moment.
fn check_threads(expected: usize, faults: &Faults) {
    let until = Instant::now() + PATIENCE;
    while process::threads().len() != expected && Instant::now() < until {
        thread::sleep(Duration::from_millis(2));
    }
    let threads = process::threads();
    faults.unless(threads.len() == expected, || {
        format!("{} threads instead of {expected}: {threads:?}", threads.len())
    });
}
