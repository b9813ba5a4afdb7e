//! Socket options of TCP connections, on either side.

use std::time::Duration;

/// How a connection that has gone quiet is probed, so that a peer that died without a word is noticed.
///
/// The default is what the Go runtime uses: idle 15 s, interval 15 s, 9 probes; a dead peer is noticed after
/// idle + interval × probes = 2 min 30 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long nothing may arrive before the first probe. Whole seconds, from 1 to 32,767.
    pub idle: Duration,
    /// The time between probes. Whole seconds, from 1 to 32,767.
    pub interval: Duration,
    /// How many probes may stay unanswered before the connection is given up. From 1 to 127. On Linux and Android,
    /// [`user_timeout`](crate::Builder::user_timeout) takes the place of this number if it is set.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(15), interval: Duration::from_secs(15), probes: 9 }
    }
}

/// Options of the balancer's TCP sockets, the same for clients and backends.
///
/// Set with the methods of the [`Builder`](crate::Builder) that have the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketOptions {
    /// `TCP_NODELAY`: send small writes at once. On by default.
    pub nodelay: bool,
    /// Probing of idle connections; `None` switches it off. On by default. Needs the feature `socket2`.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`); `None`, the default, leaves that to the
    /// system, which takes about 15 minutes. Linux and Android only; needs the feature `socket2`.
    pub user_timeout: Option<Duration>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { nodelay: true, keepalive: Some(Keepalive::default()), user_timeout: None }
    }
}

/// Sets what only socket2 can set; without it there is nothing to set, which the options' docs say.
#[cfg(feature = "socket2")]
pub(super) fn apply(socket: &socket2::SockRef<'_>, options: &SocketOptions) -> std::io::Result<()> {
    if let Some(keepalive) = options.keepalive {
        let params = socket2::TcpKeepalive::new().with_time(keepalive.idle);
        // OpenBSD and its like have neither per socket; those systems keep their own.
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
    if options.user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.user_timeout)?;
    }
    Ok(())
}
