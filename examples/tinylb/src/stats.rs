//! The balancer's counters as JSON.

use serde_json::{Map, Value, json};
use tinylb::{BackendStats, EndCounts, EndReason, Stats};

/// Returns the counters as one line of JSON.
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
        "weight": backend.weight,
        "ejected": backend.ejected,
        "open": backend.usage.open,
        "total": backend.usage.total,
        "dial_failures": backend.usage.dial_failures,
        "bytes_up": backend.usage.bytes_up,
        "bytes_down": backend.usage.bytes_down,
    })
}

fn reasons_to_json(counts: &EndCounts) -> Map<String, Value> {
    counts.iter().map(|(reason, count)| (reason_text(reason), count.into())).collect()
}

/// Returns the name of a reason, which stays as scripts know it whatever the library calls it.
fn reason_text(reason: EndReason) -> String {
    match reason {
        EndReason::IdleTimeout => "idle time-out".to_owned(),
        EndReason::HalfClosedTimeout => "half-closed time-out".to_owned(),
        EndReason::Shutdown => "shut down".to_owned(),
        EndReason::BackendsFailed => "all backends failed".to_owned(),
        reason => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_keep_the_names_that_scripts_know() {
        let names: Vec<String> = EndReason::ALL.iter().copied().map(reason_text).collect();
        for name in [
            "finished",
            "client failed",
            "backend failed",
            "target removed",
            "drain limit",
            "idle time-out",
            "half-closed time-out",
            "shut down",
            "no backend",
            "all backends failed",
            "dial limit",
            "local failure",
        ] {
            assert!(names.iter().any(|shown| shown == name), "{name} is not in {names:?}");
        }
    }
}
