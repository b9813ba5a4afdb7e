//! What clients and backends say to each other through a balancer, so that any byte lost, doubled
//! or moved shows.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::{HAS_RESETS, PATIENCE, Peer, Random, StreamEnd, set_io_timeouts};

/// A side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Backend,
}

/// Which side ends its stream first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The backend answers once it has read the client's end.
    ClientFirst,
    /// The client goes on once it has read the backend's end.
    BackendFirst,
    /// Both send at once.
    Together,
}

impl Order {
    pub const ALL: [Self; 3] = [Self::ClientFirst, Self::BackendFirst, Self::Together];

    /// Whether this side sends before it receives.
    fn is_first(self, side: Side) -> Option<bool> {
        match self {
            Self::ClientFirst => Some(side == Side::Client),
            Self::BackendFirst => Some(side == Side::Backend),
            Self::Together => None,
        }
    }
}

/// One conversation. The client says at its start what it is about, so the backend needs no other
/// word of it.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    pub seed: u64,
    pub up: u64,
    pub down: u64,
    pub order: Order,
    /// Who leaves before its time, and after how many bytes: sent ones, unless the other side sends
    /// first.
    pub leaves: Option<(Side, u64)>,
    /// Who pauses between reads.
    pub lags: Option<Side>,
}

/// What one side has got.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub len: u64,
    /// Whether something else came than was sent.
    pub is_wrong: bool,
    pub end: StreamEnd,
}

const NOTHING: Received = Received { len: 0, is_wrong: false, end: StreamEnd::Reset };
const PIECE: usize = 32 * 1024;
const LAG: Duration = Duration::from_millis(5);

impl Talk {
    /// How long the header of a conversation is.
    pub const HEADER: usize = 5 * 8;

    pub fn new(seed: u64, up: u64, down: u64, order: Order) -> Self {
        Self { seed, up, down, order, leaves: None, lags: None }
    }

    fn header(&self) -> [u8; Self::HEADER] {
        let side = |side: Option<Side>| side.map_or(0, |side| side as u64 + 1);
        let (who, after) = self.leaves.unzip();
        let roles = self.order as u64 | side(who) << 8 | side(self.lags) << 16;
        let words = [self.seed, self.up, self.down, after.unwrap_or(0), roles];
        std::array::from_fn(|i| words[i / 8].to_be_bytes()[i % 8])
    }

    fn of_header(header: [u8; Self::HEADER]) -> Self {
        let word = |at: usize| u64::from_be_bytes(header[at * 8..][..8].try_into().unwrap());
        let side = |shift: u64| {
            [None, Some(Side::Client), Some(Side::Backend)][(word(4) >> shift) as usize & 3]
        };
        Self {
            seed: word(0),
            up: word(1),
            down: word(2),
            order: Order::ALL[word(4) as usize & 3],
            leaves: side(8).map(|side| (side, word(3))),
            lags: side(16),
        }
    }

    /// Has the conversation on the client's end.
    pub fn hold(&self, peer: impl Peer + 'static) -> Received {
        let mut peer: Box<dyn Peer> = Box::new(peer);
        if peer.write_all(&self.header()).is_err() {
            return NOTHING;
        }
        self.play(Side::Client, peer)
    }

    /// Connects, unless it is reset so soon that it fails, and has the conversation.
    pub fn hold_at(&self, addr: SocketAddr) -> Received {
        match TcpStream::connect_timeout(&addr, PATIENCE) {
            Ok(stream) => {
                set_io_timeouts(&stream);
                self.hold(stream)
            }
            Err(err) => {
                assert_eq!(err.kind(), ErrorKind::ConnectionReset);
                NOTHING
            }
        }
    }

    /// Has it on the backend's end. Returns `None` if the client did not say what it is to be
    /// about.
    pub fn answer(peer: impl Peer + 'static) -> Option<(Self, Received)> {
        let mut peer: Box<dyn Peer> = Box::new(peer);
        let mut header = [0; Self::HEADER];
        peer.read_exact(&mut header).ok()?;
        let talk = Self::of_header(header);
        Some((talk, talk.play(Side::Backend, peer)))
    }

