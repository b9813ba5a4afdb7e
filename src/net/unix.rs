//! Unix-domain sockets as streams and listeners.

use std::io;
use std::net::Shutdown;

use mio::net::{UnixListener, UnixStream};

use super::{Address, Listener, Stream};

// `short_read_means_drained` stays false: a read stops early where a peer passed a descriptor along.
impl Stream for UnixStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        // Such a connect is done or has failed at once; an error can only have come since.
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
