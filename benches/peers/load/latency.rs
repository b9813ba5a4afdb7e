//! How long each of many things took.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) struct Latencies {
    begun: Instant,
    nanos: Vec<u64>,
}

impl Latencies {
    pub(crate) fn begin(expected: usize) -> Self {
        Self { nanos: Vec::with_capacity(expected), begun: Instant::now() }
    }

    pub(crate) fn add(&mut self, took: Duration) {
        self.nanos.push(took.as_nanos() as u64);
    }

    pub(crate) fn count(&self) -> usize {
        self.nanos.len()
    }

    pub(crate) fn report(mut self) -> Value {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.nanos.sort_unstable();
        json!({
            "per_second": self.nanos.len() as f64 / seconds,
            "p50_us": self.percentile(50),
            "p99_us": self.percentile(99),
        })
    }

    fn percentile(&self, percent: usize) -> f64 {
        let index = (self.nanos.len() * percent / 100).min(self.nanos.len().saturating_sub(1));
        self.nanos.get(index).map_or(0.0, |&nanos| nanos as f64 / 1e3)
    }
}
