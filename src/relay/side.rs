//! One end of a pair: a stream, what events said of it, and the error it has met.

use std::io;

use mio::{Registry, Token};

use crate::net::{INTEREST, Readiness, Stream};

/// A stream with what is known of it.
///
/// Events set readiness, and only an operation that would block clears it: the stream is registered once,
/// edge-triggered, so that what is not taken up now will not be told again.
///
/// Dropping a side cuts it: whatever ends a pair, a panic in the host's code too, its peer cannot take what it got for
/// complete. Only [`close`](Self::close) is an orderly end.
pub(crate) struct Side {
    stream: Box<dyn Stream>,
    readable: bool,
    writable: bool,
    /// The peer has finished, has sent something out of band, or has failed: a short read proves nothing any more, for no
    /// event will tell of the end of stream, or of what comes after the mark.
    read_to_the_end: bool,
    /// Once an error is met, the side has failed for good: a later end of stream is none.
    failure: Option<io::Error>,
    is_closed_in_order: bool,
}

impl Side {
    /// A stream that may be written to until it says otherwise; that it can be read, an event has to tell.
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            readable: false,
            writable: true,
            read_to_the_end: false,
            failure: None,
            is_closed_in_order: false,
        }
    }

    pub(crate) fn stream(&self) -> &dyn Stream {
        &*self.stream
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        repeat_interrupted(|| registry.register(&mut *self.stream, token, INTEREST))
    }

    /// Takes note of an event, and returns what it means for the stream. An error flag is answered at once, since a
    /// side that is not being read would never tell of its error otherwise.
    pub(crate) fn note(&mut self, event: Readiness) -> Readiness {
        let met_error = event.error;
        let event = self.stream.translate(event);
        self.readable |= event.readable || event.read_closed || event.error;
        self.writable |= event.writable || event.write_closed || event.error;
        self.read_to_the_end |= event.read_closed || event.priority;
        if event.error || met_error {
            match repeat_interrupted(|| self.stream.take_error()) {
                Ok(None) => {}
                Ok(Some(err)) | Err(err) => self.fail(err),
            }
        }
        event
    }

    /// Whether the peer is gone, judging by an event that came while nothing is read: it has reset the connection, or,
    /// where there are no resets, closed it in both directions.
    pub(crate) fn is_gone(&mut self, event: Readiness) -> bool {
        if self.failure.is_none() && event.is_hang_up() {
            // Writing nothing tells a closed socket from a false alarm, and harms neither.
            match repeat_interrupted(|| self.stream.write(&[])) {
                Err(err) if err.kind() != io::ErrorKind::WouldBlock => self.fail(err),
                _ => {}
            }
        }
        self.failure.is_some()
    }

    pub(crate) fn check_connect(&mut self) -> io::Result<bool> {
        if let Some(err) = self.failure.take() {
            return Err(err);
        }
        match repeat_interrupted(|| self.stream.check_connect()) {
            // A handshake that waits for its peer says so as any other operation does.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Ok(is_connected) => {
                // A handshake may have read more than its own, of which no event will tell. A stream that is drained
                // by a short read has nothing that could hold it; asking it would cost each connection a call.
                self.readable |= is_connected && !self.stream.short_read_means_drained();
                Ok(is_connected)
            }
            Err(err) => Err(err),
        }
    }

    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Remembers the first error. What the peer sent before it may still be read, and no event will be waited for.
    fn fail(&mut self, err: io::Error) {
        self.failure.get_or_insert(err);
        self.readable = true;
        self.read_to_the_end = true;
    }

    /// Reads what there is: `Some(0)` at the end of stream, `None` if there is nothing for now, or never will be.
    pub(crate) fn read(&mut self, room: &mut [u8]) -> Option<usize> {
        while self.readable {
            match repeat_interrupted(|| self.stream.read(room)) {
                // The kernel forgets an error that was taken, and shows an end where the stream was cut off.
                Ok(0) if self.has_failed() => self.readable = false,
                Ok(len) => {
                    let is_short = len > 0 && len < room.len();
                    if is_short && !self.read_to_the_end && self.stream.short_read_means_drained() {
                        self.readable = false;
                    }
                    return Some(len);
                }
                Err(err) => {
                    if err.kind() != io::ErrorKind::WouldBlock {
                        self.fail(err);
                    }
                    self.readable = false;
                }
            }
        }
        None
    }

    /// Writes as much as the stream takes: `None` if it takes nothing for now, or never will.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        self.attempt(|stream| match stream.write(bytes) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            result => result,
        })
    }

    /// Passes on what the stream holds back; `None` as in [`write`](Self::write).
    pub(crate) fn flush(&mut self) -> Option<()> {
        self.attempt(|stream| stream.flush())
    }

    /// Ends the write side; `None` as in [`write`](Self::write).
    pub(crate) fn shutdown_write(&mut self) -> Option<()> {
        self.attempt(|stream| stream.shutdown_write())
    }

    /// Whether to close it now would end its stream as well, in order.
    pub(crate) fn is_ended_by_closing(&self) -> bool {
        self.stream.drop_closes() && !self.has_failed()
    }

    fn attempt<T>(
        &mut self,
        mut output: impl FnMut(&mut dyn Stream) -> io::Result<T>,
    ) -> Option<T> {
        while self.writable && !self.has_failed() {
            match repeat_interrupted(|| output(&mut *self.stream)) {
                Ok(done) => return Some(done),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(err) => self.fail(err),
            }
        }
        None
    }

    /// Closes the socket in order: what was written goes out, then an end of stream.
    pub(crate) fn close(mut self, registry: &Registry) {
        self.is_closed_in_order = true;
        self.cut(registry);
    }

    /// Closes the socket so that the peer cannot take it for an orderly end.
    pub(crate) fn cut(mut self, registry: &Registry) {
        if !self.stream.drop_closes() {
            // That it was not registered, the only reason to fail, is all the same now.
            let _ = registry.deregister(&mut *self.stream);
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if !self.is_closed_in_order {
            self.stream.abort();
        }
    }
}

