//! The backends file: reading it, and rereading it when it changes.

mod debounce;
mod names;
mod parse;
mod reading;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::info;
use tinylb::BackendSet;

use self::debounce::{Debounce, Taken};
use self::names::{Failed, Lookup, Names};
use self::parse::{Line, Problem, parse};
use self::reading::read;
use crate::running_set::RunningSet;
use crate::sources::Sources;
use crate::stderr::complain;
use crate::targets::KeyedTarget;

/// How long a change waits for the names in it, so that usually it is one step: a backend that
/// moves from one name to another is missing at no time.
const LOOKUP_GRACE: Duration = Duration::from_millis(150);

/// The file, and what is known of it.
pub(crate) struct BackendsFile {
    path: PathBuf,
    debounce: Debounce,
    /// The lines in force. Those whose names have no address yet are not in the running set.
    lines: Vec<Line>,
    names: Names,
    grace: Duration,
}

impl BackendsFile {
    /// Reads the file for the first time, when nothing may be wrong with it. Returns also the
    /// sources with its backends.
    pub(crate) fn open(
        path: &Path,
        lookup: Lookup,
        sources: &Sources,
    ) -> Result<(Self, Sources), String> {
        let open = || {
            let content = read(path)?;
            let lines = parse(&content)?;
            let mut names = Names::new(lookup);
            for Line { number, backend } in &lines {
                let problem = |what| Problem { line: Some(*number), what };
                names.resolve(&backend.target).map_err(problem)?;
            }
            let debounce = Debounce::new(Ok(content));
            let file = Self { path: path.to_owned(), debounce, lines, names, grace: LOOKUP_GRACE };
            let sources = file.merge_into(sources)?;
            Ok((file, sources))
        };
        open().map_err(|problem: Problem| problem.in_file(path))
    }

