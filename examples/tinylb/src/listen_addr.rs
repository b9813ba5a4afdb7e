//! Where clients come: a TCP address or the path of a socket file.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::targets::{quoted, unix_path};

/// What `--listen` takes.
#[derive(Clone, Debug)]
pub(crate) enum ListenAddr {
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => unix_path(path).map(Self::Unix),
            None => match text.parse() {
                Ok(addr) => Ok(Self::Ip(addr)),
                Err(_) => Err(format!("{} is not IP:PORT, [IPV6]:PORT or unix:PATH", quoted(text))),
            },
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
