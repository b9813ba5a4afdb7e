//! From an accepted client to its backend: picking, dialling, failing over.

use std::io;
use std::time::{Duration, Instant};

use super::EventLoop;
use super::busy_queue::BusyQueue;
use super::context::Context;
use super::pair::{
    Candidate, ClientInfo, Connecting, DialTimeout, Dialling, Pair, Phase, Relaying, Stage,
};
use super::pair_table::Queue;
use super::token::{PairToken, Role};
use crate::backend::{Dial, DialRequest};
use crate::end_reason::EndReason;
use crate::log::{debug, warn};
use crate::net;
use crate::observer::{AttemptFailed, Connected};
use crate::pool::{Assignment, Id, Picked, Target, Tried};
use crate::relay::{Duplex, Side};
use crate::time::after;

/// The most dials that one turn begins for clients accepted earlier.
pub(super) const DIALS_PER_TURN: usize = 64;
/// The most of them that are for clients that waited for busy targets.
const BUSY_DIALS_PER_TURN: usize = DIALS_PER_TURN / 2;

/// The shortest time that an attempt gets to connect, unless `connect_timeout` is shorter: enough
/// for a lost SYN to be sent again, which Linux does after one second.
const SHORTEST_SHARE: Duration = Duration::from_secs(2);

/// The outcome of a step towards a backend.
enum Step {
    /// There is nothing to do until an event or a timeout.
    Wait(Phase),
    /// A dial is in flight.
    Begun(Connecting),
    /// There is more to do, in a later turn, since each dial costs time.
    Retry(Phase),
    /// No descriptor is left to dial with.
    AwaitDescriptor(Candidate, io::Error),
    /// All backends that are left are busy. The client waits for this target.
    AwaitBusy(Id<Target>),
    Connected {
        assignment: Assignment,
        backend: Side,
        preface: Vec<u8>,
    },
    Close(EndReason),
}

impl EventLoop {
    /// Takes the next step for a client that waits for a backend.
    pub(super) fn advance_dial(&mut self, slot: usize, now: Instant) {
        self.step(slot, now, |dialler, phase| dialler.advance(phase));
    }

    /// Gives up an attempt whose time is over, or the client if the time for all attempts is.
    /// Checks once more first whether the dial in flight is connected.
    pub(super) fn time_out_dial(&mut self, slot: usize, timeout: DialTimeout, now: Instant) {
        self.step(slot, now, |dialler, phase| dialler.time_out(phase, timeout));
        if matches!(self.pairs.get_mut(slot), Some(Pair { stage: Stage::Relaying(_), .. })) {
            self.pairs.enqueue(slot, Queue::Ready);
        }
    }

    /// Takes the next steps of clients that were queued to dial again.
    pub(super) fn drive_dials(&mut self, now: Instant) {
        for _ in 0..self.pairs.queue_len(Queue::Dial).min(self.budget.dials) {
            let Some(slot) = self.pairs.dequeue(Queue::Dial) else { return };
            self.budget.dials -= 1;
            self.advance_dial(slot, now);
        }
    }

    /// Dials for clients that wait for a descriptor, in order of arrival.
    pub(super) fn retry_fd_waiters(&mut self, now: Instant) {
        self.acceptor.expire_pause(now);
        while self.budget.dials > 0 && self.acceptor.paused_until().is_none() {
            let Some(token) = self.fd_waiters.pop_front() else { return };
            // It may have been closed meanwhile.
            let is_waiting = self.pairs.find(token).is_some_and(|pair| pair.awaits_descriptor());
            if is_waiting {
                self.budget.dials -= 1;
                self.step(token.slot, now, |dialler, phase| match phase {
                    Phase::AwaitDescriptor(None) => dialler.advance(Phase::Pick),
                    Phase::AwaitDescriptor(Some(candidate)) => {
                        dialler.advance(Phase::Dial(candidate))
                    }
                    other => Step::Wait(other),
                });
            }
            // It keeps its place if there is still no descriptor.
            if self.fd_waiters.back() == Some(&token) {
                self.fd_waiters.rotate_right(1);
            }
        }
    }

