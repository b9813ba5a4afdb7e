//! The programs do what they are there to show, over real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tinylb_tests::{TestBackend, assert_echo, assert_refused, connect, read_tag, wait_for};

/// A program that runs, and does not outlive its test.
struct Program {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Program {
    #[track_caller]
    fn start(path: &str, args: &[&str]) -> Self {
        let mut child = Command::new(path).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The addresses that its first line names.
    fn addrs(&mut self) -> Vec<SocketAddr> {
        let line = self.line();
        line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_tokio_host_serves_what_a_name_resolves_to_and_drains_on_ctrl_c() {
    let node = TestBackend::echo("node");
    let name = format!("localhost:{}", node.addr.port());
    let mut program = Program::start(env!("CARGO_BIN_EXE_tokio_host"), &["127.0.0.1:0", &name]);
    let addr = program.addrs()[0];
    assert!(program.line().ends_with("backends, closed 0"));
    let mut client = connect(addr);
    assert_eq!(read_tag(&mut client), "node");

    kill(Pid::from_raw(program.child.id() as i32), Signal::SIGINT).unwrap();
    wait_for("nobody is accepted", || TcpStream::connect(addr).err());
    assert_echo(&mut client, b"still served");
    drop(client);

    let farewell = program.line();
    assert!(farewell.starts_with("served ") && farewell.contains(" clients in "), "{farewell:?}");
    assert!(program.child.wait().unwrap().success());
}

#[test]
fn the_exporter_tells_prometheus_what_is_open_and_what_has_ended() {
    let node = TestBackend::echo("node");
    let args = ["127.0.0.1:0", "127.0.0.1:0", &node.addr.to_string()];
    let mut program = Program::start(env!("CARGO_BIN_EXE_prometheus"), &args);
    let addrs = program.addrs();
    let scrape = || {
        let mut scraper = connect(addrs[1]);
        scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        scraper.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", text.len())));
        text.to_owned()
    };
    let mut client = connect(addrs[0]);
    read_tag(&mut client);
    assert!(scrape().contains("# TYPE tinylb_open gauge\ntinylb_open{backend=\"node\"} 1\n"));
    drop(client);
    wait_for("its end is told", || {
        scrape().contains("tinylb_ended_total{reason=\"finished\"} 1\n").then_some(())
    });
    assert!(scrape().contains("\ntinylb_refused_total{reason=\"dial_limit\"} 0\n"));
}

/// Its certificate, as a file, and a backend that shows it and says hello over TLS.
fn tls_backend() -> (tempfile::NamedTempFile, TestBackend) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = tempfile::NamedTempFile::new().unwrap();
    roots.write_all(made.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.key_pair.serialize_der().into());
    let config = ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key).unwrap());
    let backend = TestBackend::new(move |socket| {
        let tls = ServerConnection::new(config.clone()).unwrap();
        let mut peer = StreamOwned::new(tls, socket);
        let mut room = [0; 64 * 1024];
        let mut serve = || -> std::io::Result<()> {
            peer.write_all(b"tls\n")?;
            loop {
                match peer.read(&mut room)? {
                    0 => return Ok(()),
                    len => peer.write_all(&room[..len])?,
                }
                peer.flush()?;
            }
        };
        if serve().is_ok() {
            peer.conn.send_close_notify();
            let _ = peer.flush();
        }
    });
    (roots, backend)
}

#[test]
fn plain_clients_reach_tls_backends_that_are_trusted_and_no_others() {
    let ((roots, trusted), (_, other)) = (tls_backend(), tls_backend());
    let named = |backend: &TestBackend| format!("localhost:{}", backend.addr.port());
    let roots = roots.path().to_str().unwrap();
    let start = |nodes: &[&str]| {
        let args = [&["127.0.0.1:0", roots], nodes].concat();
        Program::start(env!("CARGO_BIN_EXE_tls_backend"), &args)
    };

    let mut program = start(&[&named(&other), &named(&trusted)]);
    let addr = program.addrs()[0];
    for _ in 0..4 {
        let mut client = connect(addr); // the backend without a trusted certificate is failed over
        assert_eq!(read_tag(&mut client), "tls");
        let bulk: Vec<u8> = (0..1 << 20).map(|at: u32| at as u8).collect();
        let mut writer = client.try_clone().unwrap();
        let sent = bulk.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut echo = Vec::new();
        client.read_to_end(&mut echo).unwrap();
        writing.join().unwrap();
        assert!(echo == bulk, "{} bytes came back", echo.len());
    }

    let mut program = start(&[&named(&other)]);
    assert_refused(program.addrs()[0]);
}
