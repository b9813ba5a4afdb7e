//! What went wrong.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many are kept word by word. Of what goes wrong once, more follows.
const KEPT: usize = 20;

/// What went wrong, from all threads.
#[derive(Default)]
pub(crate) struct Faults {
    count: AtomicUsize,
    kept: Mutex<Vec<String>>,
}

impl Faults {
    pub(crate) fn report(&self, fault: impl Into<String>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let mut kept = lock(&self.kept);
        if kept.len() < KEPT {
            kept.push(fault.into());
        }
    }

    /// Reports it unless it is so.
    pub(crate) fn unless(&self, is_so: bool, fault: impl FnOnce() -> String) {
        if !is_so {
            self.report(fault());
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn kept(&self) -> Vec<String> {
        lock(&self.kept).clone()
    }
}

/// What a panic leaves behind is looked at all the same: it has been reported.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
