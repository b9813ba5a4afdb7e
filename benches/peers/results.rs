//! The figures of all rounds, and what is made of them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// A line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) decimals: usize,
}

const fn row(name: &'static str, title: &'static str, decimals: usize) -> Row {
    Row { name, title, decimals }
}

pub(crate) const ROWS: &[Row] = &[
    row("short cpu", "CPU s per 10k short connections, 64 at once", 3),
    row("short rate", "… connections per s", 0),
    row("short p50", "… p50, µs", 0),
    row("short p99", "… p99, µs", 0),
    row("trips64 cpu", "CPU s per 1M round trips of 64 B, 64 connections", 2),
    row("trips64 rate", "… round trips per s", 0),
    row("trips64 p50", "… p50, µs", 0),
    row("trips64 p99", "… p99, µs", 0),
    row("trips1000 cpu", "CPU s per 1M round trips of 64 B, 1000 connections", 2),
    row("trips1000 rate", "… round trips per s", 0),
    row("trips1000 p50", "… p50, µs", 0),
    row("trips1000 p99", "… p99, µs", 0),
    row("bulk1 cpu", "CPU s per GB, one connection, one way", 3),
    row("bulk1 rate", "… GB/s", 2),
    row("bulk1 all", "… CPU s per GB of client, proxy and backend", 3),
    row("bulk16 cpu", "CPU s per GB, 16 connections, both ways", 3),
    row("bulk16 rate", "… GB/s", 2),
    row("bulk16 all", "… CPU s per GB of client, proxy and backend", 3),
    row("memory1000", "user KiB per idle pair, 1000 pairs", 2),
    row("left1000", "… still held after they closed", 2),
    row("memory5000", "user KiB per idle pair, 5000 pairs", 2),
    row("left5000", "… still held after they closed", 2),
    row("stalled", "user KiB per pair whose client never reads, 1000 pairs", 1),
    row("removal", "ms until the last of 250 of 1000 clients sees its backend removed", 2),
    row("removal worst", "… worst round trip of another pair meanwhile, µs", 0),
    row("removal100", "µs per pair until 100 clients see theirs closed by one update", 2),
    row("worst100", "… worst round trip of another pair meanwhile, µs", 0),
    row("removal1000", "µs per pair until 1000 clients see theirs closed by one update", 2),
    row("worst1000", "… worst round trip of another pair meanwhile, µs", 0),
    row("removal9000", "µs per pair until 9000 clients see theirs closed by one update", 2),
    row("worst9000", "… worst round trip of another pair meanwhile, µs", 0),
    row("beside p50", "p50 of a round trip beside 16 bulk transfers, µs", 0),
    row("beside p99", "… p99, µs", 0),
    row("calls lone", "system calls per short connection, one at a time", 1),
    row("calls 64", "… 64 at once", 1),
    row("calls trips1", "system calls per round trip, 1 connection", 2),
    row("calls trips64", "… 64 connections", 2),
];

#[derive(Default)]
pub(crate) struct Results(HashMap<(&'static str, &'static str), Vec<f64>>);

impl Results {
    /// One more round's figure.
    pub(crate) fn add(&mut self, row: &'static str, contender: &'static str, figure: f64) {
        self.0.entry((row, contender)).or_default().push(figure);
    }

    fn rounds(&self, row: &'static str, contender: &'static str) -> &[f64] {
        self.0.get(&(row, contender)).map_or(&[], Vec::as_slice)
    }

    /// All there is, for anyone who wants to make something else of it.
    pub(crate) fn to_json(&self) -> Value {
        let mut rows = Map::new();
        for (&(row, contender), figures) in &self.0 {
            rows.entry(row).or_insert_with(|| json!({}))[contender] = json!(figures);
        }
        Value::Object(rows)
    }

    pub(crate) fn median(&self, row: &'static str, contender: &'static str) -> Option<f64> {
        median(self.rounds(row, contender).to_vec())
    }

    /// Half of the way from the least to the most, relative to the median.
    pub(crate) fn spread(&self, row: &'static str, contender: &'static str) -> Option<f64> {
        let rounds = self.rounds(row, contender);
        let most = rounds.iter().copied().fold(f64::MIN, f64::max);
        let least = rounds.iter().copied().fold(f64::MAX, f64::min);
        let spread = (most - least) / 2.0 / self.median(row, contender)?;
        (rounds.len() > 1 && spread.is_finite()).then_some(spread.abs())
    }

    /// The median of the ratios of `contender` to `base`, each within a round: what disturbed both
    /// cancels out.
    pub(crate) fn ratio(
        &self,
        row: &'static str,
        contender: &'static str,
        base: &'static str,
    ) -> Option<f64> {
        let (figures, bases) = (self.rounds(row, contender), self.rounds(row, base));
        let ratios = figures.iter().zip(bases).map(|(figure, base)| figure / base);
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(figures[middle]),
        _ => Some((figures[middle - 1] + figures[middle]) / 2.0),
    }
}
