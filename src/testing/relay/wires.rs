//! Two simulated sockets with a peer behind each: what has come in, what goes out, and which events
//! are due.
//!
//! They keep to what `Stream` asks of a transport and not a hair beyond it: an event comes only
//! where the contract demands one, and every call may be cut short, interrupted, or blocked for a
//! moment. What the relay must never do, they notice in the call that does it.

use std::io::{self, ErrorKind};
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use mio::{Interest, Registry, Token};

use crate::net::{Readiness, Stream};
use crate::random::Random;

/// What a stream that holds bytes back holds at most.
const LARGEST_RECORD: u64 = 1000;
/// For how many calls a stream moves only so much at a time.
const SMALL_CALLS: u8 = 200;
/// So many calls that move nothing, in one drive, are a busy loop.
const TOO_MANY_CALLS: u32 = 32;
/// More is not sent in a schedule, for the sake of speed.
const MOST_SENT: u64 = 400_000;

/// What kind of stream a socket is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kind {
    pub(crate) drained_by_short_reads: bool,
    pub(crate) drop_closes: bool,
    /// Any event means "try everything", and says nothing else.
    pub(crate) is_bell: bool,
    /// Bytes that were written go out when they are flushed.
    pub(crate) holds_back: bool,
    /// Bulk may be spliced from it and to it.
    pub(crate) splices: bool,
}

/// One socket and its peer. Bytes are numbered from the first in their direction, which also says
/// what they are.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) kind: Kind,
    /// What the peer has sent, and how much of it was read.
    pub(crate) sent: u64,
    pub(crate) read: u64,
    /// The peer has finished sending.
    pub(crate) is_finished: bool,
    /// The end of stream was read, and no error before it.
    pub(crate) end_was_read: bool,
    /// Where the peer has sent something out of band, at which a read stops short.
    pub(crate) mark: Option<u64>,
    /// What was written, and how much of it is held back.
    pub(crate) written: u64,
    pub(crate) held: u64,
    /// How much more goes out before the peer has to make room.
    pub(crate) room: u64,
    pub(crate) is_shut: bool,
    /// The connection is dead; the error tells of it once.
    pub(crate) is_dead: bool,
    pub(crate) error: Option<ErrorKind>,
    /// An event has told of an end of stream: the rest may be read ahead.
    pub(crate) end_was_told: bool,
    /// Something has failed, and the relay was told.
    pub(crate) has_told: bool,
    /// It cannot be asked for its error.
    pub(crate) is_mute: bool,
    /// The next write takes nothing without a reason.
    pub(crate) takes_nothing: bool,
    /// The most that a read or write moves, for some more of them.
    most: u64,
    small_calls: u8,
    /// Calls to be interrupted, and to be blocked until the next event, which is due at once.
    pub(crate) interruptions: u8,
    pub(crate) read_hiccups: u8,
    pub(crate) write_hiccups: u8,
    /// What the next event will say.
    pub(crate) due: Readiness,
    /// The relay was told that it would block, and of nothing since: when it no longer would, an
    /// event is due.
    pub(crate) read_is_blocked: bool,
    pub(crate) write_is_blocked: bool,
    /// In one drive: how many calls have moved nothing since the last that did, and whether a read
    /// was blocked for no reason.
    idle_calls: u32,
    pub(crate) read_is_cut_short: bool,
}

impl Wire {
    pub(crate) fn new(kind: Kind, room: u64) -> Self {
        Self { kind, room, read_is_blocked: true, ..Self::default() }
    }

    pub(crate) fn has_something_to_read(&self) -> bool {
        self.read < self.sent || (self.is_finished && !self.end_was_read) || self.is_dead
    }

    /// Whether an event comes when there is something to read, or is due already.
    pub(crate) fn will_tell_what_to_read(&self) -> bool {
        let due = self.due;
        self.read_is_blocked && !self.has_something_to_read()
            || due.readable
            || due.read_closed
            || due.error
    }

    pub(crate) fn begin_drive(&mut self) {
        (self.idle_calls, self.read_is_cut_short) = (0, false);
    }

    pub(crate) fn send(&mut self, count: u64) {
        if !self.is_finished && !self.is_dead {
            self.sent = (self.sent + count).min(MOST_SENT);
            self.due.readable |= self.read_is_blocked;
        }
    }

    pub(crate) fn send_mark(&mut self) {
        if !self.is_finished && !self.is_dead {
            self.mark = Some(self.sent);
            self.due.priority |= self.kind.drained_by_short_reads;
            self.due.readable |= self.read_is_blocked || self.kind.drained_by_short_reads;
        }
    }

    pub(crate) fn finish(&mut self) {
        if !self.is_finished && !self.is_dead {
            self.is_finished = true;
            self.due.readable |= self.read_is_blocked;
            // A short read of what came before would hide it otherwise.
            self.due.read_closed |= self.kind.drained_by_short_reads;
        }
    }

