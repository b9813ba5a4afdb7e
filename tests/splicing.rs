//! Clause C6.8 of the contract: bulk that moves through pipes, uncopied.
//!
//! Whether a pair is spliced shows in the descriptors of this process, so one test runs at a time.

#![cfg(all(feature = "splice", target_os = "linux"))]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tinylb::mio::event::Source;
use tinylb::mio::{self, Interest, Registry, Token};
use tinylb::{
    Address, Backend, BackendSet, Builder, Connected, Dial, DialRequest, EndReason, Listener,
    Observer, Server, SocketOptions, Stream, TcpBackend, UnixBackend,
};
use tinylb_tests::*;

/// More than is copied until reads have grown to full size: 4 MB with the default `buffer_size`.
const BULK: usize = 24 << 20;
/// The same with [`eager`].
const SMALL_BULK: usize = 4 << 20;
const MOST_PIPES: usize = 32;

/// Lets no other test run meanwhile.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many pipes this process has.
fn pipes() -> usize {
    process::descriptors().iter().filter(|name| name.contains("pipe:")).count()
}

/// Settings with which reads are of full size soon.
fn eager() -> Builder {
    Server::builder().buffer_size(16 << 10)
}

/// A backend that sends so many bytes, and then the end of its stream.
fn sender(len: usize) -> TestBackend {
    let bytes = pattern(len);
    TestBackend::new(move |mut stream| {
        if stream.write_all(&bytes).is_ok() {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    })
}

/// What [`flood`] sends again and again.
const FLOOD: usize = 1 << 20;

/// A backend that sends for ever, and never raises `SIGPIPE`: that would be taken for the
/// balancer's. The standard library sends without it, `socket2` does not.
fn flood() -> TestBackend {
    let bytes = pattern(FLOOD);
    TestBackend::new(move |stream| {
        let mut stream = TcpStream::from(stream);
        while stream.write_all(&bytes).is_ok() {}
    })
}

/// Sends all and ends the stream, while it reads to the end.
fn exchange<S>(stream: &S, bytes: &[u8], shut: impl Fn(&S) + Sync)
where
    S: Sync,
    for<'a> &'a S: Read + Write,
{
    thread::scope(|scope| {
        scope.spawn(|| {
            (&mut &*stream).write_all(bytes).unwrap();
            shut(stream);
        });
        let (received, end) = read_to_end(&mut &*stream);
        assert_eq!(end, StreamEnd::Clean);
        assert!(received == bytes, "other bytes than were sent");
    });
}

fn echo_to_the_end(mut stream: impl Read + Write) {
    let mut room = vec![0; 256 << 10];
    while let Ok(len @ 1..) = stream.read(&mut room) {
        stream.write_all(&room[..len]).unwrap();
    }
}

#[test]
fn c6_8_bulk_both_ways_is_spliced_and_arrives_unchanged_with_its_end() {
    let _guard = one_at_a_time();
    let backend = TestBackend::new(|stream| {
        echo_to_the_end(&stream);
        let _ = stream.shutdown(Shutdown::Write);
    });
    let balancer = Balancer::start(set([("a", backend.addr)]));
    let before = pipes();
    let client = balancer.client();
    exchange(&client, &pattern(BULK), |client| client.shutdown(Shutdown::Write).unwrap());
    assert_eq!(pipes(), before + 1, "an empty one is kept for the next transfer");
    let stats = balancer.wait_for("it ends", |stats| stats.ended.of(EndReason::Finished) == 1);
    assert_eq!((stats.bytes_up, stats.bytes_down), (BULK as u64, BULK as u64));
    drop(balancer);
    assert_eq!(pipes(), before, "C9.2");
}

#[test]
fn c6_8_nothing_is_spliced_that_the_host_does_not_want_to_be() {
    let _guard = one_at_a_time();
    let backend = sender(BULK);
    let before = pipes();
    let balancer = Balancer::with(Server::builder().splice(false), set([("a", backend.addr)]));
    assert!(read_to_end(&mut balancer.client()) == (pattern(BULK), StreamEnd::Clean));
    assert_eq!(pipes(), before);
}

#[test]
fn c6_8_unix_domain_sockets_are_spliced_too_with_tcp_on_either_side() {
    let _guard = one_at_a_time();
    let dir = tempfile::tempdir().unwrap();
    let [front, back] = ["front", "back"].map(|name| dir.path().join(name));
    let listening = UnixListener::bind(&back).unwrap();
    thread::spawn(move || {
        for stream in listening.incoming() {
            let stream = stream.unwrap();
            echo_to_the_end(&stream);
            let _ = stream.shutdown(Shutdown::Write);
        }
    });
    let before = pipes();
    let backends = || BackendSet::from([("a", UnixBackend::new(&back))]);
    let bytes = pattern(BULK);

    let balancer = Balancer::with(eager(), backends());
    exchange(&balancer.client(), &bytes, |client| client.shutdown(Shutdown::Write).unwrap());
    assert_eq!(pipes(), before + 1);
    drop(balancer);

    let server = eager().backends(backends()).build(UnixListener::bind(&front).unwrap()).unwrap();
    let _balancer = server.spawn().unwrap();
    let client = UnixStream::connect(&front).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&client, &bytes, |client| client.shutdown(Shutdown::Write).unwrap());
    assert_eq!(pipes(), before + 1);
}

