//! What the mailbox is made of: locks, an atomic, the waker and thread ids. In a test build for
//! loom these are models, with which loom tries every order of threads: see
//! `testing::mailbox_model`.

use std::sync::PoisonError;

/// Locks a mutex, even if a thread panicked while it held the lock: no invariant spans an unlock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, tinylb_loom))]
pub(crate) use self::model::*;
#[cfg(not(all(test, tinylb_loom)))]
pub(crate) use self::real::*;

#[cfg(not(all(test, tinylb_loom)))]
mod real {
    pub(crate) use std::sync::atomic::AtomicBool;
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    use std::thread::{self, ThreadId};

    pub(crate) use mio::Waker;

    pub(crate) fn current_thread() -> ThreadId {
        thread::current().id()
    }
}

#[cfg(all(test, tinylb_loom))]
mod model {
    use std::io;
    use std::sync::LazyLock;
    use std::thread::{self, ThreadId};

    pub(crate) use loom::sync::atomic::AtomicBool;
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};

    /// The thread of this name runs the loop.
    pub(crate) const LOOP: &str = "loop";

    /// Loom runs its threads on one thread of the system, whose id therefore says nothing.
    pub(crate) fn current_thread() -> ThreadId {
        static OF_LOOP: LazyLock<ThreadId> = LazyLock::new(|| thread::spawn(|| ()).thread().id());
        if loom::thread::current().name() == Some(LOOP) { *OF_LOOP } else { thread::current().id() }
    }

    /// An event queue that has nothing but a waker.
    #[derive(Debug)]
    pub(crate) struct Waker {
        is_woken: Mutex<bool>,
        woken: Condvar,
    }

    impl Waker {
        pub(crate) fn of_nothing_else() -> Self {
            Self { is_woken: Mutex::new(false), woken: Condvar::new() }
        }

        /// There is no server in a model.
        pub(crate) fn new(_: &mio::Registry, _: mio::Token) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn wake(&self) -> io::Result<()> {
            *self.is_woken.lock().unwrap() = true;
            self.woken.notify_one();
            Ok(())
        }

        /// Waits until it was woken since the last call, as a poll without a timeout does.
        pub(crate) fn sleep(&self) {
            let mut is_woken = self.is_woken.lock().unwrap();
            while !*is_woken {
                is_woken = self.woken.wait(is_woken).unwrap();
            }
            *is_woken = false;
        }
    }
}
