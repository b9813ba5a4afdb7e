//! One side of a pair: a stream, what events said of it, and the error it has met.

use std::io;

use mio::{Registry, Token};

use super::pipes::Pipe;
use crate::net::{INTEREST, Readiness, Stream};

/// A stream with what is known of it.
///
/// It is registered once, edge-triggered: events set readiness, and only `WouldBlock` clears it.
///
/// Closing a side aborts its stream, and so does dropping it, so that no peer takes what it got for
/// complete, even if host code panics. A side that was sent the end of stream is complete: it is
/// closed plainly, and the kernel delivers what its peer has not read yet.
pub(crate) struct Side {
    stream: Box<dyn Stream>,
    readable: bool,
    writable: bool,
    /// Set once a short read no longer proves that nothing is left: the peer has ended its stream,
    /// has sent urgent data or has failed, and no event will tell of the rest.
    read_to_the_end: bool,
    /// Whether an event told of the end of stream.
    may_have_ended: bool,
    /// The first error. It is final: an end of stream read later does not count.
    failure: Option<io::Error>,
    /// Whether the stream is closed plainly, not aborted, when the side is dropped.
    is_orderly: bool,
}

impl Side {
    /// Returns a side that is written to until it would block, and read only after an event.
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            readable: false,
            writable: true,
            read_to_the_end: false,
            may_have_ended: false,
            failure: None,
            is_orderly: false,
        }
    }

    pub(crate) fn stream(&self) -> &dyn Stream {
        &*self.stream
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        retry_interrupted(|| registry.register(&mut *self.stream, token, INTEREST))
    }

    /// Notes what an event says. Returns what that means for the stream.
    ///
    /// An error flag is answered at once with `take_error`: while a side is not read, nothing else
    /// would find its error.
    pub(crate) fn set_ready(&mut self, event: Readiness) -> Readiness {
        let has_error = event.error;
        let event = self.stream.translate(event);
        self.readable |= event.readable || event.read_closed || event.error;
        self.writable |= event.writable || event.write_closed || event.error;
        self.read_to_the_end |= event.read_closed || event.priority;
        self.may_have_ended |= event.read_closed;
        if event.error || has_error {
            match retry_interrupted(|| self.stream.take_error()) {
                Ok(None) => {}
                Ok(Some(err)) | Err(err) => self.fail(err),
            }
        }
        event
    }

    /// Notes, after an event that came while nothing is read, if the peer is gone: it has reset the
    /// connection or, where there are no resets, closed it in both directions. Returns whether it
    /// is.
    pub(crate) fn note_hang_up(&mut self, event: Readiness) -> bool {
        if self.failure.is_none() && event.is_hang_up() {
            // Writing nothing tells a closed socket from a false alarm, and harms neither.
            match retry_interrupted(|| self.stream.write(&[])) {
                Err(err) if err.kind() != io::ErrorKind::WouldBlock => self.fail(err),
                _ => {}
            }
        }
        self.failure.is_some()
    }

    /// Asks the stream of a dial whether it is connected. Returns, and forgets, the error that an
    /// event told of.
    pub(crate) fn poll_connect(&mut self) -> io::Result<bool> {
        if let Some(err) = self.failure.take() {
            return Err(err);
        }
        match retry_interrupted(|| self.stream.check_connect()) {
            // A handshake waits for its peer.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Ok(is_connected) => {
                // A handshake may have read more than its own, and no event tells of that. A stream
                // that a short read drains holds nothing back; asking it would cost a system call.
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

    /// Returns whether what is left to read may be the last.
    pub(crate) fn may_have_ended(&self) -> bool {
        self.may_have_ended && self.readable
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Keeps the first error. What the peer sent before it may still be read, without an event.
    fn fail(&mut self, err: io::Error) {
        self.failure.get_or_insert(err);
        self.readable = true;
        self.read_to_the_end = true;
    }

    /// Reads what there is. Returns `Some(0)` at the end of stream, `None` if there is nothing for
    /// now or never will be.
    pub(crate) fn read(&mut self, room: &mut [u8]) -> Option<usize> {
        while self.readable {
            match retry_interrupted(|| self.stream.read(room)) {
                // The kernel forgets an error that was taken, and then reports an end of stream.
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

    /// Returns whether a pipe can be filled from it. Not once a call might stop short of something:
    /// a pipe is not filled beyond urgent data.
    pub(crate) fn can_splice_in(&self) -> bool {
        self.can_splice() && !self.read_to_the_end
    }

    /// Returns whether a pipe can be drained into it.
    pub(crate) fn can_splice_out(&self) -> bool {
        self.can_splice()
    }

    fn can_splice(&self) -> bool {
        #[cfg(unix)]
        return self.stream.splice_fd().is_some();
        #[cfg(not(unix))]
        false
    }

    /// Fills a pipe with what there is. Returns `None` as [`read`](Self::read) does, `Some(0)` if
    /// only a read can tell what comes next.
    pub(crate) fn splice_in(&mut self, pipe: &mut Pipe) -> Option<usize> {
        while self.readable {
            match retry_interrupted(|| pipe.fill(&mut *self.stream)) {
                Ok(len) => return Some(len),
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

    /// Moves bytes on from a pipe; `None` as in [`write`](Self::write).
    pub(crate) fn splice_out(&mut self, pipe: &mut Pipe) -> Option<usize> {
        self.attempt(|stream| match pipe.drain(stream) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            result => result,
        })
    }

    /// Writes as much as the stream takes. Returns `None` if it takes nothing for now, or never
    /// will.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        self.attempt(|stream| match stream.write(bytes) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            result => result,
        })
    }

    /// Sends what the stream holds back; `None` as in [`write`](Self::write).
    pub(crate) fn flush(&mut self) -> Option<()> {
        self.attempt(|stream| stream.flush())
    }

    /// Ends the write side; `None` as in [`write`](Self::write).
    pub(crate) fn shutdown_write(&mut self) -> Option<()> {
        let ended = self.attempt(|stream| stream.shutdown_write());
        self.is_orderly |= ended.is_some();
        ended
    }

    /// Returns whether closing it now would also end its stream in an orderly way.
    pub(crate) fn is_ended_by_closing(&self) -> bool {
        self.stream.drop_closes() && !self.has_failed()
    }

    fn attempt<T>(
        &mut self,
        mut output: impl FnMut(&mut dyn Stream) -> io::Result<T>,
    ) -> Option<T> {
        while self.writable && !self.has_failed() {
            match retry_interrupted(|| output(&mut *self.stream)) {
                Ok(done) => return Some(done),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(err) => self.fail(err),
            }
        }
        None
    }

    /// Has the stream end in an orderly way when the side is closed: the peer reads what was
    /// written, then an end of stream.
    pub(crate) fn mark_orderly(&mut self) {
        self.is_orderly = true;
    }

    /// Has the stream aborted when the side is closed, even if it was sent the end.
    pub(crate) fn mark_aborted(&mut self) {
        self.is_orderly = false;
    }

    /// Closes the socket: by an abort, unless the side is marked orderly.
    pub(crate) fn close(mut self, registry: &Registry) {
        if !self.stream.drop_closes() {
            // It fails only if the stream was not registered.
            let _ = registry.deregister(&mut *self.stream);
        }
        // Dropping the side does the rest.
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if !self.is_orderly {
            self.stream.abort();
        }
    }
}

/// Repeats a call that a signal interrupted. It does so at once: no event would tell when to, and a
/// call that does not block is hardly ever interrupted twice.
fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
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
        side.set_ready(Readiness { readable: true, ..Readiness::default() });
        assert_eq!(side.read(&mut [0; 9]), Some(1));
    }

    #[test]
    fn c6_4_whatever_an_event_says_of_an_end_is_a_reason_to_try() {
        let nothing = Readiness::default();
        for event in
            [Readiness { read_closed: true, ..nothing }, Readiness { error: true, ..nothing }]
        {
            let mut side = side(data());
            side.set_ready(event);
            assert_eq!(side.read(&mut [0; 9]), Some(1), "{event:?}");
        }
        for event in
            [Readiness { write_closed: true, ..nothing }, Readiness { error: true, ..nothing }]
        {
            let mut side = side(Script::new().takes([0]));
            assert_eq!(side.write(b"x"), None);
            side.set_ready(event);
            assert_eq!(side.write(b"x"), Some(1), "{event:?}");
        }
    }

    #[test]
    fn c6_4_the_first_error_stays_and_nothing_is_written_after_it() {
        let script =
            Script::new().error(ErrorKind::TimedOut).reads([Act::Fail(ErrorKind::ConnectionReset)]);
        let mut side = side(script);
        side.set_ready(Readiness { error: true, ..Readiness::default() });
        assert_eq!((side.read(&mut [0; 9]), side.write(b"x")), (None, None));
        assert_eq!(side.failure().unwrap().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn c6_4_a_stream_that_cannot_be_asked_for_its_error_has_failed() {
        let mut side = side(Script::new().mute());
        side.set_ready(Readiness { error: true, ..Readiness::default() });
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
        assert!(!side(Script::new().write_error(ErrorKind::WouldBlock)).note_hang_up(hang_up));
        let mut gone = side(Script::new().write_error(ErrorKind::BrokenPipe));
        let half_closed = Readiness { write_closed: false, ..hang_up };
        assert!(
            !gone.note_hang_up(Readiness::READ_WRITE)
                && !gone.note_hang_up(half_closed)
                && gone.note_hang_up(hang_up)
        );
    }

    #[test]
    fn c5_4_a_hang_up_is_borne_out_though_a_signal_interrupts() {
        let hang_up = Readiness { read_closed: true, write_closed: true, ..Readiness::default() };
        assert!(
            side(Script::new().interrupted(2).write_error(ErrorKind::BrokenPipe))
                .note_hang_up(hang_up)
        );
    }

    #[test]
    fn c9_1_what_a_signal_interrupts_is_no_failure() {
        let error = Readiness { error: true, ..Readiness::default() };
        let mut alarmed = side(Script::new().interrupted(2));
        alarmed.set_ready(error);
        assert!(!alarmed.has_failed());
        let mut reset = side(Script::new().interrupted(2).error(ErrorKind::ConnectionReset));
        reset.set_ready(error);
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
