//! `tinylb`, run as its users run it: by arguments, a file, commands and signals.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;
use tinylb_tests::*;

#[path = "cli/file.rs"]
mod file;
#[path = "cli/streams.rs"]
mod streams;

/// A running balancer, killed with its test.
struct Cli {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    /// What it said it listens on.
    address: String,
}

impl Cli {
    /// Listening on a port of its own, with these arguments besides, each a word.
    #[track_caller]
    fn start(args: &str) -> Self {
        Self::run(
            Command::new(env!("CARGO_BIN_EXE_tinylb"))
                .args(["--listen", "127.0.0.1:0"])
                .args(args.split_whitespace()),
        )
    }

    /// Listening on a socket file.
    #[track_caller]
    fn start_at(path: &Path, args: &str) -> Self {
        Self::run(
            Command::new(env!("CARGO_BIN_EXE_tinylb"))
                .args(["--listen", &format!("unix:{}", path.display())])
                .args(args.split_whitespace()),
        )
    }

    #[track_caller]
    fn run(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) =
            (lines_of(child.stdout.take().unwrap()), lines_of(child.stderr.take().unwrap()));
        let mut cli =
            Self { stdin: child.stdin.take(), child, stdout, stderr, address: String::new() };
        let line = cli.line();
        cli.address =
            line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        cli
    }

    fn addr(&self) -> SocketAddr {
        self.address.parse().unwrap()
    }

    /// A new client and the tag of its backend.
    #[track_caller]
    fn tagged_client(&self) -> (TcpStream, String) {
        let mut client = connect(self.addr());
        let tag = read_tag(&mut client);
        (client, tag)
    }

    #[track_caller]
    fn tags(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.tagged_client().1).collect()
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stdin.as_mut().unwrap().write_all(bytes.as_ref()).unwrap();
    }

    /// The next line on stdout.
    #[track_caller]
    fn line(&self) -> String {
        self.stdout
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("no line; {:?}", self.stderr.try_iter().collect::<Vec<_>>()))
    }

    #[track_caller]
    fn ask(&mut self, command: &str) -> String {
        self.send(format!("{command}\n"));
        self.line()
    }

    #[track_caller]
    fn stats(&mut self) -> Value {
        let answer = self.ask("stats");
        serde_json::from_str(answer.strip_prefix("ok ").expect(&answer)).unwrap()
    }

    /// The targets by key, as `KEY=TARGET ...`.
    #[track_caller]
    fn backends(&mut self) -> String {
        let stats = self.stats();
        let backends = stats["backends"].as_object().unwrap();
        let words: Vec<_> = backends
            .iter()
            .map(|(key, of)| format!("{key}={}", of["target"].as_str().unwrap()))
            .collect();
        words.join(" ")
    }

    #[track_caller]
    fn wait_for_stats(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) {
        wait_for(what, || is_so(&self.stats()).then_some(()));
    }

    #[track_caller]
    fn wait_for_backends(&mut self, backends: &str) {
        wait_for(backends, || (self.backends() == backends).then_some(()));
    }

    /// The next line on stderr.
    #[track_caller]
    fn complaint(&self) -> String {
        self.stderr.recv_timeout(PATIENCE).expect("no complaint")
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the process", || self.child.try_wait().unwrap())
    }

    /// It ends by itself, in order.
    #[track_caller]
    fn assert_ends_well(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{:?}", self.stderr.try_iter().collect::<Vec<_>>());
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            if line.is_err() || sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Runs it with arguments by which it must fail: its exit status and what it says on stderr.
#[track_caller]
fn failure(args: &[&str]) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tinylb"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait_for(&format!("{args:?} fails"), || child.try_wait().unwrap());
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut out).unwrap();
    child.stderr.unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(out, "", "{args:?}");
    assert!(!err.contains("panicked"), "{err}");
    (status.code().unwrap(), err)
}

fn two_backends() -> (TestBackend, TestBackend, String) {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let args = format!("--control --backend a={} --backend b={}", one.addr, two.addr);
    (one, two, args)
}

// Starting.

#[test]
fn it_says_where_it_listens_and_serves_the_backends_of_its_arguments() {
    let (_one, _two, args) = two_backends();
    let cli = Cli::start(&args);
    assert_ne!(cli.addr().port(), 0);
    assert_eq!(cli.tags(4), ["one", "two", "one", "two"]);
}

