//! A balancer to run and script: `tinylb --help` says how.
//!
//! To follow a start, read [`balance`]. After it this thread waits for the end. The balancer has a
//! thread, and one each looks after signals, stdout and commands, the backends file, and stderr.
//! Names are looked up for commands by their thread, and for the file by threads of their own.

mod args;
mod bind;
mod commands;
mod file;
mod listen_addr;
mod running_set;
mod signals;
mod sources;
mod stats;
mod stderr;
mod stdio;
mod targets;
mod values;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;

use clap::Parser;

use crate::args::Args;
use crate::file::BackendsFile;
use crate::running_set::RunningSet;
use crate::sources::Sources;
use crate::targets::{Backends, Target};

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(err) = stderr::start(args.log) {
        // `eprintln!` would panic if nobody reads it.
        let _ = writeln!(io::stderr(), "tinylb: cannot start a thread: {err}");
        return ExitCode::FAILURE;
    }
    let status = match balance(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (status, message) = match failure {
                Failure::Usage(message) => (2, message),
                Failure::Run(message) => (1, message),
            };
            stderr::complain(&message);
            ExitCode::from(status)
        }
    };
    stderr::flush();
    status
}

/// Why there is no balancer, or none any more.
enum Failure {
    /// It was asked for what makes no sense.
    Usage(String),
    /// It could not be done here and now.
    Run(String),
}

/// Runs a balancer from its start to its orderly end.
fn balance(args: &Args) -> Result<(), Failure> {
    raise_descriptor_limit();
    let (sources, backends_file) = first_sources(args)?;
    // Caught only now: the lookups before may take long, and a signal ends them as any program.
    let caught =
        signals::catch().map_err(|err| Failure::Run(format!("cannot catch signals: {err}")))?;
    // The socket file is removed when this goes, after the balancer has ended.
    let (listener, _socket_file) = bind::bind(&args.listen)
        .map_err(|err| Failure::Run(format!("cannot listen on {}: {err}", args.listen)))?;
    let server = args.settings().build(listener)?;
    let address = server.local_addr().clone();
    let running = Arc::new(RunningSet::new(server.control(), sources));
    let first_update = running.install()?;
    let balancer = server.spawn()?;
    first_update.wait()?;

    let (rereads, reread_requests) = mpsc::channel();
    let (control, drain) = (balancer.control(), args.drain);
    spawn("signals", move || signals::handle(caught, &control, drain, &rereads))?;
    match backends_file {
        Some(file) => {
            let running = running.clone();
            spawn("backends file", move || file.watch(&running, &reread_requests))?;
        }
        None => drop(reread_requests), // by which SIGHUP is known to be in vain
    }
    // This thread writes nothing: it ends the process, even if nobody reads stdout.
    let is_controlled = args.control;
    spawn("commands", move || {
        commands::say(&format!("listening on {address}"));
        if is_controlled {
            commands::run_stdin(&running);
        }
    })?;
    balancer.join()?;
    Ok(())
}

/// The backends of the arguments, and those of the file.
fn first_sources(args: &Args) -> Result<(Sources, Option<BackendsFile>), Failure> {
    let given = Backends::keyed(args.backends.iter().cloned()).map_err(Failure::Usage)?;
    let given = given.resolve().map_err(Failure::Run)?;
    let sources = Sources::of(given);
    let Some(path) = &args.backends_file else { return Ok((sources, None)) };
    let (file, sources) =
        BackendsFile::open(path, Arc::new(Target::resolve), &sources).map_err(Failure::Run)?;
    Ok((sources, Some(file)))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    match thread::Builder::new().name(name.to_owned()).spawn(run) {
        Ok(_) => Ok(()), // it ends with the process
        Err(err) => Err(Failure::Run(format!("cannot start a thread: {err}"))),
    }
}

/// Raises the soft limit of descriptors to the hard one. Each client takes two, and the usual soft
/// limit is for programs that open a few files.
fn raise_descriptor_limit() {
    let raised = rlimit::Resource::NOFILE.get().and_then(|(soft, hard)| {
        if soft < hard { rlimit::Resource::NOFILE.set(hard, hard) } else { Ok(()) }
    });
    if let Err(err) = raised {
        log::warn!("cannot raise the limit of descriptors: {err}");
    }
}

impl From<tinylb::Error> for Failure {
    fn from(err: tinylb::Error) -> Self {
        match err {
            // The builder's settings have the names of the options.
            tinylb::Error::Setting { setting, problem } => {
                Self::Usage(format!("--{} {problem}", setting.replace('_', "-")))
            }
            err => Self::Run(match err.source() {
                Some(source) => format!("{err}: {source}"),
                None => err.to_string(),
            }),
        }
    }
}
