//! Unix-domain sockets as streams and listeners.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener as StdUnixListener;

use mio::net::{UnixListener, UnixStream};

use super::{Address, Listener, SocketOptions, Stream};

// `short_read_means_drained` stays false: a read stops short at a descriptor that the peer passed.
impl Stream for UnixStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        // Connecting has succeeded in `dial`. The peer may have closed since.
        match Self::take_error(self)? {
            Some(err) => Err(err),
            None => Ok(true),
        }
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Self::take_error(self)
    }

    fn drop_closes(&self) -> bool {
        true
    }

    fn splice_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self).map(Address::from)
    }
}

impl Listener for UnixListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (stream, addr) = Self::accept(self)?;
        Ok((Box::new(stream), Address::from(addr)))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self).map(Address::from)
    }

    fn set_options(&mut self, _: &SocketOptions) -> io::Result<()> {
        // Makes it non-blocking, which mio leaves to its caller. The flag belongs to the socket, so
        // a duplicate of the descriptor will do.
        StdUnixListener::from(self.as_fd().try_clone_to_owned()?).set_nonblocking(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A stream whose peer has gone without reading what it was sent.
    fn reset() -> UnixStream {
        let (mut stream, _peer) = UnixStream::pair().unwrap();
        stream.write_all(b"unread").unwrap();
        stream
    }

    #[test]
    fn c5_2_a_connection_that_was_reset_meanwhile_is_no_success() {
        assert_eq!(reset().check_connect().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (mut stream, _peer) = UnixStream::pair().unwrap();
        assert!(stream.check_connect().unwrap());
    }

    #[test]
    fn c6_4_the_error_that_a_socket_has_met_is_told_once() {
        let mut stream = reset();
        let met = Stream::take_error(&mut stream).unwrap().map(|err| err.kind());
        assert_eq!(met, Some(io::ErrorKind::ConnectionReset));
        assert!(Stream::take_error(&mut stream).unwrap().is_none());
    }
}
