//! What the host has asked of the balancer, what it was told, and so what must hold.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::super::steps::{Change, KEYS, Names, Weights, not_held};
use super::super::tally::tally;
use super::network::{Connect, Dial, Network, Socket};
use crate::end_reason::EndReason;
use crate::event_loop::Limits;
use crate::net::Readiness;
use crate::observer::{BackendRef, Ended};
use crate::pool::Policy;
use crate::stats::{Applied, Usage};

pub(super) const LIMITS: Limits = Limits {
    connect_timeout: Duration::from_secs(5),
    dial_limit: Duration::from_secs(12),
    idle_timeout: Some(Duration::from_secs(90)),
    half_closed_timeout: Duration::from_secs(20),
};

/// The shortest time that an attempt gets.
pub(super) const SHORTEST_SHARE: Duration = Duration::from_secs(2);

/// How long at most a balancer that lacks a descriptor waits before it tries again.
pub(super) const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// After how long a busy backend is tried again.
pub(super) const BUSY_RETRY: Duration = Duration::from_millis(5);

/// What the host knows.
#[derive(Default)]
pub(super) struct Host {
    /// The set in force.
    pub(super) set: Names,
    pub(super) weights: Weights,
    /// The updates that are to be in force after the next turn's commands.
    pub(super) submitted: Vec<Change>,
    /// Those that were given in the course of a turn.
    pub(super) submitted_meanwhile: Vec<Change>,
    /// Until when the pairs of vanished targets may go on.
    pub(super) draining: BTreeMap<&'static str, Instant>,
    pub(super) drain_until: Option<Instant>,
    pub(super) is_shut_down: bool,
    /// The listener has been deregistered.
    pub(super) is_closed_to_clients: bool,
    /// The balancer is dropped without being shut down.
    pub(super) is_abandoned: bool,
    /// The key served last.
    cursor: Option<&'static str>,
    /// What was picked since the weights have been as they are.
    picks: Vec<&'static str>,
    /// A dial has failed: another backend had more turns than its own since.
    pub(super) has_failed: bool,
    tenures: BTreeMap<&'static str, u64>,
    presences: BTreeMap<&'static str, u64>,
    /// A bound on how often in a row a key's target has failed: attempts, where the balancer counts
    /// backends.
    failed_dials: BTreeMap<(&'static str, &'static str), u32>,
    /// What has been told.
    pub(super) accepted: u64,
    pub(super) ended: HashSet<u64>,
    pub(super) refusals: BTreeMap<EndReason, u64>,
    pub(super) ends: BTreeMap<EndReason, u64>,
    /// What the keys of the set were used for, and those that are gone together.
    pub(super) usage: BTreeMap<&'static str, Usage>,
    pub(super) departed: Usage,
    /// The sockets of pairs whose target was removed by the update that is being applied.
    removed: Vec<usize>,
    /// The sockets of dials that it has cancelled.
    pub(super) cancelled: Vec<usize>,
    /// The same of updates in force that were not reported as applied yet, and how many keys were
    /// added, removed and changed.
    unreported: VecDeque<(Vec<usize>, Vec<usize>, [usize; 3])>,
    pub(super) reports: Vec<Applied>,
}

impl Host {
    /// The set that governs what happens after the commands of the turn.
    fn next_set(&self) -> (&Names, &Weights) {
        let next = self.submitted.last().map(|change| (&change.names, &change.weights));
        next.unwrap_or((&self.set, &self.weights))
    }