    /// Lets clients that wait for busy targets pick again: the first one of each target, and more
    /// for as long as the target takes them.
    pub(super) fn retry_busy(&mut self, now: Instant) {
        let mut dials = self.budget.dials.min(BUSY_DIALS_PER_TURN);
        while let Some(target) = self.busy_queue.next_due(now) {
            let mut has_room = true;
            while has_room && dials > 0 {
                let Some(token) = self.busy_queue.pop_front(target) else { break };
                if self.pairs.find(token).is_none() {
                    continue; // closed meanwhile
                }
                (dials, self.budget.dials) = (dials - 1, self.budget.dials - 1);
                self.step(token.slot, now, |dialler, phase| {
                    debug_assert!(matches!(phase, Phase::AwaitBusy));
                    dialler.tried.forget_busy();
                    dialler.advance(Phase::Pick)
                });
                has_room = self.pairs.find(token).is_some_and(|pair| pair.is_connecting());
            }
            if dials == 0 {
                return self.busy_queue.put_back(target);
            }
        }
    }

    /// Takes a dialling pair out of its slot, runs `transition` on it, and does what that returns:
    /// puts it back in its next phase, or closes it.
    fn step(
        &mut self,
        slot: usize,
        now: Instant,
        transition: impl FnOnce(&mut Dialler<'_>, Phase) -> Step,
    ) {
        let (token, Pair { client_info, stage }) = self.pairs.lend(slot);
        let Stage::Dialling(dialling) = stage else {
            unreachable!("only dialling pairs are stepped")
        };
        let Dialling { client, mut tried, dial_deadline, phase } = dialling;
        let step = transition(
            &mut Dialler {
                cx: &mut self.cx,
                busy_queue: &self.busy_queue,
                client_info: &client_info,
                client: &client,
                tried: &mut tried,
                dial_deadline,
                token,
                now,
            },
            phase,
        );
        let is_retried = matches!(step, Step::Retry(_));
        let phase = match step {
            Step::Wait(phase) | Step::Retry(phase) => phase,
            Step::Begun(connecting) => {
                if !tried.busy().is_empty() {
                    // It has found a target with room, maybe for others too.
                    self.busy_queue.retry_now(now);
                }
                Phase::Connecting(connecting)
            }
            Step::AwaitDescriptor(candidate, err) => {
                self.fd_waiters.push_back(token);
                self.acceptor.pause(err, now);
                Phase::AwaitDescriptor(Some(candidate))
            }
            Step::AwaitBusy(target) => {
                self.busy_queue.push(target, client_info.id, token, now);
                Phase::AwaitBusy
            }
            Step::Connected { assignment, backend, preface } => {
                let duplex = Duplex::new(client, backend, preface, now);
                let stage = Stage::Relaying(Relaying { assignment, duplex });
                return self.pairs.put_back(slot, Pair { client_info, stage });
            }
            Step::Close(reason) => {
                self.pairs.vacate(slot);
                self.cx.count_refused(&client_info, client.failure(), reason, now);
                return self.close(client, None);
            }
        };
        let dialling = Dialling { client, tried, dial_deadline, phase };
        self.timers.arm(slot, dialling.deadline());
        self.pairs.put_back(slot, Pair { client_info, stage: Stage::Dialling(dialling) });
        if is_retried {
            self.pairs.enqueue(slot, Queue::Dial);
        }
    }
}

/// Dials for one client.
struct Dialler<'a> {
    cx: &'a mut Context,
    busy_queue: &'a BusyQueue,
    client_info: &'a ClientInfo,
    client: &'a Side,
    tried: &'a mut Tried,
    dial_deadline: Instant,
    token: PairToken,
    now: Instant,
}

