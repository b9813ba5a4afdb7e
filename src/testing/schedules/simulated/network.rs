//! The simulated network: sockets of the balancer with their peers, and what the peers do.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::Token;

use super::super::steps::{Dice, Happening, Setting};
use super::super::tally::tally;
use super::host::SHORTAGE_PAUSE;
use crate::event_loop::BYTES_PER_DIRECTION;
use crate::net::Readiness;
use crate::random::Random;

/// All sockets that ever were, and the dice that decide what a step leaves open.
pub(super) struct Network {
    /// Thrown by each step anew.
    pub(super) dice: Random,
    pub(super) setting: Setting,
    pub(super) now: Instant,
    /// When the poll of this turn began, if it returned all events.
    pub(super) complete_until: Option<Instant>,
    pub(super) sockets: Vec<Socket>,
    /// Those that are registered and not closed, in their order.
    live: BTreeSet<usize>,
    /// The clients that nobody has accepted yet.
    pub(super) backlog: VecDeque<usize>,
    /// The listener's event: set by a client that comes.
    pub(super) backlog_event: bool,
    /// How many of the next calls that need a descriptor fail.
    pub(super) short_of: usize,
    /// Until when the balancer has reason to pause.
    pub(super) paused_until: Option<Instant>,
    /// The same before the last call that lacked something.
    paused_before: Option<Instant>,
    pub(super) in_turn: InTurn,
    /// How many pairs have to be driven, at most, for all that the balancer was told of.
    pub(super) drives_left: usize,
    /// The targets that were ever busy. Later clients may be kept from them by earlier ones.
    pub(super) were_busy: BTreeSet<&'static str>,
}

/// What the balancer has done in a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InTurn {
    pub(super) accepts: usize,
    pub(super) dials: usize,
    /// How often it asked whether a dial is connected.
    pub(super) checks: usize,
    pub(super) closes: usize,
    pub(super) bytes: usize,
    /// How many sockets it has read from.
    pub(super) read: usize,
}

/// A dial of a backend: under which key, at what target, and which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Dial {
    pub(super) key: &'static str,
    pub(super) target: &'static str,
    pub(super) attempt: u32,
}

