//! What is special about Unix-domain sockets.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tinylb::{Address, Backend, BackendSet, Dial, DialRequest, EndReason, Server};
use tinylb::{TcpBackend, UnixBackend};
use tinylb_tests::*;

use crate::kind::{Kind, pair, unix_client};

fn unix_socket() -> Socket {
    Socket::new(Domain::UNIX, Type::STREAM, None).unwrap()
}

#[test]
fn c1_2_addresses_are_shown_as_what_they_are() {
    #[derive(Clone)]
    struct Asked(UnixBackend, Arc<Mutex<Vec<[Address; 2]>>>);
    impl Backend for Asked {
        fn target_name(&self) -> String {
            self.0.target_name()
        }
        fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
            self.1.lock().unwrap().push([request.client_addr().clone(), request.local_addr()?]);
            self.0.dial(request)
        }
    }
    let dir = TempDir::new().unwrap();
    let [front, back, named] = ["front", "back", "named"].map(|name| dir.path().join(name));
    let _listener = UnixListener::bind(&back).unwrap();
    let backend = Asked(UnixBackend::new(&back), Arc::default());
    assert_eq!(backend.target_name(), format!("unix:{}", back.display()));
    let builder = Server::builder().backends([("a", backend.clone())].into());
    let balancer = Balancer::of(builder.build(UnixListener::bind(&front).unwrap()).unwrap());

    let _anonymous = unix_client(&front);
    balancer.wait_for("the pair", |stats| stats.open == 1);
    let client = unix_socket();
    client.bind(&SockAddr::unix(&named).unwrap()).unwrap();
    client.connect(&SockAddr::unix(&front).unwrap()).unwrap();
    balancer.wait_for("the pair", |stats| stats.open == 2);

    let front_addr = Address::Unix(Some(front.clone()));
    assert_eq!(*balancer.control.local_addr(), front_addr);
    assert_eq!(front_addr.to_string(), format!("unix:{}", front.display()));
    assert_eq!((front_addr.ip(), Address::Unix(None).to_string()), (None, "unix:".to_owned()));
    let clients = [Address::Unix(None), Address::Unix(Some(named))];
    assert_eq!(*backend.1.lock().unwrap(), clients.map(|client| [client, front_addr.clone()]));
}

#[test]
fn c5_3_c5_6_a_backend_that_is_full_stale_or_missing_fails_over_at_once() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (full, full_addr) = (unix_socket(), SockAddr::unix(path("full")).unwrap());
    full.bind(&full_addr).unwrap();
    full.listen(0).unwrap();
    let connected = || {
        let socket = unix_socket();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&full_addr).is_ok().then_some(socket)
    };
    let _fill: Vec<Socket> = std::iter::from_fn(connected).collect();
    drop(UnixListener::bind(path("stale")).unwrap());
    std::fs::write(path("file"), "not a socket").unwrap();
    let good = TestBackend::echo("good");
    let too_long = "x".repeat(200);
    let names = ["full", "stale", "missing", "file", &too_long];
    let mut backends: BackendSet =
        names.into_iter().map(|name| (name, UnixBackend::new(path(name)))).collect();
    backends.insert("z", TcpBackend::new(good.addr));
    // So long that the test fails if one of them is waited for.
    let builder = Server::builder().dial_limit(LONG).connect_timeout(LONG);
    let balancer = Balancer::with(builder, backends);

    let (mut client, tag) = balancer.tagged_client();

    assert_eq!(tag, "good");
    assert_echo(&mut client, b"served");
    for name in names {
        let failures = balancer.stats().backend(name).unwrap().usage.dial_failures;
        assert_eq!(failures, u64::from(name != "full"), "{name}: to be busy is not to fail");
    }
}

#[test]
fn c3_10_a_peer_that_is_gone_with_bytes_unread_is_an_abort_for_the_other_side() {
    let (balancer, client, mut server) = pair(Kind::Unix, Kind::Tcp);
    server.write_all(b"never read").unwrap();
    balancer.wait_for("the bytes", |stats| stats.bytes_down == 5 + 10);

    drop(client);

    assert_aborted(&mut server);
    balancer.wait_for("the end", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
}
