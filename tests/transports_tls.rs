//! C1.2: TLS by rustls on either side, through the public traits alone, as a crate of its own would bring it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::DerefMut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, ConnectionCommon, ServerConfig, ServerConnection,
    SideData, StreamOwned,
};
use tinylb::mio::event::Source;
use tinylb::mio::{Interest, Registry, Token};
use tinylb::{
    Address, Backend, BackendSet, Builder, Dial, DialRequest, EndReason, IntoListener, Listener,
    Readiness, Server, SocketOptions, Stream, TcpBackend,
};
use tinylb_tests::*;

// The transport.

/// How often a stream could not send at once all that it had taken.
type HeldBack = Arc<AtomicU64>;

/// TLS over another stream, in either role.
///
/// The handshake is driven by whatever is asked of the stream first. After it, only `read` takes bytes from the socket:
/// what another operation found there, no event would tell of.
struct TlsStream {
    socket: Box<dyn Stream>,
    tls: Connection,
    is_ending: bool,
    held_back: HeldBack,
}

impl TlsStream {
    fn new(socket: Box<dyn Stream>, tls: impl Into<Connection>, held_back: HeldBack) -> Self {
        Self { socket, tls: tls.into(), is_ending: false, held_back }
    }

    fn handshake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.send()?;
            if self.tls.is_handshaking() && self.receive()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes in what has arrived, and sends what is to be said to that.
    fn receive(&mut self) -> io::Result<usize> {
        let len = self.tls.read_tls(&mut self.socket)?;
        let processed = self
            .tls
            .process_new_packets()
            .map_err(|err| io::Error::new(ErrorKind::InvalidData, err));
        self.send_some()?;
        processed.map(|_| len)
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Sends what the socket takes.
    fn send_some(&mut self) -> io::Result<()> {
        match self.send() {
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                self.held_back.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            result => result,
        }
    }
}

impl Read for TlsStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.handshake()?;
        loop {
            match self.tls.reader().read(room) {
                Err(err) if err.kind() == ErrorKind::WouldBlock => self.receive()?,
                result => return result,
            };
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.handshake()?;
        self.send()?;
        let len = self.tls.writer().write(bytes)?;
        self.send_some()?; // the bytes are taken, so that a blocked socket is none of the caller's business
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.socket.flush()
    }
}

impl Stream for TlsStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.handshake()?; // an alert during the handshake would be a refusal
        if !self.is_ending {
            self.tls.send_close_notify();
            self.is_ending = true;
        }
        self.send()?;
        self.socket.shutdown_write()
    }

    fn check_connect(&mut self) -> io::Result<bool> {
        if !self.socket.check_connect()? {
            return Ok(false);
        }
        self.handshake().map(|()| true)
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    fn abort(&mut self) {
        self.socket.abort();
    }

    fn translate(&self, event: Readiness) -> Readiness {
        let mut event = self.socket.translate(event);
        (event.readable, event.writable) = (true, true);
        event
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.socket.local_addr()
    }
}

impl Source for TlsStream {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}

/// Accepts TLS clients from another listener. The handshake begins when a backend is there.
struct TlsListener {
    socket: Box<dyn Listener>,
    config: Arc<ServerConfig>,
    held_back: HeldBack,
}

impl Listener for TlsListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (socket, addr) = self.socket.accept()?;
        let tls = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        Ok((Box::new(TlsStream::new(socket, tls, self.held_back.clone())), addr))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.socket.local_addr()
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        self.socket.set_options(options)
    }
}

impl Source for TlsListener {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}

/// A backend that is connected once it has shown its certificate and the handshake is done.
struct TlsBackend {
    dialled: TcpBackend,
    config: Arc<ClientConfig>,
    held_back: HeldBack,
}

impl TlsBackend {
    fn new(addr: SocketAddr) -> Self {
        Self {
            dialled: TcpBackend::new(addr),
            config: tls().client.clone(),
            held_back: HeldBack::default(),
        }
    }
}

impl Backend for TlsBackend {
    fn target_name(&self) -> String {
        format!("tls:{}", self.dialled.target_name())
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let tls =
            ClientConnection::new(self.config.clone(), server_name()).map_err(io::Error::other)?;
        Ok(self
            .dialled
            .dial(request)?
            .map_stream(|socket| TlsStream::new(socket, tls, self.held_back.clone())))
    }

