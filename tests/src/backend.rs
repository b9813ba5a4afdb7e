//! Backends: one that serves, one whose connections the test holds, one that refuses, one that does
//! not answer.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{SockAddr, Socket, Type};

use crate::{Balancer, addr_of, bound_socket, listener, pass, set_io_timeouts, wait_for};

/// An address at which nobody listens.
pub fn refusing_addr() -> SocketAddr {
    // Bound and leaked, so that nobody else gets the port while the test runs.
    let socket = bound_socket();
    let addr = addr_of(&socket);
    std::mem::forget(socket);
    addr
}

/// An address that answers nothing: a listening socket whose backlog is full.
pub struct BlackHole {
    pub addr: SocketAddr,
    _listener: Socket,
    _fill: Vec<TcpStream>,
}

impl BlackHole {
    pub fn new() -> Self {
        let socket = bound_socket();
        socket.listen(0).unwrap();
        let (addr, mut fill) = (addr_of(&socket), Vec::new());
        // A backlog of 0 holds one connection; from then on handshakes are not answered.
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
            fill.push(stream);
        }
        Self { addr, _listener: socket, _fill: fill }
    }
}

/// A backend that does nothing by itself: the test accepts and uses its connections.
pub struct ManualBackend {
    pub addr: SocketAddr,
    listener: TcpListener,
}

impl ManualBackend {
    pub fn new() -> Self {
        Self::of(listener())
    }

    pub fn of(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        Self { addr: listener.local_addr().unwrap(), listener }
    }

    #[track_caller]
    pub fn accept(&self) -> TcpStream {
        let stream = wait_for("the balancer dials", || self.listener.accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        set_io_timeouts(&stream);
        stream
    }

    /// A new client and the connection that serves it, over which bytes have gone both ways.
    #[track_caller]
    pub fn pair(&self, balancer: &Balancer) -> (TcpStream, TcpStream) {
        let mut client = balancer.client();
        let mut server = self.accept();
        pass(&mut client, &mut server, b"up");
        pass(&mut server, &mut client, b"down");
        (client, server)
    }
}

/// A backend with a thread for each connection. It and its connections are gone when it is dropped.
pub struct TestBackend {
    /// Where it listens, if that is a TCP address.
    pub addr: SocketAddr,
    listener: Socket,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicU64,
    /// By the number of the connection.
    open: Mutex<HashMap<u64, Socket>>,
}

impl TestBackend {
    pub fn new(serve: impl Fn(Socket) + Send + Sync + 'static) -> Self {
        Self::at(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(), serve)
    }

    pub fn unix(path: &Path, serve: impl Fn(Socket) + Send + Sync + 'static) -> Self {
        Self::at(&SockAddr::unix(path).unwrap(), serve)
    }

    pub fn at(place: &SockAddr, serve: impl Fn(Socket) + Send + Sync + 'static) -> Self {
        let listener = Socket::new(place.domain(), Type::STREAM, None).unwrap();
        listener.bind(place).unwrap();
        listener.listen(1024).unwrap();
        let addr = listener.local_addr().unwrap().as_socket();
        let (twin, shared) = (listener.try_clone().unwrap(), Arc::new(Shared::default()));
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept_all(&twin, &shared, &Arc::new(serve))
        });
        let addr = addr.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        Self { addr, listener, shared, acceptor: Some(acceptor) }
    }

    /// Sends its tag and a line end, then sends back all that comes, to the end.
    pub fn echo(tag: &'static str) -> Self {
        Self::new(Self::echoing(tag))
    }

    pub fn echoing(tag: &'static str) -> impl Fn(Socket) + Send + Sync {
        move |mut stream| {
            if stream.write_all(format!("{tag}\n").as_bytes()).is_ok() {
                let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

fn accept_all<F>(listener: &Socket, shared: &Arc<Shared>, serve: &Arc<F>)
where
    F: Fn(Socket) + Send + Sync + 'static,
{
    while let Ok((stream, _)) = listener.accept() {
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        set_io_timeouts(&stream);
        shared.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
        let (shared, serve) = (shared.clone(), serve.clone());
        std::thread::spawn(move || {
            serve(stream);
            shared.open.lock().unwrap().remove(&number);
        });
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        let _ = self.listener.shutdown(Shutdown::Both); // ends the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for connection in self.shared.open.lock().unwrap().values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}
