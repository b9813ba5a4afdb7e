//! TCP sockets as streams and listeners.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};

use mio::net::{TcpListener, TcpStream};

#[cfg(feature = "socket2")]
use super::error_kind::is_in_progress;
use super::{Address, Listener, SocketOptions, Stream, options};

impl Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        match self.peer_addr() {
            // If nothing listens on a local port, a dial that happens to get that port for itself
            // connects to itself. It would echo its client.
            Ok(peer) if Self::local_addr(self)? == peer => {
                Err(io::ErrorKind::ConnectionRefused.into())
            }
            Ok(_) => Ok(true),
            Err(not_connected) => match Self::take_error(self)? {
                Some(err) => Err(err),
                None if not_connected.kind() == io::ErrorKind::NotConnected => Ok(false),
                None => Err(not_connected),
            },
        }
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        Self::take_error(self)
    }

    #[cfg(feature = "socket2")]
    fn abort(&mut self) {
        // Fails only on a socket that cannot send anything any more.
        let _ = socket2::SockRef::from(&*self).set_linger(Some(std::time::Duration::ZERO));
    }

    fn short_read_means_drained(&self) -> bool {
        // epoll(7) promises it, except at urgent data, which `Readiness::priority` reports.
        // Elsewhere urgent data is not reported, or no event follows unless a read would block.
        cfg!(any(target_os = "linux", target_os = "android"))
    }

    fn drop_closes(&self) -> bool {
        true
    }

    #[cfg(unix)]
    fn splice_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(self))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self).map(Address::from)
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (stream, addr) = Self::accept(self)?;
        Ok((Box::new(stream), addr.into()))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self).map(Address::from)
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        options::set_on_listener(self, options)
    }
}

/// Begins a connection, from this source address if there is one. [`Stream::check_connect`] tells
/// when it is established.
pub(crate) fn dial(
    addr: SocketAddr,
    source: Option<IpAddr>,
    options: &SocketOptions,
) -> io::Result<TcpStream> {
    let stream = match source {
        #[cfg(feature = "socket2")]
        Some(source) => connect_from(source, addr)?,
        _ => TcpStream::connect(addr)?,
    };
    if options.nodelay {
        stream.set_nodelay(true)?;
    }
    #[cfg(feature = "socket2")]
    options::set(&socket2::SockRef::from(&stream), options)?;
    Ok(stream)
}

#[cfg(feature = "socket2")]
fn connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<TcpStream> {
    if source.is_ipv4() != addr.is_ipv4() {
        let problem = format!("{addr} cannot be reached from {source}");
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, problem));
    }
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    match socket.connect(&addr.into()) {
        Err(err) if !is_in_progress(&err) => Err(err),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two sides of the balancer, an accepted and a dialled socket, each with its peer.
    #[cfg(all(feature = "socket2", target_os = "linux"))]
    fn both_sides(options: &SocketOptions) -> [(TcpStream, std::net::TcpStream); 2] {
        let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = Listener::local_addr(&listener).unwrap().ip().unwrap();
        let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_options(options).unwrap();
        let client = std::net::TcpStream::connect(addr).unwrap();
        let (accepted, _) = TcpListener::accept(&listener).unwrap();
        let dialled = dial(peer.local_addr().unwrap(), None, options).unwrap();
        [(accepted, client), (dialled, peer.accept().unwrap().0)]
    }

    #[test]
    #[cfg(all(feature = "socket2", target_os = "linux"))]
    fn c5_3_a_connect_that_fails_at_once_is_a_failed_dial_from_a_given_source_too() {
        for source in [None, Some(IpAddr::from([127, 0, 0, 1]))] {
            // No host: TCP has no broadcast.
            let addr = SocketAddr::from(([255; 4], 9));
            let err = dial(addr, source, &SocketOptions::default()).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::NetworkUnreachable);
        }
    }

    #[test]
    #[cfg(all(feature = "socket2", target_os = "linux"))]
    fn c6_1_urgent_bytes_are_read_in_line() {
        use std::io::{Read, Write};
        for (mut side, mut peer) in both_sides(&SocketOptions::default()) {
            peer.write_all(b"\xff\xf4\xff").unwrap();
            socket2::SockRef::from(&peer).send_out_of_band(b"\xf2").unwrap();
            peer.write_all(b"ABOR").unwrap();
            drop(peer);
            let mut received = Vec::new();
            while received.len() < 8 {
                let mut room = [0; 8];
                match side.read(&mut room) {
                    Ok(0) => break,
                    Ok(len) => received.extend_from_slice(&room[..len]),
                    Err(err) => assert_eq!(err.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!(received, b"\xff\xf4\xff\xf2ABOR");
        }
    }

    #[test]
    #[cfg(all(feature = "socket2", target_os = "linux"))]
    fn c6_5_both_sides_hold_little_unsent_unless_told_otherwise() {
        let marks = |notsent_lowat| {
            both_sides(&SocketOptions { notsent_lowat, ..SocketOptions::default() })
                .map(|(side, _)| socket2::SockRef::from(&side).tcp_notsent_lowat().unwrap())
        };
        assert_eq!(marks(SocketOptions::default().notsent_lowat), [128 << 10; 2]);
        assert_eq!(marks(Some(4096)), [4096; 2]);
        let of_the_system = marks(None);
        assert!(of_the_system.iter().all(|mark| *mark != 128 << 10), "{of_the_system:?}");
    }

    #[test]
    fn c5_2_a_socket_that_met_itself_is_not_connected() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.connect(&socket.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(socket.into());
        assert_eq!(stream.check_connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    #[cfg(target_os = "linux")] // elsewhere a full backlog refuses, or is larger than asked for
    fn c5_2_a_socket_that_nobody_has_answered_yet_is_neither_connected_nor_refused() {
        let full =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let addr = full.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) =
            std::net::TcpStream::connect_timeout(&addr, std::time::Duration::from_millis(500))
        {
            queued.push(stream);
        }
        let mut stream = dial(addr, None, &SocketOptions::default()).unwrap();
        assert!(!stream.check_connect().unwrap());
    }

    #[test]
    fn c5_2_a_refused_connect_is_told_by_the_socket_itself() {
        let bound =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // Bound, but not listening.
        bound.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let addr = bound.local_addr().unwrap().as_socket().unwrap();
        let mut stream = dial(addr, None, &SocketOptions::default()).unwrap();
        let start = std::time::Instant::now();
        let err = loop {
            match Stream::check_connect(&mut stream) {
                Ok(is_connected) => assert!(!is_connected && start.elapsed().as_secs() < 20),
                Err(err) => break err,
            }
        };
        assert_eq!(err.kind(), io::ErrorKind::ConnectionRefused);
    }
}
