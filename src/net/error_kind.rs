//! What an I/O error says: this machine is short of something, one client is gone, or a backend
//! has failed.

use std::io;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod errno {
    /// ENFILE, EMFILE, ENOSPC (epoll's limit of watches) and ENOBUFS.
    pub(super) const SHORTAGES: [i32; 4] = [23, 24, 28, 105];
    pub(super) const EAFNOSUPPORT: i32 = 97;
    #[cfg(feature = "socket2")]
    pub(super) const EINPROGRESS: i32 = 115;
}

#[cfg(windows)]
mod errno {
    /// WSAEMFILE and WSAENOBUFS.
    pub(super) const SHORTAGES: [i32; 2] = [10024, 10055];
    pub(super) const EAFNOSUPPORT: i32 = 10047;
    /// WSAEWOULDBLOCK
    #[cfg(feature = "socket2")]
    pub(super) const EINPROGRESS: i32 = 10035;
}

#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
mod errno {
    /// ENFILE, EMFILE, ENOSPC and ENOBUFS.
    pub(super) const SHORTAGES: [i32; 4] = [23, 24, 28, 55];
    pub(super) const EAFNOSUPPORT: i32 = 47;
    #[cfg(feature = "socket2")]
    pub(super) const EINPROGRESS: i32 = 36;
}

/// Returns whether this machine is short of descriptors, memory or buffers. The next try may work.
pub(crate) fn is_shortage(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::OutOfMemory
        || err.raw_os_error().is_some_and(|code| errno::SHORTAGES.contains(&code))
}

/// Returns whether an error that [`Backend::dial`](crate::Backend::dial) itself returned is a
/// failure of this machine, which says nothing about the backend: a shortage, no local address or
/// port, no route, or no support for the address family.
///
/// Not for errors that arrive later, from `check_connect`. The network may then have answered, and
/// what it said (no route, for example) is about the backend.
pub(crate) fn is_local_failure(err: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, NetworkUnreachable};
    is_shortage(err)
        || matches!(err.kind(), AddrInUse | AddrNotAvailable | NetworkUnreachable)
        || err.raw_os_error() == Some(errno::EAFNOSUPPORT)
}

/// Returns whether an error of a non-blocking `connect` means that the connection has begun.
#[cfg(feature = "socket2")]
pub(super) fn is_in_progress(err: &io::Error) -> bool {
    err.raw_os_error() == Some(errno::EINPROGRESS)
}

/// Returns whether an error of `accept` concerns one client, which is gone. The next may be fine.
pub(crate) fn is_client_error(err: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, PermissionDenied, TimedOut,
    };
    // On Linux, accept(2) returns network errors that are pending on the new socket.
    const EPROTO: i32 = 71;
    matches!(
        err.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    ) || (cfg!(target_os = "linux") && err.raw_os_error() == Some(EPROTO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn errors_are_sorted_by_whose_they_are() {
        let os = io::Error::from_raw_os_error;
        for shortage in [12, 23, 24, 28, 105] {
            assert!(
                is_shortage(&os(shortage))
                    && is_local_failure(&os(shortage))
                    && !is_client_error(&os(shortage))
            );
        }
        // EPERM, EINTR, EPROTO, ENETDOWN, ENETUNREACH, ECONNABORTED, ECONNRESET, ETIMEDOUT, and
        // EHOSTUNREACH
        for of_one in [1, 4, 71, 100, 101, 103, 104, 110, 113] {
            assert!(is_client_error(&os(of_one)) && !is_shortage(&os(of_one)), "{}", os(of_one));
        }
        let (econnrefused, ehostunreach, ebadf) = (os(111), os(113), os(9));
        assert!(!is_local_failure(&econnrefused) && !is_local_failure(&ehostunreach));
        // EAFNOSUPPORT, EADDRINUSE, EADDRNOTAVAIL and ENETUNREACH
        for local in [97, 98, 99, 101] {
            assert!(is_local_failure(&os(local)) && !is_shortage(&os(local)), "{}", os(local));
        }
        assert!(!is_client_error(&ebadf) && !is_shortage(&ebadf));
    }
}
