//! The clients: a process that opens connections, says so, works when told to, and reports.

mod bulk;
mod connect;
mod handle;
mod latency;
mod messages;
mod short;
mod watch;

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use crate::Fallible;
pub(crate) use handle::Load;

/// What there is to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Work {
    /// Connect, send a message, read its echo, close
    Short { connections: usize, at_once: usize },
    /// Messages back and forth on open connections, to one backend if one is named, for so long at
    /// most
    RoundTrips {
        connections: usize,
        messages: usize,
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        #[arg(long)]
        backend: Option<u8>,
    },
    /// So many bytes each way on each connection
    Bulk {
        connections: usize,
        upload: u64,
        download: u64,
        #[arg(long)]
        backend: Option<u8>,
    },
    /// Open connections and leave them alone
    Hold { connections: usize },
    /// Ask each connection for more than anybody buffers, and read none of it
    Stall { connections: usize },
    /// See the connections to backend 0 closed, while one of the others is served
    Watch { victims: usize, others: usize },
}

/// The process, from its arguments to its end.
pub(crate) fn work(target: SocketAddr, work: Work) -> Fallible<()> {
    match work {
        Work::Short { connections, at_once } => {
            when_told(|| Ok(short::run(target, connections, at_once)?.report()))
        }
        Work::RoundTrips { connections, messages, seconds, backend } => {
            let mut trips = messages::RoundTrips::open(target, connections, backend)?;
            when_told(|| Ok(trips.run(messages, Duration::from_secs(seconds))?.report()))
        }
        Work::Bulk { connections, upload, download, backend } => {
            let mut bulk = bulk::Bulk::open(target, connections, upload, download, backend)?;
            when_told(|| bulk.run())
        }
        Work::Hold { connections } => {
            let _held = connect::open(target, connections, connect::echo())?;
            when_told(|| Ok(Value::Null))
        }
        Work::Stall { connections } => {
            let mut stalled = bulk::Stalled::open(target, connections)?;
            when_told(|| stalled.begin())
        }
        Work::Watch { victims, others } => {
            let mut watch = watch::Watch::open(target, victims, others)?;
            when_told(|| watch.run())
        }
    }
}

/// Says that all is prepared, works on "go", reports, and keeps the connections until stdin ends.
fn when_told(run: impl FnOnce() -> Fallible<Value>) -> Fallible<()> {
    let mut orders = io::stdin().lock().lines();
    println!("ready");
    if orders.next().transpose()?.is_some() {
        println!("{}", run()?);
        orders.next().transpose()?;
    }
    Ok(())
}

/// One connection, answered and closed again.
pub(crate) fn try_it(target: SocketAddr) -> Fallible<()> {
    connect::open_one(target, connect::echo()).map(drop)
}
