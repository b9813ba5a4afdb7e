//! What commands look like: from the bytes of stdin to lines, and from a line to a command.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use crate::targets::{Backends, KeyedTarget, quoted, weight};
use crate::values::seconds;

/// What a line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// With the limit of connections to removed targets; without one they are closed at once.
    Change(Change, Option<Duration>),
    Stats,
    Drain(Duration),
    Quit,
    Help,
}

/// A change of the backends that do not come from the file.
#[derive(Debug)]
pub(crate) enum Change {
    Set(Backends),
    Add(Backends),
    Remove(Vec<String>),
    Weight(String, u16),
}

/// Returns the next line without its end, or what is wrong with it; `None` at the end of the input.
pub(crate) fn next_line(
    input: &mut impl BufRead,
    longest: usize,
) -> io::Result<Option<Result<String, String>>> {
    let mut line = Vec::new();
    input.by_ref().take(longest as u64 + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > longest {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(format!("the line is longer than {longest} bytes"))));
    }
    Ok(Some(String::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())))
}

/// Returns the command of a line, or `None` if it is blank.
pub(crate) fn parse(line: &str) -> Result<Option<Command>, String> {
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
                Change::Remove(
                    at_least_one(words, "KEY")?.iter().map(|key| (*key).to_owned()).collect(),
                ),
                drain,
            )
        }
        ("weight", [key, number]) => {
            Command::Change(Change::Weight((*key).to_owned(), weight(number)?), None)
        }
        ("weight", _) => return Err("weight needs KEY and a number, and nothing else".to_owned()),
        ("drain", [limit]) => Command::Drain(drain_limit(limit)?),
        ("drain", _) => return Err("drain needs SECONDS, and nothing else".to_owned()),
        ("stats", []) => Command::Stats,
        ("quit", []) => Command::Quit,
        ("help", []) => Command::Help,
        ("stats" | "quit" | "help", _) => return Err(format!("{verb} stands alone")),
        _ => {
            return Err(format!(
                "unknown command {}: set, add, remove, weight, stats, drain, quit or help",
                quoted(verb)
            ));
        }
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
