//! From an accepted client to its backend: picking, dialling, failing over.

use std::io;
use std::time::Instant;

use crate::log::{debug, warn};

use super::accept::ACCEPTS_PER_TURN;
use super::pair::{Candidate, ClientSide, Connecting, Dialling, Pair, Phase, Relaying, Stage};
use super::pair_table::Queue;
use super::token::{End, PairToken};
use super::{Balancer, EventLoop};
use crate::backend::{Dial, DialRequest};
use crate::net;
use crate::observer::{AttemptFailed, Connected};
use crate::relay::{Relay, Side};
use crate::stats::EndReason;

/// What comes of a step towards a backend.
enum Step {
    /// Until an event or a deadline, there is nothing to do.
    Wait(Phase),
    /// There is more to do, in a later turn, since each dial costs time.
    Again(Phase),
    /// No descriptor is left to dial with.
    Starve(Candidate),
    Connected(Relaying),
    End(EndReason),
}

impl EventLoop {
    /// Takes the next step towards a backend, whichever it is.
    pub(super) fn advance(&mut self, slot: usize, now: Instant) {
        self.step(slot, now, |dialler, phase| dialler.advance(phase));
    }

    pub(super) fn attempt_timed_out(&mut self, slot: usize, now: Instant) {
        self.step(slot, now, |dialler, phase| match phase {
            Phase::Connecting(connecting) => {
                dialler.connect_failed(connecting, &io::ErrorKind::TimedOut.into())
            }
            other => Step::Wait(other),
        });
    }

    /// Dials for those who wait for a descriptor, in the order in which they came.
    pub(super) fn retry_fd_waiters(&mut self, now: Instant) {
        if !self.acceptor.resume_if_due(now) {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(&slot) = self.fd_waiters.front() else { return };
            self.step(slot, now, |dialler, phase| match phase {
                Phase::AwaitingFd(candidate) => dialler.advance(Phase::Dial(candidate)),
                other => Step::Wait(other),
            });
            if self.pairs.get_mut(slot).is_some_and(|pair| pair.is_starving()) {
                return; // it keeps its place
            }
            self.fd_waiters.pop_front();
        }
    }

    fn step(
        &mut self,
        slot: usize,
        now: Instant,
        take: impl FnOnce(&mut Dialler<'_>, Phase) -> Step,
    ) {
        let Some((token, Pair { client, stage })) = self.pairs.with_token(slot) else { return };
        let Stage::Dialling(dialling) = stage else { return };
        let phase = dialling.take_phase();
        match take(
            &mut Dialler { balancer: &mut self.balancer, client, dialling, token, now },
            phase,
        ) {
            Step::Wait(phase) => dialling.phase = phase,
            Step::Again(phase) => {
                dialling.phase = phase;
                self.pairs.enqueue(slot, Queue::Ready);
            }
            Step::Starve(candidate) => {
                dialling.phase = Phase::AwaitingFd(candidate);
                if !self.fd_waiters.contains(&slot) {
                    self.fd_waiters.push_back(slot);
                }
                self.acceptor.pause(now);
            }
            Step::Connected(relaying) => *stage = Stage::Relaying(relaying),
            Step::End(reason) => self.end(slot, reason, now),
        }
        self.remind(slot);
    }
}

/// Dials for one client.
struct Dialler<'a> {
    balancer: &'a mut Balancer,
    client: &'a ClientSide,
    dialling: &'a mut Dialling,
    token: PairToken,
    now: Instant,
}

