//! The loop with scripted streams, a scripted listener, and a clock that stands until it is moved.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use mio::{Interest, Poll, Waker};

use super::super::*;
use crate::backend::{Backend, Dial, DialRequest};
use crate::control::{Control, Update};
use crate::net::{Address, Listener, SocketOptions, Stream};
use crate::observer::{
    AcceptChanged, AttemptFailed, BreakerChanged, BreakerState, Connected, Ended,
};
use crate::pool::PickSettings;
use crate::random::Random;
use crate::stats::Applied;
use crate::testing::script::{Script, Seen};

/// What comes of the next calls, for listeners and backends.
pub(super) type Results = Arc<Mutex<VecDeque<io::Result<Script>>>>;

pub(super) struct ScriptedListener(Results);

impl Listener for ScriptedListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let next = self.0.lock().unwrap().pop_front().unwrap_or(Err(ErrorKind::WouldBlock.into()));
        next.map(|script| (Box::new(script) as Box<dyn Stream>, Address::Other("client".into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Other("listener".into()))
    }
}

impl mio::event::Source for ScriptedListener {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }
    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }
    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

/// A backend that follows a script, and then gives streams that never connect.
#[derive(Clone)]
pub(super) struct Scripted {
    pub(super) name: &'static str,
    pub(super) dials: Results,
    pub(super) dialled: Arc<Mutex<Vec<Seen>>>,
    pub(super) addresses: u32,
}

impl Scripted {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, dials: Results::default(), dialled: Arc::default(), addresses: 1 }
    }

    pub(super) fn then(self, dial: io::Result<Script>) -> Self {
        self.dials.lock().unwrap().push_back(dial);
        self
    }

    pub(super) fn dialled(&self) -> Vec<Seen> {
        self.dialled.lock().unwrap().clone()
    }
}

impl Backend for Scripted {
    fn target_name(&self) -> String {
        self.name.to_owned()
    }

    fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
        let next = self.dials.lock().unwrap().pop_front();
        let script = next
            .unwrap_or_else(|| Ok(Script::new().connect(std::iter::repeat_n(Ok(false), 1000))))?;
        self.dialled.lock().unwrap().push(script.seen());
        Ok(Dial::new(script))
    }

    fn attempts(&self) -> u32 {
        self.addresses
    }
}

pub(super) fn shortage() -> io::Error {
    io::Error::from_raw_os_error(24)
}

pub(super) fn refused() -> io::Result<Script> {
    Err(ErrorKind::ConnectionRefused.into())
}

/// What an observer is told: of each client, and of the rest.
#[derive(Clone, Default)]
pub(super) struct Notes {
    of_clients: Arc<Mutex<Vec<String>>>,
    others: Arc<Mutex<Vec<String>>>,
    /// How long each attempt took that failed.
    pub(super) took: Arc<Mutex<Vec<Duration>>>,
}

impl Notes {
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.of_clients.lock().unwrap())
    }
    pub(super) fn take_others(&self) -> Vec<String> {
        std::mem::take(&mut self.others.lock().unwrap())
    }
    pub(super) fn add(&self, note: String) {
        self.of_clients.lock().unwrap().push(note);
    }
}

impl Observer for Notes {
    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        self.add(format!(
            "{} failed {}/{}: {}",
            failed.client.id,
            failed.key,
            failed.attempt,
            failed.error.kind()
        ));
        self.took.lock().unwrap().push(failed.took);
    }
    fn connected(&mut self, connected: &Connected<'_>) {
        self.add(format!("{} connected {}", connected.client.id, connected.key));
    }
    fn ended(&mut self, ended: &Ended<'_>) {
        self.add(format!("{} ended: {}", ended.client.id, ended.reason));
    }
    fn breaker_changed(&mut self, changed: &BreakerChanged<'_>) {
        let BreakerChanged { key, target_name, state } = changed;
        let state = match state {
            BreakerState::Ejected { time } => format!("ejected for {:.0}", time.as_secs_f64()),
            state => format!("{state:?}"),
        };
        self.others.lock().unwrap().push(format!("{key}={target_name} {state}"));
    }
    fn accept_changed(&mut self, changed: &AcceptChanged<'_>) {
        let change = match changed {
            AcceptChanged::Paused { error } => format!("paused: {:?}", error.raw_os_error()),
            AcceptChanged::Resumed => "resumed".to_owned(),
        };
        self.others.lock().unwrap().push(change);
    }
}

pub(super) struct Rig {
    pub(super) event_loop: EventLoop,
    pub(super) control: Control,
    pub(super) clients: Results,
    pub(super) notes: Notes,
    pub(super) now: Instant,
    pub(super) _poll: Poll,
}

pub(super) const LIMITS: Limits = Limits {
    connect_timeout: Duration::from_secs(5),
    dial_limit: Duration::from_secs(15),
    idle_timeout: None,
    half_closed_timeout: Duration::from_secs(60),
};

