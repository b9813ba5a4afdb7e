//! What a process costs: CPU time, memory, system calls.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::Fallible;
use crate::process::{self, Process};

/// Seconds of CPU time that all threads of the process have had, to the nanosecond.
#[cfg(target_os = "linux")]
pub(crate) fn cpu_seconds(pid: Pid) -> Fallible<f64> {
    Ok(Duration::from(ClockId::pid_cpu_clock_id(pid)?.now()?).as_secs_f64())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn cpu_seconds(_: Pid) -> Fallible<f64> {
    Err("the CPU time of another process can be read on Linux only".into())
}

/// Waits until the process has finished what it was at, but for no more than a few seconds.
pub(crate) fn settle(pid: Pid) -> Fallible<()> {
    let mut before = cpu_seconds(pid)?;
    let mut quiet = 0;
    for _ in 0..300 {
        thread::sleep(Duration::from_millis(10));
        let now = cpu_seconds(pid)?;
        quiet = if now - before < 50e-6 { quiet + 1 } else { 0 };
        if quiet == 3 {
            break;
        }
        before = now;
    }
    Ok(())
}

/// The same clock in all processes.
pub(crate) fn monotonic_nanos() -> Fallible<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64)
}

/// Bytes of memory of its own that the process has touched and not given back: heap, stacks,
/// written data.
pub(crate) fn own_memory(pid: Pid) -> Fallible<f64> {
    let summary = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = summary.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no such line in smaps_rollup")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}

/// What can count the system calls of another process.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Counter {
    /// Hardly disturbs the process.
    Perf,
    /// Stops it at each call, which can change how much comes at once.
    Strace,
}

const TRACEPOINT: &str = "raw_syscalls:sys_enter";

impl Counter {
    pub(crate) fn find() -> Option<Self> {
        let works = |command: &mut Command| {
            let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
            silent.status().is_ok_and(|status| status.success())
        };
        if works(Command::new("perf").args(["stat", "-e", TRACEPOINT, "true"])) {
            Some(Self::Perf)
        } else if works(Command::new("strace").args(["-c", "true"])) {
            Some(Self::Strace)
        } else {
            None
        }
    }

    /// How many system calls the process makes during `work`.
    pub(crate) fn count(
        self,
        cores: &[usize],
        pid: Pid,
        work: impl FnOnce() -> Fallible<()>,
    ) -> Fallible<f64> {
        let mut process = self.attach(cores, pid)?;
        let outcome = work();
        settle(pid)?;
        process.interrupt()?;
        let mut report = String::new();
        if let Some(stderr) = process.child().stderr.as_mut() {
            std::io::Read::read_to_string(stderr, &mut report)?;
        }
        outcome?;
        self.total(&report).ok_or_else(|| format!("no count in {report:?}").into())
    }

    fn attach(self, cores: &[usize], pid: Pid) -> Fallible<Process> {
        let mut command = match self {
            Self::Perf => process::command(cores, "perf")?,
            Self::Strace => process::command(cores, "strace")?,
        };
        let pid_text = pid.to_string();
        match self {
            Self::Perf => command.args(["stat", "-x,", "-e", TRACEPOINT, "-p", &pid_text]),
            Self::Strace => command.args(["-f", "-c", "-p", &pid_text]),
        };
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.is_attached(process.pid(), pid) {
            if Instant::now() > deadline {
                return Err("the counter of system calls does not start".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        // What is open need not be switched on yet.
        thread::sleep(Duration::from_millis(100));
        Ok(process)
    }

    fn is_attached(self, counter: Pid, counted: Pid) -> bool {
        match self {
            Self::Perf => fs::read_dir(format!("/proc/{counter}/fd")).is_ok_and(|files| {
                let is_event =
                    |target: &std::path::Path| target.to_string_lossy().contains("perf_event");
                files
                    .flatten()
                    .any(|file| fs::read_link(file.path()).is_ok_and(|target| is_event(&target)))
            }),
            Self::Strace => fs::read_to_string(format!("/proc/{counted}/status"))
                .is_ok_and(|status| status.contains(&format!("TracerPid:\t{counter}\n"))),
        }
    }

    fn total(self, report: &str) -> Option<f64> {
        match self {
            Self::Perf => report
                .lines()
                .find(|line| line.contains(TRACEPOINT))?
                .split(',')
                .next()?
                .parse()
                .ok(),
            // % time, seconds, usecs/call, calls, [errors,] "total"
            Self::Strace => {
                let line = report.lines().find(|line| line.trim_end().ends_with(" total"))?;
                line.split_whitespace().nth(3)?.parse().ok()
            }
        }
    }
}
