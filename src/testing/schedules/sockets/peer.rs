//! A client or a backend with its socket, which does what it is told to and checks all that it
//! reads.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::super::pattern::bytes_of;
use super::super::steps::Happening;

/// The most that is written or read at once.
const PIECE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Peer {
    /// By which its bytes are told from those of others.
    pub(super) id: usize,
    /// Gone once it has closed it.
    stream: Option<TcpStream>,
    /// What it has written, and what it is still to write.
    pub(super) sent: usize,
    to_send: usize,
    ends: bool,
    /// It has ended its stream, so that the other may read an end.
    pub(super) has_ended: bool,
    /// It has closed the socket, or reset the connection.
    pub(super) has_left: bool,
    is_reading: bool,
    pub(super) received: usize,
    pub(super) end: Option<End>,
    /// What came before the bytes that are checked, of a backend: its preface, as far as it has
    /// come.
    preface: VecDeque<u8>,
    has_preface: bool,
}

/// How what it reads came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Clean,
    Reset,
}

impl Peer {
    pub(super) fn client(id: usize, stream: TcpStream) -> Self {
        Self::new(id, stream, true)
    }

    /// Reads a preface first, up to the end of a line.
    pub(super) fn backend(id: usize, stream: TcpStream) -> Self {
        Self::new(id, stream, false)
    }

    fn new(id: usize, stream: TcpStream, has_preface: bool) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self {
            id,
            stream: Some(stream),
            sent: 0,
            to_send: 0,
            ends: false,
            has_ended: false,
            has_left: false,
            is_reading: true,
            received: 0,
            end: None,
            preface: VecDeque::new(),
            has_preface,
        }
    }

    /// Does something, or begins to.
    pub(super) fn act(&mut self, what: Happening) {
        let Some(stream) = &self.stream else { return };
        match what {
            Happening::Send(bytes) if !self.ends => self.to_send += bytes,
            // A part of the stream with socket2. Without it lost, but no byte around it.
            Happening::SendUrgently if !self.ends => {
                let is_in_line = cfg!(feature = "socket2");
                let byte = if is_in_line { bytes_of(self.id, self.sent, 1) } else { b"!" };
                match SockRef::from(stream).send_out_of_band(byte) {
                    Ok(len) => self.sent += if is_in_line { len } else { 0 },
                    Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => {
                        self.end.get_or_insert(End::Reset); // the kernel tells it once, then an end
                    }
                }
            }
            Happening::Send(_) | Happening::SendUrgently => {}
            Happening::End => self.ends = true,
            Happening::Reset => {
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                self.leave();
            }
            Happening::Leave => self.leave(),
            Happening::StopReading => self.is_reading = false,
            Happening::Read(_) => self.is_reading = true,
            Happening::Hesitate | Happening::Alarm { .. } => {}
        }
    }

    fn leave(&mut self) {
        self.stream = None;
        (self.has_left, self.to_send) = (true, 0);
    }

    pub(super) fn is_reading(&self) -> bool {
        self.is_reading && !self.has_left
    }

    /// Whether it has written all that it was told to.
    pub(super) fn has_sent_all(&self) -> bool {
        self.to_send == 0 && (self.has_ended || !self.ends)
    }

    /// What came before the other's bytes, once that is complete.
    pub(super) fn preface(&self) -> Option<String> {
        self.has_preface.then(|| self.preface.iter().map(|byte| char::from(*byte)).collect())
    }

    /// Writes and reads what it can, the bytes of `other`. Whether that was anything.
    pub(super) fn go_on(&mut self, other: Option<usize>) -> bool {
        let wrote = self.write();
        let has_read = match other {
            Some(other) => self.read(other),
            None => self.look() && self.has_read_preface(),
        };
        wrote || has_read
    }

    /// Looks whether it was refused. Whether not.
    fn look(&mut self) -> bool {
        if let Some(stream) = self.stream.as_ref().filter(|_| self.end.is_none()) {
            match stream.peek(&mut [0]) {
                Ok(0) => self.end = Some(End::Clean),
                Err(err) if err.kind() != ErrorKind::WouldBlock => self.end = Some(End::Reset),
                _ => {}
            }
        }
        self.end.is_none()
    }

    fn write(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let before = self.to_send;
        while self.to_send > 0 {
            match stream.write(bytes_of(self.id, self.sent, self.to_send.min(PIECE))) {
                Ok(len) => (self.sent, self.to_send) = (self.sent + len, self.to_send - len),
                Err(err) if err.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.to_send = 0;
                    self.end.get_or_insert(End::Reset); // the kernel tells it once, and then of an end
                }
            }
        }
        if self.ends && !self.has_ended && self.to_send == 0 {
            let _ = stream.shutdown(Shutdown::Write);
            self.has_ended = true;
            return true;
        }
        self.to_send != before
    }

    fn has_read_preface(&mut self) -> bool {
        let mut byte = [0];
        while !self.has_preface {
            let Some(stream) = &mut self.stream else { return false };
            match stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => self.has_preface = true,
                Ok(1) => self.preface.push_back(byte[0]),
                _ => return false,
            }
        }
        true
    }

    fn read(&mut self, other: usize) -> bool {
        let mut room = [0; PIECE];
        let mut has_read = false;
        while self.is_reading && self.end.is_none() {
            let Some(stream) = &mut self.stream else { break };
            match stream.read(&mut room) {
                Ok(0) => self.end = Some(End::Clean),
                Ok(len) => {
                    assert!(
                        room[..len] == *bytes_of(other, self.received, len),
                        "other bytes than were sent"
                    );
                    self.received += len;
                }
                Err(err) if err.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.end = Some(End::Reset),
            }
            has_read = true;
        }
        has_read
    }
}
