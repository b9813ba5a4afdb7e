//! What an event says about a stream, and which events streams are registered for.

use mio::Interest;

/// The events that every stream is registered for, once.
///
/// Urgent data is among them where mio can report it: a read stops short at the urgent mark, and
/// without this event the bytes behind the mark would stay unread.
pub(crate) const INTEREST: Interest = {
    let both = Interest::READABLE.add(Interest::WRITABLE);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let both = both.add(Interest::PRIORITY);
    both
};

/// What an event said about a stream: hints which operations to try, never facts to rely on.
///
/// A flag that is wrongly set costs one attempt that returns
/// [`WouldBlock`](std::io::ErrorKind::WouldBlock). A flag that is missing may leave the connection
/// hanging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// Reading may succeed.
    pub readable: bool,
    /// Writing may succeed.
    pub writable: bool,
    /// The peer has ended its stream. What it sent before may still have to be read.
    pub read_closed: bool,
    /// The peer accepts no more bytes.
    pub write_closed: bool,
    /// The stream has an error, which [`Stream::take_error`](crate::Stream::take_error) returns.
    pub error: bool,
    /// The peer sent urgent data. A read may stop short at it.
    pub priority: bool,
}

impl Readiness {
    /// Reading and writing may succeed: for transports that cannot tell more.
    pub const READ_WRITE: Self = Self {
        readable: true,
        writable: true,
        read_closed: false,
        write_closed: false,
        error: false,
        priority: false,
    };

    /// Returns whether both directions are closed.
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
