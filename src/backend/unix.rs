//! A backend that is reached over a Unix-domain socket.

use std::io;
use std::path::{Path, PathBuf};

use mio::net::UnixStream;

use super::{Backend, Dial, DialRequest};

/// A backend reached over a Unix-domain socket; its target name is `unix:` and the path.
///
/// Such a socket connects at once or not at all: a server whose backlog is full counts as failed, and the next
/// candidate is tried.
#[derive(Clone, Debug)]
pub struct UnixBackend {
    path: PathBuf,
}

impl UnixBackend {
    /// The backend that listens at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path of its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Backend for UnixBackend {
    fn target_name(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        UnixStream::connect(&self.path).map(Dial::new)
    }
}