    /// Rereads the file whenever it changes or is asked to, and has it applied. What is wrong with
    /// it is said once, and the running set is kept.
    pub(crate) fn watch(mut self, running: &RunningSet, requests: &Receiver<()>) {
        loop {
            match requests.recv_timeout(self.debounce.interval()) {
                Ok(()) => self.debounce.request(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.check(running, Instant::now());
        }
    }

    /// Reads the file once, and does what is due.
    fn check(&mut self, running: &RunningSet, now: Instant) {
        match self.debounce.look(read(&self.path), now) {
            Some(taken) => self.take(taken, running, now),
            None => self.follow_lookups(running, now),
        }
    }

    fn take(&mut self, taken: Taken, running: &RunningSet, now: Instant) {
        match taken.reading.and_then(|content| parse(&content)) {
            Ok(lines) => self.lines = lines,
            Err(problem) => return self.keep(&problem),
        }
        let targets = self.lines.iter().map(|line| &line.backend.target);
        self.names.want(targets, taken.is_requested, now);
        let results = self.names.poll(self.grace, now);
        self.apply(running);
        self.report(&results.failures);
    }

    /// Adds the backends whose addresses were found since the file changed.
    fn follow_lookups(&mut self, running: &RunningSet, now: Instant) {
        let results = self.names.poll(Duration::ZERO, now);
        if results.has_answers {
            self.apply(running);
        }
        self.report(&results.failures);
    }

    /// Replaces the file's backends in the running set by those of the lines that have addresses.
    fn apply(&self, running: &RunningSet) {
        if self.has_no_address() {
            return;
        }
        match running.change(None, |sources| self.merge_into(sources)) {
            Ok(_) => {
                let (path, found, all) =
                    (self.path.display(), self.backends().len(), self.lines.len());
                info!("{path}: applied, with addresses for {found} of {all} lines");
            }
            Err(problem) => self.keep(&problem),
        }
    }

    /// Returns whether there are lines, but none is of use. An outage of the name server, or a
    /// slip in the only line, must not empty the set.
    fn has_no_address(&self) -> bool {
        !self.lines.is_empty() && self.backends().is_empty()
    }

    /// Returns the sources with these lines as the file's backends.
    fn merge_into(&self, sources: &Sources) -> Result<Sources, Problem> {
        sources.with_file(self.backends()).map_err(|err| {
            let line = self.lines.iter().find(|line| line.backend.key == err.key);
            Problem { line: line.map(|line| line.number), what: err.to_string() }
        })
    }

    fn backends(&self) -> BackendSet {
        let mut set = BackendSet::new();
        for Line { backend: KeyedTarget { key, weight, target }, .. } in &self.lines {
            if let Some(backend) = self.names.backend(target) {
                set.insert_weighted(key.clone(), backend, (*weight).into());
            }
        }
        set
    }

    fn keep(&self, problem: &Problem) {
        complain(&format!("{}; the running set is kept", problem.in_file(&self.path)));
    }

    fn report(&self, failures: &[Failed]) {
        for Failed { target, why } in failures {
            let line = self.lines.iter().find(|line| line.backend.target == *target);
            let problem = Problem { line: line.map(|line| line.number), what: why.clone() };
            let kept = if self.has_no_address() { ", and the running set is kept" } else { "" };
            complain(&format!("{}; it is tried again{kept}", problem.in_file(&self.path)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{self, Sender};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use tempfile::TempDir;
    use tinylb::{Server, ServerThread, TcpBackend};

    use super::*;
    use crate::targets::Target;

    /// A file with a running set, whose checks happen when a test says so.
    struct Rig {
        dir: TempDir,
        file: BackendsFile,
        running: RunningSet,
        now: Instant,
        _server: ServerThread,
    }

    impl Rig {
        fn new(content: &str, lookup: Lookup) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("backends");
            std::fs::write(&path, content).unwrap();
            let server = Server::builder().build(TcpListener::bind("127.0.0.1:0").unwrap());
            let server = server.unwrap().spawn().unwrap();
            let (file, sources) =
                BackendsFile::open(&path, lookup, &Sources::of(BackendSet::new())).unwrap();
            let running = RunningSet::new(server.control(), sources);
            running.install().unwrap().wait().unwrap();
            Self { dir, file, running, now: Instant::now(), _server: server }
        }

        /// Replaces the file and has it taken.
        fn replace(&mut self, content: &str) {
            std::fs::write(self.dir.path().join("backends"), content).unwrap();
            self.check_after(Duration::ZERO);
            self.check_after(Duration::from_millis(200));
        }

        fn check_after(&mut self, time: Duration) {
            self.now += time;
            self.file.check(&self.running, self.now);
        }

        fn keys(&self) -> Vec<String> {
            let stats = self.running.control.stats().unwrap().wait().unwrap();
            stats.backends.iter().map(|backend| backend.key.to_string()).collect()
        }

        /// Waits for lookups, which are on threads of their own.
        fn wait_for_keys(&mut self, keys: &[&str]) {
            let start = Instant::now();
            while self.keys() != keys {
                assert!(start.elapsed() < Duration::from_secs(20), "{:?}", self.keys());
                self.check_after(Duration::from_secs(1));
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Lookups that fail while the flag is set.
    fn failing_while(is_down: &Arc<AtomicBool>) -> Lookup {
        let is_down = is_down.clone();
        Arc::new(move |target| match is_down.load(Ordering::SeqCst) {
            true => Err(format!("cannot look up {target:?}")),
            false => Ok(Arc::new(TcpBackend::new("127.0.0.1:1".parse().unwrap()))),
        })
    }

    /// Lookups of `hangs:1` that wait until the sender is gone.
    fn hanging() -> (Sender<()>, Lookup) {
        let (release, hung) = mpsc::channel();
        let hung = Mutex::new(hung);
        let lookup = move |target| {
            if target == Target::Name("hangs:1".to_owned()) {
                let _ = hung.lock().unwrap().recv();
            }
            Ok(Arc::new(TcpBackend::new("127.0.0.1:1".parse().unwrap())) as Arc<_>)
        };
        (release, Arc::new(lookup))
    }

    #[test]
    fn a_line_is_removed_although_the_name_of_another_cannot_be_looked_up_any_more() {
        let is_down = Arc::new(AtomicBool::new(false));
        let mut rig = Rig::new("a=127.0.0.1:1\nb=host:2\n", failing_while(&is_down));
        is_down.store(true, Ordering::SeqCst);
        rig.replace("b=host:2\n");
        assert_eq!(rig.keys(), ["b"]);
    }

    #[test]
    fn a_line_is_removed_although_a_new_name_cannot_be_looked_up_which_is_tried_again() {
        let is_down = Arc::new(AtomicBool::new(true));
        let mut rig = Rig::new("a=127.0.0.1:1\nb=127.0.0.1:2\n", failing_while(&is_down));
        rig.replace("b=127.0.0.1:2\nc=host:3\n");
        assert_eq!(rig.keys(), ["b"]);
        is_down.store(false, Ordering::SeqCst);
        rig.wait_for_keys(&["b", "c"]);
    }

    #[test]
    fn a_line_is_removed_although_the_lookup_of_a_new_name_hangs() {
        let (release, lookup) = hanging();
        let mut rig = Rig::new("a=127.0.0.1:1\nb=127.0.0.1:2\n", lookup);
        rig.replace("b=127.0.0.1:2\nc=hangs:1\n");
        assert_eq!(rig.keys(), ["b"]);
        rig.replace("c=hangs:1\nd=host:4\n");
        rig.wait_for_keys(&["d"]);
        drop(release);
        rig.wait_for_keys(&["c", "d"]);
    }

    #[test]
    fn a_bad_file_leaves_the_lines_before_it_in_force_and_their_names_looked_up() {
        let is_down = Arc::new(AtomicBool::new(true));
        let mut rig = Rig::new("a=127.0.0.1:1\n", failing_while(&is_down));
        rig.replace("a=127.0.0.1:1\nb=host:2\n");
        rig.replace("bad\n");
        assert_eq!(rig.keys(), ["a"]);
        is_down.store(false, Ordering::SeqCst);
        rig.wait_for_keys(&["a", "b"]);
    }

    #[test]
    fn a_backend_that_moves_to_another_name_does_so_in_one_step() {
        let mut rig = Rig::new("a=old:1\nb=127.0.0.1:2\n", failing_while(&Arc::default()));
        rig.file.grace = Duration::from_secs(20); // longer than any lookup takes here
        rig.replace("a=new:1\nb=127.0.0.1:2\n");
        assert_eq!(rig.keys(), ["a", "b"]);
    }

    #[test]
    fn a_file_none_of_whose_names_can_be_looked_up_replaces_nothing_until_one_can() {
        let is_down = Arc::new(AtomicBool::new(true));
        let mut rig = Rig::new("a=127.0.0.1:1\n", failing_while(&is_down));
        rig.replace("b=host:2\nc=host:2\n");
        assert_eq!(rig.keys(), ["a"]);
        is_down.store(false, Ordering::SeqCst);
        rig.wait_for_keys(&["b", "c"]);
    }
}
