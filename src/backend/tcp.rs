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
        let addrs = each_once(host_and_port.to_socket_addrs()?);
        if addrs.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{host_and_port} has no address"),
            ));
        }
        Ok(Self { target_name: host_and_port.to_owned(), addrs, on_socket: None })
    }

    /// Has every socket passed to `prepare` right after its connection was begun, to set options beyond
    /// [`SocketOptions`](crate::SocketOptions). An error of it counts as a failed dial.
    ///
    /// It runs on the balancer's thread and must not block, nor keep a duplicate of the socket, which would stay open with
    /// it. For what has to be set before connecting, such as a source
    /// address, implement [`Backend`] with a socket of your own.
    pub fn on_socket(
        mut self,
        prepare: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_socket = Some(Box::new(prepare));
        self
    }

    /// The addresses, in the order in which they are tried.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}

/// The addresses in their order, none of them twice: resolvers may name one for each protocol.
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
