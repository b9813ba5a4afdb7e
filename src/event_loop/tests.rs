//! Whole turns without a socket: scripted streams, a scripted listener, and a clock that stands until it is moved.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use mio::{Interest, Poll, Waker};

use super::*;
use crate::backend::{Backend, BackendSet};
use crate::backend::{Dial, DialRequest};
use crate::control::{Control, Update};
use crate::error::Error;
use crate::mailbox::Sender;
use crate::net::SocketOptions;
use crate::net::Stream;
use crate::net::{Address, Listener};
use crate::observer::{AttemptFailed, Connected, Ended};
use crate::pool::PickSettings;
use crate::random::Random;
use crate::stats::Applied;
use crate::testing::script::{Act, Script, Seen};

/// What comes of the next calls, for listeners and backends.
type Results = Arc<Mutex<VecDeque<io::Result<Script>>>>;

struct ScriptedListener(Results);

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
struct Scripted {
    name: &'static str,
    dials: Results,
    dialled: Arc<Mutex<Vec<Seen>>>,
    addresses: u32,
}

impl Scripted {
    fn new(name: &'static str) -> Self {
        Self { name, dials: Results::default(), dialled: Arc::default(), addresses: 1 }
    }

    fn then(self, dial: io::Result<Script>) -> Self {
        self.dials.lock().unwrap().push_back(dial);
        self
    }

    fn dialled(&self) -> Vec<Seen> {
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

fn shortage() -> io::Error {
    io::Error::from_raw_os_error(24)
}

fn refused() -> io::Result<Script> {
    Err(ErrorKind::ConnectionRefused.into())
}

#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
    fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
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
    }
    fn connected(&mut self, connected: &Connected<'_>) {
        self.add(format!("{} connected {}", connected.client.id, connected.key));
    }
    fn ended(&mut self, ended: &Ended<'_>) {
        self.add(format!("{} ended: {}", ended.client.id, ended.reason));
    }
}

struct Rig {
    event_loop: EventLoop,
    control: Control,
    clients: Results,
    notes: Notes,
    now: Instant,
    _poll: Poll,
}

const LIMITS: Limits = Limits {
    connect_timeout: Duration::from_secs(5),
    dial_limit: Duration::from_secs(15),
    idle_timeout: None,
    half_closed_timeout: Duration::from_secs(60),
};