/// A socket of the balancer's, with its peer.
#[derive(Debug)]
pub(super) struct Socket {
    /// Which dial it came of; `None` for a client.
    pub(super) dial: Option<Dial>,
    /// The other socket of the pair: a client's is that of the last dial made for it.
    pub(super) partner: Option<usize>,
    /// Those of the key that was picked last for a client.
    pub(super) tenure: u64,
    pub(super) presence: u64,
    pub(super) began: Instant,
    pub(super) connect: Connect,
    /// The first dial of the backend that a client was given, until that has failed or the client
    /// is gone.
    pub(super) assigned: Option<Dial>,
    /// The dials made for a client.
    pub(super) tried: BTreeSet<Dial>,
    /// The dial of a client that is to be made again, since it lacked a descriptor or a signal
    /// came.
    pub(super) repeats: Option<Dial>,
    pub(super) lacks_descriptor: bool,
    /// The keys and targets that were busy for a client.
    pub(super) busy: BTreeSet<(&'static str, &'static str)>,
    /// The target that a client waits for, if all that is left to it is busy, and names this one.
    pub(super) waits_for: Option<&'static str>,
    /// What the peer has sent, and how much of it was read.
    pub(super) sent: usize,
    pub(super) read: usize,
    /// Where a read stops short, for what was sent out of band.
    pub(super) mark: Option<usize>,
    pub(super) has_ended: bool,
    pub(super) end_was_read: bool,
    /// The connection is broken: reset by its peer, or by the failure of a call.
    pub(super) is_broken: bool,
    pub(super) error: Option<ErrorKind>,
    /// The peer takes nothing any more, which a write would tell.
    pub(super) has_left: bool,
    /// What it is sent first, and how much it has taken, of the preface too.
    pub(super) preface: usize,
    pub(super) taken: usize,
    pub(super) room: usize,
    pub(super) is_flushed: bool,
    /// How often a flush or an end of the write side will block.
    pub(super) stubborn: u64,
    pub(super) is_blocked: bool,
    pub(super) is_shut: bool,
    /// When a byte moved last, or the first of the streams ended.
    pub(super) active_at: Instant,
    /// How much was read in this turn.
    pub(super) moved_in_turn: usize,
    pub(super) was_read_in_turn: bool,
    /// How many turns have ended since an event told of its bytes, none of which was read.
    pub(super) turns_unread: Option<usize>,
    pub(super) short_reads_drain: bool,
    pub(super) translates: bool,
    /// Whether to drop it takes it off the event queue, and ends its stream.
    pub(super) drop_closes: bool,
    /// Whether pipes can be filled from it and drained into it.
    pub(super) splices: bool,
    pub(super) token: Option<Token>,
    /// What an event is going to tell, and since when at the latest.
    pub(super) event: Readiness,
    pub(super) event_since: Option<Instant>,
    /// Since when at the latest there are bytes to read.
    pub(super) unread_since: Option<Instant>,
    /// The bytes per second that the peer reads, if it is a steady reader. The kernel holds the
    /// rest.
    pub(super) rate: Option<usize>,
    pub(super) read_by_peer: usize,
    /// A target that was removed: what its side was sent does not count as complete.
    pub(super) must_be_aborted: Option<bool>,
    /// The balancer has told that its pair is over; the socket may be closed later.
    pub(super) is_over: bool,
    /// Its failed dial was told.
    pub(super) is_told: bool,
    /// It could not be registered.
    pub(super) is_unwatched: bool,
    /// It was told to have finished.
    pub(super) is_finished: bool,
    pub(super) is_aborted: bool,
    pub(super) is_dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connect {
    Pending,
    Up,
    Refused,
    /// The balancer knows that it is connected.
    Known,
}

/// What the kernel takes for a steady reader that reads nothing: the unsent mark and a small
/// receive buffer.
const KERNEL_BUFFER: usize = 192 << 10;

/// How many bytes a turn moves at most, and how many pairs it drives if they move hardly any.
const BYTES_PER_TURN: usize = 1 << 20;
const DRIVES_PER_TURN: usize = 128;

/// How many addresses a target has.
pub(super) fn attempts(target: &str) -> u32 {
    if target == "t0" { 2 } else { 1 }
}

impl Network {
    pub(super) fn new(setting: Setting, now: Instant) -> Self {
        Self {
            dice: Random::new(0),
            setting,
            now,
            complete_until: None,
            sockets: Vec::new(),
            live: BTreeSet::new(),
            backlog: VecDeque::new(),
            backlog_event: false,
            short_of: 0,
            paused_until: None,
            paused_before: None,
            in_turn: InTurn::default(),
            drives_left: 0,
            were_busy: BTreeSet::new(),
        }
    }

    /// Moves the clock. What was there before is noted, and steady readers read meanwhile.
    pub(super) fn advance(&mut self, to: Instant) {
        let to = to.max(self.now);
        let passed = to - self.now;
        for socket in self.live.iter().copied().collect::<Vec<_>>() {
            let socket = &mut self.sockets[socket];
            match socket.event == Readiness::default() {
                true => socket.event_since = None,
                false => _ = socket.event_since.get_or_insert(self.now),
            }
            match socket.sent > socket.read {
                true => _ = socket.unread_since.get_or_insert(self.now),
                false => socket.unread_since = None,
            }
            socket.read_steadily(passed);
        }
        self.now = to;
    }

    pub(super) fn throw(&mut self, sides: u64) -> u64 {
        self.dice.throw(sides)
    }

    pub(super) fn one_in(&mut self, sides: u64) -> bool {
        self.dice.one_in(sides)
    }

    /// How many bytes something takes that need not take all.
    pub(super) fn a_part(&mut self) -> usize {
        if self.setting.trickles { 1 + self.throw(3) as usize } else { self.dice.some_bytes() }
    }

