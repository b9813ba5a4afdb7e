//! Sees connections closed from the other end, while one to another backend is served.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use super::connect::{self, Connection};
use super::messages::Speaker;
use crate::Fallible;
use crate::measure::monotonic_nanos;

const SPEAKER: Token = Token(usize::MAX);

pub(crate) struct Watch {
    poll: Poll,
    victims: Vec<Option<Connection>>,
    /// They are not touched; that they stay open is for the proxy to see to.
    _others: Vec<Connection>,
    speaker: Speaker,
}

impl Watch {
    /// Connections to backend 0 and to others, as many as asked for; surplus ones are closed again.
    pub(crate) fn open(target: SocketAddr, victims: usize, others: usize) -> Fallible<Self> {
        let poll = Poll::new()?;
        let (mut to_victim, mut to_others) = (Vec::new(), Vec::new());
        while to_victim.len() < victims || to_others.len() < others {
            let connection = connect::open_one(target, connect::echo())?;
            if connection.backend == 0 && to_victim.len() < victims {
                to_victim.push(connection);
            } else if connection.backend != 0 && to_others.len() < others {
                to_others.push(connection);
            }
        }
        for (index, connection) in to_victim.iter_mut().enumerate() {
            poll.registry().register(&mut connection.stream, Token(index), Interest::READABLE)?;
        }
        let mut speaker = Speaker::new(to_others.pop().ok_or("there must be others")?);
        speaker.register(&poll, SPEAKER)?;
        Ok(Self {
            poll,
            victims: to_victim.into_iter().map(Some).collect(),
            _others: to_others,
            speaker,
        })
    }

    pub(crate) fn run(&mut self) -> Fallible<Value> {
        let mut events = Events::with_capacity(1024);
        let mut left = self.victims.len();
        let mut worst = Duration::ZERO;
        println!("watching");
        self.speaker.say()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut last_closed = 0;
        // The message that is out when the last is closed has waited for that, so its answer counts
        // too.
        let mut is_answered = false;
        while left > 0 || !is_answered {
            if Instant::now() > deadline {
                return Err(format!("{left} connections still open after 10 s").into());
            }
            self.poll.poll(&mut events, Some(Duration::from_secs(10)))?;
            for event in &events {
                if event.token() == SPEAKER {
                    if let Some(took) = self.speaker.hear()? {
                        worst = worst.max(took);
                        is_answered = left == 0;
                        if left > 0 {
                            self.speaker.say()?;
                        }
                    }
                } else if self.is_closed(event.token().0)? {
                    self.victims[event.token().0] = None;
                    left -= 1;
                    if left == 0 {
                        last_closed = monotonic_nanos()?;
                    }
                }
            }
        }
        Ok(json!({ "last_closed": last_closed, "worst_us": worst.as_secs_f64() * 1e6 }))
    }

    fn is_closed(&mut self, index: usize) -> Fallible<bool> {
        let Some(victim) = &mut self.victims[index] else { return Ok(false) };
        match victim.stream.read(&mut [0; 64]) {
            Ok(0) => Ok(true),
            Ok(_) => Err("a byte on a connection that was to be closed".into()),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(err) => Err(err.into()),
        }
    }
}
