//! Transports: what the balancer asks of them, and the two that come with it.
//!
//! A host that only uses TCP and Unix-domain sockets needs nothing from here but [`Address`] and, for a generous
//! backlog, `ListenOptions`. A transport of the host's own implements [`Stream`], and [`Listener`] if clients come by it.

mod address;
mod listen;
mod options;
mod stream;
pub(crate) mod tcp;
#[cfg(unix)]
mod unix;

use std::io;

pub use address::Address;
pub use listen::IntoListener;
#[cfg(feature = "socket2")]
pub use listen::ListenOptions;
pub use options::{Keepalive, SocketOptions};
pub use stream::{Listener, Readiness, Stream};

/// What every stream is registered for, once and for good.
///
/// Urgent data is asked for where it can be, not to pass it on but because a read stops short at it: without a word
/// of it, what follows would be left lying.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const INTEREST: mio::Interest =
    mio::Interest::READABLE.add(mio::Interest::WRITABLE).add(mio::Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const INTEREST: mio::Interest = mio::Interest::READABLE.add(mio::Interest::WRITABLE);

/// Whether this machine has run out of something that it may have again in a moment: descriptors, memory, buffers.
///
/// The standard library has a kind for memory only; the numbers are those of the systems' `errno.h` and `winsock2.h`.
pub(crate) fn is_shortage(err: &io::Error) -> bool {
    const EMFILE_AND_ENFILE: [i32; 2] = [24, 23];
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const ENOBUFS_AND_ENOSPC: [i32; 2] = [105, 28];
    #[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
    const ENOBUFS_AND_ENOSPC: [i32; 2] = [55, 28];
    #[cfg(windows)]
    const ENOBUFS_AND_ENOSPC: [i32; 2] = [10055, 10024]; // there, the second is "too many open sockets"
    err.kind() == io::ErrorKind::OutOfMemory
        || err.raw_os_error().is_some_and(|code| {
            EMFILE_AND_ENFILE.contains(&code) || ENOBUFS_AND_ENOSPC.contains(&code)
        })
}

/// Whether a dial failed for want of something local that says nothing of the backend: a port, besides shortages.
pub(crate) fn is_local_failure(err: &io::Error) -> bool {
    is_shortage(err)
        || matches!(err.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

/// Whether an error of `accept` is that of one client who is gone already; the next one may be fine.
pub(crate) fn is_of_one_client(err: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, PermissionDenied, TimedOut,
    };
    // Linux hands a network error that is pending on the new socket out of accept(2).
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
        // EPERM, EINTR, EPROTO, ENETDOWN, ENETUNREACH, ECONNABORTED, ECONNRESET, ETIMEDOUT, EHOSTUNREACH
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
