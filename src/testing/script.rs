//! A stream for tests that follows a script: what each read returns, how much each write takes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::{Interest, Registry, Token};

use crate::net::{Readiness, Stream};

/// What a read does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Returns bytes, over several reads if there is not room for all.
    Data(Vec<u8>),
    /// Would block, once.
    Block,
    /// Fails, once.
    Fail(ErrorKind),
    /// Ends the stream.
    End,
}

/// A scripted stream. Without a script, reads would block and writes take everything.
#[derive(Debug, Default)]
pub(crate) struct Script {
    state: Seen,
}

/// What has become of a script, seen from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    reads: VecDeque<Act>,
    takes: VecDeque<usize>,
    error: Option<ErrorKind>,
    connect: VecDeque<Result<bool, ErrorKind>>,
    write_error: Option<ErrorKind>,
    write_zero: bool,
    register_error: Option<ErrorKind>,
    interruptions: usize,
    is_mute: bool,
    flush_blocks: usize,
    shutdown_blocks: usize,
    drained_by_short_reads: bool,
    closed_by_dropping: bool,
    translates: bool,
    read_calls: usize,
    splices: bool,
    splice_calls: usize,
    written: Vec<u8>,
    is_shut: bool,
    is_aborted: bool,
    is_dropped: bool,
    token: Option<Token>,
}

impl State {
    fn meet_interruption(&mut self) -> io::Result<()> {
        match self.interruptions.checked_sub(1) {
            Some(left) => {
                self.interruptions = left;
                Err(ErrorKind::Interrupted.into())
            }
            None => Ok(()),
        }
    }
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn with(self, set: impl FnOnce(&mut State)) -> Self {
        set(&mut self.state.lock());
        self
    }

    pub(crate) fn reads(self, acts: impl IntoIterator<Item = Act>) -> Self {
        self.with(|state| state.reads.extend(acts))
    }

    /// How much each write takes; 0 stands for one that would block.
    pub(crate) fn takes(self, sizes: impl IntoIterator<Item = usize>) -> Self {
        self.with(|state| state.takes.extend(sizes))
    }

    /// The error that the socket has met by itself.
    pub(crate) fn error(self, kind: ErrorKind) -> Self {
        self.with(|state| state.error = Some(kind))
    }

    /// Cannot be asked for its error.
    pub(crate) fn mute(self) -> Self {
        self.with(|state| state.is_mute = true)
    }

    /// What the checks of its connect say; afterwards, that it is connected.
    pub(crate) fn connect(self, checks: impl IntoIterator<Item = Result<bool, ErrorKind>>) -> Self {
        self.with(|state| state.connect.extend(checks))
    }

    pub(crate) fn write_error(self, kind: ErrorKind) -> Self {
        self.with(|state| state.write_error = Some(kind))
    }

    pub(crate) fn write_zero(self) -> Self {
        self.with(|state| state.write_zero = true)
    }

    /// How many calls that register it, write or ask for its error are interrupted before the first
    /// that is not.
    pub(crate) fn interrupted(self, times: usize) -> Self {
        self.with(|state| state.interruptions = times)
    }

    /// No event queue takes it.
    pub(crate) fn register_error(self, kind: ErrorKind) -> Self {
        self.with(|state| state.register_error = Some(kind))
    }

    pub(crate) fn flush_blocks(self, times: usize) -> Self {
        self.with(|state| state.flush_blocks = times)
    }

    pub(crate) fn shutdown_blocks(self, times: usize) -> Self {
        self.with(|state| state.shutdown_blocks = times)
    }

    pub(crate) fn drained_by_short_reads(self) -> Self {
        self.with(|state| state.drained_by_short_reads = true)
    }

    pub(crate) fn closed_by_dropping(self) -> Self {
        self.with(|state| state.closed_by_dropping = true)
    }

    /// Takes any event for readiness to read and write, as a protocol with records of its own does.
    pub(crate) fn translates(self) -> Self {
        self.with(|state| state.translates = true)
    }

    /// Offers a descriptor for splicing.
    pub(crate) fn splices(self) -> Self {
        self.with(|state| state.splices = true)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state.clone()
    }
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn then_reads(&self, acts: impl IntoIterator<Item = Act>) {
        self.lock().reads.extend(acts);
    }

    pub(crate) fn then_error(&self, kind: ErrorKind) {
        self.lock().error = Some(kind);
    }

    pub(crate) fn reads(&self) -> usize {
        self.lock().read_calls
    }

    /// How often a pipe was filled from it, including fills that found no bytes.
    pub(crate) fn splice_calls(&self) -> usize {
        self.lock().splice_calls
    }

    pub(crate) fn written(&self) -> Vec<u8> {
        self.lock().written.clone()
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.lock().is_shut
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.lock().is_aborted
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.lock().is_dropped
    }

    pub(crate) fn token(&self) -> Option<Token> {
        self.lock().token
    }
}

impl io::Read for Script {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.read_calls += 1;
        match state.reads.pop_front() {
            None | Some(Act::Block) => Err(ErrorKind::WouldBlock.into()),
            Some(Act::Fail(kind)) => Err(kind.into()),
            Some(Act::End) => {
                state.reads.push_front(Act::End);
                Ok(0)
            }
            Some(Act::Data(mut bytes)) => {
                let len = bytes.len().min(room.len());
                room[..len].copy_from_slice(&bytes[..len]);
                let rest = bytes.split_off(len);
                if !rest.is_empty() {
                    state.reads.push_front(Act::Data(rest));
                }
                Ok(len)
            }
        }
    }
}

impl io::Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.meet_interruption()?;
        if let Some(kind) = state.write_error {
            return Err(kind.into());
        }
        if state.write_zero || bytes.is_empty() {
            return Ok(0);
        }
        assert!(!state.is_shut, "written to after its end");
        let room = state.takes.pop_front().unwrap_or(usize::MAX);
        if room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = bytes.len().min(room);
        state.written.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.flush_blocks > 0 {
            state.flush_blocks -= 1;
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

impl Stream for Script {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.shutdown_blocks > 0 {
            state.shutdown_blocks -= 1;
            return Err(ErrorKind::WouldBlock.into());
        }
        state.is_shut = true;
        Ok(())
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        self.state.lock().connect.pop_front().unwrap_or(Ok(true)).map_err(Into::into)
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        let mut state = self.state.lock();
        state.meet_interruption()?;
        if state.is_mute {
            Err(ErrorKind::NotConnected.into())
        } else {
            Ok(state.error.take().map(Into::into))
        }
    }

    fn abort(&mut self) {
        self.state.lock().is_aborted = true;
    }

    fn short_read_means_drained(&self) -> bool {
        self.state.lock().drained_by_short_reads
    }

    fn drop_closes(&self) -> bool {
        self.state.lock().closed_by_dropping
    }

    #[cfg(unix)]
    fn splice_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.state.lock().splices.then(crate::testing::pipes::any_fd)
    }

    fn simulate_splice(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.state.lock().splice_calls += 1;
        io::Read::read(self, room)
    }

    fn translate(&self, event: Readiness) -> Readiness {
        if self.state.lock().translates { Readiness::READ_WRITE } else { event }
    }
}

impl mio::event::Source for Script {
    fn register(&mut self, _: &Registry, token: Token, _: Interest) -> io::Result<()> {
        let mut state = self.state.lock();
        state.meet_interruption()?;
        if let Some(kind) = state.register_error {
            return Err(kind.into());
        }
        state.token = Some(token);
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("streams are registered once")
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        self.state.lock().token = None;
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.state.lock().is_dropped = true;
    }
}