impl Rig {
    pub(super) fn new(backends: &[(&'static str, &Scripted)]) -> Self {
        Self::with(LIMITS, usize::MAX, backends)
    }

    pub(super) fn with(
        limits: Limits,
        max_connections: usize,
        backends: &[(&'static str, &Scripted)],
    ) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), token::MAILBOX).unwrap();
        let (sender, receiver) = crate::mailbox::channel(Arc::new(waker));
        let clients = Results::default();
        let notes = Notes::default();
        let event_loop = EventLoop::new(
            Config {
                limits,
                max_connections,
                buffer_size: 64 * 1024,
                socket_options: SocketOptions::default(),
                splice: true,
            },
            poll.registry().try_clone().unwrap(),
            Box::new(ScriptedListener(clients.clone())),
            receiver,
            Pool::new(PickSettings::default(), Random::new(1)),
            Box::new(notes.clone()),
        );
        let control = Control::new(
            sender,
            Address::Other("listener".into()),
            crate::mailbox::oneshot::Sender::new().receiver(),
        );
        let mut rig = Self {
            event_loop: event_loop.unwrap(),
            control,
            clients,
            notes,
            now: Instant::now(),
            _poll: poll,
        };
        rig.update(backends);
        rig
    }

    /// Turns with a poll that began now and found no more than these events.
    pub(super) fn turn(&mut self, events: &[(Token, Readiness)]) -> Option<Instant> {
        self.turn_after(events, self.now, Completeness::Complete)
    }

    /// Turns with what a poll returned that began earlier.
    pub(super) fn turn_after(
        &mut self,
        events: &[(Token, Readiness)],
        poll_began: Instant,
        completeness: Completeness,
    ) -> Option<Instant> {
        let batch = Batch { events: events.iter().copied(), poll_began, completeness };
        let next = self.event_loop.turn(batch, self.now);
        let stats = self.event_loop.stats(self.now);
        let (refused, ended) = (stats.refused.total(), stats.ended.total());
        assert_eq!(
            stats.accepted,
            refused + ended + stats.dialling + stats.open,
            "C8.1: {stats:?}"
        );
        assert_eq!(self.event_loop.pairs.len() as u64, stats.dialling + stats.open);
        let of_backends: u64 = stats.backends.iter().map(|backend| backend.usage.open).sum();
        assert_eq!(stats.open, of_backends + stats.departed.open);
        next
    }

    /// Turns until the loop would wait. Returns until when.
    pub(super) fn settle(&mut self, events: &[(Token, Readiness)]) -> Option<Duration> {
        let mut next = self.turn(events);
        for _ in 0..10_000 {
            match next {
                Some(at) if at <= self.now => next = self.turn(&[]),
                _ => return next.map(|at| at - self.now),
            }
        }
        panic!("the loop never rests");
    }

    /// Moves the clock and turns, as `run` does when nothing happens.
    pub(super) fn pass(&mut self, time: Duration) -> Option<Duration> {
        self.now += time;
        self.settle(&[])
    }

    pub(super) fn submit(&self, backends: &[(&'static str, &Scripted)]) -> Update {
        self.control
            .update(backends.iter().map(|(key, backend)| (*key, (*backend).clone())).collect())
            .unwrap()
    }

    pub(super) fn update(&mut self, backends: &[(&'static str, &Scripted)]) -> Applied {
        let update = self.submit(backends);
        self.settle(COMMANDED);
        update.try_wait().unwrap().expect("not applied in the turn that was told of it")
    }

    /// Has a client come in.
    pub(super) fn client(&mut self, script: Script) -> Seen {
        let seen = script.seen();
        self.clients.lock().unwrap().push_back(Ok(script));
        self.settle(&[(token::LISTENER, READABLE)]);
        seen
    }

    pub(super) fn event(&mut self, of: &Seen, readiness: Readiness) -> Option<Duration> {
        self.settle(&[(of.token().expect("not registered"), readiness)])
    }

    /// A client and a backend that are connected with each other.
    pub(super) fn pair(&mut self, client: Script, backend: &Scripted) -> (Seen, Seen) {
        let client = self.client(client);
        let dialled = backend.dialled().pop().expect("not dialled");
        self.event(&dialled, Readiness { writable: true, ..Readiness::default() });
        (client, dialled)
    }
}

pub(super) const COMMANDED: &[(Token, Readiness)] = &[(token::MAILBOX, READABLE)];

pub(super) const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    write_closed: false,
    error: false,
    priority: false,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn connects() -> io::Result<Script> {
    Ok(Script::new())
}

/// A rig with as many pairs, as their clients and backends.
pub(super) fn pairs(count: usize) -> (Rig, Vec<(Seen, Seen)>) {
    let backend = (0..count).fold(Scripted::new("a"), |backend, _| backend.then(connects()));
    let mut rig = Rig::new(&[("a", &backend)]);
    let pairs = (0..count).map(|_| rig.pair(Script::new(), &backend)).collect();
    (rig, pairs)
}

/// 300 pairs of a target and one of another, and the update that takes the first target away,
/// submitted.
pub(super) struct Removal {
    pub(super) rig: Rig,
    pub(super) b: Scripted,
    pub(super) victims: Vec<(Seen, Seen)>,
    pub(super) survivor: (Seen, Seen),
    pub(super) update: Update,
}

pub(super) fn large_removal() -> Removal {
    let a = (0..300).fold(Scripted::new("a"), |backend, _| backend.then(connects()));
    let b = Scripted::new("b").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let victims = (0..300).map(|_| rig.pair(Script::new(), &a)).collect();
    rig.update(&[("a", &a), ("b", &b)]);
    let survivor = rig.pair(Script::new(), &b);
    let update = rig.submit(&[("b", &b)]);
    Removal { rig, b, victims, survivor, update }
}
