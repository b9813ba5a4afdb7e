//! What every step needs besides its pair: backends, observer, counters, log limits. Apart from the
//! pair table, so that both can be borrowed at once.

use std::time::Instant;

use mio::Registry;

use super::BYTES_PER_DIRECTION;
use super::log_limit::LogLimit;
use super::pair::{ClientInfo, Limits, Relaying};
use crate::end_reason::EndReason;
use crate::log::{debug, info, warn};
use crate::net::SocketOptions;
use crate::observer::{BackendRef, Ended, Observer};
use crate::pool::{Pool, Tried};
use crate::relay::{Pipes, Progress};
use crate::stats::Stats;

/// What the host has chosen.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) limits: Limits,
    pub(crate) max_connections: usize,
    pub(crate) buffer_size: usize,
    pub(crate) socket_options: SocketOptions,
    pub(crate) splice: bool,
}

/// The state of a balancer except its pairs and queues.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) registry: Registry,
    pub(super) pool: Pool,
    /// What every read goes into.
    pub(super) scratch: Vec<u8>,
    /// What spliced bulk moves through.
    pub(super) pipes: Pipes,
    pub(super) observer: Box<dyn Observer>,
    /// All counters except those of backends, which the pool keeps.
    pub(super) counters: Stats,
    pub(super) accept_warnings: LogLimit,
    pub(super) dial_warnings: LogLimit,
    pub(super) port_warnings: LogLimit,
    pub(super) ejection_warnings: LogLimit,
    /// Why all clients are refused, as logged last; `None` if they are served.
    warned_of: Option<&'static str>,
}

/// Returns what bulk moves through: nothing without the feature `splice`, or if the host said so.
#[cfg(all(feature = "splice", target_os = "linux"))]
fn pipes(is_enabled: bool) -> Pipes {
    Pipes::new(is_enabled.then(|| Box::new(crate::relay::Kernel) as _))
}

#[cfg(not(all(feature = "splice", target_os = "linux")))]
fn pipes(_: bool) -> Pipes {
    Pipes::new(None)
}

impl Context {
    pub(super) fn new(
        config: Config,
        registry: Registry,
        pool: Pool,
        observer: Box<dyn Observer>,
    ) -> Self {
        Self {
            scratch: vec![0; config.buffer_size],
            pipes: pipes(config.splice),
            config,
            registry,
            pool,
            observer,
            counters: Stats::default(),
            accept_warnings: LogLimit::default(),
            dial_warnings: LogLimit::default(),
            port_warnings: LogLimit::default(),
            ejection_warnings: LogLimit::default(),
            warned_of: None,
        }
    }

    /// Returns whether any client can be given a backend.
    pub(super) fn may_serve(&self) -> bool {
        self.pool.has_candidate(&mut Tried::default())
    }

    /// Returns why a client without a candidate is refused.
    pub(super) fn refusal(&self) -> EndReason {
        if self.may_serve() { EndReason::BackendsFailed } else { EndReason::NoBackend }
    }

    /// Logs that no backend takes clients, or that one does again: once for each change.
    pub(super) fn log_whether_served(&mut self) {
        let problem = match (self.may_serve(), self.pool.len()) {
            (true, _) => None,
            (false, 0) => Some("there is no backend"),
            (false, _) => Some("every backend is held"),
        };
        if problem != self.warned_of {
            self.warned_of = problem;
            match problem {
                Some(problem) => warn!("{problem}: clients are refused"),
                None => info!("there is a backend again: clients are served"),
            }
        }
    }

    /// Moves bytes both ways and counts them. Returns how many.
    pub(super) fn relay(&mut self, relaying: &mut Relaying, now: Instant) -> (Progress, u64) {
        let Relaying { duplex, assignment } = relaying;
        let before = (duplex.bytes_up, duplex.bytes_down);
        let progress = duplex.drive(&mut self.scratch, &mut self.pipes, BYTES_PER_DIRECTION, now);
        let (up, down) = (duplex.bytes_up - before.0, duplex.bytes_down - before.1);
        self.counters.bytes_up += up;
        self.counters.bytes_down += down;
        self.pool.moved(assignment, up, down);
        (progress, up + down)
    }

    /// Counts and reports a client that reached no backend.
    pub(super) fn count_refused(
        &mut self,
        client: &ClientInfo,
        error: Option<&std::io::Error>,
        reason: EndReason,
        now: Instant,
    ) {
        self.counters.dialling -= 1;
        self.counters.refused.count(reason);
        if reason == EndReason::NoBackend {
            self.log_whether_served(); // before the first update, nothing else logs it
        }
        self.report_end(client, None, error, reason, now);
    }

    /// Counts and reports a pair that was relaying.
    pub(super) fn count_ended(
        &mut self,
        client: &ClientInfo,
        relaying: &Relaying,
        reason: EndReason,
        now: Instant,
    ) {
        self.counters.open -= 1;
        self.counters.ended.count(reason);
        self.report_end(client, Some(relaying), relaying.duplex.failure(), reason, now);
    }

    /// Logs and reports the end of a client, with what it relayed if it reached a backend.
    fn report_end(
        &mut self,
        client: &ClientInfo,
        relaying: Option<&Relaying>,
        error: Option<&std::io::Error>,
        reason: EndReason,
        now: Instant,
    ) {
        debug!("client {} ({}): {reason}", client.id, client.addr);
        let backend = relaying.map(|Relaying { assignment, .. }| BackendRef {
            key: assignment.key(),
            target_name: assignment.target_name(),
        });
        self.observer.ended(&Ended {
            client: client.observed(),
            backend,
            lasted: now.saturating_duration_since(client.accepted_at),
            bytes_up: relaying.map_or(0, |relaying| relaying.duplex.bytes_up),
            bytes_down: relaying.map_or(0, |relaying| relaying.duplex.bytes_down),
            reason,
            error,
        });
    }
}