#[test]
fn each_kind_of_target_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("with=sign");
    let unix = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        unix.incoming().for_each(|stream| drop(stream.unwrap().write_all(b"unix\n")))
    });
    let named = TestBackend::echo("named");
    let loopback = "[::1]:0".parse::<SocketAddr>().unwrap().into();
    let six = TestBackend::at(&loopback, TestBackend::echoing("six"));
    let cli = Cli::start(&format!(
        "--backend a=127.0.0.1:{port} --backend b=localhost:{port} --backend c={} --backend d=unix:{}",
        six.addr,
        path.display(),
        port = named.addr.port(),
    ));
    assert_eq!(cli.tags(4), ["named", "named", "six", "unix"]);
}

#[test]
fn bad_arguments_are_status_2_and_a_message() {
    let cases = [
        ("", "--listen"),
        ("--listen nonsense", "nonsense"),
        ("--listen localhost:0", "localhost:0"),
        ("--listen unix:", "path"),
        ("--listen 127.0.0.1:0 --what", "--what"),
        ("--listen 127.0.0.1:0 --backend a", "KEY=TARGET"),
        ("--listen 127.0.0.1:0 --backend =127.0.0.1:1", "key"),
        ("--listen 127.0.0.1:0 --backend a=127.0.0.1", "HOST:PORT"),
        ("--listen 127.0.0.1:0 --backend a=127.0.0.1:0", "port"),
        ("--listen 127.0.0.1:0 --backend a=host:+80", "port"),
        ("--listen 127.0.0.1:0 --backend a=::1:80", "[IPV6]:PORT"),
        ("--listen 127.0.0.1:0 --backend a=127.0.0.1:1 --backend a=127.0.0.1:2", "twice"),
        ("--listen 127.0.0.1:0 --backend a*65536=127.0.0.1:1", "65536"),
        ("--listen 127.0.0.1:0 --policy random", "least-connections"),
        ("--listen 127.0.0.1:0 --connect-timeout 0", "--connect-timeout"),
        ("--listen 127.0.0.1:0 --dial-limit -1", "-1"),
        ("--listen 127.0.0.1:0 --idle-timeout NaN", "--idle-timeout"),
        ("--listen 127.0.0.1:0 --half-closed-timeout inf", "--half-closed-timeout"),
        ("--listen 127.0.0.1:0 --user-timeout 1e9", "--user-timeout"),
        ("--listen 127.0.0.1:0 --drain 1e30", "--drain"),
        ("--listen 127.0.0.1:0 --max-connections 0", "--max-connections"),
        ("--listen 127.0.0.1:0 --buffer-size 99999999", "--buffer-size"),
        ("--listen 127.0.0.1:0 --notsent-lowat 0", "--notsent-lowat"),
        ("--listen 127.0.0.1:0 --notsent-lowat none", "must be off or"),
        ("--listen 127.0.0.1:0 --log loud", "--log"),
    ];
    for (args, reason) in cases {
        let (status, message) = failure(&args.split_whitespace().collect::<Vec<_>>());
        assert!(status == 2 && message.contains(reason), "{args}: {status}: {message}");
    }
}

