//! TLS by rustls, as a crate of its own would bring it, and what is special about it.

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
use tinylb::{
    Address, BackendSet, Dial, DialRequest, EndReason, IntoListener, Listener, Readiness, Server,
    SocketOptions, Stream, TcpBackend,
};
use tinylb_tests::*;

use crate::kind::Kind;

// The transport.

/// How often a stream could not send at once all that it had taken.
pub(crate) type HeldBack = Arc<AtomicU64>;

/// TLS over another stream, in either role.
///
/// The handshake is driven by whatever is asked of the stream first. After it, only `read` takes
/// bytes from the socket: what another operation found there, no event would tell of.
struct TlsStream {
    socket: Box<dyn Stream>,
    tls: Connection,
    is_ending: bool,
    held_back: HeldBack,
}

source_by_field!(TlsStream, socket);

impl TlsStream {
    fn new(socket: Box<dyn Stream>, tls: impl Into<Connection>, held_back: &HeldBack) -> Self {
        Self { socket, tls: tls.into(), is_ending: false, held_back: held_back.clone() }
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

/// Accepts TLS clients from another listener. The handshake begins when a backend is there.
struct TlsListener {
    socket: Box<dyn Listener>,
    held_back: HeldBack,
}

source_by_field!(TlsListener, socket);

impl Listener for TlsListener {
    fn accept(&mut self) -> io::Result<(Box<dyn Stream>, Address)> {
        let (socket, addr) = self.socket.accept()?;
        let tls = ServerConnection::new(tls().server.clone()).map_err(io::Error::other)?;
        Ok((Box::new(TlsStream::new(socket, tls, &self.held_back)), addr))
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.socket.local_addr()
    }

    fn set_options(&mut self, options: &SocketOptions) -> io::Result<()> {
        self.socket.set_options(options)
    }
}

/// A backend that is connected once it has shown its certificate and the handshake is done.
pub(crate) struct Backend {
    dialled: TcpBackend,
    held_back: HeldBack,
}

impl Backend {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self { dialled: TcpBackend::new(addr), held_back: HeldBack::default() }
    }
}

impl tinylb::Backend for Backend {
    fn target_name(&self) -> String {
        format!("tls:{}", self.dialled.target_name())
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let tls = ClientConnection::new(tls().client.clone(), server_name());
        let tls = tls.map_err(io::Error::other)?;
        let dial = self.dialled.dial(request)?;
        Ok(dial.map_stream(|socket| TlsStream::new(socket, tls, &self.held_back)))
    }

    fn attempts(&self) -> u32 {
        self.dialled.attempts()
    }
}

// What the tests need besides.

/// A certificate, and configurations that show and trust it.
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

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(Tls::new)
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from("balanced.test").unwrap()
}

/// A client's or a backend's end, on a blocking socket.
struct TlsPeer<C>(StreamOwned<C, TcpStream>);

impl<C: DerefMut<Target = ConnectionCommon<S>>, S: SideData> Read for TlsPeer<C> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.0.read(room)
    }
}

impl<C: DerefMut<Target = ConnectionCommon<S>>, S: SideData> Write for TlsPeer<C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<C: DerefMut<Target = ConnectionCommon<S>> + Send, S: SideData> Peer for TlsPeer<C> {
    fn end(&mut self) -> io::Result<()> {
        self.flush()?; // with the handshake, during which a farewell would be a refusal
        self.0.conn.send_close_notify();
        self.flush()?;
        self.0.sock.shutdown(Shutdown::Write)
    }

    fn leave(self: Box<Self>) {
        reset(self.0.sock);
    }

    fn share(&self) -> Option<Box<dyn Peer>> {
        None
    }
}

pub(crate) fn client(socket: TcpStream) -> impl Peer + 'static {
    let tls = ClientConnection::new(tls().client.clone(), server_name()).unwrap();
    TlsPeer(StreamOwned::new(tls, socket))
}

/// A backend's end, with the handshake behind it.
pub(crate) fn server(socket: TcpStream) -> impl Peer + 'static {
    let tls = ServerConnection::new(tls().server.clone()).unwrap();
    let mut stream = StreamOwned::new(tls, socket);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    TlsPeer(stream)
}

pub(crate) fn listener(held_back: &HeldBack) -> Box<dyn Listener> {
    let socket = tinylb_tests::listener().into_listener().unwrap();
    Box::new(TlsListener { socket, held_back: held_back.clone() })
}

