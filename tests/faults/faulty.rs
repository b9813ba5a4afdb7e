//! Streams, a listener and backends over real sockets, any call of which can be made to fail, block or fall short.
//!
//! A [`Plan`] is asked at each call, and may also do something to the world at that very moment. A stream that is made
//! to block asks the event queue for its readiness anew, as the balancer counts on an event to follow: so the event
//! that comes is the socket's own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tinylb::mio::event::Source;
use tinylb::mio::{Interest, Registry, Token};
use tinylb::{Address, Backend, Dial, DialRequest, Listener, Readiness, SocketOptions, Stream};

/// The side of a pair that a call is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Client,
    Backend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Accept,
    Dial,
    Register,
    CheckConnect,
    TakeError,
    Read,
    Write,
    Flush,
    ShutdownWrite,
    Deregister,
    /// What an event means is asked.
    Translate,
}

const CALLS: usize = Call::Translate as usize + 1;

/// Which call is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub(crate) side: Side,
    pub(crate) call: Call,
    /// The stream of that side, in the order in which they were made, from 0. For `Accept` and `Dial`, which have no
    /// stream yet, it is how many times they were called before.
    pub(crate) stream: usize,
    /// How many times this call was made on this stream before.
    pub(crate) nth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Fails with an error number of Linux.
    Fail(i32),
    /// Would block, once; an event follows.
    Block,
    /// Reads or writes no more bytes than this.
    AtMost(usize),
    /// The event tells of all this besides.
    Say(Flags),
    /// Nothing, but an event follows that nobody waits for.
    Ring,
}

/// What an event may tell of, one bit each.
pub(crate) type Flags = u8;
pub(crate) const READABLE: Flags = 1;
pub(crate) const WRITABLE: Flags = 2;
pub(crate) const READ_CLOSED: Flags = 4;
pub(crate) const WRITE_CLOSED: Flags = 8;
pub(crate) const ERROR: Flags = 16;
pub(crate) const PRIORITY: Flags = 32;

fn flags(event: Readiness) -> Flags {
    let Readiness { readable, writable, read_closed, write_closed, error, priority, .. } = event;
    let said = [readable, writable, read_closed, write_closed, error, priority];
    said.iter().enumerate().map(|(bit, is_said)| Flags::from(*is_said) << bit).sum()
}

pub(crate) type Plan = dyn Fn(Moment) -> Fault + Send + Sync;

/// What all streams of a balancer share: the plan that they follow, and what became of it.
pub(crate) struct Lab {
    plan: Box<Plan>,
    /// Whether the streams have the two properties by which sockets spare calls. Must be false where a plan has reads
    /// fall short, since then the first is not so.
    are_plain_sockets: bool,
    /// The event queue, once something is registered there.
    registry: OnceLock<Registry>,
    streams: [AtomicUsize; 2],
    open: AtomicUsize,
    calls: [AtomicUsize; CALLS],
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    faults: Vec<(Moment, Fault)>,
    /// How many bytes were read from each stream.
    read: BTreeMap<(Side, usize), usize>,
    /// What events have told of each stream, the plan's additions aside.
    told: BTreeMap<(Side, usize), Flags>,
}

impl Lab {
    pub(crate) fn new(plan: impl Fn(Moment) -> Fault + Send + Sync + 'static) -> Self {
        Self {
            plan: Box::new(plan),
            are_plain_sockets: false,
            registry: OnceLock::new(),
            streams: Default::default(),
            open: AtomicUsize::new(0),
            calls: Default::default(),
            record: Mutex::default(),
        }
    }

    /// With streams that are deregistered and ended by dropping them, and drained by a short read.
    pub(crate) fn of_plain_sockets(self) -> Self {
        Self { are_plain_sockets: true, ..self }
    }

    /// How many streams there are now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// How many times a call was made, on whatever stream.
    pub(crate) fn calls(&self, call: Call) -> usize {
        self.calls[call as usize].load(Ordering::SeqCst)
    }

    /// The faults that have struck.
    pub(crate) fn faults(&self) -> Vec<(Moment, Fault)> {
        self.record.lock().unwrap().faults.clone()
    }

    /// How many bytes the balancer has read from a stream.
    pub(crate) fn bytes_read(&self, side: Side, stream: usize) -> usize {
        self.record.lock().unwrap().read.get(&(side, stream)).copied().unwrap_or(0)
    }

    /// What events have ever told of a stream, the plan's additions aside.
    pub(crate) fn told(&self, side: Side, stream: usize) -> Flags {
        self.record.lock().unwrap().told.get(&(side, stream)).copied().unwrap_or(0)
    }

    fn fault(&self, moment: Moment) -> Fault {
        self.calls[moment.call as usize].fetch_add(1, Ordering::SeqCst);
        let fault = (self.plan)(moment);
        if fault != Fault::Nothing {
            self.record.lock().unwrap().faults.push((moment, fault));
        }
        fault
    }

    /// The fault of a call that has no stream yet.
    fn first_fault(&self, side: Side, call: Call) -> Fault {
        let stream = self.calls(call); // counted on the loop's thread alone
        self.fault(Moment { side, call, stream, nth: 0 })
    }

    /// Has an event come for all that the source is ready for, edge-triggered or not.
    fn ring(&self, source: &mut impl Source, registered: Option<(Token, Interest)>) {
        if let (Some(registry), Some((token, interests))) = (self.registry.get(), registered) {
            registry.reregister(source, token, interests).unwrap();
        }
    }
}

