//! One end of a connection, over whatever transport.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use socket2::Socket;

use crate::{HAS_RESETS, reset};

/// A client's or a backend's end, whose reads and writes block.
pub trait Peer: Read + Write + Send {
    /// Ends its stream; the other direction goes on.
    fn end(&mut self) -> io::Result<()>;
    /// Leaves so that the other side notices: by a reset where there are any.
    fn leave(self: Box<Self>);
    /// The same end for another thread, if reading and writing share nothing.
    fn share(&self) -> Option<Box<dyn Peer>>;
}

impl Peer for TcpStream {
    fn end(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
    fn leave(self: Box<Self>) {
        reset(*self);
    }
    fn share(&self) -> Option<Box<dyn Peer>> {
        Some(Box::new(self.try_clone().unwrap()))
    }
}

/// Of TCP or Unix-domain type.
impl Peer for Socket {
    fn end(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
    fn leave(self: Box<Self>) {
        reset(*self);
    }
    fn share(&self) -> Option<Box<dyn Peer>> {
        Some(Box::new(self.try_clone().unwrap()))
    }
}

impl Peer for Box<dyn Peer> {
    fn end(&mut self) -> io::Result<()> {
        (**self).end()
    }
    fn leave(self: Box<Self>) {
        (*self).leave();
    }
    fn share(&self) -> Option<Box<dyn Peer>> {
        (**self).share()
    }
}

/// How a stream came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// A clean end of stream.
    Clean,
    /// A reset, or over TLS an end without close_notify.
    Reset,
}

impl StreamEnd {
    /// What this result of a read or a write means for the stream, if it is over.
    #[track_caller]
    pub fn of(result: &io::Result<usize>) -> Option<Self> {
        match result {
            Ok(0) => Some(Self::Clean),
            Ok(_) => None,
            Err(err) => match err.kind() {
                ErrorKind::Interrupted => None,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
                    Some(Self::Reset)
                }
                _ => panic!("neither an end nor a reset: {err}"),
            },
        }
    }
}

/// Reads to the end: what came, and how it ended.
#[track_caller]
pub fn read_to_end(stream: &mut impl Read) -> (Vec<u8>, StreamEnd) {
    let (mut bytes, mut room) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let result = stream.read(&mut room);
        if let Some(end) = StreamEnd::of(&result) {
            return (bytes, end);
        }
        bytes.extend_from_slice(&room[..result.unwrap_or(0)]);
    }
}

/// The stream is aborted: by a reset, or by any end where the crate is built without `socket2`.
/// Returns what came before.
#[track_caller]
pub fn assert_aborted(stream: &mut impl Read) -> Vec<u8> {
    let (bytes, end) = read_to_end(stream);
    assert!(end == StreamEnd::Reset || !HAS_RESETS, "ended as if in order");
    bytes
}

/// The first line of what a backend sends.
#[track_caller]
pub fn read_tag(stream: &mut impl Read) -> String {
    let (mut tag, mut byte) = (Vec::new(), [0]);
    loop {
        stream.read_exact(&mut byte).expect("no tag");
        match byte[0] {
            b'\n' => return String::from_utf8(tag).unwrap(),
            byte => tag.push(byte),
        }
    }
}

/// Sends and reads back.
#[track_caller]
pub fn assert_echo(stream: &mut (impl Read + Write), message: &[u8]) {
    stream.write_all(message).and_then(|()| stream.flush()).unwrap();
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(echo, message);
}

/// Bytes in which a lost, doubled or moved piece shows.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
