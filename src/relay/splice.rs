//! What a direction needs while its bytes are spliced instead of copied.

use std::time::{Duration, Instant};

use super::Side;
use super::pipes::{Pipe, Pipes};
use crate::net;

/// A reader has stalled if it takes nothing for this long. In the same time, a reader that keeps up
/// takes half of what the kernel holds for it.
const STALL: Duration = Duration::from_millis(100);
/// Copying costs less than splicing below this size. Bulk arrives in such small pieces too, so it
/// takes several in a row to end splicing.
const SMALL_FILL: usize = 16 << 10;
const SMALL_FILLS_TO_END: u32 = 4;
/// `TCP_NOTSENT_LOWAT` while splicing. With the default of 128 KiB the kernel takes what is spliced
/// in small pieces, and leaves bytes in the pipes.
const RAISED_LOWAT: u32 = 1 << 20;
/// How many bytes per second a reader must read to lose nothing to a timeout.
const SLOWEST_READER: u32 = 20_000;

/// A direction's pipe, and what is to be undone when it is copied again.
pub(super) struct Splicing {
    /// Has unsent bytes.
    pipe: Option<Pipe>,
    /// Since when the sink has not taken any of them.
    blocked_since: Option<Instant>,
    has_stalled: bool,
    /// How many times in a row little was there to fill the pipe with.
    small_fills: u32,
    /// The sink's `TCP_NOTSENT_LOWAT` before it was raised, if it was.
    saved_lowat: Option<u32>,
}

/// What came of filling a pipe.
pub(super) enum Fill {
    Bytes(usize),
    /// There is nothing to read for now, or never will be.
    Blocked,
    /// It cannot be told without reading, or there is no pipe.
    Copy,
}

impl Splicing {
    /// Begins to splice, if both sides can and the system lets it.
    pub(super) fn begin(
        source: &Side,
        sink: &Side,
        pipes: &mut Pipes,
        now: Instant,
    ) -> Option<Box<Self>> {
        if !(source.can_splice_in() && sink.can_splice_out() && pipes.may_begin(now)) {
            return None;
        }
        let saved_lowat = net::raise_notsent_lowat(sink.stream(), RAISED_LOWAT);
        Some(Box::new(Self {
            pipe: None,
            blocked_since: None,
            has_stalled: false,
            small_fills: 0,
            saved_lowat,
        }))
    }

    /// Fills a pipe from a source.
    pub(super) fn splice_in(&mut self, source: &mut Side, pipes: &mut Pipes, now: Instant) -> Fill {
        debug_assert!(self.pipe.is_none());
        if !source.can_splice_in() {
            return Fill::Copy;
        }
        let Some(mut pipe) = pipes.take(now) else { return Fill::Copy };
        match source.splice_in(&mut pipe) {
            Some(0) => {
                pipes.give_back(pipe);
                Fill::Copy
            }
            Some(len) => {
                self.pipe = Some(pipe);
                self.small_fills = if len < SMALL_FILL { self.small_fills + 1 } else { 0 };
                Fill::Bytes(len)
            }
            None => {
                pipes.give_back(pipe);
                Fill::Blocked
            }
        }
    }

    /// Sends what is in the pipe, and gives it back when it is empty. Returns whether that is so.
    pub(super) fn splice_out(
        &mut self,
        sink: &mut Side,
        pipes: &mut Pipes,
        moved: &mut u64,
        now: Instant,
    ) -> bool {
        let Some(mut pipe) = self.pipe.take() else { return true };
        if self.blocked_since.is_some_and(|since| now.saturating_duration_since(since) >= STALL) {
            self.has_stalled = true;
            self.restore_lowat(sink);
        }
        while !pipe.is_empty() {
            let Some(len) = sink.splice_out(&mut pipe) else {
                self.blocked_since.get_or_insert(now);
                self.pipe = Some(pipe);
                return false;
            };
            *moved += len as u64;
            self.blocked_since = None;
        }
        pipes.give_back(pipe);
        true
    }

    /// Returns whether what is to be read is no longer bulk: splicing is to end.
    pub(super) fn is_small(&self) -> bool {
        self.small_fills >= SMALL_FILLS_TO_END
    }

    /// Returns whether its reader did not keep up: splicing is to end.
    pub(super) fn has_stalled(&self) -> bool {
        self.has_stalled
    }

    /// Returns for how long a slow reader may be busy with what the kernel holds for it above the
    /// mark.
    pub(super) fn timeout_grace(&self) -> Duration {
        let above = |lowat| Duration::from_secs(1) * (RAISED_LOWAT - lowat) / SLOWEST_READER;
        self.saved_lowat.map_or(Duration::ZERO, above)
    }

    /// Ends splicing, with the pipe given back.
    pub(super) fn end(mut self, sink: &Side) {
        debug_assert!(self.pipe.is_none());
        self.restore_lowat(sink);
    }

