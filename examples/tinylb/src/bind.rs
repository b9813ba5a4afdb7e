//! Opening the listener. A socket file is removed at the end, and one that a killed process left
//! behind is replaced.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use log::warn;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tinylb::{IntoListener, Listener};

use crate::listen_addr::ListenAddr;

/// Opens the listener; a socket file comes with the duty to remove it.
pub(crate) fn bind(addr: &ListenAddr) -> io::Result<(Box<dyn Listener>, Option<SocketFile>)> {
    match addr {
        ListenAddr::Ip(addr) => Ok((bind_tcp(*addr)?, None)),
        ListenAddr::Unix(path) => {
            let listener = bind_unix(path)?;
            let file = SocketFile::created_at(path)?;
            Ok((listener.into_listener()?, Some(file)))
        }
    }
}

fn bind_tcp(addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
    tinylb::ListenOptions::new().bind(addr)?.into_listener()
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// Removes a socket file that nobody listens on. Whatever else is there is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |problem| Err(io::Error::new(io::ErrorKind::AddrInUse, problem));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("the path exists already, and is no socket");
    }
    let file = identity(path)?;
    match connect(path) {
        Err(Errno::CONNREFUSED) => {}
        // A full backlog is somebody's too.
        Ok(()) | Err(Errno::AGAIN) => return in_use("another process listens there"),
        Err(err) => return Err(err.into()),
    }
    // Another process may have replaced it meanwhile.
    if identity(path)? != file {
        return in_use("another process has just begun to listen there");
    }
    fs::remove_file(path)
}

/// Connects, without waiting for a listener whose backlog is full.
fn connect(path: &Path) -> rustix::io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
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
