//! From the host's listener to the balancer's, and opening one with a generous backlog.

use std::io;

use super::Listener;
use super::tcp::TcpAcceptor;

/// What a server can listen on: the listeners of the standard library and of mio, and any [`Listener`].
///
/// The file of a Unix-domain socket is left where it is when the balancer ends: who made it removes it.
pub trait IntoListener {
    /// Turns it into the non-blocking listener that the balancer works with.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    fn into_listener(self) -> io::Result<Box<dyn Listener>>;
}

impl IntoListener for std::net::TcpListener {
    fn into_listener(self) -> io::Result<Box<dyn Listener>> {
        self.set_nonblocking(true)?;
        mio::net::TcpListener::from_std(self).into_listener()
    }
}

impl IntoListener for mio::net::TcpListener {
    fn into_listener(self) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpAcceptor::new(self)))
    }
}

#[cfg(unix)]
impl IntoListener for std::os::unix::net::UnixListener {
    fn into_listener(self) -> io::Result<Box<dyn Listener>> {
        self.set_nonblocking(true)?;
        mio::net::UnixListener::from_std(self).into_listener()
    }
}

impl<L: Listener + 'static> IntoListener for L {
    fn into_listener(self) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(self))
    }
}

impl IntoListener for Box<dyn Listener> {
    fn into_listener(self) -> io::Result<Box<dyn Listener>> {
        Ok(self)
    }
}

/// How to open a TCP listener, beyond what the standard library offers. Needs the feature `socket2`.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let listener = tinylb::ListenOptions::new().backlog(1024).bind("127.0.0.1:0".parse().unwrap())?;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "socket2")]
#[derive(Clone, Debug)]
pub struct ListenOptions {
    backlog: u32,
    reuse_port: bool,
}

#[cfg(feature = "socket2")]
impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 4096, reuse_port: false }
    }
}

#[cfg(feature = "socket2")]
impl ListenOptions {
    /// A backlog of 4096 clients, the port not shared.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many clients the kernel may hold that are not accepted yet. Defaults to 4096.
    ///
    /// The kernel has a limit of its own, on Linux `net.core.somaxconn`, usually 4096.
    pub fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// Sets whether other sockets that ask for the same may listen on the same address (`SO_REUSEPORT`), so that an
    /// old and a new process overlap. Defaults to `false`. Has no effect on systems that do not know it.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// Opens the listener; port 0 picks a free one.
    ///
    /// As with the standard library's, an address whose old connections linger can be taken again at once on Unix.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(&self, addr: std::net::SocketAddr) -> io::Result<std::net::TcpListener> {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        if self.reuse_port {
            #[cfg(all(
                unix,
                not(any(target_os = "solaris", target_os = "illumos", target_os = "cygwin"))
            ))]
            socket.set_reuse_port(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    }
}

#[cfg(all(test, feature = "socket2", target_os = "linux"))]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::ListenOptions;

    fn bind(options: &ListenOptions, port: u16) -> std::io::Result<(TcpListener, SocketAddr)> {
        let listener = options.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    }

    #[test]
    fn listeners_share_a_port_only_if_all_of_them_say_so() {
        let (sharing, alone) =
            (ListenOptions::new().reuse_port(true).backlog(16), ListenOptions::new());
        let (_first, addr) = bind(&sharing, 0).unwrap();
        assert!(bind(&sharing, addr.port()).is_ok() && bind(&alone, addr.port()).is_err());
    }

    #[test]
    fn the_backlog_is_how_many_clients_wait() {
        let (_listener, addr) =
            bind(&ListenOptions::new().backlog(2).reuse_port(false), 0).unwrap();
        let connect = || TcpStream::connect_timeout(&addr, Duration::from_millis(500));
        let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).take(10).collect();
        assert_eq!(waiting.len(), 3); // Linux has room for one more than it was told
    }
}
