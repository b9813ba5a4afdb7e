//! Commands on stdin, and their answers on stdout.

mod parse;

use std::io::{self, BufReader, Write};
use std::time::Duration;

use log::{error, warn};
use tinylb::Applied;

use self::parse::{Change, Command, next_line, parse};
use crate::running_set::RunningSet;
use crate::stats;
use crate::stdio::StdStream;

/// The longest line there may be: room for tens of thousands of backends.
const LONGEST_LINE: usize = 4 << 20;

/// What `help` answers; a line, as each answer is.
const HELP: &str = "set KEY=TARGET ... | add KEY=TARGET ... | remove KEY ... \
    (each with --drain SECONDS at its end, if wanted) | weight KEY N | stats | drain SECONDS | \
    quit | help (KEY*WEIGHT=TARGET gives a weight, 0 holds)";

/// Runs commands until stdin ends, which changes nothing else.
pub(crate) fn run_stdin(running: &RunningSet) {
    let mut stdin = BufReader::new(StdStream(io::stdin()));
    loop {
        match next_line(&mut stdin, LONGEST_LINE) {
            Ok(Some(line)) => match line.and_then(|line| parse(&line)) {
                Ok(Some(command)) => run(command, running),
                Ok(None) => {}
                Err(reason) => refuse(&reason),
            },
            Ok(None) => return,
            Err(err) => {
                error!("cannot read commands any more: {err}");
                return;
            }
        }
    }
}

/// Writes a line to stdout. That nobody reads it is no reason to stop balancing.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    if let Err(err) = StdStream(io::stdout()).write_all(line.as_bytes()) {
        warn!("cannot write to stdout: {err}");
    }
}

fn refuse(reason: &str) {
    say(&format!("error {reason}"));
}

fn run(command: Command, running: &RunningSet) {
    match command {
        Command::Change(change, drain) => answer(apply(change, drain, running)),
        Command::Stats => answer(
            running
                .control
                .stats()
                .and_then(|stats| stats.wait())
                .map(|stats| stats::to_json(&stats))
                .map_err(|err| err.to_string()),
        ),
        // Answered first: the process may be over before another word is out.
        Command::Drain(limit) => {
            say("ok draining");
            report(running.control.drain(limit));
        }
        Command::Quit => {
            say("ok quitting");
            report(running.control.shutdown());
        }
        Command::Help => answer(Ok(HELP.to_owned())),
    }
}

fn answer(result: Result<String, String>) {
    match result {
        Ok(result) => say(&format!("ok {result}")),
        Err(reason) => refuse(&reason),
    }
}

fn report(result: Result<(), tinylb::Error>) {
    if let Err(err) = result {
        error!("{err}");
    }
}

/// Looks names up, if there are any, and has the change applied.
fn apply(change: Change, drain: Option<Duration>, running: &RunningSet) -> Result<String, String> {
    let applied: Result<Applied, String> = match change {
        Change::Set(backends) => {
            let set = backends.resolve()?;
            running.change(drain, |sources| sources.with_given(set))
        }
        Change::Add(backends) => {
            let set = backends.resolve()?;
            running.change(drain, |sources| sources.with_added(set))
        }
        Change::Remove(keys) => running.change(drain, |sources| sources.without(&keys)),
        Change::Weight(key, weight) => {
            running.change(drain, |sources| sources.with_weight(&key, weight))
        }
    };
    let applied = applied?;
    Ok(format!(
        "closed={} cancelled={} backends={}",
        applied.closed, applied.cancelled, applied.backends
    ))
}
