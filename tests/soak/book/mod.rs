//! All that is known of a balancer's connections, from three sides: what its observer and its backends are told on its
//! own thread, what clients saw, and what backends saw. Here it is held against the contract.

mod observing;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::end::Report;
use crate::faults::{Faults, lock};
use crate::fleet::Target;
use crate::history::{History, Set};
use crate::plan::Brief;

pub(crate) use observing::Scribe;
use record::Record;

/// The balancer's limit for all attempts to find a client a backend.
pub(crate) const DIAL_LIMIT: Duration = Duration::from_secs(2);
/// How many failed dials in a row make a balancer pass over a backend.
pub(crate) const FAILURES_TO_EJECT: u32 = 3;
/// How long a connection is remembered after all of it is known: its header may still wait at a backend that is late.
const MEMORY: Duration = Duration::from_secs(10);

/// The book of one balancer.
pub(crate) struct Book {
    name: &'static str,
    targets: Arc<[Target]>,
    faults: Arc<Faults>,
    pages: Mutex<Pages>,
}

struct Pages {
    history: History,
    /// The key served last.
    cursor: Option<Arc<str>>,
    /// How often a key's target has failed since it was reached last.
    failures: HashMap<Attempt, u32>,
    /// Connections whose client has not been accepted yet, by the client's address.
    coming: HashMap<String, u64>,
    /// Pairs of the balancer, by the number that it gave them.
    pairs: HashMap<u64, Pair>,
    /// The same, by the client's address.
    pair_at: HashMap<String, u64>,
    /// By the numbers of connections.
    records: HashMap<u64, Record>,
    counts: Counts,
    kinds: Kinds,
    updates: Updates,
}

/// How many connections of each plan there were, and how many of them went through all of it: the others were refused, or
/// cut by an update.
pub(crate) type Kinds = BTreeMap<&'static str, (u64, u64)>;

/// A key, and the target that it named.
type Attempt = (Arc<str>, usize);

/// A client that the balancer has accepted, until it has ended.
struct Pair {
    connection: u64,
    /// What was dialled for it.
    tried: Vec<Attempt>,
    /// A dial in flight, and the set it was begun under.
    dial: Option<(Attempt, u64)>,
    /// The target that it is connected with, and the set under which that was dialled.
    connected: Option<(usize, u64)>,
    drain: Option<Drain>,
}

/// How long a pair may go on whose target drains.
#[derive(Clone, Copy)]
struct Drain {
    /// When the limit runs out: this is between the two, for it is not known from which moment on the balancer counts.
    earliest: Instant,
    latest: Instant,
    /// How many updates have been applied since that latest moment.
    updates_after: u32,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) connected: u64,
    pub(crate) attempts_failed: u64,
    pub(crate) refused: u64,
    pub(crate) ended: u64,
    pub(crate) removed: u64,
    pub(crate) drained_out: u64,
    pub(crate) finished: u64,
    /// Of connections that have ended.
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    /// Connected for a client that says nothing of itself.
    pub(crate) unannounced: u64,
    /// The longest time it took an end to see that it was cut, in microseconds.
    pub(crate) slowest_cut: u64,
}

impl Counts {
    /// Those of two balancers together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            connected: self.connected + other.connected,
            attempts_failed: self.attempts_failed + other.attempts_failed,
            refused: self.refused + other.refused,
            ended: self.ended + other.ended,
            removed: self.removed + other.removed,
            drained_out: self.drained_out + other.drained_out,
            finished: self.finished + other.finished,
            bytes_up: self.bytes_up + other.bytes_up,
            bytes_down: self.bytes_down + other.bytes_down,
            unannounced: self.unannounced + other.unannounced,
            slowest_cut: self.slowest_cut.max(other.slowest_cut),
        }
    }
}

/// What updates reported, and what should have been.
#[derive(Default)]
struct Updates {
    closed: usize,
    cancelled: usize,
    /// Dials that were given up since their target was gone.
    seen_cancelled: usize,
    /// Clients that left while a dial was in flight that an update may have cancelled just before.
    maybe_cancelled: usize,
    /// Pairs that ended since the last set was handed over.
    ended_meanwhile: usize,
}

// The load's side.
impl Book {
    pub(crate) fn new(name: &'static str, targets: Arc<[Target]>, faults: Arc<Faults>) -> Self {
        let pages = Pages {
            history: History::new(),
            cursor: None,
            failures: HashMap::new(),
            coming: HashMap::new(),
            pairs: HashMap::new(),
            pair_at: HashMap::new(),
            records: HashMap::new(),
            counts: Counts::default(),
            kinds: Kinds::new(),
            updates: Updates::default(),
        };
        Self { name, targets, faults, pages: Mutex::new(pages) }
    }

