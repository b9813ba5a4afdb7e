//! Standard streams that nobody reads.

use super::*;

// Stderr.

/// A balancer whose stderr is left unread, and whose clients have it log more than a pipe and the
/// queue hold: 30 lines each.
fn start_unread() -> (Cli, impl Read + Send + 'static) {
    let backends: String =
        (0..30).map(|n| format!("--backend b{n}={} ", refusing_addr())).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tinylb"))
        .args(["--listen", "127.0.0.1:0", "--control", "--log", "debug"])
        .args(backends.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = child.stderr.take().unwrap();
    let stdout = lines_of(child.stdout.take().unwrap());
    let stdin = child.stdin.take();
    let mut cli = Cli { child, stdin, stdout, stderr: mpsc::channel().1, address: String::new() };
    cli.address = cli.line().strip_prefix("listening on ").unwrap().to_owned();
    (cli, stderr)
}

#[test]
fn while_nobody_reads_stderr_all_goes_on_and_what_is_dropped_is_counted() {
    let (mut cli, stderr) = start_unread();
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
    };
    assert!(dropped > 0);
    assert_refused(cli.addr());
    let next = lines.recv_timeout(PATIENCE).expect("nothing is logged any more");
    assert!(next.contains("client 300"), "{next}");
    cli.ask("quit");
    cli.assert_ends_well();
}

#[test]
fn a_signal_ends_it_though_nobody_reads_stderr() {
    let (mut cli, _stderr) = start_unread();
    for _ in 0..300 {
        assert_refused(cli.addr());
    }
    cli.signal("TERM");
    cli.assert_ends_well();
}
