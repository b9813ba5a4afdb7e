//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;
use tinylb::{Builder, Keepalive, Policy, Server};

use crate::listen_addr::ListenAddr;
use crate::targets::KeyedTarget;
use crate::values::{SizeLimit, log_level, policy, seconds, size_limit};

/// A round-robin load balancer for stream connections. When a backend leaves the set, its
/// connections are closed at once, and nothing more is sent to it or taken from it.
#[derive(Debug, Parser)]
#[command(name = "tinylb", version, after_help = "--help says more", after_long_help = MANUAL)]
pub(crate) struct Args {
    /// Where to listen: IP:PORT, [IPV6]:PORT or unix:PATH; port 0 picks a free port
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: ListenAddr,
    /// A backend; repeatable
    #[arg(long = "backend", value_name = "KEY=TARGET")]
    pub(crate) backends: Vec<KeyedTarget>,
    /// More backends, one KEY=TARGET a line, reread when the file changes and on SIGHUP
    #[arg(long = "backends", value_name = "FILE")]
    pub(crate) backends_file: Option<PathBuf>,
    /// Read commands from stdin and answer each with one line on stdout
    #[arg(long)]
    pub(crate) control: bool,
    /// How clients are spread: round-robin or least-connections [default: round-robin]
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    policy: Option<Policy>,
    /// How long one attempt to reach a backend may take [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Option<Duration>,
    /// How long all attempts for one client may take together [default: 15]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    dial_limit: Option<Duration>,
    /// Abort a connection after this long without a byte [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle_timeout: Option<Duration>,
    /// The same for a half-closed connection: one side has finished [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    half_closed_timeout: Option<Duration>,
    /// Abort a connection whose bytes stay unacknowledged for this long [default: the system's]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    user_timeout: Option<Duration>,
    /// Disable TCP keepalive [default: on, after 15 seconds idle]
    #[arg(long)]
    no_keepalive: bool,
    /// Copy bulk instead of splicing it
    #[cfg(feature = "splice")]
    #[arg(long)]
    no_splice: bool,
    /// How many clients there may be at a time; others wait [default: no limit]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// How much one direction of a connection holds when its reader is slow [default: 262144]
    #[arg(long, value_name = "BYTES")]
    buffer_size: Option<usize>,
    /// How much unsent data the kernel holds for one direction; Linux only [default: 131072]
    #[arg(long, value_name = "BYTES|off", value_parser = size_limit)]
    notsent_lowat: Option<SizeLimit>,
    /// How long connections may go on after SIGTERM or SIGINT [default: 0]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds,
        default_value = "0",
        hide_default_value = true
    )]
    pub(crate) drain: Duration,
    /// What is logged on stderr: off, error, warn, info, debug or trace [default: warn]
    #[arg(
        long,
        value_name = "LEVEL",
        value_parser = log_level,
        default_value = "warn",
        hide_default_value = true
    )]
    pub(crate) log: LevelFilter,
}

const MANUAL: &str = "\
Targets
  IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH. A HOST is looked up when its key is set: at the
  start, by the command that names it, and when its line in the file is new. SIGHUP looks up all
  names in the file again. KEY=TARGET splits at the first '='.
  KEY*WEIGHT=TARGET gives the backend a weight from 0 to 65535, its share of the clients; without
  one it has weight 1. A backend of weight 0 is held: its connections go on, but it gets no client.

Commands (--control)
  set KEY=TARGET ...   replace all backends but those of the file; alone: remove them
  add KEY=TARGET ...   add backends; a known key gets the new target and weight
  remove KEY ...       remove backends
      answer, once it is done: ok closed=N cancelled=N backends=N
      (connections closed, dials cancelled, backends there are now)
      With '--drain SECONDS' at the end, connections to removed targets may finish within that time.
  weight KEY N         give a backend another weight; the same answer
  stats                answer: ok {one line of JSON}
  drain SECONDS        accept the clients already waiting, let connections finish within
                       SECONDS, then exit
  quit                 close all connections and exit
      answer at once: ok and a word
  help                 answer: ok and the commands
  A bad command changes nothing and is answered: error REASON. Blank lines are ignored.
  The end of stdin changes nothing.

The backends file
  One KEY=TARGET a line. '#' at the beginning of a line or after a blank begins a comment. A file
  that cannot be read or has a bad line is an error at the start; later it is one on stderr, and
  the running set is kept. SIGHUP tries again.
  A change is applied once the file has been stable for 0.2 seconds, and within a second however
  often it is replaced. If its last line has no newline, or it has no backends, it must be stable
  for a second.
  A name that cannot be looked up is an error at the start; later its line alone waits, is tried
  again, and keeps the addresses that it had. While no line has an address, the running set is
  kept.
  The keys of the file are separate from those of --backend and of commands: a reread replaces
  only its own, commands only the others. A key in both is an error.

Signals
  SIGTERM, SIGINT      drain for --drain seconds, then exit; a second one exits at once
  SIGHUP               reread the file

Seconds may have decimals. The first line on stdout is 'listening on ADDR'. A unix:PATH to listen
on must not exist, unless it is a socket that nobody listens on, which is replaced; it is removed
at the end. If stderr is not read, lines are dropped and counted.

Exit status
  0 after an orderly end, 1 if it cannot begin or go on (address in use, bad file, unknown host),
  2 for bad arguments.";

impl Args {
    /// Returns the server's settings, as asked for.
    pub(crate) fn settings(&self) -> Builder {
        let mut builder = Server::builder()
            .idle_timeout(self.idle_timeout)
            .user_timeout(self.user_timeout)
            .keepalive((!self.no_keepalive).then(Keepalive::default));
        if let Some(policy) = self.policy {
            builder = builder.policy(policy);
        }
        if let Some(limit) = self.connect_timeout {
            builder = builder.connect_timeout(limit);
        }
        if let Some(limit) = self.dial_limit {
            builder = builder.dial_limit(limit);
        }
        if let Some(limit) = self.half_closed_timeout {
            builder = builder.half_closed_timeout(limit);
        }
        if let Some(clients) = self.max_connections {
            builder = builder.max_connections(clients);
        }
        if let Some(bytes) = self.buffer_size {
            builder = builder.buffer_size(bytes);
        }
        if let Some(SizeLimit(bytes)) = self.notsent_lowat {
            builder = builder.notsent_lowat(bytes);
        }
        #[cfg(feature = "splice")]
        let builder = builder.splice(!self.no_splice);
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of it is the library's to test.
    #[test]
    fn notsent_lowat_is_set_removed_or_left_to_the_library() {
        let settings = |option: &[&str]| {
            let args = ["tinylb", "--listen", "127.0.0.1:0"].iter().chain(option);
            format!("{:?}", Args::parse_from(args).settings())
        };
        assert!(settings(&["--notsent-lowat", "4097"]).contains("notsent_lowat: Some(4097)"));
        assert!(settings(&["--notsent-lowat", "off"]).contains("notsent_lowat: None"));
        assert_eq!(settings(&["--notsent-lowat", "131072"]), settings(&[]));
    }
}
