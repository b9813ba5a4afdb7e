//! One balancer with its clients and backends, the load on it, and what must hold of its counters.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tinylb::{Control, Ejection, EndReason, Server, ServerThread, Stats, Summary, Usage};

use crate::book::{Book, Counts, DIAL_LIMIT, FAILURES_TO_EJECT, Kinds, Scribe};
use crate::changes::{Changer, Tally};
use crate::clients::{self, Visit};
use crate::faults::Faults;
use crate::fleet::{Berths, Fleet, Target};
use crate::history::Set;
use crate::random::{Random, mix};
use crate::wire::{Kind, Place};

/// How many clients may wait to be accepted: more than there are.
const BACKLOG: i32 = 1024;
/// A dial that is not answered keeps its client from others for so long.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// So short that backends which fail are tried again and again.
const EJECTION: Ejection =
    Ejection::new(FAILURES_TO_EJECT, Duration::from_millis(200), Duration::from_secs(2));

/// What is the same for all balancers of a run.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) faults: Arc<Faults>,
    /// How many connections there have been.
    pub(crate) connections: Arc<AtomicU64>,
    pub(crate) updates_per_second: u32,
}

/// A balancer that listens on one kind of socket, and has backends of both.
pub(crate) struct Rig {
    name: &'static str,
    clients: usize,
    directory: PathBuf,
    front: Place,
    targets: Arc<[Target]>,
    book: Arc<Book>,
    fleet: Fleet,
    control: Control,
    server: ServerThread,
    load: Option<Load>,
    tally: Arc<Tally>,
}

struct Load {
    visit: Arc<Visit>,
    clients: Vec<JoinHandle<()>>,
    changer: JoinHandle<()>,
}

/// What a rig has done, for the line of progress.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) accepted: u64,
    pub(crate) open: u64,
    pub(crate) bytes: u64,
    pub(crate) counts: Counts,
    pub(crate) updates: u64,
    pub(crate) slowest_update: u64,
}

impl Figures {
    /// Those of two balancers together.
    pub(crate) fn and(self, other: Self) -> Self {
        let Self { accepted, open, bytes, counts, updates, slowest_update } = other;
        Self {
            accepted: self.accepted + accepted,
            open: self.open + open,
            bytes: self.bytes + bytes,
            counts: self.counts.and(counts),
            updates: self.updates + updates,
            slowest_update: self.slowest_update.max(slowest_update),
        }
    }
}

impl Rig {
    pub(crate) fn start(
        name: &'static str,
        kind: Kind,
        clients: usize,
        directory: &Path,
        run: &Run,
    ) -> io::Result<Self> {
        let directory = directory.join(name);
        std::fs::create_dir(&directory)?;
        let berths = Berths::new(&directory)?;
        let targets = berths.targets.clone();
        let book = Arc::new(Book::new(name, targets.clone(), run.faults.clone()));
        let builder = Server::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .dial_limit(DIAL_LIMIT)
            .ejection(EJECTION)
            .observer(Scribe(book.clone()));
        let place = match kind {
            Kind::Tcp => Place::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            Kind::Unix => Place::Unix(directory.join("front")),
        };
        let (listener, front) = place.listen(BACKLOG)?;
        let server = match kind {
            Kind::Tcp => builder.build(std::net::TcpListener::from(listener)),
            Kind::Unix => builder.build(std::os::unix::net::UnixListener::from(
                std::os::fd::OwnedFd::from(listener),
            )),
        };
        let server = server.map_err(io::Error::other)?;
        let control = server.control();
        // One more for each client whose last connection its backend has not done with, and then some.
        let fleet =
            Fleet::start(berths, run.seed, clients * 5 / 4 + 4, book.clone(), run.faults.clone());
        let server = server.spawn().map_err(io::Error::other)?;
        Ok(Self {
            name,
            clients,
            directory,
            front,
            targets,
            book,
            fleet,
            control,
            server,
            load: None,
            tally: Arc::default(),
        })
    }

