//! What the balancer is given of the simulated network: streams, a listener, backends. They judge
//! every call.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::super::pattern::bytes_of;
use super::super::steps::Change;
use super::super::tally::tally;
use super::host::{Host, LIMITS, SHORTEST_SHARE};
use super::network::{Connect, Dial, Network, Socket, attempts};
use crate::backend::{self, Backend, BackendSet, DialRequest};
use crate::control::Control;
use crate::net::{Address, Listener, Readiness, Stream};
use crate::observer::{AttemptFailed, Client, Connected, Ended, Observer};
use crate::relay::{PipeEnds, PipeSystem};
use crate::stats::Applied;
use crate::testing::pipes::SimulatedPipe;
#[cfg(unix)]
use crate::testing::pipes::any_fd;

/// The network and the host, shared by all that takes part in a schedule.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<(Network, Host)>>);

impl World {
    pub(super) fn new(network: Network, host: Host) -> Self {
        Self(Arc::new(Mutex::new((network, host))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, (Network, Host)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of the simulated network.
struct Wire {
    world: World,
    socket: usize,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, (Network, Host)> {
        self.world.lock()
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.take(room, false)
    }
}

impl Wire {
    /// Reads, or fills a pipe: that stops for good at what was sent out of band, and leaves it to a
    /// read to tell of an end.
    fn take(&mut self, room: &mut [u8], by_splicing: bool) -> io::Result<usize> {
        let mut world = self.lock();
        let (network, host) = &mut *world;
        let partner = host.judge_transfer(self.socket, network);
        network.note_read(self.socket);
        if let Some(err) = network.mishap_of(self.socket) {
            return Err(err);
        }
        let short_reads_drain = network.sockets[self.socket].short_reads_drain;
        let is_partial = (by_splicing || !short_reads_drain) && network.one_in(4);
        let most = if is_partial { network.a_part() } else { usize::MAX };
        let is_first_end = !network.sockets[partner].end_was_read;
        let (setting, now) = (network.setting, network.now);
        let socket = &mut network.sockets[self.socket];
        let available = socket.mark.unwrap_or(socket.sent) - socket.read;
        let stops = by_splicing && short_reads_drain;
        if available == 0 && by_splicing && (stops || socket.mark.is_none()) {
            return socket.splice_nothing();
        }
        if available == 0 && socket.mark.is_none() {
            return socket.read_nothing(is_first_end, now);
        }
        let mut len = available.min(room.len()).min(most);
        if socket.mark.is_some() && len == available && !stops {
            socket.mark = None; // a read stops here, and the next one goes on
            if len == 0 {
                len = (socket.sent - socket.read).min(room.len());
            }
        }
        room[..len].copy_from_slice(bytes_of(self.socket, socket.read, len));
        socket.read += len;
        socket.moved_in_turn += len;
        socket.turns_unread = None;
        network.in_turn.bytes += len;
        let held = socket.read
            - (network.sockets[partner].taken.saturating_sub(network.sockets[partner].preface));
        assert!(held <= setting.buffer_size, "{held} bytes are held");
        Ok(len)
    }
}

impl Socket {
    /// What comes of filling a pipe when there is nothing to fill it with.
    fn splice_nothing(&mut self) -> io::Result<usize> {
        match self.error.take() {
            Some(error) => Err(error.into()),
            None if self.is_broken || self.has_ended => Ok(0),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// What a read returns when no bytes are left.
    fn read_nothing(&mut self, is_first_end: bool, now: std::time::Instant) -> io::Result<usize> {
        if let Some(error) = self.error.take() {
            return Err(error.into());
        }
        if self.is_broken {
            return Ok(0); // as the kernel does once the error was taken
        }
        if !self.has_ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        if !std::mem::replace(&mut self.end_was_read, true) && is_first_end {
            self.active_at = now;
        }
        Ok(0)
    }

    /// What stands in the way of any output.
    fn obstacle(&mut self) -> Option<io::Error> {
        self.is_broken |= self.has_left;
        self.is_broken.then(|| self.error.take().unwrap_or(ErrorKind::BrokenPipe).into())
    }

    fn hesitation(&mut self) -> Option<io::Error> {
        if self.stubborn == 0 {
            return None;
        }
        self.stubborn -= 1;
        self.is_blocked = true;
        Some(ErrorKind::WouldBlock.into())
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.lock();
        let (network, host) = &mut *world;
        if let Some(err) =
            network.mishap_of(self.socket).or_else(|| network.sockets[self.socket].obstacle())
        {
            return Err(err);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let partner = host.judge_transfer(self.socket, network);
        let most = if network.setting.trickles || network.one_in(4) {
            network.a_part()
        } else {
            usize::MAX
        };
        let (now, read) = (network.now, network.sockets[partner].read);
        let socket = &mut network.sockets[self.socket];
        assert!(!socket.is_shut, "written to after its end");
        if socket.room == 0 {
            socket.is_blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut len = bytes.len().min(socket.room).min(most);
        if socket.taken < socket.preface {
            len = len.min(socket.preface - socket.taken);
            assert!(bytes[..len].iter().all(|byte| *byte == b'P'), "no preface");
        } else {
            let position = socket.taken - socket.preface;
            assert!(position + len <= read, "more than was read");
            assert!(
                bytes[..len] == *bytes_of(partner, position, len),
                "other bytes than were sent"
            );
        }
        socket.taken += len;
        socket.room -= len;
        (socket.is_flushed, socket.is_blocked) = (false, false);
        socket.active_at = now;
        let (client, backend) =
            if socket.dial.is_none() { (self.socket, partner) } else { (partner, self.socket) };
        if let Some(Dial { key, .. }) = network.sockets[backend].dial {
            let usage = host.usage(key, &network.sockets[client]);
            let bytes =
                if client == self.socket { &mut usage.bytes_down } else { &mut usage.bytes_up };
            *bytes += len as u64;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut world = self.lock();
        let network = &mut world.0;
        if let Some(err) = network.mishap_of(self.socket) {
            return Err(err);
        }
        let socket = &mut network.sockets[self.socket];
        if let Some(err) = socket.obstacle().or_else(|| socket.hesitation()) {
            return Err(err);
        }
        (socket.is_flushed, socket.is_blocked) = (true, false);
        Ok(())
    }
}

impl Stream for Wire {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let mut world = self.lock();
        let (network, host) = &mut *world;
        let partner = host.judge_transfer(self.socket, network);
        assert!(network.sockets[partner].end_was_read, "an end that nobody sent");
        let sent = network.sockets[partner].sent;
        if let Some(err) = network.mishap_of(self.socket) {
            return Err(err);
        }
        let socket = &mut network.sockets[self.socket];
        assert_eq!(socket.taken, socket.preface + sent, "ended before all is delivered");
        assert!(socket.is_flushed && !socket.is_shut);
        if let Some(err) = socket.obstacle().or_else(|| socket.hesitation()) {
            return Err(err);
        }
        (socket.is_shut, socket.is_blocked) = (true, false);
        Ok(())
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        let mut world = self.lock();
        let (network, host) = &mut *world;
        host.enforce(network);
        network.in_turn.checks += 1;
        if let Some(err) = network.mishap_of(self.socket) {
            return Err(err);
        }
        let would_block = network.one_in(2);
        let now = network.now;
        let socket = &mut network.sockets[self.socket];
        assert!(!socket.is_over, "a cancelled dial is asked");
        match socket.connect {
            Connect::Pending if would_block => Err(ErrorKind::WouldBlock.into()),
            Connect::Pending => Ok(false),
            Connect::Refused => Err(ErrorKind::ConnectionRefused.into()),
            Connect::Up if socket.is_broken => Err(ErrorKind::ConnectionReset.into()),
            Connect::Up => {
                socket.connect = Connect::Known;
                socket.active_at = now;
                network.drives_left += 1;
                Ok(true)
            }
            Connect::Known => panic!("asked again"),
        }
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        let mut world = self.lock();
        let network = &mut world.0;
        if network.sockets[self.socket].connect != Connect::Known {
            network.in_turn.checks += 1;
        }
        if network.setting.interrupts && network.one_in(6) {
            return Err(ErrorKind::Interrupted.into());
        }
        if network.setting.failures && network.one_in(20) {
            network.sockets[self.socket].is_broken = true;
            return Err(io::Error::other("cannot tell"));
        }
        Ok(network.sockets[self.socket].error.take().map(Into::into))
    }

    fn abort(&mut self) {
        let socket = &mut self.lock().0.sockets[self.socket];
        assert!(!socket.is_finished || std::thread::panicking(), "an end that looks like an abort");
        socket.is_aborted = true;
    }

    fn short_read_means_drained(&self) -> bool {
        self.lock().0.sockets[self.socket].short_reads_drain
    }

    fn translate(&self, event: Readiness) -> Readiness {
        match self.lock().0.sockets[self.socket].translates {
            true => Readiness { readable: true, writable: true, ..event },
            false => event,
        }
    }

    fn drop_closes(&self) -> bool {
        self.lock().0.sockets[self.socket].drop_closes
    }

    #[cfg(unix)]
    fn splice_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.lock().0.sockets[self.socket].splices.then(any_fd)
    }

    fn simulate_splice(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.take(room, true)
    }
}

impl Source for Wire {
    fn register(&mut self, _: &Registry, token: Token, _: Interest) -> io::Result<()> {
        let mut world = self.lock();
        let network = &mut world.0;
        if network.setting.interrupts && network.one_in(6) {
            return Err(ErrorKind::Interrupted.into());
        }
        let mishap = network.mishap().filter(|err| err.kind() != ErrorKind::Interrupted);
        if let Err(err) = network.take_descriptor().and(mishap.map_or(Ok(()), Err)) {
            network.sockets[self.socket].is_broken = true;
            match network.sockets[self.socket] {
                Socket { dial: Some(dial), partner: Some(client), .. } => {
                    network.note_failed(client, dial, &err)
                }
                _ => network.note_shortage(), // whatever kept it from being registered
            }
            return Err(err);
        }
        network.register(self.socket, token);
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("streams are registered once")
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        let mut world = self.lock();
        world.0.deregister(self.socket);
        world.0.mishap().map_or(Ok(()), Err)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut world = self.lock();
        let (network, host) = &mut *world;
        network.in_turn.closes += 1;
        let is_ended = network.is_ended_by_now(self.socket);
        let has_client =
            network.sockets[self.socket].partner.is_some_and(|partner| network.is_live(partner));
        if network.sockets[self.socket].drop_closes || host.is_abandoned {
            network.deregister(self.socket);
        }
        let socket = &mut network.sockets[self.socket];
        if socket.is_over && !socket.is_unwatched {
            network.paused_until = None; // there is room again
        }
        assert!(!std::mem::replace(&mut socket.is_dropped, true));
        if std::thread::panicking() {
            return;
        }
        assert_eq!(socket.token, None, "dropped before it was deregistered");
        assert!(
            socket.is_aborted || socket.is_shut || (socket.end_was_read && is_ended),
            "an abort that looks like an end"
        );
        if let Some(must_be_aborted) = socket.must_be_aborted.filter(|_| socket.is_shut) {
            assert_eq!(socket.is_aborted, must_be_aborted, "a complete stream is closed plainly");
        }
        match (socket.held(), socket.is_aborted) {
            (0, _) => {}
            (_, true) => tally("bytes in a kernel, discarded by a reset"),
            (_, false) => tally("bytes in a kernel, delivered by a plain close"),
        }
        let is_dial = socket.connect != Connect::Known && has_client && !socket.is_over;
        if let (Some(dial), Some(client)) = (socket.dial.filter(|_| is_dial), socket.partner) {
            // One that is kept has failed, which is told next.
            if !host.submitted.is_empty() && !host.keeps_dials_to(dial.target) {
                network.sockets[self.socket].is_over = true;
                host.cancelled.push(self.socket); // as an update takes effect
                network.paused_until = None; // there is room again
                network.forget_tried(client, dial);
            }
        }
    }
}

/// Pipes that take as much as is read at once, if there is one to be had.
pub(super) struct SimulatedPipes(pub(super) World);

impl PipeSystem for SimulatedPipes {
    fn is_safe(&self) -> bool {
        !self.0.lock().0.one_in(20)
    }

    fn open(&self) -> Option<Box<dyn PipeEnds>> {
        let network = &mut self.0.lock().0;
        let has_one = network.take_descriptor().is_ok() && !network.one_in(10);
        has_one.then(|| Box::new(SimulatedPipe::new(network.setting.buffer_size)) as _)
    }

    fn note_closed(&self) {
        self.0.lock().0.forget_shortage();
    }

    fn is_for_all(&self) -> bool {
        true // schedules are too short for reads to grow
    }
}

/// The listener.
pub(super) struct SimulatedListener(pub(super) World);

impl Listener for SimulatedListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let mut world = self.0.lock();
        let (network, host) = &mut *world;
        assert!(network.open_pairs() < network.setting.max_connections, "too many");
        assert!(
            network.paused_until.is_none_or(|until| until <= network.now),
            "accepted in a pause"
        );
        network.in_turn.accepts += 1;
        assert!(!host.is_shut_down && !host.is_closed_to_clients, "accepted in the end");
        let is_waiting = |socket: usize| {
            let Socket { lacks_descriptor, began, ref busy, .. } = network.sockets[socket];
            // One that has met a busy backend may wait for that instead.
            let may_wait = !busy.is_empty() || !network.were_busy.is_empty();
            lacks_descriptor && !may_wait && began + LIMITS.dial_limit > network.now
        };
        assert!(!network.live().any(is_waiting), "accepted before others are served");
        if network.backlog.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mishap = network.mishap();
        if let Err(err) = network.take_descriptor().and(mishap.map_or(Ok(()), Err)) {
            if !crate::net::is_client_error(&err) {
                network.note_shortage();
            }
            return Err(err);
        }
        if network.one_in(20) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let Some(client) = network.backlog.pop_front() else {
            return Err(ErrorKind::WouldBlock.into());
        };
        network.sockets[client].began = network.now;
        let stream = Wire { world: self.0.clone(), socket: client };
        Ok((Box::new(stream), Address::Other(client.to_string().into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Other("listener".into()))
    }
}

impl Source for SimulatedListener {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }
    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("the listener is registered once")
    }
    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        self.0.lock().1.is_closed_to_clients = true;
        Ok(())
    }
}

/// The number of a client's socket, which is its address.
fn client_of(addr: &Address) -> usize {
    addr.to_string().parse().expect("not one of ours")
}

/// A backend that is up, hangs or refuses as the dice will.
struct SimulatedBackend {
    world: World,
    key: &'static str,
    target: &'static str,
    /// Has it give the host's updates while it is asked to dial.
    control: Option<Control>,
}

/// The set that a change makes.
pub(super) fn backends(world: &World, change: &Change, control: Option<&Control>) -> BackendSet {
    let mut set = BackendSet::new();
    for (key, target) in &change.names {
        let (world, control) = (world.clone(), control.cloned());
        let backend = SimulatedBackend { world, key, target, control };
        set.insert_weighted(*key, backend, change.weights[key]);
    }
    set
}

impl Backend for SimulatedBackend {
    fn target_name(&self) -> String {
        self.target.to_owned()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<backend::Dial> {
        self.call_in();
        let mut world = self.world.lock();
        let (network, host) = &mut *world;
        host.enforce(network);
        let client = client_of(request.client_addr());
        assert!(network.is_live(client) && host.is_open(self.target), "nobody wants it");
        assert!(request.attempt() < self.attempts());
        let dial = Dial { key: self.key, target: self.target, attempt: request.attempt() };
        assert!(
            network.sockets[client].began + LIMITS.dial_limit > network.now,
            "dialled after the limit"
        );
        network.in_turn.dials += 1;
        network.sockets[client].lacks_descriptor = false;
        network.sockets[client].waits_for = None;
        if network.sockets[client].repeats.take() != Some(dial) && request.attempt() == 0 {
            assert!(!network.is_awaited(self.target, client), "earlier clients wait for it");
            host.judge_pick(self.key, client, network);
            network.sockets[client].assigned = Some(dial);
            network.sockets[client].tenure = host.tenure(self.key);
            network.sockets[client].presence = host.presence(self.key);
        }
        assert!(network.sockets[client].tried.insert(dial), "tried again");
        network.sockets[client].busy.remove(&(self.key, self.target));
        if network.setting.busy && network.one_in(3) {
            tally("busy backends");
            host.has_failed = true;
            network.sockets[client].assigned = None;
            network.forget_tried(client, dial);
            network.were_busy.insert(self.target);
            network.sockets[client].busy.insert((self.key, self.target));
            let name = (self.key, self.target);
            let is_last = host.is_last_for(&network.sockets[client], name);
            network.sockets[client].waits_for = is_last.then_some(self.target);
            return Err(ErrorKind::WouldBlock.into());
        }
        let mishap = network.mishap();
        if let Err(err) = network.take_descriptor().and(mishap.map_or(Ok(()), Err)) {
            network.note_failed(client, dial, &err);
            return Err(err);
        }
        let connect = match network.throw(10) {
            0 => return Err(ErrorKind::ConnectionRefused.into()),
            1 => Connect::Refused,
            2..5 => Connect::Pending,
            _ => Connect::Up,
        };
        let socket = network.add(Some(dial), Some(client), connect);
        network.sockets[client].partner = Some(socket);
        let preface = if network.one_in(5) { network.throw(50) as usize } else { 0 };
        network.sockets[socket].preface = preface;
        drop(world);
        let stream = Wire { world: self.world.clone(), socket };
        Ok(backend::Dial::new(stream).with_preface(vec![b'P'; preface]))
    }

    fn attempts(&self) -> u32 {
        attempts(self.target)
    }
}

impl SimulatedBackend {
    /// Gives an update from within the loop, now and then.
    fn call_in(&self) {
        let Some(control) = &self.control else { return };
        let change = {
            let mut world = self.world.lock();
            let (network, host) = &mut *world;
            if !network.one_in(8) {
                return;
            }
            let change = Change::draw(&mut network.dice);
            host.submitted_meanwhile.push(change.clone());
            change
        };
        let set = backends(&self.world, &change, Some(control));
        let given = match change.limit {
            Some(limit) => control.update_draining(set, limit),
            None => control.update(set),
        };
        assert!(given.is_ok_and(|update| matches!(update.try_wait(), Ok(None))));
    }
}

impl Network {
    /// A dial has failed. If only a descriptor was missing, or the like, or a signal came, it will
    /// be made again.
    fn note_failed(&mut self, client: usize, dial: Dial, err: &io::Error) {
        if crate::net::is_shortage(err) {
            self.note_shortage();
        }
        if crate::net::is_shortage(err) || err.kind() == ErrorKind::Interrupted {
            let client = &mut self.sockets[client];
            client.tried.remove(&dial);
            client.repeats = Some(dial);
            client.lacks_descriptor = crate::net::is_shortage(err);
        }
    }
}

/// The observer.
pub(super) struct Witness(pub(super) World);

impl Observer for Witness {
    fn accepted(&mut self, client: &Client<'_>) {
        let host = &mut self.0.lock().1;
        assert_eq!(client.id, host.accepted);
        host.accepted += 1;
    }

    fn connected(&mut self, connected: &Connected<'_>) {
        let mut world = self.0.lock();
        let (network, host) = &mut *world;
        host.enforce(network);
        let client = &network.sockets[client_of(connected.client.addr)];
        let Some(Socket { dial: Some(Dial { key, target, .. }), connect, .. }) =
            client.partner.map(|partner| &network.sockets[partner])
        else {
            panic!("connected with nobody")
        };
        assert_eq!(
            (*key, *target, *connect),
            (connected.key, connected.target_name, Connect::Known)
        );
        host.judge_connected(key, target, client);
    }

    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        let mut world = self.0.lock();
        let (network, host) = &mut *world;
        host.enforce(network);
        let client = &network.sockets[client_of(failed.client.addr)];
        let is_it = |dial: &&Dial| {
            (dial.key, dial.target, dial.attempt)
                == (failed.key, failed.target_name, failed.attempt)
        };
        let dial = client.tried.iter().find(is_it).expect("failed, and was not tried");
        let backend = client.partner.map(|backend| &network.sockets[backend]);
        let (dial, partner) = (*dial, client.partner);
        let is_its = |backend: &Socket| backend.dial == Some(dial) && !backend.is_over;
        if let Some(backend) = backend.filter(|backend| is_its(backend)) {
            let has_failed = backend.is_broken || backend.connect == Connect::Refused;
            let is_late = backend.began + SHORTEST_SHARE <= network.now;
            assert!(has_failed || is_late, "given up before its time");
            assert!(has_failed || backend.connect != Connect::Up, "given up though connected");
        }
        host.judge_failed_attempt(dial, client);
        if dial.attempt + 1 == attempts(dial.target) {
            network.sockets[client_of(failed.client.addr)].assigned = None;
        }
        if let Some(backend) = partner.filter(|backend| is_its(&network.sockets[*backend])) {
            network.sockets[backend].is_told = true;
        }
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let mut world = self.0.lock();
        let (network, host) = &mut *world;
        host.judge_end(client_of(ended.client.addr), ended, network);
    }

    fn updated(&mut self, applied: &Applied) {
        let mut world = self.0.lock();
        let (network, host) = &mut *world;
        host.judge_report(applied, network);
    }
}