#[test]
fn what_cannot_be_done_here_and_now_is_status_1_and_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad");
    fs::write(&bad, "a=127.0.0.1:1\nb\n").unwrap();
    let doubled = dir.path().join("doubled");
    fs::write(&doubled, "\nk=127.0.0.1:1\n").unwrap();
    let taken = listener();
    let taken = taken.local_addr().unwrap().to_string();
    let listen = "127.0.0.1:0";
    let cases: [(&[&str], &str); 6] = [
        (&["--listen", &taken], &taken),
        (&["--listen", &format!("unix:{}", bad.display())], "exists already"),
        (
            &["--listen", listen, "--backend", "a=no-such-host.invalid:80"],
            "no-such-host.invalid:80",
        ),
        (&["--listen", listen, "--backends", "/no/such/file"], "/no/such/file: "),
        (&["--listen", listen, "--backends", bad.to_str().unwrap()], "bad:2: "),
        (
            &[
                "--listen",
                listen,
                "--backend",
                "k=127.0.0.1:2",
                "--backends",
                doubled.to_str().unwrap(),
            ],
            "doubled:2: key \"k\"",
        ),
    ];
    for (args, reason) in cases {
        let (status, message) = failure(args);
        assert!(status == 1 && message.contains(reason), "{args:?}: {status}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert!(bad.exists(), "a file that was there before is not removed");
}

#[test]
#[cfg(target_os = "linux")]
fn the_soft_descriptor_limit_is_raised_to_the_hard_one() {
    let run = format!("ulimit -Sn 32; exec {} --listen 127.0.0.1:0", env!("CARGO_BIN_EXE_tinylb"));
    let cli = Cli::run(Command::new("sh").args(["-c", &run]));
    let limits = fs::read_to_string(format!("/proc/{}/limits", cli.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
    assert_ne!(words[3], "32");
}

#[test]
fn log_lines_go_to_stderr_at_the_level_asked_for() {
    let mut cli = Cli::start("--control --log info");
    assert!(cli.complaint().contains("INFO"));
    assert_eq!(cli.ask("set"), "ok closed=0 cancelled=0 backends=0");
    let mut quiet = Cli::start("--control --log error");
    quiet.ask("set a=127.0.0.1:1");
    quiet.ask("quit");
    quiet.assert_ends_well();
    assert_eq!(quiet.stderr.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

// Commands.

#[test]
fn set_add_and_remove_answer_what_they_did_after_it_is_done() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let mut cli = Cli::start("--control");
    assert_eq!(cli.ask(&format!("set a={}", one.addr)), "ok closed=0 cancelled=0 backends=1");
    let (mut first, _) = cli.tagged_client();
    assert_eq!(cli.ask(&format!("add b={}", two.addr)), "ok closed=0 cancelled=0 backends=2");
    let (mut second, tag) = cli.tagged_client();
    assert_eq!(tag, "two");
    assert_eq!(cli.ask("remove a"), "ok closed=1 cancelled=0 backends=1");
    assert_aborted(&mut first);
    assert_echo(&mut second, b"stays");
    assert_eq!(cli.ask(&format!("add b={}", one.addr)), "ok closed=1 cancelled=0 backends=1");
    assert_aborted(&mut second);
    assert_eq!(
        cli.ask(&format!("set c={} d={}", one.addr, two.addr)),
        "ok closed=0 cancelled=0 backends=2"
    );
    assert_eq!(cli.backends(), format!("c={} d={}", one.addr, two.addr));
    let (mut third, _) = cli.tagged_client();
    assert_eq!(cli.ask("set"), "ok closed=1 cancelled=0 backends=0");
    assert_aborted(&mut third);
    assert_eq!(cli.backends(), "");
}

#[test]
fn weights_are_given_with_the_key_or_set_later_and_0_holds() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let mut cli =
        Cli::start(&format!("--control --backend a*3={} --backend b={}", one.addr, two.addr));
    let tags = |cli: &Cli, count| {
        let tags = cli.tags(count);
        tags.iter().filter(|tag| *tag == "one").count()
    };
    assert_eq!(tags(&cli, 8), 6);
    let weights = |cli: &mut Cli| {
        let stats = cli.stats();
        ["a", "b"].map(|key| stats["backends"][key]["weight"].as_u64().unwrap())
    };
    assert_eq!(weights(&mut cli), [3, 1]);
    let (mut client, _) = cli.tagged_client();
    assert_eq!(cli.ask("weight a 0"), "ok closed=0 cancelled=0 backends=2");
    assert_eq!((weights(&mut cli), tags(&cli, 4)), ([0, 1], 0));
    assert_echo(&mut client, b"goes on");
    assert_eq!(cli.ask(&format!("add a={}", one.addr)), "ok closed=0 cancelled=0 backends=2");
    assert_eq!((weights(&mut cli), tags(&cli, 4)), ([1, 1], 2), "and is released");
    let held = format!("set a*0={} b*65535={}", one.addr, two.addr);
    assert_eq!(cli.ask(&held), "ok closed=0 cancelled=0 backends=2");
    assert_eq!(weights(&mut cli), [0, 65_535]);
}

#[test]
fn the_file_gives_weights_and_its_keys_are_not_for_commands_to_change() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backends");
    fs::write(&path, format!("a*0={}\nb={}\n", one.addr, two.addr)).unwrap();
    let mut cli = Cli::start(&format!("--control --backends {}", path.display()));
    assert_eq!(cli.tags(2), ["two", "two"]);
    let answer = cli.ask("weight a 1");
    assert!(answer.starts_with("error ") && answer.contains("file"), "{answer}");
    fs::write(&path, format!("a={}\nb*0={}\n", one.addr, two.addr)).unwrap();
    wait_for("the weights are swapped", || (cli.tags(1) == ["one"]).then_some(()));
    assert_eq!(cli.tags(2), ["one", "one"]);
}

#[test]
fn the_policy_is_chosen_on_the_command_line() {
    let (_one, _two, args) = two_backends();
    let mut cli = Cli::start(&format!("{args} --policy least-connections"));
    let (first, tag) = cli.tagged_client();
    let (_second, other) = cli.tagged_client();
    assert_ne!(tag, other);
    drop(first);
    cli.wait_for_stats("the first has ended", |stats| stats["ended"] == 1);
    assert_eq!(cli.tags(1), [&*tag], "round robin would go there too");
    cli.wait_for_stats("it has ended, too", |stats| stats["ended"] == 2);
    assert_eq!(cli.tags(1), [&*tag], "round robin would go on");
}

#[test]
fn whatever_is_wrong_gets_one_error_line_and_changes_nothing() {
    let (_one, _two, args) = two_backends();
    let mut cli = Cli::start(&args);
    let before = cli.backends();
    let wrong: &[(&[u8], &str)] = &[
        (b"foo", "foo"),
        (b"SET", "SET"),
        (b"set x", "KEY=TARGET"),
        (b"set =127.0.0.1:1", "key"),
        (b"set -x=127.0.0.1:1", "key"),
        (b"set \xef\xbb\xbfx=127.0.0.1:1", "feff"),
        (b"set x=unix:/a\x1b[31m", "control"),
        (b"set x=127.0.0.1", "HOST:PORT"),
        (b"set x=127.0.0.1:0", "port"),
        (b"set x=127.0.0.1:70000", "port"),
        (b"set x=[::1]:0", "port"),
        (b"set x=::1:80", "[IPV6]:PORT"),
        (b"set x=http://host:80", "HOST:PORT"),
        (b"set x=unix:", "path"),
        (b"set x=y=z", "y=z"),
        (b"set x=no-such-host.invalid:80", "no-such-host.invalid:80"),
        (b"add x=127.0.0.1:1 x=127.0.0.1:2", "twice"),
        (b"add", "missing"),
        (b"remove", "missing"),
        (b"remove nobody", "unknown"),
        (b"remove a nobody", "unknown"),
        (b"remove a a", "twice"),
        (b"remove a --drain soon", "soon"),
        (b"remove a --drain -1", "negative"),
        (b"remove --drain 1 a", "last"),
        (b"set x*65536=127.0.0.1:1", "65536"),
        (b"set x*=127.0.0.1:1", "weight"),
        (b"set x*-1=127.0.0.1:1", "weight"),
        (b"set x*y*2=127.0.0.1:1", "key"),
        (b"weight a 65536", "65536"),
        (b"weight a much", "much"),
        (b"weight a", "KEY"),
        (b"weight a 1 2", "KEY"),
        (b"weight nobody 2", "unknown"),
        (b"drain", "SECONDS"),
        (b"drain inf", "inf"),
        (b"stats please", "alone"),
        (b"quit now", "alone"),
        (b"help me", "alone"),
        (b"remove \xff", "UTF-8"),
        (b"\x00\x07", "unknown"),
    ];
    for (line, reason) in wrong {
        cli.send(line);
        cli.send("\n");
        let answer = cli.line();
        assert!(
            answer.starts_with("error ") && answer.contains(reason),
            "{}: {answer}",
            line.escape_ascii()
        );
    }
    assert_eq!(cli.backends(), before);
}

#[test]
fn an_endless_line_is_an_error_the_next_is_handled_and_a_long_word_is_not_repeated_in_full() {
    let mut cli = Cli::start("--control");
    cli.send("set ");
    (0..5 << 4).for_each(|_| cli.send(vec![b'x'; 1 << 16]));
    cli.send("\nset a=127.0.0.1:1\n");
    assert!(cli.line().starts_with("error the line is longer than"));
    assert_eq!(cli.line(), "ok closed=0 cancelled=0 backends=1");
    let answer = cli.ask(&"\u{e9}".repeat(100_000));
    assert!(answer.starts_with("error ") && answer.len() < 1000);
}

#[test]
fn commands_sent_at_once_are_answered_in_order_and_blank_lines_are_passed_over() {
    let mut cli = Cli::start("--control");
    cli.send("\n  \t\r\nset a=127.0.0.1:1\r\n\nfoo\n   add   b=127.0.0.1:2   c=127.0.0.1:2  \n\nremove a\nquit");
    drop(cli.stdin.take());
    let answers: Vec<_> = (0..5).map(|_| cli.line()).collect();
    assert_eq!(answers[0], "ok closed=0 cancelled=0 backends=1");
    assert!(answers[1].starts_with("error "));
    assert_eq!(answers[2], "ok closed=0 cancelled=0 backends=3");
    assert_eq!(answers[3], "ok closed=0 cancelled=0 backends=2");
    assert!(answers[4].starts_with("ok"), "a last line without its end is a command");
    cli.assert_ends_well();
    assert_eq!(cli.stdout.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn the_end_of_stdin_changes_nothing() {
    let (_one, _two, args) = two_backends();
    let mut cli = Cli::start(&args);
    let (mut client, _) = cli.tagged_client();
    cli.ask("stats");
    drop(cli.stdin.take());
    assert_echo(&mut client, b"still here");
    assert_eq!(cli.tags(2), ["two", "one"]);
    assert_eq!(cli.child.try_wait().unwrap(), None);
}

#[test]
fn without_control_stdin_is_left_alone() {
    let mut cli = Cli::start("--backend a=127.0.0.1:1");
    cli.send("quit\n");
    drop(cli.stdin.take());
    cli.signal("HUP");
    assert!(cli.complaint().contains("SIGHUP"), "a barrier: it is alive and has time to read");
    assert_eq!(cli.child.try_wait().unwrap(), None);
}

#[test]
fn c3_9_a_trailing_drain_lets_connections_to_vanished_targets_go_on_until_its_limit() {
    let (one, two, args) = two_backends();
    let mut cli = Cli::start(&args);
    let (mut first, _) = cli.tagged_client();
    let (mut second, _) = cli.tagged_client();
    assert_eq!(cli.ask("remove a --drain 600"), "ok closed=0 cancelled=0 backends=1");
    assert_echo(&mut first, b"goes on");
    let asked = Instant::now();
    assert_eq!(
        cli.ask(&format!("add b={} --drain 0.25", one.addr)),
        "ok closed=0 cancelled=0 backends=1"
    );
    assert_aborted(&mut second);
    assert!(asked.elapsed() >= Duration::from_millis(250));
    assert_echo(&mut first, b"named again");
    assert_eq!(
        cli.ask(&format!("set c={} --drain 600.5", two.addr)),
        "ok closed=0 cancelled=0 backends=1"
    );
    assert_echo(&mut first, b"goes on");
    assert_eq!(cli.ask("set --drain 0"), "ok closed=0 cancelled=0 backends=0");
    assert_aborted(&mut first);
}

#[test]
fn stats_are_one_line_of_json() {
    let (one, _two, args) = two_backends();
    let refusing = refusing_addr();
    let mut cli = Cli::start(&args);
    cli.ask(&format!("set a={} b={refusing}", one.addr));
    let (mut first, _) = cli.tagged_client();
    let (_second, tag) = cli.tagged_client();
    assert_eq!(tag, "one", "failed over from b");
    assert_echo(&mut first, b"12345");
    drop(first);
    cli.wait_for_stats("the first has ended", |stats| stats["ended"] == 1);
    let stats = cli.stats();
    let number = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name}: {stats}"));
    assert_eq!(
        (number("accepted"), number("refused"), number("open"), number("dialling")),
        (2, 0, 1, 0)
    );
    assert_eq!((number("bytes_up"), number("bytes_down")), (5, 13));
    let of = |key: &str| stats["backends"][key].clone();
    let expected =
        |target: SocketAddr, [open, total, dial_failures, bytes_up, bytes_down]: [u64; 5]| {
            serde_json::json!({
                "target": target.to_string(), "weight": 1, "open": open, "total": total, "dial_failures": dial_failures,
                "ejected": false, "bytes_up": bytes_up, "bytes_down": bytes_down,
            })
        };
    assert_eq!(of("a"), expected(one.addr, [1, 2, 0, 5, 13]));
    assert_eq!(of("b"), expected(refusing, [0, 0, 1, 0, 0]));
    cli.ask("set");
    let _ = TcpStream::connect(cli.addr()); // may see the reset already
    cli.wait_for_stats("one is refused", |stats| stats["refused"] == 1);
}

#[test]
fn help_is_one_line_with_every_command() {
    let mut cli = Cli::start("--control");
    let answer = cli.ask("help");
    assert!(answer.starts_with("ok "), "{answer}");
    for command in ["set", "add", "remove", "weight", "stats", "drain", "quit", "help"] {
        assert!(answer.split([' ', '|']).any(|word| word == command), "{command}: {answer}");
    }
    assert_eq!(cli.ask("set"), "ok closed=0 cancelled=0 backends=0", "the next line");
}

#[test]
fn a_reader_of_stdout_that_goes_away_does_not_end_it() {
    let (_one, _two, args) = two_backends();
    let mut cli = Cli::start(&args);
    let (mut client, _) = cli.tagged_client();
    // The thread that reads stdout ends at a line that nobody takes.
    let (_, unread) = mpsc::channel();
    drop(std::mem::replace(&mut cli.stdout, unread));
    wait_for("it complains", || {
        cli.send("stats\n");
        cli.stderr.try_iter().find(|line| line.contains("stdout"))
    });
    assert_echo(&mut client, b"goes on");
    cli.send("quit\n");
    cli.assert_ends_well();
}

// The end.

#[test]
fn quit_and_signals_abort_everything_at_once_or_after_the_drain_asked_for() {
    type End = fn(&mut Cli);
    let at_once = Duration::ZERO;
    let soon = Duration::from_millis(250);
    let ends: [(&str, Duration, End); 5] = [
        ("", at_once, |cli| assert!(cli.ask("quit").starts_with("ok"))),
        ("", at_once, |cli| cli.signal("TERM")),
        ("", at_once, |cli| cli.signal("INT")),
        ("", soon, |cli| assert!(cli.ask("drain 0.25").starts_with("ok"))),
        ("--drain 0.25", soon, |cli| cli.signal("INT")),
    ];
    for (option, limit, end) in ends {
        let (_one, _two, args) = two_backends();
        let mut cli = Cli::start(&format!("{args} {option}"));
        let (mut client, _) = cli.tagged_client();
        let asked = Instant::now();
        end(&mut cli);
        assert_aborted(&mut client);
        assert!(asked.elapsed() >= limit);
        cli.assert_ends_well();
    }
}

#[test]
fn drain_answers_at_once_and_the_process_exits_when_the_last_client_has_finished() {
    let (_one, _two, args) = two_backends();
    let mut cli = Cli::start(&args);
    let (mut client, _) = cli.tagged_client();
    assert!(cli.ask("drain 600").starts_with("ok"));
    wait_for("it listens no more", || TcpStream::connect(cli.addr()).is_err().then_some(()));
    cli.wait_for_stats("only the client is left", |stats| stats["open"] == 1);
    assert_eq!(cli.ask("remove b"), "ok closed=0 cancelled=0 backends=1");
    assert_echo(&mut client, b"goes on");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), (Vec::new(), StreamEnd::Clean));
    cli.assert_ends_well();
}

#[test]
fn a_signal_drains_for_as_long_as_told_and_a_second_ends_at_once() {
    let (_one, _two, args) = two_backends();
    let mut cli = Cli::start(&format!("{args} --drain 600"));
    let (mut client, _) = cli.tagged_client();
    cli.signal("TERM");
    wait_for("it listens no more", || TcpStream::connect(cli.addr()).is_err().then_some(()));
    assert_echo(&mut client, b"goes on");
    cli.signal("INT");
    assert_aborted(&mut client);
    cli.assert_ends_well();
}

#[test]
fn a_socket_file_is_listened_on_and_removed_at_the_end() {
    let (_one, _two, args) = two_backends();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let address = format!("unix:{}", path.display());
    let ends: [fn(&mut Cli); 3] = [
        |cli| assert!(cli.ask("quit").starts_with("ok")),
        |cli| assert!(cli.ask("drain 1").starts_with("ok")),
        |cli| cli.signal("TERM"),
    ];
    for end in ends {
        let mut cli = Cli::start_at(&path, &args);
        assert_eq!(cli.address, address);
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read_tag(&mut client), "one");
        drop(client);
        end(&mut cli);
        cli.assert_ends_well();
        assert!(!path.exists());
    }
}

