//! Backends, the crate's and the host's own.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};

use tinylb::{Backend, BackendSet, Dial, DialRequest, EndReason, Server, TcpBackend};
use tinylb_tests::*;

/// A backend of the host's own that sends a PROXY header first.
struct WithHeader(SocketAddr);

impl Backend for WithHeader {
    fn target_name(&self) -> String {
        self.0.to_string()
    }

    fn dial(&self, request: &DialRequest<'_>) -> io::Result<Dial> {
        let (from, to) = (request.client_addr().ip().unwrap(), request.local_addr()?.ip().unwrap());
        let (from_port, to_port) = (from.port(), to.port());
        let header = format!("PROXY TCP4 {} {} {from_port} {to_port}\r\n", from.ip(), to.ip());
        Ok(TcpBackend::new(self.0).dial(request)?.with_preface(header))
    }
}

#[test]
fn c1_1_backends_of_several_types_are_collected_boxed() {
    let addr = refusing_addr();
    let boxed: [(&str, Box<dyn Backend>); 2] =
        [("a", Box::new(TcpBackend::new(addr))), ("b", Box::new(Arc::new(TcpBackend::new(addr))))];
    assert_eq!(BackendSet::from(boxed), set([("a", addr), ("b", addr)]));
}

#[test]
fn c1_2_a_dial_is_told_who_the_client_is_and_where_it_came_to_and_may_send_first() {
    let (collected, collection) = mpsc::channel();
    let backend = TestBackend::new(move |mut stream| {
        let _ = collected.send(read_to_end(&mut stream).0);
    });
    // The listener's own address would not do: it does not say to which of the machine's the client
    // came.
    let server = Server::builder()
        .backends([("a", WithHeader(backend.addr))].into())
        .build(TcpListener::bind("0.0.0.0:0").unwrap());
    let balancer = Balancer::of(server.unwrap());
    let port = balancer.addr.port();
    let mut client = connect(([127, 0, 0, 1], port).into());
    let from = client.local_addr().unwrap().port();

    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();

    let expected =
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {port}\r\nGET / HTTP/1.0\r\n\r\n");
    assert_eq!(collection.recv_timeout(PATIENCE).unwrap(), expected.into_bytes());
    assert_eq!(read_to_end(&mut client), (Vec::new(), StreamEnd::Clean));
}

#[test]
fn c1_2_a_socket_that_cannot_be_prepared_is_a_failed_dial() {
    let backend = TestBackend::echo("one");
    let mut backends = set([("b", backend.addr)]);
    let unprepared =
        TcpBackend::new(backend.addr).on_socket(|_| Err(ErrorKind::InvalidInput.into()));
    backends.insert("a", unprepared);
    let balancer = Balancer::start(backends);

    assert_eq!(balancer.tags(1), "one");

    assert_eq!(balancer.stats().backend("a").unwrap().usage.dial_failures, 1);
}

#[test]
fn c1_4_a_resolved_name_is_the_target_name_whatever_it_resolves_to() {
    let one = TestBackend::echo("one");
    let name = format!("localhost:{}", one.addr.port());
    // Where `localhost` has an IPv6 address too, nobody listens there, and the next is tried.
    let by_name = || BackendSet::from([("a", TcpBackend::resolve(&name).unwrap())]);
    let balancer = Balancer::start(by_name());
    let (mut client, tag) = balancer.tagged_client();
    assert_eq!(tag, "one");
    assert_eq!(&*balancer.stats().backend("a").unwrap().target_name, name);

    assert_eq!(balancer.update(by_name()).closed, 0);
    assert_echo(&mut client, b"the same name");

    assert_eq!(balancer.update(set([("a", one.addr)])).closed, 1);
    assert_aborted(&mut client);
}

#[test]
fn c1_4_what_is_no_name_and_port_is_an_error_where_the_backend_is_made() {
    for wrong in ["", "localhost", "localhost:", "localhost:port", "localhost:65536", ":"] {
        assert!(TcpBackend::resolve(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn c1_5_one_update_holds_a_terminating_pod_removes_another_and_adds_a_third() {
    let pods = ["a", "b", "c", "d"].map(TestBackend::echo);
    let pod = |index: usize| TcpBackend::new(pods[index].addr);
    let balancer = Balancer::start(BackendSet::from([("a", pod(0)), ("b", pod(1)), ("c", pod(2))]));
    let mut clients: Vec<_> = (0..6).map(|_| balancer.tagged_client()).collect();

    // a terminates, b is gone, c stays, d is new.
    let mut set = BackendSet::from([("c", pod(2)), ("d", pod(3))]);
    set.insert_weighted("a", pod(0), 0);
    let applied = balancer.update(set);

    assert_eq!((applied.closed, applied.draining), (2, 0));
    assert_eq!((applied.added, applied.removed, applied.changed), (1, 1, 1));
    for (client, tag) in &mut clients {
        match tag.as_str() {
            "b" => {
                let end = read_to_end(client).1;
                assert!(end == StreamEnd::Reset || cfg!(not(feature = "socket2")));
            }
            _ => assert_echo(client, b"still there"),
        }
    }
    let tags: String = (0..4).map(|_| balancer.tagged_client().1).collect();
    assert_eq!(tags, "dcdc");
    let stats = balancer.stats();
    let a = stats.backend("a").unwrap();
    assert_eq!((a.weight, a.usage.open, a.usage.total), (0, 2, 2));

    // Nothing is left but what is held.
    let mut held = BackendSet::new();
    held.insert_weighted("a", pod(0), 0);
    balancer.update(held);
    assert_refused(balancer.addr);
    assert_eq!(balancer.stats().refused.of(EndReason::NoBackend), 1);
    for (client, _) in clients.iter_mut().filter(|(_, tag)| tag == "a") {
        assert_echo(client, b"to the end");
    }
}