#[test]
fn c6_8_small_messages_are_copied_after_bulk_as_before() {
    let _guard = one_at_a_time();
    let backend = TestBackend::new(echo_to_the_end);
    let balancer = Balancer::with(eager(), set([("a", backend.addr)]));
    let client = balancer.client();
    let bytes = pattern(SMALL_BULK);
    for round in 0..3 {
        thread::scope(|scope| {
            scope.spawn(|| (&client).write_all(&bytes).unwrap());
            let mut received = vec![0; bytes.len()];
            (&client).read_exact(&mut received).unwrap();
            assert!(received == bytes, "other bytes than were sent");
        });
        for _ in 0..100 {
            assert_echo(&mut &client, format!("small message after {round}").as_bytes());
        }
    }
}

/// Reads so much of what [`flood`] sends, from a position on.
fn read_flood(client: &mut TcpStream, position: usize, len: usize) {
    let mut part = vec![0; len];
    client.read_exact(&mut part).unwrap();
    let mut expected = pattern(FLOOD);
    expected.rotate_left(position % FLOOD);
    assert!(part.chunks(FLOOD).all(|piece| piece == &expected[..piece.len()]), "other bytes");
}

/// Waits until it has moved no byte for a while.
fn wait_until_it_rests(balancer: &Balancer) {
    let mut last = (u64::MAX, Instant::now());
    wait_for("all is blocked", || {
        let moved = balancer.stats().bytes_down;
        if moved != last.0 {
            last = (moved, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(300)).then_some(())
    });
}

#[test]
fn c6_8_readers_that_stall_keep_at_most_32_pipes_and_get_everything_later() {
    let _guard = one_at_a_time();
    const READERS: usize = 48;
    let backend = flood();
    let before = pipes();
    let balancer = Balancer::with(eager(), set([("a", backend.addr)]));
    let mut clients: Vec<TcpStream> = (0..READERS).map(|_| balancer.client()).collect();
    clients.iter_mut().for_each(|client| read_flood(client, 0, FLOOD));
    wait_until_it_rests(&balancer);
    let used = pipes() - before;
    assert!((2..=MOST_PIPES).contains(&used), "{used} pipes");
    assert_eq!(balancer.stats().open, READERS as u64);

    for client in &mut clients {
        read_flood(client, FLOOD, 12 * FLOOD);
    }
    drop(clients);
    balancer.wait_for("all end", |stats| stats.open == 0);
    assert!(pipes() <= before + 1, "{} pipes are kept", pipes() - before);
}

#[test]
fn c3_2_removal_drops_what_is_in_the_pipes_of_a_target() {
    let _guard = one_at_a_time();
    let backend = flood();
    let before = pipes();
    let balancer = Balancer::with(eager(), set([("a", backend.addr)]));
    let mut clients: Vec<TcpStream> = (0..8).map(|_| balancer.client()).collect();
    clients.iter_mut().for_each(|client| read_flood(client, 0, FLOOD));
    wait_until_it_rests(&balancer);
    assert!(pipes() > before + 1, "none has unsent bytes");

    assert_eq!(balancer.update(BackendSet::new()).closed, 8);

    assert!(pipes() <= before + 1, "pipes of pairs that were closed are kept");
    let moved = balancer.stats().bytes_down;
    clients.iter_mut().for_each(|client| drop(assert_aborted(client)));
    assert_eq!(balancer.stats().bytes_down, moved);
}

/// A backend with a thread for each connection, which nobody else has a duplicate of.
fn serve(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let (listener, serve) = (listener(), Arc::new(serve));
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

#[test]
#[cfg(feature = "socket2")]
fn c6_1_urgent_data_amid_bulk_is_delivered_in_line() {
    let _guard = one_at_a_time();
    let piece = pattern(SMALL_BULK);
    let bytes = piece.clone();
    let backend = serve(move |mut stream| {
        for _ in 0..3 {
            stream.write_all(&bytes).unwrap();
            socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
        }
        stream.write_all(&bytes).unwrap();
    });
    let before = pipes();
    let balancer = Balancer::with(eager(), set([("a", backend)]));
    for _ in 0..10 {
        let (received, end) = read_to_end(&mut balancer.client());
        assert_eq!((received.len(), end), (4 * SMALL_BULK + 3, StreamEnd::Clean));
        for (index, part) in received.chunks(SMALL_BULK + 1).enumerate() {
            assert!(part[..SMALL_BULK] == piece, "other bytes than were sent");
            assert!(index == 3 || part[SMALL_BULK] == b'!', "the urgent byte is not in its place");
        }
    }
    assert_eq!(pipes(), before + 1);
}

#[test]
fn c3_10_a_reset_amid_bulk_is_passed_on_after_what_came_before() {
    let _guard = one_at_a_time();
    let bytes = pattern(SMALL_BULK);
    let sent = bytes.clone();
    let backend = serve(move |mut stream| {
        stream.write_all(&sent).unwrap();
        reset(stream);
    });
    let balancer = Balancer::with(eager(), set([("a", backend)]));
    for _ in 0..20 {
        // `connect_timeout` would report a reset that comes at once.
        let mut client = TcpStream::connect(balancer.addr).unwrap();
        set_io_timeouts(&client);
        let mut received = Vec::new();
        let mut room = vec![0; 64 << 10];
        let end = loop {
            match client.read(&mut room) {
                Ok(0) => break StreamEnd::Clean,
                Ok(len) => received.extend_from_slice(&room[..len]),
                Err(_) => break StreamEnd::Reset,
            }
        };
        assert!(bytes.starts_with(&received), "other bytes than were sent");
        assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")), "as if in order");
    }
    balancer.wait_for("they end", |stats| stats.ended.of(EndReason::BackendFailed) == 20);
}

/// Descriptors run out: what needs one fails while there is an empty pipe, and once more if that is
/// told.
#[derive(Default)]
struct Shortage {
    begun: AtomicBool,
    pipes_before: AtomicU64,
    failed: AtomicU64,
}

impl Shortage {
    fn check(&self) -> io::Result<()> {
        const EMFILE: i32 = 24;
        let has_pipes = pipes() as u64 > self.pipes_before.load(Ordering::SeqCst);
        if self.begun.load(Ordering::SeqCst) && has_pipes {
            self.failed.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        Ok(())
    }
}

struct ShortListener(mio::net::TcpListener, Arc<Shortage>);

impl Source for ShortListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.0.register(registry, token, interest)
    }
    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.0.reregister(registry, token, interest)
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }
}

