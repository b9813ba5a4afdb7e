//! Something goes wrong at every single call of a pair's life, once in each run: the runs go on until one passes that
//! has no such call any more.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tinylb::{BackendSet, Control, EndReason, Server, TcpBackend};

use crate::faulty::{Call, ERROR, Fault, FaultyBackend, Lab, Moment, Side};
use crate::rig::{Books, Rig};
use crate::talk::{HEADER, Order, Received, Talk};
use tinylb_tests::{PATIENCE, StreamEnd, connect, impatient, pattern, read_to_end};

/// Every call that is made on a stream, by the side of the pair.
const CALLS: [(Side, Call); 16] = [
    (Side::Client, Call::Register),
    (Side::Client, Call::TakeError),
    (Side::Client, Call::Read),
    (Side::Client, Call::Write),
    (Side::Client, Call::Flush),
    (Side::Client, Call::ShutdownWrite),
    (Side::Client, Call::Deregister),
    (Side::Backend, Call::Dial),
    (Side::Backend, Call::Register),
    (Side::Backend, Call::CheckConnect),
    (Side::Backend, Call::TakeError),
    (Side::Backend, Call::Read),
    (Side::Backend, Call::Write),
    (Side::Backend, Call::Flush),
    (Side::Backend, Call::ShutdownWrite),
    (Side::Backend, Call::Deregister),
];

/// How the sockets behave apart from what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As they are.
    Plain,
    /// With reads and writes that fall short.
    InPieces,
    /// With every call that may block doing so, and bytes stuck most of the time.
    Blocking,
}

const MANNERS: [Manner; 3] = [Manner::Plain, Manner::InPieces, Manner::Blocking];

impl Manner {
    fn fault(self, moment: Moment) -> Fault {
        match (self, moment.call) {
            (Self::Plain, _) => Fault::Nothing,
            (Self::InPieces, Call::Read) => Fault::AtMost(1_000),
            (Self::InPieces, Call::Write) => Fault::AtMost(700),
            (Self::Blocking, Call::Read) if moment.nth % 2 == 0 => Fault::Block,
            (Self::Blocking, Call::Write) if moment.nth % 3 != 0 => Fault::Block,
            (Self::Blocking, Call::Flush | Call::ShutdownWrite | Call::CheckConnect)
                if moment.nth % 2 == 0 =>
            {
                Fault::Block
            }
            (Self::Blocking, Call::Write) => Fault::AtMost(900),
            _ => Fault::Nothing,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    /// The call fails.
    Error,
    /// The call fails, while the balancer drains.
    ErrorInDrain,
    /// An update takes the pair's target away.
    Removal,
    /// The balancer is shut down.
    Shutdown,
}

/// One pair of which something goes wrong at one call, beside a pair that was there before.
#[derive(Debug)]
struct Life {
    manner: Manner,
    order: Order,
    mishap: Mishap,
    side: Side,
    call: Call,
    nth: usize,
    hands: OnceLock<Hands>,
    has_struck: AtomicBool,
    /// Whether the removed target's stream was touched once the removal was told to be done.
    was_touched: AtomicBool,
}

/// What the plan acts by.
struct Hands {
    control: Control,
    /// The set without the pair's first target.
    without_target: BackendSet,
    books: Books,
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hands")
    }
}

impl Life {
    /// Lives it, and says whether there was such a call.
    fn live(self) -> bool {
        println!("{self:?}"); // shown if it fails
        let life = Arc::new(self);
        let (manner, mishap) = (life.manner, life.mishap);
        let lab = Lab::new({
            let life = life.clone();
            move |moment| life.fault(moment)
        });
        let lab = if manner == Manner::Plain { lab.of_plain_sockets() } else { lab };
        // So long that none of them plays a part.
        let builder = Server::builder().connect_timeout(PATIENCE * 2).dial_limit(PATIENCE * 3);
        let rig = Rig::new(builder, 2, lab);
        let mut without_target = rig.set();
        without_target.remove("b").unwrap();
        let (control, books) = (rig.balancer.control.clone(), rig.books.clone());
        life.hands.set(Hands { control, without_target, books }).unwrap();

        // It has backend a, so that the pair in question begins with b.
        let bystander = Talk::new(1, 1_000, 1_000, Order::ClientFirst);
        let stream = bystander.begin(rig.balancer.addr);
        rig.balancer.wait_for("it is connected", |stats| stats.open == 1);
        let client = life.talk().hold(rig.balancer.addr);
        let bystanders = bystander.resume(stream);
        if mishap == Mishap::Shutdown && life.has_struck() {
            bystanders.assert_honest(&bystander.bytes_down());
        } else {
            bystanders.assert_complete(&bystander.bytes_down());
        }
        life.check(&rig, &client);
        if mishap == Mishap::ErrorInDrain || (mishap == Mishap::Shutdown && life.has_struck()) {
            rig.end_by_itself();
        } else {
            let next = Talk::new(3, 10, 10, Order::Together);
            next.hold(rig.balancer.addr).assert_complete(&next.bytes_down());
            rig.reports(1)[&next.seed].1.assert_complete(&next.bytes_up());
            rig.wait_for_ends(3);
            rig.end();
        }
        life.has_struck()
    }

