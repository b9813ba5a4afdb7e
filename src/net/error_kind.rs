//! Whose failure an I/O error is: this machine's, one client's, or the backend's.

use std::io;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod errno {
    /// ENFILE, EMFILE, ENOSPC (epoll's limit of watches) and ENOBUFS.
    pub(super) const SHORTAGES: [i32; 4] = [23, 24, 28, 105];
}

#[cfg(windows)]
mod errno {
    /// WSAEMFILE and WSAENOBUFS.
    pub(super) const SHORTAGES: [i32; 2] = [10024, 10055];
}

#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
mod errno {
    /// ENFILE, EMFILE, ENOSPC and ENOBUFS.
    pub(super) const SHORTAGES: [i32; 4] = [23, 24, 28, 55];
}

/// Returns whether this machine is short of descriptors, memory or buffers. The next try may work.
pub(crate) fn is_shortage(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::OutOfMemory
        || err.raw_os_error().is_some_and(|code| errno::SHORTAGES.contains(&code))
}

/// Returns whether a dial failed because of this machine, which says nothing about the backend: a
/// shortage, or no local address or port.
pub(crate) fn is_local_failure(err: &io::Error) -> bool {
    is_shortage(err)
        || matches!(err.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

/// Returns whether an error of `accept` concerns one client that is gone. The next may be fine.
pub(crate) fn is_of_one_client(err: &io::Error) -> bool {
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
                    && !is_of_one_client(&os(shortage))
            );
        }
        // EPERM, EINTR, EPROTO, ENETDOWN, ENETUNREACH, ECONNABORTED, ECONNRESET, ETIMEDOUT, and
        // EHOSTUNREACH
        for of_one in [1, 4, 71, 100, 101, 103, 104, 110, 113] {
            assert!(is_of_one_client(&os(of_one)) && !is_shortage(&os(of_one)), "{}", os(of_one));
        }
        let (econnrefused, eaddrnotavail, ebadf) = (os(111), os(99), os(9));
        assert!(!is_local_failure(&econnrefused));
        assert!(is_local_failure(&eaddrnotavail) && !is_shortage(&eaddrnotavail));
        assert!(is_local_failure(&os(98)) && !is_shortage(&os(98)));
        assert!(!is_of_one_client(&ebadf) && !is_shortage(&ebadf));
    }
}
