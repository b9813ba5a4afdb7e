//! Building a balancer from its settings, and running it: on the caller's thread or on one of its
//! own. The only code that knows the event queue and reads the clock.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::builder::Builder;
use crate::control::Control;
use crate::end_reason::EndReason;
use crate::error::Error;
use crate::event_loop::{Batch, Completeness, EventLoop, token};
use crate::log::{info, warn};
use crate::mailbox;
use crate::mailbox::oneshot::{self, Closed};
use crate::net::{Address, IntoListener, Readiness};
use crate::pool::Pool;
use crate::random::Random;
use crate::stats::Summary;
use crate::sync::Waker;

/// The largest batch of events that one turn handles.
const EVENTS_PER_TURN: usize = 1024;
/// The event queue counts milliseconds in 32 bits, so longer waits take several polls.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// A balancer that is ready to run.
///
/// Its listener is open, so clients can connect and wait in the backlog. None is accepted before
/// [`run`](Self::run) or [`spawn`](Self::spawn).
pub struct Server {
    event_loop: EventLoop,
    poll: Poll,
    control: Control,
    /// Reports the end. Last, so that the sockets of a server that never ran are closed before.
    ended: oneshot::Sender<Summary>,
}

impl Builder {
    /// Builds the server. It owns the listener, and sets the listener's options.
    ///
    /// Connections already in the backlog keep the options the listener had before. If this fails,
    /// the listener is closed.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that makes no sense, such as a timeout of zero.
    /// [`Error::Listener`] if the listener cannot be used. [`Error::Setup`] if the system has no
    /// event queue left.
    pub fn build(self, listener: impl IntoListener) -> Result<Server, Error> {
        self.check()?;
        let Self { mut config, pick, backends, seed, observer } = self;
        config.limits.connect_timeout = config.limits.connect_timeout.min(config.limits.dial_limit);
        let mut listener = listener.into_listener().map_err(Error::Listener)?;
        listener.set_options(&config.socket_options).map_err(Error::Listener)?;
        let local_addr = listener.local_addr().map_err(Error::Listener)?;
        let poll = Poll::new().map_err(Error::Setup)?;
        let registry = poll.registry().try_clone().map_err(Error::Setup)?;
        let waker = Waker::new(&registry, token::MAILBOX).map_err(Error::Setup)?;
        let (sender, mailbox) = mailbox::channel(Arc::new(waker));
        let ended = mailbox::oneshot::Sender::new();
        let control = Control::new(sender, local_addr, ended.receiver());
        if let Some(set) = backends {
            control.update(set)?;
        }
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let pool = Pool::new(pick, Random::new(seed));
        let event_loop = EventLoop::new(config, registry, listener, mailbox, pool, observer)
            .map_err(Error::Listener)?;
        Ok(Server { event_loop, poll, control, ended })
    }
}

impl Server {
    /// Returns the default settings. [`Builder::build`] makes the server.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns a handle that controls the balancer before, during and after its run.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Returns the address listened on, with the port that the system chose for port 0.
    pub fn local_addr(&self) -> &Address {
        self.control.local_addr()
    }

    /// Runs the balancer on the calling thread until [`Control::shutdown`] or [`Control::drain`]
    /// ends it.
    ///
    /// When it returns, all sockets are closed and nothing of the balancer is left.
    ///
    /// # Errors
    /// [`Error::Poll`] if the system cannot wait for events; no cause in production is known. All
    /// connections are aborted then too.
    pub fn run(self) -> Result<Summary, Error> {
        let Self { event_loop, poll, control, mut ended } = self;
        ended.set_if_dropped(Closed::Panicked);
        // Consumes the loop, so that all sockets are closed before the end is reported, even if
        // there is a panic.
        let result = run_loop(event_loop, poll, control.local_addr());
        tell_end(ended, result)
    }

    /// Runs the balancer on its own thread, named `tinylb`, until it ends or the returned handle is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Thread`] if the thread cannot be started.
    pub fn spawn(self) -> Result<ServerThread, Error> {
        let control = self.control();
        let thread = std::thread::Builder::new()
            .name("tinylb".to_owned())
            .spawn(|| self.run())
            .map_err(Error::Thread)?;
        control.note_thread(thread.thread().id());
        Ok(ServerThread { control, thread: Some(thread) })
    }
}