    fn talk(&self) -> Talk {
        Talk::new(2, 2_500, 2_500, self.order)
    }

    fn has_struck(&self) -> bool {
        self.has_struck.load(Ordering::SeqCst)
    }

    fn fault(&self, moment: Moment) -> Fault {
        if self.mishap == Mishap::ErrorInDrain
            && (moment.call, moment.stream) == (Call::Register, 1)
        {
            self.hands.get().unwrap().control.drain(PATIENCE * 3).unwrap();
        }
        if self.mishap == Mishap::Removal && (moment.side, moment.stream) == (Side::Backend, 1) {
            // The first update was the set to begin with.
            let is_removed =
                self.has_struck() && self.hands.get().unwrap().books.lock().updates == 2;
            self.was_touched.fetch_or(is_removed, Ordering::SeqCst);
        }
        // The pair in question is the second that there is.
        if (moment.side, moment.call, moment.stream, moment.nth)
            == (self.side, self.call, 1, self.nth)
        {
            self.has_struck.store(true, Ordering::SeqCst);
            let Hands { control, without_target, .. } = self.hands.get().unwrap();
            match self.mishap {
                Mishap::Error | Mishap::ErrorInDrain => return Fault::Fail(self.error()),
                Mishap::Removal => drop(control.update(without_target.clone()).unwrap()),
                Mishap::Shutdown => control.shutdown().unwrap(),
            }
        }
        match (self.call, moment.call) {
            // What a stream is asked only after an event of an error, it is asked after each.
            (Call::TakeError, Call::Translate) if moment.stream == 1 => Fault::Say(ERROR),
            _ => self.manner.fault(moment),
        }
    }

    /// Of a kind that says that the connection, or the backend, is of no use.
    fn error(&self) -> i32 {
        const ERRORS: [i32; 6] = [104, 32, 110, 5, 103, 113]; // ECONNRESET, EPIPE, ETIMEDOUT, EIO, ECONNABORTED, EHOSTUNREACH
        ERRORS[self.nth % ERRORS.len()]
    }

    /// Both ends of the pair in question have seen what is due, and it was counted and told so.
    fn check(&self, rig: &Rig, client: &Received) {
        let talk = self.talk();
        let end = rig.books.end_of(1);
        assert!(self.due(rig).contains(&end.reason), "{:?}", end.reason);
        assert!(
            !self.was_touched.load(Ordering::SeqCst),
            "C3.5: touched after the removal was applied"
        );
        let got_header = end.bytes_up >= HEADER as u64;
        let reports = rig.reports(1 + usize::from(got_header));
        let at_backend = reports.get(&talk.seed).map(|(_, received)| received);

        client.assert_honest(&talk.bytes_down());
        if let Some(received) = at_backend {
            received.assert_honest(&talk.bytes_up());
        }
        if end.reason == EndReason::Finished {
            client.assert_complete(&talk.bytes_down());
            at_backend.unwrap().assert_complete(&talk.bytes_up());
        } else if cfg!(feature = "socket2") {
            let ends =
                [Some(client), at_backend].map(|received| received.map(|received| received.end));
            assert!(ends.contains(&Some(StreamEnd::Reset)), "C3.10: {ends:?}");
        }
        if self.call == Call::Read
            && self.has_struck()
            && self.manner != Manner::Blocking
            && end.reason != EndReason::Finished
        {
            let was_read = rig.lab.bytes_read(self.side, 1);
            let delivered = match (self.side, at_backend) {
                (Side::Client, Some(received)) => HEADER + received.bytes.len(),
                (Side::Client, None) => 0,
                (Side::Backend, _) => client.bytes.len(),
            };
            assert_eq!(delivered, was_read, "what came before the error");
        }
        // Nobody is left to ask where the balancer has ended.
        if let Ok(stats) = rig.balancer.control.stats().and_then(|stats| stats.wait()) {
            let counted: u64 =
                stats.backends.iter().map(|backend| backend.usage.dial_failures).sum();
            assert_eq!(counted, rig.books.lock().failed.len() as u64);
        }
    }

