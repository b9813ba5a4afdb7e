//! What is measured, and how.

use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use crate::Fallible;
use crate::contenders::Contender;
use crate::lab::Lab;
use crate::measure::{monotonic_nanos, own_memory};
use crate::rig::{BACKENDS, Measured, Rig};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Scenario {
    Short,
    RoundTrips,
    Bulk,
    Memory,
    Removal,
    Fairness,
    Syscalls,
}

/// Figures by the names of their rows.
pub(crate) type Figures = Vec<(&'static str, f64)>;

impl Scenario {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// A splicing proxy is compared where there is something to splice, and a variant where it
    /// might differ.
    pub(crate) fn concerns(self, contender: &Contender) -> bool {
        match self {
            Self::Bulk | Self::Fairness => !contender.is_variant(),
            Self::Short | Self::RoundTrips | Self::Syscalls => !contender.splices(),
            Self::Memory => !contender.is_variant() && !contender.splices(),
            Self::Removal => {
                contender.can_remove() && !contender.is_variant() && !contender.splices()
            }
        }
    }

    /// What is counted does not vary from round to round.
    pub(crate) fn is_due(self, round: usize) -> bool {
        self != Self::Syscalls || round == 1
    }

    pub(crate) fn run(self, lab: &Lab, contender: &Contender) -> Fallible<Figures> {
        match self {
            Self::Short => short(lab, contender),
            Self::RoundTrips => round_trips(lab, contender),
            Self::Bulk => bulk(lab, contender),
            Self::Memory => memory(lab, contender),
            Self::Removal => removal(lab, contender),
            Self::Fairness => fairness(lab, contender),
            Self::Syscalls => syscalls(lab, contender),
        }
    }
}

fn short(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    let rig = Rig::start(lab, contender)?;
    let connections = lab.sizes.short;
    rig.measure(&format!("short {} 64", connections / 10))?;
    let measured = rig.measure(&format!("short {connections} 64"))?;
    Ok(vec![
        ("short cpu", measured.proxy_seconds / connections as f64 * 1e4),
        ("short rate", number(&measured.report, "per_second")?),
        ("short p50", number(&measured.report, "p50_us")?),
        ("short p99", number(&measured.report, "p99_us")?),
    ])
}

fn round_trips(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    let messages = lab.sizes.round_trips;
    let run = |connections: usize| {
        let rig = Rig::start(lab, contender)?;
        rig.measure(&format!("round-trips {connections} {messages}"))
    };
    let (few, many) = (run(64)?, run(1000)?);
    let cpu = |measured: &Measured| measured.proxy_seconds / messages as f64 * 1e6;
    Ok(vec![
        ("trips64 cpu", cpu(&few)),
        ("trips64 rate", number(&few.report, "per_second")?),
        ("trips64 p50", number(&few.report, "p50_us")?),
        ("trips64 p99", number(&few.report, "p99_us")?),
        ("trips1000 cpu", cpu(&many)),
        ("trips1000 rate", number(&many.report, "per_second")?),
        ("trips1000 p50", number(&many.report, "p50_us")?),
        ("trips1000 p99", number(&many.report, "p99_us")?),
    ])
}

fn bulk(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    let bytes = lab.sizes.bulk;
    let run = |work: String| Rig::start(lab, contender)?.measure(&work);
    let one = run(format!("bulk 1 {bytes} 0"))?;
    let each_way = bytes / 32;
    let both = run(format!("bulk 16 {each_way} {each_way}"))?;
    let gigabytes = bytes as f64 / 1e9;
    Ok(vec![
        ("bulk1 cpu", one.proxy_seconds / gigabytes),
        ("bulk1 rate", number(&one.report, "gb_per_second")?),
        ("bulk1 all", one.all_seconds / gigabytes),
        ("bulk16 cpu", both.proxy_seconds / gigabytes),
        ("bulk16 rate", number(&both.report, "gb_per_second")?),
        ("bulk16 all", both.all_seconds / gigabytes),
    ])
}

fn memory(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    let mut figures = Vec::new();
    let rows = [("memory1000", "left1000"), ("memory5000", "left5000")];
    for (pairs, (during, after)) in lab.sizes.pairs.into_iter().zip(rows) {
        let rig = Rig::start(lab, contender)?;
        let per_pair = |bytes: f64| bytes / 1024.0 / pairs as f64;
        let before = own_memory(rig.pid())?;
        let load = rig.prepare(&format!("hold {pairs}"))?;
        rig.settle()?;
        figures.push((during, per_pair(own_memory(rig.pid())? - before)));
        drop(load);
        rig.settle()?;
        figures.push((after, per_pair(own_memory(rig.pid())? - before)));
    }
    let rig = Rig::start(lab, contender)?;
    let before = own_memory(rig.pid())?;
    let mut load = rig.prepare(&format!("stall {}", lab.sizes.stalled))?;
    load.run()?;
    // All buffers on the way have to be full, and whoever fills them may pause for another.
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(300));
        rig.settle()?;
    }
    let full = own_memory(rig.pid())?;
    figures.push(("stalled", (full - before) / 1024.0 / lab.sizes.stalled as f64));
    Ok(figures)
}

