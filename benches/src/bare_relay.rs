//! The floor: what any relay over epoll must spend at least. It has no feature and handles no
//! error: it moves bytes, passes on the end of a stream, and closes when both have ended.
//!
//! Each socket is registered once, edge-triggered; a read that did not fill the scratch buffer has
//! drained the socket; closing is what deregisters. Nothing is allocated for a pair but its slot,
//! and what its reader did not take.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);
const SCRATCH: usize = 512 * 1024;

/// Serves for ever, on this thread alone.
pub fn serve(listener: std::net::TcpListener, backends: &[SocketAddr]) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut relay = Relay { poll, listener, pairs: Slab::new(), scratch: vec![0; SCRATCH] };
    let mut rotation = backends.iter().copied().cycle();
    let mut events = Events::with_capacity(1024);
    loop {
        relay.poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => relay.accept(&mut rotation)?,
                Token(token) => relay.ready(token / 2, token % 2, event),
            }
        }
    }
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    pairs: Slab<[Side; 2]>,
    scratch: Vec<u8>,
}

struct Side {
    stream: TcpStream,
    /// What this side has yet to take. While there is any, the other side is not read.
    unsent: Vec<u8>,
    has_ended: bool,
}

impl Relay {
    fn accept(&mut self, rotation: &mut impl Iterator<Item = SocketAddr>) -> io::Result<()> {
        while let Ok((client, _)) = self.listener.accept() {
            let Some(backend) = rotation.next() else { continue };
            // Sending on it before it is connected would block, and what would block stays unsent until
            // it is writable.
            let backend = TcpStream::connect(backend)?;
            let slot = self.pairs.vacant_entry();
            let key = slot.key();
            let pair = slot.insert([client, backend].map(|stream| Side {
                stream,
                unsent: Vec::new(),
                has_ended: false,
            }));
            for (index, side) in pair.iter_mut().enumerate() {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(
                    &mut side.stream,
                    Token(key * 2 + index),
                    interest,
                )?;
            }
        }
        Ok(())
    }

    /// An event of a pair that ended a moment ago may reach its successor, which then finds nothing
    /// to do.
    fn ready(&mut self, key: usize, index: usize, event: &Event) {
        let Some([client, backend]) = self.pairs.get_mut(key) else { return };
        let (this, other) = if index == 0 { (client, backend) } else { (backend, client) };
        let mut outcome = Ok(());
        if event.is_writable() && !this.unsent.is_empty() {
            outcome = unstick(this).and_then(|()| relay(other, this, &mut self.scratch, true));
        }
        if event.is_readable() && outcome.is_ok() {
            outcome = relay(this, other, &mut self.scratch, event.is_read_closed());
        }
        if outcome.is_err() || (this.has_ended && other.has_ended) {
            self.pairs.remove(key);
        }
    }
}

/// Moves what there is, until `from` is drained or `to` takes no more, and passes on the end.
fn relay(
    from: &mut Side,
    to: &mut Side,
    scratch: &mut [u8],
    until_blocked: bool,
) -> io::Result<()> {
    while to.unsent.is_empty() && !from.has_ended {
        let read = match from.stream.read(scratch) {
            Ok(0) => {
                from.has_ended = true;
                // What is closed next needs no call of its own.
                return if to.has_ended { Ok(()) } else { to.stream.shutdown(Shutdown::Write) };
            }
            Ok(read) => read,
            Err(err) => return unless_blocked(err),
        };
        let written = write(&mut to.stream, &scratch[..read])?;
        to.unsent.extend_from_slice(&scratch[written..read]);
        if read < scratch.len() && !until_blocked {
            break;
        }
    }
    Ok(())
}

fn unstick(side: &mut Side) -> io::Result<()> {
    let written = write(&mut side.stream, &side.unsent)?;
    side.unsent.drain(..written);
    if side.unsent.is_empty() {
        side.unsent = Vec::new();
    }
    Ok(())
}

fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    stream.write(bytes).or_else(|err| unless_blocked(err).map(|()| 0))
}

fn unless_blocked(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(err) }
}