    /// The connection dies. It need not say so if the relay is about to read or write anyway.
    pub(crate) fn die(&mut self, error: ErrorKind, says_so: bool) {
        if !self.is_dead {
            (self.is_dead, self.error) = (true, Some(error));
            self.due.readable |= self.read_is_blocked;
            self.due.writable |= self.write_is_blocked;
            self.due.error |= says_so || self.kind.drained_by_short_reads;
        }
    }

    pub(crate) fn move_at_most(&mut self, count: u64) {
        (self.most, self.small_calls) = (count, SMALL_CALLS);
    }

    /// The most that this call moves.
    fn most(&mut self) -> u64 {
        if self.small_calls == 0 {
            return u64::MAX;
        }
        self.small_calls -= 1;
        self.most
    }

    pub(crate) fn make_room(&mut self, count: u64) {
        self.room = self.room.saturating_add(count);
        self.due.writable |= self.write_is_blocked && self.room > 0;
    }

    /// Takes the event that is due, made one with flags that mean nothing.
    pub(crate) fn event(&mut self, spurious: Readiness) -> Readiness {
        let due = std::mem::take(&mut self.due);
        let event = Readiness {
            readable: due.readable | spurious.readable,
            writable: due.writable | spurious.writable,
            read_closed: due.read_closed | spurious.read_closed,
            write_closed: due.write_closed | spurious.write_closed,
            error: due.error | spurious.error,
            priority: due.priority | spurious.priority,
        };
        self.end_was_told |= event.read_closed;
        self.read_is_blocked &=
            !(self.kind.is_bell || event.readable || event.read_closed || event.error);
        self.write_is_blocked &=
            !(self.kind.is_bell || event.writable || event.write_closed || event.error);
        event
    }

    fn enter(&mut self) -> io::Result<()> {
        self.idle_calls += 1;
        assert!(self.idle_calls < TOO_MANY_CALLS, "a busy loop: {self:?}");
        if self.interruptions > 0 {
            self.interruptions -= 1;
            return Err(ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    fn tell<T>(&mut self, error: ErrorKind) -> io::Result<T> {
        self.has_told = true;
        Err(error.into())
    }

    fn block_read<T>(&mut self) -> io::Result<T> {
        self.read_is_blocked = true;
        Err(ErrorKind::WouldBlock.into())
    }

    fn block_write<T>(&mut self) -> io::Result<T> {
        self.write_is_blocked = true;
        Err(ErrorKind::WouldBlock.into())
    }

    /// Whether output can begin. The relay is told of an error by the first call that meets it.
    fn begin_output(&mut self) -> io::Result<()> {
        assert!(!self.has_told, "used after its error: {self:?}");
        assert!(!self.is_shut, "written to after its end: {self:?}");
        assert!(!self.write_is_blocked, "tried again although no event has come: {self:?}");
        self.enter()?;
        if self.is_dead {
            let error = self.error.take().unwrap_or(ErrorKind::BrokenPipe);
            return self.tell(error);
        }
        if self.write_hiccups > 0 {
            self.write_hiccups -= 1;
            self.due.writable = true;
            return self.block_write();
        }
        Ok(())
    }

    fn pass_on_held(&mut self) {
        let count = self.held.min(self.room);
        self.held -= count;
        self.room -= count;
    }
}

/// Both wires, and what the backend gets before the client's bytes.
#[derive(Debug)]
pub(crate) struct Wires {
    /// The client's, and the backend's.
    pub(crate) ends: [Wire; 2],
    pub(crate) preface: u64,
}

impl Wires {
    /// What has to be written to this end before anything more is read from the other.
    pub(crate) fn owed_to(&self, end: usize) -> u64 {
        self.prefix_of(end) + self.ends[1 - end].read
    }

    fn prefix_of(&self, end: usize) -> u64 {
        if end == BACKEND { self.preface } else { 0 }
    }

    /// Whether these are the bytes that belong at this place of what is written to an end.
    fn belong(&self, bytes: &[u8], end: usize, place: u64) -> bool {
        let (preface, place) = (self.prefix_of(end) as usize, place as usize);
        let (first, rest) = bytes.split_at(preface.saturating_sub(place).min(bytes.len()));
        let after = (place + first.len()).saturating_sub(preface);
        PREFACE[place.min(preface)..].starts_with(first) && SENT[1 - end][after..].starts_with(rest)
    }

    fn assert_all_is_delivered_to(&self, end: usize) {
        assert!(
            self.ends[end].held == 0 && self.ends[end].written == self.owed_to(end),
            "bytes are undelivered: {self:?}"
        );
    }
}

pub(crate) const CLIENT: usize = 0;
pub(crate) const BACKEND: usize = 1;

/// All that the ends may send. No part is like another, nor like one of the other end.
static SENT: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [1, 2].map(|seed| noise(seed, MOST_SENT)));
/// What may go before.
pub(crate) static PREFACE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(3, MOST_SENT));

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// One of the two sockets, seen from the relay.
pub(crate) struct Socket {
    wires: Arc<Mutex<Wires>>,
    end: usize,
}

impl Socket {
    pub(crate) fn new(wires: Arc<Mutex<Wires>>, end: usize) -> Self {
        Self { wires, end }
    }