impl Listener for ShortListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        self.1.check()?;
        Listener::accept(&mut self.0)
    }
    fn local_addr(&self) -> io::Result<Address> {
        Listener::local_addr(&self.0)
    }
    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        Listener::set_options(&mut self.0, options)
    }
}

struct ShortBackend(TcpBackend, Arc<Shortage>);

impl Backend for ShortBackend {
    fn target_name(&self) -> String {
        self.0.target_name()
    }
    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        self.1.check()?;
        self.0.dial(request)
    }
}

#[test]
fn c4_3_empty_pipes_are_closed_before_a_client_has_to_wait_for_a_descriptor() {
    let _guard = one_at_a_time();
    let backend = sender(SMALL_BULK);
    for (at_accept, at_dial) in [(true, false), (false, true)] {
        let shortages = [Arc::new(Shortage::default()), Arc::new(Shortage::default())];
        let before = pipes();
        for (shortage, is_used) in shortages.iter().zip([at_accept, at_dial]) {
            shortage
                .pipes_before
                .store(if is_used { before as u64 } else { u64::MAX }, Ordering::SeqCst);
        }
        let listening = mio::net::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr: SocketAddr = listening.local_addr().unwrap();
        let target = ShortBackend(TcpBackend::new(backend.addr), shortages[1].clone());
        let server = eager()
            .backends([("a", target)].into())
            .build(ShortListener(listening, shortages[0].clone()))
            .unwrap();
        let balancer =
            Balancer { addr, control: server.control(), thread: server.spawn().unwrap() };
        assert!(read_to_end(&mut balancer.client()) == (pattern(SMALL_BULK), StreamEnd::Clean));
        assert_eq!(pipes(), before + 1);

        shortages.iter().for_each(|shortage| shortage.begun.store(true, Ordering::SeqCst));
        assert!(read_to_end(&mut balancer.client()) == (pattern(SMALL_BULK), StreamEnd::Clean));

        let failed: u64 =
            shortages.iter().map(|shortage| shortage.failed.load(Ordering::SeqCst)).sum();
        assert_eq!((failed, pipes()), (1, before), "none is made for a while");
        assert_eq!(balancer.stats().backends[0].usage.dial_failures, 0);
    }
}

