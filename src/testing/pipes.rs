//! Pipes without descriptors, for simulated streams.

use std::io;
#[cfg(unix)]
use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    sync::LazyLock,
};

use crate::net::Stream;
use crate::relay::PipeEnds;
#[cfg(test)]
use crate::relay::PipeSystem;

/// Returns a descriptor for a stream that has none: simulated pipes do not touch it.
#[cfg(unix)]
pub(crate) fn any_fd() -> BorrowedFd<'static> {
    static NULL: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").unwrap());
    NULL.as_fd()
}

/// A system that has pipes for the asking, which hold so many bytes each.
#[cfg(test)]
pub(crate) struct PlentyOfPipes(pub(crate) usize);

#[cfg(test)]
impl PipeSystem for PlentyOfPipes {
    fn is_safe(&self) -> bool {
        true
    }

    fn open(&self) -> Option<Box<dyn PipeEnds>> {
        Some(Box::new(SimulatedPipe::new(self.0)))
    }
}

/// A simulated pipe, which holds so many bytes.
pub(crate) struct SimulatedPipe {
    bytes: Vec<u8>,
    capacity: usize,
}

impl SimulatedPipe {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { bytes: Vec::new(), capacity }
    }
}

impl PipeEnds for SimulatedPipe {
    fn fill(&mut self, from: &mut dyn Stream) -> io::Result<usize> {
        assert!(self.bytes.is_empty(), "it has bytes of another pair");
        let mut room = vec![0; self.capacity];
        let len = from.simulate_splice(&mut room)?;
        self.bytes.extend_from_slice(&room[..len]);
        Ok(len)
    }

    fn drain(&mut self, to: &mut dyn Stream, len: usize) -> io::Result<usize> {
        assert_eq!(self.bytes.len(), len);
        let len = to.write(&self.bytes)?;
        self.bytes.drain(..len);
        Ok(len)
    }
}