impl Dialler<'_> {
    /// Does what a phase has to do next.
    fn advance(&mut self, phase: Phase) -> Step {
        match phase {
            // Too late: its timer closes it next. The timer could not fire while it was queued.
            Phase::Pick | Phase::Dial(_) if self.dial_deadline <= self.now => Step::Wait(phase),
            Phase::Pick => self.pick(),
            Phase::Dial(candidate) => self.dial(candidate),
            // `retry_fd_waiters` and `retry_busy` try these again.
            Phase::AwaitDescriptor(_) | Phase::AwaitBusy => Step::Wait(phase),
            Phase::Connecting(connecting) => self.poll_connect(connecting),
        }
    }

    /// Does what a timeout asks for, unless the dial turns out to be connected.
    fn time_out(&mut self, phase: Phase, timeout: DialTimeout) -> Step {
        let step = match phase {
            Phase::Connecting(mut connecting) => match connecting.backend.poll_connect() {
                Ok(true) => return self.connected(connecting),
                Err(err) => self.connect_failed(connecting, &err),
                Ok(false) if timeout == (DialTimeout::All { attempt_too: false }) => {
                    Step::Wait(Phase::Connecting(connecting))
                }
                Ok(false) => self.connect_failed(connecting, &io::ErrorKind::TimedOut.into()),
            },
            other => Step::Wait(other),
        };
        match (step, timeout) {
            (Step::Wait(phase) | Step::Retry(phase), DialTimeout::All { .. }) => {
                let (assignment, backend) = phase.into_parts();
                if let Some(assignment) = assignment {
                    self.cx.pool.release(assignment);
                }
                if let Some(backend) = backend {
                    backend.close(&self.cx.registry);
                }
                Step::Close(EndReason::DialLimit)
            }
            (step, _) => step,
        }
    }

    fn pick(&mut self) -> Step {
        let is_awaited = |target| self.busy_queue.has_earlier(target, self.client_info.id);
        match self.cx.pool.pick(self.tried, is_awaited) {
            Picked::Backend(assignment) => self.dial(Candidate::new(assignment, self.now)),
            Picked::Busy(target) => Step::AwaitBusy(target),
            Picked::Awaited => Step::Retry(Phase::Pick),
            Picked::None => Step::Close(self.cx.refusal()),
        }
    }

    /// Gives up a busy backend for now. The next one is dialled in a later turn.
    fn busy(&mut self, candidate: Candidate) -> Step {
        self.cx.pool.backend_busy(candidate.assignment, self.tried);
        match self.cx.pool.must_wait(self.tried) {
            Some(target) => Step::AwaitBusy(target),
            None => Step::Retry(Phase::Pick),
        }
    }

    /// Begins to dial one address.
    fn dial(&mut self, mut candidate: Candidate) -> Step {
        candidate.dialled_at = self.now;
        let begun = match self.begin_dial(&candidate) {
            // Empty pipes can spare their descriptors.
            Err(err) if net::is_shortage(&err) && self.cx.pipes.close_empty(self.now) => {
                self.begin_dial(&candidate)
            }
            begun => begun,
        };
        match begun {
            Ok((backend, preface)) => {
                let attempt_deadline = after(self.now, self.attempt_limit(&candidate));
                let has_event = false;
                let dial = Connecting { backend, preface, candidate, attempt_deadline, has_event };
                Step::Begun(dial)
            }
            Err(err) => self.begin_failed(candidate, err),
        }
    }

    /// Returns what follows from a dial that could not begin.
    fn begin_failed(&mut self, mut candidate: Candidate, err: io::Error) -> Step {
        if net::is_shortage(&err) {
            return self.await_descriptor(candidate, err);
        }
        match err.kind() {
            // In a later turn: a backend that is always interrupted would hold up everyone else.
            io::ErrorKind::Interrupted => return Step::Retry(Phase::Dial(candidate)),
            io::ErrorKind::WouldBlock => return self.busy(candidate),
            _ => {}
        }
        if net::is_local_failure(&err) {
            if let Some(suppressed) = self.cx.port_warnings.pass(self.now) {
                let name = candidate.attempt_name();
                warn!("no local address or port to reach {name}: {err}{suppressed}");
            }
        } else {
            candidate.has_failed = true;
        }
        self.attempt_failed(candidate, &err)
    }

    /// Keeps a candidate until there is a descriptor to dial with.
    fn await_descriptor(&mut self, mut candidate: Candidate, err: io::Error) -> Step {
        self.cx.pool.give_up_probe(&mut candidate.assignment);
        if let Some(suppressed) = self.cx.dial_warnings.pass(self.now) {
            warn!("cannot dial for now: {err}{suppressed}");
        }
        Step::AwaitDescriptor(candidate, err)
    }

    /// Returns how long an attempt may take: its fair share of the client's remaining time, but at
    /// most `connect_timeout`. It is at least `SHORTEST_SHARE`: a timeout below that would say
    /// nothing about the backend.
    fn attempt_limit(&mut self, candidate: &Candidate) -> Duration {
        let Candidate { assignment, attempt, .. } = candidate;
        let connect_timeout = self.cx.config.limits.connect_timeout;
        let addresses = assignment.entry().backend().attempts().saturating_sub(*attempt);
        let others = self.cx.pool.others_left(assignment, self.tried);
        let candidates = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(addresses.max(1));
        let share = self.dial_deadline.saturating_duration_since(self.now) / candidates;
        share.max(SHORTEST_SHARE).min(connect_timeout)
    }

    fn begin_dial(&self, candidate: &Candidate) -> io::Result<(Side, Vec<u8>)> {
        let (addr, options) = (&self.client_info.addr, &self.cx.config.socket_options);
        let request = DialRequest::new(self.client.stream(), addr, candidate.attempt, options);
        let Dial { stream, preface } = candidate.assignment.entry().backend().dial(&request)?;
        let mut backend = Side::new(stream);
        backend.register(&self.cx.registry, self.token.of(Role::Backend))?;
        Ok((backend, preface))
    }

    /// Asks the backend's stream whether it is connected, if an event has come since the last time.
    fn poll_connect(&mut self, mut connecting: Connecting) -> Step {
        if !std::mem::take(&mut connecting.has_event) {
            return Step::Wait(Phase::Connecting(connecting));
        }
        match connecting.backend.poll_connect() {
            Ok(true) => self.connected(connecting),
            Ok(false) => Step::Wait(Phase::Connecting(connecting)),
            Err(err) => self.connect_failed(connecting, &err),
        }
    }

    /// Counts and reports a dial that succeeded.
    fn connected(&mut self, connecting: Connecting) -> Step {
        let Connecting { backend, preface, candidate: Candidate { mut assignment, .. }, .. } =
            connecting;
        let Self { client_info, cx, .. } = self;
        let (key, target_name) = (assignment.key(), assignment.target_name());
        debug!(
            "client {} ({}): connected to {key} ({target_name})",
            client_info.id, client_info.addr
        );
        let took = self.now.saturating_duration_since(client_info.accepted_at);
        cx.observer.connected(&Connected {
            client: client_info.observed(),
            key,
            target_name,
            took,
        });
        cx.counters.dialling -= 1;
        cx.counters.open += 1;
        cx.pool.connected(&mut assignment);
        Step::Connected { assignment, backend, preface }
    }

    /// Closes the stream of a dial that failed after it had begun.
    fn connect_failed(&mut self, mut connecting: Connecting, err: &io::Error) -> Step {
        connecting.backend.close(&self.cx.registry);
        connecting.candidate.has_failed = true;
        self.attempt_failed(connecting.candidate, err)
    }

    /// Counts and reports a failed attempt. The next one is for a later turn.
    fn attempt_failed(&mut self, mut candidate: Candidate, err: &io::Error) -> Step {
        let Self { client_info, cx, .. } = self;
        let (key, target_name) = (candidate.assignment.key(), candidate.assignment.target_name());
        let name = candidate.attempt_name();
        debug!(
            "client {} ({}): cannot reach {key} ({name}): {err}",
            client_info.id, client_info.addr
        );
        cx.observer.attempt_failed(&AttemptFailed {
            client: client_info.observed(),
            key,
            target_name,
            attempt: candidate.attempt,
            error: err,
            took: self.now.saturating_duration_since(candidate.dialled_at),
        });
        cx.pool.dial_failed(&candidate.assignment, err, self.now);
        candidate.attempt += 1;
        if candidate.attempt < candidate.assignment.entry().backend().attempts() {
            return Step::Retry(Phase::Dial(candidate));
        }
        self.backend_failed(candidate, err);
        Step::Retry(Phase::Pick)
    }

    /// Gives up a backend for this client, after its last address has failed.
    fn backend_failed(&mut self, candidate: Candidate, err: &io::Error) {
        let Candidate { assignment, has_failed, .. } = candidate;
        let entry = assignment.shared_entry();
        let (cx, now) = (&mut *self.cx, self.now);
        let ejected_for = cx.pool.backend_failed(assignment, has_failed, self.tried, now);
        let Some(time) = ejected_for else { return };
        if let Some(suppressed) = cx.ejection_warnings.pass(now) {
            let (key, target_name) = (entry.key(), entry.target_name());
            warn!("backend {key} ({target_name}) is ejected for {time:.1?}: {err}{suppressed}");
        }
    }
}
