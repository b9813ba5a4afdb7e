//! Chapter 1 of the contract: backends, the crate's and the host's own, as a running balancer treats them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tinylb::{Backend, BackendSet, Dial, DialRequest, Ejection, Server, TcpBackend};
use tinylb_tests::*;

/// A backend of the host's own, that dials these addresses in turn and remembers which attempts it was asked for.
struct Several {
    addrs: Vec<SocketAddr>,
    asked: Mutex<Vec<u32>>,
}

impl Several {
    fn new(addrs: impl Into<Vec<SocketAddr>>) -> Arc<Self> {
        Arc::new(Self { addrs: addrs.into(), asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<u32> {
        self.asked.lock().unwrap().clone()
    }
}

impl Backend for Several {
    fn target_name(&self) -> String {
        "several".to_owned()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        self.asked.lock().unwrap().push(request.attempt());
        TcpBackend::new(self.addrs[request.attempt() as usize]).dial(request)
    }

    fn attempts(&self) -> u32 {
        self.addrs.len() as u32
    }
}

/// A backend of the host's own, that dials this address and does the rest as it is told.
struct Told<F>(SocketAddr, F);

impl<F: Fn(&DialRequest<'_>, Dial) -> io::Result<Dial> + Send + Sync> Backend for Told<F> {
    fn target_name(&self) -> String {
        self.0.to_string()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        (self.1)(request, TcpBackend::new(self.0).dial(request)?)
    }
}

/// A [`Told`]; being a function, it tells the compiler what kind of closure is meant.
fn told<F: Fn(&DialRequest<'_>, Dial) -> io::Result<Dial> + Send + Sync>(
    addr: SocketAddr,
    dial: F,
) -> Told<F> {
    Told(addr, dial)
}

/// A backend that reads each connection to its end and hands over what came.
fn collector() -> (TestBackend, mpsc::Receiver<Vec<u8>>) {
    let (collected, collection) = mpsc::channel();
    let backend = TestBackend::new(move |mut stream| {
        let (bytes, _) = read_to_end(&mut stream);
        let _ = collected.send(bytes);
        let _ = stream.shutdown(Shutdown::Both);
    });
    (backend, collection)
}

fn finish(mut client: TcpStream, message: &[u8]) {
    client.write_all(message).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), (Vec::new(), StreamEnd::Clean));
}

#[test]
fn c1_1_what_is_done_to_a_set_after_it_was_handed_over_changes_nothing() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let mut mine = set([("a", one.addr)]);
    let balancer = Balancer::start(mine.clone());

    mine.insert("a", TcpBackend::new(two.addr));

    assert_eq!(balancer.tagged_client().1, "one");
}

#[test]
fn c1_2_a_dial_is_told_who_the_client_is_and_where_it_came_to() {
    let (backend, collection) = collector();
    let with_header = told(backend.addr, |request, dial| {
        let (from, to) = (request.client_addr().ip().unwrap(), request.local_addr()?.ip().unwrap());
        Ok(dial.with_preface(format!(
            "PROXY TCP4 {} {} {} {}\r\n",
            from.ip(),
            to.ip(),
            from.port(),
            to.port()
        )))
    });
    // The listener's own address would not do: it does not say to which of the machine's the client came.
    let server = Server::builder()
        .backends([("a", with_header)].into())
        .build(TcpListener::bind("0.0.0.0:0").unwrap())
        .unwrap();
    let port = server.local_addr().ip().unwrap().port();
    let _running = server.spawn().unwrap();
    let client = connect(([127, 0, 0, 1], port).into());
    let from = client.local_addr().unwrap();

    finish(client, b"GET / HTTP/1.0\r\n\r\n");

    let expected =
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {port}\r\nGET / HTTP/1.0\r\n\r\n", from.port());
    let collected = collection.recv_timeout(PATIENCE).unwrap();
    assert_eq!(String::from_utf8(collected).unwrap(), expected);
}

#[test]
fn c1_2_a_preface_reaches_the_backend_though_the_client_is_silent() {
    let backend = TestBackend::echo("one");
    let greeting = told(backend.addr, |_, dial| Ok(dial.with_preface("hello")));
    let balancer = Balancer::start([("a", greeting)].into());
    let (mut client, _) = balancer.tagged_client();

    let mut echo = [0; 5];
    client.read_exact(&mut echo).unwrap();

    assert_eq!(&echo, b"hello");
    assert_eq!(balancer.wait_for("bytes counted", |stats| stats.bytes_down == 9).bytes_up, 5);
}

#[test]
fn c1_2_a_preface_may_be_longer_than_the_buffer_and_still_goes_first() {
    let (backend, collection) = collector();
    let preface = pattern(3_000_000);
    let sent = preface.clone();
    let verbose = told(backend.addr, move |_, dial| Ok(dial.with_preface(sent.clone())));
    let balancer = Balancer::with(Server::builder().buffer_size(4096), [("a", verbose)].into());

    finish(balancer.client(), b"the client's own");

    assert!(
        collection.recv_timeout(PATIENCE).unwrap() == [&preface[..], b"the client's own"].concat()
    );
}

#[test]
fn c1_2_a_preface_goes_with_the_connection_it_was_made_for() {
    let (backend, collection) = collector();
    let first =
        told(refusing_addr(), |_, dial| Ok(dial.with_preface("for the one that refused, ")));
    let second = told(backend.addr, |_, dial| Ok(dial.with_preface("for the other, ")));
    let mut backends = BackendSet::new();
    backends.insert("a", first);
    backends.insert("b", second);
    let balancer = Balancer::start(backends);

    finish(balancer.client(), b"and the client's");

    assert_eq!(collection.recv_timeout(PATIENCE).unwrap(), b"for the other, and the client's");
}