impl Rig {
    fn new(backends: &[(&'static str, &Scripted)]) -> Self {
        Self::with(LIMITS, usize::MAX, backends)
    }

    fn with(
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
            },
            poll.registry().try_clone().unwrap(),
            Box::new(ScriptedListener(clients.clone())),
            receiver,
            Pool::new(PickSettings::default(), Random::new(1)),
            Box::new(notes.clone()),
        );
        let control = Control::new(Sender::clone(&sender), Address::Other("listener".into()));
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

    fn turn(&mut self, events: &[(Token, Readiness)]) -> Option<Instant> {
        let next = self.event_loop.turn(events.iter().copied(), self.now);
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
    fn settle(&mut self, events: &[(Token, Readiness)]) -> Option<Duration> {
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
    fn pass(&mut self, time: Duration) -> Option<Duration> {
        self.now += time;
        self.settle(&[])
    }

    fn submit(&self, backends: &[(&'static str, &Scripted)]) -> Update {
        self.control
            .update(backends.iter().map(|(key, backend)| (*key, (*backend).clone())).collect())
            .unwrap()
    }

    fn update(&mut self, backends: &[(&'static str, &Scripted)]) -> Applied {
        let update = self.submit(backends);
        self.settle(COMMANDED);
        update.poll().unwrap().expect("not applied in the turn that was told of it")
    }

    /// Has a client come in.
    fn client(&mut self, script: Script) -> Seen {
        let seen = script.seen();
        self.clients.lock().unwrap().push_back(Ok(script));
        self.settle(&[(token::LISTENER, READABLE)]);
        seen
    }

    fn event(&mut self, of: &Seen, readiness: Readiness) -> Option<Duration> {
        self.settle(&[(of.token().expect("not registered"), readiness)])
    }

    /// A client and a backend that are connected with each other.
    fn pair(&mut self, client: Script, backend: &Scripted) -> (Seen, Seen) {
        let client = self.client(client);
        let dialled = backend.dialled().pop().expect("not dialled");
        self.event(&dialled, Readiness { writable: true, ..Readiness::default() });
        (client, dialled)
    }
}

const COMMANDED: &[(Token, Readiness)] = &[(token::MAILBOX, READABLE)];
const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    write_closed: false,
    error: false,
    priority: false,
};
const SECOND: Duration = Duration::from_secs(1);

fn connects() -> io::Result<Script> {
    Ok(Script::new())
}

#[test]
fn c5_2_a_spurious_event_connects_nothing_and_a_true_one_does() {
    let backend = Scripted::new("a").then(Ok(Script::new().connect([Ok(false), Ok(false)])));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let dialled = backend.dialled().pop().unwrap();
    rig.event(&dialled, Readiness::READ_WRITE);
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), [""; 0]);
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
}

#[test]
fn c1_2_what_a_handshake_has_read_along_the_way_is_asked_for_without_an_event_of_it() {
    let backend = Scripted::new("a").then(Ok(Script::new().reads([Act::Data(b"early".to_vec())])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, _) = rig.pair(Script::new(), &backend);
    assert_eq!(client.written(), b"early");
}

#[test]
fn c5_1_no_byte_is_read_from_a_client_without_a_backend() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = rig.client(Script::new().reads([Act::Data(b"early".to_vec())]));
    rig.event(&client, READABLE);
    assert_eq!(client.reads(), 0);
}

#[test]
fn c5_2_each_attempt_and_all_together_have_their_limits() {
    let (a, b, c, d) =
        (Scripted::new("a"), Scripted::new("b"), Scripted::new("c"), Scripted::new("d"));
    let mut rig = Rig::new(&[("a", &a), ("b", &b), ("c", &c), ("d", &d)]);
    let client = rig.client(Script::new());
    assert_eq!(rig.pass(5 * SECOND - Duration::from_nanos(1)), Some(Duration::from_nanos(1)));
    assert_eq!(rig.notes.take(), [""; 0]);
    assert_eq!(rig.pass(Duration::from_nanos(1)), Some(5 * SECOND));
    assert_eq!(rig.notes.take(), ["0 failed a/0: timed out"]);
    assert!(a.dialled()[0].is_dropped());
    assert_eq!(a.dialled()[0].token(), None, "still registered");
    rig.pass(5 * SECOND);
    assert_eq!(rig.notes.take(), ["0 failed b/0: timed out"]);
    assert_eq!(rig.pass(5 * SECOND), None);
    assert_eq!(rig.notes.take(), ["0 failed c/0: timed out", "0 ended: dial limit"]);
    assert!(client.is_aborted() && client.is_dropped() && d.dialled().is_empty());
}

#[test]
fn c5_2_the_dial_limit_ends_an_attempt_that_has_time_left_and_does_not_blame_the_backend() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig =
        Rig::with(Limits { dial_limit: 7 * SECOND, ..LIMITS }, 9, &[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    assert_eq!(rig.pass(5 * SECOND), Some(2 * SECOND));
    rig.pass(2 * SECOND);
    assert_eq!(rig.notes.take(), ["0 failed a/0: timed out", "0 ended: dial limit"]);
    assert_eq!(rig.event_loop.stats(rig.now).backends[1].usage.dial_failures, 0);
}

#[test]
fn c5_2_an_error_that_its_event_told_of_fails_the_attempt_though_it_can_be_taken_only_once() {
    let a = Scripted::new("a").then(Ok(Script::new().connect([Ok(false)])));
    let b = Scripted::new("b").then(connects());
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    let dialled = a.dialled().pop().unwrap();
    dialled.then_error(ErrorKind::ConnectionRefused);
    rig.event(&dialled, Readiness { error: true, ..Readiness::READ_WRITE });
    assert_eq!(rig.notes.take(), ["0 failed a/0: connection refused"]);
    assert_eq!((dialled.is_dropped(), dialled.token(), b.dialled().len()), (true, None, 1));
}

#[test]
fn c5_2_a_connect_that_would_block_or_is_interrupted_goes_on() {
    let checks = [Err(ErrorKind::WouldBlock), Err(ErrorKind::Interrupted), Ok(true)];
    let backend = Scripted::new("a").then(Ok(Script::new().connect(checks)));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let dialled = backend.dialled().pop().unwrap();
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), [""; 0]);
    rig.event(&dialled, Readiness::READ_WRITE);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
}

#[test]
fn c5_2_time_outs_of_a_crowd_are_taken_in_pieces() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().extend((0..1000).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    rig.update(&[("a", &a), ("b", &b)]);
    rig.now += LIMITS.connect_timeout;
    let next = rig.turn(&[]);
    assert!((1..500).contains(&rig.notes.take().len()), "all in one turn, or none");
    assert!(next <= Some(rig.now), "the rest needs no event");
    rig.settle(&[]);
    assert_eq!(b.dialled().len(), 1000);
}

#[test]
fn c5_2_the_dial_limit_holds_also_while_every_attempt_fails_at_once() {
    let mut a = Scripted { addresses: 1000, ..Scripted::new("a") };
    for _ in 0..1000 {
        a = a.then(refused());
    }
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.turn(&[(token::LISTENER, READABLE)]);
    let accepted_at = rig.now;
    while rig.event_loop.cx.counters.refused.total() == 0 {
        rig.now += SECOND / 10; // the time of a turn that has much else to do
        rig.turn(&[]);
    }
    assert!(
        rig.now - accepted_at <= LIMITS.dial_limit + SECOND,
        "after {:?}",
        rig.now - accepted_at
    );
    assert_eq!(rig.notes.take().last().unwrap(), "0 ended: dial limit");
}

#[test]
fn c1_4_the_addresses_of_a_backend_are_tried_in_turn_before_the_next_backend() {
    let a = Scripted { addresses: 2, ..Scripted::new("a") }.then(refused()).then(refused());
    let b = Scripted::new("b").then(connects());
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.pair(Script::new(), &b);
    assert_eq!(
        rig.notes.take(),
        ["0 failed a/0: connection refused", "0 failed a/1: connection refused", "0 connected b"]
    );
}

#[test]
fn c5_3_each_candidate_is_tried_once_and_then_the_client_is_refused() {
    let (a, b) = (Scripted::new("a").then(refused()), Scripted::new("b").then(refused()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    let client = rig.client(Script::new());
    assert_eq!(
        rig.notes.take(),
        [
            "0 failed a/0: connection refused",
            "0 failed b/0: connection refused",
            "0 ended: backends failed"
        ]
    );
    assert!(client.is_aborted());
}

#[test]
fn c5_3_a_new_sets_candidates_are_tried_and_vanished_ones_are_not() {
    let (a, b, c) = (Scripted::new("a"), Scripted::new("b"), Scripted::new("c"));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    let applied = rig.update(&[("c", &c)]);
    assert_eq!((applied.closed, applied.cancelled), (0, 1));
    assert!(a.dialled()[0].is_dropped());
    assert_eq!(a.dialled()[0].token(), None, "still registered");
    assert_eq!((b.dialled().len(), c.dialled().len()), (0, 1));
    assert_eq!(rig.update(&[]).cancelled, 1);
    assert_eq!(rig.notes.take(), ["0 ended: no backend"]);
}

#[test]
fn c3_2_who_waits_to_dial_a_vanished_target_goes_on_to_another_and_is_no_cancelled_dial() {
    let starves = Scripted::new("a").then(Err(shortage()));
    let has_two_addresses = Scripted { addresses: 2, ..Scripted::new("a") }.then(refused());
    for a in [starves, has_two_addresses] {
        let b = Scripted::new("b");
        let mut rig = Rig::new(&[("a", &a)]);
        rig.clients.lock().unwrap().push_back(Ok(Script::new()));
        rig.turn(&[(token::LISTENER, READABLE)]);
        let update = rig.submit(&[("b", &b)]);
        rig.settle(COMMANDED);
        assert_eq!(update.poll().unwrap().unwrap().cancelled, 0);
        rig.pass(SECOND);
        assert_eq!((a.dialled().len(), b.dialled().len()), (0, 1));
    }
}

#[test]
fn c3_2_a_cancelled_dial_does_not_count_as_tried() {
    let a = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &a)]);
    rig.client(Script::new());
    drop((rig.submit(&[]), rig.submit(&[("a", &a)])));
    rig.settle(COMMANDED);
    assert_eq!((rig.notes.take(), a.dialled().len()), (vec![], 2));
    assert!(a.dialled()[0].is_dropped());
}

#[test]
fn c5_3_two_keys_of_one_target_are_two_candidates() {
    let a = Scripted::new("a").then(refused()).then(refused());
    let mut rig = Rig::new(&[("k1", &a), ("k2", &a)]);
    rig.client(Script::new());
    assert_eq!(
        rig.notes.take(),
        [
            "0 failed k1/0: connection refused",
            "0 failed k2/0: connection refused",
            "0 ended: backends failed"
        ]
    );
}

#[test]
fn c5_4_a_client_that_resets_ends_its_dial_and_one_that_only_finished_does_not() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = rig.client(Script::new());
    rig.event(&client, Readiness { readable: true, read_closed: true, ..Readiness::default() });
    assert_eq!(rig.notes.take(), [""; 0]);
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::default() });
    assert_eq!(rig.notes.take(), ["0 ended: client failed"]);
    assert!(backend.dialled()[0].is_dropped());
    assert_eq!(backend.dialled()[0].token(), None, "still registered");
}

#[test]
fn c5_4_a_hang_up_counts_only_if_the_stream_bears_it_out() {
    let hang_up = Readiness { read_closed: true, write_closed: true, ..Readiness::default() };
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let still_there = rig.client(Script::new());
    rig.event(&still_there, hang_up);
    assert_eq!(rig.notes.take(), [""; 0]);
    let gone = rig.client(Script::new().write_error(ErrorKind::BrokenPipe));
    rig.event(&gone, hang_up);
    assert_eq!(rig.notes.take(), ["1 ended: client failed"]);
}