    fn lock(&self) -> MutexGuard<'_, Wires> {
        lock(&self.wires)
    }
}

pub(crate) fn lock(wires: &Mutex<Wires>) -> MutexGuard<'_, Wires> {
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

impl io::Read for Socket {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.take(room, false)
    }
}

impl Socket {
    /// Reads, or fills a pipe: that stops for good at what was sent out of band, and says that
    /// there is nothing more where a read would tell of an end.
    fn take(&mut self, room: &mut [u8], by_splicing: bool) -> io::Result<usize> {
        let mut wires = self.lock();
        assert!(!room.is_empty(), "a read without room cannot tell an end");
        if !wires.ends[self.end].end_was_told {
            wires.assert_all_is_delivered_to(1 - self.end);
        }
        assert!(!wires.ends[1 - self.end].has_told, "read for a side that has failed: {wires:?}");
        let wire = &mut wires.ends[self.end];
        assert!(!wire.end_was_read, "read after the end: {wire:?}");
        wire.enter()?;
        if wire.read_hiccups > 0 {
            wire.read_hiccups -= 1;
            (wire.due.readable, wire.read_is_cut_short) = (true, true);
            return wire.block_read();
        }
        let place = wire.read;
        let until = wire.mark.filter(|mark| *mark > place).unwrap_or(wire.sent);
        let stops = by_splicing && wire.kind.drained_by_short_reads && wire.mark == Some(place);
        let count = if stops { 0 } else { (until - place).min(room.len() as u64) };
        if count > 0 {
            let is_whole = wire.kind.drained_by_short_reads && !by_splicing;
            let count = if is_whole { count } else { count.min(wire.most()) };
            wire.idle_calls = 0;
            room[..count as usize]
                .copy_from_slice(&SENT[self.end][place as usize..][..count as usize]);
            wire.read += count;
            let is_short = count < room.len() as u64;
            wire.read_is_blocked |= is_whole && is_short && !wire.has_something_to_read();
            return Ok(count as usize);
        }
        if let Some(error) = wire.error.take() {
            return wire.tell(error);
        }
        if wire.is_finished || wire.is_dead {
            wire.end_was_read = wire.is_finished && !wire.has_told && !by_splicing;
            return Ok(0);
        }
        wire.block_read()
    }
}

impl io::Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wires = self.lock();
        let place = wires.ends[self.end].written;
        let wire = &mut wires.ends[self.end];
        wire.begin_output()?;
        assert!(!bytes.is_empty(), "nothing is written, which takes a call");
        if std::mem::take(&mut wire.takes_nothing) {
            wire.has_told = true;
            return Ok(0);
        }
        let room = if wire.kind.holds_back {
            wire.pass_on_held();
            LARGEST_RECORD - wire.held
        } else {
            wire.room
        };
        if room == 0 {
            return wire.block_write();
        }
        let count = room.min(bytes.len() as u64).min(wire.most());
        wire.idle_calls = 0;
        wire.written += count;
        if wire.kind.holds_back {
            wire.held += count;
        } else {
            wire.room -= count;
        }
        assert!(
            wires.belong(&bytes[..count as usize], self.end, place),
            "C6.1: other bytes than sent: {wires:?}"
        );
        Ok(count as usize)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut wires = self.lock();
        let wire = &mut wires.ends[self.end];
        wire.begin_output()?;
        wire.pass_on_held();
        if wire.held > 0 { wire.block_write() } else { Ok(()) }
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let mut wires = self.lock();
        wires.assert_all_is_delivered_to(self.end);
        assert!(wires.ends[1 - self.end].end_was_read, "an end that nobody has sent: {wires:?}");
        let wire = &mut wires.ends[self.end];
        wire.begin_output()?;
        wire.is_shut = true;
        Ok(())
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        let mut wires = self.lock();
        let wire = &mut wires.ends[self.end];
        if wire.is_mute {
            return wire.tell(ErrorKind::NotConnected);
        }
        let error = wire.error.take();
        wire.has_told |= error.is_some();
        Ok(error.map(Into::into))
    }

    fn short_read_means_drained(&self) -> bool {
        self.lock().ends[self.end].kind.drained_by_short_reads
    }

    fn drop_closes(&self) -> bool {
        self.lock().ends[self.end].kind.drop_closes
    }

    #[cfg(unix)]
    fn splice_fd(&self) -> Option<BorrowedFd<'_>> {
        self.lock().ends[self.end].kind.splices.then(crate::testing::pipes::any_fd)
    }

    fn simulate_splice(&mut self, room: &mut [u8]) -> io::Result<usize> {
        assert!(self.lock().ends[self.end].kind.splices, "it cannot be spliced");
        self.take(room, true)
    }

    fn translate(&self, event: Readiness) -> Readiness {
        if self.lock().ends[self.end].kind.is_bell { Readiness::READ_WRITE } else { event }
    }
}

impl mio::event::Source for Socket {
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
