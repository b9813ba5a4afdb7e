//! The proxies: which there are here, and one of them running.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Fallible;
use crate::commands::{self, Site};
use crate::process::Process;

/// What it says on stderr, which is of interest only if it fails.
const COMPLAINTS: &str = "stderr";

pub(crate) struct Contender {
    /// In the table.
    pub(crate) title: &'static str,
    /// By which it is chosen.
    pub(crate) name: &'static str,
    /// Of what is not part of this repository.
    pub(crate) version: Option<String>,
    kind: Kind,
}

enum Kind {
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
    fn new(title: &'static str, name: &'static str, kind: Kind) -> Self {
        Self { title, name, version: None, kind }
    }

    /// Has its settings, if not its subject, from another contender.
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
                let stdin = self.process.child().stdin.as_mut().ok_or("no stdin to give a command on")?;
                Ok(stdin.write_all(b"remove b0\n")?)
            }
            Some(Remover::AdminSocket) => {
                let mut socket = UnixStream::connect(self.dir.path().join("admin"))?;
                socket.write_all(b"set server peers/b0 state maint; shutdown sessions server peers/b0\n")?;
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

    /// Whatever it answered to commands must be that it obeyed.
    pub(crate) fn check_answers(&mut self) -> Fallible<()> {
        let Some(Remover::Stdin) = self.remover else { return Ok(()) };
        let stdout = self.process.child().stdout.as_mut().ok_or("no stdout to read the answer from")?;
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

/// All that can be run here, in the order of the table; why others cannot is told.
pub(crate) fn find(tinylb: &Path) -> Vec<Contender> {
    let mut found = vec![
        Contender::new("tinylb", "tinylb", Kind::Tinylb { program: tinylb.to_owned(), flags: &[] }),
        Contender::new("bare relay", "bare-relay", Kind::Role("bare-relay")),
        Contender::new("tokio twin", "tokio-twin", Kind::Role("tokio-twin")),
    ];
    found.extend(find_haproxy());
    found.extend(find_nginx());
    found.extend(find_pen());
    let mut variant = |title, name, flags| {
        found.push(Contender::new(title, name, Kind::Tinylb { program: tinylb.to_owned(), flags }));
    };
    variant("tinylb --no-keepalive", "no-keepalive", &["--no-keepalive"]);
    variant("tinylb --idle-timeout 3600", "idle-timeout", &["--idle-timeout", "3600"]);
    found
}

fn find_haproxy() -> Vec<Contender> {
    let Some(program) = installed("haproxy") else { return Vec::new() };
    // "HAProxy version 2.6.12-1 2023/12/16 - https://haproxy.org/"
    let said = output(&program, &["-v"]);
    let version = said.split_whitespace().nth(2).map(|version| format!("HAProxy {version}"));
    [("HAProxy", "haproxy", false), ("HAProxy, splicing", "haproxy-splice", true)]
        .map(|(title, name, splices)| Contender {
            version: version.clone(),
            ..Contender::new(title, name, Kind::Haproxy { program: program.clone(), splices })
        })
        .into()
}

fn find_nginx() -> Option<Contender> {
    let program = installed("nginx")?;
    let said = output(&program, &["-V"]);
    let words: Vec<_> = said.split_whitespace().collect();
    let module = if words.contains(&"--with-stream") {
        None
    } else {
        let dir = words.iter().find_map(|word| word.strip_prefix("--modules-path="));
        let module = dir.map(|dir| Path::new(dir).join("ngx_stream_module.so")).filter(|file| file.is_file());
        if module.is_none() {
            eprintln!("nginx has no stream module here and is left out");
        }
        Some(module?)
    };
    let version = words.iter().find_map(|word| word.strip_prefix("nginx/"));
    let version = version.map(|version| format!("nginx {version}"));
    Some(Contender { version, ..Contender::new("nginx stream", "nginx", Kind::Nginx { program, module }) })
}

fn find_pen() -> Option<Contender> {
    let program = installed("pen")?;
    // It does not tell its version, but who installed it may know.
    let said = output(Path::new("dpkg-query"), &["-W", "-f", "${Version}", "pen"]);
    let version = said.starts_with(char::is_numeric).then(|| format!("pen {said}"));
    Some(Contender { version, ..Contender::new("pen", "pen", Kind::Pen { program }) })
}

fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where servers live is not in everybody's PATH.
    let also = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let program = std::env::split_paths(&path).chain(also).map(|dir| dir.join(name)).find(|file| file.is_file());
    if program.is_none() {
        eprintln!("{name} is not installed and is left out");
    }
    program
}

/// All that it says, on stdout and then on stderr.
fn output(program: &Path, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).stdin(Stdio::null()).output() else { return String::new() };
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}
