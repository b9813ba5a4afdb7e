//! `KEY=TARGET` and `KEY*WEIGHT=TARGET`: how backends are written, and looking their names up.

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

/// A target and the key that it stands under, with its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyedTarget {
    pub(crate) key: String,
    /// 1 if none is given, 0 if it is held.
    pub(crate) weight: u16,
    pub(crate) target: Target,
}

impl FromStr for KeyedTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((key, target)) = text.split_once('=') else {
            return Err(format!("{} is not KEY=TARGET or KEY*WEIGHT=TARGET", quoted(text)));
        };
        let (key, weight) = match key.rsplit_once('*') {
            Some((key, text)) => (key, weight(text)?),
            None => (key, 1),
        };
        if key.is_empty() || key.starts_with('-') || key.contains(|c| c == '*' || is_blank(c)) {
            return Err(format!(
                "{} cannot be a key: not empty, no blanks, no '*', not beginning with '-'",
                quoted(key)
            ));
        }
        Ok(Self { key: key.to_owned(), weight, target: target.parse()? })
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
    number(text).filter(|port| *port != 0)
}

fn number(text: &str) -> Option<u16> {
    // The standard library would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
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

/// Parses a weight.
pub(crate) fn weight(text: &str) -> Result<u16, String> {
    number(text).ok_or_else(|| format!("{} is no weight: from 0 to 65535", quoted(text)))
}

/// Targets with their weights by key, each key once.
#[derive(Debug, Default)]
pub(crate) struct Backends(pub(crate) BTreeMap<String, (Target, u16)>);

impl Backends {
    pub(crate) fn keyed(targets: impl IntoIterator<Item = KeyedTarget>) -> Result<Self, String> {
        let mut backends = Self::default();
        for KeyedTarget { key, weight, target } in targets {
            match backends.0.entry(key) {
                Entry::Vacant(place) => place.insert((target, weight)),
                Entry::Occupied(taken) => return Err(twice(taken.key())),
            };
        }
        Ok(backends)
    }

    pub(crate) fn resolve(self) -> Result<BackendSet, String> {
        let mut set = BackendSet::new();
        for (key, (target, weight)) in self.0 {
            set.insert_weighted(key, target.resolve()?, weight.into());
        }
        Ok(set)
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
