//! The addresses of the names in the backends file. A name is looked up on a thread of its own,
//! and again and again if that fails, while everything else goes on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tinylb::Backend;

use crate::targets::Target;

/// How soon failed lookups are repeated; each time the wait is doubled.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Looks a target's name up, which may take as long as a name server does.
pub(crate) type Lookup = Arc<dyn Fn(Target) -> Answer + Send + Sync>;
type Answer = Result<Arc<dyn Backend>, String>;

/// A name that could not be looked up, and why.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) target: Target,
    pub(crate) why: String,
}

/// What came of lookups since they were asked for last.
#[derive(Debug, Default)]
pub(crate) struct LookupResults {
    /// Whether there are addresses that were not there before.
    pub(crate) has_answers: bool,
    /// Of each name only the first since it was wanted.
    pub(crate) failures: Vec<Failed>,
}

/// The names that are wanted, and their addresses as far as they are known.
pub(crate) struct Names {
    lookup: Lookup,
    /// Each wanted name. Its backend stays until there is a new one.
    backends: HashMap<Target, Name>,
    /// The lookups under way. One that hangs in a name server is left behind.
    round: Option<Receiver<(Target, Answer)>>,
    retry: Retry,
}

#[derive(Default)]
struct Name {
    backend: Option<Arc<dyn Backend>>,
    /// Whether the last lookup failed.
    has_failed: bool,
    /// How often it was to be looked up.
    tries: u32,
    /// Whether a failure was told since the name was wanted last.
    is_told: bool,
}

impl Name {
    fn found(backend: Arc<dyn Backend>) -> Self {
        Self { backend: Some(backend), ..Self::default() }
    }

    fn needs_lookup(&self) -> bool {
        self.backend.is_none() || self.has_failed
    }
}

/// When failed lookups are repeated.
struct Retry {
    at: Option<Instant>,
    wait: Duration,
}

impl Names {
    pub(crate) fn new(lookup: Lookup) -> Self {
        let retry = Retry { at: None, wait: FIRST_RETRY };
        Self { lookup, backends: HashMap::new(), round: None, retry }
    }

    /// Looks up what is wanted at the start, when nothing may fail.
    pub(crate) fn resolve(&mut self, target: &Target) -> Result<(), String> {
        if matches!(target, Target::Name(_)) {
            let backend = (self.lookup)(target.clone())?;
            self.backends.insert(target.clone(), Name::found(backend));
        }
        Ok(())
    }

    /// Returns a backend for the target, unless its name has not been looked up yet.
    pub(crate) fn backend(&self, target: &Target) -> Option<Arc<dyn Backend>> {
        match target {
            Target::Name(_) => self.backends.get(target)?.backend.clone(),
            _ => target.clone().resolve().ok(),
        }
    }