/// A client that reads all the time, until it is reset.
type Victim = Arc<Mutex<Option<TcpStream>>>;

/// Resets a client at the very moment when bulk is about to be written to it, while the loop is
/// busy with another.
struct Assassin(Victim);

impl Observer for Assassin {
    fn connected(&mut self, _: &Connected<'_>) {
        if let Some(victim) = self.0.lock().unwrap().take() {
            // After an end of stream, a reset is a broken pipe at once.
            let _ = victim.shutdown(Shutdown::Write);
            reset(victim);
        }
    }
}

/// Has peers reset amid bulk, in the way that raises `SIGPIPE` where a splice meets it.
fn provoke_sigpipe() {
    let backend = flood();
    let victim = Victim::default();
    let builder = eager().observer(Assassin(victim.clone()));
    let balancer = Balancer::with(builder, set([("a", backend.addr)]));
    for _ in 0..100 {
        let mut client = balancer.client();
        read_flood(&mut client, 0, FLOOD);
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        *victim.lock().unwrap() = Some(client);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut room = vec![0; 256 << 10];
                while let Some(client) = &mut *victim.lock().unwrap() {
                    let _ = client.read(&mut room);
                }
            });
            read_flood(&mut balancer.client(), 0, 1 << 10);
        });
    }
    assert_eq!(balancer.stats().accepted, 200);
}

/// The part of the next tests that runs in a process of its own.
#[test]
#[ignore = "started by the tests below"]
fn in_a_process_of_its_own() {
    let before = pipes();
    if std::env::var_os("TINYLB_SIGPIPE_KILLS").is_some() {
        // As by default. Only the standard library's start can set that itself, and it does not.
        let always = Arc::new(AtomicBool::new(true));
        signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, always)
            .unwrap();
    }
    let backend = sender(SMALL_BULK);
    let balancer = Balancer::with(eager(), set([("a", backend.addr)]));
    assert!(read_to_end(&mut balancer.client()) == (pattern(SMALL_BULK), StreamEnd::Clean));
    println!("pipes: {}", pipes() - before);
    provoke_sigpipe();
}

#[track_caller]
fn run_in_a_process_of_its_own(kills: bool) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "in_a_process_of_its_own", "--ignored", "--nocapture"]);
    if kills {
        command.env("TINYLB_SIGPIPE_KILLS", "1");
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{:?}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[test]
fn c9_1_a_reset_does_not_kill_a_host_that_has_restored_sigpipe() {
    let _guard = one_at_a_time();
    assert!(run_in_a_process_of_its_own(true).contains("pipes: 0"), "spliced all the same");
}

#[test]
fn c9_1_a_reset_amid_bulk_that_is_spliced_ends_one_pair() {
    let _guard = one_at_a_time();
    assert!(run_in_a_process_of_its_own(false).contains("pipes: 1"), "not spliced");
}
