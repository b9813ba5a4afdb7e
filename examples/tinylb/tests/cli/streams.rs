//! Standard streams that nobody reads, or that somebody has made non-blocking.

use std::fs::File;

use rustix::io::{ioctl_fionbio, ioctl_fionread};

use super::*;

/// It ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Stderr.

/// A balancer whose stderr is left unread, and whose clients have it log more than a pipe and the
/// queue hold: 30 lines each.
fn start_unread(stderr_blocks: bool) -> (Cli, File) {
    let backends: String =
        (0..30).map(|n| format!("--backend b{n}={} ", refusing_addr())).collect();
    let (unread, stderr) = rustix::pipe::pipe().unwrap();
    ioctl_fionbio(&stderr, !stderr_blocks).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tinylb"))
        .args(["--listen", "127.0.0.1:0", "--control", "--log", "debug"])
        .args(backends.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let stdout = lines_of(child.stdout.take().unwrap());
    let stdin = child.stdin.take();
    let mut cli = Cli { child, stdin, stdout, stderr: mpsc::channel().1, address: String::new() };
    cli.address = cli.line().strip_prefix("listening on ").unwrap().to_owned();
    (cli, unread.into())
}

#[track_caller]
fn assert_goes_on_unread(stderr_blocks: bool) {
    let (mut cli, stderr) = start_unread(stderr_blocks);
    for _ in 0..300 {
        assert_refused(cli.addr());
    }
    assert_eq!(cli.stats()["refused"], 300);
    let lines = lines_of(stderr);
    let dropped = loop {
        let line = lines.recv_timeout(PATIENCE).expect("no report");
        if let Some(rest) = line.strip_suffix(" lines dropped here: stderr was not read") {
            break rest.strip_prefix("tinylb: ").unwrap().parse::<u64>().unwrap();
        }
        assert!(line.starts_with('[') && line.matches('[').count() == 1, "torn: {line}");
    };
    assert!(dropped > 0);
    assert_refused(cli.addr());
    let next = lines.recv_timeout(PATIENCE).expect("nothing is logged any more");
    assert!(next.contains("client 300"), "{next}");
    cli.ask("quit");
    cli.assert_ends_well();
}

#[test]
fn while_nobody_reads_stderr_all_goes_on_and_what_is_dropped_is_counted() {
    assert_goes_on_unread(true);
}

#[test]
fn lines_are_whole_if_stderr_does_not_block() {
    assert_goes_on_unread(false);
}

#[test]
fn a_signal_ends_it_though_nobody_reads_stderr() {
    let (mut cli, _stderr) = start_unread(true);
    for _ in 0..300 {
        assert_refused(cli.addr());
    }
    cli.signal("TERM");
    cli.assert_ends_well();
}

// Stdin and stdout.

#[test]
fn a_signal_ends_it_though_nobody_reads_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let (_unread, stdout) = rustix::pipe::pipe().unwrap();
    ioctl_fionbio(&stdout, true).unwrap();
    while File::from(stdout.try_clone().unwrap()).write(&[b'x'; 4096]).is_ok() {}
    ioctl_fionbio(&stdout, false).unwrap();
    let mut cli = Killed(
        Command::new(env!("CARGO_BIN_EXE_tinylb"))
            .args(["--listen", &format!("unix:{}", path.display())])
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // It has caught signals by then.
    wait_for("it listens", || UnixStream::connect(&path).ok());
    let kill = format!("kill -TERM {}", cli.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let status = wait_for("it ends", || cli.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[derive(Clone, Copy, PartialEq)]
enum Moment {
    Start,
    Later,
}

/// Its answers are longer than a pipe, and are read only when it has filled one.
#[track_caller]
fn assert_answers_whole(nonblocking_from: Option<Moment>) {
    let (stdin, commands) = rustix::pipe::pipe().unwrap();
    let (answers, stdout) = rustix::pipe::pipe().unwrap();
    let make_nonblocking_at = |moment| {
        if nonblocking_from == Some(moment) {
            ioctl_fionbio(&stdin, true).unwrap();
            ioctl_fionbio(&stdout, true).unwrap();
        }
    };
    make_nonblocking_at(Moment::Start);
    let _cli = Killed(
        Command::new(env!("CARGO_BIN_EXE_tinylb"))
            .args(["--listen", "127.0.0.1:0", "--control"])
            .stdin(stdin.try_clone().unwrap())
            .stdout(stdout.try_clone().unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let waiting = answers.try_clone().unwrap();
    // The least buffer, so that nothing is taken from the pipe too early.
    let mut lines = BufReader::with_capacity(1, File::from(answers)).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("listening on "));
    make_nonblocking_at(Moment::Later);
    drop((stdin, stdout)); // it has the only ones now, so its end is seen

    let mut commands = File::from(commands);
    let backends: String = (0..1000).map(|n| format!(" k{n}=127.0.0.1:1")).collect();
    for command in [&format!("set{backends}"), "stats", "stats", "what", "quit"] {
        writeln!(commands, "{command}").unwrap();
    }
    wait_for("the pipe is full", || (ioctl_fionread(&waiting).unwrap() >= 60_000).then_some(()));
    assert_eq!(lines.next().unwrap(), "ok closed=0 cancelled=0 backends=1000");
    for _ in 0..2 {
        let answer = lines.next().unwrap();
        let stats: Value = serde_json::from_str(answer.strip_prefix("ok ").unwrap()).unwrap();
        assert_eq!(stats["backends"].as_object().unwrap().len(), 1000);
    }
    assert!(lines.next().unwrap().starts_with("error unknown command \"what\""));
    assert_eq!(lines.next().unwrap(), "ok quitting");
    assert_eq!(lines.next(), None);
}

#[test]
fn answers_are_whole_if_stdin_and_stdout_do_not_block() {
    assert_answers_whole(Some(Moment::Start));
}

#[test]
fn answers_are_whole_if_somebody_makes_stdin_and_stdout_nonblocking_later() {
    assert_answers_whole(Some(Moment::Later));
}

#[test]
fn answers_are_whole_on_streams_that_block() {
    assert_answers_whole(None);
}
