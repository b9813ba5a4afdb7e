//! The standard streams, which block even if their descriptors do not.
//!
//! `O_NONBLOCK` belongs to the open file, and other processes share it: a program on the same
//! terminal, or at the same end of a pipe, can set it at any time. A read then fails with
//! `WouldBlock`, and a write stops in the middle of a line. Here both wait and go on.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// A standard stream, unbuffered.
#[derive(Debug)]
pub(crate) struct StdStream<T>(pub(crate) T);

impl<T: AsFd> StdStream<T> {
    /// Repeats the call until it neither would block nor is interrupted.
    fn retry<R>(
        &self,
        readiness: PollFlags,
        mut call: impl FnMut(&T) -> rustix::io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match call(&self.0) {
                Err(Errno::AGAIN) => self.wait(readiness)?,
                Err(Errno::INTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    fn wait(&self, readiness: PollFlags) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.0, readiness)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

impl<T: AsFd> Read for StdStream<T> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::IN, |stream| rustix::io::read(stream, &mut *room))
    }
}

impl<T: AsFd> Write for StdStream<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::OUT, |stream| rustix::io::write(stream, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
