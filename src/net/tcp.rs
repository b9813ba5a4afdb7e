//! TCP sockets as streams and listeners.

use std::io;
use std::net::{Shutdown, SocketAddr};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::{Address, Listener, SocketOptions, Stream};

impl Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        // Only a socket without a peer is asked for the reason.
        match self.peer_addr() {
            // Where nobody listens, a dial that happens to be given the very port it goes to connects with itself, and
            // would echo its client.
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
        // A socket that refuses this option is past sending anything.
        let _ = socket2::SockRef::from(&*self).set_linger(Some(std::time::Duration::ZERO));
    }

    fn short_read_means_drained(&self) -> bool {
        // epoll promises it for stream sockets, save at urgent data, of which `Readiness::priority` tells. Elsewhere
        // nothing tells of that, or an event needs a read that blocked before it.
        cfg!(any(target_os = "linux", target_os = "android"))
    }

    fn drop_closes(&self) -> bool {
        true
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self).map(Address::Ip)
    }
}

/// A TCP listener whose clients get the options it was given.
#[derive(Debug)]
pub(super) struct TcpAcceptor {
    listener: TcpListener,
    /// Without socket2 this cannot be set on the listener, to be inherited: each accepted stream is given it.
    #[cfg(not(feature = "socket2"))]
    nodelay: bool,
}

impl TcpAcceptor {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            #[cfg(not(feature = "socket2"))]
            nodelay: false,
        }
    }
}

impl Listener for TcpAcceptor {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (stream, addr) = self.listener.accept()?;
        // The only reason to fail is that the client is gone already, which will be noticed soon enough.
        #[cfg(not(feature = "socket2"))]
        let _ = if self.nodelay { stream.set_nodelay(true) } else { Ok(()) };
        Ok((Box::new(stream), Address::Ip(addr)))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.listener.local_addr().map(Address::Ip)
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        // Accepted sockets inherit these, which saves up to five system calls for each.
        #[cfg(feature = "socket2")]
        {
            let socket = socket2::SockRef::from(&self.listener);
            socket.set_tcp_nodelay(options.nodelay)?;
            if options.keepalive.is_none() {
                socket.set_keepalive(false)?; // the host may have switched it on
            }
            super::options::apply(&socket, options)?;
        }
        #[cfg(not(feature = "socket2"))]
        {
            self.nodelay = options.nodelay;
        }
        Ok(())
    }
}

impl Source for TcpAcceptor {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.listener.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.listener.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.listener.deregister(registry)
    }
}

/// Begins a connection; whether it succeeds, [`Stream::check_connect`] will tell.
pub(crate) fn dial(addr: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    if options.nodelay {
        stream.set_nodelay(true)?;
    }
    #[cfg(feature = "socket2")]
    super::options::apply(&socket2::SockRef::from(&stream), options)?;
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
    #[cfg(target_os = "linux")] // elsewhere a full backlog refuses, or takes more than it was told
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
        bound.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap(); // and does not listen
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

    #[test]
    fn a_listener_is_registered_until_it_is_deregistered() {
        let poll = mio::Poll::new().unwrap();
        let mut listener =
            TcpAcceptor::new(TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap());
        listener.register(poll.registry(), Token(1), Interest::READABLE).unwrap();
        assert!(listener.register(poll.registry(), Token(1), Interest::READABLE).is_err());
        listener.deregister(poll.registry()).unwrap();
        listener.register(poll.registry(), Token(1), Interest::READABLE).unwrap();
    }
}
