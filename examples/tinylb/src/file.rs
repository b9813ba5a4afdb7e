//! The backends file: reading it, and rereading it when it changes.

mod parse;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use log::info;
use tinylb::{Applied, BackendSet};

use self::parse::{Line, Problem, parse};
use crate::running_set::RunningSet;
use crate::sources::Sources;
use crate::stderr::complain;
use crate::targets::KeyedTarget;

/// How often the file is looked at. A change counts once it was seen twice.
const INTERVAL: Duration = Duration::from_millis(200);
/// The largest file there may be.
const LARGEST: u64 = 16 << 20;

fn of_file(err: io::Error) -> Problem {
    err.to_string().into()
}

/// The file's content.
fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    // Asked before it is opened: to open a pipe waits for a writer, and to read it again finds nothing.
    if !fs::metadata(path).map_err(of_file)?.is_file() {
        return Err("not a regular file".to_owned().into());
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(of_file)?;
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(of_file)?;
    if content.len() as u64 > LARGEST {
        return Err(format!("larger than {LARGEST} bytes").into());
    }
    Ok(content)
}

/// The backends of a file, and the lines they stand in.
pub(crate) struct Lines {
    set: BackendSet,
    line_of: BTreeMap<String, usize>,
}

impl Lines {
    /// Reads the lines, and looks names up once there is nothing wrong with any.
    fn of(content: &[u8]) -> Result<Self, Problem> {
        let mut line_of = BTreeMap::new();
        let mut backends = Vec::new();
        for Line { number, backend: KeyedTarget { key, target } } in parse(content)? {
            let backend = target.resolve().map_err(|what| Problem { line: Some(number), what })?;
            backends.push((key.clone(), backend));
            line_of.insert(key, number);
        }
        Ok(Self { set: backends.into_iter().collect(), line_of })
    }

    /// The sources with these as the file's backends.
    pub(crate) fn merge_into(self, sources: &Sources) -> Result<Sources, Problem> {
        sources.with_file(self.set).map_err(|misfit| Problem {
            line: self.line_of.get(&misfit.key).copied(),
            what: misfit.to_string(),
        })
    }
}

/// What the file was found to be.
type Reading = Result<Vec<u8>, Problem>;

/// The file, and what is known of it.
pub(crate) struct BackendsFile {
    path: PathBuf,
    /// What was applied or refused last.
    judged: Reading,
    /// What was seen instead, once: perhaps a file that is just being written.
    unsettled: Option<Reading>,
}

impl BackendsFile {
    /// Reads the file for the first time; nothing may be wrong with it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Lines), String> {
        let open = || {
            let content = read(path)?;
            let lines = Lines::of(&content)?;
            Ok((Self { path: path.to_owned(), judged: Ok(content), unsettled: None }, lines))
        };
        open().map_err(|problem: Problem| problem.in_file(path))
    }

    /// Rereads the file whenever it changes or is asked to, and has it applied. What is wrong with it is said once,
    /// and the running set is kept.
    pub(crate) fn watch(mut self, running: &RunningSet, requests: &Receiver<()>) {
        loop {
            let is_requested = match requests.recv_timeout(INTERVAL) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let reading = read(&self.path);
            if is_requested || self.has_settled_anew(&reading) {
                self.judge(reading, running);
            }
        }
    }

    /// Whether the file is not what was judged last, and the same as it was the last time it was looked at.
    fn has_settled_anew(&mut self, reading: &Reading) -> bool {
        let is_new = *reading != self.judged;
        let before = self.unsettled.take();
        if is_new && before.as_ref() != Some(reading) {
            self.unsettled = Some(reading.clone());
            return false;
        }
        is_new
    }

    fn judge(&mut self, reading: Reading, running: &RunningSet) {
        let applied = match &reading {
            Ok(content) => apply(content, running),
            Err(problem) => Err(problem.clone()),
        };
        match applied {
            Ok(applied) => {
                info!("{}: reread, {} backends now", self.path.display(), applied.backends)
            }
            Err(problem) => {
                complain(&format!("{}; the running set is kept", problem.in_file(&self.path)))
            }
        }
        self.judged = reading;
        self.unsettled = None;
    }
}

fn apply(content: &[u8], running: &RunningSet) -> Result<Applied, Problem> {
    let lines = Lines::of(content)?;
    running.change(None, |sources| lines.merge_into(sources))
}