#[test]
fn a_socket_file_that_another_has_put_in_its_place_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let mut cli = Cli::start_at(&path, "--control");
    let successor = dir.path().join("new.sock");
    let _listener = UnixListener::bind(&successor).unwrap();
    fs::rename(successor, &path).unwrap();
    cli.ask("quit");
    cli.assert_ends_well();
    assert!(path.exists());
}

#[test]
fn a_socket_file_of_a_killed_process_is_replaced() {
    let (_one, _two, args) = two_backends();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let mut killed = Cli::start_at(&path, &args);
    killed.child.kill().unwrap();
    killed.wait();
    assert!(path.exists());
    let mut cli = Cli::start_at(&path, &args);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_tag(&mut client), "one");
    cli.ask("quit");
    cli.assert_ends_well();
    assert!(!path.exists());
}

#[test]
fn a_socket_file_that_somebody_listens_on_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // The shortest backlog there is; with one client in it, another would have to wait.
    rustix::net::listen(&listener, 0).unwrap();
    for _ in 0..2 {
        let (status, message) = failure(&["--listen", &format!("unix:{}", path.display())]);
        assert!(status == 1 && message.contains("another process listens there"), "{message}");
        assert!(path.exists());
    }
    drop(listener.accept().unwrap());
}

// Options that reach the balancer.

