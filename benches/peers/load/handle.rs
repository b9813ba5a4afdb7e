//! The load process as the run sees it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Stdio};

use nix::unistd::Pid;
use serde_json::Value;

use crate::Fallible;
use crate::process::{self, Process};

pub(crate) struct Load {
    process: Process,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Load {
    /// Returns when the connections are open. `work` is what the subcommand of this name and its
    /// arguments say.
    pub(crate) fn prepare(cores: &[usize], target: SocketAddr, work: &str) -> Fallible<Self> {
        let mut command = process::role(cores, "load")?;
        command.arg(target.to_string()).args(work.split_whitespace());
        let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let child = process.child();
        let orders = child.stdin.take().ok_or("the load has no stdin")?;
        let reports = BufReader::new(child.stdout.take().ok_or("the load has no stdout")?);
        let mut load = Self { process, orders, reports };
        load.expect("ready")?;
        Ok(load)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    pub(crate) fn begin(&mut self) -> Fallible<()> {
        Ok(self.orders.write_all(b"go\n")?)
    }

    pub(crate) fn expect(&mut self, word: &str) -> Fallible<()> {
        let line = self.line()?;
        if line == word {
            Ok(())
        } else {
            Err(format!("the load says {line:?} instead of {word:?}").into())
        }
    }

    pub(crate) fn report(&mut self) -> Fallible<Value> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    pub(crate) fn run(&mut self) -> Fallible<Value> {
        self.begin()?;
        self.report()
    }

    /// Why a load failed it says on stderr.
    fn line(&mut self) -> Fallible<String> {
        let mut line = String::new();
        match self.reports.read_line(&mut line)? {
            0 => Err("the load failed".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}
