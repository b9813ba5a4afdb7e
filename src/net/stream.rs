//! The [`Stream`] trait: what the balancer needs from a connection.

use std::io;
#[cfg(unix)]
use std::os::fd::BorrowedFd;

use mio::event::Source;

use super::{Address, Readiness};

/// One side of a non-blocking stream connection: a socket, or a protocol spoken over one.
///
/// Implemented for [`mio::net::TcpStream`] and `mio::net::UnixStream`.
///
/// # Events
///
/// The event source is registered once, edge-triggered, for reading and writing. `read`, `write`
/// and `flush` are those of [`io::Read`] and [`io::Write`]. When they cannot continue, they return
/// [`WouldBlock`](io::ErrorKind::WouldBlock), and an event must follow as soon as they can. Bytes
/// that are readable at registration, and a connection that is established by then, must cause an
/// event too. Writing is tried without one.
///
/// # Writing
///
/// `write` may take bytes and keep them (a TLS record, for example). `flush` then passes them on;
/// until it has, the balancer reads nothing more for this stream. `write` is also called with no
/// bytes, to find out whether a peer that seems gone is.
///
/// # Protocols over a socket
///
/// An event of the socket must not be lost for the protocol's own operations:
/// - An operation does itself what it waits for. A `write` that needs a handshake drives the
///   handshake: nothing is retried because another operation made progress.
/// - Apart from that, only `read` takes bytes from the socket. It returns `WouldBlock` only when
///   the socket does and the protocol's own buffers hold nothing to return.
/// - Before `write` returns `WouldBlock`, it tries to pass on what it keeps. `flush` is called only
///   after all bytes were taken.
/// - `write` returns how many bytes it took, even if sending them fails. Bytes of a `write` that
///   returns an error count as not taken.
/// - An end of the socket's stream that the protocol does not confirm (as TLS does with
///   `close_notify`) is an error of `read`, so that the other side sees an abort.
pub trait Stream: io::Read + io::Write + Source + Send {
    /// Ends the write side: the peer reads what was written before, then an end of stream.
    ///
    /// Called after everything written is flushed, and again after an event if it would block.
    /// Reading continues. Not called if the stream is dropped next and
    /// [`drop_closes`](Self::drop_closes).
    ///
    /// # Errors
    /// `WouldBlock` if it has to wait. Any other error aborts the connection.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Returns whether a connection begun by [`Backend::dial`](crate::Backend::dial) is
    /// established.
    ///
    /// Called after each event until it returns `true` or fails; never for a client's stream. A
    /// protocol may drive its handshake here: a backend that cannot complete it has then failed,
    /// and the next one is tried. `read` is called right after this returns `true`, in case the
    /// handshake read more than its own bytes, unless a
    /// [short read means drained](Self::short_read_means_drained).
    ///
    /// # Errors
    /// Why the connection cannot be established. `WouldBlock` means the same as `false`.
    fn check_connect(&mut self) -> io::Result<bool>;

    /// Takes the error that the stream met on its own, if any: a reset, or a keepalive timeout.
    ///
    /// # Errors
    /// When the stream cannot be asked. That error then counts as the stream's.
    fn take_error(&mut self) -> io::Result<Option<io::Error>>;

    /// Prepares a drop that the peer can tell from an orderly end: over TCP, a reset.
    ///
    /// The stream is dropped right after. Does nothing by default: an abort is then a plain close.
    fn abort(&mut self) {}

    /// Returns whether nothing is left to read after a read that returned less than it had room
    /// for, so that an event will follow when there is more. Saves a call that would block.
    /// Defaults to `false`.
    ///
    /// Ignored after an event with `read_closed` or `priority`, because the end of stream, or the
    /// bytes behind an urgent mark, may follow such a read without another event. Also ignored
    /// after an error.
    fn short_read_means_drained(&self) -> bool {
        false
    }

    /// Returns whether dropping the stream removes it from the event queue and ends its stream in
    /// an orderly way. This holds for a socket that has no duplicate, and saves three system calls
    /// per connection. Defaults to `false`: the stream is deregistered before the drop, and
    /// [ended](Self::shutdown_write) before that.
    fn drop_closes(&self) -> bool {
        false
    }

    /// Returns the non-blocking socket whose bytes are those of the stream, each and unchanged, for
    /// as long as the stream lives. With the feature `splice`, bulk between two such streams does
    /// not go through [`read`](io::Read::read) and [`write`](io::Write::write), which must mean the
    /// same. Defaults to `None`: bulk is copied, as it is for all but TCP and Unix-domain sockets.
    #[cfg(unix)]
    fn splice_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Fills a simulated pipe: as a read does, but 0 where only a read can tell what comes next.
    #[cfg(any(test, fuzzing))]
    #[doc(hidden)]
    fn simulate_splice(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.read(room)
    }

    /// Returns what an event of this stream's source means for the stream. Defaults to the event
    /// itself.
    ///
    /// A protocol that must read in order to write, or the reverse, sets `readable` and `writable`
    /// in every event and leaves the other flags alone. (If the event has `error`,
    /// [`take_error`](Self::take_error) is called whatever this returns.) A transport whose source
    /// is only a wakeup returns what it stands for, starting with [`Readiness::default`] or
    /// [`Readiness::READ_WRITE`].
    fn translate(&self, event: Readiness) -> Readiness {
        event
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// When the transport has none or cannot tell. By default `Unsupported`.
    fn local_addr(&self) -> io::Result<Address> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<S: Stream + ?Sized> Stream for Box<S> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        (**self).shutdown_write()
    }
    fn check_connect(&mut self) -> io::Result<bool> {
        (**self).check_connect()
    }
    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        (**self).take_error()
    }
    fn abort(&mut self) {
        (**self).abort();
    }
    fn short_read_means_drained(&self) -> bool {
        (**self).short_read_means_drained()
    }
    fn drop_closes(&self) -> bool {
        (**self).drop_closes()
    }
    #[cfg(unix)]
    fn splice_fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).splice_fd()
    }
    fn translate(&self, event: Readiness) -> Readiness {
        (**self).translate(event)
    }
    fn local_addr(&self) -> io::Result<Address> {
        (**self).local_addr()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use mio::{Interest, Registry, Token};

    use super::*;

    /// A stream that says only what it must.
    struct Terse;

    impl io::Read for Terse {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    impl io::Write for Terse {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Source for Terse {
        fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }
        fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }
        fn deregister(&mut self, _: &Registry) -> io::Result<()> {
            Ok(())
        }
    }

    impl Stream for Terse {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn check_connect(&mut self) -> io::Result<bool> {
            Err(ErrorKind::ConnectionRefused.into())
        }
        fn take_error(&mut self) -> io::Result<Option<io::Error>> {
            Ok(Some(ErrorKind::TimedOut.into()))
        }
    }

    #[test]
    fn c1_2_a_stream_that_says_only_what_it_must_is_trusted_in_nothing() {
        let hang_up = Readiness { read_closed: true, write_closed: true, ..Readiness::default() };
        assert!(!Terse.short_read_means_drained() && !Terse.drop_closes());
        assert_eq!(Terse.translate(hang_up), hang_up);
        assert_eq!(Terse.local_addr().unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn c1_2_a_boxed_stream_does_what_the_stream_does() {
        let mut boxed: Box<dyn Stream> = Box::new(Terse);
        let boxed = &mut boxed;
        assert_eq!(Stream::shutdown_write(boxed).unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(Stream::check_connect(boxed).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(Stream::take_error(boxed).unwrap().unwrap().kind(), ErrorKind::TimedOut);
    }
}