#[test]
fn c1_2_a_dial_that_cannot_even_begin_is_a_failed_one() {
    let backend = TestBackend::echo("one");
    let unwilling = told(backend.addr, |_, _| Err(ErrorKind::PermissionDenied.into()));
    let mut backends = set([("b", backend.addr)]);
    backends.insert("a", unwilling);
    let strict = TcpBackend::new(backend.addr)
        .on_socket(|socket| socket.set_ttl(9).and(Err(ErrorKind::InvalidInput.into())));
    backends.insert("aa", strict);
    let balancer = Balancer::start(backends);

    assert_eq!(balancer.tagged_client().1, "one");

    let stats = balancer.stats();
    let failures = |key| stats.backend(key).unwrap().usage.dial_failures;
    assert_eq!([failures("a"), failures("aa"), failures("b")], [1, 1, 0]);
}

#[test]
fn c1_3_the_target_name_is_read_once_when_the_backend_is_inserted() {
    /// It is called something else whenever it is asked.
    struct Fickle(SocketAddr, Arc<AtomicU64>);
    impl Backend for Fickle {
        fn target_name(&self) -> String {
            format!("name-{}", self.1.fetch_add(1, Ordering::SeqCst))
        }
        fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
            TcpBackend::new(self.0).dial(request)
        }
    }
    let (backend, asked) = (TestBackend::echo("one"), Arc::new(AtomicU64::new(0)));
    let mut backends = BackendSet::new();
    backends.insert("a", Fickle(backend.addr, asked.clone()));
    let balancer = Balancer::start(backends.clone());
    let (mut client, _) = balancer.tagged_client();

    let applied = balancer.update(backends);

    assert_eq!((applied.closed, asked.load(Ordering::SeqCst)), (0, 1));
    assert_eq!(&*balancer.stats().backend("a").unwrap().target_name, "name-0");
    assert_echo(&mut client, b"the same target");
}

#[test]
fn c1_4_the_addresses_of_a_backend_are_tried_in_order_until_one_answers() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let several = Several::new([refusing_addr(), refusing_addr(), one.addr, two.addr]);
    let mut backends = set([("b", two.addr)]);
    backends.insert("a", several.clone());
    // If one failed address were a failed backend, it would be ejected here.
    let builder = Server::builder().ejection(Ejection::new(
        1,
        Duration::from_secs(1),
        Duration::from_secs(30),
    ));
    let balancer = Balancer::with(builder, backends);

    assert_eq!(balancer.tagged_client().1, "one");

    assert_eq!(several.asked(), [0, 1, 2]);
    let stats = balancer.stats();
    let a = stats.backend("a").unwrap();
    assert_eq!((a.usage.dial_failures, a.usage.total, a.ejected), (2, 1, false));
}

#[test]
fn c1_4_the_next_backend_gets_the_client_when_all_addresses_have_failed() {
    let two = TestBackend::echo("two");
    let several = Several::new([refusing_addr(), refusing_addr()]);
    let mut backends = set([("b", two.addr)]);
    backends.insert("a", several.clone());
    let builder = Server::builder().ejection(Ejection::new(
        1,
        Duration::from_secs(1),
        Duration::from_secs(30),
    ));
    let balancer = Balancer::with(builder, backends);

    assert_eq!(balancer.tagged_client().1, "two");

    assert_eq!(several.asked(), [0, 1]);
    let stats = balancer.stats();
    let a = stats.backend("a").unwrap();
    assert_eq!((a.usage.dial_failures, a.ejected), (2, true));
}

#[test]
fn c1_4_each_address_has_the_whole_connect_timeout() {
    let (one, holes) = (TestBackend::echo("one"), [BlackHole::new(), BlackHole::new()]);
    let several = Several::new([holes[0].addr, holes[1].addr, one.addr]);
    let connect_timeout = Duration::from_millis(150);
    let balancer = Balancer::with(
        Server::builder().connect_timeout(connect_timeout),
        [("a", several.clone())].into(),
    );
    let start = Instant::now();

    assert_eq!(balancer.tagged_client().1, "one");

    assert!(start.elapsed() >= 2 * connect_timeout, "given up after {:?}", start.elapsed());
    assert_eq!(several.asked(), [0, 1, 2]);
}

#[test]
fn c1_4_a_resolved_name_is_the_target_name_whatever_it_resolves_to() {
    let one = TestBackend::echo("one");
    let name = format!("localhost:{}", one.addr.port());
    // Where `localhost` has an IPv6 address too, nobody listens there, and the next is tried.
    let by_name = || BackendSet::from([("a", TcpBackend::resolve(&name).unwrap())]);
    let balancer = Balancer::start(by_name());
    let (mut client, tag) = balancer.tagged_client();
    assert_eq!(
        (tag.as_str(), &*balancer.stats().backend("a").unwrap().target_name),
        ("one", name.as_str())
    );

    assert_eq!(balancer.update(by_name()).closed, 0);
    assert_echo(&mut client, b"the same name");

    assert_eq!(balancer.update(set([("a", one.addr)])).closed, 1);
    assert_cut(&mut client);
}

#[test]
fn c1_4_what_is_no_name_and_port_is_an_error_where_the_backend_is_made() {
    for wrong in ["", "localhost", "localhost:", "localhost:port", "localhost:65536", ":"] {
        assert!(TcpBackend::resolve(wrong).is_err(), "{wrong:?}");
    }
}
