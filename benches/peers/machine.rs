//! When, where and with what a run was made.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use crate::network;

pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) congestion_control: String,
    pub(crate) rustc: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        Self {
            date: said_by("date", "-u +%Y-%m-%d"),
            kernel: said_by("uname", "-sr"),
            cpu: cpu_model(),
            cores: available_parallelism().map_or(1, Into::into),
            congestion_control: network::congestion_control(),
            rustc: said_by("rustc", "-V"),
        }
    }
}

/// How many processes wanted to run in the last minute; 0 where that is not known.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| said_by("uname", "-m"), |(_, name)| name.to_owned())
}

/// The first line, without what is in parentheses at its end.
fn said_by(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split_whitespace()).output();
    let said = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let line = said.lines().next().unwrap_or("unknown");
    line.split(" (").next().unwrap_or(line).to_owned()
}