    /// The keys that clients may be given then.
    fn next_open(&self) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
        let (names, weights) = self.next_set();
        not_held(names, weights)
    }

    pub(super) fn is_named(&self, target: &str) -> bool {
        self.next_set().0.values().any(|named| *named == target)
    }

    pub(super) fn is_open(&self, target: &str) -> bool {
        self.next_open().any(|(_, named)| named == target)
    }

    /// The updates that were submitted are in force: something happens that comes after the
    /// commands of a turn.
    pub(super) fn enforce(&mut self, network: &mut Network) {
        if self.submitted.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut self.submitted);
        self.cancel_dials(&changes, network);
        judge_removal(&changes, network);
        let open: BTreeSet<_> =
            network.connected().map(|(_, backend)| network.target(backend)).collect();
        for Change { names, limit, .. } in &changes {
            for target in &open {
                match limit {
                    _ if names.values().any(|named| named == target) => {
                        self.draining.remove(target);
                    }
                    None => _ = self.draining.remove(target),
                    Some(limit) => {
                        let until = network.now + *limit;
                        let earliest =
                            self.draining.get(target).map_or(until, |earlier| until.min(*earlier));
                        self.draining.insert(target, earliest);
                    }
                }
            }
        }
        self.draining.retain(|target, _| open.contains(target));
        let last = changes.into_iter().next_back();
        let (set, weights) = last.map(|change| (change.names, change.weights)).unwrap_or_default();
        let difference = self.difference(&set, &weights);
        network.sockets.iter_mut().for_each(|socket| socket.waits_for = None);
        if weights != self.weights {
            self.picks.clear();
        }
        self.weights = weights;
        for key in KEYS.into_iter().filter(|key| set.get(key) != self.set.get(key)) {
            *self.tenures.entry(key).or_default() += 1;
            self.failed_dials.retain(|(failed, _), _| *failed != key);
        }
        for key in self.set.keys().filter(|key| !set.contains_key(*key)) {
            *self.presences.entry(key).or_default() += 1;
            self.departed += self.usage.remove(key).unwrap_or_default();
        }
        self.set = set;
        self.unreported.push_back((
            std::mem::take(&mut self.removed),
            std::mem::take(&mut self.cancelled),
            difference,
        ));
    }

    /// How many keys another set adds, removes and changes.
    fn difference(&self, set: &Names, weights: &Weights) -> [usize; 3] {
        let is_changed = |key: &&&str| {
            let key = **key;
            (self.set.get(key), self.weights.get(key)) != (set.get(key), weights.get(key))
        };
        let kept = set.keys().filter(|key| self.set.contains_key(*key));
        [
            set.keys().filter(|key| !self.set.contains_key(*key)).count(),
            self.set.keys().filter(|key| !set.contains_key(*key)).count(),
            kept.filter(is_changed).count(),
        ]
    }

    /// Dials of targets that are gone, drain or are held are cancelled, and what was to be dialled
    /// again is not. They do not count as tried.
    fn cancel_dials(&mut self, changes: &[Change], network: &mut Network) {
        let is_kept = |target: &str| keeps_dials(changes, target);
        for socket in network.live().collect::<Vec<_>>() {
            if let Socket { dial: Some(dial), connect, partner: Some(client), .. } =
                network.sockets[socket]
            {
                if connect != Connect::Known && !is_kept(dial.target) {
                    self.cancel(Some(socket), network);
                    network.forget_tried(client, dial);
                }
                continue;
            }
            let is_connected = network.is_connected(&network.sockets[socket]);
            if !is_connected && network.sockets[socket].assigned.is_some_and(|d| !is_kept(d.target))
            {
                network.sockets[socket].assigned = None;
            }
            let half_tried = network.half_tried(socket);
            for dial in half_tried.into_iter().filter(|dial| !is_kept(dial.target)) {
                network.forget_tried(socket, dial);
            }
            let socket = &mut network.sockets[socket];
            if socket.repeats.is_some_and(|dial| !is_kept(dial.target)) {
                socket.repeats = None;
            }
        }
    }

    /// Whether the updates that are to be in force leave the dials to a target alone.
    pub(super) fn keeps_dials_to(&self, target: &str) -> bool {
        keeps_dials(&self.submitted, target)
    }

    /// Whether a client has to wait for a backend that is busy, since no other is left to it.
    pub(super) fn is_last_for(&self, client: &Socket, name: (&'static str, &'static str)) -> bool {
        let is_left = |(key, target)| !client.tried.contains(&Dial { key, target, attempt: 0 });
        not_held(&self.set, &self.weights).filter(|name| is_left(*name)).eq([name])
    }

    fn cancel(&mut self, dial: Option<usize>, network: &mut Network) {
        if let Some(socket) = dial {
            network.sockets[socket].is_over = true;
            self.cancelled.push(socket);
        }
    }

    /// A backend was picked for a client: by the policy if it is the first for this client, or else
    /// in rotation order.
    pub(super) fn judge_pick(&mut self, key: &'static str, client: usize, network: &Network) {
        let Socket { tried, .. } = &network.sockets[client];
        let mut weights = self.weights.values().filter(|weight| **weight > 0);
        let first = weights.next();
        let is_weighted = weights.any(|weight| Some(weight) != first);
        self.picks.push(key);
        match network.setting.policy {
            _ if !tried.is_empty() => self.judge_order(key, client, network, |_| 0),
            Policy::RoundRobin if is_weighted => self.judge_shares(),
            Policy::RoundRobin => self.judge_order(key, client, network, |_| 0),
            // In rotation order, or by load if it may try the busy ones again.
            Policy::LeastConnections if !network.were_busy.is_empty() => {}
            Policy::LeastConnections => self.judge_order(key, client, network, |(key, target)| {
                let is_its = |(_, dial): &(&Socket, Dial)| dial.target == target;
                // 12 is a multiple of all weights.
                network.assigned().filter(is_its).count() as u32 * (12 / self.weights[key])
            }),
        }
        self.cursor = Some(key);
    }

    /// The backend of the least load was picked, the first of those after the one served last, but
    /// for those that the client has tried or that may be ejected.
    fn judge_order(
        &self,
        key: &str,
        client: usize,
        network: &Network,
        load: impl Fn((&'static str, &'static str)) -> u32,
    ) {
        let Socket { tried, busy, .. } = &network.sockets[client];
        let order = not_held(&self.set, &self.weights);
        let (after, before): (Vec<_>, Vec<_>) =
            order.partition(|(key, _)| self.cursor.is_none_or(|cursor| *key > cursor));
        let order: Vec<_> = after.into_iter().chain(before).collect();
        let picked = order.iter().position(|(open, _)| *open == key);
        let picked = picked.expect("a held backend was picked");
        for (place, &(passed, target)) in order.iter().enumerate() {
            let failed = self.failed_dials.get(&(passed, target)).copied().unwrap_or(0);
            let limit = network.setting.ejecting_failures;
            let may_be_ejected = limit > 0 && failed >= limit;
            let is_tried = tried.contains(&Dial { key: passed, target, attempt: 0 });
            let is_in_order = may_be_ejected
                || is_tried
                || busy.contains(&(passed, target))
                || (load((passed, target)), place) >= (load(order[picked]), picked);
            if !is_in_order {
                tally("backends left to earlier clients");
                assert!(network.were_busy.contains(target), "{passed} is skipped for {key}");
            }
        }
    }

    /// As long as nothing fails, each backend has its share, and not much of it in a row.
    fn judge_shares(&self) {
        let Some(last) = self.picks.last().filter(|_| !self.has_failed) else { return };
        let sum: u32 = self.weights.values().sum();
        assert!(self.weights[last] > 0, "a held backend was picked");
        for (key, weight) in &self.weights {
            let count = self.picks.iter().filter(|picked| *picked == key).count() as u32;
            let (served, share) = (count * sum, self.picks.len() as u32 * weight);
            assert!(
                served.abs_diff(share) <= 3 * sum,
                "{key}, of {:?}: {:?}",
                self.weights,
                self.picks
            );
        }
        let run = self.picks.iter().rev().take_while(|picked| *picked == last).count() as u32;
        let weight = self.weights[last];
        assert!(run <= weight.div_ceil(sum - weight), "{:?}: {:?}", self.weights, self.picks);
    }

    pub(super) fn judge_failed_attempt(&mut self, dial: Dial, client: &Socket) {
        self.has_failed = true;
        self.usage(dial.key, client).dial_failures += 1;
        *self.failed_dials.entry((dial.key, dial.target)).or_default() += 1;
    }

    pub(super) fn judge_connected(
        &mut self,
        key: &'static str,
        target: &'static str,
        client: &Socket,
    ) {
        let usage = self.usage(key, client);
        (usage.open, usage.total) = (usage.open + 1, usage.total + 1);
        if client.tenure == self.tenure(key) {
            self.failed_dials.remove(&(key, target));
        }
    }

    /// Where it is counted what a key was used for that was picked for a client.
    pub(super) fn usage(&mut self, key: &'static str, client: &Socket) -> &mut Usage {
        match client.presence == self.presence(key) {
            true => self.usage.entry(key).or_default(),
            false => &mut self.departed,
        }
    }

    /// Tells apart the times for which a key has been in the set without a break.
    pub(super) fn presence(&self, key: &str) -> u64 {
        self.presences.get(key).copied().unwrap_or(0)
    }

    /// Tells apart the times for which a key has had one target without a break.
    pub(super) fn tenure(&self, key: &str) -> u64 {
        self.tenures.get(key).copied().unwrap_or(0)
    }

    /// A client has come to its end: it must be for a reason that fits.
    pub(super) fn judge_end(&mut self, client: usize, ended: &Ended<'_>, network: &mut Network) {
        assert!(self.ended.insert(ended.client.id), "ended twice");
        if matches!(ended.reason, EndReason::Shutdown | EndReason::DrainLimit) {
            self.enforce(network); // updates come first
        }
        assert!(self.fits(client, ended, network), "not a case of {:?}", ended.reason);
        let socket = &network.sockets[client];
        assert_eq!(ended.lasted, network.now - socket.began);
        let backend = socket.partner.filter(|_| ended.backend.is_some());
        let bytes = [backend.map_or(0, |backend| network.sockets[backend].taken), socket.taken];
        assert_eq!([ended.bytes_up, ended.bytes_down], bytes.map(|bytes| bytes as u64));
        if let Some(Dial { key, target, .. }) =
            backend.and_then(|backend| network.sockets[backend].dial)
        {
            assert_eq!(ended.backend, Some(BackendRef { key, target_name: target }));
            self.usage(key, &network.sockets[client]).open -= 1;
        }
        if let Some(deadline) = self.deadline_of(client, ended, network) {
            judge_timeout(deadline, client, network);
        }
        let socket = &network.sockets[client];
        if let (EndReason::DialLimit, Some(dial)) = (ended.reason, socket.partner) {
            let dial = &network.sockets[dial];
            let is_told = dial.is_told || dial.is_dropped || dial.is_over;
            assert!(
                is_told
                    || network
                        .complete_until
                        .is_none_or(|until| dial.began + LIMITS.connect_timeout > until),
                "a failure is not told"
            );
        }
        if let Some(backend) = backend.filter(|_| !network.setting.failures) {
            judge_last_words(ended.reason, &network.sockets[client], &network.sockets[backend]);
            judge_last_words(ended.reason, &network.sockets[backend], &network.sockets[client]);
            judge_complete_stream(ended.reason, client, backend, network);
            judge_complete_stream(ended.reason, backend, client, network);
        }
        // Refused as an update takes effect, or stopped in the same turn.
        let may_be_cancelled = matches!(
            ended.reason,
            EndReason::NoBackend
                | EndReason::BackendsFailed
                | EndReason::Shutdown
                | EndReason::DrainLimit
        );
        if may_be_cancelled {
            let is_cancelled = |dial: &usize| {
                let socket = &network.sockets[*dial];
                let target = network.target(*dial);
                let is_dial = network.is_live(*dial) && socket.connect != Connect::Known;
                is_dial && !self.submitted.is_empty() && !keeps_dials(&self.submitted, target)
            };
            self.cancel(network.sockets[client].partner.filter(is_cancelled), network);
        }
        let is_unwatched = ended.reason == EndReason::LocalFailure;
        if !is_unwatched {
            network.paused_until = None; // there is room again
        }
        let counts = if backend.is_some() { &mut self.ends } else { &mut self.refusals };
        *counts.entry(ended.reason).or_default() += 1;
        network.sockets[client].assigned = None;
        // The dial in flight, which may be closed later.
        if let (None, Some(dial)) = (backend, network.sockets[client].partner) {
            network.sockets[dial].is_over = true;
        }
        for socket in [Some(client), backend].into_iter().flatten() {
            network.sockets[socket].is_over = true;
            network.sockets[socket].is_unwatched = is_unwatched;
            network.sockets[socket].is_finished |= ended.reason == EndReason::Finished;
            if Some(socket) == backend {
                network.sockets[socket].must_be_aborted = match ended.reason {
                    EndReason::TargetRemoved => Some(true),
                    EndReason::DrainLimit => {
                        self.draining_of(socket, network).is_none().then_some(false)
                    }
                    _ => Some(false),
                };
            }
            if ended.reason == EndReason::TargetRemoved {
                self.removed.push(socket);
            }
        }
    }

    /// Until when the pairs of a backend's target may go on, if it drains.
    fn draining_of(&self, backend: usize, network: &Network) -> Option<Instant> {
        self.draining.get(network.target(backend)).copied()
    }

    /// When the timeout was due that has ended a pair, if it was one.
    fn deadline_of(&self, client: usize, ended: &Ended<'_>, network: &Network) -> Option<Instant> {
        let socket = &network.sockets[client];
        let partner = socket.partner.map(|partner| &network.sockets[partner]);
        let active_at = partner.map_or(socket.active_at, |to| to.active_at.max(socket.active_at));
        match ended.reason {
            EndReason::IdleTimeout => LIMITS.idle_timeout.map(|limit| active_at + limit),
            EndReason::HalfClosedTimeout => Some(active_at + LIMITS.half_closed_timeout),
            EndReason::DialLimit => Some(socket.began + LIMITS.dial_limit),
            _ => None,
        }
    }

    fn fits(&self, client: usize, ended: &Ended<'_>, network: &Network) -> bool {
        let now = network.now;
        let socket = &network.sockets[client];
        let partner = socket.partner.map(|backend| &network.sockets[backend]);
        let target = ended.backend.map(|backend| backend.target_name);
        let active_at =
            socket.active_at.max(partner.map_or(socket.active_at, |partner| partner.active_at));
        let is_past = |limit: Option<&Instant>| limit.is_some_and(|limit| *limit <= now);
        match ended.reason {
            EndReason::Finished => socket.partner.is_some_and(|backend| {
                [client, backend].iter().all(|&side| network.is_ended_by_now(side))
            }),
            EndReason::ClientFailed => socket.is_broken,
            EndReason::BackendFailed => partner.is_some_and(|partner| partner.is_broken),
            EndReason::TargetRemoved => target
                .is_some_and(|target| self.submitted.iter().any(|change| change.closes(target))),
            EndReason::DrainLimit => {
                is_past(target.and_then(|target| self.draining.get(target)))
                    || is_past(self.drain_until.as_ref())
            }
            EndReason::IdleTimeout => {
                LIMITS.idle_timeout.is_some_and(|limit| active_at + limit <= now)
            }
            EndReason::HalfClosedTimeout => {
                let has_one_ended =
                    socket.end_was_read || partner.is_some_and(|partner| partner.end_was_read);
                has_one_ended && active_at + LIMITS.half_closed_timeout <= now
            }
            EndReason::Shutdown => self.is_shut_down,
            EndReason::NoBackend => self.next_open().next().is_none(),
            EndReason::BackendsFailed => {
                let has_tried =
                    |(key, target)| socket.tried.contains(&Dial { key, target, attempt: 0 });
                self.next_open().next().is_some() && self.next_open().all(has_tried)
            }
            EndReason::DialLimit => socket.began + LIMITS.dial_limit <= now,
            EndReason::LocalFailure => socket.token.is_none(),
        }
    }

    /// Updates are reported as applied: by now all that they removed is closed.
    pub(super) fn judge_report(&mut self, applied: &Applied, network: &mut Network) {
        let is_immediate = self.unreported.is_empty();
        if is_immediate {
            self.enforce(network);
        }
        if is_immediate && !self.is_shut_down && self.drain_until.is_none() {
            let drains = |pair: &(usize, usize)| self.draining.contains_key(network.target(pair.1));
            assert_eq!(applied.draining, network.connected().filter(drains).count());
            assert_eq!(applied.backends, self.set.len());
        }
        let (removed, cancelled, difference) =
            self.unreported.pop_front().expect("reported, and nothing was submitted");
        assert_eq!((applied.closed * 2, applied.cancelled), (removed.len(), cancelled.len()));
        assert_eq!([applied.added, applied.removed, applied.changed], difference);
        assert!(
            removed.iter().chain(&cancelled).all(|&socket| network.sockets[socket].is_dropped),
            "reported before all is closed"
        );
        self.reports.push(*applied);
    }

    /// Whether an update is in force that is not reported as applied yet.
    pub(super) fn has_unreported(&self) -> bool {
        !self.unreported.is_empty()
    }

    /// Bytes may be moved on a socket: both of its pair are connected, and its target may have
    /// pairs. Returns the other.
    pub(super) fn judge_transfer(&mut self, socket: usize, network: &mut Network) -> usize {
        self.enforce(network);
        let partner =
            network.sockets[socket].partner.expect("bytes are moved of a client without a backend");
        let backend = if network.sockets[socket].dial.is_some() { socket } else { partner };
        assert!(!network.sockets[socket].is_over, "bytes are moved after the end");
        assert_eq!(
            network.sockets[backend].connect,
            Connect::Known,
            "bytes are moved before the connect"
        );
        let target = network.target(backend);
        assert!(
            self.is_named(target) || self.draining.contains_key(target),
            "bytes are moved of a vanished target"
        );
        partner
    }
}

