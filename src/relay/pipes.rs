//! The pipes that bulk moves through by reference, uncopied.
//!
//! They belong to the loop, as its scratch buffer does, and are made when they are needed. An empty
//! one serves all directions in turn. Only bytes that a sink does not take keep one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::net::Stream;

/// The most pipes of a loop. They take 64 descriptors and hold 16 MiB.
const MOST_PIPES: usize = 32;
/// How long to make no pipes after a shortage of pipes or descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// What pipes are made of: the kernel, or a simulation.
pub(crate) trait PipeSystem: Send {
    /// Returns whether splicing cannot kill the process.
    fn is_safe(&self) -> bool;

    /// Makes a pipe, unless there is a shortage of something.
    fn open(&self) -> Option<Box<dyn PipeEnds>>;

    /// Is told that descriptors ran out and empty pipes were closed.
    fn note_closed(&self) {}

    /// Returns whether all is spliced, without having to be bulk.
    #[cfg(any(test, fuzzing))]
    fn is_for_all(&self) -> bool {
        false
    }
}

/// Both ends of a pipe.
pub(crate) trait PipeEnds: Send {
    /// Moves what there is to read into the pipe, which is empty. Returns 0 where only a read can
    /// tell what comes next: at the end of the stream, for one.
    fn fill(&mut self, from: &mut dyn Stream) -> io::Result<usize>;

    /// Moves some of the `len` bytes in the pipe on. Returns how many.
    fn drain(&mut self, to: &mut dyn Stream, len: usize) -> io::Result<usize>;
}

/// The pipes of a loop.
pub(crate) struct Pipes {
    /// `None` if bytes are to be copied.
    system: Option<Box<dyn PipeSystem>>,
    empty: Vec<Pipe>,
    /// Each pipe has a clone: one that is dropped with its pair no longer counts.
    count: Arc<()>,
    paused_until: Option<Instant>,
}

/// A pipe, closed when it is dropped. Bytes that are left in it are lost then.
pub(crate) struct Pipe {
    ends: Box<dyn PipeEnds>,
    len: usize,
    _counted: Arc<()>,
}

impl Pipes {
    pub(crate) fn new(system: Option<Box<dyn PipeSystem>>) -> Self {
        Self { system, empty: Vec::new(), count: Arc::new(()), paused_until: None }
    }

    /// Returns whether one more direction may be spliced.
    pub(crate) fn may_begin(&mut self, now: Instant) -> bool {
        let Some(system) = &self.system else { return false };
        if self.is_paused(now) || (self.empty.is_empty() && self.count() == MOST_PIPES) {
            return false;
        }
        let is_safe = system.is_safe();
        if !is_safe {
            self.pause(now); // asking takes system calls
        }
        is_safe
    }

    /// Returns an empty pipe, if there is one or can be one.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Pipe> {
        self.empty.pop().or_else(|| self.make(now))
    }

    fn make(&mut self, now: Instant) -> Option<Pipe> {
        if self.is_paused(now) || self.count() == MOST_PIPES {
            return None;
        }
        let ends = self.system.as_ref()?.open();
        if ends.is_none() {
            self.pause(now);
        }
        Some(Pipe { ends: ends?, len: 0, _counted: self.count.clone() })
    }

    /// Takes back a pipe that is empty again.
    pub(crate) fn give_back(&mut self, pipe: Pipe) {
        debug_assert!(pipe.is_empty());
        self.empty.push(pipe);
        self.trim();
    }

    /// Keeps as many empty pipes as are in use, and one more: all that are open count against what
    /// the system allows the user.
    pub(crate) fn trim(&mut self) {
        let in_use = self.count() - self.empty.len();
        self.empty.truncate(in_use + 1);
    }

    /// Closes the empty pipes, since descriptors have run out. Returns whether there were any.
    pub(crate) fn close_empty(&mut self, now: Instant) -> bool {
        self.pause(now); // or pipes would take the descriptors again
        let had_some = !self.empty.is_empty();
        self.empty.clear();
        if let Some(system) = self.system.as_ref().filter(|_| had_some) {
            system.note_closed();
        }
        had_some
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn are_for_all(&self) -> bool {
        self.system.as_ref().is_some_and(|system| system.is_for_all())
    }

    /// Returns how many there are, empty or not.
    fn count(&self) -> usize {
        Arc::strong_count(&self.count) - 1
    }

    fn pause(&mut self, now: Instant) {
        self.paused_until = Some(now + PAUSE);
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }
}

impl Pipe {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills the pipe, which is empty. Returns 0 where only a read can tell what comes next.
    pub(crate) fn fill(&mut self, from: &mut dyn Stream) -> io::Result<usize> {
        self.len = self.ends.fill(from)?;
        Ok(self.len)
    }

