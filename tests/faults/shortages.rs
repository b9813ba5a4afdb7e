//! This machine runs out of something: descriptors, buffers, ports, memory. Errors made up at accept, at dial, or at
//! both, with clients in the backlog of whom no further event tells.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tinylb::{Builder, Ejection, EndReason, Server, Stats};

use crate::faulty::{Call, Fault, Lab, Moment, Side};
use crate::rig::Rig;
use crate::talk::{Order, Talk};
use tinylb_tests::{assert_refused, wait_for};

const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;
const ENOBUFS: i32 = 105;

/// How long the balancer waits when this machine is short of something.
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than any test takes: no other timer may do what that of a pause has to.
const LONG: Duration = Duration::from_secs(3600);

/// What a call fails with for now.
#[derive(Clone)]
struct Shortage {
    side: Side,
    call: Call,
    error: Arc<AtomicI32>,
}

impl Shortage {
    fn of(side: Side, call: Call) -> Self {
        Self { side, call, error: Arc::default() }
    }

    fn begin(&self, error: i32) {
        self.error.store(error, Ordering::SeqCst);
    }

    fn end(&self) {
        self.begin(0);
    }
}

/// A balancer that ejects at the first failure.
#[track_caller]
fn rig(builder: Builder, backends: usize, shortages: &[&Shortage]) -> Rig {
    let shortages: Vec<Shortage> = shortages.iter().map(|shortage| (*shortage).clone()).collect();
    let lab = Lab::new(move |moment: Moment| {
        let of_this_call =
            shortages.iter().filter(|short| (short.side, short.call) == (moment.side, moment.call));
        match of_this_call.map(|short| short.error.load(Ordering::SeqCst)).find(|error| *error != 0)
        {
            Some(error) => Fault::Fail(error),
            None => Fault::Nothing,
        }
    });
    let ejection = Ejection::new(1, Duration::from_secs(1), Duration::from_secs(30));
    Rig::with(
        builder.connect_timeout(LONG).ejection(ejection),
        backends,
        &Arc::new(lab),
        narrow_listener(),
    )
}

/// How many clients the backlog of [`narrow_listener`] holds.
const BACKLOG: usize = 5;

fn narrow_listener() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(BACKLOG as i32 - 1).unwrap();
    socket.into()
}

/// The call is made now and then for a while, as the pauses have it, and by no means over and over.
#[track_caller]
fn assert_made_now_and_then(rig: &Rig, call: Call) {
    let (start, before) = (Instant::now(), rig.lab.calls(call));
    wait_for("it is tried again", || (rig.lab.calls(call) >= before + 2).then_some(()));
    thread::sleep(2 * PAUSE);
    let made = (rig.lab.calls(call) - before) as u128;
    let pauses = start.elapsed().as_millis() / PAUSE.as_millis();
    assert!(made <= pauses + 2, "{call:?} was tried {made} times in {pauses} pauses");
}

#[track_caller]
fn assert_nobody_is_blamed(rig: &Rig) {
    let stats = rig.balancer.stats();
    assert!(stats.backends.iter().all(|backend| !backend.ejected), "C5.5: {stats:?}");
}

fn talk(seed: u64) -> Talk {
    Talk::new(seed, 100, 100, Order::ClientFirst)
}

#[track_caller]
fn assert_served(rig: &Rig, talk: &Talk, stream: TcpStream) {
    talk.resume(stream).assert_complete(&talk.bytes_down());
    rig.reports(1)[&talk.seed].1.assert_complete(&talk.bytes_up());
}

#[test]
fn c4_3_a_shortage_at_dial_then_at_accept_with_a_full_backlog_rests_and_is_over_when_it_is_over() {
    for error in [EMFILE, ENFILE, ENOBUFS, ENOMEM] {
        let [at_accept, at_dial] = [(Side::Client, Call::Accept), (Side::Backend, Call::Dial)]
            .map(|(s, c)| Shortage::of(s, c));
        let rig = rig(Server::builder().dial_limit(LONG), 2, &[&at_accept, &at_dial]);
        at_dial.begin(error);
        let mut streams = vec![talk(0).begin(rig.balancer.addr)];
        rig.balancer.wait_for("one has been accepted", |stats| stats.accepted == 1);
        streams.extend((1..=BACKLOG as u64).map(|seed| talk(seed).begin(rig.balancer.addr)));
        let mut clients = (0..).map(talk).zip(streams);

        // One waits for something to dial with, and the others are not even asked for.
        assert_made_now_and_then(&rig, Call::Dial);
        assert_eq!(rig.balancer.stats().accepted, 1);
        // Then it has it, but nobody else can be let in.
        at_accept.begin(error);
        at_dial.end();
        let (first, stream) = clients.next().unwrap();
        assert_served(&rig, &first, stream);
        assert_made_now_and_then(&rig, Call::Accept);
        assert_eq!(rig.balancer.stats().accepted, 1);
        // Then it is over, and nothing tells of that.
        at_accept.end();
        for (talk, stream) in clients {
            assert_served(&rig, &talk, stream);
        }

        rig.wait_for_ends(1 + BACKLOG);
        assert_nobody_is_blamed(&rig);
        assert!(rig.books.lock().failed.is_empty());
        rig.end();
    }
}

