//! Bulk transfers, and those of clients that do not read.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use super::connect::{self, Connection};
use crate::Fallible;
use crate::transfer::{CHUNK, Transfer};
use crate::wire::Order;

pub(crate) struct Bulk {
    poll: Poll,
    transfers: Vec<(Connection, Transfer)>,
    bytes: u64,
}

impl Bulk {
    pub(crate) fn open(
        target: SocketAddr,
        connections: usize,
        upload: u64,
        download: u64,
        backend: Option<u8>,
    ) -> Fallible<Self> {
        let poll = Poll::new()?;
        let order = Order::Transfer { upload, download }.encode();
        let mut transfers = Vec::new();
        for mut connection in connect::open_to(target, connections, order, backend)? {
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut connection.stream, Token(transfers.len()), interest)?;
            transfers.push((connection, Transfer::of_client(upload, download)));
        }
        Ok(Self { poll, transfers, bytes: (upload + download) * connections as u64 })
    }

    pub(crate) fn run(&mut self) -> Fallible<Value> {
        let mut events = Events::with_capacity(64);
        let mut scratch = vec![0; CHUNK];
        let begun = Instant::now();
        loop {
            let mut busy = false;
            let mut under_way = 0;
            for (connection, transfer) in &mut self.transfers {
                transfer.step(&mut connection.stream, &mut scratch)?;
                busy |= transfer.is_ready();
                under_way += usize::from(!transfer.is_done());
            }
            if under_way == 0 {
                return Ok(
                    json!({ "gb_per_second": self.bytes as f64 / 1e9 / begun.elapsed().as_secs_f64() }),
                );
            }
            let timeout = if busy { Duration::ZERO } else { Duration::from_secs(10) };
            self.poll.poll(&mut events, Some(timeout))?;
            if events.is_empty() && !busy {
                return Err(
                    format!("nothing for 10 s, with {under_way} transfers under way").into()
                );
            }
            for event in &events {
                self.transfers[event.token().0].1.note(event);
            }
        }
    }
}

/// More than the proxy and all kernel buffers on the way hold.
const FLOOD: u64 = 1 << 30;

pub(crate) struct Stalled(Vec<Connection>);

impl Stalled {
    pub(crate) fn open(target: SocketAddr, connections: usize) -> Fallible<Self> {
        let order = Order::Transfer { upload: 1, download: FLOOD }.encode();
        connect::open(target, connections, order).map(Self)
    }

    pub(crate) fn begin(&mut self) -> Fallible<Value> {
        for connection in &mut self.0 {
            connection.stream.write_all(b"!")?;
        }
        Ok(Value::Null)
    }
}
