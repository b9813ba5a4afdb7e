//! From the host's threads to the loop: a mailbox of requests, whose size does not depend on the
//! number of calls, and a waker.
//!
//! The mailbox is locked for O(1). An update is put in at once; only then its sender merges it with
//! those before it that the loop has not taken yet, outside the lock. So the loop waits for nobody.
//! Senders merge one after another, in order, so that each gets its turn.

mod fair_lock;
pub(crate) mod oneshot;
mod pending;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::ThreadId;

use self::fair_lock::FairLock;
pub use self::pending::Pending;
use crate::backend::BackendSet;
use crate::error::Error;
use crate::pool::merged_update::{LiveTargets, MergedUpdate, Removal};
use crate::stats::{Applied, Stats};
use crate::sync::{AtomicBool, Mutex, MutexGuard, Waker, current_thread, lock};

/// Makes a mailbox: the half for hosts, and the half for the loop, which the waker wakes.
pub(crate) fn channel(waker: Arc<Waker>) -> (Sender, Receiver) {
    let mailbox = Mailbox {
        loop_thread: LoopThread::NotStarted,
        waker: Some(waker),
        requests: Requests::default(),
        live_targets: LiveTargets::default(),
    };
    let shared = Arc::new(Shared {
        mailbox: Mutex::new(mailbox),
        has_requests: AtomicBool::new(true),
        merging: FairLock::default(),
    });
    (Sender(shared.clone()), Receiver(shared))
}

/// The half for hosts. It can be cloned.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Shared>);

/// The half for the loop. Dropping it answers everything with "stopped", now and from then on.
pub(crate) struct Receiver(Arc<Shared>);

struct Shared {
    mailbox: Mutex<Mailbox>,
    /// Set before the loop is woken. Each turn looks at it, since the waker's event may come many
    /// turns late, behind those of thousands of sockets.
    has_requests: AtomicBool,
    /// Held by a thread that submits an update, until it is merged.
    merging: FairLock,
}

struct Mailbox {
    loop_thread: LoopThread,
    /// `None` once the loop is gone, so that no handle keeps a descriptor open.
    waker: Option<Arc<Waker>>,
    requests: Requests,
    /// The targets that pairs may have: a merged update says what becomes of each.
    live_targets: LiveTargets,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LoopThread {
    NotStarted,
    Running(ThreadId),
    /// The loop is dropped, or about to be: by this thread, unless it never ran.
    Gone(Option<ThreadId>),
}

impl LoopThread {
    fn is_gone(self) -> bool {
        matches!(self, Self::Gone(_))
    }
}

/// What hosts have asked for since the loop last looked. Dropping it releases everyone who waits.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) stats: Option<oneshot::Sender<Stats>>,
    pub(crate) stop: Option<Stop>,
    /// Last, so that the host's backends are dropped after all are released.
    pub(crate) update: Option<UpdateRequest>,
}

/// The updates to be applied in one step.
pub(crate) struct UpdateRequest {
    /// Above `updates`, so that waiters are released before the host's backends are dropped.
    pub(crate) applied: oneshot::Sender<Applied>,
    /// In order. The first may be a merged one. Senders merge them, so there are few.
    pub(crate) updates: Vec<Arc<MergedUpdate>>,
}

impl UpdateRequest {
    fn new() -> Self {
        Self { applied: oneshot::Sender::new(), updates: Vec::new() }
    }
}

/// How the loop is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Now,
    Drain(std::time::Duration),
}

impl Stop {
    /// Merges two requests: `Now` overrides, and of two limits the shorter holds.
    fn merge(self, other: Option<Self>) -> Self {
        match (self, other) {
            (Self::Drain(limit), Some(Self::Drain(another))) => Self::Drain(limit.min(another)),
            (Self::Now, _) | (_, Some(Self::Now)) => Self::Now,
            (drain, None) => drain,
        }
    }
}

/// The outcome of putting an update into the mailbox.
struct Submitted {
    reply: Pending<Applied>,
    woken: Result<(), Error>,
    /// All updates that the loop has not taken yet, to be merged by their sender.
    updates: Vec<Arc<MergedUpdate>>,
    live_targets: LiveTargets,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        lock(&self.mailbox)
    }

    /// Wakes the loop for what was put into the mailbox, which is still locked.
    fn wake(&self, mailbox: &Mailbox) -> Result<(), Error> {
        self.has_requests.store(true, Ordering::Release);
        mailbox.waker.as_ref().map_or(Ok(()), |waker| waker.wake()).map_err(Error::Wake)
    }
}

