//! The sockets of clients and backends, TCP and Unix-domain alike: they never block but in one place, with a limit.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
}

impl Kind {
    /// Whether a cut by the balancer is a reset.
    pub(crate) fn sees_resets(self) -> bool {
        self == Self::Tcp && cfg!(feature = "socket2")
    }
}

/// Where somebody listens.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Tcp(_) => Kind::Tcp,
            Self::Unix(_) => Kind::Unix,
        }
    }

    fn sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Self::Tcp(addr) => Ok((*addr).into()),
            Self::Unix(path) => SockAddr::unix(path),
        }
    }

    fn socket(&self) -> io::Result<Socket> {
        Socket::new(
            if self.kind() == Kind::Tcp { Domain::IPV4 } else { Domain::UNIX },
            Type::STREAM,
            None,
        )
    }

    /// Takes the place without listening, so that whoever comes is refused. Returns where it is.
    pub(crate) fn occupy(&self) -> io::Result<(Socket, Self)> {
        let socket = self.socket()?;
        socket.bind(&self.sock_addr()?)?;
        let place = match self {
            Self::Tcp(_) => socket.local_addr()?.as_socket().map(Self::Tcp),
            Self::Unix(path) => Some(Self::Unix(path.clone())),
        };
        Ok((socket, place.ok_or(io::ErrorKind::Unsupported)?))
    }

    pub(crate) fn listen(&self, backlog: i32) -> io::Result<(Socket, Self)> {
        let (socket, place) = self.occupy()?;
        socket.listen(backlog)?;
        socket.set_nonblocking(true)?;
        Ok((socket, place))
    }
}

impl Place {
    /// Connects until nobody can any more.
    pub(crate) fn crowd(&self) -> io::Result<Vec<Socket>> {
        let mut crowd = Vec::new();
        loop {
            let socket = self.socket()?;
            socket.set_nonblocking(true)?;
            match socket.connect(&self.sock_addr()?) {
                Ok(()) => crowd.push(socket),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(crowd),
                Err(err) => return Err(err),
            }
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    pub(crate) kind: Kind,
}

/// A client's socket that has an address of its own, by which the balancer's observer tells who it is.
pub(crate) struct Caller {
    socket: Socket,
    to: Place,
    /// As the balancer displays it.
    pub(crate) addr: String,
    file: Option<PathBuf>,
}

impl Caller {
    /// `host` is the client's own address of the loopback network. Each has ports of its own, so that those in TIME_WAIT
    /// do not run out. On Unix-domain sockets it is a file in `directory`, another for each connection.
    pub(crate) fn new(
        to: &Place,
        host: Ipv4Addr,
        directory: &Path,
        connection: u64,
    ) -> io::Result<Self> {
        let socket = to.socket()?;
        let (addr, file) = match to {
            Place::Tcp(_) => {
                socket.bind(&SocketAddr::from((host, 0)).into())?;
                let addr = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
                (addr.to_string(), None)
            }
            Place::Unix(_) => {
                let file = directory.join(format!("client-{connection}"));
                socket.bind(&SockAddr::unix(&file)?)?;
                (format!("unix:{}", file.display()), Some(file))
            }
        };
        Ok(Self { socket, to: to.clone(), addr, file })
    }

    pub(crate) fn hold_little(&self, receive_buffer: usize) -> io::Result<()> {
        self.socket.set_recv_buffer_size(receive_buffer)
    }

    pub(crate) fn call(self) -> io::Result<Wire> {
        let Self { socket, to, file, .. } = self;
        let connected = socket.connect(&to.sock_addr()?);
        if let Some(file) = file {
            let _ = std::fs::remove_file(file); // the name has served its purpose
        }
        connected?;
        Wire::new(socket, to.kind())
    }
}

/// What a wire is waited for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Wire {
    pub(crate) fn new(socket: Socket, kind: Kind) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, kind })
    }

    pub(crate) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(room)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.socket).write(bytes)
    }

    pub(crate) fn end(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Has the peer see a reset when this is dropped, where there are resets.
    pub(crate) fn prepare_reset(&self) -> io::Result<()> {
        match self.kind {
            Kind::Tcp => self.socket.set_linger(Some(Duration::ZERO)),
            Kind::Unix => Ok(()),
        }
    }

    /// Waits until something wanted is worth trying, or the connection is broken, at most until then. Whether it is
    /// broken; where cuts are resets, that is told of any that has been cut.
    pub(crate) fn wait(&self, wanted: Wanted, until: Instant) -> bool {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, wanted.read);
        events.set(PollFlags::POLLOUT, wanted.write);
        let happened = wait_for(&self.socket, events, until);
        happened.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)
    }
}

/// Waits for a client, at most this long.
pub(crate) fn wait_for_any<'a>(listeners: impl Iterator<Item = &'a Socket>, limit: Duration) {
    let mut polled: Vec<_> =
        listeners.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
    let _ = poll(&mut polled, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)); // whoever came, accept will tell
}

fn wait_for(socket: &Socket, events: PollFlags, until: Instant) -> PollFlags {
    loop {
        // Rounded up: a wait of no time at all would be repeated until the rest of the millisecond is over.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let mut polled = [PollFd::new(socket.as_fd(), events)];
        match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => {}
            Ok(_) => return polled[0].revents().unwrap_or(PollFlags::POLLERR),
            Err(_) => return PollFlags::POLLERR,
        }
    }
}