    /// A client is about to connect from this address.
    pub(crate) fn begin(&self, connection: u64, addr: String, plan: Brief) {
        let mut pages = lock(&self.pages);
        pages.coming.insert(addr, connection);
        let record = Record {
            plan,
            client: None,
            is_met: false,
            backend: None,
            ended: None,
            settled_at: None,
            is_counted: false,
        };
        pages.records.insert(connection, record);
    }

    pub(crate) fn client_reports(&self, connection: u64, report: Report) {
        self.update_record(connection, |record| record.client = Some(report));
    }

    /// A backend has read who the client is.
    pub(crate) fn backend_meets(&self, connection: u64) {
        self.update_record(connection, |record| {
            record.is_met = true;
            record.settled_at = None;
        });
    }

    pub(crate) fn backend_reports(&self, connection: u64, report: Report) {
        self.update_record(connection, |record| record.backend = Some(report));
    }

    fn update_record(&self, connection: u64, change: impl FnOnce(&mut Record)) {
        let mut pages = lock(&self.pages);
        let Some(record) = pages.records.get_mut(&connection) else {
            return self.fault(format!("connection {connection} is unknown, or long over"));
        };
        change(record);
        self.settle(&mut pages, connection);
    }

    /// Judges a connection once all is known that there will be.
    fn settle(&self, pages: &mut Pages, connection: u64) {
        let Some(record) = pages.records.get_mut(&connection) else { return };
        if !record.is_complete() {
            return;
        }
        if let Some(complaint) = record.complaint() {
            self.fault(format!("connection {connection} {complaint}"));
        }
        pages.counts.slowest_cut =
            pages.counts.slowest_cut.max(record.slowest_cut().as_micros() as u64);
        if !std::mem::replace(&mut record.is_counted, true) {
            let (all, through) = pages.kinds.entry(record.plan.name).or_default();
            *all += 1;
            *through += u64::from(record.went_through());
        }
        record.settled_at = Some(Instant::now());
    }

    fn fault(&self, fault: impl AsRef<str>) {
        self.faults.report(format!("[{}] {}", self.name, fault.as_ref()));
    }

    fn require(&self, is_so: bool, fault: impl FnOnce() -> String) {
        if !is_so {
            self.fault(fault());
        }
    }
}

// Whoever hands over sets, and whoever looks on.
impl Book {
    /// A set is about to be handed over. Returns the number that its backends have to bear.
    pub(crate) fn issue(&self, set: Set, drain: Option<Duration>) -> u64 {
        let mut pages = lock(&self.pages);
        pages.updates.ended_meanwhile = 0;
        pages.history.issue(set, drain)
    }

    /// C3.5: what updates reported is what the observer was told. Exact whenever all are applied.
    pub(crate) fn check_updates(&self) {
        let pages = lock(&self.pages);
        let Updates { closed, cancelled, seen_cancelled, maybe_cancelled, .. } = pages.updates;
        let removed = pages.counts.removed as usize;
        self.require(closed == removed, || {
            format!("updates report {closed} closed, but {removed} were told of")
        });
        self.require((seen_cancelled..=seen_cancelled + maybe_cancelled).contains(&cancelled), || {
            format!("updates report {cancelled} cancelled dials, but {seen_cancelled} were seen, and maybe {maybe_cancelled} more")
        });
    }

    pub(crate) fn counts(&self) -> Counts {
        lock(&self.pages).counts
    }

    pub(crate) fn kinds(&self) -> Kinds {
        lock(&self.pages).kinds.clone()
    }

    /// Whether all is known of all connections.
    pub(crate) fn is_settled(&self) -> bool {
        let pages = lock(&self.pages);
        pages.pairs.is_empty() && pages.records.values().all(|record| record.settled_at.is_some())
    }

    /// Looks for what has not happened, and forgets what is long over.
    pub(crate) fn look_for_the_overdue(&self) {
        let now = Instant::now();
        let mut pages = lock(&self.pages);
        for (connection, record) in
            pages.records.iter().filter(|(_, record)| record.settled_at.is_none())
        {
            if let Some(missing) = record.overdue(now) {
                self.fault(format!("connection {connection} ({}): {missing}", record.plan.name));
            }
        }
        pages.records.retain(|_, record| record.settled_at.is_none_or(|at| now - at <= MEMORY));
    }
}
