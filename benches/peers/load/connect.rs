//! Connections on which the first message has been answered, so that they are known to be open from
//! end to end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::time::Duration;

use mio::net::TcpStream;

use crate::Fallible;
use crate::wire::{self, MESSAGE, Message, Order};

/// Only a failing run waits as long.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) backend: u8,
}

pub(crate) fn echo() -> Message {
    Order::Echo.encode()
}

/// One after the other, so that each proxy hands them out evenly.
pub(crate) fn open(target: SocketAddr, count: usize, order: Message) -> Fallible<Vec<Connection>> {
    (0..count).map(|_| open_one(target, order)).collect()
}

/// Only connections to this backend; those to others are closed again.
pub(crate) fn open_to(
    target: SocketAddr,
    count: usize,
    order: Message,
    backend: Option<u8>,
) -> Fallible<Vec<Connection>> {
    let Some(backend) = backend else { return open(target, count, order) };
    let mut found = Vec::new();
    for _ in 0..100 * count {
        let connection = open_one(target, order)?;
        if connection.backend == backend {
            found.push(connection);
        }
        if found.len() == count {
            return Ok(found);
        }
    }
    Err(format!("backend {backend} is not among those that serve").into())
}

pub(crate) fn open_one(target: SocketAddr, order: Message) -> Fallible<Connection> {
    let mut stream = Blocking::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&order)?;
    let mut answer = [0; MESSAGE];
    stream.read_exact(&mut answer)?;
    let backend =
        wire::answered_by(&order, &answer).ok_or("what came back is not the backend's answer")?;
    stream.set_nonblocking(true)?;
    Ok(Connection { stream: TcpStream::from_std(stream), backend })
}
