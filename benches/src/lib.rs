//! What the benches share.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::new_without_default,
    reason = "only the benches use it"
)]

pub mod bare_relay;
pub mod clients;
pub mod descriptors;
pub mod echo;
pub mod idle_clients;
pub mod loopback;
pub mod routes;
pub mod tokio_twin;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};

/// Runs benches on one core, as the command line has it.
pub fn run(bench: impl FnOnce(&mut Criterion)) {
    stay_on_one_core();
    let mut criterion = Criterion::default().configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
}

/// A group whose benches take so many seconds each.
pub fn group<'a>(
    criterion: &'a mut Criterion,
    name: &str,
    seconds: u64,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(seconds));
    group
}

/// Keeps this thread, and those that it starts from now on, on the core that it runs on. (On
/// Linux.)
///
/// So a figure is the sum of what they all do. Side by side, it depends more on where the scheduler
/// puts them and on how long an idle core takes to wake up: a round trip took 30 µs in one run and
/// 350 µs in the next.
fn stay_on_one_core() {
    #[cfg(target_os = "linux")]
    {
        use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
        use nix::unistd::Pid;

        let mut this = CpuSet::new();
        this.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &this).unwrap();
    }
}
