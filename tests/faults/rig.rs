//! A balancer all of whose streams follow a plan, and the books that must balance when it has ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use tinylb::{
    Applied, AttemptFailed, BackendSet, Builder, Client, Connected, EndReason, Ended, IntoListener,
    Listener, Observer, TcpBackend, Usage,
};

use crate::faulty::{FaultyBackend, FaultyListener, Lab};
use crate::talk::{Answering, Report};
use tinylb_tests::{Balancer, PATIENCE, wait_for};

/// A balancer with backends that answer.
pub(crate) struct Rig {
    pub(crate) balancer: Balancer,
    pub(crate) lab: Arc<Lab>,
    pub(crate) books: Books,
    pub(crate) backends: Vec<Answering>,
    reports: mpsc::Receiver<Report>,
}

impl Rig {
    /// With so many backends, named `a`, `b` and so on.
    #[track_caller]
    pub(crate) fn new(builder: Builder, backends: usize, lab: Lab) -> Self {
        Self::with(builder, backends, &Arc::new(lab), tinylb_tests::listener())
    }

    #[track_caller]
    pub(crate) fn with(
        builder: Builder,
        backends: usize,
        lab: &Arc<Lab>,
        listener: impl IntoListener,
    ) -> Self {
        let (sender, reports) = mpsc::channel();
        let backends: Vec<_> = (0..backends).map(|_| Answering::new(sender.clone())).collect();
        let set = set_of(lab, &backends.iter().map(|backend| backend.addr).collect::<Vec<_>>());
        let books = Books::default();
        let listener: Box<dyn Listener> =
            Box::new(FaultyListener::new(listener.into_listener().unwrap(), lab));
        let server = builder.backends(set).observer(books.clone()).build(listener).unwrap();
        let addr = server.local_addr().ip().unwrap_or(([0; 4], 0).into());
        let control = server.control();
        let balancer = Balancer { addr, control, thread: server.spawn().unwrap() };
        Self { balancer, lab: lab.clone(), books, backends, reports }
    }

    /// The set that it began with.
    pub(crate) fn set(&self) -> BackendSet {
        set_of(&self.lab, &self.backends.iter().map(|backend| backend.addr).collect::<Vec<_>>())
    }

    /// What a backend got next, on whichever connection ended next.
    #[track_caller]
    pub(crate) fn report(&self) -> Report {
        self.reports.recv_timeout(PATIENCE).expect("no backend has got to the end of a connection")
    }

