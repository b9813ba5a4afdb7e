//! The addresses of the loopback network, of which Linux has 16 million: backends without number,
//! one listener for all.
//!
//! They also keep short connections comparable. Who ends a connection first cannot use its port
//! again for a while (TIME_WAIT), to the same address, that is. With one address each, the search
//! for a free port soon costs the kernel more than all the rest of the connection, and whoever is
//! measured last looks worst.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// How many clients may wait to be accepted. The standard library's 128 are too few for clients
/// that come all at once.
const BACKLOG: i32 = 4096;

/// Listens at all of them, on one port.
pub fn listener() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
    socket.listen(BACKLOG).unwrap();
    socket.into()
}

/// The first so many, each with this port.
pub fn addrs(count: u32, port: u16) -> Vec<SocketAddr> {
    let first = Ipv4Addr::LOCALHOST.to_bits();
    (first..first + count).map(|addr| (Ipv4Addr::from_bits(addr), port).into()).collect()
}
