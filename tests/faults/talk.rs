//! What clients and backends say to each other through the balancer, so that any byte lost, doubled or moved shows.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use crate::faulty::Side;
use crate::random::Random;
use tinylb_tests::{PATIENCE, StreamEnd, connect, impatient, read_to_end, reset};

/// Which side ends its stream first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The backend answers once it has read the client's end.
    ClientFirst,
    /// The client goes on once it has read the backend's end.
    BackendFirst,
    /// Both send at once.
    Together,
}

impl Order {
    pub(crate) const ALL: [Self; 3] = [Self::ClientFirst, Self::BackendFirst, Self::Together];
}

/// One conversation. The client says at its start which it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    pub(crate) seed: u64,
    pub(crate) up: usize,
    pub(crate) down: usize,
    pub(crate) order: Order,
    /// Who resets, having sent how many bytes.
    pub(crate) reset: Option<(Side, usize)>,
}

/// What one side has got.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: StreamEnd,
}

/// How long the header of a conversation is.
pub(crate) const HEADER: usize = 34;

impl Talk {
    pub(crate) fn new(seed: u64, up: usize, down: usize, order: Order) -> Self {
        Self { seed, up, down, order, reset: None }
    }

    fn header(&self) -> [u8; HEADER] {
        let (who, after) = match self.reset {
            None => (0, 0),
            Some((Side::Client, after)) => (1, after),
            Some((Side::Backend, after)) => (2, after),
        };
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&self.seed.to_be_bytes());
        header[8..16].copy_from_slice(&(self.up as u64).to_be_bytes());
        header[16..24].copy_from_slice(&(self.down as u64).to_be_bytes());
        header[24..32].copy_from_slice(&(after as u64).to_be_bytes());
        header[32] = self.order as u8;
        header[33] = who;
        header
    }

    fn from_header(header: [u8; HEADER]) -> Self {
        let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let reset = match header[33] {
            1 => Some((Side::Client, number(24) as usize)),
            2 => Some((Side::Backend, number(24) as usize)),
            _ => None,
        };
        let order = Order::ALL[usize::from(header[32])];
        Self { seed: number(0), up: number(8) as usize, down: number(16) as usize, order, reset }
    }

    /// What the client sends after the header.
    pub(crate) fn bytes_up(&self) -> Vec<u8> {
        Random::new(self.seed).bytes(self.up)
    }

    pub(crate) fn bytes_down(&self) -> Vec<u8> {
        Random::new(!self.seed).bytes(self.down)
    }

    /// Connects, and has the conversation.
    pub(crate) fn hold(&self, addr: SocketAddr) -> Received {
        match TcpStream::connect_timeout(&addr, PATIENCE) {
            Ok(stream) => self.hold_by(stream),
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => Received::nothing(),
            Err(err) => panic!("cannot connect: {err}"),
        }
    }

    /// Has the conversation on the client's end.
    pub(crate) fn hold_by(&self, mut stream: TcpStream) -> Received {
        impatient(&stream);
        if stream.write_all(&self.header()).is_err() {
            return Received::nothing();
        }
        let first = match self.order {
            Order::ClientFirst => Some(true),
            Order::BackendFirst => Some(false),
            Order::Together => None,
        };
        exchange(stream, &self.bytes_up(), first, self.resets(Side::Client))
    }

    /// Begins a conversation that the client ends first, and sends the first half of its part.
    pub(crate) fn begin(&self, addr: SocketAddr) -> TcpStream {
        assert_eq!((self.order, self.reset), (Order::ClientFirst, None));
        let mut stream = connect(addr);
        stream.write_all(&self.header()).unwrap();
        stream.write_all(&self.bytes_up()[..self.up / 2]).unwrap();
        stream
    }

    /// Has all of the client's part but for reading the answer.
    pub(crate) fn say(&self, addr: SocketAddr) -> TcpStream {
        let stream = self.begin(addr);
        assert!(send(&stream, &self.bytes_up()[self.up / 2..]));
        stream
    }

    /// Goes on with what was begun, to the end.
    pub(crate) fn resume(&self, stream: TcpStream) -> Received {
        exchange(stream, &self.bytes_up()[self.up / 2..], Some(true), None)
    }

    /// Has the conversation on the backend's end, which is told what it is to be about. `None` if it is not.
    fn answer(mut stream: TcpStream) -> (Option<Self>, Received) {
        impatient(&stream);
        let mut header = [0; HEADER];
        if let Err(err) = stream.read_exact(&mut header) {
            let end = if err.kind() == io::ErrorKind::UnexpectedEof {
                StreamEnd::Clean
            } else {
                StreamEnd::Reset
            };
            return (None, Received { bytes: Vec::new(), end });
        }
        let talk = Self::from_header(header);
        let first = match talk.order {
            Order::ClientFirst => Some(false),
            Order::BackendFirst => Some(true),
            Order::Together => None,
        };
        (Some(talk), exchange(stream, &talk.bytes_down(), first, talk.resets(Side::Backend)))
    }

    fn resets(&self, side: Side) -> Option<usize> {
        self.reset.filter(|(who, _)| *who == side).map(|(_, after)| after)
    }
}

