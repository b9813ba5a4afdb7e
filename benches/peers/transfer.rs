//! One end of a bulk transfer: so many bytes to send, so many to receive, one read and one write at
//! a time.

use std::io::{self, Read, Write};

use mio::event::Event;
use mio::net::TcpStream;

/// The largest read or write.
pub(crate) const CHUNK: usize = 256 * 1024;

pub(crate) struct Transfer {
    to_send: u64,
    to_receive: u64,
    /// The last byte that is sent says that all were received.
    acknowledges: bool,
    begun: bool,
    readable: bool,
    writable: bool,
}

impl Transfer {
    pub(crate) fn of_client(upload: u64, download: u64) -> Self {
        Self::new(upload, download + 1, false)
    }

    /// Begins with the first byte received.
    pub(crate) fn of_backend(upload: u64, download: u64) -> Self {
        Self::new(download + 1, upload, true)
    }

    fn new(to_send: u64, to_receive: u64, acknowledges: bool) -> Self {
        Self {
            to_send,
            to_receive,
            acknowledges,
            begun: !acknowledges,
            readable: true,
            writable: true,
        }
    }

    pub(crate) fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable();
        self.writable |= event.is_writable();
    }

    pub(crate) fn is_done(&self) -> bool {
        self.to_send == 0 && self.to_receive == 0
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.wants_read() || self.wants_write()
    }

    fn wants_read(&self) -> bool {
        self.readable && self.to_receive > 0
    }

    fn wants_write(&self) -> bool {
        self.writable && self.begun && self.sendable() > 0
    }

    fn sendable(&self) -> u64 {
        self.to_send - u64::from(self.acknowledges && self.to_receive > 0 && self.to_send > 0)
    }

    /// One read and one write, as far as they are due.
    pub(crate) fn step(&mut self, stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<()> {
        if self.wants_read() {
            match stream.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.received(read as u64)?,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(err) => return Err(err),
            }
        }
        if self.wants_write() {
            let sendable = self.sendable().min(scratch.len() as u64) as usize;
            match stream.write(&scratch[..sendable]) {
                Ok(written) => self.to_send -= written as u64,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    fn received(&mut self, bytes: u64) -> io::Result<()> {
        self.begun = true;
        self.to_receive = self.to_receive.checked_sub(bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(())
    }
}
