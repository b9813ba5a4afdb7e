//! The balancer's counters as JSON.

use serde_json::{Map, Value, json};
use tinylb::{BackendStats, EndCounts, Stats};

/// One line of JSON.
pub(crate) fn to_json(stats: &Stats) -> String {
    let backends: Map<String, Value> = stats
        .backends
        .iter()
        .map(|backend| (backend.key.to_string(), backend_to_json(backend)))
        .collect();
    json!({
        "accepted": stats.accepted,
        "dialling": stats.dialling,
        "open": stats.open,
        "refused": stats.refused.total(),
        "refused_by_reason": reasons_to_json(&stats.refused),
        "ended": stats.ended.total(),
        "ended_by_reason": reasons_to_json(&stats.ended),
        "bytes_up": stats.bytes_up,
        "bytes_down": stats.bytes_down,
        "backends": backends,
    })
    .to_string()
}

fn backend_to_json(backend: &BackendStats) -> Value {
    json!({
        "target": *backend.target_name,
        "ejected": backend.ejected,
        "open": backend.usage.open,
        "total": backend.usage.total,
        "dial_failures": backend.usage.dial_failures,
        "bytes_up": backend.usage.bytes_up,
        "bytes_down": backend.usage.bytes_down,
    })
}

fn reasons_to_json(counts: &EndCounts) -> Map<String, Value> {
    counts.iter().map(|(reason, count)| (reason.to_string(), count.into())).collect()
}
