//! A lock that threads get in the order in which they ask for it.

use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, lock};

/// A lock for turns that take a while.
///
/// `Mutex` lets a thread that has just unlocked it lock it again ahead of those that wait. Of two
/// threads that update in a tight loop, one got 4,925 turns that way and the other 91.
#[derive(Default)]
pub(super) struct FairLock {
    tickets: Mutex<Tickets>,
    next_is_called: Condvar,
}

#[derive(Default)]
struct Tickets {
    issued: u64,
    /// The ticket of the thread that has the lock, or may take it.
    called: u64,
}

/// A thread's turn, which ends when it is dropped.
pub(super) struct Turn<'a>(&'a FairLock);

impl FairLock {
    /// Waits for the caller's turn.
    pub(super) fn wait(&self) -> Turn<'_> {
        let mut tickets = lock(&self.tickets);
        let own = tickets.issued;
        tickets.issued += 1;
        while tickets.called != own {
            tickets = self.next_is_called.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.tickets).called += 1;
        self.0.next_is_called.notify_all();
    }
}
