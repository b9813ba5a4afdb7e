//! The clients: each makes one connection after the other, by its plan, until it is told to stop.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::book::Book;
use crate::end::{End, Outcome, Report, header};
use crate::faults::Faults;
use crate::fleet::PIECE;
use crate::plan::Plan;
use crate::random::Random;
use crate::wire::{Caller, Place};

/// The longest pause between two connections, and the pause after one that gave nothing: who is refused does not come
/// again at once, or most connections of a run would be refused while a set is empty.
const PAUSE_MILLIS: u64 = 60;
const BACK_OFF: Duration = Duration::from_millis(250);

/// Where clients go, and what they need for it.
pub(crate) struct Visit {
    pub(crate) seed: u64,
    pub(crate) front: Place,
    pub(crate) directory: PathBuf,
    pub(crate) book: Arc<Book>,
    pub(crate) faults: Arc<Faults>,
    /// Numbers the connections, of all balancers of the run.
    pub(crate) connections: Arc<AtomicU64>,
    pub(crate) is_over: AtomicBool,
}

/// Starts so many clients.
pub(crate) fn start(visit: &Arc<Visit>, count: usize) -> Vec<JoinHandle<()>> {
    let client = |number| {
        let visit = visit.clone();
        thread::spawn(move || visit_again_and_again(&visit, number))
    };
    (0..count).map(client).collect()
}

fn visit_again_and_again(visit: &Visit, number: usize) {
    let host = Ipv4Addr::from_bits(Ipv4Addr::new(127, 78, 0, 1).to_bits() + number as u32);
    let mut buffer = vec![0; PIECE];
    while !visit.is_over.load(Ordering::SeqCst) {
        let connection = visit.connections.fetch_add(1, Ordering::SeqCst);
        let pause = Random::new(visit.seed ^ connection).between(0, PAUSE_MILLIS);
        match visit_once(visit, connection, host, &mut buffer) {
            Ok(report) if matches!(report.outcome, Outcome::Cut(_)) && report.received == 0 => {
                thread::sleep(BACK_OFF)
            }
            Ok(_) => thread::sleep(Duration::from_millis(pause)),
            Err(err) => return visit.faults.report(format!("a client cannot even try: {err}")),
        }
    }
}

fn visit_once(
    visit: &Visit,
    connection: u64,
    host: Ipv4Addr,
    buffer: &mut [u8],
) -> io::Result<Report> {
    let plan = Plan::new(visit.seed, connection);
    let caller = Caller::new(&visit.front, host, &visit.directory, connection)?;
    if let Some(size) = plan.receive_buffer {
        caller.hold_little(size)?;
    }
    visit.book.begin(connection, caller.addr.clone(), plan.brief());
    let report = match caller.call() {
        Ok(wire) => {
            let header = plan.is_announced.then(|| header(visit.seed, connection));
            let end = End::client(wire, plan.upload, plan.download, buffer);
            end.run(header.as_ref().map(|header| &header[..]), &plan.client)
        }
        // Refused so soon that connecting had not returned yet.
        Err(err) if err.kind() == ErrorKind::ConnectionReset => {
            Report::unconnected(visit.front.kind())
        }
        Err(err) => Report {
            outcome: Outcome::Failed(format!("cannot connect: {err}")),
            at: Instant::now(),
            ..Report::unconnected(visit.front.kind())
        },
    };
    visit.book.client_reports(connection, report.clone());
    Ok(report)
}
