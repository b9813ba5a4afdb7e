//! One direction of a pair: what one side sends goes to the other, in order, with backpressure.

use std::time::{Duration, Instant};

use super::splice::{Fill, Splicing};
use super::{Pipes, Side};

/// The size of a direction's first read, and the least that its reads shrink to when the reader
/// does not keep up. Most messages fit.
const SMALLEST_READ: usize = 16 * 1024;
/// Reads double after this many full ones that were written at once. A kernel takes megabytes even
/// for a client that never reads. Because reads are still small then, little is left unsent: 1,000
/// such clients cost 37 KiB each; with reads of full size from the start they would cost 312 KiB.
const READS_TO_GROW: u32 = 16;

/// One direction of a pair.
///
/// ```text
/// Open ──end of stream read──> Ending ──delivered, flushed, and the end passed on──> Ended
/// ```
///
/// Bytes are read into a scratch buffer that all pairs share. What the other side does not take at
/// once is *unsent*: only then the direction has a buffer of its own, and reads nothing more until
/// it is empty. So a direction holds at most one read, and an idle one holds nothing.
///
/// The last of a stream is the exception: once the peer may have ended its stream, the rest is read
/// ahead, up to the size of the scratch buffer. Such a peer may answer the next bytes with a reset,
/// and an end of stream counts only if it was read before the error.
///
/// Once reads have grown to full size, the stream is bulk. It is then *spliced*, if it can be,
/// until reads shrink again.
pub(crate) struct Direction {
    flow: Flow,
    unsent: Vec<u8>,
    /// How much of `unsent` has been sent meanwhile.
    sent: usize,
    /// Whether the sink may hold back bytes that it has taken.
    unflushed: bool,
    /// How much to read at once: small until the reader has shown that it keeps up, so that many
    /// stalled connections do not hold many large buffers.
    read_size: usize,
    /// Full reads of this size that were written at once, since the last one that was not.
    full_reads: u32,
    /// Whether reads have grown to full size.
    is_bulk: bool,
    /// Set while bulk is spliced.
    splicing: Option<Box<Splicing>>,
}

/// What a direction borrows for a drive.
pub(crate) struct DriveContext<'a> {
    /// What reads go into. No read is larger.
    pub(crate) scratch: &'a mut [u8],
    pub(crate) pipes: &'a mut Pipes,
    pub(crate) now: Instant,
    /// How long a slow reader may take to read what this drive has sent above
    /// `TCP_NOTSENT_LOWAT`. The timeouts of the pair wait for that.
    pub(crate) timeout_grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    Ending,
    Ended,
}

/// Why a drive came to a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirectionProgress {
    /// Nothing can be done until an event.
    Blocked,
    /// More could be done, but the budget is spent.
    Unfinished,
    /// The end of the stream has been passed on.
    Ended,
}

impl Direction {
    /// Returns a direction whose sink gets the preface first.
    pub(crate) fn new(preface: Vec<u8>) -> Self {
        Self {
            flow: Flow::Open,
            unsent: preface,
            sent: 0,
            unflushed: false,
            read_size: SMALLEST_READ,
            full_reads: 0,
            is_bulk: false,
            splicing: None,
        }
    }

    /// Returns whether its source has ended its stream. That need not have been passed on yet.
    pub(crate) fn source_has_ended(&self) -> bool {
        self.flow != Flow::Open
    }

    /// Returns whether its source has ended, and its sink still has to be told.
    pub(crate) fn is_ending(&self) -> bool {
        self.flow == Flow::Ending
    }

    /// Returns whether the end has been passed on to its sink, too.
    pub(crate) fn sink_was_ended(&self) -> bool {
        self.flow == Flow::Ended
    }

