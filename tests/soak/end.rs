//! One end of a connection: does its part of the plan, checks each byte that it gets, and reports.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::pattern::Pattern;
use crate::plan::{Pace, Step};
use crate::random::mix;
use crate::wire::{Kind, Wanted, Wire};
use tinylb_tests::PATIENCE;

/// The first bytes of a client that is announced: the number of its connection, and what proves it.
pub(crate) const HEADER: usize = 16;

pub(crate) fn header(seed: u64, connection: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&connection.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(seed, !connection).to_le_bytes());
    bytes
}

/// How an end came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did all that it had to, and saw the other's stream end in order, after the last of its bytes.
    Done,
    /// It left as its part has it, by a reset or by closing.
    Left,
    Cut(Cut),
    /// What must not happen.
    Failed(String),
}

/// What a cut looked like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Reading failed.
    Reset,
    /// The stream ended too early.
    Closed,
    /// Writing failed, or ending the stream. An end of stream that is read after it is none.
    Broken,
    /// The connection did not even come about.
    Unconnected,
}

/// What an end saw.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) kind: Kind,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) outcome: Outcome,
    pub(crate) at: Instant,
}

impl Report {
    pub(crate) fn unconnected(kind: Kind) -> Self {
        Self {
            kind,
            sent: 0,
            received: 0,
            outcome: Outcome::Cut(Cut::Unconnected),
            at: Instant::now(),
        }
    }
}

/// One end at work.
pub(crate) struct End<'a> {
    wire: Wire,
    sends: Pattern,
    receives: Pattern,
    buffer: &'a mut [u8],
    /// Bytes of the header, which do not belong to the pattern.
    header_sent: u64,
    header_received: u64,
    sent: u64,
    received: u64,
    /// It has noticed that the connection is broken, and pauses no more.
    is_in_a_hurry: bool,
}

type Result<T = ()> = std::result::Result<T, Outcome>;

impl<'a> End<'a> {
    pub(crate) fn client(
        wire: Wire,
        sends: Pattern,
        receives: Pattern,
        buffer: &'a mut [u8],
    ) -> Self {
        Self {
            wire,
            sends,
            receives,
            buffer,
            header_sent: 0,
            header_received: 0,
            sent: 0,
            received: 0,
            is_in_a_hurry: false,
        }
    }

    /// The end of a backend that has read the header.
    pub(crate) fn backend(
        wire: Wire,
        sends: Pattern,
        receives: Pattern,
        buffer: &'a mut [u8],
    ) -> Self {
        Self { header_received: HEADER as u64, ..Self::client(wire, sends, receives, buffer) }
    }

    /// Does the steps, after this header if there is one.
    pub(crate) fn run(mut self, header: Option<&[u8]>, steps: &[Step]) -> Report {
        let outcome = match self.run_through(header, steps) {
            Ok(()) => Outcome::Done,
            Err(Outcome::Cut(Cut::Broken)) => self.read_what_is_left(),
            Err(outcome) => outcome,
        };
        let (sent, received) = (self.header_sent + self.sent, self.header_received + self.received);
        let (kind, at) = (self.wire.kind, Instant::now());
        drop(self.wire); // before anybody takes it for over
        Report { kind, sent, received, outcome, at }
    }

    fn run_through(&mut self, header: Option<&[u8]>, steps: &[Step]) -> Result {
        if let Some(header) = header {
            self.announce(header)?;
        }
        for step in steps {
            match *step {
                Step::Move { send, receive, pace } => self.pump(send, receive, pace)?,
                Step::End => self.wire.end().map_err(|err| broken(&err))?,
                Step::ExpectEnd => self.expect_end()?,
                Step::Rest(time) => self.rest(time),
                Step::Reset => {
                    self.wire
                        .prepare_reset()
                        .map_err(|err| Outcome::Failed(format!("cannot reset: {err}")))?;
                    return Err(Outcome::Left);
                }
                Step::Vanish => return Err(Outcome::Left),
            }
        }
        Ok(())
    }

    fn announce(&mut self, header: &[u8]) -> Result {
        while self.header_sent < header.len() as u64 {
            match self.wire.write(&header[self.header_sent as usize..]) {
                Ok(len) => self.header_sent += len as u64,
                Err(err) if is_transient(&err) => self.wait(false, true)?,
                Err(err) => return Err(broken(&err)),
            }
        }
        Ok(())
    }

    /// Moves so many bytes each way. While it only sends, it does not read, and the other way round.
    fn pump(&mut self, send: u64, receive: u64, pace: Pace) -> Result {
        let (mut to_send, mut to_receive) = (send, receive);
        while to_send > 0 || to_receive > 0 {
            let sent = if to_send > 0 { self.send_some(to_send, pace.piece)? } else { 0 };
            let received =
                if to_receive > 0 { self.receive_some(to_receive, pace.piece)? } else { 0 };
            (to_send, to_receive) = (to_send - sent, to_receive - received);
            if sent + received == 0 {
                self.wait(to_receive > 0, to_send > 0)?;
            } else if to_send > 0 || to_receive > 0 {
                self.rest(pace.pause);
            }
        }
        Ok(())
    }

