//! A backend reached over a Unix-domain socket.

use std::io;
use std::path::{Path, PathBuf};

use mio::net::UnixStream;

use super::{Backend, Dial, DialRequest};

/// A backend reached over a Unix-domain socket.
///
/// Its target name is `unix:` and the path. A path that is not UTF-8 is quoted and escaped.
///
/// Such a socket connects at once or not at all. A server whose backlog is full is busy: the next
/// candidate is tried, and if none is left, the client waits for it.
#[derive(Clone, Debug)]
pub struct UnixBackend {
    path: PathBuf,
}

impl UnixBackend {
    /// Returns the backend that listens at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the path of its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Backend for UnixBackend {
    fn target_name(&self) -> String {
        match self.path.to_str() {
            Some(path) => format!("unix:{path}"),
            // Not lossy: two paths are never one target.
            None => format!("unix:{:?}", self.path),
        }
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        UnixStream::connect(&self.path).map(Dial::new)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn c3_3_two_paths_are_two_targets() {
        let name = |path: &[u8]| UnixBackend::new(OsStr::from_bytes(path)).target_name();
        assert_eq!(name(b"/run/app.sock"), "unix:/run/app.sock");
        assert_ne!(name(b"/run/\xff"), name(b"/run/\xfe"));
    }
}
