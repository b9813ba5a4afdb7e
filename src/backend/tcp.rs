//! A backend reached over TCP.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use mio::net::TcpStream;

use super::{Backend, Dial, DialRequest};
use crate::net::tcp;

/// A backend reached over TCP. It may have several addresses, which are tried in order.
pub struct TcpBackend {
    target_name: String,
    addrs: Vec<SocketAddr>,
    on_socket: Option<Box<OnSocket>>,
}

type OnSocket = dyn Fn(&TcpStream) -> io::Result<()> + Send + Sync;

impl TcpBackend {
    /// Returns the backend at this address. The address is its target name, too.
    pub fn new(addr: SocketAddr) -> Self {
        Self { target_name: addr.to_string(), addrs: vec![addr], on_socket: None }
    }

    /// Returns the backend at `host:port`. Looks the name up now, which blocks the calling thread
    /// but not the balancer.
    ///
    /// Its target name is `host:port` as given. If a later lookup finds other addresses, it is
    /// still the same target, and its connections stay. To close connections when the addresses
    /// change, look the name up yourself and insert backends made with [`new`](Self::new).
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
    /// When the argument is not `host:port`, or when the lookup fails or finds no address.
    pub fn resolve(host_and_port: &str) -> io::Result<Self> {
        let addrs = each_once(host_and_port.to_socket_addrs()?);
        if addrs.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{host_and_port} has no address"),
            ));
        }
        Ok(Self { target_name: host_and_port.to_owned(), addrs, on_socket: None })
    }

    /// Calls `prepare` with every socket right after its connection is begun, to set options beyond
    /// [`SocketOptions`](crate::SocketOptions). If it fails, the dial fails.
    ///
    /// `prepare` runs on the balancer's thread. It must not block, and must not keep a duplicate of
    /// the socket, because the connection stays open as long as a duplicate does. For options that
    /// must be set before connecting, implement [`Backend`] with a socket of your own.
    pub fn on_socket(
        mut self,
        prepare: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_socket = Some(Box::new(prepare));
        self
    }

    /// Returns the addresses in the order in which they are tried.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}

/// Removes duplicates and keeps the order. Some resolvers return an address once per protocol.
fn each_once(named: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addrs = Vec::new();
    for addr in named {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    addrs
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::net::{Address, SocketOptions};
    use crate::testing::script::Script;

    #[test]
    fn c1_4_there_is_one_attempt_for_each_address_and_it_goes_there() {
        let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addrs: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let backend = TcpBackend { addrs: addrs.clone(), ..TcpBackend::new(addrs[0]) };
        assert_eq!((backend.attempts(), backend.addrs()), (3, &addrs[..]));
        for (attempt, listener) in listeners.iter().enumerate() {
            let (client, from, options) =
                (Script::new(), Address::Other("client".into()), SocketOptions::default());
            let dial =
                backend.dial(&DialRequest::new(&client, &from, attempt as u32, &options)).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(dial.stream.local_addr().unwrap(), Address::Ip(peer));
        }
    }

    #[test]
    fn it_shows_its_name_and_addresses() {
        let backend = TcpBackend {
            target_name: "db:80".into(),
            ..TcpBackend::new(([10, 0, 0, 1], 80).into())
        };
        assert_eq!(
            format!("{backend:?}"),
            r#"TcpBackend { target_name: "db:80", addrs: [10.0.0.1:80], .. }"#
        );
    }

    #[test]
    fn c1_4_an_address_that_the_resolver_names_twice_is_tried_once() {
        let [a, b] = ["10.0.0.2:80", "10.0.0.1:80"].map(|addr| addr.parse::<SocketAddr>().unwrap());
        assert_eq!(each_once([a, b, a, b].into_iter()), [a, b]);
    }
}