    fn send_some(&mut self, most: u64, piece: usize) -> Result<u64> {
        let len = (self.buffer.len() as u64).min(most).min(piece as u64) as usize;
        self.sends.fill(&mut self.buffer[..len], self.sent);
        match self.wire.write(&self.buffer[..len]) {
            Ok(len) => {
                self.sent += len as u64;
                Ok(len as u64)
            }
            Err(err) if is_transient(&err) => Ok(0),
            Err(err) => Err(broken(&err)),
        }
    }

    fn receive_some(&mut self, most: u64, piece: usize) -> Result<u64> {
        let len = (self.buffer.len() as u64).min(most).min(piece as u64) as usize;
        match self.wire.read(&mut self.buffer[..len]) {
            Ok(0) => Err(Outcome::Cut(Cut::Closed)),
            Ok(len) => self.check(len).map(|()| len as u64),
            Err(err) if is_transient(&err) => Ok(0),
            Err(err) if err.kind() == ErrorKind::ConnectionReset => Err(Outcome::Cut(Cut::Reset)),
            // What the kernel says when the reset came after the other's end of stream.
            Err(err) if err.kind() == ErrorKind::BrokenPipe => Err(Outcome::Cut(Cut::Reset)),
            Err(err) => Err(Outcome::Failed(format!("cannot read: {err}"))),
        }
    }

    /// Compares so many bytes at the front of the buffer with what was to come.
    fn check(&mut self, len: usize) -> Result {
        if let Some(index) = self.receives.first_wrong(&self.buffer[..len], self.received) {
            return Err(Outcome::Failed(format!(
                "byte {} is not the one that was sent",
                self.received + index as u64
            )));
        }
        self.received += len as u64;
        Ok(())
    }

    fn expect_end(&mut self) -> Result {
        loop {
            match self.wire.read(&mut self.buffer[..1]) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(Outcome::Failed("more bytes came than were sent".to_owned())),
                Err(err) if is_transient(&err) => self.wait(true, false)?,
                Err(err)
                    if matches!(err.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
                {
                    return Err(Outcome::Cut(Cut::Reset));
                }
                Err(err) => return Err(Outcome::Failed(format!("cannot read: {err}"))),
            }
        }
    }

    /// Does nothing for so long, or until the connection is broken.
    fn rest(&mut self, time: Duration) {
        if !self.is_in_a_hurry && !time.is_zero() {
            self.is_in_a_hurry =
                self.wire.wait(Wanted { read: false, write: false }, Instant::now() + time);
        }
    }

    fn wait(&self, read: bool, write: bool) -> Result {
        let until = Instant::now() + PATIENCE;
        self.wire.wait(Wanted { read, write }, until);
        match Instant::now() < until {
            true => Ok(()),
            false => Err(Outcome::Failed(format!(
                "nothing has happened for {PATIENCE:?}, {}",
                self.progress()
            ))),
        }
    }

    fn progress(&self) -> String {
        format!("after {} bytes sent and {} received", self.header_sent + self.sent, self.received)
    }

    /// A write has failed; what had come until then still has to be right.
    fn read_what_is_left(&mut self) -> Outcome {
        loop {
            match self.receive_some(u64::MAX, usize::MAX) {
                Err(Outcome::Failed(failure)) => return Outcome::Failed(failure),
                Ok(0) | Err(_) => return Outcome::Cut(Cut::Broken),
                Ok(_) => {}
            }
        }
    }
}

/// Reads the number of the connection that comes. Nothing but zero bytes of it may come before an end.
pub(crate) fn read_header(wire: &Wire, seed: u64) -> Result<u64> {
    let mut bytes = [0; HEADER];
    let mut len = 0;
    let until = Instant::now() + PATIENCE;
    while len < HEADER {
        match wire.read(&mut bytes[len..]) {
            Ok(0) if len > 0 && wire.kind.sees_resets() => {
                return Err(Outcome::Failed(format!(
                    "a stream ended as if in order after {len} bytes of its header"
                )));
            }
            Ok(0) => return Err(Outcome::Cut(Cut::Closed)),
            Ok(more) => len += more,
            Err(err) if is_transient(&err) && Instant::now() < until => {
                wire.wait(Wanted { read: true, write: false }, until);
            }
            Err(err) if is_transient(&err) => {
                return Err(Outcome::Failed("no header and no end has come".to_owned()));
            }
            Err(_) => return Err(Outcome::Cut(Cut::Reset)),
        }
    }
    let connection = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    match bytes == header(seed, connection) {
        true => Ok(connection),
        false => Err(Outcome::Failed(format!("{bytes:?} is no header"))),
    }
}

fn is_transient(err: &io::Error) -> bool {
    matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn broken(err: &io::Error) -> Outcome {
    match err.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => {
            Outcome::Cut(Cut::Broken)
        }
        _ => Outcome::Failed(format!("cannot write: {err}")),
    }
}
