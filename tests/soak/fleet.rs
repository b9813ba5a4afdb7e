//! The backends: where they listen, and the threads that accept and serve.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::Socket;
use tinylb::{Backend, TcpBackend, UnixBackend};

use crate::book::Book;
use crate::end::{Cut, End, Outcome, read_header};
use crate::faults::{Faults, lock};
use crate::plan::Plan;
use crate::random::Random;
use crate::wire::{Kind, Place, Wire, wait_for_any};
use tinylb_tests::BlackHole;

/// How many clients may wait to be accepted: more than there are.
const BACKLOG: i32 = 1024;
/// The longest that a late backend leaves clients waiting.
const LATENESS: Duration = Duration::from_millis(150);
/// How often those who wait look whether all is over.
const GLANCE: Duration = Duration::from_millis(100);
/// What an end reads or writes at a time.
pub(crate) const PIECE: usize = 64 * 1024;

/// Something to dial.
pub(crate) struct Target {
    pub(crate) name: String,
    place: Place,
    temper: Temper,
}

/// How a backend receives those who dial it. What it does once it is connected, each client's plan says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    Steady,
    /// Accepts after a while.
    Late,
    /// Nobody listens.
    Refusing,
    /// The backlog is full: over TCP the dial is not answered, over Unix-domain sockets it fails.
    Full,
}

impl Target {
    fn new(place: Place, temper: Temper) -> Self {
        let name = match &place {
            Place::Tcp(addr) => TcpBackend::new(*addr).target_name(),
            Place::Unix(path) => UnixBackend::new(path).target_name(),
        };
        Self { name, place, temper }
    }

    pub(crate) fn backend(&self) -> Box<dyn Backend> {
        match &self.place {
            Place::Tcp(addr) => Box::new(TcpBackend::new(*addr)),
            Place::Unix(path) => Box::new(UnixBackend::new(path)),
        }
    }

    pub(crate) fn can_be_reached(&self) -> bool {
        matches!(self.temper, Temper::Steady | Temper::Late)
    }

    pub(crate) fn is_steady(&self) -> bool {
        self.temper == Temper::Steady
    }
}

/// The sockets of a fleet, before anybody serves.
pub(crate) struct Berths {
    pub(crate) targets: Arc<[Target]>,
    prompt: Vec<Listener>,
    late: Vec<Listener>,
    /// What keeps refusing and full targets as they are.
    kept: Vec<Socket>,
    hole: BlackHole,
}

struct Listener {
    socket: Socket,
    target: usize,
    kind: Kind,
}

impl Berths {
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        use Temper::{Full, Late, Refusing, Steady};
        let tcp = [Steady, Steady, Steady, Steady, Steady, Late, Refusing];
        let unix = [Steady, Steady, Late, Refusing, Full];
        let tcp = tcp.into_iter().enumerate().map(|(number, temper)| {
            // Addresses of their own, so that the balancer's ports in TIME_WAIT do not run out.
            let host = Ipv4Addr::new(127, 77, 0, number as u8 + 1);
            (Place::Tcp(SocketAddr::from((host, 0))), temper)
        });
        let unix = unix.into_iter().enumerate().map(|(number, temper)| {
            (Place::Unix(directory.join(format!("backend-{number}"))), temper)
        });
        let (mut targets, mut prompt, mut late, mut kept) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (target, (place, temper)) in tcp.chain(unix).enumerate() {
            let kind = place.kind();
            let (socket, place) = match temper {
                Steady | Late => place.listen(BACKLOG)?,
                Refusing => place.occupy()?,
                Full => place.listen(0)?,
            };
            match temper {
                Steady => prompt.push(Listener { socket, target, kind }),
                Late => late.push(Listener { socket, target, kind }),
                Refusing => kept.push(socket),
                Full => kept.extend(place.crowd()?.into_iter().chain([socket])),
            }
            targets.push(Target::new(place, temper));
        }
        let hole = BlackHole::new();
        targets.push(Target::new(Place::Tcp(hole.addr), Full));
        Ok(Self { targets: targets.into(), prompt, late, kept, hole })
    }
}