#[test]
fn c5_4_a_reset_is_noticed_whatever_the_stream_takes_its_events_for() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = rig.client(Script::new().translates());
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::READ_WRITE });
    assert_eq!(rig.notes.take(), ["0 ended: client failed"]);
}

#[test]
fn c5_5_local_failures_do_not_eject() {
    let mut a = Scripted::new("a");
    for _ in 0..10 {
        a = a.then(Err(ErrorKind::AddrNotAvailable.into()));
    }
    let mut rig = Rig::new(&[("a", &a)]);
    for _ in 0..10 {
        rig.client(Script::new());
    }
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (10, false));
    for _ in 0..3 {
        a = a.then(refused());
        rig.client(Script::new());
    }
    assert!(rig.event_loop.stats(rig.now).backends[0].ejected);
}

#[test]
fn c5_5_one_address_that_failed_for_want_of_something_local_excuses_the_backend() {
    let mut a = Scripted { addresses: 2, ..Scripted::new("a") };
    let mut rig = Rig::new(&[("a", &a)]);
    for _ in 0..3 {
        a = a.then(Err(ErrorKind::AddrNotAvailable.into())).then(refused());
        rig.client(Script::new());
    }
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (6, false));
}

#[test]
fn c5_5_a_dial_to_its_keys_old_target_says_nothing_of_the_new_one() {
    let (old, new) = (Scripted::new("old"), Scripted::new("new"));
    let mut rig = Rig::new(&[("k", &old)]);
    for _ in 0..3 {
        rig.client(Script::new());
    }
    rig.update(&[("k", &new), ("other", &old)]); // so that the dials go on
    for dialled in old.dialled() {
        dialled.then_error(ErrorKind::ConnectionRefused);
        rig.event(&dialled, Readiness { error: true, ..Readiness::default() });
    }
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.dial_failures, stats.backends[0].ejected), (3, false));
}

#[test]
fn c5_5_a_dial_limit_that_ends_an_attempt_with_its_full_time_counts_against_the_backend() {
    let a = Scripted::new("a");
    let mut rig = Rig::with(
        Limits { connect_timeout: SECOND, dial_limit: SECOND, ..LIMITS },
        99,
        &[("a", &a)],
    );
    for _ in 0..3 {
        rig.client(Script::new());
        rig.pass(SECOND);
    }
    assert!(rig.event_loop.stats(rig.now).backends[0].ejected);
}

#[test]
fn c4_3_a_shortage_pauses_accepting_and_a_timer_ends_the_pause() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).expect("no timer");
    assert!(pause > Duration::ZERO && pause <= SECOND);
    assert_eq!(rig.event_loop.cx.counters.accepted, 0);
    rig.pass(pause); // and no event
    assert_eq!(rig.event_loop.cx.counters.accepted, 1);
}

#[test]
fn c4_3_a_shortage_ends_when_a_pair_closes() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, _) = rig.pair(Script::new(), &backend);
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    rig.settle(&[(token::LISTENER, READABLE)]);
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::default() });
    assert_eq!(rig.event_loop.cx.counters.accepted, 2);
}

#[test]
fn c4_3_errors_of_one_client_are_skipped_and_not_for_ever() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients
        .lock()
        .unwrap()
        .extend([Err(ErrorKind::ConnectionAborted.into()), Ok(Script::new())]);
    rig.settle(&[(token::LISTENER, READABLE)]);
    assert_eq!(rig.event_loop.cx.counters.accepted, 1);
    let always = (0..1000).map(|_| Err(ErrorKind::ConnectionAborted.into()));
    rig.clients.lock().unwrap().extend(always);
    let wait = rig.settle(&[(token::LISTENER, READABLE)]);
    assert!(wait.is_some_and(|wait| wait <= SECOND), "spins or forgets: {wait:?}");
    assert!(rig.clients.lock().unwrap().len() > 900);
}

#[test]
fn c4_3_who_lacks_a_descriptor_to_dial_with_waits_in_order_and_nobody_is_accepted_before() {
    let backend = Scripted::new("a").then(Err(shortage())).then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Ok(Script::new()), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).unwrap();
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (1, 0));
    rig.pass(pause);
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (1, 0));
    rig.pass(pause);
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (2, 2));
    assert_eq!(rig.event_loop.stats(rig.now).backends[0].usage.dial_failures, 0);
}

#[test]
fn c4_3_who_starves_gives_up_by_the_dial_limit() {
    let mut backend = Scripted::new("a");
    for _ in 0..1000 {
        backend = backend.then(Err(shortage()));
    }
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend([Ok(Script::new()), Ok(Script::new())]);
    rig.settle(&[(token::LISTENER, READABLE)]);
    let start = rig.now;
    while rig.event_loop.cx.counters.refused.total() == 0 {
        assert!(rig.now - start <= LIMITS.dial_limit);
        let wait = rig.pass(Duration::ZERO).unwrap();
        rig.pass(wait);
        assert!(rig.event_loop.fd_waiters.len() <= 1, "it queues up anew with each attempt");
    }
    assert_eq!(rig.notes.take(), ["0 ended: dial limit"]);
    assert_eq!(rig.event_loop.cx.counters.accepted, 2);
}

#[test]
fn c5_2_who_waits_for_a_descriptor_is_not_dialled_for_after_the_dial_limit_however_much_else_is_due()
 {
    const CROWD: usize = 1000;
    let a = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &a)]);
    (0..CROWD).for_each(|_| drop(rig.client(Script::new())));
    a.dials.lock().unwrap().push_back(Err(shortage()));
    rig.client(Script::new());
    assert_eq!((a.dialled().len(), rig.event_loop.fd_waiters.len()), (CROWD, 1));
    rig.pass(LIMITS.dial_limit); // the loop was held up
    assert_eq!(a.dialled().len(), CROWD);
    assert_eq!(rig.event_loop.cx.counters.refused.of(EndReason::DialLimit), CROWD as u64 + 1);
}

#[test]
fn c4_3_a_pause_is_not_made_longer_by_those_who_run_short_during_it() {
    let a = Scripted::new("a");
    let b = Scripted::new("b").then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    rig.client(Script::new());
    rig.clients.lock().unwrap().push_back(Err(shortage()));
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).unwrap();
    rig.now += pause / 2;
    let dialled = a.dialled().pop().unwrap();
    dialled.then_error(ErrorKind::ConnectionRefused);
    let wait = rig.event(&dialled, Readiness { error: true, ..Readiness::default() });
    assert_eq!((rig.event_loop.fd_waiters.len(), wait), (1, Some(pause / 2)));
}