    /// What backends have got on the connections that have ended by now.
    pub(crate) fn reports_so_far(&self) -> impl Iterator<Item = Report> + '_ {
        self.reports.try_iter()
    }

    /// The reports that come to each of so many conversations, by seed; others count for none.
    #[track_caller]
    pub(crate) fn reports(&self, count: usize) -> BTreeMap<u64, Report> {
        let mut reports = BTreeMap::new();
        while reports.len() < count {
            let report = self.report();
            if let Some(talk) = report.0 {
                assert!(
                    reports.insert(talk.seed, report).is_none(),
                    "conversation {} was had twice",
                    talk.seed
                );
            }
        }
        reports
    }

    /// Waits until this many clients have ended.
    #[track_caller]
    pub(crate) fn wait_for_ends(&self, count: usize) {
        wait_for("the clients have ended", || {
            (self.books.lock().ended.len() >= count).then_some(())
        });
        self.assert_adds_up();
    }

    /// C8.1, to the last counter.
    #[track_caller]
    pub(crate) fn assert_adds_up(&self) {
        let stats = self.balancer.stats();
        let mut sum = stats.departed;
        for Usage { open, total, dial_failures, bytes_up, bytes_down, .. } in
            stats.backends.iter().map(|b| b.usage)
        {
            sum.open += open;
            sum.total += total;
            sum.dial_failures += dial_failures;
            sum.bytes_up += bytes_up;
            sum.bytes_down += bytes_down;
        }
        assert_eq!(
            (sum.open, sum.total),
            (stats.open, stats.open + stats.ended.total()),
            "C8.1: {stats:?}"
        );
        assert_eq!(
            (sum.bytes_up, sum.bytes_down),
            (stats.bytes_up, stats.bytes_down),
            "C8.1: {stats:?}"
        );
    }

    /// Shuts the balancer down: nothing of it is left, and its books balance.
    #[track_caller]
    pub(crate) fn end(self) {
        self.balancer.control.shutdown().unwrap();
        self.end_by_itself();
    }

    /// The same once somebody else has asked for the end.
    #[track_caller]
    pub(crate) fn end_by_itself(self) {
        let summary = self.balancer.thread.join().unwrap();
        assert_eq!(self.lab.open(), 0, "streams are still open");
        let books = self.books.lock();
        let (refused, served) =
            books.ended.values().partition::<Vec<_>, _>(|end| !end.was_connected);
        assert_eq!(books.accepted, books.ended.len() as u64, "C8.2: not one end for each client");
        assert_eq!(summary.accepted, books.accepted);
        assert_eq!(
            (summary.refused.total(), summary.ended.total()),
            (refused.len() as u64, served.len() as u64)
        );
        let sum = |bytes: fn(&End) -> u64| served.iter().map(|end| bytes(end)).sum::<u64>();
        assert_eq!(summary.bytes_up, sum(|end| end.bytes_up));
        assert_eq!(summary.bytes_down, sum(|end| end.bytes_down));
    }
}

fn set_of(lab: &Arc<Lab>, addrs: &[SocketAddr]) -> BackendSet {
    let name = |index: usize| char::from(b'a' + index as u8).to_string();
    let backend = |addr: &SocketAddr| FaultyBackend::new(TcpBackend::new(*addr), lab);
    addrs.iter().enumerate().map(|(index, addr)| (name(index), backend(addr))).collect()
}

/// What an observer was told.
#[derive(Clone, Default)]
pub(crate) struct Books(Arc<Mutex<Entries>>);

#[derive(Default)]
pub(crate) struct Entries {
    pub(crate) accepted: u64,
    /// The key of each client's backend.
    pub(crate) connected: BTreeMap<u64, String>,
    /// Of failed attempts: the client, the key, the error.
    pub(crate) failed: Vec<(u64, String, io::ErrorKind)>,
    pub(crate) ended: BTreeMap<u64, End>,
    /// How many updates were applied.
    pub(crate) updates: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: EndReason,
    pub(crate) was_connected: bool,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
}

impl Books {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap()
    }

    /// How a client ended, once it has.
    #[track_caller]
    pub(crate) fn end_of(&self, client: u64) -> End {
        wait_for("the client ends", || self.lock().ended.get(&client).cloned())
    }
}

impl Observer for Books {
    fn accepted(&mut self, client: &Client<'_>) {
        let mut books = self.lock();
        assert_eq!(client.id, books.accepted);
        books.accepted += 1;
    }

    fn connected(&mut self, connected: &Connected<'_>) {
        let earlier = self.lock().connected.insert(connected.client.id, connected.key.to_owned());
        assert_eq!(earlier, None, "connected twice");
    }

    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        self.lock().failed.push((failed.client.id, failed.key.to_owned(), failed.error.kind()));
    }

    fn updated(&mut self, _: &Applied) {
        self.lock().updates += 1;
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let mut books = self.lock();
        let key = books.connected.get(&ended.client.id);
        assert_eq!(ended.backend.map(|backend| backend.key), key.map(String::as_str));
        let end = End {
            reason: ended.reason,
            was_connected: key.is_some(),
            bytes_up: ended.bytes_up,
            bytes_down: ended.bytes_down,
        };
        assert!(books.ended.insert(ended.client.id, end).is_none(), "C8.2: ended twice");
    }
}