impl Dialler<'_> {
    fn advance(&mut self, phase: Phase) -> Step {
        match phase {
            // Its reminder passes over a pair that is queued, and one whose attempts fail at once always is.
            Phase::Pick | Phase::Dial(_) if self.dialling.is_overdue(self.now) => {
                Step::End(EndReason::DialLimit)
            }
            Phase::Pick => self.pick(),
            Phase::Dial(candidate) => self.dial(candidate),
            Phase::AwaitingFd(_) => Step::Wait(phase), // fed in order: see `feed_starving`
            Phase::Connecting(connecting) => self.check_connecting(connecting),
        }
    }

    fn pick(&mut self) -> Step {
        let is_untried = |key: &_, target_name: &_| !self.dialling.has_tried(key, target_name);
        match self.balancer.pool.pick(self.now, is_untried) {
            Some(assignment) => self.dial(Candidate::new(assignment)),
            None => Step::End(self.balancer.refusal()),
        }
    }

    /// Begins to dial one address.
    fn dial(&mut self, candidate: Candidate) -> Step {
        match self.begin(&candidate) {
            Ok((backend, preface)) => {
                let limits = &self.balancer.config.limits;
                Step::Wait(Phase::Connecting(Connecting::new(
                    backend, preface, candidate, self.now, limits,
                )))
            }
            Err(err) if net::is_shortage(&err) => {
                if let Some(withheld) = self.balancer.shortage_warnings.pass(self.now) {
                    warn!("cannot dial for now: {err}{withheld}");
                }
                Step::Starve(candidate)
            }
            // Says nothing of the backend. In a later turn, lest one that is always interrupted holds up everything.
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {
                Step::Again(Phase::Dial(candidate))
            }
            Err(err) => self.attempt_failed(candidate, &err),
        }
    }

    fn begin(&self, candidate: &Candidate) -> io::Result<(Side, Vec<u8>)> {
        let (client, options) = (self.client, &self.balancer.config.socket_options);
        let request =
            DialRequest::new(client.side.stream(), &client.addr, candidate.attempt, options);
        let Dial { stream, preface } = candidate.assignment.entry.backend().dial(&request)?;
        let mut backend = Side::new(stream);
        backend.register(&self.balancer.registry, self.token.of(End::Backend))?;
        Ok((backend, preface))
    }

    /// Asks the backend's stream whether it is connected, if an event gave reason to.
    fn check_connecting(&mut self, mut connecting: Connecting) -> Step {
        if !std::mem::take(&mut connecting.has_event) {
            return Step::Wait(Phase::Connecting(connecting));
        }
        match connecting.backend.check_connect() {
            Ok(true) => Step::Connected(self.establish(connecting)),
            Ok(false) => Step::Wait(Phase::Connecting(connecting)),
            Err(err) => self.connect_failed(connecting, &err),
        }
    }

    fn connect_failed(
        &mut self,
        Connecting { backend, candidate, .. }: Connecting,
        err: &io::Error,
    ) -> Step {
        backend.cut(&self.balancer.registry);
        self.attempt_failed(candidate, err)
    }

    /// Counts and tells a failed attempt; the next is for a later turn.
    fn attempt_failed(&mut self, mut candidate: Candidate, err: &io::Error) -> Step {
        let Self { client, balancer, .. } = self;
        let entry = &candidate.assignment.entry;
        let (key, target_name, attempt) =
            (entry.shared_key(), entry.shared_target_name(), candidate.attempt);
        debug!(
            "client {} ({}): backend {key} ({target_name}) cannot be reached: {err}",
            client.id, client.addr
        );
        balancer.observer.attempt_failed(&AttemptFailed {
            client: client.info(),
            key,
            target_name,
            attempt,
            error: err,
        });
        balancer.pool.dial_failed(&candidate.assignment);
        self.dialling.note_tried(&candidate.assignment);
        candidate.failed_locally |= net::is_local_failure(err);
        candidate.attempt += 1;
        if candidate.attempt < candidate.assignment.entry.backend().attempts() {
            return Step::Again(Phase::Dial(candidate));
        }
        if !candidate.failed_locally {
            self.backend_failed(&candidate, err);
        }
        Step::Again(Phase::Pick)
    }

    fn backend_failed(&mut self, Candidate { assignment, .. }: &Candidate, err: &io::Error) {
        let Some(time) = self.balancer.pool.backend_failed(assignment, self.now) else { return };
        if let Some(withheld) = self.balancer.ejection_warnings.pass(self.now) {
            let (key, target_name) =
                (assignment.entry.shared_key(), assignment.entry.shared_target_name());
            warn!("backend {key} ({target_name}) is passed over for {time:.1?}: {err}{withheld}");
        }
    }

    /// The backend is connected: from here on bytes are moved.
    fn establish(&mut self, connecting: Connecting) -> Relaying {
        let Self { client, balancer, .. } = self;
        let Connecting { backend, preface, candidate: Candidate { assignment, .. }, .. } =
            connecting;
        let (key, target_name) =
            (assignment.entry.shared_key(), assignment.entry.shared_target_name());
        debug!("client {} ({}): connected with {key} ({target_name})", client.id, client.addr);
        let took = self.now.saturating_duration_since(client.accepted_at);
        balancer.observer.connected(&Connected { client: client.info(), key, target_name, took });
        balancer.totals.dialling -= 1;
        balancer.totals.open += 1;
        balancer.pool.connected(&assignment);
        Relaying { assignment, relay: Relay::new(backend, preface, self.now) }
    }
}

impl Balancer {
    /// Why a client ends for whom there is no candidate left.
    pub(super) fn refusal(&self) -> EndReason {
        if self.pool.is_empty() { EndReason::NoBackend } else { EndReason::BackendsFailed }
    }
}
