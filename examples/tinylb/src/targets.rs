//! `KEY=TARGET`: how backends are written, and looking their names up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::os::unix::net::SocketAddr as UnixSocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tinylb::{Backend, BackendSet, TcpBackend, UnixBackend};

/// What a backend is reached at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Ip(SocketAddr),
    /// `HOST:PORT`, to be looked up.
    Name(String),
    Unix(PathBuf),
}

/// A target and the key that it stands under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyedTarget {
    pub(crate) key: String,
    pub(crate) target: Target,
}

impl FromStr for KeyedTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((key, target)) = text.split_once('=') else {
            return Err(format!("{} is not KEY=TARGET", quoted(text)));
        };
        if key.is_empty() || key.starts_with('-') || key.contains(is_blank) {
            return Err(format!(
                "{} cannot be a key: not empty, no blanks, not beginning with '-'",
                quoted(key)
            ));
        }
        Ok(Self { key: key.to_owned(), target: target.parse()? })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        let Some((host, port)) = text.rsplit_once(':') else { return Err(not_a_target(text)) };
        let port =
            usable_port(port).ok_or_else(|| format!("{} has no usable port", quoted(text)))?;
        if let Ok(addr) = text.parse() {
            return Ok(Self::Ip(addr));
        }
        // An IPv6 address without brackets would be taken for a name, and the end of it for a port.
        if host.is_empty() || host.contains(|c| ":[]/".contains(c) || is_blank(c)) {
            return Err(not_a_target(text));
        }
        Ok(Self::Name(format!("{host}:{port}")))
    }
}

/// Returns whether the character is invisible, so that two words must not differ in it alone. The
/// byte order mark that some editors put first ends up in the middle when files are joined.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '\u{feff}'
}

fn not_a_target(text: &str) -> String {
    format!("{} is not IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH", quoted(text))
}

/// A port that can be connected to.
fn usable_port(text: &str) -> Option<u16> {
    // The standard library would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// A path that a socket can have.
pub(crate) fn unix_path(path: &str) -> Result<PathBuf, String> {
    if path.is_empty() {
        return Err("unix: needs a path".to_owned());
    }
    if path.contains(char::is_control) {
        // What names the socket is one line, in a log as on stdout.
        return Err(format!(
            "{} cannot be the path of a socket: it has control characters",
            quoted(path)
        ));
    }
    match UnixSocketAddr::from_pathname(path) {
        Ok(_) => Ok(path.into()),
        Err(err) => Err(format!("{} cannot be the path of a socket: {err}", quoted(path))),
    }
}

impl Target {
    /// Makes the backend. Looks a name up, so it may take as long as a name server does.
    pub(crate) fn resolve(self) -> Result<Arc<dyn Backend>, String> {
        Ok(match self {
            Self::Ip(addr) => Arc::new(TcpBackend::new(addr)),
            Self::Unix(path) => Arc::new(UnixBackend::new(path)),
            Self::Name(name) => Arc::new(
                TcpBackend::resolve(&name)
                    .map_err(|err| format!("cannot look up {}: {err}", quoted(&name)))?,
            ),
        })
    }
}

/// Targets by key, each key once.
#[derive(Debug, Default)]
pub(crate) struct Backends(pub(crate) BTreeMap<String, Target>);

impl Backends {
    pub(crate) fn keyed(targets: impl IntoIterator<Item = KeyedTarget>) -> Result<Self, String> {
        let mut backends = Self::default();
        for KeyedTarget { key, target } in targets {
            match backends.0.entry(key) {
                Entry::Vacant(place) => place.insert(target),
                Entry::Occupied(taken) => return Err(twice(taken.key())),
            };
        }
        Ok(backends)
    }

    pub(crate) fn resolve(self) -> Result<BackendSet, String> {
        self.0.into_iter().map(|(key, target)| Ok((key, target.resolve()?))).collect()
    }
}

pub(crate) fn twice(key: &str) -> String {
    format!("key {} is given twice", quoted(key))
}

/// What a user wrote, fit for a message of one line.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
