//! Mixed load on two balancers for minutes or hours, while their sets change ten times a second: not a byte is lost or
//! doubled, what is removed is cut, the counters add up, and all that was taken is given back.
//!
//! ```sh
//! cargo test --release --test soak -- --seconds 120
//! ```
//!
//! One balancer listens on TCP, the other on a Unix-domain socket; both have backends of both kinds, among them such as
//! accept late, refuse, or do not answer. Each connection follows a [plan](plan) that its number determines; what its
//! client, its backend and the balancer's observer say of it is entered in the [book](book), and judged there. Nothing
//! depends on luck: what a plan cannot know (whether an update came in between) the balancer tells, and that it had reason
//! to is checked too. A seed repeats the plans and the changes of the set, though not how threads take turns.

mod book;
mod changes;
mod clients;
mod end;
mod faults;
mod fleet;
mod history;
mod pattern;
mod plan;
mod progress;
mod random;
mod rest;
mod rig;
mod verdict;
mod wire;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use faults::Faults;
use progress::Progress;
use rest::{Baseline, Memory};
use rig::{Rig, Run};
use tinylb_tests::PATIENCE;
use wire::Kind;

/// Has two balancers bear mixed load while their sets change, and checks every byte of it.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How long to keep the load up, after the warm-up
    #[arg(long, value_name = "N", default_value_t = 120, conflicts_with = "minutes")]
    seconds: u64,
    /// The same in minutes
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Repeats the plans and the changes of a run
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients there are at a time, a quarter of them at the balancer with the Unix-domain socket
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    clients: u32,
    /// How often the set of each balancer changes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    updates_per_second: u32,
}

/// What the C library of GNU systems is told before the program begins: to have one heap, and to set nothing aside for each
/// thread. Otherwise some 200 threads that free each other's memory hold ever more of it, at an ever slower rate (in half
/// an hour 10 MB), which nobody could tell from a leak.
const ONE_HEAP: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0");

fn main() -> ExitCode {
    let options = Options::parse();
    if !std::env::var(ONE_HEAP.0).is_ok_and(|set| set.contains(ONE_HEAP.1)) {
        return begin_anew_with_one_heap();
    }
    let seed = options.seed.unwrap_or_else(|| {
        u64::from(std::process::id())
            ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64)
    });
    let faults = Arc::new(Faults::default());
    println!(
        "soak: seed {seed}, {} clients, {} updates a second for each balancer",
        options.clients, options.updates_per_second
    );
    if let Err(err) = soak(&options, seed, &faults) {
        faults.report(format!("the soak cannot go on: {err}"));
    }
    match faults.count() {
        0 => {
            println!("soak: clean");
            ExitCode::SUCCESS
        }
        count => {
            println!("soak: {count} faults, with --seed {seed}:");
            faults.kept().iter().for_each(|fault| println!("  {fault}"));
            ExitCode::FAILURE
        }
    }
}

fn begin_anew_with_one_heap() -> ExitCode {
    let program = std::env::current_exe().expect("a program knows where it is");
    let err =
        Command::new(program).args(std::env::args_os().skip(1)).env(ONE_HEAP.0, ONE_HEAP.1).exec();
    println!("soak: it cannot begin anew with one heap: {err}");
    ExitCode::FAILURE
}

/// The whole run. What goes wrong is among the faults, and ends it early.
fn soak(options: &Options, seed: u64, faults: &Arc<Faults>) -> io::Result<()> {
    // A client takes two descriptors and its backend one, and the balancer one for each of them.
    rlimit::increase_nofile_limit(u64::from(options.clients) * 5 + 300)?;
    let begin = Baseline::take();
    let run = Run {
        seed,
        faults: faults.clone(),
        connections: Arc::new(AtomicU64::new(0)),
        updates_per_second: options.updates_per_second,
    };
    let directory = tempfile::tempdir()?;
    let clients = options.clients as usize;
    let mut rigs = [
        Rig::start("tcp", Kind::Tcp, clients - clients / 4, directory.path(), &run)?,
        Rig::start("unix", Kind::Unix, clients / 4, directory.path(), &run)?,
    ];
    let idle = Baseline::take();
    let time = Duration::from_secs(options.minutes.map_or(options.seconds, |minutes| minutes * 60));

    // The first round of the same load takes memory that is kept: buffers of threads, slots, what allocators hold back.
    let mut progress = Progress::new("warm-up");
    bear_load(
        &mut rigs,
        (time / 4).clamp(Duration::from_secs(2), Duration::from_secs(20)),
        &run,
        &mut progress,
    );
    let warm = Baseline::take();
    let mut progress = Progress::new("soak");
    bear_load(&mut rigs, time, &run, &mut progress);
    if faults.count() > 0 {
        return Ok(()); // what is not at rest for a reason that is known need not be told
    }
    let memory = Memory::of(&warm, progress.memory());
    rest::check(&idle, &memory, faults);
    let kinds: Vec<_> = rigs.iter().map(Rig::kinds).collect();
    for rig in rigs {
        rig.finish(Duration::from_secs(1), faults);
    }
    rest::check_nothing_is_left(&begin, faults);
    progress.summarize(&kinds, &memory);
    Ok(())
}

/// One round: load for so long, and then all that it began comes to an end.
fn bear_load(rigs: &mut [Rig], time: Duration, run: &Run, progress: &mut Progress) {
    rigs.iter_mut().for_each(|rig| rig.start_load(run));
    let begun = Instant::now();
    while begun.elapsed() < time && run.faults.count() == 0 {
        thread::sleep(Duration::from_secs(1));
        progress.show(rigs.iter().map(|rig| rig.check(&run.faults)));
    }
    rigs.iter().for_each(Rig::stop_load);
    rigs.iter_mut().for_each(|rig| rig.join_load(&run.faults));
    let until = Instant::now() + PATIENCE;
    while !rigs.iter().all(Rig::is_settled) && run.faults.count() == 0 {
        if Instant::now() > until {
            rigs.iter()
                .filter(|rig| !rig.is_settled())
                .for_each(|rig| run.faults.report(rig.unsettled()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    rigs.iter().for_each(|rig| rig.check_at_rest(&run.faults));
}
