//! Lines on stderr: the log, and complaints, which come whatever the log level.
//!
//! Nobody who has something to say waits for the reader of stderr, least of all the event loop. A
//! line goes into a bounded queue, and a thread writes it. While the queue is full, lines are
//! dropped; their number is reported in their place.
//!
//! Why this is not a crate: `tracing-appender` does not report dropped lines, and prints to stdout
//! if stderr is stuck at the end, where the answers to commands go. `flexi_logger` has no bound
//! for its queue, and waits for stderr at the end.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::LevelFilter;

use crate::stdio::StdStream;

/// How many bytes may wait to be written.
const CAPACITY: usize = 256 << 10;
/// How long the end waits for what is still to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static STDERR: Queue = Queue::new();

/// Starts the writer, and sends the log there.
pub(crate) fn start(level: LevelFilter) -> io::Result<()> {
    thread::Builder::new().name("stderr".to_owned()).spawn(|| {
        let mut stderr = StdStream(io::stderr());
        loop {
            STDERR.write_next(&mut stderr);
        }
    })?;
    env_logger::Builder::new()
        .filter_level(level)
        .target(env_logger::Target::Pipe(Box::new(Log)))
        .init();
    Ok(())
}

/// Says on stderr what is wrong, whatever the log level.
pub(crate) fn complain(message: &str) {
    STDERR.push(format!("tinylb: {message}\n").as_bytes());
}

/// Waits until everything is written, or for a second if nobody reads it.
pub(crate) fn flush() {
    STDERR.flush(FLUSH_LIMIT);
}

/// Where the logger writes: each call is one line.
struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines to be written, and what became of the others.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    lines: Vec<u8>,
    /// Since the last of `lines` came.
    dropped: u64,
    is_writing: bool,
}

impl Queue {
    const fn new() -> Self {
        let state = State { lines: Vec::new(), dropped: 0, is_writing: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line, or drops it if there is no room.
    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        // After a dropped line nothing is taken until the writer comes, however short it is: so
        // all dropped lines are in one place, and the report says where.
        if state.dropped > 0 || state.lines.len() + line.len() > CAPACITY {
            state.dropped += 1;
        } else {
            state.lines.extend_from_slice(line);
        }
        self.changed.notify_all();
    }

    /// Waits for lines and writes all there are.
    fn write_next(&self, out: &mut impl Write) {
        let is_idle = |state: &mut State| state.lines.is_empty() && state.dropped == 0;
        let mut state =
            self.changed.wait_while(self.state(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut state.lines);
        let dropped = std::mem::take(&mut state.dropped);
        state.is_writing = true;
        drop(state);

        // There is nowhere to say that stderr cannot be written to.
        let _ = out.write_all(&lines);
        if dropped > 0 {
            let _ = writeln!(out, "tinylb: {dropped} lines dropped here: stderr was not read");
        }
        self.state().is_writing = false;
        self.changed.notify_all();
    }

    fn flush(&self, limit: Duration) {
        let is_busy =
            |state: &mut State| state.is_writing || !state.lines.is_empty() || state.dropped > 0;
        let _ = self.changed.wait_timeout_while(self.state(), limit, is_busy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(queue: &Queue) -> String {
        let mut out = Vec::new();
        queue.write_next(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_written_in_order() {
        let queue = Queue::new();
        queue.push(b"one\n");
        queue.push(b"two\n");
        assert_eq!(written(&queue), "one\ntwo\n");
        queue.push(b"three\n");
        assert_eq!(written(&queue), "three\n");
    }

    #[test]
    fn a_full_queue_drops_lines_and_their_number_stands_in_their_place() {
        let queue = Queue::new();
        queue.push(&[vec![b'x'; CAPACITY - 3], vec![b'\n']].concat());
        queue.push(b"four\n");
        queue.push(b"\n"); // would fit, but not in its place
        assert!(
            written(&queue).ends_with("x\ntinylb: 2 lines dropped here: stderr was not read\n")
        );
        queue.push(b"next\n");
        assert_eq!(written(&queue), "next\n", "the count starts anew");
    }

    #[test]
    fn a_flush_waits_for_what_is_being_written_but_not_for_good() {
        let queue = Queue::new();
        queue.push(b"line\n");
        queue.flush(Duration::ZERO); // nobody writes
        thread::scope(|scope| {
            scope.spawn(|| queue.write_next(&mut io::sink()));
            queue.flush(Duration::from_secs(20));
        });
        assert!(queue.state().lines.is_empty() && !queue.state().is_writing);
    }
}