impl Received {
    fn nothing() -> Self {
        Self { bytes: Vec::new(), end: StreamEnd::Reset }
    }

    /// All of it came, and then the end.
    #[track_caller]
    pub(crate) fn assert_complete(&self, sent: &[u8]) {
        self.assert_honest(sent);
        assert_eq!((self.bytes.len(), self.end), (sent.len(), StreamEnd::Clean));
    }

    /// What came was sent so, and what ended as if it were complete is.
    #[track_caller]
    pub(crate) fn assert_honest(&self, sent: &[u8]) {
        if let Some(at) = self.bytes.iter().zip(sent).position(|(received, sent)| received != sent)
        {
            panic!("byte {at} of {} is wrong", self.bytes.len());
        }
        assert!(self.bytes.len() <= sent.len(), "{} bytes too many", self.bytes.len() - sent.len());
        let looks_complete = self.end == StreamEnd::Clean && cfg!(feature = "socket2");
        let is_complete = self.bytes.len() == sent.len();
        assert!(
            is_complete || !looks_complete,
            "a clean end after {} of {}",
            self.bytes.len(),
            sent.len()
        );
    }
}

/// Sends and receives, one `first` or both at once.
fn exchange(
    mut stream: TcpStream,
    mine: &[u8],
    first: Option<bool>,
    reset_after: Option<usize>,
) -> Received {
    if let Some(len) = reset_after {
        let _ = stream.write_all(&mine[..len.min(mine.len())]);
        reset(stream);
        return Received::nothing();
    }
    match first {
        Some(true) => {
            let is_sent = send(&stream, mine);
            receive(&stream).after(is_sent)
        }
        Some(false) => {
            let received = receive(&stream);
            if received.end == StreamEnd::Clean {
                send(&stream, mine);
            }
            received
        }
        None => thread::scope(|scope| {
            let sending = scope.spawn(|| send(&stream, mine));
            let received = receive(&stream);
            received.after(sending.join().unwrap())
        }),
    }
}

impl Received {
    /// A reset that a write has met is not told to a read any more.
    fn after(self, is_sent: bool) -> Self {
        if is_sent { self } else { Self { end: StreamEnd::Reset, ..self } }
    }
}

fn send(mut stream: &TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write)).is_ok()
}

fn receive(mut stream: &TcpStream) -> Received {
    let (bytes, end) = read_to_end(&mut stream);
    Received { bytes, end }
}

/// A backend that answers, and reports what it got on each connection.
pub(crate) struct Answering {
    pub(crate) addr: SocketAddr,
    is_over: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

/// What a backend got, by conversation if it came to know it.
pub(crate) type Report = (Option<Talk>, Received);

impl Answering {
    pub(crate) fn new(reports: mpsc::Sender<Report>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, is_over) = (listener.local_addr().unwrap(), Arc::<AtomicBool>::default());
        let acceptor = thread::spawn({
            let is_over = is_over.clone();
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    let reports = reports.clone();
                    // Who no longer waits for reports has all that are to come.
                    thread::spawn(move || drop(reports.send(Talk::answer(stream))));
                }
            }
        });
        Self { addr, is_over, acceptor: Some(acceptor) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr); // wakes the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}
