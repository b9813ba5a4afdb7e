//! What the balancer does, as it is told on its own thread: whether it may.
//!
//! These checks are exact, whatever threads do meanwhile: each set hands out backends that bear its number, so a dial
//! tells which set is in force, and a set is handed over only when the one before it is applied (or right after it, where
//! a target goes and comes back). A balancer connects in no other way than by its backends, so no connection to a target
//! outside the set escapes them.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tinylb::{Applied, AttemptFailed, Client, Connected, EndReason, Ended, Observer};

use super::{Attempt, Book, DIAL_LIMIT, Drain, FAILURES_TO_EJECT, Pages, Pair};
use crate::faults::lock;
use crate::history::Issued;
use crate::verdict::{Ending, PROMPT};

impl Book {
    /// The target of this name.
    fn target(&self, name: &str) -> usize {
        self.targets.iter().position(|target| target.name == name).expect("a name of the fleet")
    }

    /// A backend of this set begins a dial for the client at this address.
    pub(crate) fn dialled(&self, addr: &str, number: u64, attempt: Attempt) {
        let mut pages = lock(&self.pages);
        let Pages { history, cursor, failures, pairs, pair_at, updates, .. } = &mut *pages;
        let may = history.see_in_force(number);
        self.require(may, || format!("{attempt:?} was dialled by a set that had been replaced"));
        let Some(issued) = history.get(number) else { return };
        let Some(pair) = pair_at.get(addr).and_then(|id| pairs.get_mut(id)) else {
            return self.fault(format!("a dial for {addr}, who is not there"));
        };
        if let Some(((_, target), under)) = pair.dial.take() {
            updates.seen_cancelled += 1;
            let has_vanished =
                history.after(under).any(|issued| issued.number <= number && !issued.names(target));
            self.require(has_vanished, || {
                format!("the dial of target {target} was given up, though it stayed")
            });
        }
        self.require(!pair.tried.contains(&attempt), || {
            format!("{attempt:?} was tried again for {addr}")
        });
        // C2.1: whoever was passed over was tried for this client, or may be ejected.
        let after = cursor.as_ref().map_or(Unbounded, Excluded);
        let cycle = issued.set.range::<Arc<str>, _>((after, Unbounded)).chain(&issued.set);
        for (key, target) in cycle.take_while(|(key, _)| **key != attempt.0) {
            let passed = (key.clone(), *target);
            let is_excused =
                pair.tried.contains(&passed) || failures.get(&passed) >= Some(&FAILURES_TO_EJECT);
            self.require(is_excused, || {
                format!("{key} was passed over between {cursor:?} and {attempt:?}")
            });
        }
        *cursor = Some(attempt.0.clone());
        pair.tried.push(attempt.clone());
        pair.dial = Some((attempt, number));
    }

    fn accepted(&self, client: &Client<'_>) {
        let mut pages = lock(&self.pages);
        let expected = pages.counts.accepted;
        self.require(client.id == expected, || {
            format!("client {} came instead of {expected}", client.id)
        });
        pages.counts.accepted += 1;
        let addr = client.addr.to_string();
        let Some(connection) = pages.coming.remove(&addr) else {
            return self.fault(format!("{addr} was accepted, who is not there"));
        };
        let pair = Pair { connection, tried: Vec::new(), dial: None, connected: None, drain: None };
        pages.pairs.insert(client.id, pair);
        pages.pair_at.insert(addr, client.id);
    }

    fn connected(&self, connected: &Connected<'_>) {
        let mut pages = lock(&self.pages);
        let Pages { pairs, records, counts, failures, .. } = &mut *pages;
        let attempt = (Arc::from(connected.key), self.target(connected.target_name));
        let Some(pair) = pairs.get_mut(&connected.client.id) else {
            return self.fault(format!(
                "{attempt:?} was connected for client {}, who is gone",
                connected.client.id
            ));
        };
        let Some((dialled, under)) = pair.dial.take() else {
            return self.fault(format!("{attempt:?} was connected, but no dial was in flight"));
        };
        self.require(dialled == attempt, || {
            format!("{attempt:?} was connected instead of {dialled:?}")
        });
        self.require(self.targets[attempt.1].can_be_reached(), || {
            format!("{attempt:?} was reached")
        });
        pair.connected = Some((attempt.1, under));
        failures.remove(&attempt);
        counts.connected += 1;
        let is_announced =
            records.get(&pair.connection).is_none_or(|record| record.plan.is_announced);
        counts.unannounced += u64::from(!is_announced);
    }

