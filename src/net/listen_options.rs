//! Opening a TCP listener with a backlog and a shared port.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// How to open a TCP listener, beyond what the standard library offers. Needs the feature
/// `socket2`.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let listener = tinylb::ListenOptions::new().backlog(1024).bind("127.0.0.1:0".parse().unwrap())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ListenOptions {
    backlog: u32,
    reuse_port: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 4096, reuse_port: false }
    }
}

impl ListenOptions {
    /// Returns the defaults: a backlog of 4096 clients, and a port that is not shared.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many clients the kernel may hold before they are accepted. Defaults to 4096.
    ///
    /// The kernel has a limit of its own: on Linux `net.core.somaxconn`, usually 4096.
    pub fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// Sets whether other sockets with this option may listen on the same address
    /// (`SO_REUSEPORT`), so that an old and a new process can overlap. Defaults to `false`. Has no
    /// effect on systems without it.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// Opens the listener. Port 0 picks a free one.
    ///
    /// On Unix, like the standard library's, it can be opened while old connections of the address
    /// are in TIME_WAIT.
    ///
    /// # Errors
    /// When the system cannot listen on the address.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
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

#[cfg(all(test, target_os = "linux"))]
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
