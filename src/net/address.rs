//! The address of a peer or a listener, whatever the transport.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The address of a client, a listener or a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port. The crate reports an IPv4 client of an IPv6 listener
    /// (`::ffff:192.0.2.1`) as IPv4.
    Ip(SocketAddr),
    /// The path of a Unix-domain socket; `None` if it is bound to no path, as clients usually are.
    Unix(Option<PathBuf>),
    /// The address of a custom transport, in its own notation.
    Other(Box<str>),
}

impl Address {
    /// Returns the IP address and port, if this is one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            ip @ IpAddr::V4(_) => Self::Ip(SocketAddr::new(ip, addr.port())),
            IpAddr::V6(_) => Self::Ip(addr), // with its scope
        }
    }
}

#[cfg(unix)]
impl From<std::os::unix::net::SocketAddr> for Address {
    fn from(addr: std::os::unix::net::SocketAddr) -> Self {
        Self::Unix(addr.as_pathname().map(PathBuf::from))
    }
}

/// Shows `127.0.0.1:80`, `[::1]:80`, `unix:/run/app.sock`, `unix:` (bound to no path), or the
/// custom transport's notation.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => f.write_str("unix:"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(addr: &str) -> Address {
        Address::from(addr.parse::<SocketAddr>().unwrap())
    }

    #[test]
    fn c1_2_an_ipv4_address_mapped_to_ipv6_is_shown_as_ipv4() {
        assert_eq!(ip("[::ffff:192.0.2.1]:80"), ip("192.0.2.1:80"));
        assert_eq!(ip("[::ffff:192.0.2.1]:80").to_string(), "192.0.2.1:80");
        for other in ["[2001:db8::1]:80", "[fe80::1%7]:80", "[::1]:80"] {
            assert_eq!(ip(other), Address::Ip(other.parse().unwrap()));
        }
    }

    #[test]
    fn c1_2_an_ipv4_client_of_an_ipv6_listener_has_an_ipv4_address_at_both_ends() {
        use crate::net::{IntoListener, Stream};
        let Ok(listener) = std::net::TcpListener::bind("[::]:0") else { return }; // no IPv6 here
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (stream, addr) = listener.into_listener().unwrap().accept().unwrap();
        assert_eq!(addr.ip(), Some(client.local_addr().unwrap()));
        assert_eq!(Stream::local_addr(&stream).unwrap().ip(), Some(client.peer_addr().unwrap()));
    }
}
