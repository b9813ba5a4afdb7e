//! Who plays in a test: a balancer, those who may vanish, those who stay, and who watches.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tinylb::{AttemptFailed, BackendSet, Builder, EndReason, Ended, Observer};

use crate::network::{Host, Network};
use crate::switch::Weather;
use tinylb_tests::*;

/// What a busy machine may add to a time that was configured.
pub(crate) const SLACK: Duration = Duration::from_secs(6);

/// Who may vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Client,
    Backend,
}

/// Five hosts: a balancer's, a client's and a backend's that may vanish, and two that stay.
pub(crate) struct Scene {
    pub(crate) network: Network,
    pub(crate) balancer: Arc<Host>,
    pub(crate) client: Arc<Host>,
    pub(crate) backend: Arc<Host>,
    pub(crate) steady_client: Arc<Host>,
    pub(crate) steady_backend: Arc<Host>,
}

impl Scene {
    #[track_caller]
    pub(crate) fn new(weather: Weather) -> Option<Self> {
        let names = ["balancer", "client", "backend", "steady-client", "steady-backend"];
        let (network, [balancer, client, backend, steady_client, steady_backend]) =
            Network::new(names, weather)?;
        Some(Self { network, balancer, client, backend, steady_client, steady_backend })
    }

    pub(crate) fn unplug(&self, victim: Victim) {
        self.host_of(victim).unplug();
    }

    pub(crate) fn plug_in(&self, victim: Victim) {
        self.host_of(victim).plug_in();
    }

    fn host_of(&self, victim: Victim) -> &Host {
        match victim {
            Victim::Client => &self.client,
            Victim::Backend => &self.backend,
        }
    }

    /// A balancer with these backends on its host.
    #[track_caller]
    pub(crate) fn balancer(&self, builder: Builder, backends: BackendSet) -> (Balancer, Witness) {
        let witness = Witness::default();
        let builder = builder.observer(witness.clone()).backends(backends);
        let balancer = self.balancer.on(|| {
            let server = builder.build(TcpListener::bind((self.balancer.ip, 0)).unwrap()).unwrap();
            let control = server.control();
            // Its thread is on the host that it was started on.
            Balancer {
                addr: server.local_addr().ip().unwrap(),
                control,
                thread: server.spawn().unwrap(),
            }
        });
        (balancer, witness)
    }
}

/// A balancer with two backends: "a" may vanish, and the test handles its connections itself; "b" stays, and echoes.
pub(crate) struct Rig<'a> {
    pub(crate) balancer: Balancer,
    pub(crate) witness: Witness,
    pub(crate) set: BackendSet,
    scene: &'a Scene,
    listener: TcpListener,
    _steady: HostedBackend,
}

impl<'a> Rig<'a> {
    #[track_caller]
    pub(crate) fn new(scene: &'a Scene, builder: Builder) -> Self {
        let (listener, steady) =
            (scene.backend.listener(), HostedBackend::echo(&scene.steady_backend, "steady"));
        let set = set([("a", listener.local_addr().unwrap()), ("b", steady.addr)]);
        let (balancer, witness) = scene.balancer(builder, set.clone());
        Self { balancer, witness, set, scene, listener, _steady: steady }
    }

    /// Pairs of those who may vanish, and as many of those who stay, on which there is traffic from now on.
    #[track_caller]
    pub(crate) fn populate<const N: usize>(&self) -> ([Pair; N], Traffic) {
        let mut steady = Vec::new();
        let pairs = [(); N].map(|()| {
            let pair = self.pair();
            steady.push(self.steady_client());
            pair
        });
        (pairs, Traffic::over(steady))
    }

    /// A new pair of those who may vanish, if it is their turn.
    #[track_caller]
    pub(crate) fn pair(&self) -> Pair {
        let client = self.scene.client.connect(self.balancer.addr);
        Pair { client, backend: accept(&self.listener) }
    }

    /// A new client of those who stay, who has been served by the backend that stays.
    #[track_caller]
    pub(crate) fn steady_client(&self) -> TcpStream {
        let mut client = self.scene.steady_client.connect(self.balancer.addr);
        assert_eq!(read_tag(&mut client), "steady");
        client
    }
}

/// Accepts within [`PATIENCE`].
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let stream = wait_for("the balancer dials", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    impatient(&stream);
    stream
}

/// Both ends of a pair: the client's socket and the backend's.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) backend: TcpStream,
}

impl Pair {
    /// Sends a little each way, the last of it from this side, which acknowledges with it all that it was sent: if it
    /// vanishes now, no byte is on its way to it.
    #[track_caller]
    pub(crate) fn exchange(&self, last_from: Victim) {
        let (first, last) = match last_from {
            Victim::Client => (&self.backend, &self.client),
            Victim::Backend => (&self.client, &self.backend),
        };
        for (mut from, mut to) in [(first, last), (last, first)] {
            let mut received = [0; 5];
            from.write_all(b"hello").unwrap();
            to.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"hello");
        }
    }

    /// The end that is left when the victim has vanished.
    pub(crate) fn survivor(&mut self, victim: Victim) -> &mut TcpStream {
        match victim {
            Victim::Client => &mut self.backend,
            Victim::Backend => &mut self.client,
        }
    }
}

