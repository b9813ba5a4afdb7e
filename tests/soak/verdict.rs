//! Whether what the client, the backend and the balancer say of one connection fits together, and its plan.

use std::time::{Duration, Instant};

use tinylb::EndReason;

use crate::end::{Cut, HEADER, Outcome, Report};
use crate::plan::{Brief, Leave};
use crate::wire::Kind;

/// How long after the balancer's word an end may take to see that it is cut. It takes milliseconds, as the summary shows,
/// and the turn of a thread: on a machine with fifty others at work seconds were seen in which no thread of this process
/// had one. So this tells what is late for ever, and no more.
pub(crate) const PROMPT: Duration = Duration::from_secs(15);

/// What the balancer said of the end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    /// Whether a backend was connected.
    pub(crate) was_connected: bool,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) at: Instant,
}

/// One connection, as all three saw it.
pub(crate) struct Case<'a> {
    pub(crate) plan: Brief,
    pub(crate) client: &'a Report,
    /// None if the backend never learned who the client was: a cut may have come before the header.
    pub(crate) backend: Option<&'a Report>,
    pub(crate) ended: &'a Ending,
}

/// What is wrong with it, if anything is.
pub(crate) fn judge(case: &Case<'_>) -> Result<(), String> {
    count_bytes(case)?;
    check_reason(case)?;
    check_end(case, case.client, case.backend, "client")?;
    if let Some(backend) = case.backend {
        check_end(case, backend, Some(case.client), "backend")?;
    }
    Ok(())
}

fn require(is_so: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(complaint()) }
}

/// C6.1, and C3.5: no side got a byte that the other did not send, or that the balancer did not count before the end.
fn count_bytes(case: &Case<'_>) -> Result<(), String> {
    let Case { client, backend, ended, .. } = case;
    let in_order = |name, chain: &[u64]| {
        require(chain.is_sorted_by(|sent, got| sent >= got), || {
            format!("{name} bytes do not add up: {chain:?}")
        })
    };
    match backend {
        Some(backend) => {
            in_order("uploaded", &[client.sent, ended.bytes_up, backend.received])?;
            in_order("downloaded", &[backend.sent, ended.bytes_down, client.received])
        }
        None => {
            in_order("uploaded", &[client.sent, ended.bytes_up])?;
            in_order("downloaded by nobody", &[0, ended.bytes_down, client.received])
        }
    }
}

/// Whether the connection may have ended for this reason. (That a target is gone, or a set empty, was checked when the
/// balancer said it.)
fn check_reason(case: &Case<'_>) -> Result<(), String> {
    let Case { plan, client, backend, ended } = case;
    let left =
        |report: Option<&Report>| report.is_some_and(|report| report.outcome == Outcome::Left);
    let may = match ended.reason {
        EndReason::Finished => return check_finished(case),
        EndReason::ClientFailed => left(Some(client)),
        EndReason::BackendFailed => left(*backend),
        EndReason::TargetRemoved | EndReason::DrainLimit => ended.was_connected,
        EndReason::NoBackend | EndReason::BackendsFailed | EndReason::DialLimit => {
            !ended.was_connected && client.outcome != Outcome::Done
        }
        _ => false,
    };
    require(may, || format!("{:?} is no reason for it to end", ended.reason))?;
    // Where a plain close is all there is of a cut, one that comes right after the last byte looks like an end.
    let is_told_apart =
        client.kind.sees_resets() && backend.is_some_and(|backend| backend.kind.sees_resets());
    let are_done = client.outcome == Outcome::Done
        && backend.is_some_and(|backend| backend.outcome == Outcome::Done);
    require(!(is_told_apart && are_done && plan.is_announced), || {
        format!("both saw an end in order, though it ended for {:?}", ended.reason)
    })
}

fn check_finished(case: &Case<'_>) -> Result<(), String> {
    let Case { plan, client, backend, ended } = case;
    if leaving_looks_like_an_end(client, plan.client_leaves, plan.is_announced)
        || backend
            .is_some_and(|backend| leaving_looks_like_an_end(backend, plan.backend_leaves, true))
    {
        return Ok(());
    }
    let Some(backend) = backend else {
        return Err("finished, but the backend never heard of it".to_owned());
    };
    require(client.outcome == Outcome::Done && backend.outcome == Outcome::Done, || {
        "finished, but not for both ends".to_owned()
    })?;
    let counts = [
        client.sent,
        ended.bytes_up,
        backend.received,
        backend.sent,
        ended.bytes_down,
        client.received,
    ];
    require(counts[..3].iter().all(|count| *count == counts[0]), || {
        format!("uploaded bytes are lost: {counts:?}")
    })?;
    require(counts[3..].iter().all(|count| *count == counts[3]), || {
        format!("downloaded bytes are lost: {counts:?}")
    })?;
    require(client.sent >= HEADER as u64, || "finished without a header".to_owned())
}

/// Whether an end has left by what the balancer sees as an end in order: it closed its socket, with nothing unread, or
/// had no other way to reset. A vanishing TCP client that was flooded always has something unread.
fn leaving_looks_like_an_end(report: &Report, leaves: Option<Leave>, is_announced: bool) -> bool {
    let closed = report.kind == Kind::Unix || (leaves == Some(Leave::Closing) && !is_announced);
    report.outcome == Outcome::Left && closed
}

/// C3.10, and that a cut is seen promptly.
fn check_end(
    case: &Case<'_>,
    end: &Report,
    other: Option<&Report>,
    name: &str,
) -> Result<(), String> {
    let ended = case.ended;
    if let Outcome::Cut(cut) = end.outcome {
        let was_left_by_closing =
            other.is_some_and(|other| other.outcome == Outcome::Left && other.kind == Kind::Unix);
        require(cut != Cut::Closed || !end.kind.sees_resets() || was_left_by_closing, || {
            format!("the {name}'s stream was cut, but ended as if in order")
        })?;
        require(ended.reason != EndReason::Finished || was_left_by_closing, || {
            format!("finished, but the {name} was cut")
        })?;
    }
    let late = end.at.saturating_duration_since(ended.at);
    require(ended.reason == EndReason::Finished || late <= PROMPT, || {
        format!("the {name} saw its end {late:?} after the balancer said {:?}", ended.reason)
    })
}
