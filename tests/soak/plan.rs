//! What one connection is going to do, on both ends: its number and the run's seed determine it, so that the backend,
//! told the number by the client, knows its part.

use std::time::Duration;

use crate::pattern::Pattern;
use crate::random::{Random, mix};

/// What the client and the backend of one connection do.
pub(crate) struct Plan {
    /// What kind of connection it is, in a few words.
    pub(crate) name: &'static str,
    /// Whether the client says who it is, by a [`Header`]. One that leaves at once does not.
    pub(crate) is_announced: bool,
    pub(crate) client: Vec<Step>,
    pub(crate) backend: Vec<Step>,
    /// How much the client's socket holds at most of what it does not read, if that is to be little.
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) upload: Pattern,
    pub(crate) download: Pattern,
}

/// One thing that an end does. After the last it closes its socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Sends so many bytes, receives so many, or both at once.
    Move { send: u64, receive: u64, pace: Pace },
    /// Ends its stream.
    End,
    /// Reads the other's end of stream, and no byte before it.
    ExpectEnd,
    /// Neither reads nor writes.
    Rest(Duration),
    /// Leaves by a reset. (Where there are none, on Unix-domain sockets, by closing its socket.)
    Reset,
    /// Leaves by closing its socket, whatever is still to be read.
    Vanish,
}

/// How fast bytes are moved: so many at a time, and then a pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) piece: usize,
    pub(crate) pause: Duration,
}

impl Pace {
    const FULL: Self = Self { piece: usize::MAX, pause: Duration::ZERO };
}

/// More than any connection lives to move: it goes on until the other end leaves, or the connection is cut.
const ENDLESS: u64 = u64::MAX;
const NONE: u64 = 0;

impl Plan {
    pub(crate) fn new(seed: u64, connection: u64) -> Self {
        let key = mix(seed, connection);
        let mut random = Random::new(key);
        let random = &mut random;
        let (name, client, backend) = match random.below(100) {
            0..25 => short(random),
            25..40 => round_trips(random),
            40..46 => bulk(random),
            46..51 => idle(random),
            51..63 => half_close(random),
            63..69 => slow_client(random),
            69..74 => slow_backend(random),
            74..78 => trickle(random),
            78..82 => client_resets(random),
            82..86 => client_vanishes(random),
            86..91 => client_leaves_at_once(random),
            91..96 => backend_resets(random),
            _ => backend_vanishes(random),
        };
        Self {
            name,
            is_announced: name != LEAVES_AT_ONCE,
            client,
            backend,
            receive_buffer: (name == SLOW_CLIENT).then_some(16 * 1024),
            upload: Pattern::new(mix(key, 1)),
            download: Pattern::new(mix(key, 2)),
        }
    }
}

impl Plan {
    /// What is to be judged by it.
    pub(crate) fn brief(&self) -> Brief {
        let leaves = |steps: &[Step]| steps.last().copied().and_then(Leave::of);
        Brief {
            name: self.name,
            is_announced: self.is_announced,
            client_leaves: leaves(&self.client),
            backend_leaves: leaves(&self.backend),
        }
    }
}

/// A plan in short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brief {
    pub(crate) name: &'static str,
    pub(crate) is_announced: bool,
    pub(crate) client_leaves: Option<Leave>,
    pub(crate) backend_leaves: Option<Leave>,
}

/// How an end leaves before all is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Resetting,
    Closing,
}

impl Leave {
    fn of(step: Step) -> Option<Self> {
        match step {
            Step::Reset => Some(Self::Resetting),
            Step::Vanish => Some(Self::Closing),
            _ => None,
        }
    }
}

const LEAVES_AT_ONCE: &str = "client leaves at once";
const SLOW_CLIENT: &str = "slow client";

