//! tinylb beside other proxies, a hand-written loop and a bare relay, each a process of its own,
//! measured in turns.
//!
//! `cargo bench -p tinylb-benches --bench peers -- --help` tells what can be chosen.
//!
//! ```text
//! run.rs            a run: options, rounds, and what is made of them
//!   report.rs  chart.rs  results.rs  machine.rs
//! scenarios.rs      what is measured, and how
//!   rig.rs            a proxy with backends behind it; lab.rs: what there is to measure with
//!   contenders.rs     the proxies; installed.rs: which there are, commands.rs: how they are started
//!   measure.rs        CPU time, memory, system calls
//! load/             the clients: a process that works when told to
//! backend.rs        the backends: another
//!   transfer.rs  wire.rs
//! process.rs        processes that are bound to cores, and end with the run
//! network.rs        a network of the run's own
//! ```

mod backend;
mod chart;
mod commands;
mod contenders;
mod installed;
mod lab;
mod load;
mod machine;
mod measure;
mod network;
mod process;
mod report;
mod results;
mod rig;
mod run;
mod scenarios;
mod transfer;
mod wire;

use std::error::Error;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};

use clap::{Parser, Subcommand};

type Fallible<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(
    about = "tinylb beside other proxies",
    bin_name = "cargo bench -p tinylb-benches --bench peers --"
)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: run::Options,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// What this program does in the processes that it starts.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// Bind to cores and turn into another program
    #[command(hide = true)]
    Become {
        cores: String,
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    #[command(hide = true)]
    Backends { first: u8, count: u8 },
    #[command(hide = true)]
    Load {
        target: SocketAddr,
        #[command(subcommand)]
        work: load::Work,
    },
    #[command(hide = true)]
    BareRelay { addr: SocketAddr, backends: Vec<SocketAddr> },
    #[command(hide = true)]
    TokioTwin { addr: SocketAddr, backends: Vec<SocketAddr> },
}

fn main() -> Fallible<()> {
    let args = Args::parse();
    match args.role {
        Some(role) => role.play(),
        None if args.bench => run::run(&args.options),
        // cargo test --benches: there is nothing to test that a run would not take minutes for.
        None => {
            println!(
                "use cargo bench -p tinylb-benches --bench peers, or with -- --quick for a short one"
            );
            Ok(())
        }
    }
}

impl Role {
    fn play(self) -> Fallible<()> {
        match self {
            Self::Become { cores, program, args } => process::become_other(&cores, &program, &args),
            Self::Backends { first, count } => backend::serve(first, count),
            Self::Load { target, work } => load::work(target, work),
            Self::BareRelay { addr, backends } => {
                Ok(tinylb_benches::bare_relay::serve(TcpListener::bind(addr)?, &backends)?)
            }
            Self::TokioTwin { addr, backends } => {
                Ok(tinylb_benches::tokio_twin::serve(TcpListener::bind(addr)?, &backends)?)
            }
        }
    }
}