/// Waits for events and has the loop handle them, until it is over.
fn run_loop(
    mut event_loop: EventLoop,
    mut poll: Poll,
    local_addr: &Address,
) -> Result<Summary, Error> {
    info!("listening on {local_addr}");
    let mut events = Events::with_capacity(EVENTS_PER_TURN);
    let mut now = Instant::now();
    let mut next = event_loop.turn(Batch::none(now), now);
    while !event_loop.is_over() {
        let poll_began = Instant::now();
        let timeout = next.map(|at| at.saturating_duration_since(poll_began).min(LONGEST_WAIT));
        let polled = poll.poll(&mut events, timeout);
        let completeness = match completeness(polled, events.iter().count()) {
            Ok(completeness) => completeness,
            Err(err) => {
                event_loop.stop(EndReason::Shutdown, now);
                return Err(Error::Poll(err));
            }
        };
        now = Instant::now();
        let events = events.iter().map(|event| (event.token(), Readiness::from(event)));
        next = event_loop.turn(Batch { events, poll_began, completeness }, now);
    }
    Ok(event_loop.summary(now))
}

/// Returns what a poll that found so many events says of others.
fn completeness(polled: io::Result<()>, events: usize) -> io::Result<Completeness> {
    match polled {
        Ok(()) if events < EVENTS_PER_TURN => Ok(Completeness::Complete),
        Ok(()) => Ok(Completeness::Full),
        Err(err) if err.kind() == io::ErrorKind::Interrupted => Ok(Completeness::Interrupted),
        Err(err) => Err(err),
    }
}

/// Reports the end to everyone who waits for it.
fn tell_end(
    mut ended: oneshot::Sender<Summary>,
    result: Result<Summary, Error>,
) -> Result<Summary, Error> {
    match &result {
        Ok(summary) => ended.send(summary.clone()),
        Err(_) => ended.set_if_dropped(Closed::Failed),
    }
    result
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addr", self.local_addr()).finish_non_exhaustive()
    }
}

/// A balancer that runs on its own thread. Dropping it shuts the balancer down and waits for the
/// thread to end.
#[derive(Debug)]
#[must_use = "dropping it shuts the balancer down"]
pub struct ServerThread {
    control: Control,
    thread: Option<JoinHandle<Result<Summary, Error>>>,
}

impl ServerThread {
    /// Returns a handle that controls the balancer.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Returns the address listened on.
    pub fn local_addr(&self) -> &Address {
        self.control.local_addr()
    }

    /// Returns whether the thread has ended, so that [`join`](Self::join) returns at once.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the balancer has ended. It ends only when asked to, by [`Control::shutdown`] or
    /// [`Control::drain`].
    ///
    /// # Errors
    /// What [`Server::run`] returned, or [`Error::Panicked`] if it panicked. On the balancer's own
    /// thread [`Error::OwnThread`], and the balancer is shut down as if this handle was dropped.
    pub fn join(mut self) -> Result<Summary, Error> {
        if self.is_own_thread() {
            return Err(Error::OwnThread);
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::Panicked),
            None => Err(Error::Stopped),
        }
    }

    /// Asks the thread itself, not the mailbox: this also holds while the loop is being dropped,
    /// together with an observer or a backend that owns this handle.
    fn is_own_thread(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == std::thread::current().id())
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        let is_own_thread = self.is_own_thread();
        let Some(thread) = self.thread.take() else { return };
        if let Err(err) = self.control.shutdown() {
            warn!("{err}: its thread keeps running");
            return;
        }
        // A thread cannot join itself. It ends after the observer or backend that owns this.
        if !is_own_thread {
            // The panic hook has reported a panic. For an error there is no receiver left.
            let _ = thread.join();
        }
    }
}