#[test]
fn c4_3_so_does_a_shortage_of_what_it_takes_to_register_a_backend() {
    for error in [ENOSPC, ENOMEM] {
        let short = Shortage::of(Side::Backend, Call::Register);
        let rig = rig(Server::builder().dial_limit(LONG), 1, &[&short]);
        short.begin(error);
        let stream = talk(0).begin(rig.balancer.addr);

        assert_made_now_and_then(&rig, Call::Dial);
        wait_for("what was dialled in vain is closed", || (rig.lab.open() == 1).then_some(()));
        short.end();

        assert_served(&rig, &talk(0), stream);
        assert_nobody_is_blamed(&rig);
        rig.end();
    }
}

#[test]
fn c4_3_a_client_that_cannot_be_registered_is_refused_and_those_behind_it_wait_for_a_pause_to_end()
{
    let short = Shortage::of(Side::Client, Call::Register);
    let rig = rig(Server::builder().dial_limit(LONG), 1, &[&short]);
    short.begin(ENOSPC);
    let (addr, start) = (rig.balancer.addr, Instant::now());
    let (pauses, ends) = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..BACKLOG as u64).map(|seed| scope.spawn(move || talk(seed).hold(addr))).collect();
        let of_local_failure = |stats: &Stats| stats.refused.of(EndReason::LocalFailure);
        rig.balancer.wait_for("some are refused", |stats| of_local_failure(stats) >= 2);
        short.end();
        let pauses = start.elapsed().as_millis() / PAUSE.as_millis();
        (pauses, clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>())
    });

    let refused = rig.balancer.stats().refused.of(EndReason::LocalFailure);
    let whole = (0..)
        .map(talk)
        .zip(&ends)
        .filter(|(talk, received)| received.bytes == talk.bytes_down())
        .count();
    assert!(u128::from(refused) <= pauses + 2, "{refused} refused in {pauses} pauses");
    assert_eq!(whole as u64, BACKLOG as u64 - refused);
    rig.end();
}

#[test]
fn c4_3_a_client_who_waits_longer_than_the_dial_limit_is_refused_and_the_backend_not_blamed() {
    for error in [EMFILE, ENOBUFS] {
        let limit = 3 * PAUSE;
        let short = Shortage::of(Side::Backend, Call::Dial);
        let rig = rig(Server::builder().dial_limit(limit), 1, &[&short]);
        short.begin(error);
        let start = Instant::now();

        assert_refused(rig.balancer.addr);

        assert!(start.elapsed() >= limit);
        assert_eq!(rig.books.end_of(0).reason, EndReason::DialLimit);
        assert_nobody_is_blamed(&rig);
        short.end();
        talk(0).hold(rig.balancer.addr).assert_complete(&talk(0).bytes_down());
        rig.end();
    }
}

#[test]
fn c5_5_a_want_of_ports_sends_clients_on_to_the_next_backend_and_ejects_none() {
    const BACKENDS: usize = 3;
    for error in [EADDRNOTAVAIL, EADDRINUSE] {
        let short = Shortage::of(Side::Backend, Call::Dial);
        let rig = rig(Server::builder().dial_limit(LONG), BACKENDS, &[&short]);
        short.begin(error);

        for client in 0..4 {
            assert_refused(rig.balancer.addr);
            assert_eq!(rig.books.end_of(client).reason, EndReason::BackendsFailed);
        }

        assert_eq!(rig.lab.calls(Call::Dial), 4 * BACKENDS, "C5.3: not each candidate once");
        assert_nobody_is_blamed(&rig);
        short.end();
        talk(0).hold(rig.balancer.addr).assert_complete(&talk(0).bytes_down());
        rig.end();
    }
}

#[test]
fn c4_3_a_want_of_ports_at_accept_rests_as_any_error_that_is_not_of_one_client() {
    for error in [EADDRNOTAVAIL, ENOBUFS] {
        let short = Shortage::of(Side::Client, Call::Accept);
        let rig = rig(Server::builder().dial_limit(LONG), 1, &[&short]);
        short.begin(error);
        let streams: Vec<_> =
            (0..BACKLOG as u64).map(|seed| talk(seed).begin(rig.balancer.addr)).collect();

        assert_made_now_and_then(&rig, Call::Accept);
        short.end();

        for (talk, stream) in (0..).map(talk).zip(streams) {
            assert_served(&rig, &talk, stream);
        }
        rig.end();
    }
}

#[test]
fn c7_2_a_drain_waits_for_who_waits_for_a_descriptor_and_a_shutdown_does_not() {
    for is_served in [true, false] {
        let short = Shortage::of(Side::Backend, Call::Dial);
        let rig = rig(Server::builder().dial_limit(LONG), 1, &[&short]);
        short.begin(EMFILE);
        let stream = talk(0).begin(rig.balancer.addr);
        wait_for("it waits", || (rig.lab.calls(Call::Dial) > 0).then_some(()));
        rig.balancer.control.drain(LONG).unwrap();
        assert_eq!(rig.balancer.stats().dialling, 1);
        if is_served {
            short.end();
            assert_served(&rig, &talk(0), stream);
            rig.end_by_itself();
        } else {
            let books = rig.books.clone();
            rig.end();
            assert_eq!(books.end_of(0).reason, EndReason::Shutdown);
        }
    }
}