#[test]
fn c4_3_a_client_that_cannot_be_watched_is_refused_and_the_next_one_waits() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let unwatchable = Script::new().register_error(ErrorKind::OutOfMemory);
    rig.clients.lock().unwrap().extend([Ok(unwatchable), Ok(Script::new())]);
    let pause = rig.settle(&[(token::LISTENER, READABLE)]).expect("no timer");
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (1, 0));
    assert_eq!(rig.notes.take(), ["0 ended: local failure"]);
    rig.pass(pause);
    assert_eq!((rig.event_loop.cx.counters.accepted, backend.dialled().len()), (2, 1));
}

#[test]
fn c4_3_a_backends_stream_that_cannot_be_watched_is_dialled_again_and_no_failure_of_the_backend() {
    let backend = Scripted::new("a").then(Ok(Script::new().register_error(ErrorKind::OutOfMemory)));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let wait = rig.pass(Duration::ZERO).expect("no timer");
    assert!(backend.dialled()[0].is_dropped());
    rig.pass(wait);
    assert_eq!(backend.dialled().len(), 2);
    assert_eq!(rig.event_loop.stats(rig.now).backends[0].usage.dial_failures, 0);
}

#[test]
fn c5_2_who_got_a_descriptor_at_last_has_the_connect_timeout_for_the_dial() {
    let backend = Scripted::new("a").then(Err(shortage()));
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.client(Script::new());
    let pause = rig.pass(Duration::ZERO).unwrap();
    assert_eq!(rig.pass(pause), Some(LIMITS.connect_timeout));
    rig.pass(LIMITS.connect_timeout);
    assert_eq!(rig.notes.take(), ["0 failed a/0: timed out", "0 ended: backends failed"]);
}

#[test]
fn c4_3_a_crowd_without_descriptors_is_served_in_order_in_pieces_and_before_anyone_is_accepted() {
    const CROWD: usize = 3 * accept::ACCEPTS_PER_TURN;
    let pair_of = |seen: &Seen| match Source::from(seen.token().unwrap()) {
        Source::Pair(pair, _) => pair,
        other => panic!("{other:?}"),
    };
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    b.dials.lock().unwrap().extend((0..2 * CROWD).map(|_| Err(shortage())));
    let mut rig = Rig::new(&[("a", &a)]);
    let crowd: Vec<Seen> = (0..CROWD).map(|_| rig.client(Script::new())).collect();
    drop(rig.submit(&[("b", &b)])); // they all want another dial now
    let pause = rig.settle(COMMANDED).unwrap();
    assert_eq!(rig.event_loop.fd_waiters.len(), CROWD);
    b.dials.lock().unwrap().clear();
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));

    rig.now += pause;
    let next = rig.turn(&[(token::LISTENER, READABLE)]);

    let in_order = |dialled: Vec<Seen>| {
        dialled.iter().map(pair_of).eq(crowd[..dialled.len()].iter().map(pair_of))
    };
    assert!(b.dialled().len() == accept::ACCEPTS_PER_TURN && in_order(b.dialled()));
    assert_eq!(
        (rig.event_loop.cx.counters.accepted, next),
        (CROWD as u64, Some(rig.now)),
        "the rest needs no event"
    );
    rig.settle(&[]);
    assert!(in_order(b.dialled()[..CROWD].to_vec()));
    assert_eq!(rig.event_loop.cx.counters.accepted, CROWD as u64 + 1);
}

#[test]
fn c4_4_at_the_limit_nobody_is_accepted_until_a_pair_closes() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::with(LIMITS, 1, &[("a", &backend)]);
    let (client, _) = rig.pair(Script::new(), &backend);
    rig.client(Script::new());
    assert_eq!(rig.event_loop.cx.counters.accepted, 1);
    client.then_error(ErrorKind::ConnectionReset);
    rig.event(&client, Readiness { error: true, ..Readiness::default() });
    assert_eq!(rig.event_loop.cx.counters.accepted, 2);
}

#[test]
fn c4_4_a_pair_counts_until_both_of_its_sockets_are_closed() {
    const CROWD: usize = 300;
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    a.dials.lock().unwrap().extend((0..CROWD).map(|_| connects()));
    let mut rig = Rig::with(LIMITS, CROWD, &[("a", &a)]);
    let crowd: Vec<(Seen, Seen)> = (0..CROWD).map(|_| rig.pair(Script::new(), &a)).collect();
    drop(rig.submit(&[("b", &b)]));
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.turn(&[COMMANDED[0], (token::LISTENER, READABLE)]);
    assert_eq!(rig.event_loop.cx.counters.open, 0);
    while rig.event_loop.cx.counters.accepted == CROWD as u64 {
        assert!(rig.turn(&[]).is_some(), "the client is forgotten");
    }
    let is_closed = |pair: &&(Seen, Seen)| pair.0.is_dropped() && pair.1.is_dropped();
    assert!(crowd.iter().any(|pair| is_closed(&pair)), "accepted in the place of nobody");
}

#[test]
fn c3_2_a_pair_blocked_on_either_side_is_closed_on_both() {
    let backend = Scripted::new("a").then(Ok(Script::new().reads([Act::Data(vec![1; 100])])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new().takes([10, 0]), &backend);
    rig.event(&server, READABLE);
    assert_eq!(client.written().len(), 10);
    assert_eq!(rig.update(&[]).closed, 1);
    for side in [client, server] {
        assert!(side.is_aborted() && side.is_dropped());
        assert_eq!(side.token(), None, "still registered");
    }
}

#[test]
fn c3_6_a_target_that_comes_back_before_the_loop_wakes_has_its_pairs_closed() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.pair(Script::new(), &backend);
    let updates = [rig.submit(&[]), rig.submit(&[("a", &backend)])];
    rig.settle(COMMANDED);
    for update in updates {
        let applied = update.poll().unwrap().unwrap();
        assert_eq!((applied.closed, applied.backends), (1, 1));
    }
}

#[test]
fn c3_1_c3_5_commands_go_before_the_clients_and_the_bytes_of_the_same_turn() {
    let (old, new) = (Scripted::new("old").then(connects()), Scripted::new("new"));
    let mut rig = Rig::new(&[("k", &old)]);
    let (client, server) = rig.pair(Script::new().reads([Act::Data(b"late".to_vec())]), &old);
    let asked_before = server.reads();
    let update = rig.submit(&[("k", &new)]);
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    let of = |seen: &Seen| (seen.token().unwrap(), READABLE);
    rig.turn(&[of(&client), of(&server), (token::LISTENER, READABLE), (token::MAILBOX, READABLE)]);
    assert_eq!(update.poll().unwrap().unwrap().closed, 1);
    assert_eq!((client.reads(), server.reads(), server.written().len()), (0, asked_before, 0));
    assert_eq!((old.dialled().len(), new.dialled().len()), (1, 1));
}

#[test]
fn c3_5_a_client_for_whom_no_candidate_is_left_is_closed_when_its_update_is_applied() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    let clients: Vec<Seen> = (0..300).map(|_| rig.client(Script::new())).collect();
    let update = rig.submit(&[]);
    rig.turn(COMMANDED);
    assert_eq!(rig.event_loop.cx.counters.refused.of(EndReason::NoBackend), 300, "in one step");
    rig.settle(&[]);
    assert_eq!(update.poll().unwrap().unwrap().cancelled, 300);
    assert!(clients.iter().all(Seen::is_dropped));
}

