//! Round trips: a message to and fro on each of many open connections, as often as they come back.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::connect::{self, Connection};
use super::latency::Latencies;
use crate::Fallible;
use crate::wire::MESSAGE;

pub(crate) struct RoundTrips {
    poll: Poll,
    speakers: Vec<Speaker>,
}

/// One connection, with at most one message under way.
pub(crate) struct Speaker {
    connection: Connection,
    sent: Instant,
    received: usize,
}

impl RoundTrips {
    pub(crate) fn open(
        target: SocketAddr,
        connections: usize,
        backend: Option<u8>,
    ) -> Fallible<Self> {
        let poll = Poll::new()?;
        let mut speakers = Vec::new();
        for connection in connect::open_to(target, connections, connect::echo(), backend)? {
            let mut speaker = Speaker::new(connection);
            speaker.register(&poll, Token(speakers.len()))?;
            speakers.push(speaker);
        }
        Ok(Self { poll, speakers })
    }

    /// This many messages in all, unless the time is up before.
    pub(crate) fn run(&mut self, messages: usize, limit: Duration) -> Fallible<Latencies> {
        let end = Instant::now() + limit;
        let mut events = Events::with_capacity(1024);
        let mut latencies = Latencies::begin(messages);
        let mut sent = messages.min(self.speakers.len());
        for speaker in &mut self.speakers[..sent] {
            speaker.say()?;
        }
        while latencies.count() < messages && Instant::now() < end {
            self.poll.poll(&mut events, Some(Duration::from_secs(10)))?;
            if events.is_empty() {
                return Err(
                    format!("nothing for 10 s, after {} round trips", latencies.count()).into()
                );
            }
            for event in events.iter().filter(|event| event.is_readable()) {
                let speaker = &mut self.speakers[event.token().0];
                let Some(took) = speaker.hear()? else { continue };
                latencies.add(took);
                if sent < messages {
                    speaker.say()?;
                    sent += 1;
                }
            }
        }
        Ok(latencies)
    }
}

const WORDS: [u8; MESSAGE] = [0xa5; MESSAGE];

impl Speaker {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, sent: Instant::now(), received: 0 }
    }

    pub(crate) fn register(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        poll.registry().register(&mut self.connection.stream, token, Interest::READABLE)
    }

    pub(crate) fn say(&mut self) -> io::Result<()> {
        self.sent = Instant::now();
        self.connection.stream.write_all(&WORDS)
    }

    /// How long the message took, if all of it is back.
    pub(crate) fn hear(&mut self) -> Fallible<Option<Duration>> {
        let mut heard = [0; 2 * MESSAGE];
        let read = match self.connection.stream.read(&mut heard) {
            Ok(0) => return Err("closed between messages".into()),
            Ok(read) => read,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(err) => return Err(err.into()),
        };
        self.received += read;
        if self.received > MESSAGE || heard[..read] != WORDS[..read] {
            return Err("what came back is not what was sent".into());
        }
        if self.received < MESSAGE {
            return Ok(None);
        }
        self.received = 0;
        Ok(Some(self.sent.elapsed()))
    }
}