#[test]
fn limits_of_the_command_line_reach_the_balancer() {
    let (hole, limit) = (BlackHole::new(), Duration::from_millis(190));
    // This backend does not answer an end of stream by its own.
    let silent = TestBackend::new(|mut stream| {
        let _ = stream.write_all(b"silent\n");
        std::thread::park_timeout(PATIENCE);
    });
    for (option, addr) in [
        ("--idle-timeout 0.2", silent.addr),
        ("--half-closed-timeout .2", silent.addr),
        ("--connect-timeout 0.2", hole.addr),
        ("--dial-limit 0.2", hole.addr),
    ] {
        let cli = Cli::start(&format!("{option} --backend a={addr}"));
        let (start, mut client) = (Instant::now(), connect(cli.addr()));
        client.shutdown(Shutdown::Write).unwrap();
        assert_aborted(&mut client);
        assert!(start.elapsed() >= limit, "{option}");
    }
    let mut cli = Cli::start(&format!("--control --max-connections 1 --backend a={}", silent.addr));
    let (_first, _second) = (cli.tagged_client(), connect(cli.addr()));
    assert_eq!(cli.stats()["accepted"], 1);
}

#[test]
#[cfg(target_os = "linux")]
fn c6_7_keepalive_is_on_unless_switched_off() {
    let (_one, _two, args) = two_backends();
    for (option, timer) in [("", "02"), ("--no-keepalive", "00")] {
        let cli = Cli::start(&format!("{args} {option}"));
        let (client, _) = cli.tagged_client();
        let port = |addr: SocketAddr| format!(":{:04X}", addr.port());
        let (here, there) = (port(cli.addr()), port(client.local_addr().unwrap()));
        // The kernel's timer of the accepted socket: a retransmission may go before.
        wait_for(option, || {
            let table = fs::read_to_string("/proc/net/tcp").unwrap();
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let mut lines = table.lines().map(words);
            let line =
                lines.find(|words| words[1].ends_with(&here) && words[2].ends_with(&there))?;
            line[5].starts_with(timer).then_some(())
        });
    }
}

#[test]
#[cfg(target_os = "linux")]
fn c6_7_the_user_time_out_ends_a_client_that_does_not_read() {
    let flood = TestBackend::new(|mut stream| while stream.write_all(&[0; 65536]).is_ok() {});
    let mut cli = Cli::start(&format!("--control --user-timeout 0.3 --backend a={}", flood.addr));
    let _client = connect(cli.addr());
    cli.wait_for_stats("it is ended", |stats| stats["ended"] == 1);
}

#[test]
fn help_tells_of_commands_file_and_signals() {
    let help = Command::new(env!("CARGO_BIN_EXE_tinylb")).arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success());
    for word in
        ["set KEY=TARGET", "remove KEY", "drain SECONDS", "SIGHUP", "Exit status", "--no-keepalive"]
    {
        assert!(text.contains(word), "{word}");
    }
}