    /// Moves bytes until a side blocks, the stream has ended, or about `budget` bytes are moved.
    /// Adds what the sink has taken to `moved`.
    ///
    /// Errors stay with the side that met them. A source that has failed is read to the last byte
    /// that it still has.
    ///
    /// `sink_closes_next` tells that the other direction has ended: the sink is closed right after
    /// this one ends. Closing it may then be enough to pass the end on.
    pub(crate) fn drive(
        &mut self,
        source: &mut Side,
        sink: &mut Side,
        cx: &mut DriveContext<'_>,
        budget: usize,
        moved: &mut u64,
        sink_closes_next: bool,
    ) -> DirectionProgress {
        let mut left = budget;
        loop {
            if !self.send_spliced(sink, cx, moved) || !self.send_unsent(sink, moved) {
                self.read_ahead(source, sink, cx.scratch);
                return DirectionProgress::Blocked;
            }
            match self.flow {
                Flow::Ended => return DirectionProgress::Ended,
                Flow::Ending if sink_closes_next && sink.is_ended_by_closing() => {
                    self.flow = Flow::Ended;
                }
                Flow::Ending if sink.shutdown_write().is_some() => self.flow = Flow::Ended,
                Flow::Ending => return DirectionProgress::Blocked,
                Flow::Open if sink.has_failed() => return DirectionProgress::Blocked,
                Flow::Open if left == 0 && source.is_readable() => {
                    return DirectionProgress::Unfinished;
                }
                Flow::Open => match self.splice_in(source, sink, cx) {
                    Fill::Blocked => return DirectionProgress::Blocked,
                    Fill::Bytes(len) => left = left.saturating_sub(len),
                    Fill::Copy => {
                        let largest = cx.scratch.len();
                        let size = self.read_size.min(largest);
                        let room = &mut cx.scratch[..size];
                        let Some(len) = source.read(room) else {
                            return DirectionProgress::Blocked;
                        };
                        left = left.saturating_sub(len);
                        self.pass_on(&room[..len], size, largest, sink, moved);
                    }
                },
            }
        }
    }

    /// Fills a pipe, if this is bulk and can be spliced.
    fn splice_in(&mut self, source: &mut Side, sink: &Side, cx: &mut DriveContext<'_>) -> Fill {
        #[cfg(any(test, fuzzing))]
        if cx.pipes.are_for_all() {
            self.is_bulk = true;
        }
        if self.is_bulk && self.splicing.is_none() {
            self.splicing = Splicing::begin(source, sink, cx.pipes, cx.now);
        }
        let Some(splicing) = &mut self.splicing else { return Fill::Copy };
        let fill = splicing.splice_in(source, cx.pipes, cx.now);
        if matches!(fill, Fill::Copy) {
            self.shrink(sink, self.read_size / 2);
        }
        fill
    }

    /// Sends what is unsent in a pipe. Returns whether nothing is left there.
    fn send_spliced(
        &mut self,
        sink: &mut Side,
        cx: &mut DriveContext<'_>,
        moved: &mut u64,
    ) -> bool {
        let Some(splicing) = &mut self.splicing else { return true };
        let before = *moved;
        let is_empty = splicing.splice_out(sink, cx.pipes, moved, cx.now);
        if *moved > before {
            self.unflushed = true;
            cx.timeout_grace = cx.timeout_grace.max(splicing.timeout_grace());
        }
        if is_empty && splicing.has_stalled() {
            self.shrink(sink, SMALLEST_READ);
        } else if is_empty && splicing.is_small() {
            self.shrink(sink, self.read_size / 2);
        }
        is_empty
    }

    /// Makes reads smaller, and ends splicing.
    fn shrink(&mut self, sink: &Side, read_size: usize) {
        (self.read_size, self.full_reads) = (read_size.max(SMALLEST_READ), 0);
        self.is_bulk = false;
        if let Some(splicing) = self.splicing.take() {
            splicing.end(sink);
        }
    }

