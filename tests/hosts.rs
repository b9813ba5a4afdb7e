//! What hosts do that is unusual and allowed: own what the loop drops, hand in odd values, build sets from sets.

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tinylb::{
    Backend, BackendSet, Control, Dial, DialRequest, Error, Keepalive, Observer, Server,
    ServerThread, TcpBackend, Update,
};
use tinylb_tests::*;

#[test]
fn c7_4_an_observer_may_own_the_handle_of_its_own_thread() {
    struct Owner {
        handle: Arc<Mutex<Option<ServerThread>>>,
        dropped: mpsc::Sender<bool>,
    }
    impl Observer for Owner {}
    impl Drop for Owner {
        fn drop(&mut self) {
            drop(self.handle.lock().unwrap().take());
            let _ = self.dropped.send(!std::thread::panicking());
        }
    }
    let handle = Arc::new(Mutex::new(None));
    let (dropped, is_dropped) = mpsc::channel();
    let server = Server::builder()
        .observer(Owner { handle: handle.clone(), dropped })
        .build(listener())
        .unwrap();
    let control = server.control();
    *handle.lock().unwrap() = Some(server.spawn().unwrap());
    control.shutdown().unwrap();
    assert_eq!(is_dropped.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn c7_4_who_waits_is_released_before_the_hosts_backends_are_dropped() {
    struct Waiting(Arc<Mutex<Option<Update>>>, mpsc::Sender<bool>);
    impl Backend for Waiting {
        fn target_name(&self) -> String {
            "nowhere".to_owned()
        }
        fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
    impl Drop for Waiting {
        fn drop(&mut self) {
            let update = self.0.lock().unwrap().take().unwrap();
            let _ = self.1.send(matches!(update.wait_timeout(PATIENCE), Err(Error::Stopped)));
        }
    }
    let slot = Arc::new(Mutex::new(None));
    let (sender, was_released) = mpsc::channel();
    let server = Server::builder().build(listener()).unwrap();
    let backends = BackendSet::from([("a", Waiting(slot.clone(), sender))]);
    *slot.lock().unwrap() = Some(server.control().update(backends).unwrap());
    drop(server);
    assert_eq!(was_released.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn c7_4_backends_may_call_in_as_they_are_dropped() {
    /// Asks for the counters as it goes, which must not find anything locked.
    struct Asking(Control, &'static str, mpsc::Sender<&'static str>);
    impl Backend for Asking {
        fn target_name(&self) -> String {
            "nowhere".to_owned()
        }
        fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
    impl Drop for Asking {
        fn drop(&mut self) {
            let _ = self.0.stats();
            let _ = self.2.send(self.1);
        }
    }
    let (sender, dropped) = mpsc::channel();
    let next = || dropped.recv_timeout(PATIENCE);
    // On a thread of its own, since what is tested for is that it does not hang.
    std::thread::spawn(move || {
        let update = |server: &Control, fate| {
            server.update([("a", Asking(server.clone(), fate, sender.clone()))].into()).unwrap()
        };
        let server = Server::builder().build(listener()).unwrap();
        let control = server.control();
        update(&control, "superseded");
        let applied = update(&control, "replaced");
        let thread = server.spawn().unwrap();
        applied.wait().unwrap();
        update(&control, "in force at the end").wait().unwrap();
        drop(thread);
        let unrun = Server::builder().build(listener()).unwrap();
        update(&unrun.control(), "never applied");
        drop(unrun);
    });
    assert_eq!(next(), Ok("superseded"));
    assert_eq!(next(), Ok("replaced"));
    assert_eq!(next(), Ok("in force at the end"));
    assert_eq!(next(), Ok("never applied"));
}

#[test]
fn c8_1_a_balancer_that_was_spawned_tells_of_its_first_backends_at_once() {
    for _ in 0..100 {
        let server =
            Server::builder().backends(set([("a", refusing_addr())])).build(listener()).unwrap();
        let thread = server.spawn().unwrap();
        assert!(thread.control().stats().unwrap().wait().unwrap().backend("a").is_some());
    }
}

#[test]
fn c9_1_a_set_may_be_made_of_the_last_ones_backends_for_ever() {
    let backend = TestBackend::echo("one");
    let mut backends = set([("a", backend.addr)]);
    for _ in 0..100_000 {
        backends = backends.into_iter().collect();
    }
    let (_client, tag) = Balancer::start(backends).tagged_client();
    assert_eq!(tag, "one");
}

#[test]
fn c1_1_backends_of_several_types_are_collected_boxed() {
    let addr = refusing_addr();
    let boxed: [(&str, Box<dyn Backend>); 2] =
        [("a", Box::new(TcpBackend::new(addr))), ("b", Box::new(Arc::new(TcpBackend::new(addr))))];
    assert_eq!(BackendSet::from(boxed), set([("a", addr), ("b", addr)]));
}

#[test]
fn c6_7_values_that_the_system_would_refuse_are_refused_by_name() {
    let (second, long) = (Duration::from_secs(1), Duration::from_secs(12 * 60 * 60));
    let (too_short, keepalive) = (Duration::from_millis(999), Keepalive::new);
    let builders = [
        ("keepalive", Server::builder().keepalive(Some(keepalive(long, second, 9)))),
        ("keepalive", Server::builder().keepalive(Some(keepalive(second, too_short, 9)))),
        ("keepalive", Server::builder().keepalive(Some(keepalive(second, second, 128)))),
        ("user_timeout", Server::builder().user_timeout(Some(Duration::MAX))),
        ("user_timeout", Server::builder().user_timeout(Some(Duration::from_micros(999)))),
    ];
    for (name, builder) in builders {
        match builder.build(listener()) {
            Err(Error::Setting { setting, .. }) => assert_eq!(setting, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let longest = Duration::from_secs(32_767);
    let keepalive = Keepalive::new(longest, longest, 127);
    let builder = Server::builder()
        .keepalive(Some(keepalive))
        .user_timeout(Some(Duration::from_millis(i32::MAX as u64)));
    builder.build(listener()).unwrap();
}

#[test]
#[cfg(feature = "socket2")]
fn c6_7_keepalive_is_switched_off_also_where_the_host_had_it_on() {
    let listener = listener();
    let same = listener.try_clone().unwrap();
    socket2::SockRef::from(&listener).set_keepalive(true).unwrap();
    let _server = Server::builder().keepalive(None).build(listener).unwrap();
    assert!(!socket2::SockRef::from(&same).keepalive().unwrap());
}