    /// Wants these targets from now on, and no others. Looks up the names that have no address;
    /// if `anew`, also the others.
    pub(crate) fn want<'a>(
        &mut self,
        targets: impl Iterator<Item = &'a Target>,
        anew: bool,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.backends);
        for target in targets.filter(|target| matches!(target, Target::Name(_))) {
            let name = before.remove(target).unwrap_or_default();
            self.backends.entry(target.clone()).or_insert(Name { is_told: false, ..name });
        }
        self.retry = Retry { at: None, wait: FIRST_RETRY };
        self.begin_round(|name| anew || name.needs_lookup(), now);
    }

    /// Returns what came of lookups, having waited for those under way, but not beyond the limit.
    pub(crate) fn poll(&mut self, limit: Duration, now: Instant) -> LookupResults {
        if self.retry.at.is_some_and(|at| at <= now) {
            self.retry.at = None;
            self.begin_round(Name::needs_lookup, now);
        }
        let deadline = Instant::now() + limit;
        let mut results = LookupResults::default();
        while let Some(round) = &self.round {
            let wait = deadline.saturating_duration_since(Instant::now());
            match round.recv_timeout(wait) {
                Ok((target, answer)) => self.note(target, answer, &mut results),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => self.end_round(now),
            }
        }
        results
    }

    fn note(&mut self, target: Target, answer: Answer, results: &mut LookupResults) {
        let Some(name) = self.backends.get_mut(&target) else { return };
        match answer {
            Ok(backend) => {
                *name = Name::found(backend);
                results.has_answers = true;
            }
            Err(why) => {
                name.has_failed = true;
                if !std::mem::replace(&mut name.is_told, true) {
                    results.failures.push(Failed { target, why });
                }
            }
        }
    }

    fn begin_round(&mut self, is_wanted: impl Fn(&Name) -> bool, now: Instant) {
        let mut names: Vec<_> =
            self.backends.iter_mut().filter(|(_, name)| is_wanted(name)).collect();
        // One that was tried before may hang again, so it lets new ones go first.
        names.sort_by_key(|(_, name)| (name.backend.is_some(), name.tries));
        names.iter_mut().for_each(|(_, name)| name.tries = name.tries.saturating_add(1));
        let targets: Vec<Target> = names.into_iter().map(|(target, _)| target.clone()).collect();
        if targets.is_empty() {
            self.round = None;
            return;
        }
        match look_up(targets, self.lookup.clone()) {
            Ok(round) => self.round = Some(round),
            Err(err) => {
                log::warn!("cannot look names up for now: {err}");
                self.retry_later(now);
            }
        }
    }

    fn end_round(&mut self, now: Instant) {
        self.round = None;
        if self.backends.values().any(Name::needs_lookup) {
            self.retry_later(now);
        }
    }

    fn retry_later(&mut self, now: Instant) {
        self.retry.at = Some(now + self.retry.wait);
        self.retry.wait = (self.retry.wait * 2).min(LAST_RETRY);
    }
}