    /// Sends what is unsent and has it flushed. Returns whether nothing is left.
    fn send_unsent(&mut self, sink: &mut Side, moved: &mut u64) -> bool {
        while self.sent < self.unsent.len() {
            let Some(len) = sink.write(&self.unsent[self.sent..]) else { return false };
            self.sent += len;
            self.unflushed = true;
            *moved += len as u64;
        }
        if self.sent > 0 {
            (self.unsent, self.sent) = (Vec::new(), 0); // frees the memory
        }
        if self.unflushed {
            self.unflushed = sink.flush().is_none();
        }
        !self.unflushed
    }

    /// Appends the last of a stream to what is unsent, if the peer may have ended its stream. Not
    /// while splicing: what is unsent is in a pipe then.
    fn read_ahead(&mut self, source: &mut Side, sink: &Side, scratch: &mut [u8]) {
        if self.splicing.is_some() || !source.may_have_ended() {
            return;
        }
        // Else what was sent long ago would pile up, for a sink that never takes all.
        self.unsent.drain(..self.sent);
        self.sent = 0;
        while self.flow == Flow::Open && source.may_have_ended() && !sink.has_failed() {
            let room = scratch.len().saturating_sub(self.unsent.len());
            if room == 0 {
                return;
            }
            match source.read(&mut scratch[..room]) {
                None => return,
                Some(0) => self.flow = Flow::Ending,
                Some(len) => self.unsent.extend_from_slice(&scratch[..len]),
            }
        }
    }