impl Sender {
    /// Submits an update.
    pub(crate) fn update(
        &self,
        set: BackendSet,
        removal: Removal,
    ) -> Result<Pending<Applied>, Error> {
        let update = Arc::new(MergedUpdate::new(set, removal));
        // The loop's own thread, in an observer, waits for no sender.
        let merging = (!self.is_own_thread()).then(|| self.0.merging.lock());
        let Submitted { reply, woken, updates, live_targets } = self.submit(&update)?;
        if updates.len() > 1 {
            self.merge(&updates, &live_targets);
        }
        // Unlock first: backends of the host may call in here when they are dropped.
        drop(merging);
        drop((updates, live_targets));
        woken.map(|()| reply)
    }

    /// Puts an update behind those that the loop has not taken yet.
    fn submit(&self, update: &Arc<MergedUpdate>) -> Result<Submitted, Error> {
        let mut mailbox = self.0.lock();
        if mailbox.loop_thread.is_gone() {
            return Err(Error::Stopped);
        }
        let live_targets = mailbox.live_targets.clone();
        let request = mailbox.requests.update.get_or_insert_with(UpdateRequest::new);
        request.updates.push(update.clone());
        let updates = request.updates.clone();
        let reply = Pending::new(request.applied.receiver(), self.clone());
        let woken = self.0.wake(&mailbox);
        Ok(Submitted { reply, woken, updates, live_targets })
    }

    /// Replaces updates by a merged one, unless the loop has taken them meanwhile, or another
    /// sender has merged them. (A sender on the loop's own thread does not wait for its turn.)
    fn merge(&self, updates: &[Arc<MergedUpdate>], live_targets: &LiveTargets) {
        let merged = MergedUpdate::merge(updates, live_targets);
        let mut mailbox = self.0.lock();
        if let Some(request) = &mut mailbox.requests.update {
            if Arc::ptr_eq(&request.updates[0], &updates[0]) {
                request.updates.splice(..updates.len(), [merged]);
            }
        }
    }

    /// Asks for a snapshot of the counters.
    pub(crate) fn stats(&self) -> Result<Pending<Stats>, Error> {
        let mut mailbox = self.0.lock();
        let answer = match mailbox.loop_thread {
            LoopThread::Gone(_) => return Err(Error::Stopped),
            // Nothing has happened, and nobody knows whether `run` will ever be called.
            LoopThread::NotStarted => {
                let stats = oneshot::Sender::new();
                let answer = stats.receiver();
                stats.send(Stats::default());
                answer
            }
            LoopThread::Running(_) => {
                let stats = mailbox.requests.stats.get_or_insert_with(oneshot::Sender::new);
                let answer = stats.receiver();
                self.0.wake(&mailbox)?;
                answer
            }
        };
        drop(mailbox);
        Ok(Pending::new(answer, self.clone()))
    }

    /// Asks the loop to end. Does nothing after its end.
    pub(crate) fn stop(&self, stop: Stop) -> Result<(), Error> {
        let mut mailbox = self.0.lock();
        if mailbox.loop_thread.is_gone() {
            return Ok(());
        }
        mailbox.requests.stop = Some(stop.merge(mailbox.requests.stop));
        self.0.wake(&mailbox)
    }

    /// Notes the thread that the loop is about to run on: from now on requests are answered.
    pub(crate) fn note_thread(&self, thread: ThreadId) {
        let mut mailbox = self.0.lock();
        if mailbox.loop_thread == LoopThread::NotStarted {
            mailbox.loop_thread = LoopThread::Running(thread);
        }
    }

    /// Returns whether the calling thread runs the loop, or is about to drop it: an observer that
    /// is dropped with the loop cannot wait for the end either.
    fn is_own_thread(&self) -> bool {
        match self.0.lock().loop_thread {
            LoopThread::NotStarted | LoopThread::Gone(None) => false,
            LoopThread::Running(thread) | LoopThread::Gone(Some(thread)) => {
                thread == current_thread()
            }
        }
    }
}

impl Receiver {
    /// Notes that the loop runs from now on, on this thread.
    pub(crate) fn start(&self) {
        self.0.lock().loop_thread = LoopThread::Running(current_thread());
    }

    /// Takes what was asked for since the last call. `None` costs no lock.
    pub(crate) fn take_pending(&self) -> Option<Requests> {
        let has_requests = &self.0.has_requests;
        if !(has_requests.load(Ordering::Relaxed) && has_requests.swap(false, Ordering::Acquire)) {
            return None;
        }
        let mut mailbox = self.0.lock();
        let requests = mem::take(&mut mailbox.requests);
        // What is submitted from now on comes after this update, whose targets may have pairs then.
        if let Some(last) = requests.update.as_ref().and_then(|update| update.updates.last()) {
            let in_force_soon = last.set.clone();
            mailbox.live_targets.add(in_force_soon);
        }
        Some(requests)
    }