    pub(super) fn add(
        &mut self,
        dial: Option<Dial>,
        partner: Option<usize>,
        connect: Connect,
    ) -> usize {
        let is_steady = self.setting.steady && self.one_in(2);
        let rate = is_steady.then(|| 10_000 + self.throw(40_000) as usize);
        let room = match rate {
            Some(_) => KERNEL_BUFFER,
            None if self.one_in(3) => self.dice.some_bytes(),
            None => usize::MAX,
        };
        let socket = Socket {
            dial,
            partner,
            tenure: 0,
            presence: 0,
            began: self.now,
            connect,
            assigned: None,
            tried: BTreeSet::new(),
            repeats: None,
            lacks_descriptor: false,
            busy: BTreeSet::new(),
            waits_for: None,
            sent: 0,
            read: 0,
            mark: None,
            has_ended: false,
            end_was_read: false,
            is_broken: false,
            error: None,
            has_left: false,
            preface: 0,
            taken: 0,
            room,
            is_flushed: true,
            stubborn: if rate.is_none() && self.one_in(3) { self.throw(3) } else { 0 },
            is_blocked: false,
            is_shut: false,
            active_at: self.now,
            moved_in_turn: 0,
            was_read_in_turn: false,
            turns_unread: None,
            short_reads_drain: self.one_in(2),
            translates: self.one_in(4),
            drop_closes: self.one_in(2),
            splices: self.one_in(2),
            token: None,
            event: Readiness::default(),
            event_since: None,
            unread_since: None,
            rate,
            read_by_peer: 0,
            must_be_aborted: Some(false),
            is_over: false,
            is_told: false,
            is_unwatched: false,
            is_finished: false,
            is_aborted: false,
            is_dropped: false,
        };
        self.sockets.push(socket);
        self.sockets.len() - 1
    }

    pub(super) fn arrive(&mut self) {
        let client = self.add(None, None, Connect::Known);
        self.backlog.push_back(client);
        self.backlog_event = true;
    }

    /// Has events of a socket made from now on. What there is already is one.
    pub(super) fn register(&mut self, socket: usize, token: Token) {
        self.live.insert(socket);
        let socket = &mut self.sockets[socket];
        assert!(!socket.is_dropped && socket.token.replace(token).is_none(), "registered twice");
        socket.event.readable |= socket.sent > 0 || socket.has_ended || socket.is_broken;
        socket.event.read_closed |= socket.has_ended || socket.is_broken;
        socket.event.write_closed |= socket.is_broken || socket.has_left;
        socket.event.priority |= socket.mark.is_some();
        socket.event.error |= socket.is_broken || socket.connect == Connect::Refused;
        socket.event.writable |= socket.connect != Connect::Pending;
    }

    pub(super) fn deregister(&mut self, socket: usize) {
        self.live.remove(&socket);
        self.sockets[socket].token = None;
    }

    /// The sockets of which events may come: those that are registered and not closed, of pairs
    /// that are over too.
    pub(super) fn registered(&self) -> impl Iterator<Item = usize> + '_ {
        self.live.iter().copied()
    }

