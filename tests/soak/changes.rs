//! The changes of the set: many a second, each waited for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tinylb::{Applied, Backend, BackendSet, Control, Dial, DialRequest, Update};

use crate::book::Book;
use crate::faults::Faults;
use crate::fleet::Target;
use crate::history::Set;
use crate::random::Random;
use tinylb_tests::PATIENCE;

const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
/// How many keys a set has at most.
const MOST: usize = 10;

/// Whoever changes the set of one balancer.
pub(crate) struct Changer {
    pub(crate) control: Control,
    pub(crate) targets: Arc<[Target]>,
    pub(crate) book: Arc<Book>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) random: Random,
    pub(crate) set: Set,
    /// How many of the next updates let what vanishes finish.
    pub(crate) drains_left: usize,
    pub(crate) tally: Arc<Tally>,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) updates: AtomicU64,
    /// How long the slowest took until it was applied, in microseconds.
    pub(crate) slowest: AtomicU64,
    pub(crate) is_over: AtomicBool,
}

/// A backend that tells of each dial.
struct Watched {
    book: Arc<Book>,
    number: u64,
    key: Arc<str>,
    target: usize,
    backend: Box<dyn Backend>,
}

impl Backend for Watched {
    fn target_name(&self) -> String {
        self.backend.target_name()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        self.book.dialled(
            &request.client_addr().to_string(),
            self.number,
            (self.key.clone(), self.target),
        );
        self.backend.dial(request)
    }
}

impl Changer {
    /// Changes the set until it is told to stop.
    pub(crate) fn run(mut self, interval: Duration) {
        let mut next = Instant::now();
        while !self.tally.is_over.load(Ordering::SeqCst) {
            self.change();
            next = (next + interval).max(Instant::now()); // what was missed is not made up for
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn change(&mut self) {
        if self.set.is_empty() {
            self.begin_anew(); // it was emptied for a moment
        } else {
            match self.random.below(1000) {
                0..200 => self.add(),
                200..400 => self.remove(),
                400..600 => self.point_elsewhere(),
                600..700 => self.duplicate(),
                700..780 => return self.flap(),
                780..790 => self.set = Set::new(),
                790..800 => self.begin_anew(),
                _ => {} // the same set again
            }
        }
        let set = self.set.clone();
        let drain = self.drain();
        self.hand_over(&[(set, drain)]);
    }

    /// Whether what vanishes may finish, and for how long. A plain update would end all drains, so they come in a row.
    fn drain(&mut self) -> Option<Duration> {
        if self.drains_left == 0 && self.random.below(30) == 0 {
            self.drains_left = self.random.below(40);
        }
        self.drains_left = self.drains_left.checked_sub(1)?;
        Some(Duration::from_millis(self.random.between(50, 1_500)))
    }

    fn any_target(&mut self) -> usize {
        self.random.below(self.targets.len())
    }

    fn any_key(&mut self) -> Option<Arc<str>> {
        let index = self.random.below(self.set.len().max(1));
        self.set.keys().nth(index).cloned()
    }

    fn add(&mut self) {
        let key = KEYS[self.random.below(KEYS.len())];
        let target = self.any_target();
        if self.set.len() < MOST {
            self.set.insert(key.into(), target);
        }
    }

    fn remove(&mut self) {
        if let Some(key) = self.key_to_change() {
            self.set.remove(&key);
        }
        self.see_to_service();
    }

    fn point_elsewhere(&mut self) {
        let target = self.any_target();
        if let Some(key) = self.key_to_change() {
            self.set.insert(key, target);
        }
        self.see_to_service();
    }

    /// Any key, but seldom one of a steady target, so that connections that take seconds come to their end, too.
    fn key_to_change(&mut self) -> Option<Arc<str>> {
        let key = self.any_key()?;
        let is_spared = self.targets[self.set[&key]].is_steady() && self.random.below(4) > 0;
        (!is_spared).then_some(key)
    }

    /// One more key names a target that is named already.
    fn duplicate(&mut self) {
        let key = KEYS[self.random.below(KEYS.len())];
        if let Some(named) = self.any_key() {
            self.set.insert(key.into(), self.set[&named]);
        }
        self.see_to_service();
    }

    fn begin_anew(&mut self) {
        let keys = self.random.between(2, MOST as u64) as usize;
        self.set.clear();
        for key in KEYS.iter().take(keys) {
            let target = self.any_target();
            self.set.insert((*key).into(), target);
        }
        self.see_to_service();
    }

    /// Has two steady targets in the set, so that most clients are served.
    fn see_to_service(&mut self) {
        let is_steady = |target: usize| self.targets[target].is_steady();
        let steady: Vec<usize> =
            (0..self.targets.len()).filter(|target| is_steady(*target)).collect();
        for key in KEYS.iter().rev() {
            if self.set.values().filter(|target| is_steady(**target)).count() >= 2 {
                return;
            }
            self.set.insert((*key).into(), steady[self.random.below(steady.len())]);
        }
    }

    /// A target goes and comes back in the next moment, maybe before the balancer has looked: C3.6.
    fn flap(&mut self) {
        self.drains_left = 0;
        let Some(key) = self.any_key() else { return };
        let gone: Set =
            self.set.iter().filter(|(_, target)| **target != self.set[&key]).map(own).collect();
        let back = self.set.clone();
        self.hand_over(&[(gone, None), (back, None)]);
    }

    /// Hands these sets over without a pause, and waits until they are applied.
    fn hand_over(&mut self, sets: &[(Set, Option<Duration>)]) {
        let begun = Instant::now();
        let updates: Vec<Option<Update>> =
            sets.iter().map(|(set, drain)| self.update(set, *drain)).collect();
        for update in updates.into_iter().flatten() {
            match update.wait_timeout(PATIENCE) {
                Ok(Some(applied)) => self.check(applied, sets),
                other => self.faults.report(format!("an update is not applied: {other:?}")),
            }
            self.tally.updates.fetch_add(1, Ordering::SeqCst);
        }
        self.tally.slowest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::SeqCst);
        self.book.check_updates();
    }

    fn update(&self, set: &Set, drain: Option<Duration>) -> Option<Update> {
        let number = self.book.issue(set.clone(), drain);
        let backends: BackendSet = set
            .iter()
            .map(|(key, target)| (key.clone(), self.watched(number, key, *target)))
            .collect();
        let handed_over = match drain {
            None => self.control.update(backends),
            Some(limit) => self.control.update_draining(backends, limit),
        };
        handed_over
            .map_err(|err| self.faults.report(format!("an update cannot be handed over: {err}")))
            .ok()
    }

    fn watched(&self, number: u64, key: &Arc<str>, target: usize) -> Watched {
        Watched {
            book: self.book.clone(),
            number,
            key: key.clone(),
            target,
            backend: self.targets[target].backend(),
        }
    }

    fn check(&self, applied: Applied, sets: &[(Set, Option<Duration>)]) {
        let sizes: Vec<usize> = sets.iter().map(|(set, _)| set.len()).collect();
        self.faults.unless(sizes.contains(&applied.backends), || {
            format!("{applied:?}, instead of sets of {sizes:?}")
        });
    }
}

fn own((key, target): (&Arc<str>, &usize)) -> (Arc<str>, usize) {
    (key.clone(), *target)
}