    fn attempts(&self) -> u32 {
        self.dialled.attempts()
    }
}

// What the tests need besides.

struct Tls {
    certificate: CertificateDer<'static>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["balanced.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.key_pair.serialize_der().into());
        let certificate = made.cert.der().clone();
        let server = ServerConfig::builder().with_no_client_auth();
        let mut server = server.with_single_cert(vec![certificate.clone()], key).unwrap();
        // What a server says first then comes with its side of the handshake.
        server.send_half_rtt_data = true;
        let client = trusting(&certificate, rustls::ALL_VERSIONS);
        Self { certificate, server: Arc::new(server), client }
    }
}

fn trusting(
    certificate: &CertificateDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::builder_with_protocol_versions(versions);
    Arc::new(client.with_root_certificates(roots).with_no_client_auth())
}

/// The certificate, and who trusts it.
fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(Tls::new)
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from("balanced.test").unwrap()
}

/// A client's or a backend's end, of either kind, on blocking sockets.
trait Peer: Read + Write + Send {
    /// Ends its stream; the other direction goes on.
    fn end(&mut self);
    fn socket(&self) -> &TcpStream;
}

impl Peer for TcpStream {
    fn end(&mut self) {
        self.shutdown(Shutdown::Write).unwrap();
    }

    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<C: DerefMut<Target = ConnectionCommon<S>> + Send, S: SideData> Peer
    for StreamOwned<C, TcpStream>
{
    fn end(&mut self) {
        self.flush().unwrap(); // with the handshake, during which a farewell would be a refusal
        self.conn.send_close_notify();
        self.flush().unwrap();
        self.sock.end();
    }

    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    Tls,
}
use Kind::{Plain, Tls as Secure};

const COMBINATIONS: [(Kind, Kind); 4] =
    [(Plain, Plain), (Plain, Secure), (Secure, Plain), (Secure, Secure)];

impl Kind {
    fn client(self, addr: SocketAddr) -> Box<dyn Peer> {
        let socket = connect(addr);
        match self {
            Plain => Box::new(socket),
            Secure => Box::new(StreamOwned::new(client_connection(), socket)),
        }
    }

    /// A backend that does this with its connections.
    fn serve(self, serve: impl Fn(Box<dyn Peer>) + Send + Sync + 'static) -> TestBackend {
        TestBackend::new(move |socket| match self {
            Plain => serve(Box::new(socket)),
            Secure => serve(Box::new(StreamOwned::new(server_connection(), socket))),
        })
    }

    /// A backend that says hello and then sends back what it gets.
    fn echo(self) -> TestBackend {
        self.serve(|mut peer| {
            let mut room = vec![0; 64 * 1024];
            let mut copy = || -> io::Result<()> {
                peer.write_all(b"hello\n")?;
                peer.flush()?;
                loop {
                    let len = peer.read(&mut room)?;
                    if len == 0 {
                        return Ok(());
                    }
                    peer.write_all(&room[..len])?;
                    peer.flush()?;
                }
            };
            if copy().is_ok() {
                peer.end();
            }
        })
    }

    fn backends(self, addr: SocketAddr) -> BackendSet {
        match self {
            Plain => set([("a", addr)]),
            Secure => BackendSet::from([("a", TlsBackend::new(addr))]),
        }
    }

    fn balancer(self, backends: BackendSet) -> Balancer {
        self.balancer_with(Server::builder(), backends, HeldBack::default())
    }