/// Backends at work.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _kept: (Vec<Socket>, BlackHole),
}

struct Shared {
    seed: u64,
    book: Arc<Book>,
    faults: Arc<Faults>,
    is_over: AtomicBool,
    /// Connections that are accepted, and not over.
    busy: AtomicUsize,
    /// Streams that ended in order before they said who they are, where a cut is no such end.
    silent: AtomicUsize,
}

/// A connection that was accepted.
type Job = Wire;

impl Fleet {
    pub(crate) fn start(
        berths: Berths,
        seed: u64,
        workers: usize,
        book: Arc<Book>,
        faults: Arc<Faults>,
    ) -> Self {
        let Berths { prompt, late, kept, hole, .. } = berths;
        let shared = Shared {
            seed,
            book,
            faults,
            is_over: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            silent: AtomicUsize::new(0),
        };
        let shared = Arc::new(shared);
        let (sender, jobs) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let mut threads = Vec::new();
        for (listeners, lateness) in [(prompt, Duration::ZERO), (late, LATENESS)] {
            let (shared, sender) = (shared.clone(), sender.clone());
            threads.push(thread::spawn(move || accept_all(&shared, &listeners, lateness, &sender)));
        }
        for _ in 0..workers {
            let (shared, jobs) = (shared.clone(), jobs.clone());
            threads.push(thread::spawn(move || serve_all(&shared, &jobs)));
        }
        Self { shared, threads, _kept: (kept, hole) }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.shared.busy.load(Ordering::SeqCst) == 0
    }

    /// How many streams ended in order before they said who they are, where a cut is no such end.
    pub(crate) fn silent(&self) -> u64 {
        self.shared.silent.load(Ordering::SeqCst) as u64
    }

    pub(crate) fn stop(self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            if thread.join().is_err() {
                self.shared.faults.report("a backend's thread has panicked");
            }
        }
    }
}

fn accept_all(shared: &Shared, listeners: &[Listener], lateness: Duration, jobs: &Sender<Job>) {
    let mut random = Random::new(shared.seed);
    while !shared.is_over.load(Ordering::SeqCst) {
        wait_for_any(listeners.iter().map(|listener| &listener.socket), GLANCE);
        thread::sleep(lateness.mul_f64(random.between(0, 100) as f64 / 100.0));
        for listener in listeners {
            loop {
                match listener.socket.accept() {
                    Ok((socket, _)) => take_in(shared, socket, listener, jobs),
                    Err(err) if err.kind() == ErrorKind::WouldBlock => break,
                    Err(err) => {
                        return shared.faults.report(format!("a backend cannot accept: {err}"));
                    }
                }
            }
        }
    }
}

fn take_in(shared: &Shared, socket: Socket, listener: &Listener, jobs: &Sender<Job>) {
    shared.busy.fetch_add(1, Ordering::SeqCst);
    let sent = Wire::new(socket, listener.kind).map(|wire| jobs.send(wire).is_ok());
    shared.faults.unless(matches!(sent, Ok(true)), || {
        format!("{} cannot be served: {sent:?}", listener.target)
    });
}

fn serve_all(shared: &Shared, jobs: &Mutex<Receiver<Job>>) {
    let mut buffer = vec![0; PIECE];
    loop {
        // Not in the loop's condition: the next would have to wait until this connection is over.
        let job = lock(jobs).recv();
        let Ok(wire) = job else { return };
        serve(shared, wire, &mut buffer);
        shared.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(shared: &Shared, wire: Wire, buffer: &mut [u8]) {
    let kind = wire.kind;
    match read_header(&wire, shared.seed) {
        Ok(connection) => {
            shared.book.backend_meets(connection);
            let plan = Plan::new(shared.seed, connection);
            let report =
                End::backend(wire, plan.download, plan.upload, buffer).run(None, &plan.backend);
            shared.book.backend_reports(connection, report);
        }
        Err(Outcome::Cut(Cut::Closed)) if kind.sees_resets() => {
            shared.silent.fetch_add(1, Ordering::SeqCst);
        }
        Err(Outcome::Failed(failure)) => shared.faults.report(format!("a backend: {failure}")),
        Err(_) => {}
    }
}
