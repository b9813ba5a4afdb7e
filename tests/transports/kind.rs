//! The transports, each of which may be on either side of a balancer.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use socket2::Socket;
use tempfile::TempDir;
use tinylb::{BackendSet, Builder, Server, UnixBackend};
use tinylb_tests::*;

use crate::in_process::{Backlog, Connector};
use crate::tls;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
    Tls,
    InProcess,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Tcp, Self::Unix, Self::Tls, Self::InProcess];

    /// Whether an abort differs from an end.
    pub(crate) fn sees_aborts(self) -> bool {
        match self {
            Self::Tcp => HAS_RESETS,
            Self::Unix => false,
            Self::Tls | Self::InProcess => true,
        }
    }
}

/// A balancer that listens on some kind of transport, and how its clients connect.
pub(crate) struct Front {
    pub(crate) balancer: Balancer,
    connect: Box<dyn Fn() -> Box<dyn Peer>>,
    _dir: TempDir,
}

impl Front {
    pub(crate) fn start(kind: Kind, builder: Builder, backends: BackendSet) -> Self {
        let (builder, dir) = (builder.backends(backends), TempDir::new().unwrap());
        let (server, connect): (_, Box<dyn Fn() -> Box<dyn Peer>>) = match kind {
            Kind::Tcp => {
                let server = builder.build(listener()).unwrap();
                let addr = server.local_addr().ip().unwrap();
                (server, Box::new(move || Box::new(connect(addr))))
            }
            Kind::Unix => {
                let path = dir.path().join("front");
                let server = builder.build(UnixListener::bind(&path).unwrap()).unwrap();
                (server, Box::new(move || Box::new(unix_client(&path))))
            }
            Kind::Tls => {
                let server = builder.build(tls::listener(&tls::HeldBack::default())).unwrap();
                let addr = server.local_addr().ip().unwrap();
                (server, Box::new(move || Box::new(tls::client(connect(addr)))))
            }
            Kind::InProcess => {
                let (door, listener) = Connector::new();
                (builder.build(listener).unwrap(), Box::new(move || Box::new(door.connect())))
            }
        };
        Self { balancer: Balancer::of(server), connect, _dir: dir }
    }

    pub(crate) fn connect(&self) -> Box<dyn Peer> {
        (self.connect)()
    }
}

pub(crate) fn unix_client(path: &std::path::Path) -> Socket {
    let client = UnixStream::connect(path).unwrap();
    set_io_timeouts(&client);
    Socket::from(std::os::fd::OwnedFd::from(client))
}

/// A backend of some kind whose connections the test takes itself.
pub(crate) struct Back {
    pub(crate) set: BackendSet,
    accept: Box<dyn Fn() -> Box<dyn Peer>>,
    _dir: TempDir,
}

impl Back {
    pub(crate) fn new(kind: Kind) -> Self {
        let dir = TempDir::new().unwrap();
        let (set, accept): (_, Box<dyn Fn() -> Box<dyn Peer>>) = match kind {
            Kind::Tcp => {
                let hand = ManualBackend::new();
                (set([("a", hand.addr)]), Box::new(move || Box::new(hand.accept())))
            }
            Kind::Unix => {
                let path = dir.path().join("back");
                let listener = UnixListener::bind(&path).unwrap();
                let accept = move || -> Box<dyn Peer> {
                    let (stream, _) = listener.accept().unwrap();
                    set_io_timeouts(&stream);
                    Box::new(Socket::from(std::os::fd::OwnedFd::from(stream)))
                };
                ([("a", UnixBackend::new(path))].into(), Box::new(accept))
            }
            Kind::Tls => {
                let hand = ManualBackend::new();
                let set = [("a", tls::Backend::new(hand.addr))].into();
                (set, Box::new(move || Box::new(tls::server(hand.accept()))))
            }
            Kind::InProcess => {
                let backlog = Backlog::default();
                let set = [("a", backlog.clone())].into();
                (set, Box::new(move || Box::new(backlog.accept())))
            }
        };
        Self { set, accept, _dir: dir }
    }

    pub(crate) fn accept(&self) -> Box<dyn Peer> {
        (self.accept)()
    }
}

/// A pair over these kinds: the balancer, the client, and the backend's end.
pub(crate) fn pair(front: Kind, back: Kind) -> (Balancer, Box<dyn Peer>, Box<dyn Peer>) {
    let back = Back::new(back);
    let builder = Server::builder().connect_timeout(Duration::from_secs(60)).dial_limit(LONG);
    let front = Front::start(front, builder, back.set.clone());
    let (mut client, mut server) = (front.connect(), back.accept());
    pass(&mut server, &mut client, b"hello");
    pass(&mut client, &mut server, b"hello");
    (front.balancer, client, server)
}