    /// The sockets of pairs that are not over.
    pub(super) fn live(&self) -> impl Iterator<Item = usize> + '_ {
        self.registered().filter(|&socket| !self.sockets[socket].is_over)
    }

    pub(super) fn is_live(&self, socket: usize) -> bool {
        self.live.contains(&socket) && !self.sockets[socket].is_over
    }

    pub(super) fn live_clients(&self) -> usize {
        self.live().filter(|&socket| self.sockets[socket].dial.is_none()).count()
    }

    /// The pairs whose backend is connected: its socket, with that of its client.
    pub(super) fn connected(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.live().filter_map(|socket| match self.sockets[socket] {
            Socket { dial: Some(_), connect: Connect::Known, partner: Some(client), .. } => {
                Some((client, socket))
            }
            _ => None,
        })
    }

    /// The clients that have been given a backend, with that, connected or not.
    pub(super) fn assigned(&self) -> impl Iterator<Item = (&Socket, Dial)> + '_ {
        let clients = self.live().map(|socket| &self.sockets[socket]);
        clients.filter_map(|client| client.assigned.map(|dial| (client, dial)))
    }

    /// Whether an earlier client waits for a target and nothing else.
    pub(super) fn is_awaited(&self, target: &str, client: usize) -> bool {
        let earlier = self.live().take_while(|&socket| socket < client);
        let mut earlier = earlier.map(|socket| &self.sockets[socket]);
        earlier.any(|socket| {
            let is_over = socket.began + super::LIMITS.dial_limit <= self.now;
            socket.waits_for == Some(target) && !is_over
        })
    }

    pub(super) fn is_connected(&self, client: &Socket) -> bool {
        client.partner.is_some_and(|backend| {
            self.is_live(backend) && self.sockets[backend].connect == Connect::Known
        })
    }

    /// A backend was taken from a client before it had failed: it counts as not tried.
    pub(super) fn forget_tried(&mut self, client: usize, dial: Dial) {
        let is_other = |tried: &Dial| (tried.key, tried.target) != (dial.key, dial.target);
        self.sockets[client].tried.retain(is_other);
    }

    /// The backends that a client has tried only in part, and is not dialling now.
    pub(super) fn half_tried(&self, client: usize) -> Vec<Dial> {
        let Socket { tried, partner, .. } = &self.sockets[client];
        let dial = partner.filter(|socket| self.is_live(*socket));
        let dial = dial.and_then(|socket| self.sockets[socket].dial);
        let is_dialled = |tried: &Dial| dial.is_some_and(|dial| dial.key == tried.key);
        let is_half = |first: &Dial| {
            let same =
                tried.iter().filter(|dial| (dial.key, dial.target) == (first.key, first.target));
            same.count() < attempts(first.target) as usize && !is_dialled(first)
        };
        tried.iter().copied().filter(is_half).collect()
    }

    /// The target of a backend's socket.
    pub(super) fn target(&self, backend: usize) -> &'static str {
        self.sockets[backend].dial.expect("not a backend's").target
    }

    /// Whether its peer reads all that there was, and then the end, if it is dropped now.
    pub(super) fn is_ended_by_now(&self, socket: usize) -> bool {
        let socket = &self.sockets[socket];
        let is_last = |partner: usize| {
            let partner = &self.sockets[partner];
            let is_delivered = socket.is_flushed && socket.taken == socket.preface + partner.sent;
            partner.end_was_read && socket.end_was_read && is_delivered
        };
        socket.is_shut || (socket.drop_closes && socket.partner.is_some_and(is_last))
    }

    /// All peers read from now on, and nothing hesitates.
    pub(super) fn open_up(&mut self) {
        for socket in self.registered().collect::<Vec<_>>() {
            let socket = &mut self.sockets[socket];
            socket.read_by_peer = socket.taken;
            socket.rate = None;
            (socket.room, socket.stubborn, socket.is_blocked) = (usize::MAX, 0, false);
            socket.event.writable |= socket.connect != Connect::Pending;
        }
    }

    /// A peer does something, one of a client in the backlog too.
    pub(super) fn happen(&mut self, peer: usize, what: Happening) {
        let peers = self.peers();
        if !peers.is_empty() {
            self.act(peers[peer % peers.len()], what);
        }
    }

    fn peers(&self) -> Vec<usize> {
        self.registered().chain(self.backlog.iter().copied()).collect()
    }

    fn act(&mut self, socket: usize, what: Happening) {
        let most = self.setting.most();
        let socket = &mut self.sockets[socket];
        if socket.connect == Connect::Pending {
            socket.answer(what);
        }
        let is_reading =
            matches!(what, Happening::StopReading | Happening::Read(_) | Happening::Hesitate);
        if is_reading && socket.rate.is_some() {
            return;
        }
        if matches!(socket.connect, Connect::Up | Connect::Known) && !socket.is_broken {
            socket.go_on(what, most);
        }
    }

    /// All peers do something, but for some that send a byte.
    pub(super) fn happen_to_all(&mut self, spared: u64, what: Happening) {
        let peers = self.peers();
        if peers.len() >= 1000 {
            tally(what.burst());
        }
        for (index, socket) in peers.into_iter().enumerate() {
            let is_spared = index as u64 % spared == 0;
            self.act(socket, if is_spared { Happening::Send(1) } else { what });
        }
    }

    /// The balancer is told of an event of a socket.
    pub(super) fn note_told(&mut self, socket: usize) {
        if self.is_survivor(socket) {
            self.drives_left += 1;
            let Socket { sent, read, ref mut turns_unread, .. } = self.sockets[socket];
            if sent > read {
                turns_unread.get_or_insert(0);
            }
        }
    }

    /// The balancer reads from a socket.
    pub(super) fn note_read(&mut self, socket: usize) {
        let is_first = !std::mem::replace(&mut self.sockets[socket].was_read_in_turn, true);
        self.in_turn.read += usize::from(is_first);
    }

    /// Whether a socket is of a pair that is connected and goes on.
    fn is_survivor(&self, socket: usize) -> bool {
        let goes_on = |socket: usize| {
            let Socket { connect, has_ended, is_broken, has_left, .. } = self.sockets[socket];
            let is_sound = !(has_ended || is_broken || has_left);
            self.is_live(socket) && connect == Connect::Known && is_sound
        };
        goes_on(socket) && self.sockets[socket].partner.is_some_and(goes_on)
    }

    /// Whether a peer has not taken all that its partner has sent, or is about to take it by an
    /// event: that goes first.
    fn is_held_up(&self, socket: usize) -> bool {
        let Socket { partner, read, .. } = self.sockets[socket];
        partner.is_some_and(|to| {
            let to = &self.sockets[to];
            let has_unsent = !to.is_flushed || to.taken < to.preface + read;
            to.is_blocked || to.room == 0 || to.event.writable || has_unsent
        })
    }

    /// A turn is over: it was bounded, and nobody who goes on has waited for more than two.
    pub(super) fn judge_work(&mut self) {
        let InTurn { accepts, dials, checks, closes, bytes, read } = self.in_turn;
        assert!(accepts <= 64, "{accepts} accepts");
        // One is repeated when empty pipes have spared their descriptors.
        assert!(dials <= 64 + accepts + 1, "{dials} dials");
        assert!(checks <= 64 + 256, "{checks} checks");
        // Left by earlier turns, at once, and of accepts and dials that failed.
        assert!(closes <= 128 + 257 + accepts + checks, "{closes} closes");
        assert!(bytes <= 4 << 20, "{bytes} bytes");
        // Both sides of those that are ready, of those that end, and of one that is unfinished.
        assert!(read <= 2 * (DRIVES_PER_TURN + DRIVES_PER_TURN / 2 + 1), "{read} sockets");
        // Of bulk, or of many messages, no more fits into a turn.
        let unread = |socket: &Socket| (socket.sent - socket.read).min(BYTES_PER_DIRECTION);
        let unread: usize = self.live().map(|socket| unread(&self.sockets[socket])).sum();
        let is_overloaded = unread > BYTES_PER_TURN / 2 || self.drives_left > DRIVES_PER_TURN / 2;
        self.drives_left = self.drives_left.saturating_sub(DRIVES_PER_TURN / 2);
        for socket in self.live().collect::<Vec<_>>() {
            let Some(turns) = self.sockets[socket].turns_unread else { continue };
            let goes_on = self.is_survivor(socket) && !is_overloaded && !self.is_held_up(socket);
            assert!(!goes_on || turns < 2, "a message waits for more than two turns: {socket}");
            self.sockets[socket].turns_unread = Some(if goes_on { turns + 1 } else { 0 });
        }
        self.in_turn = InTurn::default();
    }

    /// The balancer has reason to pause; one that is under way is not made longer.
    pub(super) fn note_shortage(&mut self) {
        self.paused_before = self.paused_until;
        if self.paused_until.is_none_or(|until| until <= self.now) {
            self.paused_until = Some(self.now + SHORTAGE_PAUSE);
        }
    }

    /// The call that lacked something will be made again at once.
    pub(super) fn forget_shortage(&mut self) {
        self.paused_until = self.paused_before;
    }

    /// How many pairs have a socket that is open, but for dials that were cancelled.
    pub(super) fn open_pairs(&self) -> usize {
        let client_of = |socket: usize| match self.sockets[socket] {
            Socket { dial: Some(_), is_over: true, connect, .. } if connect != Connect::Known => {
                None
            }
            Socket { dial: Some(_), partner, .. } => partner,
            _ => Some(socket),
        };
        self.registered().filter_map(client_of).collect::<BTreeSet<_>>().len()
    }

    /// One call less that finds a descriptor.
    pub(super) fn take_descriptor(&mut self) -> io::Result<()> {
        const EMFILE: i32 = 24;
        if self.short_of > 0 {
            self.short_of -= 1;
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        Ok(())
    }

    /// What a call meets that has nothing to do with the peer: a signal, or a failure for good.
    pub(super) fn mishap(&mut self) -> Option<io::Error> {
        const ENOBUFS: i32 = 105;
        if self.setting.interrupts && self.one_in(6) {
            return Some(ErrorKind::Interrupted.into());
        }
        if self.setting.failures && self.one_in(80) {
            return Some(match self.throw(4) {
                0 => ErrorKind::ConnectionReset.into(),
                1 => ErrorKind::TimedOut.into(),
                2 => io::Error::from_raw_os_error(ENOBUFS),
                _ => io::Error::other("made up"),
            });
        }
        None
    }

    /// As [`mishap`](Self::mishap), of a call on a connection, which is broken by it.
    pub(super) fn mishap_of(&mut self, socket: usize) -> Option<io::Error> {
        let err = self.mishap()?;
        if err.kind() != ErrorKind::Interrupted {
            self.sockets[socket].is_broken = true;
        }
        Some(err)
    }
}