#[test]
fn c3_7_an_update_is_applied_in_the_next_turn_though_its_event_is_behind_in_the_queue() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, _) = rig.pair(Script::new().reads([Act::Data(b"late".to_vec())]), &backend);
    let update = rig.submit(&[]);
    rig.turn(&[(client.token().unwrap(), READABLE)]);
    assert_eq!(update.poll().unwrap().expect("not applied").closed, 1);
    assert_eq!(client.reads(), 0);
}

/// 300 pairs of a target and one of another, and the update that takes the first target away, submitted.
struct Removal {
    rig: Rig,
    b: Scripted,
    victims: Vec<(Seen, Seen)>,
    survivor: (Seen, Seen),
    update: Update,
}

fn removal_of_a_crowd() -> Removal {
    let a = (0..300).fold(Scripted::new("a"), |backend, _| backend.then(connects()));
    let b = Scripted::new("b").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let victims = (0..300).map(|_| rig.pair(Script::new(), &a)).collect();
    rig.update(&[("a", &a), ("b", &b)]);
    let survivor = rig.pair(Script::new(), &b);
    let update = rig.submit(&[("b", &b)]);
    Removal { rig, b, victims, survivor, update }
}

#[test]
fn c3_4_a_crowd_is_ended_in_one_step_and_closed_in_pieces_that_hold_up_nobody() {
    let Removal { mut rig, victims, survivor: (client, server), update, .. } = removal_of_a_crowd();
    rig.turn(COMMANDED);
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.ended.of(EndReason::TargetRemoved), stats.open), (300, 1));
    let (last, _) = &victims[299];
    last.then_reads([Act::Data(b"late".to_vec())]);
    server.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
    rig.turn(&[(last.token().unwrap(), READABLE), (server.token().unwrap(), READABLE)]);
    assert_eq!((client.written(), last.reads()), (b"hello".to_vec(), 0));
    assert!(update.poll().unwrap().is_none() && !last.is_dropped(), "all was closed in one turn");
    assert!(
        victims.iter().all(|(_, backend)| !backend.is_dropped()),
        "a client has to wait for backends"
    );
    rig.settle(&[]);
    assert_eq!(update.poll().unwrap().unwrap().closed, 300);
    for socket in victims.iter().flat_map(|(client, backend)| [client, backend]) {
        assert!(socket.is_dropped() && socket.is_aborted());
    }
    assert!(!client.is_dropped());
}

#[test]
fn c4_3_a_pause_ends_early_when_the_sockets_of_a_crowd_are_closed_at_last() {
    let Removal { mut rig, victims, .. } = removal_of_a_crowd();
    rig.clients.lock().unwrap().extend([Err(shortage()), Ok(Script::new())]);
    let accepted = rig.event_loop.cx.counters.accepted;
    rig.turn(&[(token::MAILBOX, READABLE), (token::LISTENER, READABLE)]);
    assert_eq!(rig.event_loop.cx.counters.accepted, accepted);
    let closed =
        |victims: &[(Seen, Seen)]| victims.iter().filter(|(client, _)| client.is_dropped()).count();
    assert_eq!(closed(&victims), 128);
    rig.turn(&[]);
    assert_eq!((rig.event_loop.cx.counters.accepted, closed(&victims)), (accepted + 1, 256));
}

#[test]
fn c3_5_an_update_is_applied_once_the_crowds_of_those_before_it_are_closed() {
    let Removal { mut rig, b, victims, update: first, .. } = removal_of_a_crowd();
    rig.turn(COMMANDED);
    let second = rig.submit(&[("b", &b)]);
    rig.turn(COMMANDED);
    assert!(first.poll().unwrap().is_none() && second.poll().unwrap().is_none());
    rig.settle(&[]);
    assert_eq!([first, second].map(|update| update.poll().unwrap().unwrap().closed), [300, 0]);
    assert!(victims.iter().all(|(client, backend)| client.is_dropped() && backend.is_dropped()));
}

#[test]
fn c7_2_the_end_closes_what_is_still_to_be_closed() {
    let Removal { mut rig, victims, update, .. } = removal_of_a_crowd();
    rig.turn(COMMANDED);
    rig.control.shutdown().unwrap();
    rig.turn(COMMANDED);
    assert!(rig.event_loop.is_over());
    assert_eq!(update.poll().unwrap().unwrap().closed, 300);
    assert!(victims.iter().all(|(client, backend)| client.is_dropped() && backend.is_dropped()));
}

#[test]
fn c3_3_a_pair_stays_when_another_key_names_its_target_and_counts_for_the_key_that_picked_it() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("k1", &backend)]);
    rig.pair(Script::new(), &backend);
    assert_eq!(rig.update(&[("k2", &backend)]).closed, 0);
    let stats = rig.event_loop.stats(rig.now);
    assert_eq!((stats.backends[0].usage.open, stats.departed.open), (0, 1));
    rig.update(&[]);
    assert_eq!(rig.event_loop.stats(rig.now).departed.open, 0);
}

#[test]
fn c3_9_a_drained_target_gets_no_dial_and_its_pairs_end_at_the_limit() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a)]);
    let (relaying, _) = rig.pair(Script::new(), &a);
    rig.client(Script::new());
    let update = rig.control.update_draining([("b", b.clone())].into(), 10 * SECOND).unwrap();
    rig.settle(COMMANDED);
    let applied = update.poll().unwrap().unwrap();
    assert_eq!((applied.closed, applied.cancelled, applied.draining), (0, 1, 1));
    assert_eq!((a.dialled().len(), b.dialled().len()), (2, 1), "the cancelled dial went on");
    rig.notes.take();
    rig.pass(10 * SECOND - Duration::from_nanos(1));
    assert!(!relaying.is_dropped());
    rig.pass(Duration::from_nanos(1));
    assert!(relaying.is_aborted());
    assert!(rig.notes.take().contains(&"0 ended: drain limit".to_owned()));
}

#[test]
fn c3_9_of_two_limits_the_earlier_holds_unless_the_target_was_named_between() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let (client, _) = rig.pair(Script::new(), &a);
    rig.pass(LIMITS.connect_timeout); // uses up the reminder of the dial
    let drain = |rig: &mut Rig, secs| {
        drop(rig.control.update_draining(BackendSet::new(), secs * SECOND).unwrap());
        rig.settle(COMMANDED)
    };
    assert_eq!(drain(&mut rig, 5), Some(5 * SECOND));
    assert_eq!(drain(&mut rig, 9), Some(5 * SECOND));
    assert_eq!(drain(&mut rig, 3), Some(3 * SECOND));
    assert_eq!(rig.update(&[("a", &a)]).draining, 0);
    assert_eq!(drain(&mut rig, 9), Some(9 * SECOND));
    assert_eq!(rig.update(&[]).closed, 1, "a plain update does not wait");
    assert!(client.is_dropped());
}

