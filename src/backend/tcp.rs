//! A backend reached over TCP.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use mio::net::TcpStream;

use super::{Backend, Dial, DialRequest};
use crate::net::tcp;

/// A backend reached over TCP. It may have several addresses, which are tried in order.
pub struct TcpBackend {
    target_name: String,
    addrs: Vec<SocketAddr>,
    source: Option<IpAddr>,
    on_socket: Option<Box<OnSocket>>,
}

type OnSocket = dyn Fn(&TcpStream) -> io::Result<()> + Send + Sync;

impl TcpBackend {
    /// Returns the backend at this address. The address is its target name, too.
    pub fn new(addr: SocketAddr) -> Self {
        Self { target_name: addr.to_string(), addrs: vec![addr], source: None, on_socket: None }
    }

    /// Returns the backend with this target name, at these addresses. The name is neither looked up
    /// nor checked, and duplicate addresses are removed.
    ///
    /// The name identifies the target. If another set has it with other addresses, its connections
    /// stay. To close them when the addresses change, make the addresses part of the name.
    ///
    /// # Errors
    /// When there is no address.
    pub fn with_addrs(
        target_name: impl Into<String>,
        addrs: impl IntoIterator<Item = SocketAddr>,
    ) -> io::Result<Self> {
        let (target_name, mut distinct) = (target_name.into(), Vec::new());
        for addr in addrs {
            if !distinct.contains(&addr) {
                distinct.push(addr);
            }
        }
        if distinct.is_empty() {
            return Err(invalid(format!("`{target_name}` has no address")));
        }
        Ok(Self { target_name, addrs: distinct, source: None, on_socket: None })
    }

    /// Returns the backend at `host:port`. Looks the name up now, which blocks the calling thread
    /// but not the balancer.
    ///
    /// Its target name is `host:port` as given. If a later lookup finds other addresses, it is
    /// still the same target, and its connections stay: see [`with_addrs`](Self::with_addrs).
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
    /// `InvalidInput` when the argument is not `host:port`, or when the host looks like an IPv4
    /// address but is not four decimal numbers from 0 to 255 without leading zeros: resolvers take
    /// `010.0.0.1` for 8.0.0.1, and `10.1` for 10.0.0.1. Otherwise when the lookup fails.
    pub fn resolve(host_and_port: &str) -> io::Result<Self> {
        if let Ok(addr) = host_and_port.parse() {
            return Self::with_addrs(host_and_port, [addr]);
        }
        let Some((host, port)) = host_and_port.rsplit_once(':') else {
            return Err(invalid(format!("`{host_and_port}` has no port")));
        };
        let Ok(port) = port.parse::<u16>() else {
            return Err(invalid(format!("`{port}` in `{host_and_port}` is not a port")));
        };
        if host.is_empty() {
            return Err(invalid(format!("`{host_and_port}` has no host")));
        }
        if is_malformed_ipv4(host) {
            return Err(invalid(format!("`{host}` in `{host_and_port}` is not an IPv4 address")));
        }
        let addrs = (host, port).to_socket_addrs().map_err(|err| {
            io::Error::new(err.kind(), format!("`{host}` cannot be looked up: {err}"))
        })?;
        Self::with_addrs(host_and_port, addrs)
    }