#[cfg(all(test, not(tinylb_loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::backend::BackendSet;
    use crate::observer::Observer;
    use crate::stats::{Applied, Stats};

    fn server(observer: impl Observer + 'static) -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Server::builder().observer(observer).build(listener).unwrap()
    }

    #[test]
    fn servers_and_their_handles_show_where_they_listen_and_what_came_of_updates() {
        let server = server(None::<Box<dyn Observer>>);
        let (control, addr) = (server.control(), server.local_addr().to_string());
        assert!(format!("{server:?}").contains(&addr) && format!("{control:?}").contains(&addr));
        let update = control.update(BackendSet::new()).unwrap();
        assert_eq!(format!("{update:?}"), "Pending(Ok(None))");
        drop(server);
        assert_eq!(format!("{update:?}"), "Pending(Err(Stopped))");
    }

    #[test]
    fn c7_5_a_batch_is_complete_only_if_there_was_room_for_more_and_no_signal() {
        let of = |polled, events| completeness(polled, events).map_err(|err| err.kind());
        let fails = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert_eq!(of(Ok(()), EVENTS_PER_TURN - 1), Ok(Completeness::Complete));
        assert_eq!(of(Ok(()), EVENTS_PER_TURN), Ok(Completeness::Full));
        assert_eq!(of(fails(io::ErrorKind::Interrupted), 0), Ok(Completeness::Interrupted));
        assert_eq!(of(fails(io::ErrorKind::Other), 0), Err(io::ErrorKind::Other));
    }

    #[test]
    fn c7_6_before_the_start_the_counters_are_there_at_once_and_all_zero() {
        let server = server(None::<Box<dyn Observer>>);
        let stats = server.control().stats().unwrap();
        assert_eq!(stats.try_wait().unwrap(), Some(Stats::default()));
    }

    #[test]
    fn c7_6_the_end_resolves_with_the_summary_also_afterwards() {
        let server = server(None::<Box<dyn Observer>>);
        let (control, before) = (server.control(), server.control().ended());
        let thread = server.spawn().unwrap();
        control.update(BackendSet::new()).unwrap().wait().unwrap();
        assert!(!thread.is_finished() && before.try_wait().unwrap().is_none());
        control.shutdown().unwrap();
        let summary = before.wait().unwrap();
        assert_eq!(summary.updates, 1);
        while !thread.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!(thread.join().unwrap(), summary);
        assert_eq!(control.ended().try_wait().unwrap(), Some(summary));
    }

    /// Dropped with the last of a balancer, which has not ended for anybody then.
    struct Last {
        control: mpsc::Receiver<Control>,
        panics: bool,
        seen: mpsc::Sender<[Result<Option<Summary>, Error>; 2]>,
    }

    impl Observer for Last {
        fn updated(&mut self, _: &Applied) {
            assert!(!self.panics, "a panic of the host");
        }
    }

    impl Drop for Last {
        fn drop(&mut self) {
            let ended = self.control.recv().unwrap().ended();
            self.seen
                .send([ended.try_wait(), ended.wait_timeout(Duration::from_millis(1))])
                .unwrap();
        }
    }

    #[test]
    fn c7_6_the_end_is_told_once_all_is_closed_and_says_how_it_came() {
        let unrun = |server: Server| drop(server);
        let ran = |server: Server| drop(server.run());
        for (run, panics, on_own_thread) in
            [(unrun as fn(Server), false, false), (ran, false, true), (ran, true, true)]
        {
            let ((give, control), (send, seen)) = (mpsc::channel(), mpsc::channel());
            let server = server(Last { control, panics, seen: send });
            let control = server.control();
            give.send(control.clone()).unwrap();
            control.update(BackendSet::new()).unwrap();
            control.shutdown().unwrap();
            let panicked = std::thread::spawn(move || run(server)).join().is_err();
            let [polled, waited] = seen.recv().unwrap();
            assert!(matches!(polled, Ok(None)), "told too early: {polled:?}");
            assert_eq!(matches!(waited, Err(Error::OwnThread)), on_own_thread, "{waited:?}");
            let end = control.ended().wait();
            match (on_own_thread, panics) {
                (false, _) => assert!(matches!(end, Err(Error::Stopped)), "{end:?}"),
                (true, false) => assert_eq!(end.unwrap().updates, 1),
                (true, true) => assert!(matches!(end, Err(Error::Panicked)) && panicked, "{end:?}"),
            }
        }
    }

    #[test]
    fn c7_6_the_end_says_that_the_balancer_failed() {
        let server = server(None::<Box<dyn Observer>>);
        let (control, ended) = (server.control(), server.ended);
        let failed = tell_end(ended, Err(Error::Poll(io::ErrorKind::Other.into())));
        assert!(matches!(failed, Err(Error::Poll(_))));
        assert!(matches!(control.ended().wait(), Err(Error::Failed)));
    }
}