impl Socket {
    /// A steady reader reads what the kernel holds for it, which makes room.
    fn read_steadily(&mut self, passed: Duration) {
        let Some(rate) = self.rate else { return };
        let most = (rate as f64 * passed.as_secs_f64()) as usize;
        self.read_by_peer = self.taken.min(self.read_by_peer.saturating_add(most));
        self.room = KERNEL_BUFFER - self.held();
        if self.is_blocked && self.room >= KERNEL_BUFFER / 3 {
            self.is_blocked = false;
            self.event.writable = true;
        }
    }

    /// The bytes that the kernel holds for a steady reader.
    pub(super) fn held(&self) -> usize {
        if self.rate.is_some() { self.taken - self.read_by_peer } else { 0 }
    }

    /// A peer that has been dialled does something for the first time.
    fn answer(&mut self, what: Happening) {
        match what {
            Happening::Alarm { error } => self.event.error |= error,
            Happening::Reset => {
                self.connect = Connect::Refused;
                self.event.error = true;
            }
            _ => self.connect = Connect::Up,
        }
        self.event.writable = true;
    }

    /// A peer that is connected does something.
    fn go_on(&mut self, what: Happening, most: usize) {
        match what {
            Happening::Send(bytes) if !self.has_ended => {
                self.sent += bytes.min(most);
                self.event.readable = true;
            }
            Happening::SendUrgently if !self.has_ended => {
                self.mark = Some(self.sent);
                self.sent += 1;
                (self.event.readable, self.event.priority) = (true, true);
            }
            Happening::Send(_) | Happening::SendUrgently => {}
            Happening::End => {
                self.has_ended = true;
                (self.event.readable, self.event.read_closed) = (true, true);
            }
            Happening::Reset => {
                (self.is_broken, self.error) = (true, Some(ErrorKind::ConnectionReset));
                let all =
                    Readiness { read_closed: true, write_closed: true, ..Readiness::READ_WRITE };
                self.event = Readiness { error: true, ..all };
            }
            Happening::Leave => {
                (self.has_ended, self.has_left) = (true, true);
                self.event =
                    Readiness { read_closed: true, write_closed: true, ..Readiness::READ_WRITE };
            }
            Happening::StopReading => self.room = 0,
            Happening::Read(bytes) => {
                self.room = self.room.saturating_add(bytes.min(most));
                if std::mem::take(&mut self.is_blocked) {
                    self.event.writable = true;
                }
            }
            Happening::Hesitate => self.stubborn += 1,
            Happening::Alarm { error } => {
                (self.event.readable, self.event.writable) = (true, true);
                self.event.error |= error;
            }
        }
    }
}