/// Looks names up one after another, until nobody wants to know any more.
fn look_up(targets: Vec<Target>, lookup: Lookup) -> io::Result<Receiver<(Target, Answer)>> {
    let (answers, round) = mpsc::channel();
    thread::Builder::new().name("lookup".to_owned()).spawn(move || {
        for target in targets {
            let answer = lookup(target.clone());
            if answers.send((target, answer)).is_err() {
                return;
            }
        }
    })?;
    Ok(round)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tinylb::TcpBackend;

    use super::*;

    /// More than any lookup takes here.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A name server of which tests say which names it knows. It notes what it is asked.
    #[derive(Clone, Default)]
    struct NameServer(Arc<Mutex<(Vec<&'static str>, Vec<String>)>>);

    impl NameServer {
        fn knows(&self, names: &[&'static str]) {
            self.0.lock().unwrap().0 = names.to_vec();
        }

        /// What it was asked since the last call.
        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap().1)
        }

        fn names(&self) -> Names {
            let server = self.clone();
            Names::new(Arc::new(move |target| {
                let Target::Name(name) = target else { panic!("{target:?} is no name") };
                let (known, asked) = &mut *server.0.lock().unwrap();
                asked.push(name.clone());
                match known.contains(&name.as_str()) {
                    true => Ok(Arc::new(TcpBackend::new("127.0.0.1:1".parse().unwrap()))),
                    false => Err(format!("{name} is unknown")),
                }
            }))
        }
    }

    fn name(text: &str) -> Target {
        Target::Name(text.to_owned())
    }

    /// Makes the names wanted, and waits for all lookups.
    fn want(names: &mut Names, wanted: &[Target], anew: bool, now: Instant) -> LookupResults {
        names.want(wanted.iter(), anew, now);
        names.poll(PATIENCE, now)
    }

    fn failures(results: &LookupResults) -> Vec<&str> {
        results.failures.iter().map(|failed| failed.why.as_str()).collect()
    }

    #[test]
    fn a_name_that_is_still_wanted_keeps_its_backend_and_is_not_looked_up_again() {
        let server = NameServer::default();
        server.knows(&["a:1", "b:2"]);
        let (mut names, now) = (server.names(), Instant::now());
        names.resolve(&name("a:1")).unwrap();
        server.knows(&[]);
        server.asked();
        let results = want(&mut names, &[name("a:1"), name("a:1")], false, now);
        assert!(!results.has_answers && failures(&results).is_empty());
        assert_eq!(server.asked(), [""; 0]);
        assert!(names.backend(&name("a:1")).is_some());
    }

    #[test]
    fn a_failed_lookup_is_told_once_and_repeated_after_growing_waits() {
        let server = NameServer::default();
        let (mut names, mut now) = (server.names(), Instant::now());
        assert_eq!(failures(&want(&mut names, &[name("a:1")], false, now)), ["a:1 is unknown"]);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            server.asked();
            names.poll(PATIENCE, now + Duration::from_millis(wait * 1000 - 1));
            assert_eq!(server.asked(), [""; 0]);
            now += Duration::from_secs(wait);
            assert_eq!(failures(&names.poll(PATIENCE, now)), [""; 0]);
            assert_eq!(server.asked(), ["a:1"]);
        }
        server.knows(&["a:1"]);
        assert!(names.poll(PATIENCE, now + LAST_RETRY).has_answers);
        server.asked();
        assert!(!names.poll(PATIENCE, now + LAST_RETRY * 9).has_answers);
        assert_eq!(server.asked(), [""; 0], "it is known now");
    }

    #[test]
    fn one_that_is_asked_for_anew_is_looked_up_again_and_keeps_its_backend_if_that_fails() {
        let server = NameServer::default();
        server.knows(&["a:1"]);
        let (mut names, now) = (server.names(), Instant::now());
        names.resolve(&name("a:1")).unwrap();
        assert!(want(&mut names, &[name("a:1")], true, now).has_answers);
        server.knows(&[]);
        let results = want(&mut names, &[name("a:1")], true, now);
        assert_eq!(failures(&results), ["a:1 is unknown"]);
        assert!(names.backend(&name("a:1")).is_some());
        server.asked();
        names.poll(PATIENCE, now + FIRST_RETRY);
        assert_eq!(server.asked(), ["a:1"]);
    }

    #[test]
    fn new_names_go_before_those_that_were_tried_before() {
        let server = NameServer::default();
        let (mut names, now) = (server.names(), Instant::now());
        let wanted = ["a:1", "b:2", "c:3"].map(name);
        want(&mut names, &wanted[..1], false, now);
        want(&mut names, &[&wanted[..1], &wanted[2..]].concat(), false, now);
        server.asked();
        want(&mut names, &wanted, false, now);
        assert_eq!(server.asked()[0], "b:2");
    }

    #[test]
    fn a_lookup_that_hangs_holds_nobody_up_and_counts_when_it_comes_back() {
        let (release, hung) = mpsc::channel::<()>();
        let hung = Mutex::new(hung);
        let mut names = Names::new(Arc::new(move |target: Target| {
            if target == name("hangs:1") {
                let _ = hung.lock().unwrap().recv();
            }
            Ok(Arc::new(TcpBackend::new("127.0.0.1:1".parse().unwrap())))
        }));
        let now = Instant::now();
        names.want([name("hangs:1")].iter(), false, now);
        assert!(!names.poll(Duration::ZERO, now).has_answers);
        names.want([name("b:2")].iter(), false, now);
        assert!(names.poll(PATIENCE, now).has_answers, "it waits for what nobody wants any more");
        names.want([name("hangs:1"), name("b:2")].iter(), false, now);
        assert!(names.backend(&name("b:2")).is_some());
        drop(release);
        assert!(names.poll(PATIENCE, now).has_answers);
        assert!(names.backend(&name("hangs:1")).is_some());
    }
}
