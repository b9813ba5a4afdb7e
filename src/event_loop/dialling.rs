//! From an accepted client to its backend: picking, dialling, failing over.

use std::io;
use std::time::Instant;

use log::{debug, warn};

use super::EventLoop;
use super::accepting::ACCEPTS_PER_TURN;
use super::pair::{Candidate, Connecting, Dialling, Phase, Relaying, Stage};
use super::pair_table::Lane;
use super::roster::Assignment;
use super::token::End;
use crate::backend::{Dial, DialRequest};
use crate::net;
use crate::observe::{AttemptFailed, Connected, EndReason};
use crate::relay::Side;

impl EventLoop {
    /// Takes the next step towards a backend, whichever it is.
    pub(super) fn proceed_dialling(&mut self, slot: usize, now: Instant) {
        let Some(dialling) = self.pairs.dialling(slot) else { return };
        match dialling.take_phase() {
            // Its reminder passes over a pair that is queued, and one whose attempts fail at once always is.
            Phase::Pick | Phase::Dial(_) if dialling.is_overdue(now) => self.end(slot, EndReason::DialLimit, now),
            Phase::Pick => self.pick(slot, now),
            Phase::Dial(candidate) => self.dial(slot, candidate, now),
            Phase::Starving(candidate) => dialling.phase = Phase::Starving(candidate), // fed in order: see `feed_starving`
            Phase::Connecting(connecting) => self.check_connecting(slot, connecting, now),
        }
        self.remind(slot);
    }

    fn pick(&mut self, slot: usize, now: Instant) {
        let Some(dialling) = self.pairs.dialling(slot) else { return };
        match self.roster.pick(now, |key, target_name| !dialling.has_tried(key, target_name)) {
            Some(assignment) => self.dial(slot, Candidate { assignment, attempt: 0, is_excused: false }, now),
            None => self.refuse(slot, now),
        }
    }

    /// Ends a client for whom there is no candidate left.
    pub(super) fn refuse(&mut self, slot: usize, now: Instant) {
        let reason = if self.roster.is_empty() { EndReason::NoBackend } else { EndReason::BackendsFailed };
        self.end(slot, reason, now);
    }

    /// Begins to dial one address.
    fn dial(&mut self, slot: usize, candidate: Candidate, now: Instant) {
        let Some(token) = self.pairs.token(slot) else { return };
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        let Stage::Dialling(dialling) = &mut pair.stage else { return };
        let request =
            DialRequest::new(pair.client.stream(), &pair.addr, candidate.attempt, &self.config.socket_options);
        let begun = candidate.assignment.entry.backend().dial(&request).and_then(|Dial { stream, preface }| {
            let mut backend = Side::new(stream);
            backend.register(&self.registry, token.of(End::Backend))?;
            Ok((backend, preface))
        });
        match begun {
            Err(err) if net::is_shortage(&err) => {
                dialling.phase = Phase::Starving(candidate);
                if !self.starving.contains(&slot) {
                    self.starving.push_back(slot);
                }
                self.door.pause(now);
                if let Some(withheld) = self.shortage_warnings.pass(now) {
                    warn!("cannot dial for now: {err}{withheld}");
                }
            }
            // Says nothing of the backend. In a later turn, lest one that is always interrupted holds up everything.
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {
                dialling.phase = Phase::Dial(candidate);
                self.pairs.enqueue(slot, Lane::Ready);
            }
            Err(err) => self.attempt_failed(slot, candidate, &err, now),
            Ok((backend, preface)) => {
                let connecting = Connecting::new(backend, preface, candidate, now, &self.config.limits);
                dialling.phase = Phase::Connecting(connecting);
            }
        }
    }

    /// Asks the backend's stream whether it is connected, if an event gave reason to.
    fn check_connecting(&mut self, slot: usize, mut connecting: Connecting, now: Instant) {
        let checked = match std::mem::take(&mut connecting.is_to_be_checked) {
            true => connecting.backend.check_connect(),
            false => Ok(false),
        };
        match checked {
            Ok(true) => self.establish(slot, connecting, now),
            Ok(false) => {
                let Some(dialling) = self.pairs.dialling(slot) else { return };
                dialling.phase = Phase::Connecting(connecting);
            }
            Err(err) => {
                let Connecting { backend, candidate, .. } = connecting;
                backend.cut(&self.registry);
                self.attempt_failed(slot, candidate, &err, now);
            }
        }
    }

