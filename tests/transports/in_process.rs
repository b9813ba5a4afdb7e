//! A transport without sockets, inside one process.
//!
//! Bytes go through bounded queues. The only thing the event queue sees of them is a bell: a socket
//! pair whose bytes mean nothing but "look again".

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use tinylb::mio::event::Source;
use tinylb::mio::{self, Interest, Registry, Token};
use tinylb::{Address, Backend, Dial, DialRequest, Listener, Readiness, Stream};
use tinylb_tests::{PATIENCE, Peer, source_by_field};

/// How many bytes a queue holds.
const CAPACITY: usize = 1000;

/// Wakes the event queue when its other end is written to.
struct Bell(mio::net::UnixStream);

impl Bell {
    fn new() -> (Self, UnixStream) {
        let (bell, rope) = UnixStream::pair().unwrap();
        bell.set_nonblocking(true).unwrap();
        rope.set_nonblocking(true).unwrap();
        (Self(mio::net::UnixStream::from_std(bell)), rope)
    }

    /// Makes it ring anew at the next pull.
    fn silence(&self) {
        while (&self.0).read(&mut [0; 64]).is_ok_and(|len| len > 0) {}
    }
}

impl Source for Bell {
    fn register(&mut self, registry: &Registry, token: Token, _: Interest) -> io::Result<()> {
        self.0.register(registry, token, Interest::READABLE)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, _: Interest) -> io::Result<()> {
        self.0.reregister(registry, token, Interest::READABLE)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }
}

/// Both directions of a connection.
struct Connection {
    state: Mutex<State>,
    changed: Condvar,
    rope: UnixStream,
}

#[derive(Default)]
struct State {
    to_peer: Queue,
    from_peer: Queue,
    /// Whether the peer knows of the connection.
    is_accepted: bool,
    /// Whether one of the ends has aborted it.
    is_aborted: bool,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    is_ended: bool,
}

impl Queue {
    fn push(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.len().min(CAPACITY - self.bytes.len()) {
            0 if !bytes.is_empty() => Err(ErrorKind::WouldBlock.into()),
            len => {
                self.bytes.extend(&bytes[..len]);
                Ok(len)
            }
        }
    }

