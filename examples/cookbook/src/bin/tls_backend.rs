//! A balancer that takes plain connections and speaks TLS to its backends, by rustls.
//!
//! A backend is connected once its certificate is checked and the handshake is done. If that fails,
//! the client gets the next backend.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tinylb::mio::event::Source;
use tinylb::mio::{Interest, Registry, Token};
use tinylb::{
    Address, Backend, BackendSet, Dial, DialRequest, Readiness, Server, Stream, TcpBackend,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, listen, roots, nodes @ ..] = &args[..] else {
        return Err("usage: LISTEN ROOTS.pem HOST:PORT...".into());
    };
    let mut trusted = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots)? {
        trusted.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    let config = Arc::new(config);
    let mut set = BackendSet::new();
    for node in nodes {
        set.insert(node.clone(), TlsBackend::new(node, config.clone())?);
    }
    let server = Server::builder().backends(set).build(TcpListener::bind(listen)?)?;
    println!("listening on {}", server.local_addr());
    server.run()?;
    Ok(())
}

/// A TCP backend that TLS is spoken to.
struct TlsBackend {
    tcp: TcpBackend,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl TlsBackend {
    /// Resolves `host:port`. The certificate has to be for the host.
    fn new(host_and_port: &str, config: Arc<ClientConfig>) -> io::Result<Self> {
        let tcp = TcpBackend::resolve(host_and_port)?;
        let host = host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host)
            .map_err(|err| io::Error::new(ErrorKind::InvalidInput, err))?;
        Ok(Self { tcp, name, config })
    }
}

impl Backend for TlsBackend {
    /// Not the name of the TCP backend: the same address without TLS is another target.
    fn target_name(&self) -> String {
        format!("tls:{}", self.tcp.target_name())
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let tls = ClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(io::Error::other)?;
        let dial = self.tcp.dial(request)?;
        Ok(dial.map_stream(|socket| TlsStream { socket, tls, is_ending: false }))
    }

    /// Without this, only the first address would be tried.
    fn attempts(&self) -> u32 {
        self.tcp.attempts()
    }

    fn attempt_name(&self, attempt: u32) -> String {
        format!("tls:{}", self.tcp.attempt_name(attempt))
    }
}

/// TLS over another stream.
///
/// Whatever is asked of it first drives the handshake. After that only `read` takes bytes from the
/// socket: no event would tell of what another operation found there.
struct TlsStream {
    socket: Box<dyn Stream>,
    tls: ClientConnection,
    /// Whether `close_notify` is on its way.
    is_ending: bool,
}

impl TlsStream {
    fn handshake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.send()?;
            if self.tls.is_handshaking() && self.receive()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes in what has arrived, and sends what TLS has to say to that.
    fn receive(&mut self) -> io::Result<usize> {
        let len = self.tls.read_tls(&mut self.socket)?;
        let processed = self.tls.process_new_packets();
        self.send_some()?; // also an alert
        processed.map_err(|err| io::Error::new(ErrorKind::InvalidData, err))?;
        Ok(len)
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Err(err) if err.kind() != ErrorKind::Interrupted => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends as much as the socket takes. `flush` sends the rest.
    fn send_some(&mut self) -> io::Result<()> {
        self.send().or_else(|err| match err.kind() {
            ErrorKind::WouldBlock => Ok(()),
            _ => Err(err),
        })
    }
}

impl Read for TlsStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.handshake()?;
        loop {
            match self.tls.reader().read(room) {
                Err(err) if err.kind() == ErrorKind::WouldBlock => self.receive()?,
                // An end of stream without `close_notify` is an error here.
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
        self.send()?; // room for more, or `WouldBlock`
        let len = self.tls.writer().write(bytes)?;
        self.send_some()?;
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
        Ok(self.socket.check_connect()? && self.handshake().map(|()| true)?)
    }

    fn take_error(&mut self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    fn abort(&mut self) {
        self.socket.abort();
    }

    /// Either operation may have to wait for the other direction of the socket.
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
    fn register(&mut self, to: &Registry, token: Token, events: Interest) -> io::Result<()> {
        self.socket.register(to, token, events)
    }

    fn reregister(&mut self, to: &Registry, token: Token, events: Interest) -> io::Result<()> {
        self.socket.reregister(to, token, events)
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        self.socket.deregister(from)
    }
}