    pub(super) fn attempt_timed_out(&mut self, slot: usize, now: Instant) {
        let Some(dialling) = self.pairs.dialling(slot) else { return };
        if let Phase::Connecting(connecting) = dialling.take_phase() {
            let Connecting { backend, candidate, .. } = connecting;
            backend.cut(&self.registry);
            self.attempt_failed(slot, candidate, &io::ErrorKind::TimedOut.into(), now);
        }
    }

    /// Counts and tells a failed attempt, and queues the client for the next: in a later turn, since each costs time.
    fn attempt_failed(&mut self, slot: usize, mut candidate: Candidate, err: &io::Error, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        let (key, target_name) =
            (candidate.assignment.entry.shared_key(), candidate.assignment.entry.shared_target_name());
        debug!("client {} ({}): backend {key} ({target_name}) cannot be reached: {err}", pair.id, pair.addr);
        let attempt = candidate.attempt;
        self.observer.attempt_failed(&AttemptFailed { client: pair.client(), key, target_name, attempt, error: err });
        self.roster.dial_failed(&candidate.assignment);
        candidate.is_excused |= net::is_local_failure(err);
        candidate.attempt += 1;
        let Stage::Dialling(dialling) = &mut pair.stage else { return };
        dialling.note_tried(&candidate.assignment);
        if candidate.attempt < candidate.assignment.entry.backend().attempts() {
            dialling.phase = Phase::Dial(candidate);
        } else if !candidate.is_excused {
            self.backend_failed(&candidate.assignment, err, now);
        }
        self.pairs.enqueue(slot, Lane::Ready);
    }

    fn backend_failed(&mut self, assignment: &Assignment, err: &io::Error, now: Instant) {
        let Some(time) = self.roster.backend_failed(assignment, now) else { return };
        if let Some(withheld) = self.ejection_warnings.pass(now) {
            let (key, target_name) = (assignment.entry.shared_key(), assignment.entry.shared_target_name());
            warn!("backend {key} ({target_name}) is passed over for {time:.1?}: {err}{withheld}");
        }
    }

    /// Dials for those who wait for a descriptor, in the order in which they came.
    pub(super) fn feed_starving(&mut self, now: Instant) {
        if !self.door.is_unpaused(now) {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(&slot) = self.starving.front() else { return };
            if let Some(candidate) = self.take_starving(slot) {
                match self.pairs.dialling(slot) {
                    Some(dialling) if dialling.is_overdue(now) => self.end(slot, EndReason::DialLimit, now),
                    _ => self.dial(slot, candidate, now),
                }
                self.remind(slot);
            }
            if matches!(self.pairs.dialling(slot), Some(Dialling { phase: Phase::Starving(_), .. })) {
                return; // it keeps its place
            }
            self.starving.pop_front();
        }
    }

    /// What a pair wants to dial, if a descriptor is what it waits for.
    fn take_starving(&mut self, slot: usize) -> Option<Candidate> {
        let dialling = self.pairs.dialling(slot)?;
        match dialling.take_phase() {
            Phase::Starving(candidate) => Some(candidate),
            other => {
                dialling.phase = other;
                None
            }
        }
    }

    /// The backend is connected: from here on bytes are moved.
    fn establish(&mut self, slot: usize, connecting: Connecting, now: Instant) {
        let Some(pair) = self.pairs.get_mut(slot) else { return };
        let Connecting { backend, preface, candidate: Candidate { assignment, .. }, .. } = connecting;
        let (key, target_name) = (assignment.entry.shared_key(), assignment.entry.shared_target_name());
        debug!("client {} ({}): connected with {key} ({target_name})", pair.id, pair.addr);
        let took = now.saturating_duration_since(pair.accepted_at);
        self.observer.connected(&Connected { client: pair.client(), key, target_name, took });
        self.totals.dialling -= 1;
        self.totals.open += 1;
        self.roster.connected(&assignment);
        pair.stage = Stage::Relaying(Relaying::new(assignment, backend, preface, now));
    }
}