    fn attempt_failed(&self, failed: &AttemptFailed<'_>) {
        let mut pages = lock(&self.pages);
        let attempt = (Arc::from(failed.key), self.target(failed.target_name));
        self.require(!self.targets[attempt.1].can_be_reached(), || {
            format!("{attempt:?} failed: {}", failed.error)
        });
        let dial = pages.pairs.get_mut(&failed.client.id).and_then(|pair| pair.dial.take());
        self.require(dial.is_some_and(|(dialled, _)| dialled == attempt), || {
            format!("{attempt:?} failed, but was not being dialled")
        });
        pages.counts.attempts_failed += 1;
        *pages.failures.entry(attempt).or_default() += 1;
    }

    fn ended(&self, ended: &Ended<'_>) {
        let mut pages = lock(&self.pages);
        let Some(pair) = pages.pairs.remove(&ended.client.id) else {
            return self
                .fault(format!("client {} has ended twice, or never came", ended.client.id));
        };
        pages.pair_at.remove(&ended.client.addr.to_string());
        let target = ended.backend.map(|backend| self.target(backend.target_name));
        self.require(target == pair.connected.map(|(target, _)| target), || {
            format!(
                "connection {} ended with {target:?} instead of {:?}",
                pair.connection, pair.connected
            )
        });
        self.check_reason(&mut pages, &pair, ended);
        pages.count(ended);
        let ending = Ending {
            reason: ended.reason,
            was_connected: target.is_some(),
            bytes_up: ended.bytes_up,
            bytes_down: ended.bytes_down,
            at: Instant::now(),
        };
        if let Some(record) = pages.records.get_mut(&pair.connection) {
            record.ended = Some(ending);
        }
        self.settle(&mut pages, pair.connection);
    }

    /// Whether the balancer may say this now. (Whether it fits what the ends saw is judged once they have told.)
    fn check_reason(&self, pages: &mut Pages, pair: &Pair, ended: &Ended<'_>) {
        let Pages { history, updates, .. } = pages;
        let has_tried_all = |issued: &Issued| {
            issued.set.iter().all(|(key, target)| {
                pair.tried.iter().any(|tried| (&tried.0, &tried.1) == (key, target))
            })
        };
        let may = match ended.reason {
            EndReason::TargetRemoved => pair.connected.is_some_and(|(target, under)| {
                let mut since = history
                    .pending()
                    .filter(|issued| issued.number > under && issued.drain.is_none());
                since.any(|issued| !issued.names(target))
            }),
            EndReason::DrainLimit => {
                pair.drain.is_some_and(|drain| drain.earliest <= Instant::now())
            }
            EndReason::NoBackend => history.possible().any(|issued| issued.set.is_empty()),
            EndReason::BackendsFailed => {
                history.possible().any(|issued| !issued.set.is_empty() && has_tried_all(issued))
            }
            EndReason::DialLimit => (DIAL_LIMIT..DIAL_LIMIT + PROMPT).contains(&ended.lasted),
            _ => true,
        };
        self.require(may, || {
            format!(
                "connection {} ended after {:?} for {}, without a reason",
                pair.connection, ended.lasted, ended.reason
            )
        });
        let Some(((_, target), _)) = &pair.dial else { return };
        if matches!(ended.reason, EndReason::NoBackend | EndReason::BackendsFailed) {
            updates.seen_cancelled += 1;
        } else if history.possible().any(|issued| !issued.names(*target)) {
            updates.maybe_cancelled += 1;
        }
    }

