//! Socket options of TCP connections, on either side.

use std::io;
use std::time::Duration;

use mio::net::TcpListener;

/// How the system probes an idle connection, so that a peer that died silently is noticed.
///
/// Defaults to idle 15 s, interval 15 s, 9 probes, like the Go runtime: a dead peer is noticed
/// after idle + interval × probes = 2 min 30 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Keepalive {
    /// The time without traffic before the first probe. Whole seconds, from 1 to 32,767.
    pub idle: Duration,
    /// The time between probes. Whole seconds, from 1 to 32,767.
    pub interval: Duration,
    /// The number of unanswered probes after which the connection has failed. From 1 to 127. On
    /// Linux and Android, [`user_timeout`](crate::Builder::user_timeout) replaces it if set.
    pub probes: u32,
}

impl Keepalive {
    /// Returns these settings. [`Builder::build`](crate::Builder::build) checks them.
    pub const fn new(idle: Duration, interval: Duration, probes: u32) -> Self {
        Self { idle, interval, probes }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self::new(Duration::from_secs(15), Duration::from_secs(15), 9)
    }
}

/// The options of the balancer's TCP sockets, the same for clients and backends.
///
/// Set by the methods of [`Builder`](crate::Builder) with the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketOptions {
    /// `TCP_NODELAY`: small writes are sent at once. Defaults to `true`.
    pub nodelay: bool,
    /// Probing of idle connections; `None` disables it. Enabled by default. Needs the feature
    /// `socket2`.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged. Defaults to `None`: the
    /// system decides, about 15 minutes. Linux and Android only. Needs the feature `socket2`.
    pub user_timeout: Option<Duration>,
    /// `TCP_NOTSENT_LOWAT`: how many unsent bytes the kernel holds for a connection. Defaults to
    /// 128 KiB. `None` leaves the system's value, usually no limit. Linux and Android only. Needs
    /// the feature `socket2`.
    pub notsent_lowat: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            notsent_lowat: Some(128 << 10),
        }
    }
}

/// Makes a listener non-blocking, and sets the options that accepted sockets inherit: that saves up
/// to seven system calls for each.
#[cfg(feature = "socket2")]
pub(super) fn set_on_listener(listener: &TcpListener, options: &SocketOptions) -> io::Result<()> {
    let socket = socket2::SockRef::from(listener);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(options.nodelay)?;
    if options.keepalive.is_none() {
        socket.set_keepalive(false)?; // the host may have enabled it
    }
    set(&socket, options)
}

/// Makes a listener non-blocking, and sets the option that accepted sockets inherit.
#[cfg(not(feature = "socket2"))]
pub(super) fn set_on_listener(listener: &TcpListener, options: &SocketOptions) -> io::Result<()> {
    // Neither mio nor std can set both on a listener. They belong to the socket, so a duplicate of
    // the descriptor will do, as whatever type can set them.
    #[cfg(not(windows))]
    let socket = std::os::fd::AsFd::as_fd(listener).try_clone_to_owned()?;
    #[cfg(windows)]
    let socket = std::os::windows::io::AsSocket::as_socket(listener).try_clone_to_owned()?;
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true)?;
    socket.set_nodelay(options.nodelay)
}

/// Sets what neither mio nor the standard library can set.
#[cfg(feature = "socket2")]
pub(super) fn set(socket: &socket2::SockRef<'_>, options: &SocketOptions) -> io::Result<()> {
    // Urgent bytes are part of the stream. It takes effect when they are read, so a socket that is
    // connected already loses none.
    socket.set_out_of_band_inline(true)?;
    if let Some(keepalive) = options.keepalive {
        let params = socket2::TcpKeepalive::new().with_time(keepalive.idle);
        // OpenBSD and others have neither for a single socket, and use their system-wide values.
        #[cfg(any(
            target_os = "linux",
            target_os = "android",
            target_os = "macos",
            target_os = "freebsd",
            windows
        ))]
        let params = params.with_interval(keepalive.interval).with_retries(keepalive.probes);
        socket.set_tcp_keepalive(&params)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        if options.user_timeout.is_some() {
            socket.set_tcp_user_timeout(options.user_timeout)?;
        }
        if let Some(bytes) = options.notsent_lowat {
            socket.set_tcp_notsent_lowat(bytes)?;
        }
    }
    Ok(())
}

/// Raises `TCP_NOTSENT_LOWAT` of a TCP socket. Returns the former one, or `None` if nothing was
/// changed: it is not that low, or there is none.
#[cfg(all(feature = "splice", feature = "socket2", target_os = "linux"))]
pub(crate) fn raise_notsent_lowat(stream: &dyn super::Stream, mark: u32) -> Option<u32> {
    let fd = stream.splice_fd()?;
    let socket = socket2::SockRef::from(&fd);
    // 0 stands for the system's value.
    let former = socket.tcp_notsent_lowat().ok().filter(|former| (1..mark).contains(former))?;
    socket.set_tcp_notsent_lowat(mark).ok()?;
    Some(former)
}

/// Sets `TCP_NOTSENT_LOWAT` of a TCP socket.
#[cfg(all(feature = "splice", feature = "socket2", target_os = "linux"))]
pub(crate) fn set_notsent_lowat(stream: &dyn super::Stream, mark: u32) {
    let Some(fd) = stream.splice_fd() else { return };
    // Fails only on a socket that is no longer written to.
    let _ = socket2::SockRef::from(&fd).set_tcp_notsent_lowat(mark);
}

/// Raises nothing: without the feature `socket2` there is no mark.
#[cfg(not(all(feature = "splice", feature = "socket2", target_os = "linux")))]
pub(crate) fn raise_notsent_lowat(_: &dyn super::Stream, _: u32) -> Option<u32> {
    None
}

#[cfg(not(all(feature = "splice", feature = "socket2", target_os = "linux")))]
pub(crate) fn set_notsent_lowat(_: &dyn super::Stream, _: u32) {}