    /// The reasons that the pair may end for.
    fn due(&self, rig: &Rig) -> &'static [EndReason] {
        use EndReason::{
            BackendFailed, ClientFailed, Finished, LocalFailure, Shutdown, TargetRemoved,
        };
        let books = rig.books.lock();
        if !self.has_struck() {
            return &[Finished];
        }
        match (self.mishap, self.side, self.call) {
            // Unless it had come to its end when the loop looked at its orders, which no dial has.
            (Mishap::Removal, _, Call::Register | Call::Dial) if books.connected[&1] == "b" => &[],
            (Mishap::Removal, ..) if books.connected[&1] == "b" => &[TargetRemoved, Finished],
            (Mishap::Removal, ..) => &[Finished],
            (Mishap::Shutdown, ..) => &[Shutdown, Finished],
            (_, Side::Client, Call::Register) => &[LocalFailure],
            (.., Call::Deregister) => &[Finished],
            (_, Side::Client, _) => &[ClientFailed],
            // It has failed over.
            (_, Side::Backend, _) if !books.failed.is_empty() => &[Finished],
            (_, Side::Backend, Call::Dial | Call::Register | Call::CheckConnect) => &[],
            (_, Side::Backend, _) => &[BackendFailed],
        }
    }
}

/// Lives all the lives that something can happen in, and says how many those were.
fn walk(manner: Manner, order: Order, mishap: Mishap, reached: &mut BTreeSet<(Side, Call)>) {
    for (side, call) in CALLS {
        for nth in 0.. {
            assert!(nth < 1_000, "{call:?} of {side:?} is made without an end");
            let life = Life {
                manner,
                order,
                mishap,
                side,
                call,
                nth,
                hands: OnceLock::new(),
                has_struck: AtomicBool::new(false),
                was_touched: AtomicBool::new(false),
            };
            if !life.live() {
                break;
            }
            reached.insert((side, call));
        }
    }
}

#[track_caller]
fn walk_all(mishap: Mishap, orders: &[Order]) {
    let mut reached = BTreeSet::new();
    for manner in MANNERS {
        for order in orders {
            walk(manner, *order, mishap, &mut reached);
        }
    }
    assert_eq!(reached, BTreeSet::from(CALLS), "not all were ever called");
}

#[test]
fn c6_4_an_error_of_any_call_ends_its_own_pair_or_its_dial_and_nothing_else() {
    walk_all(Mishap::Error, &Order::ALL);
}

#[test]
fn c7_2_so_it_does_while_the_balancer_drains() {
    walk_all(Mishap::ErrorInDrain, &[Order::Together]);
}

#[test]
fn c3_2_a_removal_during_any_call_closes_the_pair_or_moves_its_dial_on() {
    walk_all(Mishap::Removal, &[Order::ClientFirst]);
}

#[test]
fn c7_2_a_shutdown_during_any_call_leaves_nothing_open() {
    walk_all(Mishap::Shutdown, &[Order::BackendFirst]);
}

/// The side is not read from until a write to it has failed.
#[test]
fn c6_4_what_a_side_had_sent_goes_on_though_nothing_can_be_written_to_it_any_more() {
    const EPIPE: i32 = 32;
    for failing in [Side::Client, Side::Backend] {
        let has_failed = AtomicBool::new(false);
        let plan = move |moment: Moment| match (moment.side == failing, moment.call) {
            (true, Call::Write) => {
                has_failed.store(true, Ordering::SeqCst);
                Fault::Fail(EPIPE)
            }
            (true, Call::Read) if !has_failed.load(Ordering::SeqCst) => Fault::Block,
            _ => Fault::Nothing,
        };
        let rig = Rig::new(Server::builder(), 0, Lab::new(plan));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = TcpBackend::new(listener.local_addr().unwrap());
        rig.balancer.update([("a", FaultyBackend::new(backend, &rig.lab))].into());
        let client = connect(rig.balancer.addr);
        let (backend, _) = listener.accept().unwrap();
        impatient(&backend);
        let (mut failing_peer, mut other) =
            if failing == Side::Client { (client, backend) } else { (backend, client) };
        let sent = pattern(10_000);
        failing_peer.write_all(&sent).unwrap();

        other.write_all(b"cannot be delivered").unwrap();

        let (received, end) = read_to_end(&mut other);
        assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
        assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")));
        rig.end();
    }
}