    fn pop(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.bytes.read(room)? {
            0 if !self.is_ended => Err(ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }
}

impl Connection {
    /// The balancer's end and the other.
    fn open() -> (InProcessStream, InProcessPeer) {
        let (bell, rope) = Bell::new();
        let connection = Self { state: Mutex::default(), changed: Condvar::new(), rope };
        let connection = Arc::new(connection);
        let peer = InProcessPeer { connection: connection.clone() };
        (InProcessStream { connection, bell, is_ended: false }, peer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The balancer's end.
struct InProcessStream {
    connection: Arc<Connection>,
    bell: Bell,
    is_ended: bool,
}

source_by_field!(InProcessStream, bell);

impl InProcessStream {
    fn attempt<T>(&self, operation: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.connection.state();
        if state.is_aborted {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let result = operation(&mut state);
        self.connection.changed.notify_all();
        result
    }
}

impl Read for InProcessStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.attempt(|state| state.from_peer.pop(room))
    }
}

impl Write for InProcessStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|state| state.to_peer.push(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for InProcessStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.is_ended = true;
        self.attempt(|state| {
            state.to_peer.is_ended = true;
            Ok(())
        })
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        self.attempt(|state| Ok(state.is_accepted))
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Ok(self.attempt(|_| Ok(())).err())
    }

    fn abort(&mut self) {
        self.is_ended = false;
    }

    fn short_read_means_drained(&self) -> bool {
        true
    }

    /// The event is the bell's, and says nothing: the state does.
    fn translate(&self, _: Readiness) -> Readiness {
        self.bell.silence();
        let state = self.connection.state();
        let mut readiness = Readiness::default();
        readiness.readable = !state.from_peer.bytes.is_empty();
        readiness.writable = state.to_peer.bytes.len() < CAPACITY;
        readiness.read_closed = state.from_peer.is_ended;
        readiness.error = state.is_aborted;
        readiness
    }
}

/// What was not ended in order is aborted, and the peer must see that.
impl Drop for InProcessStream {
    fn drop(&mut self) {
        self.connection.state().is_aborted |= !self.is_ended;
        self.connection.changed.notify_all();
    }
}

/// The other end, a client's or a backend's, on threads that block.
#[derive(Clone)]
pub(crate) struct InProcessPeer {
    connection: Arc<Connection>,
}

impl InProcessPeer {
    /// Blocks until the operation can go on.
    fn wait<T>(&self, mut operation: impl FnMut(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.connection.state();
        loop {
            match operation(&mut state) {
                _ if state.is_aborted => return Err(ErrorKind::ConnectionReset.into()),
                Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                result => {
                    self.pull();
                    return result;
                }
            }
            let (woken, timeout) = self.connection.changed.wait_timeout(state, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "nothing has changed");
            state = woken;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.connection.state());
        self.connection.changed.notify_all();
        self.pull();
    }

    fn pull(&self) {
        // A bell that takes no more has rung already and was not listened to yet.
        let _ = (&self.connection.rope).write(&[0]);
    }
}

impl Read for InProcessPeer {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.wait(|state| state.to_peer.pop(room))
    }
}

impl Write for InProcessPeer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(|state| state.from_peer.push(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Peer for InProcessPeer {
    fn end(&mut self) -> io::Result<()> {
        self.change(|state| state.from_peer.is_ended = true);
        Ok(())
    }

    fn leave(self: Box<Self>) {
        self.change(|state| state.is_aborted = true);
    }

    fn share(&self) -> Option<Box<dyn Peer>> {
        Some(Box::new(self.clone()))
    }
}

/// A backend: where connections wait to be accepted, which connects them.
#[derive(Clone, Default)]
pub(crate) struct Backlog {
    waiting: Arc<(Mutex<VecDeque<InProcessPeer>>, Condvar)>,
}

impl Backlog {
    #[track_caller]
    pub(crate) fn accept(&self) -> InProcessPeer {
        let (waiting, arrived) = &*self.waiting;
        let is_empty = |waiting: &mut VecDeque<_>| waiting.is_empty();
        let (mut waiting, _) =
            arrived.wait_timeout_while(waiting.lock().unwrap(), PATIENCE, is_empty).unwrap();
        let peer = waiting.pop_front().expect("nobody dials");
        peer.change(|state| state.is_accepted = true);
        peer
    }
}

impl Backend for Backlog {
    fn target_name(&self) -> String {
        "in process".to_owned()
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        let (stream, peer) = Connection::open();
        self.waiting.0.lock().unwrap().push_back(peer);
        self.waiting.1.notify_all();
        Ok(Dial::new(stream))
    }
}

/// Where clients arrive.
struct InProcessListener {
    arrivals: Arc<Mutex<VecDeque<InProcessStream>>>,
    bell: Bell,
}

source_by_field!(InProcessListener, bell);

/// What clients connect by.
pub(crate) struct Connector {
    arrivals: Arc<Mutex<VecDeque<InProcessStream>>>,
    rope: UnixStream,
}

impl Connector {
    pub(crate) fn new() -> (Self, Box<dyn Listener>) {
        let ((bell, rope), arrivals) = (Bell::new(), Arc::<Mutex<_>>::default());
        let listener = InProcessListener { arrivals: arrivals.clone(), bell };
        (Self { arrivals, rope }, Box::new(listener))
    }

    pub(crate) fn connect(&self) -> InProcessPeer {
        let (stream, peer) = Connection::open();
        self.arrivals.lock().unwrap().push_back(stream);
        let _ = (&self.rope).write(&[0]);
        peer
    }
}

impl Listener for InProcessListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        self.bell.silence();
        let stream = self.arrivals.lock().unwrap().pop_front().ok_or(ErrorKind::WouldBlock)?;
        Ok((Box::new(stream), Address::Other("a client".into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Other("in process".into()))
    }
}
