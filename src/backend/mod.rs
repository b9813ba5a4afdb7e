//! What clients are spread over: the [`Backend`] trait, the ordered [`BackendSet`], and backends for TCP and
//! Unix-domain sockets.

mod set;
mod tcp;
#[cfg(unix)]
mod unix;

use std::io;
use std::sync::Arc;

use crate::net::{Address, SocketOptions, Stream};

pub use set::{BackendSet, Entry, IntoIter, Iter};
pub use tcp::TcpBackend;
#[cfg(unix)]
pub use unix::UnixBackend;

/// One place to send clients to.
///
/// A set may mix backends of several types; to collect such a set, box them as `Box<dyn Backend>`.
///
/// Two duties: to say what is dialled, and to begin dialling it. [`TcpBackend`] and [`UnixBackend`] come with the
/// crate; implement it to dial in another way, or to send something to the backend ahead of the client's bytes.
///
/// ```
/// use std::io;
/// use tinylb::{Backend, Dial, DialRequest, TcpBackend};
///
/// /// Tells the backend who the client is, by a PROXY protocol header (version 1).
/// struct WithProxyHeader(TcpBackend);
///
/// impl Backend for WithProxyHeader {
///     fn target_name(&self) -> String {
///         self.0.target_name()
///     }
///
///     fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
///         let from = request.client_addr().ip();
///         let to = request.local_addr()?.ip();
///         let header = match (from, to) {
///             (Some(from), Some(to)) if from.is_ipv4() && to.is_ipv4() => {
///                 format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
///             }
///             _ => "PROXY UNKNOWN\r\n".to_owned(),
///         };
///         Ok(self.0.dial(request)?.with_preface(header))
///     }
///
///     // Without this, only the first address of a name would be tried.
///     fn attempts(&self) -> u32 {
///         self.0.attempts()
///     }
/// }
/// ```
pub trait Backend: Send + Sync {
    /// The name of what is dialled: an address, or whatever identifies the target.
    ///
    /// Read once, when the backend is inserted into a set. When no backend of a new set has this name any more, every
    /// connection to it is closed. Two backends with the same target name count as the same target.
    fn target_name(&self) -> String;

    /// Begins a connection.
    ///
    /// Called on the balancer's thread, so it must not block: no name is looked up here, and nothing waited for.
    /// Whether the connection succeeds is asked of the stream, by [`Stream::check_connect`]. Nobody else may keep its
    /// socket: with a duplicate somewhere, closing it here would not close the connection.
    ///
    /// # Errors
    /// When the connection cannot even be begun. The next candidate is tried then, but for a lack of descriptors or
    /// memory, which is waited for, and for `Interrupted`, after which it is begun again.
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial>;

    /// How many dials in a row make up one try of this backend, each told its number by [`DialRequest::attempt`] and
    /// each within `connect_timeout`: one for each address it has. The backend has failed when all have. Defaults to 1.
    fn attempts(&self) -> u32 {
        1
    }
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn target_name(&self) -> String {
        (**self).target_name()
    }
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        (**self).dial(request)
    }
    fn attempts(&self) -> u32 {
        (**self).attempts()
    }
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn target_name(&self) -> String {
        (**self).target_name()
    }
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        (**self).dial(request)
    }
    fn attempts(&self) -> u32 {
        (**self).attempts()
    }
}

/// What a backend is told when it is to begin a connection.
#[derive(Clone, Copy)]
pub struct DialRequest<'a> {
    client: &'a dyn Stream,
    client_addr: &'a Address,
    attempt: u32,
    options: &'a SocketOptions,
}

impl<'a> DialRequest<'a> {
    pub(crate) fn new(
        client: &'a dyn Stream,
        client_addr: &'a Address,
        attempt: u32,
        options: &'a SocketOptions,
    ) -> Self {
        Self { client, client_addr, attempt, options }
    }

    /// The client's address.
    pub fn client_addr(&self) -> &'a Address {
        self.client_addr
    }

    /// The address that the client connected to, asked of its socket when this is called.
    ///
    /// # Errors
    /// When the socket cannot tell.
    pub fn local_addr(&self) -> io::Result<Address> {
        self.client.local_addr()
    }

    /// Which dial of this backend for this client it is, from 0 up to [`Backend::attempts`], exclusive.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The socket options that the server was built with, for a backend that opens a TCP socket.
    pub fn options(&self) -> &'a SocketOptions {
        self.options
    }
}

impl std::fmt::Debug for DialRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DialRequest")
            .field("client_addr", self.client_addr)
            .field("attempt", &self.attempt)
            .field("options", self.options)
            .finish_non_exhaustive()
    }
}

/// A connection that was begun.
pub struct Dial {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) preface: Vec<u8>,
}

impl Dial {
    /// The connection whose stream this is.
    pub fn new(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), preface: Vec::new() }
    }

    /// Puts a protocol of the host's own around the connection's stream: TLS, say.
    ///
    /// So a backend can leave the dialling to another, with all its addresses and socket options.
    pub fn map_stream<S: Stream + 'static>(self, wrap: impl FnOnce(Box<dyn Stream>) -> S) -> Self {
        Self { stream: Box::new(wrap(self.stream)), preface: self.preface }
    }

    /// Has these bytes sent to the backend as soon as it is connected, before the first byte of the client.
    ///
    /// They count as bytes to the backend, and are held until it takes them, whatever the buffer size.
    pub fn with_preface(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.preface = bytes.into();
        self
    }
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("preface", &self.preface.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::script::Script;

    #[test]
    fn c1_2_a_stream_that_is_wrapped_keeps_its_preface() {
        let dial = Dial::new(Script::new()).with_preface("hello").map_stream(|stream| stream);
        assert_eq!(dial.preface, b"hello");
    }

    #[test]
    fn c1_4_a_shared_or_boxed_backend_has_as_many_attempts_as_itself() {
        struct Several;
        impl Backend for Several {
            fn target_name(&self) -> String {
                "several".to_owned()
            }
            fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
                Err(io::Error::other(request.attempt().to_string()))
            }
            fn attempts(&self) -> u32 {
                7
            }
        }
        #[cfg(unix)]
        assert_eq!(UnixBackend::new("/run/app.sock").attempts(), 1, "the default");
        let boxed: Box<dyn Backend> = Box::new(Several);
        let shared: Arc<dyn Backend> = Arc::new(Several);
        assert_eq!((Backend::attempts(&boxed), Backend::attempts(&shared)), (7, 7));
        assert_eq!(
            [Backend::target_name(&boxed), Backend::target_name(&shared)],
            ["several", "several"]
        );
    }

    #[test]
    fn requests_and_dials_show_what_a_host_may_want_to_log() {
        let (client, addr, options) =
            (Script::new(), Address::Other("client".into()), SocketOptions::default());
        let request = DialRequest::new(&client, &addr, 3, &options);
        let shown = format!("{request:?}");
        assert!(
            shown.contains("client") && shown.contains("attempt: 3") && shown.contains("nodelay"),
            "{shown}"
        );
        assert_eq!(
            format!("{:?}", Dial::new(Script::new()).with_preface("hello")),
            "Dial { preface: 5, .. }"
        );
    }
}
