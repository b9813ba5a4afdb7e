//! One line a second, and a summary at the end.

use std::time::Instant;

use crate::book::Kinds;
use crate::rest::{self, Memory};
use crate::rig::Figures;

/// What a round has come to so far.
pub(crate) struct Progress {
    round: &'static str,
    begun: Instant,
    /// Of what came before the round.
    first: Option<Figures>,
    last: Figures,
    memory: Vec<usize>,
}

const MEGA: f64 = 1e6;

impl Progress {
    pub(crate) fn new(round: &'static str) -> Self {
        Self {
            round,
            begun: Instant::now(),
            first: None,
            last: Figures::default(),
            memory: Vec::new(),
        }
    }

    /// What memory was in use, each second.
    pub(crate) fn memory(&self) -> &[usize] {
        &self.memory
    }

    pub(crate) fn show(&mut self, figures: impl Iterator<Item = Figures>) {
        self.last = figures.fold(Figures::default(), Figures::and);
        self.first.get_or_insert(self.last);
        let (descriptors, memory) = (rest::descriptors(), rest::resident());
        self.memory.push(memory);
        let Figures { accepted, open, bytes, counts, updates, slowest_update } = self.last;
        println!(
            "{} {:5.0} s  {accepted} clients, {:.0} MB, {open} open, {} finished, {} cut by removal, {} by a drain, {} refused  \
             {updates} updates, slowest {:.1} ms, slowest cut seen {:.1} ms  {descriptors} descriptors, {:.1} MB resident",
            self.round,
            self.begun.elapsed().as_secs_f64(),
            bytes as f64 / MEGA,
            counts.finished,
            counts.removed,
            counts.drained_out,
            counts.refused,
            slowest_update as f64 / 1e3,
            counts.slowest_cut as f64 / 1e3,
            memory as f64 / MEGA,
        );
    }

    pub(crate) fn summarize(&self, kinds: &[Kinds], memory: &Memory) {
        let Figures { accepted, bytes, counts, updates, slowest_update, .. } = self.last;
        println!(
            "{accepted} clients (with the warm-up): {} finished, {} cut since their target was removed, {} at the end of a drain, \
             {} refused; {} dials failed\n\
             {:.1} GB relayed, each byte checked\n\
             {updates} updates, the slowest applied after {:.1} ms; the slowest cut was seen after {:.1} ms\n\
             {memory}",
            counts.finished,
            counts.removed,
            counts.drained_out,
            counts.refused,
            counts.attempts_failed,
            bytes as f64 / 1e9,
            slowest_update as f64 / 1e3,
            counts.slowest_cut as f64 / 1e3,
        );
        println!("connections that went through their whole plan, of all that had it:");
        for (name, (all, through)) in sum(kinds) {
            println!("  {name}: {through} of {all}");
        }
    }
}

fn sum(parts: &[Kinds]) -> Kinds {
    let mut sum = Kinds::new();
    for (name, (all, through)) in parts.iter().flatten() {
        let entry = sum.entry(name).or_default();
        *entry = (entry.0 + all, entry.1 + through);
    }
    sum
}