#[test]
fn c3_9_each_target_drains_by_its_own_limit() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b").then(connects()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    let ((first, _), (second, _)) = (rig.pair(Script::new(), &a), rig.pair(Script::new(), &b));
    rig.pass(LIMITS.connect_timeout); // uses up the reminders of the dials
    for (set, secs) in [(vec![("b", b.clone())], 5), (vec![], 9)] {
        drop(rig.control.update_draining(set.into_iter().collect(), secs * SECOND).unwrap());
        rig.settle(COMMANDED);
    }
    assert_eq!(rig.pass(5 * SECOND), Some(4 * SECOND));
    assert_eq!((first.is_aborted(), second.is_aborted()), (true, false));
    assert_eq!(rig.pass(4 * SECOND), None);
    assert!(second.is_aborted());
}

#[test]
fn c3_9_a_drain_that_was_lifted_and_given_anew_in_one_burst_has_the_new_limit() {
    let a = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    rig.pair(Script::new(), &a);
    rig.pass(LIMITS.connect_timeout);
    let drain = |rig: &Rig, secs| {
        drop(rig.control.update_draining(BackendSet::new(), secs * SECOND).unwrap())
    };
    drain(&rig, 3);
    assert_eq!(rig.settle(COMMANDED), Some(3 * SECOND));
    drop(rig.submit(&[("a", &a)]));
    drain(&rig, 9);
    assert_eq!(rig.settle(COMMANDED), Some(9 * SECOND));
}

#[test]
fn c3_9_a_pair_of_a_draining_target_may_finish_and_is_then_no_longer_counted() {
    let a = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &a)]);
    let ((client, server), _) = (rig.pair(Script::new(), &a), rig.pair(Script::new(), &a));
    let drain = |rig: &mut Rig| {
        let update = rig.control.update_draining(BackendSet::new(), 9 * SECOND).unwrap();
        rig.settle(COMMANDED);
        update.poll().unwrap().unwrap().draining
    };
    assert_eq!(drain(&mut rig), 2);
    client.then_reads([Act::Data(b"last words".to_vec()), Act::End]);
    server.then_reads([Act::Data(b"an answer".to_vec()), Act::End]);
    rig.settle(&[(client.token().unwrap(), READABLE), (server.token().unwrap(), READABLE)]);
    assert_eq!(
        (client.written(), server.written()),
        (b"an answer".to_vec(), b"last words".to_vec())
    );
    assert!(client.is_dropped() && !client.is_aborted() && !server.is_aborted());
    assert_eq!(drain(&mut rig), 1);
}

#[test]
fn c3_6_targets_that_drain_are_remembered_only_while_they_have_pairs() {
    let mut rig = Rig::new(&[]);
    for name in ["a", "b", "c", "d"] {
        let set = [("k", Scripted::new(name))].into();
        drop(rig.control.update_draining(set, 3600 * SECOND).unwrap());
        rig.settle(COMMANDED);
    }
    assert_eq!(rig.event_loop.cx.pool.next_drain_limit(), None);
}

#[test]
fn c3_4_bytes_of_a_surviving_pair_that_come_with_the_update_go_on_and_stuck_ones_stay() {
    let (a, b) = (Scripted::new("a").then(connects()), Scripted::new("b").then(connects()));
    let mut rig = Rig::new(&[("a", &a), ("b", &b)]);
    let (client, server) = rig.pair(Script::new().takes([3, 0]), &a);
    rig.pair(Script::new(), &b);
    server.then_reads([Act::Data(b"stuck".to_vec()), Act::Block]);
    rig.event(&server, READABLE);
    client.then_reads([Act::Data(b"early".to_vec()), Act::Block]);
    let update = rig.submit(&[("0", &Scripted::new("0")), ("z", &a)]); // every index changes

    let writable = Readiness { writable: true, ..READABLE };
    rig.turn(&[(token::MAILBOX, READABLE), (client.token().unwrap(), writable)]);

    assert_eq!(update.poll().unwrap().unwrap().closed, 1);
    assert_eq!((client.written(), server.written()), (b"stuck".to_vec(), b"early".to_vec()));
    rig.update(&[("a", &a)]);
    client.then_reads([Act::End]);
    server.then_reads([Act::Data(b", late".to_vec()), Act::End]);
    rig.settle(&[(client.token().unwrap(), READABLE), (server.token().unwrap(), READABLE)]);
    assert_eq!((client.written(), client.is_aborted()), (b"stuck, late".to_vec(), false));
}

#[test]
fn c6_4_a_reset_is_noticed_although_nothing_is_read_and_what_came_before_goes_on() {
    let backend = Scripted::new("a")
        .then(Ok(Script::new().reads([Act::Data(vec![1; 100]), Act::Data(vec![2; 100])])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new().takes([10, 0, 90, 50, 0]), &backend);
    rig.event(&server, READABLE);
    rig.notes.take();
    server.then_error(ErrorKind::ConnectionReset);
    rig.now += SECOND;
    // The error is known while the client is blocked: there is no way to deliver the rest.
    rig.event(&server, Readiness { error: true, ..Readiness::default() });
    assert_eq!(client.written().len(), 10);
    assert_eq!(rig.notes.take(), ["0 ended: backend failed"]);
    assert!(client.is_aborted());
}

#[test]
fn c3_10_what_a_peer_sent_before_its_reset_goes_on_as_far_as_the_other_side_takes_it() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    server.then_reads([Act::Data(vec![1; 100_000]), Act::End]);
    server.then_error(ErrorKind::ConnectionReset);
    rig.event(
        &server,
        Readiness { readable: true, read_closed: true, error: true, ..Readiness::default() },
    );
    assert_eq!(client.written().len(), 100_000);
    assert!(client.is_aborted() && !client.is_shut(), "a cut must not look like an end");
}

#[test]
fn c3_10_what_was_sent_before_a_reset_goes_on_though_it_is_more_than_a_turns_share() {
    const LEN: usize = 3 * BYTES_PER_DIRECTION;
    let reset =
        Readiness { readable: true, read_closed: true, error: true, ..Readiness::default() };
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let ((client, server), (other_client, other_server)) =
        (rig.pair(Script::new(), &backend), rig.pair(Script::new(), &backend));
    for side in [&server, &other_client] {
        side.then_reads([Act::Data(vec![1; LEN]), Act::End]);
        side.then_error(ErrorKind::ConnectionReset);
        rig.event(side, reset);
    }
    assert_eq!((client.written().len(), other_server.written().len()), (LEN, LEN));
    assert!(client.is_aborted() && other_server.is_aborted());
    assert_eq!(rig.notes.take()[2..], ["0 ended: backend failed", "1 ended: client failed"]);
}

#[test]
fn c3_10_a_reset_that_shows_in_a_write_is_passed_on_after_what_its_peer_had_sent() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let client = Script::new()
        .write_error(ErrorKind::ConnectionReset)
        .reads([Act::Data(b"last words".to_vec())]);
    let (client, server) = rig.pair(client, &backend);
    server.then_reads([Act::Data(b"x".to_vec()), Act::Block]);
    rig.event(&server, READABLE);
    assert_eq!(server.written(), b"last words");
    assert!(client.is_dropped() && server.is_aborted() && !server.is_shut());
}

