//! The address of a peer or a listener, whatever the transport.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The address of a client, a listener or a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
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
        Self::Ip(addr)
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