    fn balancer_with(
        self,
        builder: Builder,
        backends: BackendSet,
        held_back: HeldBack,
    ) -> Balancer {
        let server = builder.backends(backends);
        let server = match self {
            Plain => server.build(listener()).unwrap(),
            Secure => {
                let (socket, config) = (listener().into_listener().unwrap(), tls().server.clone());
                let listener: Box<dyn Listener> =
                    Box::new(TlsListener { socket, config, held_back });
                server.build(listener).unwrap()
            }
        };
        let control = server.control();
        Balancer {
            addr: server.local_addr().ip().unwrap(),
            control,
            thread: server.spawn().unwrap(),
        }
    }
}

fn client_connection() -> ClientConnection {
    ClientConnection::new(tls().client.clone(), server_name()).unwrap()
}

fn server_connection() -> ServerConnection {
    ServerConnection::new(tls().server.clone()).unwrap()
}

/// A backend that takes connections and says nothing until its peer is done with it.
fn silent() -> TestBackend {
    TestBackend::new(|mut socket| {
        let _ = io::copy(&mut socket, &mut io::sink());
    })
}

/// The stream is cut, and its reader sees that: by a reset, and over TLS by the missing farewell at least.
#[track_caller]
fn assert_seen_cut(kind: Kind, peer: &mut dyn Peer) {
    match kind {
        Plain => assert_cut(&mut peer.socket().try_clone().unwrap()),
        Secure => {
            let err = io::copy(peer, &mut io::sink()).expect_err("ended as if in order");
            let may_be =
                [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof];
            let may_be = if cfg!(feature = "socket2") { &may_be[..2] } else { &may_be[..] };
            assert!(may_be.contains(&err.kind()), "{err}");
        }
    }
}

#[test]
fn c1_2_plain_and_tls_go_together_on_either_side_to_both_ends() {
    for (front, back) in COMBINATIONS {
        let backend = back.echo();
        let balancer = front.balancer(back.backends(backend.addr));
        let mut client = front.client(balancer.addr);

        assert_eq!(read_tag(&mut client), "hello");
        for _ in 0..10 {
            assert_echo(&mut client, &pattern(100_000));
        }
        client.end();

        assert_eq!(read_to_end(&mut client), (vec![], StreamEnd::Clean), "{front:?} {back:?}");
        let stats = balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
        assert_eq!((stats.bytes_up, stats.bytes_down), (1_000_000, 1_000_006));
    }
}

#[test]
fn c6_2_either_side_may_end_first_and_the_other_goes_on() {
    let data = || pattern(2_000_000);
    for (front, back) in COMBINATIONS {
        let (backend_sends_first, client_sends_first) = (
            back.serve(move |mut peer| {
                peer.write_all(&data()).unwrap();
                peer.end();
                assert_eq!(read_to_end(&mut peer), (data(), StreamEnd::Clean));
            }),
            back.serve(move |mut peer| {
                assert_eq!(read_to_end(&mut peer), (data(), StreamEnd::Clean));
                peer.write_all(&data()).unwrap();
                peer.end();
            }),
        );

        let balancer = front.balancer(back.backends(backend_sends_first.addr));
        let mut client = front.client(balancer.addr);
        assert!(read_to_end(&mut client) == (data(), StreamEnd::Clean), "{front:?} {back:?}");
        client.write_all(&data()).unwrap();
        client.end();
        balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);

        let balancer = front.balancer(back.backends(client_sends_first.addr));
        let mut client = front.client(balancer.addr);
        client.write_all(&data()).unwrap();
        client.end();
        assert!(read_to_end(&mut client) == (data(), StreamEnd::Clean), "{front:?} {back:?}");
        balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
    }
}

#[test]
fn c6_2_a_stream_that_ends_without_a_byte_ends_so_on_the_other_side() {
    for (front, back) in COMBINATIONS {
        let backend = back.serve(|mut peer| {
            peer.end();
            assert_eq!(read_to_end(&mut peer), (vec![], StreamEnd::Clean));
        });
        let balancer = front.balancer(back.backends(backend.addr));
        let mut client = front.client(balancer.addr);

        assert_eq!(read_to_end(&mut client), (vec![], StreamEnd::Clean), "{front:?} {back:?}");
        client.end();

        balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
    }
}

/// Two balancers with TLS between them, so that both ends can be plain sockets that are read and written at once.
#[test]
fn c6_3_a_reader_that_lags_holds_back_tls_both_ways_and_no_byte_is_lost() {
    const LEN: usize = 24 << 20;
    let held_back = HeldBack::default();
    let backend = TestBackend::echo("hello");
    let far =
        Secure.balancer_with(Server::builder(), Plain.backends(backend.addr), held_back.clone());
    let tunnel = TlsBackend { held_back: held_back.clone(), ..TlsBackend::new(far.addr) };
    let near = Plain.balancer(BackendSet::from([("a", tunnel)]));
    let (mut client, _) = near.tagged_client();
    let writer = std::thread::spawn({
        let mut client = client.try_clone().unwrap();
        move || {
            client.write_all(&pattern(LEN)).unwrap();
            client.end();
        }
    });

    wait_for("output that the socket does not take", || {
        (held_back.load(Ordering::SeqCst) > 0).then_some(())
    });
    let (echo, end) = read_to_end(&mut client);

    writer.join().unwrap();
    assert!(echo == pattern(LEN) && end == StreamEnd::Clean, "{} bytes, {end:?}", echo.len());
    near.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
    far.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
}

