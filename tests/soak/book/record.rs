//! One connection: what is known of it, and what is wrong with it.

use std::time::{Duration, Instant};

use tinylb::EndReason;

use crate::end::{Outcome, Report};
use crate::plan::Brief;
use crate::verdict::{Case, Ending, PROMPT, judge};
use tinylb_tests::PATIENCE;

/// A connection, and what is known of it.
pub(super) struct Record {
    pub(super) plan: Brief,
    pub(super) client: Option<Report>,
    /// A backend has read its header.
    pub(super) is_met: bool,
    pub(super) backend: Option<Report>,
    pub(super) ended: Option<Ending>,
    pub(super) settled_at: Option<Instant>,
    pub(super) is_counted: bool,
}

impl Record {
    /// Whether all is known that there will be. Of a backend that never read a header nothing will.
    pub(super) fn is_complete(&self) -> bool {
        self.client.is_some() && self.ended.is_some() && self.is_met == self.backend.is_some()
    }

    fn reports(&self) -> impl Iterator<Item = &Report> {
        [&self.client, &self.backend].into_iter().flatten()
    }

    /// What is wrong with a connection of which all is known.
    pub(super) fn complaint(&self) -> Option<String> {
        let Self { plan, client: Some(client), backend, ended: Some(ended), .. } = self else {
            return None;
        };
        let failure = |report: &Report| match &report.outcome {
            Outcome::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        let verdict =
            || judge(&Case { plan: *plan, client, backend: backend.as_ref(), ended }).err();
        let complaint = self.reports().find_map(failure).or_else(verdict)?;
        Some(format!(
            "({}): {complaint}\n    client {client:?}\n    backend {backend:?}\n    balancer {ended:?}",
            plan.name
        ))
    }

    /// Whether the connection did what it was planned to do.
    pub(super) fn went_through(&self) -> bool {
        use EndReason::{BackendFailed, ClientFailed, Finished};
        self.ended
            .as_ref()
            .is_some_and(|ended| matches!(ended.reason, Finished | ClientFailed | BackendFailed))
    }

    /// How long it took the ends to see that an update, or the limit of a drain, had cut them.
    pub(super) fn slowest_cut(&self) -> Duration {
        match &self.ended {
            Some(ended)
                if matches!(ended.reason, EndReason::TargetRemoved | EndReason::DrainLimit) =>
            {
                let late = |report: &Report| report.at.saturating_duration_since(ended.at);
                self.reports().map(late).max().unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    }

    /// What should have happened by now.
    pub(super) fn overdue(&self, now: Instant) -> Option<String> {
        let since = |at: Instant| now.saturating_duration_since(at);
        match (&self.client, &self.ended) {
            (Some(client), None) if since(client.at) > PATIENCE => Some(format!(
                "the client is gone since {:?}, but the pair has not ended",
                since(client.at)
            )),
            (client, Some(ended)) => {
                // What has ended in order may still be read for a while.
                let limit = if ended.reason == EndReason::Finished { PATIENCE } else { PROMPT };
                let missing = if client.is_none() { "client" } else { "backend" };
                (since(ended.at) > limit).then(|| {
                    format!(
                        "the {missing} does not see that it ended ({}) {:?} ago",
                        ended.reason,
                        since(ended.at)
                    )
                })
            }
            _ => None,
        }
    }
}
