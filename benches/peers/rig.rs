//! A proxy with backends behind it, both fresh: no measurement meets what another left behind.

use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use std::io::{BufRead, BufReader};

use nix::unistd::Pid;
use serde_json::Value;

use crate::Fallible;
use crate::contenders::{Contender, Proxy};
use crate::lab::Lab;
use crate::load::{self, Load};
use crate::measure::{cpu_seconds, settle};
use crate::process::{self, Cores, Process};

pub(crate) const BACKENDS: u8 = 4;

pub(crate) struct Rig<'a> {
    lab: &'a Lab,
    pub(crate) proxy: Proxy,
    backends: Vec<Process>,
}

/// What a piece of work took.
pub(crate) struct Measured {
    pub(crate) report: Value,
    pub(crate) proxy_seconds: f64,
    /// Of client, proxy and backends together.
    pub(crate) all_seconds: f64,
}

impl<'a> Rig<'a> {
    pub(crate) fn start(lab: &'a Lab, contender: &Contender) -> Fallible<Self> {
        Self::assemble(lab, contender, &[BACKENDS], false)
    }

    /// With this many backends in each of several processes; and able to lose one, if that must be
    /// prepared for.
    pub(crate) fn assemble(
        lab: &'a Lab,
        contender: &Contender,
        backends: &[u8],
        removable: bool,
    ) -> Fallible<Self> {
        let mut processes = Vec::new();
        let mut addrs = Vec::new();
        for &count in backends {
            let (process, more) = start_backends(&lab.cores, addrs.len() as u8, count)?;
            processes.push(process);
            addrs.extend(more);
        }
        let proxy = contender.start(&lab.cores.proxy, &addrs, lab.pairs, removable)?;
        let mut rig = Self { lab, proxy, backends: processes };
        rig.warm_up()?;
        Ok(rig)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.proxy.process.pid()
    }

    pub(crate) fn prepare(&self, work: &str) -> Fallible<Load> {
        Load::prepare(&self.lab.cores.others, self.proxy.addr, work)
    }

    /// Has this load and all backends but the first run before the rest. Returns whether they do.
    pub(crate) fn prefer(&self, load: &Load) -> bool {
        let backends = self.backends[1..].iter().map(Process::pid);
        backends.chain([load.pid()]).all(process::make_real_time)
    }

    pub(crate) fn measure(&self, work: &str) -> Fallible<Measured> {
        let mut load = self.prepare(work)?;
        self.settle()?;
        let (proxy_before, others_before) = self.seconds(&load)?;
        let report = load.run()?;
        self.settle()?;
        let (proxy, others) = self.seconds(&load)?;
        let proxy_seconds = proxy - proxy_before;
        Ok(Measured { report, proxy_seconds, all_seconds: proxy_seconds + others - others_before })
    }

    /// Of the proxy, and of all the others.
    fn seconds(&self, load: &Load) -> Fallible<(f64, f64)> {
        let mut others = cpu_seconds(load.pid())?;
        for process in &self.backends {
            others += cpu_seconds(process.pid())?;
        }
        Ok((cpu_seconds(self.pid())?, others))
    }

    /// Waits until proxy and backends have finished what they were at.
    pub(crate) fn settle(&self) -> Fallible<()> {
        for process in &self.backends {
            settle(process.pid())?;
        }
        settle(self.pid())
    }

    /// Until each backend has been reached, several times over.
    fn warm_up(&mut self) -> Fallible<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(err) = load::try_it(self.proxy.addr) {
            if self.proxy.process.has_ended() {
                return Err(format!("it ended at once: {}", self.proxy.complaints()).into());
            } else if Instant::now() > deadline {
                return Err(format!("it does not serve: {err}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        for _ in 0..4 * BACKENDS {
            load::try_it(self.proxy.addr)?;
        }
        self.settle()
    }
}

fn start_backends(cores: &Cores, first: u8, count: u8) -> Fallible<(Process, Vec<SocketAddr>)> {
    let mut command = process::role(&cores.others, "backends")?;
    command.args([first, count].map(|number| number.to_string()));
    let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = process.child().stdout.take().ok_or("the backends have no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let addrs = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    Ok((process, addrs))
}
