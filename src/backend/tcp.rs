//! A backend that is reached over TCP.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use mio::net::TcpStream;

use super::{Backend, Dial, DialRequest};
use crate::net::tcp;

/// A backend reached over TCP, at one address or at several that are tried in order.
pub struct TcpBackend {
    target_name: String,
    addrs: Vec<SocketAddr>,
    on_socket: Option<Box<OnSocket>>,
}

type OnSocket = dyn Fn(&TcpStream) -> io::Result<()> + Send + Sync;

impl TcpBackend {
    /// The backend at this address, which is its target name too.
    pub fn new(addr: SocketAddr) -> Self {
        Self { target_name: addr.to_string(), addrs: vec![addr], on_socket: None }
    }

    /// The backend at `host:port`, looked up here and now: this blocks the calling thread, and it alone.
    ///
    /// Its target name is `host:port` as given, so a name that means other addresses later is the same target, whose
    /// connections stay. A host that wants changed addresses to close connections looks the name up itself and inserts
    /// backends made with [`new`](Self::new).
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use tinylb::{Backend, TcpBackend};
    /// assert_eq!(TcpBackend::resolve("localhost:6443")?.target_name(), "localhost:6443");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When it is not `host:port`, or the name is not known or has no address.
    pub fn resolve(host_and_port: &str) -> io::Result<Self> {
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for addr in host_and_port.to_socket_addrs()? {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        if addrs.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host_and_port} has no address")));
        }
        Ok(Self { target_name: host_and_port.to_owned(), addrs, on_socket: None })
    }

    /// Has every socket passed to `prepare` right after its connection was begun, to set options beyond
    /// [`SocketOptions`](crate::SocketOptions). An error of it counts as a failed dial.
    ///
    /// It runs on the balancer's thread and must not block. For what has to be set before connecting, such as a source
    /// address, implement [`Backend`] with a socket of your own.
    pub fn on_socket(mut self, prepare: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.on_socket = Some(Box::new(prepare));
        self
    }

    /// The addresses, in the order in which they are tried.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}

impl Backend for TcpBackend {
    fn target_name(&self) -> String {
        self.target_name.clone()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let index = request.attempt() as usize % self.addrs.len();
        let stream = tcp::dial(self.addrs[index], request.options())?;
        if let Some(prepare) = &self.on_socket {
            prepare(&stream)?;
        }
        Ok(Dial::new(stream))
    }

    fn attempts(&self) -> u32 {
        u32::try_from(self.addrs.len()).unwrap_or(u32::MAX)
    }
}

impl From<SocketAddr> for TcpBackend {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr)
    }
}

impl fmt::Debug for TcpBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpBackend")
            .field("target_name", &self.target_name)
            .field("addrs", &self.addrs)
            .finish_non_exhaustive()
    }
}
