//! The proxies: what there is to know of each, and one of them running.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;

use crate::Fallible;
use crate::commands::{self, Site};
use crate::process::Process;

/// Where goes what it says on stderr: it is of interest only if it fails.
const COMPLAINTS: &str = "stderr";

pub(crate) struct Contender {
    /// In the table.
    pub(crate) title: &'static str,
    /// By which it is chosen.
    pub(crate) name: &'static str,
    /// Of what is not part of this repository.
    pub(crate) version: Option<String>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Tinylb {
        program: PathBuf,
        flags: &'static [&'static str],
    },
    /// This program, in another role.
    Role(&'static str),
    Haproxy {
        program: PathBuf,
        splices: bool,
    },
    Nginx {
        program: PathBuf,
        module: Option<PathBuf>,
    },
    Pen {
        program: PathBuf,
    },
}

/// One of them, running.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) process: Process,
    dir: TempDir,
    remover: Option<Remover>,
}

/// How to remove backend 0 and close its connections.
enum Remover {
    Stdin,
    AdminSocket,
}

impl Contender {
    pub(crate) fn new(title: &'static str, name: &'static str, kind: Kind) -> Self {
        Self { title, name, version: None, kind }
    }

    /// Whether it is tinylb with settings that are not its defaults.
    pub(crate) fn is_variant(&self) -> bool {
        matches!(self.kind, Kind::Tinylb { flags, .. } if !flags.is_empty())
    }

    pub(crate) fn splices(&self) -> bool {
        matches!(self.kind, Kind::Haproxy { splices: true, .. })
    }

    pub(crate) fn can_remove(&self) -> bool {
        matches!(self.kind, Kind::Tinylb { .. } | Kind::Haproxy { .. })
    }

    /// It may not listen yet when this returns.
    pub(crate) fn start(
        &self,
        cores: &[usize],
        backends: &[SocketAddr],
        pairs: usize,
        removable: bool,
    ) -> Fallible<Proxy> {
        let dir = tempfile::tempdir()?;
        let site = Site { cores, addr: free_addr()?, backends, dir: dir.path(), pairs };
        let mut command = match &self.kind {
            Kind::Tinylb { program, flags } => commands::tinylb(&site, program, flags, removable)?,
            Kind::Role(role) => commands::role(&site, role)?,
            Kind::Haproxy { program, splices } => commands::haproxy(&site, program, *splices)?,
            Kind::Nginx { program, module } => commands::nginx(&site, program, module.as_deref())?,
            Kind::Pen { program } => commands::pen(&site, program)?,
        };
        let remover = match self.kind {
            Kind::Tinylb { .. } if removable => Some(Remover::Stdin),
            Kind::Haproxy { .. } => Some(Remover::AdminSocket),
            _ => None,
        };
        let talks = matches!(remover, Some(Remover::Stdin));
        let pipe = || if talks { Stdio::piped() } else { Stdio::null() };
        let complaints = fs::File::create(dir.path().join(COMPLAINTS))?;
        let process = Process::spawn(command.stdin(pipe()).stdout(pipe()).stderr(complaints))?;
        Ok(Proxy { addr: site.addr, process, dir, remover })
    }
}

impl Proxy {
    /// Asks for backend 0 to be removed and its connections to be closed.
    pub(crate) fn remove_backend(&mut self) -> Fallible<()> {
        match self.remover {
            Some(Remover::Stdin) => {
                let stdin =
                    self.process.child().stdin.as_mut().ok_or("no stdin to give a command on")?;
                Ok(stdin.write_all(b"remove b0\n")?)
            }
            Some(Remover::AdminSocket) => {
                let mut socket = UnixStream::connect(self.dir.path().join("admin"))?;
                socket.write_all(
                    b"set server peers/b0 state maint; shutdown sessions server peers/b0\n",
                )?;
                let mut answer = String::new();
                socket.read_to_string(&mut answer)?;
                if answer.trim().is_empty() { Ok(()) } else { Err(answer.into()) }
            }
            None => Err("it has no way to remove a backend".into()),
        }
    }

    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(self.dir.path().join(COMPLAINTS)).unwrap_or_default()
    }

    /// Checks that it has carried out its commands.
    pub(crate) fn check_answers(&mut self) -> Fallible<()> {
        let Some(Remover::Stdin) = self.remover else { return Ok(()) };
        let stdout =
            self.process.child().stdout.as_mut().ok_or("no stdout to read the answer from")?;
        let mut lines = BufReader::new(stdout).lines();
        let (greeting, answer) = (lines.next().transpose()?, lines.next().transpose()?);
        match answer {
            Some(answer) if answer.starts_with("ok ") => Ok(()),
            other => Err(format!("after {greeting:?} it said {other:?}").into()),
        }
    }
}

fn free_addr() -> Fallible<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
