//! TCP sockets as streams and listeners.

use std::io;
use std::net::{Shutdown, SocketAddr};

use mio::net::{TcpListener, TcpStream};

use super::{Address, Listener, SocketOptions, Stream, options};

impl Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        match self.peer_addr() {
            // Where nobody listens, a dial whose local port happens to be the port dialled
            // connects to itself, and would echo its client.
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

/// Begins a connection. [`Stream::check_connect`] tells when it is established.
pub(crate) fn dial(addr: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    if options.nodelay {
        stream.set_nodelay(true)?;
    }
    #[cfg(feature = "socket2")]
    options::set(&socket2::SockRef::from(&stream), options)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut stream = dial(addr, &SocketOptions::default()).unwrap();
        assert!(!stream.check_connect().unwrap());
    }

    #[test]
    fn c5_2_a_refused_connect_is_told_by_the_socket_itself() {
        let bound =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // Bound, but not listening.
        bound.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let addr = bound.local_addr().unwrap().as_socket().unwrap();
        let mut stream = dial(addr, &SocketOptions::default()).unwrap();
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