    /// Clients come, and the set changes, until the load is stopped.
    pub(crate) fn start_load(&mut self, run: &Run) {
        self.tally = Arc::default();
        let random = Random::new(mix(run.seed, run.connections.load(Ordering::SeqCst)));
        let changer = Changer {
            control: self.control.clone(),
            targets: self.targets.clone(),
            book: self.book.clone(),
            faults: run.faults.clone(),
            random,
            set: Set::new(),
            drains_left: 0,
            tally: self.tally.clone(),
        };
        let interval = Duration::from_secs(1) / run.updates_per_second;
        let changer = thread::spawn(move || changer.run(interval));
        let visit = Arc::new(Visit {
            seed: run.seed,
            front: self.front.clone(),
            directory: self.directory.clone(),
            book: self.book.clone(),
            faults: run.faults.clone(),
            connections: run.connections.clone(),
            is_over: AtomicBool::new(false),
        });
        let clients = clients::start(&visit, self.clients);
        self.load = Some(Load { visit, clients, changer });
    }

    /// Has the clients leave when they are done with the connections that they have. [`Self::join_load`] waits for it.
    pub(crate) fn stop_load(&self) {
        if let Some(load) = &self.load {
            load.visit.is_over.store(true, Ordering::SeqCst);
        }
        self.tally.is_over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn join_load(&mut self, faults: &Faults) {
        let Some(Load { clients, changer, .. }) = self.load.take() else { return };
        for thread in clients.into_iter().chain([changer]) {
            faults.unless(thread.join().is_ok(), || "a thread of the load has panicked".to_owned());
        }
    }

    pub(crate) fn kinds(&self) -> Kinds {
        self.book.kinds()
    }

    /// Whether all has come to an end that the load began.
    pub(crate) fn is_settled(&self) -> bool {
        let is_empty = self
            .control
            .stats()
            .and_then(|stats| stats.wait())
            .is_ok_and(|stats| stats.open + stats.dialling == 0);
        is_empty && self.book.is_settled() && self.fleet.is_idle()
    }

    /// What is not settled yet.
    pub(crate) fn unsettled(&self) -> String {
        let is_busy = !self.fleet.is_idle();
        format!(
            "[{}] {:?}, backends busy: {is_busy}, {:?}",
            self.name,
            self.book.counts(),
            self.control.stats().and_then(|stats| stats.wait())
        )
    }

    /// Holds the counters of this moment against each other and against what the observer was told, and looks for what
    /// should have happened by now.
    pub(crate) fn check(&self, faults: &Faults) -> Figures {
        self.book.look_for_the_overdue();
        let before = self.book.counts();
        let stats = match self.control.stats().and_then(|stats| stats.wait()) {
            Ok(stats) => stats,
            Err(err) => {
                faults.report(format!("[{}] no counters: {err}", self.name));
                return Figures::default();
            }
        };
        let after = self.book.counts();
        if let Err(complaint) = add_up(&stats).and_then(|()| lie_between(&before, &stats, &after)) {
            faults.report(format!(
                "[{}] {complaint}\n    {stats:?}\n    {before:?}\n    {after:?}",
                self.name
            ));
        }
        Figures {
            accepted: stats.accepted,
            open: stats.open,
            bytes: stats.bytes_up + stats.bytes_down,
            counts: after,
            updates: self.tally.updates.load(Ordering::SeqCst),
            slowest_update: self.tally.slowest.load(Ordering::SeqCst),
        }
    }

    /// Nobody is there any more: now all is exact.
    pub(crate) fn check_at_rest(&self, faults: &Faults) {
        self.check(faults);
        let (counts, stats) = (
            self.book.counts(),
            self.control.stats().and_then(|stats| stats.wait()).unwrap_or_default(),
        );
        let bytes = (stats.bytes_up, stats.bytes_down);
        faults.unless(bytes == (counts.bytes_up, counts.bytes_down), || {
            format!(
                "[{}] {bytes:?} bytes were moved, but connections tell of {counts:?}",
                self.name
            )
        });
        let (silent, unannounced) = (self.fleet.silent(), counts.unannounced);
        faults.unless(silent <= unannounced, || {
            format!(
                "[{}] {silent} streams ended as if in order before their header, of {unannounced}",
                self.name
            )
        });
    }

    /// Drains the balancer, of which nothing is left then, and has the backends leave.
    pub(crate) fn finish(self, limit: Duration, faults: &Faults) {
        let ended = self.control.drain(limit).and_then(|()| self.server.join());
        match ended {
            Ok(summary) => {
                let counts = self.book.counts();
                faults.unless(agrees(&summary, &counts), || {
                    format!("[{}] {summary:?}, but {counts:?}", self.name)
                });
            }
            Err(err) => faults.report(format!("[{}] the balancer does not end: {err}", self.name)),
        }
        self.fleet.stop();
    }
}

/// C8.1: the sums.
fn add_up(stats: &Stats) -> Result<(), String> {
    let (refused, ended) = (stats.refused.total(), stats.ended.total());
    let all = stats.backends.iter().map(|backend| backend.usage).chain([stats.departed]);
    let sum = |of: fn(&Usage) -> u64| all.clone().map(|usage| of(&usage)).sum::<u64>();
    let sums = [
        ("accepted", stats.accepted, refused + ended + stats.dialling + stats.open),
        ("open", stats.open, sum(|usage| usage.open)),
        ("connected", ended + stats.open, sum(|usage| usage.total)),
        ("bytes up", stats.bytes_up, sum(|usage| usage.bytes_up)),
        ("bytes down", stats.bytes_down, sum(|usage| usage.bytes_down)),
        ("local failures", stats.refused.of(EndReason::LocalFailure), 0),
    ];
    match sums.into_iter().find(|(_, counted, sum)| counted != sum) {
        Some((name, counted, sum)) => Err(format!("{name}: {counted} instead of {sum}")),
        None => Ok(()),
    }
}

/// The counters were taken between two moments, of which the observer has its own.
fn lie_between(before: &Counts, stats: &Stats, after: &Counts) -> Result<(), String> {
    let failures = stats.backends.iter().map(|backend| backend.usage).chain([stats.departed]);
    let failures = failures.map(|usage| usage.dial_failures).sum();
    let counts = [
        ("accepted", before.accepted, stats.accepted, after.accepted),
        ("refused", before.refused, stats.refused.total(), after.refused),
        ("ended", before.ended, stats.ended.total(), after.ended),
        ("connected", before.connected, stats.ended.total() + stats.open, after.connected),
        ("dial failures", before.attempts_failed, failures, after.attempts_failed),
        ("removed", before.removed, stats.ended.of(EndReason::TargetRemoved), after.removed),
        (
            "drained out",
            before.drained_out,
            stats.ended.of(EndReason::DrainLimit),
            after.drained_out,
        ),
        ("finished", before.finished, stats.ended.of(EndReason::Finished), after.finished),
        // Bytes are counted while they flow, and told at the end.
        ("bytes up", before.bytes_up, stats.bytes_up, u64::MAX),
        ("bytes down", before.bytes_down, stats.bytes_down, u64::MAX),
    ];
    match counts
        .into_iter()
        .find(|(_, before, counted, after)| !(before..=after).contains(&counted))
    {
        Some((name, before, counted, after)) => {
            Err(format!("{name}: {counted}, not {before} to {after}"))
        }
        None => Ok(()),
    }
}

fn agrees(summary: &Summary, counts: &Counts) -> bool {
    let told = (counts.accepted, counts.refused, counts.ended, counts.bytes_up, counts.bytes_down);
    let summed = (
        summary.accepted,
        summary.refused.total(),
        summary.ended.total(),
        summary.bytes_up,
        summary.bytes_down,
    );
    summed == told
}
