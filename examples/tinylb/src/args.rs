//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;
use tinylb::{Builder, Keepalive, Server};

use crate::listen::ListenAddr;
use crate::targets::KeyedTarget;
use crate::values::{log_level, seconds};

/// A round-robin load balancer for stream connections. When a backend leaves the set, its connections are closed at
/// once, and nothing more is sent to it or taken from it.
#[derive(Debug, Parser)]
#[command(name = "tinylb", version, after_help = "--help says more", after_long_help = MANUAL)]
pub(crate) struct Args {
    /// Where clients come: IP:PORT, [IPV6]:PORT or unix:PATH; port 0 picks a free one
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: ListenAddr,
    /// A backend; repeatable
    #[arg(long = "backend", value_name = "KEY=TARGET")]
    pub(crate) backends: Vec<KeyedTarget>,
    /// More backends, one KEY=TARGET a line, reread when the file changes and on SIGHUP
    #[arg(long = "backends", value_name = "FILE")]
    pub(crate) backends_file: Option<PathBuf>,
    /// Obey commands on stdin, and answer each by one line on stdout
    #[arg(long)]
    pub(crate) control: bool,
    /// How long one attempt to reach a backend may take [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Option<Duration>,
    /// How long all attempts for one client may take together [default: 15]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    dial_limit: Option<Duration>,
    /// Cut connections that moved no byte for so long [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle_timeout: Option<Duration>,
    /// The same for those of which one side has finished [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    half_closed_timeout: Option<Duration>,
    /// Cut connections whose bytes stay unacknowledged for so long [default: the system's]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    user_timeout: Option<Duration>,
    /// Do not probe quiet connections [default: probed after 15 seconds]
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
    /// How long connections may go on after SIGTERM or SIGINT [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0", hide_default_value = true)]
    pub(crate) drain: Duration,
    /// What is logged on stderr: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL", value_parser = log_level, default_value = "warn", hide_default_value = true)]
    pub(crate) log: LevelFilter,
}

const MANUAL: &str = "\
Targets
  IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH. A HOST is looked up when its key is set: at the start, by the
  command that names it, and whenever the file is reread. KEY=TARGET splits at the first '='.

Commands (--control)
  set KEY=TARGET ...   replace all backends but those of the file; alone: remove them
  add KEY=TARGET ...   add backends; a known key gets the new target
  remove KEY ...       remove backends
      answer, once it is done: ok closed=N cancelled=N backends=N
      (connections closed, dials cancelled, backends there are now)
      With '--drain SECONDS' at its end, it lets connections to removed targets go on for so long.
  stats                answer: ok {one line of JSON}
  drain SECONDS        accept nobody any more, let connections finish for so long, then exit
  quit                 close all connections and exit
      answer at once: ok and a word
  Anything wrong is answered by: error REASON, and changes nothing. Blank lines are passed over. The end of stdin changes
  nothing.

The backends file
  One KEY=TARGET a line. '#' at the beginning of a line or after a blank begins a comment. A file that cannot be read or
  has a bad line is an error at the start; later it is one on stderr, and the running set is kept. SIGHUP tries again.
  Its keys live beside those of --backend and of commands. A reread replaces the file's alone, commands all others,
  and a key in both is an error.

Signals
  SIGTERM, SIGINT      drain for --drain seconds, then exit; a second one ends at once
  SIGHUP               reread the file

Seconds may have decimals. The first line on stdout is 'listening on ADDR'. A unix:PATH to listen on must not exist; it
is removed at the end.

Exit status
  0 after an orderly end, 1 if it cannot begin or go on (address in use, bad file, unknown host), 2 for bad arguments.";

impl Args {
    /// The server's settings, as asked for.
    pub(crate) fn settings(&self) -> Builder {
        let mut builder = Server::builder()
            .idle_timeout(self.idle_timeout)
            .user_timeout(self.user_timeout)
            .keepalive((!self.no_keepalive).then(Keepalive::default));
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
        #[cfg(feature = "splice")]
        let builder = builder.splice(!self.no_splice);
        builder
    }
}
