//! Commands on stdin, and their answers on stdout.

use std::io::{self, BufRead, Read, Write};
use std::time::Duration;

use log::{error, warn};
use tinylb::Applied;

use crate::args::seconds;
use crate::running_set::RunningSet;
use crate::stats;
use crate::targets::{Backends, KeyedTarget, quoted};

/// The longest line there may be: room for tens of thousands of backends.
const LONGEST_LINE: u64 = 4 << 20;

enum Command {
    Change(Change, Option<Duration>),
    Stats,
    Drain(Duration),
    Quit,
}

enum Change {
    Set(Backends),
    Add(Backends),
    Remove(Vec<String>),
}

/// Obeys commands until stdin ends, which changes nothing else.
pub(crate) fn obey_stdin(running: &RunningSet) {
    let mut stdin = io::stdin().lock();
    loop {
        match next_line(&mut stdin) {
            Ok(Some(line)) => match line.and_then(|line| parse(&line)) {
                Ok(Some(command)) => obey(command, running),
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
    let mut stdout = io::stdout().lock();
    if let Err(err) = stdout.write_all(format!("{line}\n").as_bytes()).and_then(|()| stdout.flush()) {
        warn!("cannot write to stdout: {err}");
    }
}

fn refuse(reason: &str) {
    say(&format!("error {reason}"));
}

/// The next line, without its end, or what is wrong with it; `None` at the end of the input.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Result<String, String>>> {
    let mut line = Vec::new();
    input.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 > LONGEST_LINE && line.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(format!("the line is longer than {LONGEST_LINE} bytes"))));
    }
    Ok(Some(String::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())))
}

/// The command of a line, or `None` if it is blank.
fn parse(line: &str) -> Result<Option<Command>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((verb, words)) = words.split_first() else { return Ok(None) };
    let command = match (*verb, words) {
        ("set", words) => {
            let (words, drain) = take_drain(words)?;
            Command::Change(Change::Set(backends(words)?), drain)
        }
        ("add", words) => {
            let (words, drain) = take_drain(words)?;
            Command::Change(Change::Add(backends(at_least_one(words, "KEY=TARGET")?)?), drain)
        }
        ("remove", words) => {
            let (words, drain) = take_drain(words)?;
            Command::Change(
                Change::Remove(at_least_one(words, "KEY")?.iter().map(|key| (*key).to_owned()).collect()),
                drain,
            )
        }
        ("drain", [limit]) => Command::Drain(drain_limit(limit)?),
        ("drain", _) => return Err("drain needs SECONDS, and nothing else".to_owned()),
        ("stats", []) => Command::Stats,
        ("quit", []) => Command::Quit,
        ("stats" | "quit", _) => return Err(format!("{verb} stands alone")),
        _ => return Err(format!("unknown command {}: set, add, remove, stats, drain or quit", quoted(verb))),
    };
    Ok(Some(command))
}

/// Splits off a trailing `--drain SECONDS`.
fn take_drain<'a>(words: &'a [&'a str]) -> Result<(&'a [&'a str], Option<Duration>), String> {
    match words {
        [rest @ .., "--drain", limit] => Ok((rest, Some(drain_limit(limit)?))),
        words if words.contains(&"--drain") => Err("--drain SECONDS comes last".to_owned()),
        words => Ok((words, None)),
    }
}

fn drain_limit(word: &str) -> Result<Duration, String> {
    seconds(word).map_err(|problem| format!("{}: {problem}", quoted(word)))
}

fn at_least_one<'a>(words: &'a [&'a str], what: &str) -> Result<&'a [&'a str], String> {
    if words.is_empty() { Err(format!("{what} is missing")) } else { Ok(words) }
}

fn backends(words: &[&str]) -> Result<Backends, String> {
    let targets = words.iter().map(|word| word.parse()).collect::<Result<Vec<KeyedTarget>, _>>()?;
    Backends::keyed(targets)
}

fn obey(command: Command, running: &RunningSet) {
    match command {
        Command::Change(change, drain) => answer(obey_change(change, drain, running)),
        Command::Stats => {
            answer(running.control.stats().map(|stats| stats::to_json(&stats)).map_err(|err| err.to_string()))
        }
        // Answered first: the process may be over before another word is out.
        Command::Drain(limit) => {
            say("ok draining");
            report(running.control.drain(limit));
        }
        Command::Quit => {
            say("ok quitting");
            report(running.control.shutdown());
        }
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
fn obey_change(change: Change, drain: Option<Duration>, running: &RunningSet) -> Result<String, String> {
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
    };
    let applied = applied?;
    Ok(format!("closed={} cancelled={} backends={}", applied.closed, applied.cancelled, applied.backends))
}