    /// Returns the updates of a request, merged into one.
    pub(crate) fn merged(&self, request: &UpdateRequest) -> Arc<MergedUpdate> {
        let live_targets = self.0.lock().live_targets.clone();
        MergedUpdate::merge(&request.updates, &live_targets)
    }

    /// Sets the targets that pairs may have, now that an update is in force. Returns the former
    /// ones, which hold backends of the host: the caller decides when these are dropped.
    pub(crate) fn set_live_targets(&self, live_targets: LiveTargets) -> LiveTargets {
        mem::replace(&mut self.0.lock().live_targets, live_targets)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut mailbox = self.0.lock();
        mailbox.loop_thread = match mailbox.loop_thread {
            LoopThread::Running(thread) => LoopThread::Gone(Some(thread)),
            LoopThread::NotStarted => LoopThread::Gone(None),
            over @ LoopThread::Gone(_) => over,
        };
        let left = (
            mailbox.waker.take(),
            mem::take(&mut mailbox.requests),
            mem::take(&mut mailbox.live_targets),
        );
        // Backends of the host are dropped with these, and may call in here.
        drop(mailbox);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Wake};
    use std::time::Duration;

    use super::*;
    use crate::backend::TcpBackend;

    fn mailbox() -> (Sender, Receiver) {
        let poll = mio::Poll::new().unwrap();
        channel(Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap()))
    }

    #[test]
    fn c9_1_the_loop_takes_requests_only_if_there_may_be_any() {
        let (sender, receiver) = mailbox();
        assert!(receiver.take_pending().is_some() && receiver.take_pending().is_none());
        sender.stop(Stop::Now).unwrap();
        assert_eq!(receiver.take_pending().unwrap().stop, Some(Stop::Now));
        assert!(receiver.take_pending().is_none());
    }

    #[test]
    fn c3_6_updates_that_were_awaited_leave_nothing_behind() {
        struct Task;
        impl Wake for Task {
            fn wake(self: Arc<Self>) {}
        }
        let (sender, receiver) = mailbox();
        let task = Arc::new(Task);
        for answered in 0..10_000 {
            let waker = task.clone().into();
            let mut context = Context::from_waker(&waker);
            let update = sender.update(BackendSet::new(), Removal::Close).unwrap();
            let mut pending = pin!(update.clone());
            assert!(pending.as_mut().poll(&mut context).is_pending());
            if answered % 2 == 0 {
                let request = receiver.take_pending().unwrap().update.unwrap();
                assert_eq!(request.updates.len(), 1, "they were merged");
                request.applied.send(Applied::default());
                assert!(pending.as_mut().poll(&mut context).is_ready());
            }
        }
        assert_eq!(Arc::strong_count(&task), 1);
        drop(receiver.take_pending());
        assert_eq!(Arc::strong_count(&sender.0), 2, "handles that nobody has are counted");
    }

    /// An update was taken and is not in force yet, when its target is removed and named again.
    #[test]
    fn c3_6_a_removal_of_what_is_about_to_be_in_force_is_not_lost() {
        let (sender, receiver) = mailbox();
        let backend = TcpBackend::new(([127, 0, 0, 1], 1).into());
        let with: BackendSet = [("key", backend)].into_iter().collect();
        let update = |set| drop(sender.update(set, Removal::Close).unwrap());
        update(with.clone());
        let _taken = receiver.take_pending();
        update(BackendSet::new());
        update(with);
        let request = receiver.take_pending().unwrap().update.unwrap();
        let merged = receiver.merged(&request);
        let closed: Vec<_> = merged.closed_earlier().map(|name| &**name).collect();
        assert_eq!(closed, ["127.0.0.1:1"]);
    }

    #[test]
    fn c7_2_of_two_limits_given_at_once_the_earlier_holds_and_shutdown_overrides() {
        let drain = |secs| Stop::Drain(Duration::from_secs(secs));
        for (new, old, both) in [
            (drain(2), None, drain(2)),
            (drain(2), Some(drain(1)), drain(1)),
            (drain(1), Some(drain(2)), drain(1)),
            (Stop::Now, None, Stop::Now),
            (Stop::Now, Some(drain(1)), Stop::Now),
            (drain(1), Some(Stop::Now), Stop::Now),
        ] {
            assert_eq!(new.merge(old), both, "{old:?}, then {new:?}");
        }
    }
}