    /// Writes what was read: an end of stream if it is empty. Keeps what the sink does not take.
    fn pass_on(
        &mut self,
        mut bytes: &[u8],
        read_size: usize,
        largest: usize,
        sink: &mut Side,
        moved: &mut u64,
    ) {
        if bytes.is_empty() {
            self.flow = Flow::Ending;
            return;
        }
        let filled_the_read = bytes.len() == read_size;
        while !bytes.is_empty() {
            let Some(len) = sink.write(bytes) else { break };
            bytes = &bytes[len..];
            self.unflushed = true;
            *moved += len as u64;
        }
        if !bytes.is_empty() {
            self.unsent = bytes.to_vec();
            self.shrink(sink, self.read_size / 2);
        } else if filled_the_read {
            self.full_reads += 1;
            if self.full_reads == READS_TO_GROW {
                let full_size = largest.max(SMALLEST_READ);
                (self.read_size, self.full_reads) = ((self.read_size * 2).min(full_size), 0);
                self.is_bulk = self.read_size == full_size;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::net::Readiness;
    #[cfg(unix)]
    use crate::testing::pipes::PlentyOfPipes;
    use crate::testing::script::{Act, Script, Seen};

    /// Both sides of a direction, with everything that events could have said.
    struct Rig {
        direction: Direction,
        from: Side,
        to: Side,
        source: Seen,
        sink: Seen,
        scratch: Vec<u8>,
        pipes: Pipes,
        now: Instant,
        moved: u64,
    }

    impl Rig {
        fn new(source: Script, sink: Script) -> Self {
            let (source_seen, sink_seen) = (source.seen(), sink.seen());
            let mut rig = Self {
                direction: Direction::new(Vec::new()),
                from: Side::new(Box::new(source)),
                to: Side::new(Box::new(sink)),
                source: source_seen,
                sink: sink_seen,
                scratch: vec![0; 64 * 1024],
                pipes: Pipes::new(None),
                now: Instant::now(),
                moved: 0,
            };
            rig.events();
            rig
        }

        fn events(&mut self) {
            self.from.set_ready(Readiness::READ_WRITE);
            self.to.set_ready(Readiness::READ_WRITE);
        }

        fn drive(&mut self, budget: usize) -> DirectionProgress {
            self.drive_before_closing(budget, false)
        }

        fn drive_before_closing(
            &mut self,
            budget: usize,
            sink_closes_next: bool,
        ) -> DirectionProgress {
            let mut cx = DriveContext {
                scratch: &mut self.scratch,
                pipes: &mut self.pipes,
                now: self.now,
                timeout_grace: Duration::ZERO,
            };
            self.direction.drive(
                &mut self.from,
                &mut self.to,
                &mut cx,
                budget,
                &mut self.moved,
                sink_closes_next,
            )
        }

        fn received(&self) -> Vec<u8> {
            self.sink.written()
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn c6_1_every_byte_arrives_once_and_in_order_however_small_the_pieces() {
        let data = pattern(1000);
        let source = Script::new()
            .reads(data.chunks(7).flat_map(|piece| [Act::Data(piece.to_vec()), Act::Block]))
            .reads([Act::End]);
        let sink = Script::new().takes([1, 0, 3, 0, 2, 1, 0].repeat(600));
        let mut rig = Rig::new(source, sink);
        let mut drives = 0;
        while rig.drive(100) != DirectionProgress::Ended {
            rig.events();
            drives += 1;
            assert!(drives < 10_000, "no progress");
        }
        assert_eq!(rig.received(), data);
        assert_eq!(rig.moved, 1000);
        assert!(rig.sink.is_shut());
    }

    #[test]
    fn c6_2_the_end_is_passed_on_after_unsent_bytes() {
        let source = Script::new().reads([Act::Data(b"tail".to_vec()), Act::End]);
        let mut rig = Rig::new(source, Script::new().takes([1, 0, 0]));
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        assert!(!rig.sink.is_shut() && !rig.direction.source_has_ended());
        rig.events();
        rig.events();
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        rig.events();
        assert_eq!(rig.drive(1000), DirectionProgress::Ended);
        assert_eq!(rig.received(), b"tail");
        assert!(rig.sink.is_shut());
    }

    #[test]
    fn c6_3_nothing_is_read_while_bytes_are_unsent_and_nothing_is_held_once_they_are_sent() {
        let source =
            Script::new().reads([Act::Data(pattern(100)), Act::Data(pattern(100)), Act::Block]);
        let read = source.seen();
        let mut rig = Rig::new(source, Script::new().takes([10, 0]));
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!((read.reads(), rig.direction.unsent.len()), (1, 90));
        rig.events();
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!((read.reads(), rig.direction.unsent.capacity()), (3, 0));
        assert_eq!(rig.received().len(), 200);
    }

    #[test]
    fn c6_3_reads_grow_while_the_reader_keeps_up_and_shrink_when_it_does_not() {
        let source = Script::new().reads((0..6).map(|_| Act::Data(pattern(2 << 20))));
        let mut sizes = vec![usize::MAX; 3 * READS_TO_GROW as usize];
        sizes.extend([5, 0]);
        let mut rig = Rig::new(source, Script::new().takes(sizes));
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!(rig.received().len(), READS_TO_GROW as usize * (16 + 32 + 64) * 1024 + 5);
        assert_eq!(
            rig.direction.unsent.len(),
            64 * 1024 - 5,
            "at most one read of the largest size"
        );
        assert_eq!((rig.direction.read_size, rig.direction.full_reads), (32 * 1024, 0));
    }

    #[test]
    fn c6_6_a_spent_budget_leaves_the_rest_for_later_without_an_event() {
        let source = Script::new().reads([Act::Data(pattern(40_000)), Act::Block]);
        let mut rig = Rig::new(source, Script::new());
        assert_eq!(rig.drive(1), DirectionProgress::Unfinished);
        assert_eq!(rig.received().len(), SMALLEST_READ);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!(rig.received(), pattern(40_000));
    }

    #[test]
    fn c6_4_an_end_after_an_error_is_an_abort() {
        let source = Script::new()
            .reads([Act::Data(b"before".to_vec()), Act::End])
            .error(ErrorKind::ConnectionReset);
        let mut rig = Rig::new(source, Script::new());
        rig.from.set_ready(Readiness { error: true, ..Readiness::default() });
        assert_eq!(rig.from.failure().unwrap().kind(), ErrorKind::ConnectionReset);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!(rig.received(), b"before", "what came before the reset is passed on");
        assert!(!rig.sink.is_shut() && !rig.direction.source_has_ended());
    }

    #[test]
    fn c6_4_errors_stay_with_the_side_that_met_them() {
        let source = Script::new().reads([Act::Fail(ErrorKind::ConnectionReset)]);
        let mut rig = Rig::new(source, Script::new());
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        assert!(rig.from.has_failed() && !rig.to.has_failed());

        let source = Script::new().reads([Act::Data(b"x".to_vec()), Act::Block]);
        let mut rig = Rig::new(source, Script::new().write_error(ErrorKind::BrokenPipe));
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        assert!(rig.to.has_failed() && !rig.from.has_failed());
    }

    #[test]
    fn c9_1_an_interrupted_call_is_repeated() {
        let source = Script::new().reads([
            Act::Fail(ErrorKind::Interrupted),
            Act::Data(b"x".to_vec()),
            Act::Fail(ErrorKind::Interrupted),
            Act::End,
        ]);
        let mut rig = Rig::new(source, Script::new());
        assert_eq!(rig.drive(1000), DirectionProgress::Ended);
        assert_eq!(rig.received(), b"x");
    }

    #[test]
    fn a_short_read_ends_reading_only_where_the_stream_guarantees_it_and_the_peer_goes_on() {
        let script = || {
            Script::new().reads([Act::Data(b"x".to_vec()), Act::Data(b"y".to_vec()), Act::Block])
        };
        let reads = |script: Script, event: Readiness| {
            let seen = script.seen();
            let mut rig = Rig::new(script, Script::new());
            rig.from.set_ready(event);
            rig.drive(1000);
            seen.reads()
        };
        let nothing = Readiness::default();
        assert_eq!(reads(script(), nothing), 3);
        assert_eq!(reads(script().drained_by_short_reads(), nothing), 1);
        // With these no further event would tell of what is left.
        let closed = Readiness { read_closed: true, ..nothing };
        assert_eq!(reads(script().drained_by_short_reads(), closed), 3);
        let urgent = Readiness { priority: true, ..nothing };
        assert_eq!(reads(script().drained_by_short_reads(), urgent), 3);
    }

    #[test]
    fn c1_2_a_flush_that_blocks_holds_back_reading_and_the_end() {
        let source = Script::new().reads([Act::Data(b"record".to_vec()), Act::End]);
        let read = source.seen();
        let mut rig = Rig::new(source, Script::new().flush_blocks(2));
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        rig.events();
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        assert_eq!(read.reads(), 1);
        rig.events();
        assert_eq!(rig.drive(1000), DirectionProgress::Ended);
        assert!(rig.sink.is_shut());
    }

    #[test]
    fn c1_2_unsent_bytes_and_a_preface_are_flushed() {
        let source = || Script::new().reads([Act::Data(b"record".to_vec()), Act::End]);
        let mut unsent = Rig::new(source(), Script::new().takes([0]).flush_blocks(1));
        assert_eq!(unsent.drive(1000), DirectionProgress::Blocked);
        let mut preface = Rig::new(source(), Script::new().flush_blocks(1));
        preface.direction = Direction::new(b"preface".to_vec());
        for rig in [&mut unsent, &mut preface] {
            rig.events();
            assert_eq!(rig.drive(1000), DirectionProgress::Blocked, "not flushed");
            rig.events();
            assert_eq!(rig.drive(1000), DirectionProgress::Ended);
        }
    }

    #[test]
    fn c6_6_a_spent_budget_asks_for_no_turn_if_nothing_is_left() {
        let source = Script::new().reads([Act::Data(pattern(10))]).drained_by_short_reads();
        let mut rig = Rig::new(source, Script::new());
        assert_eq!(rig.drive(1), DirectionProgress::Blocked);
    }

    #[test]
    fn c1_2_ending_the_write_side_may_block() {
        let mut rig = Rig::new(Script::new().reads([Act::End]), Script::new().shutdown_blocks(1));
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        assert!(rig.direction.source_has_ended() && !rig.sink.is_shut());
        rig.events();
        assert_eq!(rig.drive(1000), DirectionProgress::Ended);
        assert!(rig.sink.is_shut());
    }

    #[test]
    fn c6_2_the_end_is_left_to_the_closing_only_where_it_follows_and_is_enough() {
        let ended_by_closing = |sink: Script, sink_closes_next| {
            let mut rig =
                Rig::new(Script::new().reads([Act::Data(b"tail".to_vec()), Act::End]), sink);
            assert_eq!(rig.drive_before_closing(1000, sink_closes_next), DirectionProgress::Ended);
            assert_eq!(rig.received(), b"tail");
            !rig.sink.is_shut()
        };
        assert!(ended_by_closing(Script::new().closed_by_dropping(), true));
        assert!(!ended_by_closing(Script::new().closed_by_dropping(), false));
        assert!(!ended_by_closing(Script::new(), true));
    }

    #[test]
    fn c6_4_a_sink_that_has_failed_is_not_ended_by_closing_it() {
        let sink = Script::new().closed_by_dropping().error(ErrorKind::ConnectionReset);
        let mut rig = Rig::new(Script::new().reads([Act::End]), sink);
        rig.to.set_ready(Readiness { error: true, ..Readiness::default() });
        assert_eq!(rig.drive_before_closing(1000, true), DirectionProgress::Blocked);
    }

    #[test]
    fn a_preface_goes_first_and_only_once() {
        let mut rig =
            Rig::new(Script::new().reads([Act::Data(b"body".to_vec()), Act::End]), Script::new());
        rig.direction = Direction::new(b"head ".to_vec());
        assert_eq!(rig.drive(1000), DirectionProgress::Ended);
        assert_eq!(rig.received(), b"head body");
    }

    #[test]
    fn a_sink_that_takes_nothing_has_failed() {
        let source = Script::new().reads([Act::Data(b"x".to_vec()), Act::Block]);
        let mut rig = Rig::new(source, Script::new().write_zero());
        assert_eq!(rig.drive(1000), DirectionProgress::Blocked);
        assert_eq!(rig.to.failure().unwrap().kind(), ErrorKind::WriteZero);
    }

    /// A direction that can be spliced, with more than enough written at once for its reads to
    /// grow.
    #[cfg(unix)]
    fn bulk(more: impl IntoIterator<Item = Act>, takes: impl IntoIterator<Item = usize>) -> Rig {
        let source = Script::new().splices().reads([Act::Data(pattern(GROWTH))]).reads(more);
        let grown = std::iter::repeat_n(usize::MAX, 2 * READS_TO_GROW as usize);
        let mut rig = Rig::new(source, Script::new().splices().takes(grown.chain(takes)));
        rig.pipes = Pipes::new(Some(Box::new(PlentyOfPipes(1 << 20))));
        rig
    }

    /// What is copied until reads are as large as the scratch buffer.
    #[cfg(unix)]
    const GROWTH: usize = READS_TO_GROW as usize * (16 + 32) * 1024;

    #[test]
    #[cfg(unix)]
    fn c6_8_bulk_is_spliced_once_reads_have_grown_and_copied_again_when_they_shrink() {
        let more = [100_000, 20, SMALLEST_READ, 20, 20, 20, 20, 70_000];
        let mut rig = bulk(more.map(|len| Act::Data(pattern(len))), []);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!(rig.received().len(), GROWTH + more.iter().sum::<usize>());
        assert_eq!(rig.moved, rig.received().len() as u64);
        assert_eq!(rig.source.splice_calls(), 7, "what follows small pieces is copied");
        assert_eq!(rig.direction.read_size, 32 * 1024);
    }

    #[test]
    #[cfg(unix)]
    fn c6_8_what_the_sink_does_not_take_stays_in_the_pipe_and_is_counted_when_it_is_taken() {
        let more = [Act::Data(pattern(100_000)), Act::End];
        let mut rig = bulk(more, [60_000, 0, 10_000, 0]);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!((rig.moved, rig.direction.unsent.len()), (GROWTH as u64 + 60_000, 0));
        rig.events();
        assert_eq!(
            (rig.drive(usize::MAX), rig.moved),
            (DirectionProgress::Blocked, GROWTH as u64 + 70_000)
        );
        assert!(!rig.direction.source_has_ended(), "nothing is read meanwhile");
        rig.events();
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Ended);
        assert_eq!(rig.received()[GROWTH..], pattern(100_000));
        assert!(rig.sink.is_shut());
    }

    #[test]
    #[cfg(unix)]
    fn c6_8_a_reader_that_stalls_gets_what_is_in_the_pipe_and_then_small_copies() {
        let more = [100_000, 400_000].map(|len| Act::Data(pattern(len)));
        let mut rig = bulk(more, [60_000, 0, 40_000, 5, 0]);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        rig.events();
        rig.now += Duration::from_secs(1);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        assert_eq!(rig.source.splice_calls(), 1);
        assert_eq!(rig.direction.unsent.len(), SMALLEST_READ - 5);
        assert!(rig.direction.splicing.is_none());
    }

    #[test]
    fn c3_10_c9_1_what_is_read_ahead_for_a_reader_that_is_always_slow_stays_bounded() {
        let source = Script::new().reads([Act::Data(pattern(6 << 20))]);
        let mut rig = Rig::new(source, Script::new().takes([1000, 0].repeat(10_000)));
        rig.from.set_ready(Readiness { readable: true, read_closed: true, ..Readiness::default() });
        for _ in 0..4000 {
            rig.to.set_ready(Readiness { writable: true, ..Readiness::default() });
            rig.drive(usize::MAX);
            assert!(
                rig.direction.unsent.len() <= 2 * rig.scratch.len(),
                "more than a pipe's worth"
            );
        }
        assert!(rig.moved > 3_000_000);
    }

    #[test]
    #[cfg(unix)]
    fn c6_8_a_reader_that_is_blocked_for_a_moment_keeps_up() {
        let more = [100_000, 400_000].map(|len| Act::Data(pattern(len)));
        let mut rig = bulk(more, [60_000, 0, 10_000, 0]);
        assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        for _ in 0..2 {
            rig.events();
            rig.now += Duration::from_millis(60); // since it was blocked, or took something
            assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
        }
        assert_eq!((rig.source.splice_calls(), rig.received().len()), (3, GROWTH + 500_000));
        assert!(rig.direction.splicing.is_some());
    }

    #[test]
    #[cfg(unix)]
    fn c6_8_bulk_is_copied_unless_both_sides_can_be_spliced_and_there_is_a_pipe() {
        let more = || [Act::Data(pattern(400_000))];
        let mut rig = bulk(more(), []);
        rig.pipes = Pipes::new(None);
        let source = || Script::new().reads([Act::Data(pattern(GROWTH))]).reads(more());
        let mut from_none = Rig::new(source(), Script::new().splices());
        let mut to_none = Rig::new(source().splices(), Script::new());
        for rig in [&mut from_none, &mut to_none] {
            rig.pipes = Pipes::new(Some(Box::new(PlentyOfPipes(1 << 20))));
        }
        for rig in [&mut rig, &mut from_none, &mut to_none] {
            assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
            assert_eq!((rig.source.splice_calls(), rig.received().len()), (0, GROWTH + 400_000));
        }
    }

    #[test]
    #[cfg(unix)]
    fn c6_8_nothing_is_spliced_beyond_what_an_event_says_of_urgent_data_or_an_end() {
        for event in [
            Readiness { priority: true, ..Readiness::default() },
            Readiness { read_closed: true, ..Readiness::default() },
        ] {
            let mut rig = bulk([Act::Data(pattern(400_000)), Act::Block, Act::End], []);
            rig.from.set_ready(event);
            assert_eq!(rig.drive(usize::MAX), DirectionProgress::Blocked);
            assert_eq!((rig.source.splice_calls(), rig.received().len()), (0, GROWTH + 400_000));
        }
    }
}