/// A stream that follows the plan.
pub(crate) struct Faulty {
    inner: Box<dyn Stream>,
    lab: Arc<Lab>,
    side: Side,
    number: usize,
    calls: [Cell<usize>; CALLS],
    registered: Option<(Token, Interest)>,
}

impl Faulty {
    fn new(inner: Box<dyn Stream>, side: Side, lab: &Arc<Lab>) -> Self {
        lab.open.fetch_add(1, Ordering::SeqCst);
        let number = lab.streams[side as usize].fetch_add(1, Ordering::SeqCst);
        Self { inner, lab: lab.clone(), side, number, calls: Default::default(), registered: None }
    }

    fn fault(&self, call: Call) -> Fault {
        let count = &self.calls[call as usize];
        let nth = count.replace(count.get() + 1);
        self.lab.fault(Moment { side: self.side, call, stream: self.number, nth })
    }

    /// Suffers what is planned for a call: how many bytes it may move, if it may go on.
    fn suffer(&mut self, call: Call) -> io::Result<usize> {
        match self.fault(call) {
            Fault::Fail(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::Block => {
                self.lab.ring(&mut self.inner, self.registered);
                Err(ErrorKind::WouldBlock.into())
            }
            Fault::Ring => {
                self.lab.ring(&mut self.inner, self.registered);
                Ok(usize::MAX)
            }
            Fault::AtMost(len) => Ok(len.max(1)),
            Fault::Nothing | Fault::Say(_) => Ok(usize::MAX),
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.lab.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Read for Faulty {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let limit = self.suffer(Call::Read)?.min(room.len());
        let len = self.inner.read(&mut room[..limit])?;
        *self.lab.record.lock().unwrap().read.entry((self.side, self.number)).or_default() += len;
        Ok(len)
    }
}

impl Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = self.suffer(Call::Write)?.min(bytes.len());
        self.inner.write(&bytes[..limit])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.suffer(Call::Flush)?;
        self.inner.flush()
    }
}

impl Stream for Faulty {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.suffer(Call::ShutdownWrite)?;
        self.inner.shutdown_write()
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        self.suffer(Call::CheckConnect)?;
        self.inner.check_connect()
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        match self.suffer(Call::TakeError) {
            Err(met) => Ok(Some(met)),
            Ok(_) => self.inner.take_error(),
        }
    }

    fn abort(&mut self) {
        self.inner.abort();
    }

    fn short_read_means_drained(&self) -> bool {
        self.lab.are_plain_sockets && self.inner.short_read_means_drained()
    }

    fn drop_closes(&self) -> bool {
        self.lab.are_plain_sockets && self.inner.drop_closes()
    }

    fn translate(&self, event: Readiness) -> Readiness {
        *self.lab.record.lock().unwrap().told.entry((self.side, self.number)).or_default() |=
            flags(event);
        let mut event = self.inner.translate(event);
        if let Fault::Say(more) = self.fault(Call::Translate) {
            let all = flags(event) | more;
            event.readable = all & READABLE != 0;
            event.writable = all & WRITABLE != 0;
            event.read_closed = all & READ_CLOSED != 0;
            event.write_closed = all & WRITE_CLOSED != 0;
            event.error = all & ERROR != 0;
            event.priority = all & PRIORITY != 0;
        }
        event
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.inner.local_addr()
    }
}

impl Source for Faulty {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.lab.registry.get_or_init(|| registry.try_clone().unwrap());
        self.suffer(Call::Register)?;
        self.registered = Some((token, interests));
        self.inner.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.inner.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.suffer(Call::Deregister)?;
        self.inner.deregister(registry)
    }
}

/// A listener that follows the plan, as do the streams that it accepts.
pub(crate) struct FaultyListener {
    inner: Box<dyn Listener>,
    lab: Arc<Lab>,
    registered: Option<(Token, Interest)>,
}

impl FaultyListener {
    pub(crate) fn new(inner: Box<dyn Listener>, lab: &Arc<Lab>) -> Self {
        Self { inner, lab: lab.clone(), registered: None }
    }
}

impl Listener for FaultyListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        match self.lab.first_fault(Side::Client, Call::Accept) {
            Fault::Fail(code) => return Err(io::Error::from_raw_os_error(code)),
            Fault::Block => {
                self.lab.ring(&mut self.inner, self.registered);
                return Err(ErrorKind::WouldBlock.into());
            }
            _ => {}
        }
        let (stream, addr) = self.inner.accept()?;
        Ok((Box::new(Faulty::new(stream, Side::Client, &self.lab)), addr))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.inner.local_addr()
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        self.inner.set_options(options)
    }
}

impl Source for FaultyListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.lab.registry.get_or_init(|| registry.try_clone().unwrap());
        self.registered = Some((token, interests));
        self.inner.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.inner.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.inner.deregister(registry)
    }
}

/// A backend that follows the plan, as do the streams that it dials.
pub(crate) struct FaultyBackend {
    inner: Box<dyn Backend>,
    lab: Arc<Lab>,
}

impl FaultyBackend {
    pub(crate) fn new(inner: impl Backend + 'static, lab: &Arc<Lab>) -> Self {
        Self { inner: Box::new(inner), lab: lab.clone() }
    }
}

impl Backend for FaultyBackend {
    fn target_name(&self) -> String {
        self.inner.target_name()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        if let Fault::Fail(code) = self.lab.first_fault(Side::Backend, Call::Dial) {
            return Err(io::Error::from_raw_os_error(code));
        }
        Ok(self
            .inner
            .dial(request)?
            .map_stream(|stream| Faulty::new(stream, Side::Backend, &self.lab)))
    }

    fn attempts(&self) -> u32 {
        self.inner.attempts()
    }
}