/// Whether a target may still be dialled after these updates.
fn keeps_dials(changes: &[Change], target: &str) -> bool {
    changes.last().is_some_and(|last| last.is_open(target))
        && !changes.iter().any(|change| change.closes(target))
}

/// Updates are in force: whatever has lost its target by any of them is over, though the target may
/// have come back.
fn judge_removal(changes: &[Change], network: &Network) {
    let is_closed = |target: &str| changes.iter().any(|change| change.closes(target));
    let is_open = |target: &str| changes.last().is_some_and(|last| last.is_open(target));
    for socket in network.live() {
        let Socket { dial: Some(Dial { target, .. }), connect, .. } = network.sockets[socket]
        else {
            continue;
        };
        assert!(!is_closed(target), "goes on though its target was removed");
        assert!(connect == Connect::Known || is_open(target), "still dialled though it drains");
    }
}

/// A timeout has ended a pair: nothing was unread that had come before it was due.
fn judge_timeout(deadline: Instant, client: usize, network: &Network) {
    let side = &network.sockets[client];
    let is_early = |since: Option<Instant>| since.is_some_and(|since| since <= deadline);
    let is_connected = |socket: &Socket| socket.connect == Connect::Known;
    let sides = [Some(side), side.partner.map(|partner| &network.sockets[partner])];
    for (side, other) in [(sides[0], sides[1]), (sides[1], sides[0])] {
        let Some(side) = side.filter(|side| !side.is_dropped) else { continue };
        assert!(!is_early(side.event_since), "timed out while an event was unread");
        // A dial that an update has cancelled may still have to be closed.
        assert!(side.connect != Connect::Up || side.is_over, "timed out though it is connected");
        let Some(other) = other.filter(|other| is_connected(other) && is_connected(side)) else {
            continue;
        };
        // An event that is not read yet tells that it was blocked until a moment ago.
        let is_blocked = other.is_blocked || other.event.writable;
        let may_move = !is_blocked && !other.is_broken && !side.is_broken;
        assert!(!(may_move && is_early(side.unread_since)), "timed out while bytes were unread");
        let is_steady = other.rate.is_some() && other.taken < other.preface + side.sent;
        assert!(!(is_steady && other.is_blocked), "timed out though a steady reader reads");
    }
}

/// A pair ends by the failure of a side, whose stream had ended before: that end is passed on.
fn judge_complete_stream(reason: EndReason, from: usize, to: usize, network: &mut Network) {
    let has_failed = matches!(reason, EndReason::ClientFailed | EndReason::BackendFailed);
    let (source, sink) = (&network.sockets[from], &network.sockets[to]);
    if has_failed && source.is_broken && source.end_was_read && !sink.is_broken {
        assert!(network.is_ended_by_now(to), "an end that was read before the error is lost");
        network.sockets[to].is_finished = true;
        tally("ends delivered after an error");
    }
}

/// A pair ends by the failure of a side: what that has sent before is passed on, if the other takes
/// it.
fn judge_last_words(reason: EndReason, from: &Socket, to: &Socket) {
    let has_failed =
        matches!(reason, EndReason::ClientFailed | EndReason::BackendFailed) && from.is_broken;
    let may_take = !to.is_broken && !to.is_blocked && to.event == Readiness::default();
    assert!(!(has_failed && may_take) || to.taken == to.preface + from.sent, "last words are lost");
}
