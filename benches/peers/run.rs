//! A run: what was asked for, round by round, and its report.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::Fallible;
use crate::contenders::Contender;
use crate::lab::{Lab, Sizes};
use crate::machine::{self, Machine};
use crate::measure::Counter;
use crate::process::Cores;
use crate::results::Results;
use crate::scenarios::Scenario;
use crate::{chart, installed, network, report};

#[derive(Args)]
pub(crate) struct Options {
    /// How often each is measured; the medians are reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What to measure [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Which contenders to measure [default: all that are installed]
    #[arg(long, value_delimiter = ',', value_parser = installed::NAMES)]
    contenders: Vec<String>,
    /// Linux's name of the congestion control of the run's own network
    #[arg(long, value_name = "NAME", default_value = "reno")]
    congestion_control: String,
    /// One round of very little, to see that it works
    #[arg(long)]
    quick: bool,
    /// Where to draw the chart [default: benches/peers.svg, if all is measured]
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Where to save the figures of each round
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    fn scenarios(&self) -> Vec<Scenario> {
        use clap::ValueEnum;
        let all = Scenario::value_variants().iter().copied();
        all.filter(|scenario| self.only.is_empty() || self.only.contains(scenario)).collect()
    }

    /// Only what is complete takes the place of the chart that there is.
    fn chart(&self) -> Option<PathBuf> {
        let complete =
            !self.quick && self.only.is_empty() && self.contenders.is_empty() && self.rounds >= 5;
        let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("peers.svg");
        self.chart.clone().or_else(|| complete.then(usual))
    }

    fn wants(&self, contender: &Contender) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|name| name == contender.name)
    }
}

pub(crate) fn run(options: &Options) -> Fallible<()> {
    let mut contenders = installed::contenders()?;
    contenders.retain(|contender| options.wants(contender));
    // Before any thread is started: only the one that asks is moved.
    if let Err(err) = network::move_to_own(&options.congestion_control) {
        eprintln!(
            "no network of its own, so other traffic and this machine's settings may blur figures: {err}"
        );
    }
    let lab = Lab {
        cores: Cores::divide(),
        sizes: if options.quick { Sizes::QUICK } else { Sizes::FULL },
        counter: Counter::find(),
        pairs: make_room()?,
    };
    if lab.cores.proxy.is_empty() {
        eprintln!(
            "there is no core for the proxy alone: throughput and latencies will mean little"
        );
    }
    if machine::load_average() > 0.5 {
        eprintln!(
            "this machine has other things to do: throughput and latencies will tell of them, too"
        );
    }
    let mut results = Results::default();
    let failures = measure(options, &lab, &contenders, &mut results);
    report(options, &contenders, &results, failures)?;
    if failures == 0 { Ok(()) } else { Err(format!("{failures} measurements failed").into()) }
}

fn report(
    options: &Options,
    contenders: &[Contender],
    results: &Results,
    failures: usize,
) -> Fallible<()> {
    let (variants, peers): (Vec<_>, Vec<_>) =
        contenders.iter().partition(|contender| contender.is_variant());
    let conditions = report::conditions(&Machine::look(), &peers, options.rounds());
    let command = command_line();
    println!(
        "{conditions} ± is half of the range. Repeated by `{command}`.\n\n{}",
        report::figures(results, &peers)
    );
    if options.quick {
        println!(
            "This was a quick run: it did less than the first column says, and its figures mean little.\n"
        );
    }
    if let Some((tinylb, others)) = peers.split_first().filter(|(first, _)| first.name == "tinylb")
    {
        println!(
            "Ratio of tinylb to each, median of the rounds':\n\n{}",
            report::ratios(results, tinylb, others)
        );
        if !variants.is_empty() {
            println!(
                "Other settings (ratio to the default):\n\n{}",
                report::variants(results, tinylb, &variants)
            );
        }
    }
    if let Some(file) = &options.json {
        fs::write(file, results.to_json().to_string())?;
    }
    if let Some(file) = options.chart().filter(|_| failures == 0) {
        chart::draw(&file, results, &peers, &format!("{conditions} {command}"))?;
        eprintln!("drew {}", file.display());
    }
    Ok(())
}

fn command_line() -> String {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let separator = if args.is_empty() { "" } else { " -- " };
    format!("cargo bench -p tinylb-benches --bench peers{separator}{}", args.join(" "))
}

/// How many pairs the descriptors that there may be suffice for, more than any measurement has if
/// possible.
fn make_room() -> Fallible<usize> {
    let (wanted, enough) = (50_000, 18_500);
    if rlimit::setrlimit(rlimit::Resource::NOFILE, wanted, wanted).is_err() {
        let limit = rlimit::increase_nofile_limit(wanted)?;
        if limit < enough {
            eprintln!(
                "no more than {limit} descriptors for a process: what needs {enough} is left out"
            );
        }
    }
    // Each takes two descriptors, and the proxy some for itself.
    let (limit, _) = rlimit::getrlimit(rlimit::Resource::NOFILE)?;
    Ok(limit.saturating_sub(200) as usize / 2)
}

/// How many measurements failed.
fn measure(options: &Options, lab: &Lab, contenders: &[Contender], results: &mut Results) -> usize {
    let mut failures = 0;
    let plan = plan(options, contenders);
    let mut progress = Progress { begun: Instant::now(), done: 0, total: plan.len() };
    for (round, scenario, contender) in plan {
        progress.tell(&format!(
            "round {round} of {}: {}, {}",
            options.rounds(),
            scenario.name(),
            contender.name
        ));
        match scenario.run(lab, contender) {
            Ok(figures) => figures
                .into_iter()
                .for_each(|(row, figure)| results.add(row, contender.name, figure)),
            Err(err) => {
                eprintln!("{} of {} failed: {err}", scenario.name(), contender.name);
                failures += 1;
            }
        }
    }
    failures
}

/// In each round each scenario, with all contenders that it concerns, in turn.
fn plan<'a>(
    options: &Options,
    contenders: &'a [Contender],
) -> Vec<(usize, Scenario, &'a Contender)> {
    let mut plan = Vec::new();
    for round in 1..=options.rounds() {
        for scenario in options.scenarios().into_iter().filter(|scenario| scenario.is_due(round)) {
            let mut turns: Vec<_> =
                contenders.iter().filter(|contender| scenario.concerns(contender)).collect();
            // Nobody always comes after the same.
            let first = round % turns.len().max(1);
            turns.rotate_left(first);
            plan.extend(turns.into_iter().map(|contender| (round, scenario, contender)));
        }
    }
    plan
}

struct Progress {
    begun: Instant,
    done: usize,
    total: usize,
}

impl Progress {
    fn tell(&mut self, what: &str) {
        let each = self.begun.elapsed().checked_div(self.done as u32).unwrap_or(Duration::ZERO);
        let left = each * (self.total - self.done) as u32;
        self.done += 1;
        eprintln!("{:3}/{} {what} ({} s left)", self.done, self.total, left.as_secs());
    }
}