/// What the TLS library has taken and the socket has not must be flushed when the socket takes it,
/// and not only when more is written.
#[test]
fn c1_2_output_that_was_held_back_arrives_though_nothing_follows_it() {
    let (held_back, back) = (HeldBack::default(), ManualBackend::new());
    let builder = Server::builder().backends(set([("a", back.addr)]));
    let balancer = Balancer::of(builder.build(listener(&held_back)).unwrap());
    let (mut client, mut server) = (client(balancer.client()), back.accept());
    client.flush().unwrap(); // with the handshake
    let mut sent = 0;
    while held_back.load(Ordering::SeqCst) == 0 {
        server.write_all(&[7; 10_000]).unwrap(); // less than a read, so that it becomes one write
        sent += 10_000;
        let is_held_back = || held_back.load(Ordering::SeqCst) > 0;
        balancer.wait_for("the write", |stats| stats.bytes_down == sent || is_held_back());
    }

    let mut received = vec![0; sent as usize];
    client.read_exact(&mut received).unwrap();

    assert!(received.iter().all(|byte| *byte == 7));
}

/// The end of the handshake, a request longer than a read, and the end of the stream come in one
/// go, after which no event tells of what waits in the TLS library.
#[test]
fn c6_1_what_comes_along_with_the_handshake_is_not_left_lying() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let backend = TestBackend::new(|mut socket| {
            let (request, _) = read_to_end(&mut socket);
            socket.write_all(&request).and_then(|()| socket.end()).unwrap();
        });
        let builder = Server::builder().buffer_size(7).backends(set([("a", backend.addr)]));
        let balancer = Balancer::of(builder.build(listener(&HeldBack::default())).unwrap());
        let config = trusting(&tls().certificate, &[version]);
        let mut tls = ClientConnection::new(config, server_name()).unwrap();
        let mut socket = balancer.client();

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
        socket.write_all(&last).and_then(|()| socket.end()).unwrap();

        let answer = read_to_end(&mut StreamOwned::new(tls, socket));
        assert_eq!(answer, (pattern(10_000), StreamEnd::Clean));
    }
}

#[test]
fn c3_10_a_tls_stream_that_ends_without_close_notify_is_an_abort_for_the_other_side() {
    for kind in [Kind::Tcp, Kind::Tls] {
        let back = crate::kind::Back::new(kind);
        let builder = Server::builder().backends(back.set.clone());
        let balancer = Balancer::of(builder.build(listener(&HeldBack::default())).unwrap());
        let socket = balancer.client();
        let (twin, mut client) = (socket.try_clone().unwrap(), client(socket));
        // It shakes hands once the backend has.
        let client = std::thread::spawn(move || client.write_all(b"hello").map(|()| client));
        let mut server = back.accept();
        server.read_exact(&mut [0; 5]).unwrap();
        let _client = client.join().unwrap().unwrap();

        twin.shutdown(Shutdown::Write).unwrap();

        assert_aborted(&mut server);
        balancer.wait_for("the end", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
    }
}

#[test]
fn c5_3_a_backend_that_does_not_complete_the_handshake_has_failed() {
    let stranger = Tls::new();
    let stranger = TestBackend::new(move |socket| {
        let tls = ServerConnection::new(stranger.server.clone()).unwrap();
        let _ = io::copy(&mut StreamOwned::new(tls, socket), &mut io::sink());
    });
    let not_tls = TestBackend::echo("plain");
    let closing = TestBackend::new(|socket| socket.shutdown(Shutdown::Both).unwrap());
    let silent = TestBackend::new(|mut socket| drop(io::copy(&mut socket, &mut io::sink())));
    let good = TestBackend::new(|socket| {
        let mut stream = server(socket.into());
        stream.write_all(b"good\n").and_then(|()| stream.end()).unwrap();
    });
    let addrs =
        [stranger.addr, not_tls.addr, closing.addr, silent.addr, refusing_addr(), good.addr];
    let backends: BackendSet =
        ["a", "b", "c", "d", "e", "f"].into_iter().zip(addrs.map(Backend::new)).collect();
    let balancer = Balancer::with(Server::builder().connect_timeout(2 * SHORT), backends);

    assert_eq!(balancer.tags(1), "good");

    let failures = balancer.stats().backends.into_iter().map(|backend| backend.usage.dial_failures);
    assert_eq!(failures.collect::<Vec<_>>(), [1, 1, 1, 1, 1, 0]);
}
