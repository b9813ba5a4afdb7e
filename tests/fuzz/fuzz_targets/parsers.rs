//! What a user, a script or a file may say to the example program: every input is given to each of
//! its parsers.
#![no_main]
#![allow(dead_code, reason = "what the example does with what it has parsed is not run here")]

#[path = "../../../examples/tinylb/src/commands/parse.rs"]
mod commands;
#[path = "../../../examples/tinylb/src/file/parse.rs"]
mod file;
#[path = "../../../examples/tinylb/src/listen_addr.rs"]
mod listen_addr;
#[path = "../../../examples/tinylb/src/targets.rs"]
mod targets;
#[path = "../../../examples/tinylb/src/values.rs"]
mod values;

use std::fmt::Debug;
use std::io::BufReader;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use commands::{Change, Command};
use file::{Line, Problem};
use listen_addr::ListenAddr;
use targets::{Backends, KeyedTarget, Target};

/// Every message names what it is about, cut short.
const LONGEST_MESSAGE: usize = 4096;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (longest, buffer) in [(0, 1), (1, 3), (7, 2), (64, 8), (bytes.len(), 5)] {
        check_lines(bytes, longest, buffer);
    }
    check_file(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_command(text);
        check_parsed::<KeyedTarget>(text, backend_in_words);
        check_parsed::<Target>(text, target_in_words);
        check_parsed::<ListenAddr>(text, |addr| addr.to_string());
        check_seconds(text);
        check_log_level(text);
    }
});

/// What a `FromStr` makes of the text means the same when it is written down again, and is fit for
/// a line of a log.
#[track_caller]
fn check_parsed<T: FromStr<Err = String> + Debug>(text: &str, in_words: impl Fn(&T) -> String) {
    let Some(parsed) = checked(text.parse::<T>()) else { return };
    let words = in_words(&parsed);
    assert!(!words.contains(char::is_control), "{text:?} is taken for {words:?}");
    assert_same(&words.parse(), &Ok(parsed));
}

/// Lines come out as the input has them, whatever pieces it is read in.
fn check_lines(bytes: &[u8], longest: usize, buffer: usize) {
    let mut pieces: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if pieces.last().is_some_and(|piece| piece.is_empty()) {
        pieces.pop(); // there is nothing after the last line's end
    }
    let mut input = BufReader::with_capacity(buffer, bytes);
    for piece in pieces {
        let line = commands::next_line(&mut input, longest).unwrap().expect("a line is lost");
        let is_sound = piece.len() <= longest && std::str::from_utf8(piece).is_ok();
        assert_eq!(checked(line).map(String::into_bytes), is_sound.then(|| piece.to_vec()));
    }
    assert!(
        commands::next_line(&mut input, longest).unwrap().is_none(),
        "there is a line too much"
    );
}

fn check_command(text: &str) {
    let Some(command) = checked(commands::parse(text)) else { return };
    assert_eq!(command.is_none(), text.trim().is_empty(), "only blank lines are skipped");
    if let Some(command) = command {
        let words = command_in_words(&command);
        assert_same(&commands::parse(&words), &Ok(Some(command)));
        assert_same(&commands::parse(&format!("\t {words}\r")), &commands::parse(&words));
    }
}

fn check_file(bytes: &[u8]) {
    let lines = match file::parse(bytes) {
        Ok(lines) => lines,
        Err(problem) => return check_problem(bytes, &problem),
    };
    let text = std::str::from_utf8(bytes).expect("a file that is not UTF-8 is refused");
    assert_same(&file::parse(lines_in_words(&lines).as_bytes()), &Ok(lines));
    let unchanged = file::parse(bytes);
    assert_same(&file::parse(text.replace('\n', "\r\n").as_bytes()), &unchanged);
    assert_same(&file::parse(text.replace('\n', " # set=by=hand\n").as_bytes()), &unchanged);
    if !text.starts_with('\u{feff}') {
        assert_same(&file::parse(format!("\u{feff}{text}").as_bytes()), &unchanged);
    }
}

/// The line that is blamed is the first that is to blame.
fn check_problem(bytes: &[u8], problem: &Problem) {
    assert_is_a_message(&problem.in_file(Path::new("file")));
    let blamed = problem.line.expect("it is in a line");
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    assert!(file::parse(&lines[..blamed - 1].join(&b'\n')).is_ok());
    assert_same(&file::parse(&lines[..blamed].join(&b'\n')), &file::parse(bytes));
}

fn check_seconds(text: &str) {
    if let Some(time) = checked(values::seconds(text)) {
        assert_eq!(values::seconds(&seconds_in_words(time)), Ok(time), "{text:?}");
    }
}

fn check_log_level(text: &str) {
    if let Some(level) = checked(values::log_level(text)) {
        assert_eq!(values::log_level(&level.to_string()), Ok(level));
    }
}

/// What was parsed. What is said otherwise has to be a message.
#[track_caller]
fn checked<T>(result: Result<T, String>) -> Option<T> {
    result.map_err(|message| assert_is_a_message(&message)).ok()
}

/// It is one line, of which the reader sees every character.
#[track_caller]
fn assert_is_a_message(message: &str) {
    let is_visible = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq([c]);
    assert!(message.chars().all(is_visible), "{message:?}");
    assert!(!message.is_empty() && message.len() <= LONGEST_MESSAGE, "{} bytes", message.len());
}

#[track_caller]
fn assert_same<T: Debug>(left: &T, right: &T) {
    assert_eq!(format!("{left:?}"), format!("{right:?}"));
}

fn command_in_words(command: &Command) -> String {
    match command {
        Command::Change(change, limit) => {
            let mut words = match change {
                Change::Set(backends) => format!("set {}", backends_in_words(backends)),
                Change::Add(backends) => format!("add {}", backends_in_words(backends)),
                Change::Remove(keys) => format!("remove {}", keys.join(" ")),
                Change::Weight(key, weight) => format!("weight {key} {weight}"),
            };
            if let Some(limit) = limit {
                words += &format!(" --drain {}", seconds_in_words(*limit));
            }
            words
        }
        Command::Stats => "stats".to_owned(),
        Command::Drain(limit) => format!("drain {}", seconds_in_words(*limit)),
        Command::Quit => "quit".to_owned(),
        Command::Help => "help".to_owned(),
    }
}

fn backends_in_words(Backends(backends): &Backends) -> String {
    let words = backends.iter().map(|(key, (target, weight))| in_words(key, *weight, target));
    words.collect::<Vec<_>>().join(" ")
}

/// With each line where it was.
fn lines_in_words(lines: &[Line]) -> String {
    let mut text = String::new();
    let mut next = 1;
    for Line { number, backend } in lines {
        assert!(*number >= next, "two backends in a line");
        text += &"\n".repeat(number - next);
        text += &format!("{}\n", backend_in_words(backend));
        next = number + 1;
    }
    text
}

fn backend_in_words(backend: &KeyedTarget) -> String {
    in_words(&backend.key, backend.weight, &backend.target)
}

fn in_words(key: &str, weight: u16, target: &Target) -> String {
    format!("{key}*{weight}={}", target_in_words(target))
}

fn target_in_words(target: &Target) -> String {
    match target {
        Target::Ip(addr) => addr.to_string(),
        Target::Name(name) => name.clone(),
        Target::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn seconds_in_words(time: Duration) -> String {
    time.as_secs_f64().to_string()
}