    fn updated(&self, applied: &Applied) {
        let mut pages = lock(&self.pages);
        let numbers = pages.history.reported(applied.backends);
        self.require(!numbers.is_empty(), || {
            format!("a set was applied that nobody handed over: {applied:?}")
        });
        let last = *numbers.end();
        for number in numbers {
            self.apply(&mut pages, number);
        }
        pages.history.forget_before(last);
        pages.updates.closed += applied.closed;
        pages.updates.cancelled += applied.cancelled;
        let draining = pages.pairs.values().filter(|pair| pair.drain.is_some()).count();
        let most = draining + pages.updates.ended_meanwhile;
        self.require((draining..=most).contains(&applied.draining), || {
            format!("{} are said to drain, not {draining} to {most}", applied.draining)
        });
    }

    /// Holds the pairs that are left against a set that is applied by now: C3.2, C3.3, C3.6, C3.9.
    fn apply(&self, pages: &mut Pages, number: u64) {
        let Pages { history, pairs, updates, .. } = pages;
        let Some(issued) = history.get(number) else { return };
        // A limit counts from the beginning of the turn that takes its update. That may be before it is handed over, but
        // not before the one ahead of it was, which a turn before has taken.
        let counts_from = history.get(number - 1).map_or(issued.at, |ahead| ahead.at);
        for pair in pairs.values_mut() {
            if let Some((target, _)) = pair.connected.filter(|(_, under)| *under < number) {
                pair.drain = match issued.drain {
                    _ if issued.names(target) => None,
                    Some(limit) => Some(Drain::merged(pair.drain, counts_from, limit)),
                    None => {
                        self.fault(format!(
                            "connection {} is open, though target {target} is gone",
                            pair.connection
                        ));
                        None
                    }
                };
                // Twice it may be seen: in the turn in which the limit runs out, and in the next, before drains are ended.
                self.require(pair.drain.is_none_or(|drain| drain.updates_after <= 2), || {
                    format!(
                        "connection {} is open, though the limit of its drain is over",
                        pair.connection
                    )
                });
            }
            if pair
                .dial
                .as_ref()
                .is_some_and(|((_, target), under)| *under < number && !issued.names(*target))
            {
                pair.dial = None;
                updates.seen_cancelled += 1;
            }
        }
    }
}

impl Drain {
    /// One more update lets it finish, within this limit; of two limits the earlier holds.
    fn merged(earlier: Option<Self>, counts_from: Instant, limit: Duration) -> Self {
        let now = Instant::now();
        let another = Self { earliest: counts_from + limit, latest: now + limit, updates_after: 0 };
        match earlier {
            None => another,
            Some(earlier) => Self {
                earliest: earlier.earliest.min(another.earliest),
                latest: earlier.latest.min(another.latest),
                updates_after: earlier.updates_after + u32::from(earlier.latest <= now),
            },
        }
    }
}

impl Pages {
    fn count(&mut self, ended: &Ended<'_>) {
        let counts = &mut self.counts;
        match ended.backend {
            Some(_) => counts.ended += 1,
            None => counts.refused += 1,
        }
        match ended.reason {
            EndReason::TargetRemoved => counts.removed += 1,
            EndReason::DrainLimit => counts.drained_out += 1,
            EndReason::Finished => counts.finished += 1,
            _ => {}
        }
        counts.bytes_up += ended.bytes_up;
        counts.bytes_down += ended.bytes_down;
        self.updates.ended_meanwhile += 1;
    }
}

/// What the balancer is given for an observer.
pub(crate) struct Scribe(pub(crate) Arc<Book>);

impl Observer for Scribe {
    fn accepted(&mut self, client: &Client<'_>) {
        self.0.accepted(client);
    }

    fn connected(&mut self, connected: &Connected<'_>) {
        self.0.connected(connected);
    }

    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        self.0.attempt_failed(failed);
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        self.0.ended(ended);
    }

    fn updated(&mut self, applied: &Applied) {
        self.0.updated(applied);
    }
}
