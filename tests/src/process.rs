//! What the kernel says of this process: its descriptors, threads, memory and CPU time. (On Linux.)

use std::collections::BTreeSet;
use std::fs;

/// The descriptors of this process that are open.
pub fn descriptors() -> BTreeSet<String> {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter_map(|entry| Some(format!("{:?}", fs::read_link(entry.path()).ok()?))).collect()
}

/// The names of this process's threads.
pub fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect()
}

/// How much CPU time the threads of this name have used, in the system's ticks, of which there are
/// 100 a second.
#[track_caller]
pub fn cpu_ticks(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let ticks: Vec<u64> =
        stats.filter(|stat| stat.contains(&format!("({name})"))).map(|stat| ticks(&stat)).collect();
    assert!(!ticks.is_empty(), "there is no thread called {name}");
    ticks.iter().sum()
}

/// How much CPU time a process has used, in the same ticks.
pub fn cpu_ticks_of(process: u32) -> u64 {
    ticks(&fs::read_to_string(format!("/proc/{process}/stat")).unwrap())
}

/// User and system time, of what a thread's `stat` says.
fn ticks(stat: &str) -> u64 {
    let after_the_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_the_name.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// How many bytes of memory this process occupies.
pub fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