    /// Sets the source address of the connections. Defaults to none: the system chooses it. Needs
    /// the feature `socket2`.
    ///
    /// An address of the other family (IPv4 or IPv6) is not reached, which does not count against
    /// the backend. Each connection takes a port of the source address, even if their destinations
    /// differ: on Linux 28,232 by default (`net.ipv4.ip_local_port_range`).
    #[cfg(feature = "socket2")]
    pub fn bind_to(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
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

    fn addr(&self, attempt: u32) -> SocketAddr {
        self.addrs[attempt as usize % self.addrs.len()]
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// Returns whether the last label of a host is a number, decimal, octal or hexadecimal, though the
/// host is no IP address. No domain name ends in a number.
fn is_malformed_ipv4(host: &str) -> bool {
    let is_hexadecimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let is_number = match last.strip_prefix("0x").or(last.strip_prefix("0X")) {
        Some(digits) => is_hexadecimal(digits),
        None => !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    is_number && host.parse::<IpAddr>().is_err()
}

impl Backend for TcpBackend {
    fn target_name(&self) -> String {
        self.target_name.clone()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let addr = self.addr(request.attempt());
        let stream = tcp::dial(addr, self.source, request.options())?;
        if let Some(prepare) = &self.on_socket {
            prepare(&stream)?;
        }
        Ok(Dial::new(stream))
    }

    fn attempts(&self) -> u32 {
        u32::try_from(self.addrs.len()).unwrap_or(u32::MAX)
    }

    fn attempt_name(&self, attempt: u32) -> String {
        self.addr(attempt).to_string()
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
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::net::{Address, SocketOptions};
    use crate::testing::script::Script;

    fn dial(backend: &TcpBackend, attempt: u32) -> io::Result<Dial> {
        let (client, from) = (Script::new(), Address::Other("client".into()));
        backend.dial(&DialRequest::new(&client, &from, attempt, &SocketOptions::default()))
    }

    #[test]
    fn c1_4_there_is_one_attempt_for_each_address_and_it_goes_there() {
        let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addrs: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let backend = TcpBackend::with_addrs("three", addrs.clone()).unwrap();
        assert_eq!((backend.attempts(), backend.addrs()), (3, &addrs[..]));
        assert_eq!(backend.attempt_name(1), addrs[1].to_string());
        for (attempt, listener) in listeners.iter().enumerate() {
            let dial = dial(&backend, attempt as u32).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(dial.stream.local_addr().unwrap(), Address::Ip(peer));
        }
    }

    #[test]
    #[cfg(all(feature = "socket2", target_os = "linux"))] // where 127.0.0.2 is local, too
    fn a_source_address_is_what_the_backend_sees() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = TcpBackend::new(listener.local_addr().unwrap());
        let backend = backend.bind_to([127, 0, 0, 2].into());
        let mut dial = dial(&backend, 0).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 2]));
        assert!(dial.stream.check_connect().unwrap());
    }

    #[test]
    #[cfg(feature = "socket2")]
    fn c5_5_a_source_address_that_cannot_be_used_is_a_local_failure() {
        let nowhere = TcpBackend::new(([127, 0, 0, 1], 9).into());
        let of_another_host: IpAddr = [192, 0, 2, 1].into();
        for source in [of_another_host, std::net::Ipv6Addr::LOCALHOST.into()] {
            let backend = TcpBackend::new(nowhere.addrs[0]).bind_to(source);
            let err = dial(&backend, 0).unwrap_err();
            assert!(crate::net::is_local_failure(&err), "{source}: {err}");
        }
    }

    #[test]
    fn c1_4_a_host_that_ends_in_a_number_is_an_ipv4_address_or_an_error() {
        for wrong in [
            "010.0.0.1:80",
            "10.0.1:80",
            "2130706433:80",
            "0x7f.1:80",
            "0X7F000001:80",
            "0x:80",
            "10.0.0.256:80",
            "10.0.0.1.:80",
            "node.1..:80",
        ] {
            let err = TcpBackend::resolve(wrong).map(|backend| backend.addrs).unwrap_err();
            let (host, _) = wrong.split_once(':').unwrap();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput, "{wrong}: {err}");
            assert!(err.to_string().contains(host), "{wrong}: {err}");
        }
        for right in ["10.0.0.1:80", "[::1]:80", "[::ffff:10.0.0.1]:80"] {
            let addr: SocketAddr = right.parse().unwrap();
            assert_eq!(TcpBackend::resolve(right).unwrap().addrs, [addr]);
        }
        for name in ["localhost", "1.example", "0xg", "node-1", "x1", "::ffff:10.0.0.1"] {
            assert!(!is_malformed_ipv4(name), "{name}");
        }
    }

    #[test]
    fn c1_4_an_error_names_what_is_wrong_with_a_host_and_port() {
        for (wrong, named) in [
            ("node", "`node` has no port"),
            ("", "`` has no port"),
            (":80", "`:80` has no host"),
            ("node:http", "`http` in `node:http` is not a port"),
            ("node:", "`` in `node:` is not a port"),
            ("node:65536", "`65536` in `node:65536` is not a port"),
            ("no such host:80", "`no such host` cannot be looked up: "),
        ] {
            let err = TcpBackend::resolve(wrong).unwrap_err().to_string();
            assert!(err.starts_with(named), "{err}");
        }
    }

    #[test]
    fn c1_4_addresses_can_be_given_with_a_name_that_is_not_looked_up() {
        let [a, b] = ["10.0.0.2:80", "10.0.0.1:80"].map(|addr| addr.parse::<SocketAddr>().unwrap());
        let backend = TcpBackend::with_addrs("010.0.0.1", [a, b, a, b]).unwrap();
        assert_eq!((&*backend.target_name(), backend.addrs()), ("010.0.0.1", &[a, b][..]));
        let err = TcpBackend::with_addrs("db", []).unwrap_err().to_string();
        assert_eq!(err, "`db` has no address");
    }

    #[test]
    fn it_shows_its_name_and_addresses() {
        let backend = TcpBackend::with_addrs("db:80", [([10, 0, 0, 1], 80).into()]).unwrap();
        assert_eq!(
            format!("{backend:?}"),
            r#"TcpBackend { target_name: "db:80", addrs: [10.0.0.1:80], source: None, .. }"#
        );
    }
}