/// What the TLS library has taken and the socket has not must be flushed when the socket takes it, and not only when more
/// is written.
#[test]
fn c1_2_output_that_was_held_back_arrives_though_nothing_follows_it() {
    let held_back = HeldBack::default();
    let backend = listener();
    let backends = Plain.backends(backend.local_addr().unwrap());
    let balancer = Secure.balancer_with(Server::builder(), backends, held_back.clone());
    let mut client = StreamOwned::new(client_connection(), connect(balancer.addr));
    let (mut at_backend, _) = backend.accept().unwrap();
    client.flush().unwrap(); // with the handshake
    let mut sent = 0;
    while held_back.load(Ordering::SeqCst) == 0 {
        at_backend.write_all(&[7; 10_000]).unwrap(); // less than a read, so that it becomes one write
        sent += 10_000;
        let is_held_back = || held_back.load(Ordering::SeqCst) > 0;
        balancer.wait_for("the write", |stats| stats.bytes_down == sent || is_held_back());
    }

    let mut received = vec![0; sent as usize];
    client.read_exact(&mut received).unwrap();

    assert!(received.iter().all(|byte| *byte == 7));
}

/// The end of the handshake, a request longer than a read, and the end of the stream come in one go, after which no
/// event tells of what waits in the TLS library.
#[test]
fn c6_1_what_comes_along_with_the_handshake_is_not_left_lying() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let backend = Plain.serve(|mut peer| {
            let (request, _) = read_to_end(&mut peer);
            peer.write_all(&request).unwrap();
            peer.end();
        });
        let builder = Server::builder().buffer_size(7);
        let balancer =
            Secure.balancer_with(builder, Plain.backends(backend.addr), HeldBack::default());
        let config = trusting(&tls().certificate, &[version]);
        let mut tls = ClientConnection::new(config, server_name()).unwrap();
        let mut socket = connect(balancer.addr);

        while tls.is_handshaking() {
            tls.write_tls(&mut socket).unwrap();
            tls.read_tls(&mut socket).unwrap();
            tls.process_new_packets().unwrap();
        }
        tls.writer().write_all(&pattern(10_000)).unwrap();
        tls.send_close_notify();
        let mut last = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut last).unwrap();
        }
        socket.write_all(&last).unwrap();
        socket.end();

        let answer = read_to_end(&mut StreamOwned::new(tls, socket));
        assert_eq!(answer, (pattern(10_000), StreamEnd::Clean));
    }
}

