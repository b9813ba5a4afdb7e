//! Pipes of the Linux kernel: see splice(2).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::pipes::{PipeEnds, PipeSystem};
use crate::net::Stream;

/// The sizes to ask for, since the system may not allow the first. With 1 MiB, splicing costs as
/// much CPU but moves a quarter less over 16 connections: what the receivers copy has left the
/// cache. With 64 KiB it saves about three quarters as much; smaller pipes are not worth it.
const SIZES: [usize; 4] = [512 << 10, 256 << 10, 128 << 10, 64 << 10];
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// The kernel.
pub(crate) struct Kernel;

struct KernelPipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl PipeSystem for Kernel {
    /// Returns whether this process ignores `SIGPIPE`, as Rust programs do unless they restore it.
    ///
    /// `splice` raises it once the peer has reset the connection. Unlike `send`, it has no flag
    /// that prevents that.
    fn is_safe(&self) -> bool {
        // Not that of the process, which tells nothing once its first thread has ended.
        let status = fs::read_to_string("/proc/thread-self/status");
        status.is_ok_and(|status| is_sigpipe_ignored(&status))
    }

    fn open(&self) -> Option<Box<dyn PipeEnds>> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        let size = SIZES.into_iter().find_map(|size| fcntl_setpipe_size(&write, size).ok())?;
        Some(Box::new(KernelPipe { read, write, size }))
    }
}

fn is_sigpipe_ignored(status: &str) -> bool {
    const SIGPIPE: u32 = 13;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (SIGPIPE - 1)) != 0)
}

impl PipeEnds for KernelPipe {
    fn fill(&mut self, from: &mut dyn Stream) -> io::Result<usize> {
        let Some(socket) = from.splice_fd() else { return Ok(0) };
        match splice(socket, None, &self.write, None, self.size, FLAGS) {
            Ok(len) => Ok(len),
            // It is the call that fails, and not the connection.
            Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::NOMEM) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    fn drain(&mut self, to: &mut dyn Stream, len: usize) -> io::Result<usize> {
        let socket = to.splice_fd().ok_or(io::ErrorKind::Unsupported)?;
        Ok(splice(&self.read, None, socket, None, len, FLAGS)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c6_8_sigpipe_is_ignored_only_if_the_system_says_so() {
        let ignored = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\n";
        assert!(is_sigpipe_ignored(ignored));
        for status in [
            "SigBlk:\t0000000000001000\nSigIgn:\t0000000000000000\n",
            "SigIgn:\t0000000000002800\nSigCgt:\t0000000000001000\n",
            "SigIgn:\t?\n",
            "",
        ] {
            assert!(!is_sigpipe_ignored(status), "{status}");
        }
        assert!(Kernel.is_safe(), "the standard library ignores it before main");
    }
}
