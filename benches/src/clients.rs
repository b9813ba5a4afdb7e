//! What clients of an echoing backend do, on the thread of the bench.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a client waits for an answer. Only a bench that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What clients send, and expect back.
const MESSAGE: [u8; 64] = [42; 64];

/// Connects one client with each address.
pub fn connect(addrs: impl IntoIterator<Item = SocketAddr>) -> Vec<TcpStream> {
    let connect = |addr| {
        let client = TcpStream::connect(addr).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    };
    addrs.into_iter().map(connect).collect()
}

/// Has all clients send 64 bytes, and then all read the echo.
pub fn exchange(clients: &[TcpStream]) {
    for mut client in clients {
        client.write_all(&MESSAGE).unwrap();
    }
    for mut client in clients {
        let mut echo = [0; MESSAGE.len()];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(echo, MESSAGE);
    }
}