/// Makes a call again that a signal has interrupted. At once, since no event would tell of it later, and since a call that
/// does not block is hardly ever interrupted twice.
fn repeat_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::testing::script::{Act, Script};

    fn data() -> Script {
        Script::new().reads([Act::Data(b"x".to_vec()), Act::Block])
    }

    fn side(script: Script) -> Side {
        Side::new(Box::new(script))
    }

    #[test]
    fn a_new_side_is_written_to_unasked_and_read_only_after_an_event() {
        let mut side = side(data());
        assert_eq!((side.write(b"hello"), side.read(&mut [0; 9])), (Some(5), None));
        side.note(Readiness { readable: true, ..Readiness::default() });
        assert_eq!(side.read(&mut [0; 9]), Some(1));
    }

    #[test]
    fn c6_4_whatever_an_event_says_of_an_end_is_a_reason_to_try() {
        let nothing = Readiness::default();
        for event in
            [Readiness { read_closed: true, ..nothing }, Readiness { error: true, ..nothing }]
        {
            let mut side = side(data());
            side.note(event);
            assert_eq!(side.read(&mut [0; 9]), Some(1), "{event:?}");
        }
        for event in
            [Readiness { write_closed: true, ..nothing }, Readiness { error: true, ..nothing }]
        {
            let mut side = side(Script::new().takes([0]));
            assert_eq!(side.write(b"x"), None);
            side.note(event);
            assert_eq!(side.write(b"x"), Some(1), "{event:?}");
        }
    }

    #[test]
    fn c6_4_the_first_error_stays_and_nothing_is_written_after_it() {
        let script =
            Script::new().error(ErrorKind::TimedOut).reads([Act::Fail(ErrorKind::ConnectionReset)]);
        let mut side = side(script);
        side.note(Readiness { error: true, ..Readiness::default() });
        assert_eq!((side.read(&mut [0; 9]), side.write(b"x")), (None, None));
        assert_eq!(side.failure().unwrap().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn c6_4_a_stream_that_cannot_be_asked_for_its_error_has_failed() {
        let mut side = side(Script::new().mute());
        side.note(Readiness { error: true, ..Readiness::default() });
        assert_eq!(side.failure().unwrap().kind(), ErrorKind::NotConnected);
    }

    #[test]
    fn c6_4_a_failed_write_is_a_reason_to_read_what_the_peer_sent_before() {
        let mut side = side(data().write_error(ErrorKind::BrokenPipe));
        assert_eq!((side.write(b"x"), side.read(&mut [0; 9])), (None, Some(1)));
    }

    #[test]
    fn c3_10_what_a_failed_peer_sent_before_is_read_to_the_end() {
        let words = [
            Act::Data(b"at a mark".to_vec()),
            Act::Data(b"reads stop".to_vec()),
            Act::Fail(ErrorKind::ConnectionReset),
        ];
        let mut side = side(
            Script::new().reads(words).drained_by_short_reads().write_error(ErrorKind::BrokenPipe),
        );
        assert_eq!(side.write(b"x"), None);
        assert_eq!(
            [side.read(&mut [0; 99]), side.read(&mut [0; 99]), side.read(&mut [0; 99])],
            [Some(9), Some(10), None]
        );
    }

    #[test]
    fn c5_4_a_hang_up_is_borne_out_by_an_error_but_not_by_a_write_that_would_block() {
        let hang_up = Readiness { read_closed: true, write_closed: true, ..Readiness::default() };
        assert!(!side(Script::new().write_error(ErrorKind::WouldBlock)).is_gone(hang_up));
        let mut gone = side(Script::new().write_error(ErrorKind::BrokenPipe));
        let half_closed = Readiness { write_closed: false, ..hang_up };
        assert!(
            !gone.is_gone(Readiness::READ_WRITE)
                && !gone.is_gone(half_closed)
                && gone.is_gone(hang_up)
        );
    }

    #[test]
    fn c5_4_a_hang_up_is_borne_out_though_a_signal_interrupts() {
        let hang_up = Readiness { read_closed: true, write_closed: true, ..Readiness::default() };
        assert!(
            side(Script::new().interrupted(2).write_error(ErrorKind::BrokenPipe)).is_gone(hang_up)
        );
    }

    #[test]
    fn c9_1_what_a_signal_interrupts_is_no_failure() {
        let error = Readiness { error: true, ..Readiness::default() };
        let mut alarmed = side(Script::new().interrupted(2));
        alarmed.note(error);
        assert!(!alarmed.has_failed());
        let mut reset = side(Script::new().interrupted(2).error(ErrorKind::ConnectionReset));
        reset.note(error);
        assert_eq!(reset.failure().unwrap().kind(), ErrorKind::ConnectionReset);
        let poll = mio::Poll::new().unwrap();
        assert!(side(Script::new().interrupted(2)).register(poll.registry(), Token(0)).is_ok());
    }

    #[test]
    fn c9_1_an_interrupted_write_is_repeated() {
        let mut side = side(Script::new().interrupted(2));
        assert_eq!((side.write(b"hello"), side.flush()), (Some(5), Some(())));
    }
}
