//! Backends: the [`Backend`] trait, the ordered [`BackendSet`], and backends for TCP and
//! Unix-domain sockets.

mod set;
mod tcp;
#[cfg(unix)]
mod unix;

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::net::{Address, SocketOptions, Stream};

pub use set::{BackendSet, Entry, Iter};
pub use tcp::TcpBackend;
#[cfg(unix)]
pub use unix::UnixBackend;

/// A destination for clients: names what is dialled, and dials it.
///
/// [`TcpBackend`] and `UnixBackend` come with the crate. Implement the trait to dial in another
/// way, or to send bytes to the backend ahead of the client's. A set may mix types of backends; to
/// collect such a set, box them as `Box<dyn Backend>`.
///
/// ```
/// use std::io;
/// use tinylb::{Backend, Dial, DialRequest, TcpBackend};
///
/// /// Tells the backend the client's address, in a PROXY protocol header (version 1).
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
///                 let (from_port, to_port) = (from.port(), to.port());
///                 format!("PROXY TCP4 {} {} {from_port} {to_port}\r\n", from.ip(), to.ip())
///             }
///             _ => "PROXY UNKNOWN\r\n".to_owned(),
///         };
///         Ok(self.0.dial(request)?.with_preface(header))
///     }
///
///     // Without this, only the first address would be tried.
///     fn attempts(&self) -> u32 {
///         self.0.attempts()
///     }
///
///     fn attempt_name(&self, attempt: u32) -> String {
///         self.0.attempt_name(attempt)
///     }
/// }
/// ```
pub trait Backend: Send + Sync {
    /// Returns the name of what is dialled: an address, or anything that identifies the target.
    ///
    /// Read once, when the backend is inserted into a set. An update whose set has no backend with
    /// this name closes every connection to it. Backends with the same name are the same target.
    fn target_name(&self) -> String;

    /// Begins a connection. [`Stream::check_connect`] tells when it is established.
    ///
    /// Called on the balancer's thread, so it must not block: do not look up names here. Keep no
    /// duplicate of the stream's socket, because the connection stays open as long as a duplicate
    /// does.
    ///
    /// # Errors
    /// When the connection cannot be begun; the next candidate is then tried. There are exceptions:
    /// - `WouldBlock` means that the backend is busy. The next candidate is tried, but this one has
    ///   not failed: if no other is left, the client waits and dials it again.
    /// - Without a free descriptor or memory, the client waits.
    /// - After `Interrupted`, the call is repeated.
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial>;

    /// Returns how many dials make up one try of this backend: one for each address it has.
    /// Defaults to 1.
    ///
    /// [`DialRequest::attempt`] numbers the dials. Each is limited by
    /// [`connect_timeout`](crate::Builder::connect_timeout), and the backend has failed when all
    /// have.
    fn attempts(&self) -> u32 {
        1
    }

    /// Returns what a dial tries to reach, for the log: the address, if the target has several.
    /// Defaults to the target name.
    ///
    /// It is called when the dial of this number has failed.
    fn attempt_name(&self, attempt: u32) -> String {
        let _ = attempt;
        self.target_name()
    }
}

macro_rules! impl_backend_for {
    ($($pointer:ident),*) => {$(
        impl<B: Backend + ?Sized> Backend for $pointer<B> {
            fn target_name(&self) -> String { (**self).target_name() }
            fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> { (**self).dial(request) }
            fn attempts(&self) -> u32 { (**self).attempts() }
            fn attempt_name(&self, attempt: u32) -> String { (**self).attempt_name(attempt) }
        }
    )*};
}

impl_backend_for!(Arc, Box);

/// The client and the attempt that [`Backend::dial`] is called for.
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

    /// Returns the client's address.
    pub fn client_addr(&self) -> &'a Address {
        self.client_addr
    }

    /// Returns the address that the client connected to. Asks its socket in each call.
    ///
    /// # Errors
    /// When the socket cannot tell.
    pub fn local_addr(&self) -> io::Result<Address> {
        self.client.local_addr()
    }

    /// Returns the number of this dial: from 0 to [`Backend::attempts`] − 1 for each client.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the socket options of the server, for a backend that opens a TCP socket.
    pub fn options(&self) -> &'a SocketOptions {
        self.options
    }
}

impl fmt::Debug for DialRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialRequest")
            .field("client_addr", self.client_addr)
            .field("attempt", &self.attempt)
            .field("options", self.options)
            .finish_non_exhaustive()
    }
}

/// A connection that [`Backend::dial`] has begun.
pub struct Dial {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) preface: Vec<u8>,
}

impl Dial {
    /// Returns a dial with this stream and no preface.
    pub fn new(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), preface: Vec::new() }
    }

    /// Wraps the stream in a protocol, such as TLS.
    ///
    /// So a backend can leave dialling to another one, with its addresses and socket options.
    pub fn map_stream<S: Stream + 'static>(self, wrap: impl FnOnce(Box<dyn Stream>) -> S) -> Self {
        Self { stream: Box::new(wrap(self.stream)), preface: self.preface }
    }

    /// Sends these bytes to the backend before the client's first byte.
    ///
    /// They count as bytes written to the backend. They are held until the backend takes them,
    /// whatever the buffer size.
    pub fn with_preface(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.preface = bytes.into();
        self
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    fn c1_4_a_shared_or_boxed_backend_answers_as_itself() {
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
            fn attempt_name(&self, attempt: u32) -> String {
                format!("address {attempt}")
            }
        }
        #[cfg(unix)]
        {
            let backend = UnixBackend::new("/run/app.sock");
            assert_eq!((backend.attempts(), backend.attempt_name(0)), (1, backend.target_name()));
        }
        let boxed: Box<dyn Backend> = Box::new(Several);
        let shared: Arc<dyn Backend> = Arc::new(Several);
        assert_eq!((Backend::attempts(&boxed), Backend::attempts(&shared)), (7, 7));
        assert_eq!(
            [Backend::target_name(&boxed), Backend::target_name(&shared)],
            ["several", "several"]
        );
        assert_eq!(
            [Backend::attempt_name(&boxed, 1), Backend::attempt_name(&shared, 2)],
            ["address 1", "address 2"]
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