/// Sends until nothing more is taken for a while.
#[track_caller]
pub(crate) fn stuff(stream: &mut TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let err = (0..1024).find_map(|_| stream.write_all(&[0; 64 * 1024]).err());
    assert_eq!(err.expect("nothing holds the sender back").kind(), ErrorKind::WouldBlock);
}

/// A [`TestBackend`] on a host.
pub(crate) struct HostedBackend {
    pub(crate) addr: SocketAddr,
    host: Arc<Host>,
    backend: Option<TestBackend>,
}

impl HostedBackend {
    #[track_caller]
    pub(crate) fn new(host: &Arc<Host>, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let backend = host.on(|| TestBackend::at((host.ip, 0).into(), serve));
        Self { addr: backend.addr, host: host.clone(), backend: Some(backend) }
    }

    /// Sends its tag and a line end, then sends back all that comes, to the end.
    #[track_caller]
    pub(crate) fn echo(host: &Arc<Host>, tag: &'static str) -> Self {
        Self::new(host, move |mut stream| {
            if stream.write_all(format!("{tag}\n").as_bytes()).is_ok() {
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            }
        })
    }
}

impl Drop for HostedBackend {
    fn drop(&mut self) {
        let backend = self.backend.take();
        self.host.on(|| drop(backend)); // it wakes its own acceptor by a connection
    }
}

/// Round trips without end over some echoing streams, every byte of which is checked.
pub(crate) struct Traffic {
    is_over: Arc<AtomicBool>,
    rounds: Vec<Arc<AtomicU64>>,
    /// Each returns its longest round trip.
    threads: Vec<JoinHandle<Duration>>,
}

impl Traffic {
    pub(crate) fn over(streams: Vec<TcpStream>) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let rounds: Vec<Arc<AtomicU64>> = streams.iter().map(|_| Arc::default()).collect();
        let threads = streams.into_iter().zip(&rounds).map(|(stream, rounds)| {
            let (is_over, rounds) = (is_over.clone(), rounds.clone());
            std::thread::spawn(move || keep_trading(stream, &is_over, &rounds))
        });
        Self { threads: threads.collect(), is_over, rounds }
    }

    /// Waits until each stream has done some more round trips.
    #[track_caller]
    pub(crate) fn assert_goes_on(&self) {
        let so_far: Vec<u64> = self.rounds.iter().map(|rounds| rounds.load(SeqCst)).collect();
        wait_for("the others' traffic goes on", || {
            let goes_on =
                |(rounds, before): (&Arc<AtomicU64>, &u64)| rounds.load(SeqCst) >= before + 10;
            self.rounds.iter().zip(&so_far).all(goes_on).then_some(())
        });
    }

    /// Ends it in order. All along, no round trip took as long as this.
    #[track_caller]
    pub(crate) fn assert_was_undisturbed(mut self, limit: Duration) {
        self.assert_goes_on();
        self.is_over.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let longest = thread.join().expect("a stream of the others broke");
            assert!(longest < limit, "a round trip of the others took {longest:?}");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn keep_trading(mut stream: TcpStream, is_over: &AtomicBool, rounds: &AtomicU64) -> Duration {
    let bytes = pattern(64 * 1024);
    let mut longest = Duration::ZERO;
    while !is_over.load(SeqCst) {
        let round = rounds.load(SeqCst) as usize;
        let begin = round * 977 % (bytes.len() / 2);
        let start = Instant::now();
        assert_echo(&mut stream, &bytes[begin..=begin + round * 131 % 8192]);
        longest = longest.max(start.elapsed());
        rounds.fetch_add(1, SeqCst);
        std::thread::sleep(Duration::from_millis(1)); // leaves the machine to the others
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream), (Vec::new(), StreamEnd::Clean));
    longest
}

/// Notes how clients ended and which dials failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    ends: Vec<End>,
    failed: Vec<(String, ErrorKind)>,
}

/// How a client ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    client: SocketAddr,
    pub(crate) reason: EndReason,
    pub(crate) error: Option<ErrorKind>,
    pub(crate) at: Instant,
}

impl Witness {
    /// How this client ended, if it has.
    pub(crate) fn end_of(&self, client: &TcpStream) -> Option<End> {
        let client = client.local_addr().unwrap();
        self.0.lock().unwrap().ends.iter().find(|end| end.client == client).cloned()
    }

    #[track_caller]
    pub(crate) fn wait_for_end_of(&self, client: &TcpStream) -> End {
        wait_for("a client's end", || self.end_of(client))
    }

    /// The failed dials so far: to which key, and why.
    pub(crate) fn failed_dials(&self) -> Vec<(String, ErrorKind)> {
        self.0.lock().unwrap().failed.clone()
    }
}

impl Observer for Witness {
    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        self.0.lock().unwrap().failed.push((failed.key.to_owned(), failed.error.kind()));
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let (client, error) =
            (ended.client.addr.ip().unwrap(), ended.error.map(std::io::Error::kind));
        self.0.lock().unwrap().ends.push(End {
            client,
            reason: ended.reason,
            error,
            at: Instant::now(),
        });
    }
}
