//! The examples run, end by themselves, and show what they are there to show.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use tinylb_tests::wait_for;

/// Starts an example, which `cargo test` has built next to the tests. `cargo test --test examples`
/// runs the one built last: `cargo build --examples` goes before it.
#[track_caller]
fn start(name: &str) -> Child {
    let tests = std::env::current_exe().unwrap();
    let examples = tests.ancestors().nth(2).unwrap().join("examples");
    let program = examples.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mut command = Command::new(&program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|err| panic!("{}: {err}", program.display()))
}

/// Waits for the end, which has to be one with status 0 and without a word on stderr.
#[track_caller]
fn assert_ends_well(mut example: Child) {
    let status = wait_for("it ends", || example.try_wait().unwrap());
    let mut complaint = String::new();
    example.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert!(status.success() && complaint.is_empty(), "{status}: {complaint}");
}

/// Runs an example to its end: all of these are in what it says, each after the one before.
#[track_caller]
fn assert_tells(name: &str, story: &[&str]) {
    let mut example = start(name);
    let mut stdout = example.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut stdout));
    assert_ends_well(example);
    let said = reader.join().unwrap().unwrap();
    assert!(!said.contains('\x1b'), "it draws though nobody can see it");
    let mut rest = said.as_str();
    for piece in story {
        let at = rest.find(piece).unwrap_or_else(|| panic!("no {piece:?} in its place:\n{said}"));
        rest = &rest[at + piece.len()..];
    }
}

#[test]
fn the_demo_tells_its_story_in_plain_lines() {
    let story = [
        "1/6",
        "| node-1 ",
        "2/6",
        "removing node-2",
        "applied after",
        "clients came again at once",
        "0 bytes went to or came from node-2",
        "3/6",
        "adding node-2 at",
        "it has its first client",
        "4/6",
        "killing node-3",
        "passed over",
        "; 0 were refused",
        "5/6",
        "the balancer has found it",
        "6/6",
        "no connection left",
        "0 refused",
        "0 wrong",
    ];
    assert_tells("demo", &story);
}

#[test]
fn the_demo_ends_quietly_when_its_reader_leaves() {
    let mut example = start("demo");
    let mut stdout = example.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();

    drop(stdout);

    assert_ends_well(example);
}

#[test]
fn the_host_program_closes_what_it_removed_and_serves_the_rest() {
    let story = [
        "closed 1 connections, cancelled 0 dials",
        "client of node-1: ",
        "client of node-2: Ok(13)",
        "2 clients were served, 0 refused",
    ];
    assert_tells("embed", &story);
}
