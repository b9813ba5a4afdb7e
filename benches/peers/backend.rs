//! The backends: one process, one loop, a listener for each, doing what the first message on a
//! connection asks for.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::wire::{self, MESSAGE, Order};
use crate::{Fallible, transfer};
use transfer::Transfer;

/// Serves for ever, once it has told its addresses in one line on stdout. The backends are numbered
/// from `first`.
pub(crate) fn serve(first: u8, count: u8) -> Fallible<()> {
    let poll = Poll::new()?;
    let mut listeners = Vec::new();
    for index in 0..usize::from(count) {
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
        listeners.push(listener);
    }
    let addrs = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect::<io::Result<Vec<_>>>()?;
    println!("{}", addrs.join(" "));
    let connections = Slab::new();
    let mut server = Server {
        poll,
        first,
        listeners,
        connections,
        busy: VecDeque::new(),
        scratch: vec![0; transfer::CHUNK],
    };
    let mut events = Events::with_capacity(1024);
    loop {
        server.turn(&mut events)?;
    }
}

struct Server {
    poll: Poll,
    first: u8,
    listeners: Vec<TcpListener>,
    connections: Slab<Connection>,
    /// Transfers that could go on at once.
    busy: VecDeque<usize>,
    scratch: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    backend: u8,
    work: Work,
    is_busy: bool,
}

enum Work {
    Ordering { message: [u8; MESSAGE], received: usize },
    Echo,
    Transfer(Transfer),
}

impl Server {
    fn turn(&mut self, events: &mut Events) -> Fallible<()> {
        let timeout = (!self.busy.is_empty()).then_some(std::time::Duration::ZERO);
        self.poll.poll(events, timeout)?;
        for event in events.iter() {
            match event.token().0 {
                index if index < self.listeners.len() => self.accept(index)?,
                token => self.ready(token - self.listeners.len(), event),
            }
        }
        // One step each, so that all transfers go on side by side.
        for _ in 0..self.busy.len() {
            if let Some(key) = self.busy.pop_front() {
                self.go_on(key);
            }
        }
        Ok(())
    }

    fn accept(&mut self, index: usize) -> Fallible<()> {
        loop {
            let mut stream = match self.listeners[index].accept() {
                Ok((stream, _)) => stream,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(err) => return Err(format!("the backend cannot accept: {err}").into()),
            };
            stream.set_nodelay(true)?;
            let slot = self.connections.vacant_entry();
            let token = Token(slot.key() + self.listeners.len());
            self.poll.registry().register(
                &mut stream,
                token,
                Interest::READABLE | Interest::WRITABLE,
            )?;
            let work = Work::Ordering { message: [0; MESSAGE], received: 0 };
            slot.insert(Connection {
                stream,
                backend: self.first + index as u8,
                work,
                is_busy: false,
            });
        }
    }

    fn ready(&mut self, key: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Work::Transfer(transfer) = &mut connection.work {
            transfer.note(event);
        } else if event.is_readable()
            && connection.talk(&mut self.scratch, event.is_read_closed()).is_err()
        {
            self.connections.remove(key);
            return;
        }
        let Work::Transfer(transfer) = &connection.work else { return };
        if transfer.is_ready() && !connection.is_busy {
            connection.is_busy = true;
            self.busy.push_back(key);
        }
    }

    fn go_on(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.is_busy = false;
        let Work::Transfer(transfer) = &mut connection.work else { return };
        if transfer.step(&mut connection.stream, &mut self.scratch).is_err() {
            self.connections.remove(key);
        } else if transfer.is_ready() {
            connection.is_busy = true;
            self.busy.push_back(key);
        }
    }
}

impl Connection {
    /// Takes the order, or echoes. The end of the stream is an error.
    fn talk(&mut self, scratch: &mut [u8], until_blocked: bool) -> io::Result<()> {
        loop {
            let room = if let Work::Ordering { received, .. } = self.work {
                MESSAGE - received
            } else {
                4096
            };
            let read = match self.stream.read(&mut scratch[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(err) => return Err(err),
            };
            self.heard(&scratch[..read])?;
            // Nothing follows an order before its answer.
            let drained = read < room || room <= MESSAGE;
            if matches!(self.work, Work::Transfer(_)) || (drained && !until_blocked) {
                return Ok(());
            }
        }
    }

    fn heard(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Work::Ordering { message, received } = &mut self.work else {
            return self.stream.write_all(bytes);
        };
        message[*received..*received + bytes.len()].copy_from_slice(bytes);
        *received += bytes.len();
        if *received < MESSAGE {
            return Ok(());
        }
        let order = Order::decode(message).ok_or(io::ErrorKind::InvalidData)?;
        self.stream.write_all(&wire::answer(message, self.backend))?;
        self.work = match order {
            Order::Echo => Work::Echo,
            Order::Transfer { upload, download } => {
                Work::Transfer(Transfer::of_backend(upload, download))
            }
        };
        Ok(())
    }
}