#[test]
fn c6_5_a_pair_whose_backend_has_finished_is_half_closed_too_and_may_be_idle_for_less() {
    let backend = Scripted::new("a").then(connects()).then(connects());
    for (idle, ends_as) in [(None, "half closed timeout"), (Some(5 * SECOND), "idle timeout")] {
        let limits = Limits { idle_timeout: idle, half_closed_timeout: 10 * SECOND, ..LIMITS };
        let mut rig = Rig::with(limits, 9, &[("a", &backend)]);
        let (_, server) = rig.pair(Script::new(), &backend);
        server.then_reads([Act::End]);
        rig.event(&server, READABLE);
        rig.pass(idle.unwrap_or(10 * SECOND));
        assert_eq!(rig.notes.take(), ["0 connected a".to_owned(), format!("0 ended: {ends_as}")]);
    }
}

#[test]
fn c6_5_time_outs_count_from_the_last_byte_and_only_where_they_apply() {
    let backend = Scripted::new("a").then(connects());
    let limits =
        Limits { idle_timeout: Some(100 * SECOND), half_closed_timeout: 10 * SECOND, ..LIMITS };
    let mut rig = Rig::with(limits, 9, &[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    rig.pass(99 * SECOND);
    client.then_reads([Act::Data(b"x".to_vec()), Act::Block]);
    rig.event(&client, READABLE);
    rig.pass(50 * SECOND);
    client.then_reads([Act::End]);
    rig.event(&client, READABLE);
    assert!(server.is_shut());
    rig.pass(9 * SECOND);
    server.then_reads([Act::Data(b"y".to_vec()), Act::Block]);
    rig.event(&server, READABLE);
    rig.pass(9 * SECOND);
    assert_eq!(rig.notes.take(), ["0 connected a"]);
    rig.pass(SECOND);
    assert_eq!(rig.notes.take(), ["0 ended: half closed timeout"]);

    let idle = Scripted::new("b").then(connects());
    rig.update(&[("b", &idle)]);
    rig.pair(Script::new(), &idle);
    let wait = rig.pass(Duration::ZERO).unwrap();
    assert!(wait <= 100 * SECOND);
    rig.pass(100 * SECOND);
    assert_eq!(rig.notes.take(), ["1 connected b", "1 ended: idle timeout"]);
}

#[test]
fn c6_6_a_flood_leaves_room_for_others_and_for_updates() {
    let flood = |len| Act::Data(vec![7; len]);
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (greedy, source) = rig.pair(Script::new(), &backend);
    let (modest, answer) = rig.pair(Script::new(), &backend);
    source.then_reads([flood(64 << 20)]);
    answer.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
    let of = |seen: &Seen| (seen.token().unwrap(), READABLE);
    let next = rig.turn(&[of(&source), of(&answer)]);
    assert_eq!(modest.written(), b"hello");
    assert!(greedy.written().len() <= 2 * BYTES_PER_DIRECTION);
    assert_eq!(next, Some(rig.now), "the rest needs no event");
    let update = rig.submit(&[]);
    rig.turn(COMMANDED);
    assert_eq!(update.poll().unwrap().unwrap().closed, 2);
    assert!(greedy.written().len() <= 3 * BYTES_PER_DIRECTION);
}

/// A rig with as many pairs, as their clients and backends.
fn crowd(count: usize) -> (Rig, Vec<(Seen, Seen)>) {
    let backend = (0..count).fold(Scripted::new("a"), |backend, _| backend.then(connects()));
    let mut rig = Rig::new(&[("a", &backend)]);
    let pairs = (0..count).map(|_| rig.pair(Script::new(), &backend)).collect();
    (rig, pairs)
}

#[test]
fn c6_6_a_small_message_does_not_wait_for_the_bulk_transfers_before_it() {
    let (mut rig, pairs) = crowd(20);
    for (_, server) in &pairs[1..] {
        server.then_reads((0..24).map(|_| Act::Data(vec![7; 128 << 10])));
        rig.turn(&[(server.token().unwrap(), READABLE)]);
    }
    assert!(rig.event_loop.pairs.queue_len(Queue::Unfinished) > 10, "nothing to wait for");
    let (client, server) = &pairs[0];
    server.then_reads([Act::Data(b"hello".to_vec()), Act::Block]);
    let moved = rig.event_loop.cx.counters.bytes_down;
    rig.turn(&[(server.token().unwrap(), READABLE)]);
    assert_eq!(client.written(), b"hello");
    assert!(rig.event_loop.cx.counters.bytes_down - moved < 2 * BYTES_PER_TURN, "a long turn");
}

#[test]
fn c6_6_a_turn_of_nothing_but_bulk_transfers_is_bounded() {
    let (mut rig, pairs) = crowd(20);
    for (_, server) in &pairs {
        server.then_reads((0..24).map(|_| Act::Data(vec![7; 128 << 10])));
    }
    let events: Vec<_> =
        pairs.iter().map(|(_, server)| (server.token().unwrap(), READABLE)).collect();
    for (events, queue) in [(&events[..], Queue::Ready), (&[], Queue::Unfinished)] {
        while rig.event_loop.pairs.queue_len(Queue::Ready) > 0 {
            rig.turn(&[]);
        }
        let moved = rig.event_loop.cx.counters.bytes_down;
        rig.turn(events);
        let moved = rig.event_loop.cx.counters.bytes_down - moved;
        assert!(
            (BYTES_PER_TURN / 2..2 * BYTES_PER_TURN).contains(&moved),
            "{moved} bytes in a turn of {queue:?} pairs"
        );
    }
}

#[test]
fn c6_6_a_bulk_transfer_goes_on_however_many_small_messages_there_are() {
    let (mut rig, pairs) = crowd(500);
    let (client, server) = &pairs[0];
    server.then_reads((0..100).map(|_| Act::Data(vec![7; 128 << 10])));
    rig.turn(&[(server.token().unwrap(), READABLE)]);
    for _ in 0..10 {
        let written = client.written().len();
        let spurious: Vec<_> =
            pairs[1..].iter().map(|(_, server)| (server.token().unwrap(), READABLE)).collect();
        rig.turn(&spurious);
        assert!(rig.event_loop.pairs.queue_len(Queue::Ready) > 0, "the turn was not full");
        assert!(client.written().len() > written, "starved");
    }
}

#[test]
fn c6_6_a_crowd_of_events_is_taken_up_in_pieces_too() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend((0..1500).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    let spurious: Vec<_> =
        backend.dialled().iter().map(|seen| (seen.token().unwrap(), READABLE)).collect();
    let next = rig.turn(&spurious);
    let left = rig.event_loop.pairs.queue_len(Queue::Ready);
    assert!((1..=1400).contains(&left), "{left} are left");
    assert_eq!(next, Some(rig.now), "the rest needs no event");
}

#[test]
fn c6_5_a_pair_that_a_full_turn_has_left_unread_is_not_idle() {
    let limits = Limits { idle_timeout: Some(10 * SECOND), ..LIMITS };
    let mut backend = Scripted::new("a");
    for _ in 0..10 {
        backend = backend.then(connects());
    }
    let mut rig = Rig::with(limits, 99, &[("a", &backend)]);
    let pairs: Vec<_> = (0..10).map(|_| rig.pair(Script::new(), &backend)).collect();
    rig.now += 10 * SECOND;
    for (index, (_, server)) in pairs.iter().enumerate() {
        let len = if index < 9 { BYTES_PER_DIRECTION } else { 1 };
        server.then_reads([Act::Data(vec![7; len]), Act::Block]);
    }
    let events: Vec<_> =
        pairs.iter().map(|(_, server)| (server.token().unwrap(), READABLE)).collect();
    let (last, _) = &pairs[9];
    rig.turn(&events);
    assert_eq!(last.written(), b"", "the turn was not full");
    rig.settle(&[]);
    assert_eq!((last.written().len(), last.is_dropped()), (1, false));
}

#[test]
fn c4_2_a_storm_is_taken_in_pieces_without_further_events() {
    let backend = Scripted::new("a");
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.clients.lock().unwrap().extend((0..500).map(|_| Ok(Script::new())));
    let next = rig.turn(&[(token::LISTENER, READABLE)]);
    assert_eq!(
        (rig.event_loop.cx.counters.accepted, next),
        (accept::ACCEPTS_PER_TURN as u64, Some(rig.now))
    );
    rig.settle(&[]);
    assert_eq!(rig.event_loop.cx.counters.accepted, 500);
}

#[test]
fn c3_7_a_crowd_that_has_to_be_dialled_for_anew_is_taken_in_pieces() {
    let (a, b) = (Scripted::new("a"), Scripted::new("b"));
    let mut rig = Rig::new(&[("a", &a)]);
    rig.clients.lock().unwrap().extend((0..500).map(|_| Ok(Script::new())));
    rig.settle(&[(token::LISTENER, READABLE)]);
    let update = rig.submit(&[("b", &b)]);
    let next = rig.turn(COMMANDED);
    assert!(
        (30..=accept::ACCEPTS_PER_TURN).contains(&b.dialled().len()),
        "{} dials in one turn",
        b.dialled().len()
    );
    assert_eq!(next, Some(rig.now), "the rest needs no event");
    rig.settle(&[]);
    assert_eq!(b.dialled().len(), 500);
    assert_eq!(update.poll().unwrap().unwrap().cancelled, 500);
}

#[test]
fn a_stale_event_does_not_reach_the_slots_next_tenant() {
    let backend = Scripted::new("a").then(connects()).then(Ok(Script::new().connect([Ok(false)])));
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    let (stale_client, stale_server) = (client.token().unwrap(), server.token().unwrap());
    rig.update(&[]);
    rig.update(&[("a", &backend)]);
    let index_pair = rig.client(Script::new().reads([Act::Data(b"x".to_vec())]));
    assert_ne!(index_pair.token(), Some(stale_client));
    rig.settle(&[(stale_client, Readiness::READ_WRITE), (stale_server, Readiness::READ_WRITE)]);
    rig.settle(&[(stale_server, Readiness::READ_WRITE)]);
    assert_eq!((index_pair.reads(), rig.event_loop.cx.counters.dialling), (0, 1));
}

#[test]
fn events_of_a_pair_that_ended_in_the_same_batch_are_passed_over() {
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    let tokens = (client.token().unwrap(), server.token().unwrap());
    client.then_reads([Act::End]);
    server.then_reads([Act::End]);
    rig.clients.lock().unwrap().push_back(Ok(Script::new()));
    rig.settle(&[
        (tokens.0, READABLE),
        (tokens.1, READABLE),
        (tokens.0, READABLE),
        (token::LISTENER, READABLE),
    ]);
    assert_eq!(rig.notes.take(), ["0 connected a", "0 ended: finished"]);
    assert!(client.is_dropped() && !client.is_aborted(), "an orderly end is no cut");
    assert_eq!(rig.event_loop.cx.counters.dialling, 1);
}

#[test]
fn c7_2_a_drain_lets_pairs_finish_and_cuts_the_rest_at_the_earlier_limit() {
    let backend = Scripted::new("a").then(connects()).then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (first, first_server) = rig.pair(Script::new(), &backend);
    let (second, _) = rig.pair(Script::new(), &backend);
    rig.control.drain(9 * SECOND).unwrap();
    rig.settle(COMMANDED);
    rig.control.drain(30 * SECOND).unwrap();
    rig.settle(COMMANDED);
    rig.client(Script::new());
    assert_eq!(rig.event_loop.cx.counters.accepted, 2, "a draining balancer accepts nobody");
    first.then_reads([Act::End]);
    first_server.then_reads([Act::End]);
    rig.settle(&[(first.token().unwrap(), READABLE), (first_server.token().unwrap(), READABLE)]);
    assert!(!first.is_aborted() && !rig.event_loop.is_over());
    assert_eq!(rig.pass(5 * SECOND), Some(4 * SECOND));
    rig.pass(4 * SECOND);
    assert!(rig.event_loop.is_over() && second.is_aborted());
    assert_eq!(rig.notes.take().last().unwrap(), "1 ended: drain limit");
}

#[test]
fn c7_2_a_drain_ends_as_soon_as_nobody_is_left() {
    let mut rig = Rig::new(&[]);
    rig.control.drain(Duration::MAX).unwrap();
    rig.turn(COMMANDED);
    assert!(rig.event_loop.is_over());
}

#[test]
fn c7_4_whoever_waits_is_told_when_the_loop_is_dropped() {
    let rig = Rig::new(&[]);
    let update = rig.submit(&[]);
    let control = rig.control.clone();
    drop(rig.event_loop);
    assert!(matches!(update.wait(), Err(Error::Stopped)));
    assert!(matches!(control.update(BackendSet::new()), Err(Error::Stopped)));
    assert!(matches!(control.stats(), Err(Error::Stopped)));
    assert!(control.shutdown().is_ok() && control.drain(SECOND).is_ok());
}

#[test]
fn c7_4_the_loops_own_thread_does_not_wait_for_itself() {
    let rig = Rig::new(&[]); // whose turns run on this thread
    let update = rig.submit(&[]);
    assert!(matches!(update.wait(), Err(Error::OwnThread)));
    assert!(matches!(update.wait_timeout(SECOND), Err(Error::OwnThread)));
    assert!(matches!(rig.control.stats(), Err(Error::OwnThread)));
}

#[test]
fn c3_10_pairs_that_are_dropped_with_the_loop_are_cut() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    let (client, server) = rig.pair(Script::new(), &backend);
    drop(rig.event_loop);
    assert!(client.is_aborted() && server.is_aborted());
}

#[test]
fn c9_1_an_idle_pair_asks_for_no_turn() {
    let backend = Scripted::new("a").then(connects());
    let mut rig = Rig::new(&[("a", &backend)]);
    rig.pair(Script::new(), &backend);
    assert_eq!(rig.pass(LIMITS.connect_timeout), None);
}
