//! A stream, a listener and a backend over real sockets, any call of which can be made to fail,
//! block or fall short.
//!
//! A [`Plan`] is asked at each call, and may also do something to the world at that very moment. A
//! stream that is made to block asks the event queue for its readiness anew, so that the event that
//! comes is the socket's own.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tinylb::mio::event::Source;
use tinylb::mio::{Interest, Registry, Token};
use tinylb::{
    Address, Backend, Dial, DialRequest, IntoListener, Listener, Readiness, SocketOptions, Stream,
    TcpBackend,
};

use crate::Side;

/// Has a type be registered with the event queue by one of its fields.
#[macro_export]
macro_rules! source_by_field {
    ($type:ty, $field:tt) => {
        impl tinylb::mio::event::Source for $type {
            fn register(
                &mut self,
                registry: &tinylb::mio::Registry,
                token: tinylb::mio::Token,
                on: tinylb::mio::Interest,
            ) -> std::io::Result<()> {
                self.$field.register(registry, token, on)
            }

            fn reregister(
                &mut self,
                registry: &tinylb::mio::Registry,
                token: tinylb::mio::Token,
                on: tinylb::mio::Interest,
            ) -> std::io::Result<()> {
                self.$field.reregister(registry, token, on)
            }

            fn deregister(&mut self, registry: &tinylb::mio::Registry) -> std::io::Result<()> {
                self.$field.deregister(registry)
            }
        }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Accept,
    Dial,
    Register,
    CheckConnect,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub side: Side,
    pub call: Call,
    /// The stream of that side, in the order in which they were made. For `Accept` and `Dial`,
    /// which have no stream yet, how many times they were called before.
    pub stream: usize,
    /// How many times this call was made on this stream before.
    pub nth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// Fails with an error number of Linux.
    Fail(i32),
    /// Would block, once; an event follows.
    Block,
    /// Reads or writes no more bytes than this.
    AtMost(usize),
}

pub type Plan = dyn Fn(Moment) -> Fault + Send + Sync;

/// What all fakes of a balancer share.
pub struct Lab {
    plan: Box<Plan>,
    /// Whether streams have the properties by which plain sockets save calls. Must be false where
    /// reads fall short.
    are_plain_sockets: bool,
    /// The event queue, once something is registered there.
    registry: OnceLock<Registry>,
    streams: [AtomicUsize; 2],
    open: AtomicUsize,
    calls: [AtomicUsize; CALLS],
}

impl Lab {
    pub fn new(plan: impl Fn(Moment) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        Self::make(plan, false)
    }

    /// With streams that are deregistered and ended by dropping them, and drained by a short read.
    pub fn of_plain_sockets(plan: impl Fn(Moment) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        Self::make(plan, true)
    }

    fn make(
        plan: impl Fn(Moment) -> Fault + Send + Sync + 'static,
        are_plain_sockets: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            plan: Box::new(plan),
            are_plain_sockets,
            registry: OnceLock::new(),
            streams: Default::default(),
            open: AtomicUsize::new(0),
            calls: Default::default(),
        })
    }

    pub fn listener(self: &Arc<Self>, inner: impl IntoListener) -> Box<dyn Listener> {
        let inner = inner.into_listener().unwrap();
        Box::new(FakeListener { inner, lab: self.clone() })
    }

    pub fn backend(self: &Arc<Self>, addr: std::net::SocketAddr) -> FakeBackend {
        FakeBackend { inner: TcpBackend::new(addr), lab: self.clone() }
    }

    /// How many streams there are now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn calls(&self, call: Call) -> usize {
        self.calls[call as usize].load(Ordering::SeqCst)
    }

    fn fault(&self, moment: Moment) -> Fault {
        self.calls[moment.call as usize].fetch_add(1, Ordering::SeqCst);
        (self.plan)(moment)
    }

    /// The fault of a call that has no stream yet.
    fn first_fault(&self, side: Side, call: Call) -> Fault {
        let stream = self.calls(call); // counted on the loop's thread alone
        self.fault(Moment { side, call, stream, nth: 0 })
    }
}

struct FakeStream {
    inner: Box<dyn Stream>,
    lab: Arc<Lab>,
    side: Side,
    number: usize,
    calls: [Cell<usize>; CALLS],
    registered: Option<(Token, Interest)>,
}

impl FakeStream {
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

    /// Returns how many bytes the call may move, if it may go on.
    fn apply_fault(&mut self, call: Call) -> io::Result<usize> {
        match self.fault(call) {
            Fault::Fail(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::Block => {
                // Has an event come for all that the stream is ready for.
                if let (Some(registry), Some((token, on))) =
                    (self.lab.registry.get(), self.registered)
                {
                    registry.reregister(&mut self.inner, token, on)?;
                }
                Err(ErrorKind::WouldBlock.into())
            }
            Fault::AtMost(len) => Ok(len.max(1)),
            Fault::Nothing => Ok(usize::MAX),
        }
    }
}

impl Drop for FakeStream {
    fn drop(&mut self) {
        self.lab.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Read for FakeStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let limit = self.apply_fault(Call::Read)?.min(room.len());
        self.inner.read(&mut room[..limit])
    }
}

impl Write for FakeStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = self.apply_fault(Call::Write)?.min(bytes.len());
        self.inner.write(&bytes[..limit])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.apply_fault(Call::Flush)?;
        self.inner.flush()
    }
}

impl Stream for FakeStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.apply_fault(Call::ShutdownWrite)?;
        self.inner.shutdown_write()
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        self.apply_fault(Call::CheckConnect)?;
        self.inner.check_connect()
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        self.inner.take_error()
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
        let _ = self.fault(Call::Translate);
        self.inner.translate(event)
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.inner.local_addr()
    }
}

impl Source for FakeStream {
    fn register(&mut self, registry: &Registry, token: Token, on: Interest) -> io::Result<()> {
        self.lab.registry.get_or_init(|| registry.try_clone().unwrap());
        self.apply_fault(Call::Register)?;
        self.registered = Some((token, on));
        self.inner.register(registry, token, on)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, on: Interest) -> io::Result<()> {
        self.inner.reregister(registry, token, on)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.apply_fault(Call::Deregister)?;
        self.inner.deregister(registry)
    }
}

struct FakeListener {
    inner: Box<dyn Listener>,
    lab: Arc<Lab>,
}

source_by_field!(FakeListener, inner);

impl Listener for FakeListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        if let Fault::Fail(code) = self.lab.first_fault(Side::Client, Call::Accept) {
            return Err(io::Error::from_raw_os_error(code));
        }
        let (stream, addr) = self.inner.accept()?;
        Ok((Box::new(FakeStream::new(stream, Side::Client, &self.lab)), addr))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.inner.local_addr()
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        self.inner.set_options(options)
    }
}

pub struct FakeBackend {
    inner: TcpBackend,
    lab: Arc<Lab>,
}

impl Backend for FakeBackend {
    fn target_name(&self) -> String {
        self.inner.target_name()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        if let Fault::Fail(code) = self.lab.first_fault(Side::Backend, Call::Dial) {
            return Err(io::Error::from_raw_os_error(code));
        }
        let dial = self.inner.dial(request)?;
        Ok(dial.map_stream(|stream| FakeStream::new(stream, Side::Backend, &self.lab)))
    }

    fn attempts(&self) -> u32 {
        self.inner.attempts()
    }
}
