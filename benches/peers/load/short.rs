//! Short connections: connect, send a message, read its echo, close first.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::connect;
use super::latency::Latencies;
use crate::Fallible;
use crate::wire::{self, MESSAGE, Message};

struct Short {
    stream: TcpStream,
    begun: Instant,
    sent: bool,
    answer: Message,
    received: usize,
}

pub(crate) fn run(target: SocketAddr, connections: usize, at_once: usize) -> Fallible<Latencies> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let order = connect::echo();
    let mut slots: Vec<Option<Short>> = Vec::new();
    let mut latencies = Latencies::begin(connections);
    let mut begun = at_once.min(connections);
    for slot in 0..begun {
        slots.push(Some(Short::begin(&poll, slot, target)?));
    }
    while latencies.count() < connections {
        poll.poll(&mut events, Some(Duration::from_secs(10)))?;
        if events.is_empty() {
            return Err(format!("nothing for 10 s, after {} connections", latencies.count()).into());
        }
        for event in &events {
            let slot = event.token().0;
            let Some(short) = &mut slots[slot] else { continue };
            if !short.ready(event, &order)? {
                continue;
            }
            latencies.add(short.begun.elapsed());
            // Closed before the next one is begun, as a client does that takes turns.
            slots[slot] = None;
            if begun < connections {
                slots[slot] = Some(Short::begin(&poll, slot, target)?);
                begun += 1;
            }
        }
    }
    Ok(latencies)
}

impl Short {
    fn begin(poll: &Poll, slot: usize, target: SocketAddr) -> io::Result<Self> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(target)?;
        poll.registry().register(
            &mut stream,
            Token(slot),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        Ok(Self { stream, begun, sent: false, answer: [0; MESSAGE], received: 0 })
    }

    /// Whether it has its answer.
    fn ready(&mut self, event: &Event, order: &Message) -> Fallible<bool> {
        if !self.sent && event.is_writable() {
            if let Some(err) = self.stream.take_error()? {
                return Err(err.into());
            }
            self.stream.write_all(order)?;
            self.sent = true;
        }
        if self.sent && event.is_readable() {
            match self.stream.read(&mut self.answer[self.received..]) {
                Ok(0) => return Err("closed before its answer".into()),
                Ok(read) => self.received += read,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Err(err.into()),
            }
        }
        if self.received < MESSAGE {
            return Ok(false);
        }
        wire::answered_by(order, &self.answer)
            .ok_or("what came back is not the backend's answer")?;
        Ok(true)
    }
}