    /// Moves bytes on into a stream. Returns how many.
    pub(crate) fn drain(&mut self, to: &mut dyn Stream) -> io::Result<usize> {
        let len = self.ends.drain(to, self.len)?;
        self.len -= len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::testing::pipes::SimulatedPipe;
    use crate::testing::script::{Act, Script};

    /// Counts how often it is asked, and has no more than so many pipes.
    #[derive(Clone, Default)]
    struct Asked {
        is_safe: bool,
        pipes: usize,
        asked: Arc<AtomicUsize>,
    }

    impl PipeSystem for Asked {
        fn is_safe(&self) -> bool {
            self.asked.fetch_add(1, Relaxed);
            self.is_safe
        }

        fn open(&self) -> Option<Box<dyn PipeEnds>> {
            let has_one = self.asked.fetch_add(1, Relaxed) < self.pipes;
            has_one.then(|| Box::new(SimulatedPipe::new(100)) as _)
        }
    }

    fn pipes(pipes: usize) -> (Pipes, Arc<AtomicUsize>, Instant) {
        let system = Asked { is_safe: true, pipes, ..Asked::default() };
        (Pipes::new(Some(Box::new(system.clone()))), system.asked, Instant::now())
    }

    #[test]
    fn c6_8_there_are_at_most_32_pipes_and_one_that_is_dropped_makes_room() {
        let (mut pipes, asked, now) = pipes(usize::MAX);
        let mut taken: Vec<Pipe> = std::iter::from_fn(|| pipes.take(now)).collect();
        assert_eq!((taken.len(), asked.load(Relaxed)), (MOST_PIPES, MOST_PIPES));
        assert!(!pipes.may_begin(now));
        taken.pop();
        assert!(pipes.may_begin(now) && pipes.take(now).is_some());
    }

    #[test]
    fn c6_8_one_empty_pipe_serves_all_and_no_more_are_kept_than_may_be_of_use() {
        let (mut pipes, asked, now) = pipes(usize::MAX);
        for _ in 0..3 {
            let pipe = pipes.take(now).unwrap();
            pipes.give_back(pipe);
        }
        assert_eq!(asked.load(Relaxed), 1);
        let mut taken: Vec<Pipe> = std::iter::from_fn(|| pipes.take(now)).collect();
        for left in (0..taken.len()).rev() {
            pipes.give_back(taken.pop().unwrap());
            assert!(
                pipes.empty.len() <= left + 1,
                "{} empty with {left} in use",
                pipes.empty.len()
            );
        }
        assert_eq!((pipes.count(), pipes.empty.len()), (1, 1));
    }

    #[test]
    fn c6_8_pipes_that_were_closed_with_their_pairs_are_no_reason_to_keep_empty_ones() {
        let (mut pipes, _, now) = pipes(usize::MAX);
        let mut taken: Vec<Pipe> = (0..8).map_while(|_| pipes.take(now)).collect();
        taken.drain(..4).for_each(|pipe| pipes.give_back(pipe));
        assert_eq!(pipes.empty.len(), 4);
        drop(taken);
        pipes.trim();
        assert_eq!((pipes.count(), pipes.empty.len()), (1, 1));
    }

    #[test]
    fn c9_1_a_shortage_of_pipes_is_not_met_at_every_read() {
        let (mut pipes, asked, now) = pipes(0);
        assert!(pipes.take(now).is_none());
        assert!(pipes.take(now).is_none() && !pipes.may_begin(now));
        assert_eq!(asked.load(Relaxed), 1);
        assert!(pipes.may_begin(now + PAUSE) && pipes.take(now + PAUSE).is_none());
        assert_eq!(asked.load(Relaxed), 3);
    }

    #[test]
    fn c4_3_empty_pipes_are_closed_when_descriptors_run_out_and_none_is_made_for_a_while() {
        let (mut pipes, _, now) = pipes(usize::MAX);
        assert!(!pipes.close_empty(now), "there is none");
        assert!(pipes.take(now).is_none());
        let later = now + PAUSE;
        let taken = [pipes.take(later).unwrap(), pipes.take(later).unwrap()];
        taken.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert!(pipes.close_empty(later));
        assert_eq!((pipes.count(), pipes.take(later).is_some()), (0, false));
    }

    #[test]
    fn c6_8_nothing_is_spliced_where_a_signal_might_kill_the_process() {
        let system = Asked { pipes: usize::MAX, ..Asked::default() };
        let mut pipes = Pipes::new(Some(Box::new(system.clone())));
        let now = Instant::now();
        assert!(!pipes.may_begin(now) && !pipes.may_begin(now) && !pipes.may_begin(now + PAUSE));
        assert_eq!(system.asked.load(Relaxed), 2);
    }

    #[test]
    fn a_pipe_knows_what_is_left_in_it() {
        let (mut pipes, _, now) = pipes(1);
        let mut pipe = pipes.take(now).unwrap();
        let mut source = Script::new().reads([Act::Data(vec![7; 150])]);
        let mut sink = Script::new().takes([60, 40]);
        assert_eq!((pipe.fill(&mut source).unwrap(), pipe.is_empty()), (100, false));
        assert_eq!((pipe.drain(&mut sink).unwrap(), pipe.is_empty()), (60, false));
        assert_eq!((pipe.drain(&mut sink).unwrap(), pipe.is_empty()), (40, true));
    }
}