    fn play(&self, side: Side, mut peer: Box<dyn Peer>) -> Received {
        if let Some((_, after)) = self.leaves.filter(|(who, _)| *who == side) {
            if self.order.is_first(side) == Some(false) {
                self.receive(side, &mut *peer, after);
            } else {
                self.send(side, &mut *peer, after.min(self.sent_by(side)));
            }
            peer.leave();
            return NOTHING;
        }
        let all = self.sent_by(side);
        let send = |peer: &mut dyn Peer| self.send(side, peer, all) && peer.end().is_ok();
        match self.order.is_first(side) {
            Some(true) => {
                let is_sent = send(&mut *peer);
                self.receive(side, &mut *peer, u64::MAX).after(is_sent)
            }
            Some(false) => {
                let received = self.receive(side, &mut *peer, u64::MAX);
                let goes_on = received.end == StreamEnd::Clean;
                received.after(!goes_on || send(&mut *peer))
            }
            None => std::thread::scope(|scope| {
                let mut other = peer.share().expect("such a peer cannot do both at once");
                let sending = scope.spawn(move || send(&mut *other));
                let received = self.receive(side, &mut *peer, u64::MAX);
                received.after(sending.join().unwrap())
            }),
        }
    }

    fn sent_by(&self, side: Side) -> u64 {
        if side == Side::Client { self.up } else { self.down }
    }

    fn send(&self, side: Side, peer: &mut dyn Peer, len: u64) -> bool {
        let (mut piece, mut sent) = ([0; PIECE], 0);
        while sent < len {
            let size = (len - sent).min(PIECE as u64) as usize;
            fill(self.key(side), sent, &mut piece[..size]);
            let result = peer.write_all(&piece[..size]).map(|()| size);
            if StreamEnd::of(&result).is_some() {
                return false;
            }
            sent += size as u64;
        }
        peer.flush().is_ok()
    }

    /// Reads until the stream ends, or until at least so many bytes have come.
    fn receive(&self, side: Side, peer: &mut dyn Peer, enough: u64) -> Received {
        let key = self.key(if side == Side::Client { Side::Backend } else { Side::Client });
        let (mut room, mut due) = ([0; PIECE], [0; PIECE]);
        let mut received = NOTHING;
        while received.len < enough {
            let result = peer.read(&mut room);
            if let Some(end) = StreamEnd::of(&result) {
                return Received { end, ..received };
            }
            let size = result.unwrap_or(0);
            fill(key, received.len, &mut due[..size]);
            received.is_wrong |= room[..size] != due[..size];
            received.len += size as u64;
            if self.lags == Some(side) {
                std::thread::sleep(LAG);
            }
        }
        received
    }

    fn key(&self, sender: Side) -> u64 {
        Random::new(self.seed ^ (sender as u64) << 63).word()
    }

    /// The client has got all, and then the end.
    #[track_caller]
    pub fn assert_came_down(&self, received: &Received) {
        received.assert_complete(self.down);
    }

    #[track_caller]
    pub fn assert_came_up(&self, received: &Received) {
        received.assert_complete(self.up);
    }
}

impl Received {
    /// A reset that a write has met is not told to a read any more.
    fn after(self, is_sent: bool) -> Self {
        if is_sent { self } else { Self { end: StreamEnd::Reset, ..self } }
    }

    #[track_caller]
    pub fn assert_complete(&self, sent: u64) {
        assert_eq!((self.is_wrong, self.len, self.end), (false, sent, StreamEnd::Clean));
    }

    /// What came was sent so, and what ended as if it were complete is, if aborts differ from ends.
    pub fn is_honest(&self, sent: u64, sees_aborts: bool) -> bool {
        let looks_complete = self.end == StreamEnd::Clean && sees_aborts;
        !self.is_wrong && self.len <= sent && (self.len == sent || !looks_complete)
    }

    #[track_caller]
    pub fn assert_honest(&self, sent: u64) {
        assert!(self.is_honest(sent, HAS_RESETS), "{self:?} of {sent}");
    }
}

/// The bytes of a stream from a position on: each depends on the key and on its place.
pub fn fill(key: u64, position: u64, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let place = position + at as u64;
        let word = Random::new(key ^ (place / 8)).word().to_be_bytes();
        let piece = &word[(place % 8) as usize..];
        let len = piece.len().min(bytes.len() - at);
        bytes[at..at + len].copy_from_slice(&piece[..len]);
        at += len;
    }
}