fn removal(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    let removed = lab.sizes.removed_of_four;
    let (millis, worst) = remove(lab, contender, BACKENDS, removed, 3 * removed)?;
    let mut figures = vec![("removal", millis), ("removal worst", worst)];
    let rows =
        [("removal100", "worst100"), ("removal1000", "worst1000"), ("removal9000", "worst9000")];
    for (removed, (time, worst)) in lab.sizes.removed_at_once.into_iter().zip(rows) {
        if removed + 2 > lab.pairs {
            continue;
        }
        let (millis, micros) = remove(lab, contender, 2, removed, 1)?;
        figures.extend([(time, millis * 1e3 / removed as f64), (worst, micros)]);
    }
    Ok(figures)
}

/// Milliseconds until the last is closed, and microseconds of the worst round trip of another
/// meanwhile.
fn remove(
    lab: &Lab,
    contender: &Contender,
    backends: u8,
    victims: usize,
    others: usize,
) -> Fallible<(f64, f64)> {
    let mut rig = Rig::assemble(lab, contender, &[backends], true)?;
    let mut load = rig.prepare(&format!("watch {victims} {others}"))?;
    rig.settle()?;
    load.begin()?;
    load.expect("watching")?;
    thread::sleep(Duration::from_millis(20));
    let begun = monotonic_nanos()?;
    rig.proxy.remove_backend()?;
    let report = load.report()?;
    rig.proxy.check_answers()?;
    let nanos = number(&report, "last_closed")? - begun as f64;
    Ok((nanos / 1e6, number(&report, "worst_us")?))
}

fn fairness(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    // It is the proxy that is to keep messages waiting. So they have a backend for themselves, and
    // both run before bulk, which keeps their core busy.
    let rig = Rig::assemble(lab, contender, &[1, 1], false)?;
    let mut bulk = rig.prepare(&format!("bulk 16 {} 0 --backend 0", u64::MAX / 32))?;
    let mut trips =
        rig.prepare(&format!("round-trips 1 {} --seconds 3 --backend 1", lab.sizes.beside_bulk))?;
    if !rig.prefer(&trips) {
        eprintln!("only root can measure this: the messages wait for their core, too");
    }
    bulk.begin()?;
    thread::sleep(Duration::from_millis(300));
    let report = trips.run()?;
    Ok(vec![("beside p50", number(&report, "p50_us")?), ("beside p99", number(&report, "p99_us")?)])
}

fn syscalls(lab: &Lab, contender: &Contender) -> Fallible<Figures> {
    let Some(counter) = lab.counter else { return Ok(Vec::new()) };
    let count = |work: String, times: usize| {
        let rig = Rig::start(lab, contender)?;
        let mut load = rig.prepare(&work)?;
        rig.settle()?;
        let calls = counter.count(&lab.cores.others, rig.pid(), || load.run().map(drop))?;
        Ok::<_, Box<dyn std::error::Error>>(calls / times as f64)
    };
    let (connections, messages) = (lab.sizes.short / 4, lab.sizes.round_trips / 4);
    Ok(vec![
        ("calls lone", count(format!("short {} 1", connections / 4), connections / 4)?),
        ("calls 64", count(format!("short {connections} 64"), connections)?),
        ("calls trips1", count(format!("round-trips 1 {}", messages / 4), messages / 4)?),
        ("calls trips64", count(format!("round-trips 64 {messages}"), messages)?),
    ])
}

fn number(report: &Value, name: &str) -> Fallible<f64> {
    Ok(report[name].as_f64().ok_or_else(|| format!("the load did not report {name}"))?)
}