    fn restore_lowat(&mut self, sink: &Side) {
        if let Some(lowat) = self.saved_lowat.take() {
            net::set_notsent_lowat(sink.stream(), lowat);
        }
    }
}

#[cfg(all(test, feature = "splice", feature = "socket2", target_os = "linux"))]
mod tests {
    use std::io::{Read, Write};
    use std::net;

    use socket2::SockRef;

    use super::*;
    use crate::net::Readiness;
    use crate::relay::{Duplex, Kernel, PipeEnds, PipeSystem};

    const MARK: u32 = 128 << 10;

    /// One side of the balancer, with this `TCP_NOTSENT_LOWAT`, and its peer.
    fn side(mark: Option<u32>) -> (Side, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0;
        socket.set_nonblocking(true).unwrap();
        if let Some(mark) = mark {
            SockRef::from(&socket).set_tcp_notsent_lowat(mark).unwrap();
        }
        let mut side = Side::new(Box::new(mio::net::TcpStream::from_std(socket)));
        side.set_ready(Readiness::READ_WRITE);
        (side, peer)
    }

    fn mark(side: &Side) -> u32 {
        SockRef::from(&side.stream().splice_fd().unwrap()).tcp_notsent_lowat().unwrap()
    }

    /// The kernel's pipes, for what is no bulk too.
    struct ForAll(bool);

    impl PipeSystem for ForAll {
        fn is_safe(&self) -> bool {
            Kernel.is_safe()
        }

        fn open(&self) -> Option<Box<dyn PipeEnds>> {
            Kernel.open()
        }

        fn is_for_all(&self) -> bool {
            self.0
        }
    }

    fn pipes() -> Pipes {
        Pipes::new(Some(Box::new(Kernel)))
    }

    #[test]
    fn c6_8_notsent_lowat_is_raised_for_as_long_as_a_direction_is_spliced() {
        let ((from, _source), (to, _sink)) = (side(Some(MARK)), side(Some(MARK)));
        let splicing = Splicing::begin(&from, &to, &mut pipes(), Instant::now()).unwrap();
        assert_eq!((mark(&from), mark(&to)), (MARK, RAISED_LOWAT));
        let secs = f64::from(RAISED_LOWAT - MARK) / 20_000.0;
        assert!((splicing.timeout_grace().as_secs_f64() - secs).abs() < 0.01);
        splicing.end(&to);
        assert_eq!(mark(&to), MARK);
    }

    #[test]
    fn c6_8_a_mark_that_the_host_has_removed_or_raised_is_left_alone() {
        for former in [None, Some(RAISED_LOWAT + 1)] {
            let ((from, _source), (to, _sink)) = (side(former), side(former));
            let before = mark(&to);
            let splicing = Splicing::begin(&from, &to, &mut pipes(), Instant::now()).unwrap();
            assert_eq!((mark(&to), splicing.timeout_grace()), (before, Duration::ZERO));
            splicing.end(&to);
            assert_eq!(mark(&to), before);
        }
    }

    #[test]
    fn c6_8_the_mark_is_lowered_as_soon_as_a_reader_has_stalled() {
        let ((mut from, mut source), (mut to, _sink)) = (side(Some(MARK)), side(Some(MARK)));
        let (mut pipes, mut moved, now) = (pipes(), 0, Instant::now());
        let mut splicing = Splicing::begin(&from, &to, &mut pipes, now).unwrap();
        while to.write(&[0; 64 << 10]).is_some() {}
        source.write_all(b"unsent").unwrap();
        assert!(matches!(splicing.splice_in(&mut from, &mut pipes, now), Fill::Bytes(6)));
        assert!(!splicing.splice_out(&mut to, &mut pipes, &mut moved, now));
        assert_eq!((splicing.has_stalled(), mark(&to)), (false, RAISED_LOWAT));
        assert!(!splicing.splice_out(&mut to, &mut pipes, &mut moved, now + STALL));
        assert_eq!((splicing.has_stalled(), mark(&to), moved), (true, MARK, 0));
    }

    #[test]
    fn c6_8_timeouts_wait_until_a_slow_reader_may_have_read_what_is_above_the_mark() {
        let active_at = |is_bulk: bool| {
            let ((client, mut source), (backend, mut sink)) = (side(Some(MARK)), side(Some(MARK)));
            let now = Instant::now();
            let mut duplex = Duplex::new(client, backend, Vec::new(), now);
            source.write_all(b"bulk").unwrap();
            let mut pipes = Pipes::new(Some(Box::new(ForAll(is_bulk))));
            duplex.drive(&mut [0; 100], &mut pipes, 1000, now);
            sink.read_exact(&mut [0; 4]).unwrap();
            duplex.active_at() - now
        };
        assert_eq!(active_at(false), Duration::ZERO);
        assert_eq!(active_at(true).as_secs(), u64::from((RAISED_LOWAT - MARK) / 20_000));
    }
}