#[test]
fn c3_10_a_tls_stream_that_ends_without_farewell_is_a_cut_for_the_other_side() {
    for back in [Plain, Secure] {
        let (ends, of_backend) = std::sync::mpsc::channel();
        let backend = back.serve(move |mut peer| {
            let mut byte = [0];
            peer.read_exact(&mut byte).unwrap();
            ends.send(peer).unwrap();
        });
        let balancer = Secure.balancer(back.backends(backend.addr));
        let mut client = Secure.client(balancer.addr);
        client.write_all(b"x").unwrap();
        let mut at_backend = of_backend.recv_timeout(PATIENCE).unwrap();

        client.socket().shutdown(Shutdown::Write).unwrap();

        assert_seen_cut(back, &mut *at_backend);
        balancer.wait_for("the cut", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
    }
    for front in [Plain, Secure] {
        let backend = Secure.serve(|mut peer| {
            peer.write_all(b"half an ans").unwrap();
            peer.flush().unwrap();
            let mut byte = [0];
            peer.read_exact(&mut byte).unwrap();
            peer.socket().shutdown(Shutdown::Write).unwrap();
        });
        let balancer = front.balancer(Secure.backends(backend.addr));
        let mut client = front.client(balancer.addr);
        client.read_exact(&mut [0; 11]).unwrap();

        client.write_all(b"x").unwrap();

        assert_seen_cut(front, &mut *client);
        balancer.wait_for("the cut", |stats| stats.ended.of(EndReason::BackendFailed) == 1);
    }
}

#[test]
fn c5_3_a_backend_that_does_not_complete_the_handshake_has_failed() {
    let stranger = Tls::new();
    let stranger = TestBackend::new(move |socket| {
        let tls = ServerConnection::new(stranger.server.clone()).unwrap();
        let _ = io::copy(&mut StreamOwned::new(tls, socket), &mut io::sink());
    });
    let not_tls = Plain.echo();
    let closing = TestBackend::new(|socket| socket.shutdown(Shutdown::Both).unwrap());
    let (silent, good) = (silent(), Secure.echo());
    let addrs =
        [stranger.addr, not_tls.addr, closing.addr, silent.addr, refusing_addr(), good.addr];
    let backends =
        ["a", "b", "c", "d", "e", "f"].into_iter().zip(addrs.map(TlsBackend::new)).collect();
    let builder = Server::builder().connect_timeout(std::time::Duration::from_millis(300));
    let balancer = Plain.balancer_with(builder, backends, HeldBack::default());

    let (mut client, tag) = balancer.tagged_client();

    assert_eq!(tag, "hello");
    assert_echo(&mut client, b"over TLS");
    let stats = balancer.stats();
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|i| stats.backends[i].usage.dial_failures),
        [1, 1, 1, 1, 1, 0]
    );
    assert_eq!([0, 1, 2, 3, 4, 5].map(|i| stats.backends[i].usage.total), [0, 0, 0, 0, 0, 1]);
}

#[test]
fn c3_2_removal_closes_tls_pairs_and_cancels_handshakes() {
    for (front, back) in COMBINATIONS {
        let backend = back.echo();
        let balancer = front.balancer(back.backends(backend.addr));
        let mut client = front.client(balancer.addr);
        assert_eq!(read_tag(&mut client), "hello");

        assert_eq!(balancer.update(BackendSet::new()).closed, 1);

        assert_seen_cut(front, &mut *client);
    }

    let (silent, good) = (silent(), Secure.echo());
    let balancer = Secure.balancer(Secure.backends(silent.addr));
    let mut client = Secure.client(balancer.addr);
    wait_for("the dial", || (silent.accepted() == 1).then_some(()));
    let applied = balancer.update(BackendSet::from([("b", TlsBackend::new(good.addr))]));
    assert_eq!((applied.closed, applied.cancelled), (0, 1));
    assert_eq!(read_tag(&mut client), "hello");
}

#[test]
#[cfg(feature = "socket2")]
fn c5_4_a_tls_client_that_resets_during_the_dial_ends_it() {
    let silent = silent();
    let balancer = Secure.balancer(Secure.backends(silent.addr));
    let client = connect(balancer.addr);
    wait_for("the dial", || (silent.accepted() == 1).then_some(()));

    reset(client);

    let stats = balancer.wait_for("the end", |stats| stats.dialling == 0);
    assert_eq!(stats.refused.of(EndReason::ClientFailed), 1);
}

#[test]
fn c6_4_a_tls_client_that_resets_while_it_is_not_read_ends_the_pair() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let backend = Plain.serve(move |_unread| released.lock().unwrap().recv().unwrap_or_default());
    let balancer = Secure.balancer(Plain.backends(backend.addr));
    let mut client = StreamOwned::new(client_connection(), connect(balancer.addr));
    client.write_all(b"begin").unwrap();
    balancer.wait_for("the first bytes", |stats| stats.bytes_up == 5);
    // Until nothing more goes: the backend does not read, so that in the end the client is not read either.
    client.sock.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut stalls = 0;
    while stalls < 20 {
        match client.write(&[0; 16 * 1024]) {
            Ok(len) => (written, stalls) = (written + len, 0),
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                stalls += 1;
                balancer.stats(); // a turn has passed
            }
            Err(err) => panic!("{err}"),
        }
    }
    assert!(written > 100_000);

    reset(client.sock);

    balancer.wait_for("the cut", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
    drop(release);
}
