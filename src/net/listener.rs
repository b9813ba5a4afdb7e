//! What a server listens on: the [`Listener`] trait, and what can be turned into one.

use std::io;

use mio::event::Source;

use super::{Address, SocketOptions, Stream};

/// A non-blocking listener.
///
/// Implemented for [`mio::net::TcpListener`] and `mio::net::UnixListener`.
pub trait Listener: Source + Send {
    /// Takes the next waiting client, and its address.
    ///
    /// # Errors
    /// `WouldBlock` when no client waits; an event must follow when one does. An error that
    /// concerns one client (`ConnectionAborted` and the like) skips that client. Any other error
    /// pauses accepting for a moment.
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)>;

    /// Returns the address listened on.
    ///
    /// # Errors
    /// When the transport cannot tell.
    fn local_addr(&self) -> io::Result<Address>;

    /// Applies these options to every stream accepted from now on. Called once, when the server is
    /// built. Ignores them by default.
    ///
    /// # Errors
    /// When an option cannot be set. The server is not built then.
    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        let _ = options;
        Ok(())
    }
}

/// What [`Builder::build`](crate::Builder::build) takes: the listeners of the standard library and
/// of mio, and any [`Listener`].
///
/// The socket file of a Unix-domain listener is not removed when the balancer ends.
pub trait IntoListener {
    /// Turns `self` into a non-blocking listener.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    fn into_listener(self) -> io::Result<Box<dyn Listener>>;
}

impl IntoListener for std::net::TcpListener {
    fn into_listener(self) -> io::Result<Box<dyn Listener>> {
        self.set_nonblocking(true)?;
        mio::net::TcpListener::from_std(self).into_listener()
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Returns whether clients are accepted without blocking once the server is built.
    fn is_nonblocking(listener: impl IntoListener, same_socket: &impl std::os::fd::AsFd) -> bool {
        let _server = crate::Server::builder().build(listener).unwrap();
        socket2::SockRef::from(same_socket).nonblocking().unwrap()
    }

    #[test]
    fn c9_1_a_listener_that_blocks_is_made_non_blocking() {
        let bind = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, two) = (bind(), bind());
        assert!(is_nonblocking(one.try_clone().unwrap(), &one));
        let of_mio = mio::net::TcpListener::from_std(two.try_clone().unwrap());
        assert!(is_nonblocking(of_mio, &two));
    }

    #[test]
    fn c9_1_a_unix_listener_that_blocks_is_made_non_blocking() {
        let directory = std::env::temp_dir().join(format!("tinylb-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let bind = |name| std::os::unix::net::UnixListener::bind(directory.join(name));
        let (one, two) = (bind("one").unwrap(), bind("two").unwrap());
        assert!(is_nonblocking(one.try_clone().unwrap(), &one));
        let of_mio = mio::net::UnixListener::from_std(two.try_clone().unwrap());
        assert!(is_nonblocking(of_mio, &two));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
