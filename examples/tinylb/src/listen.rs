//! Where clients come: a TCP address, or a socket file that is removed at the end.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use log::warn;
use tinylb::{IntoListener, Listener};

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

impl ListenAddr {
    /// Opens the listener; a socket file comes with the duty to remove it.
    pub(crate) fn bind(&self) -> io::Result<(Box<dyn Listener>, Option<SocketFile>)> {
        match self {
            Self::Ip(addr) => Ok((bind_tcp(*addr)?, None)),
            Self::Unix(path) => {
                let listener = UnixListener::bind(path).map_err(|err| match err.kind() {
                    io::ErrorKind::AddrInUse => {
                        io::Error::new(err.kind(), "the path exists already")
                    }
                    _ => err,
                })?;
                let file = SocketFile::created_at(path)?;
                Ok((listener.into_listener()?, Some(file)))
            }
        }
    }
}

fn bind_tcp(addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
    tinylb::ListenOptions::new().bind(addr)?.into_listener()
}

/// A socket file of ours. Dropping it removes it, unless another one has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn created_at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            if let Err(err) = fs::remove_file(&self.path) {
                warn!("cannot remove {}: {err}", self.path.display());
            }
        }
    }
}
