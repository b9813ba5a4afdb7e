//! The examples run, end by themselves, and show what they are there to show.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long an example may take. Only a failing test waits this long.
const LIMIT: Duration = Duration::from_secs(60);

/// An example that runs, and does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an example, which `cargo test` has built next to the tests. `cargo test --test examples` does not, and runs
/// the one built last: `cargo build --examples` goes before it.
#[track_caller]
fn start(name: &str) -> (Running, ChildStdout) {
    let tests = std::env::current_exe().unwrap();
    let profile = tests.ancestors().nth(2).unwrap();
    let program: PathBuf =
        profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let spawned = Command::new(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned
        .unwrap_or_else(|err| panic!("{}: {err}; try `cargo build --examples`", program.display()));
    let stdout = child.stdout.take().unwrap();
    (Running(child), stdout)
}

/// Waits for the end, which has to be one with status 0 and without a word on stderr.
#[track_caller]
fn assert_ends_well(mut example: Running) {
    let start = Instant::now();
    let status = loop {
        if let Some(status) = example.0.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < LIMIT, "still running");
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut complaint = String::new();
    example.0.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert!(status.success() && complaint.is_empty(), "{status}: {complaint}");
}

/// Runs an example to its end, and returns what it said.
#[track_caller]
fn run(name: &str) -> String {
    let (example, mut stdout) = start(name);
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).map(|_| said)
    });
    assert_ends_well(example);
    reader.join().unwrap().unwrap()
}

/// All of them are in it, each after the one before.
#[track_caller]
fn assert_tells(said: &str, story: &[&str]) {
    let mut rest = said;
    for piece in story {
        let at = rest.find(piece).unwrap_or_else(|| panic!("no {piece:?} in its place:\n{said}"));
        rest = &rest[at + piece.len()..];
    }
}

#[test]
fn the_demo_tells_its_story_in_plain_lines() {
    let said = run("demo");

    assert!(!said.contains('\x1b'), "it draws though nobody can see it");
    assert_tells(
        &said,
        &[
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
        ],
    );
}

#[test]
fn the_demo_ends_quietly_when_its_reader_leaves() {
    let (example, mut stdout) = start("demo");
    stdout.read_exact(&mut [0]).unwrap();

    drop(stdout);

    assert_ends_well(example);
}

#[test]
fn the_host_program_closes_what_it_removed_and_serves_the_rest() {
    let said = run("embed");

    let cut =
        if cfg!(feature = "socket2") { "client of node-1: Err" } else { "client of node-1: " };
    assert_tells(
        &said,
        &[
            "closed 1 connections, cancelled 0 dials",
            cut,
            "client of node-2: Ok(13)",
            "2 clients were served, 0 refused",
        ],
    );
}
