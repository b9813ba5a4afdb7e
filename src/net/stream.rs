//! What the balancer asks of a transport: the traits [`Stream`] and [`Listener`].

use std::io;

use mio::event::Source;

use super::{Address, SocketOptions};

/// What an event said of a stream: reasons to try an operation, never verdicts.
///
/// A spurious flag costs an attempt that ends in [`WouldBlock`](io::ErrorKind::WouldBlock); a missing one may leave
/// the connection hanging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// Reading may succeed.
    pub readable: bool,
    /// Writing may succeed.
    pub writable: bool,
    /// The peer has finished sending. What it sent before may still have to be read.
    pub read_closed: bool,
    /// The peer takes nothing more.
    pub write_closed: bool,
    /// The stream has met an error, to be asked for with [`Stream::take_error`].
    pub error: bool,
    /// The peer sent something out of band, at which a read may stop short of what is there.
    pub priority: bool,
}

impl Readiness {
    /// Reading and writing are both worth trying: what a transport reports that cannot tell more exactly.
    pub const READ_WRITE: Self = Self {
        readable: true,
        writable: true,
        read_closed: false,
        write_closed: false,
        error: false,
        priority: false,
    };

    /// Whether the peer is gone in both directions.
    pub fn is_hang_up(self) -> bool {
        self.read_closed && self.write_closed
    }
}

impl From<&mio::event::Event> for Readiness {
    fn from(event: &mio::event::Event) -> Self {
        Self {
            readable: event.is_readable(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed(),
            write_closed: event.is_write_closed(),
            error: event.is_error(),
            priority: event.is_priority(),
        }
    }
}

/// One end of a non-blocking stream connection: a socket, or a protocol spoken over one.
///
/// `read`, `write` and `flush` are those of [`io::Read`] and [`io::Write`]; when they cannot go on they return
/// [`WouldBlock`](io::ErrorKind::WouldBlock), and the stream's event source reports when it is worth trying again. The
/// source is registered once, edge-triggered, for reading and writing; every change from *would block* to *can go on*
/// must be an event. So must be what there is to read when the source is registered, and a connection that is
/// established by then; writing alone is tried unasked. `write` may take bytes that it has not passed on yet (a TLS
/// record, say): then `flush` passes them on, and while it would block, the balancer reads nothing more for this
/// stream. `write` is also called with no bytes, to learn whether a peer that seems gone is.
///
/// A protocol spoken over a socket has to see to it that no progress hides where no event tells of it:
/// - What one operation waits for, it does itself: a `write` that needs a handshake drives it, and does not rely on a
///   `read` to do so, since nothing is tried again just because another operation got on.
/// - Apart from that, only `read` takes bytes from the socket, and it returns `WouldBlock` only when the socket did
///   and nothing is left in the protocol's own buffers.
/// - `write` that would block has tried to pass on what it holds: `flush` is called only once all bytes are taken.
/// - `write` that has taken bytes says how many, whatever becomes of sending them: after an error, they are taken to
///   be neither sent nor kept. An end of the socket's stream that the protocol does not confirm, as TLS does by
///   `close_notify`, is an error of `read`, so that it is passed on as a cut.
///
/// It is implemented for [`mio::net::TcpStream`] and `mio::net::UnixStream`.
pub trait Stream: io::Read + io::Write + Source + Send {
    /// Ends the write side: the peer reads what was written before, then an end of stream.
    ///
    /// Called when all that was written is flushed, which may have been nothing, and again after an event if it would
    /// block. Reading goes on after it. Not called where the stream is dropped next and [that is enough](Self::drop_closes).
    ///
    /// # Errors
    /// `WouldBlock` if it has to wait; any other error cuts the connection.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Whether a connection that was begun by [`Backend::dial`](crate::Backend::dial) is established by now.
    ///
    /// Called after each event until it says `true` or fails, and never for a client's stream. A protocol with a
    /// handshake of its own may drive it here, so that a backend that cannot complete it counts as failed and the next
    /// one is tried. What was read along the way is asked for by `read` right after it has said `true`, unless a short
    /// read [means drained](Self::short_read_means_drained).
    ///
    /// # Errors
    /// Why the connection could not be established; `WouldBlock` means the same as `false`.
    fn check_connect(&mut self) -> io::Result<bool>;

    /// Takes the error that the stream has met by itself, if any: a reset, a time-out of its keepalive.
    ///
    /// # Errors
    /// When the stream cannot be asked, which is then taken for its error.
    fn take_error(&mut self) -> io::Result<Option<io::Error>>;

    /// Prepares a drop that the peer can tell from an orderly end: over TCP, by a reset.
    ///
    /// The stream is dropped right after. By default nothing is prepared, and a cut looks like a close.
    fn abort(&mut self) {}

    /// Whether a read that returned less than it had room for has left nothing to read, so that the next event will
    /// tell when there is more. Saves a call that would block. By default `false`.
    ///
    /// After an event with `read_closed` or `priority` it is not asked any more: a stream of which these tell may leave
    /// its end, or what follows a mark, behind such a read. Nor is it after a failure, since no event is waited for then.
    fn short_read_means_drained(&self) -> bool {
        false
    }

    /// Whether dropping the stream is all that closing it takes: it comes off the event queue by that, and its peer reads
    /// what was written, then an end of stream. So it is with a socket of which nobody keeps a duplicate, and saves three
    /// system calls a connection. By default `false`: the stream is deregistered before it is dropped, and
    /// [ended](Self::shutdown_write) before that.
    fn drop_closes(&self) -> bool {
        false
    }

    /// What an event of this stream's source means for the stream. By default, what it says.
    ///
    /// A protocol that has to read in order to write, or the reverse, sets `readable` and `writable` in any event. It
    /// leaves the other flags as they are; of an error that the event told of it is asked whatever it answers. A
    /// transport whose source is a mere bell says here what the bell means, beginning with
    /// [`Readiness::default`] or [`Readiness::READ_WRITE`].
    fn translate(&self, event: Readiness) -> Readiness {
        event
    }

    /// The address of this end.
    ///
    /// # Errors
    /// When the transport has none or cannot tell; by default `Unsupported`.
    fn local_addr(&self) -> io::Result<Address> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where clients arrive.
///
/// TCP and Unix-domain listeners come with the crate: see [`IntoListener`](super::IntoListener).
pub trait Listener: Source + Send {
    /// Takes the next client that waits, and its address.
    ///
    /// # Errors
    /// `WouldBlock` when none waits, after which an event tells when one does. Errors of one client
    /// (`ConnectionAborted` and the like) skip that client; all others pause accepting for a moment.
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)>;

    /// The address listened on.
    ///
    /// # Errors
    /// When the transport cannot tell.
    fn local_addr(&self) -> io::Result<Address>;

    /// Has the options applied to every stream that is accepted from now on. Called once, when the server is built.
    /// By default they are ignored.
    ///
    /// # Errors
    /// When an option cannot be set; the server is not built then.
    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        let _ = options;
        Ok(())
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