/// A name, what the client does, and what the backend does.
type Parts = (&'static str, Vec<Step>, Vec<Step>);

fn send(bytes: u64) -> Step {
    Step::Move { send: bytes, receive: NONE, pace: Pace::FULL }
}

fn receive(bytes: u64) -> Step {
    Step::Move { send: NONE, receive: bytes, pace: Pace::FULL }
}

fn both(send: u64, receive: u64) -> Step {
    Step::Move { send, receive, pace: Pace::FULL }
}

fn slowly(step: Step, piece: usize, millis: u64) -> Step {
    let pace = Pace { piece, pause: Duration::from_millis(millis) };
    match step {
        Step::Move { send, receive, .. } => Step::Move { send, receive, pace },
        other => other,
    }
}

fn rest(random: &mut Random, least: u64, most: u64) -> Step {
    Step::Rest(Duration::from_millis(random.between(least, most)))
}

/// A question and an answer. Either end may be the first to end its stream.
fn short(random: &mut Random) -> Parts {
    ends_in_order("short", random, 2_000, 2_000)
}

/// One end has finished long before the other.
fn half_close(random: &mut Random) -> Parts {
    ends_in_order("half-close", random, 1 << 20, 1 << 20)
}

fn ends_in_order(name: &'static str, random: &mut Random, most_up: u64, most_down: u64) -> Parts {
    let (up, down) = (random.between(0, most_up), random.between(0, most_down));
    match random.below(3) {
        // The client ends, and the backend answers when it has seen that.
        0 => (
            name,
            vec![send(up), Step::End, receive(down), Step::ExpectEnd],
            vec![receive(up), Step::ExpectEnd, send(down), Step::End],
        ),
        // The backend ends, and the client sends the most of what it has when it has seen that.
        1 => (
            name,
            vec![receive(down), Step::ExpectEnd, send(up), Step::End],
            vec![send(down), Step::End, receive(up), Step::ExpectEnd],
        ),
        // A question, and an answer that ends with the stream.
        _ => (
            name,
            vec![send(up), receive(down), Step::ExpectEnd, Step::End],
            vec![receive(up), send(down), Step::End, Step::ExpectEnd],
        ),
    }
}

fn in_order((name, mut client, mut backend): Parts) -> Parts {
    client.extend([Step::End, Step::ExpectEnd]);
    backend.extend([Step::ExpectEnd, Step::End]);
    (name, client, backend)
}

fn round_trips(random: &mut Random) -> Parts {
    let (question, answer) = (random.between(1, 300), random.between(1, 30_000));
    let count = random.between(5, 50) as usize;
    in_order((
        "round trips",
        [send(question), receive(answer)].repeat(count),
        [receive(question), send(answer)].repeat(count),
    ))
}

fn bulk(random: &mut Random) -> Parts {
    let bytes = random.between(1 << 20, 16 << 20);
    let (name, up, down) = match random.below(3) {
        0 => ("bulk up", bytes, NONE),
        1 => ("bulk down", NONE, bytes),
        _ => ("bulk both ways", bytes, bytes / 2),
    };
    in_order((name, vec![both(up, down)], vec![both(down, up)]))
}

fn idle(random: &mut Random) -> Parts {
    let pause = rest(random, 500, 4_000);
    in_order((
        "idle",
        vec![send(50), receive(50), pause, send(50), receive(50)],
        vec![receive(50), send(50), receive(50), send(50)],
    ))
}

/// Bytes get stuck in the balancer, for the client's kernel is told to hold little.
fn slow_client(random: &mut Random) -> Parts {
    let bytes = random.between(1 << 20, 4 << 20);
    in_order((SLOW_CLIENT, vec![slowly(receive(bytes), 128 * 1024, 10)], vec![send(bytes)]))
}

fn slow_backend(random: &mut Random) -> Parts {
    let bytes = random.between(1 << 20, 8 << 20);
    in_order(("slow backend", vec![send(bytes)], vec![slowly(receive(bytes), 128 * 1024, 10)]))
}

/// A few bytes at a time, both ways at once.
fn trickle(random: &mut Random) -> Parts {
    let (up, down) = (random.between(50, 300), random.between(50, 300));
    in_order(("trickle", vec![slowly(both(up, down), 3, 10)], vec![slowly(both(down, up), 2, 7)]))
}

/// What the end that stays does until it sees that the other has left: sends, receives, or both.
fn until_cut(random: &mut Random) -> Step {
    match random.below(3) {
        0 => send(ENDLESS),
        1 => receive(ENDLESS),
        _ => both(ENDLESS, ENDLESS),
    }
}

fn client_resets(random: &mut Random) -> Parts {
    let bytes = random.between(0, 1 << 20);
    let client = vec![send(bytes), rest(random, 0, 100), Step::Reset];
    ("client resets", client, vec![receive(bytes), until_cut(random)])
}

/// In the middle of a flood, of which it leaves much unread.
fn client_vanishes(random: &mut Random) -> Parts {
    let client = vec![receive(random.between(0, 1 << 20)), rest(random, 20, 200), Step::Vanish];
    ("client vanishes", client, vec![send(ENDLESS)])
}

fn client_leaves_at_once(random: &mut Random) -> Parts {
    (LEAVES_AT_ONCE, vec![if random.is_heads() { Step::Reset } else { Step::Vanish }], Vec::new())
}

fn backend_resets(random: &mut Random) -> Parts {
    let bytes = random.between(0, 1 << 20);
    let backend = vec![send(bytes), rest(random, 0, 100), Step::Reset];
    ("backend resets", vec![receive(bytes), until_cut(random)], backend)
}

/// In the middle of a flood, of which it leaves much unread.
fn backend_vanishes(random: &mut Random) -> Parts {
    let backend = vec![receive(random.between(0, 1 << 20)), rest(random, 20, 200), Step::Vanish];
    ("backend vanishes", vec![send(ENDLESS)], backend)
}
