//! Relaying, as far as kernel buffers, urgent data, socket options and real time have a say in it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tinylb::{Builder, EndReason, Keepalive, Server, TcpBackend};
use tinylb_tests::*;

/// A balancer with one backend, with small kernel buffers all along the way.
fn balancer_with_small_buffers(builder: Builder) -> (Balancer, ManualBackend) {
    let (front, back) = (listener(), listener());
    shrink_buffers(&front, 32 * 1024).unwrap();
    shrink_buffers(&back, 32 * 1024).unwrap();
    let target = TcpBackend::new(back.local_addr().unwrap())
        .on_socket(|socket| shrink_buffers(socket, 32 * 1024));
    let server = builder.backends([("a", target)].into()).build(front).unwrap();
    (Balancer::of(server), ManualBackend::of(back))
}

#[test]
fn c6_1_c6_2_megabytes_arrive_unchanged_whichever_side_ends_first() {
    for (buffer_size, bytes) in [(256 * 1024, 8_000_000), (5_000, 1_000_003)] {
        for order in Order::ALL {
            let (balancer, back) =
                balancer_with_small_buffers(Server::builder().buffer_size(buffer_size));
            let talk = Talk::new(bytes, bytes, bytes / 3, order);
            let (client, server) = (balancer.client(), back.accept());
            let at_backend = std::thread::spawn(move || Talk::answer(server).unwrap().1);

            talk.assert_came_down(&talk.hold(client));

            talk.assert_came_up(&at_backend.join().unwrap());
            balancer.wait_for("its end", |stats| stats.ended.of(EndReason::Finished) == 1);
        }
    }
}

#[test]
fn c6_1_many_connections_do_not_get_each_others_bytes() {
    let (reports, received) = mpsc::channel();
    let backend = TestBackend::new(move |stream| {
        let _ = reports.send(Talk::answer(stream).unwrap());
    });
    let balancer = Balancer::start(set([("a", backend.addr), ("b", backend.addr)]));
    let talks =
        (0..100).map(|seed| Talk::new(seed, 20_000 + seed, 30_000, Order::ALL[seed as usize % 3]));
    std::thread::scope(|scope| {
        for talk in talks {
            let client = balancer.client();
            scope.spawn(move || talk.assert_came_down(&talk.hold(client)));
        }
    });
    received.iter().take(100).for_each(|(talk, received)| talk.assert_came_up(&received));
}

/// What arrives of it: urgent data stays in line only with `socket2`.
const WITH_URGENT_DATA: &[u8] = if HAS_RESETS { b"before !after" } else { b"before after" };

/// Sends something, urgent data and something more.
fn send_with_urgent_data(stream: &mut (impl Write + std::os::fd::AsFd)) {
    stream.write_all(b"before ").unwrap();
    SockRef::from(&*stream).send_out_of_band(b"!").unwrap();
    stream.write_all(b"after").unwrap();
}

/// All is there before the balancer looks, so that one event has to do for it.
#[test]
fn c6_1_what_is_sent_after_urgent_data_is_not_left_lying() {
    let back = ManualBackend::new();
    let server = Server::builder().backends(set([("a", back.addr)])).build(listener()).unwrap();
    let mut client = connect(server.local_addr().ip().unwrap());
    send_with_urgent_data(&mut client);
    let _balancer = Balancer::of(server);
    let mut received = [0; WITH_URGENT_DATA.len()];
    back.accept().read_exact(&mut received).unwrap();
    assert_eq!(received, WITH_URGENT_DATA);

    let (back, accepted) = (ManualBackend::new(), Arc::new(Mutex::new(None)));
    let target = TcpBackend::new(back.addr).on_socket({
        let accepted = accepted.clone();
        move |_| {
            let mut stream = back.accept(); // the balancer's thread is here while the bytes arrive
            send_with_urgent_data(&mut stream);
            *accepted.lock().unwrap() = Some(stream);
            Ok(())
        }
    });
    let balancer = Balancer::start([("a", target)].into());
    balancer.client().read_exact(&mut received).unwrap();
    assert_eq!(received, WITH_URGENT_DATA);
}

#[test]
fn c6_2_c6_3_a_slow_reader_stops_its_sender_alone_and_gets_everything_and_the_end() {
    for is_turned_round in [false, true] {
        let (balancer, back) = balancer_with_small_buffers(Server::builder());
        let (client, server) = back.pair(&balancer);
        shrink_buffers(&client, 32 * 1024).unwrap();
        let (mut from, mut to) = if is_turned_round { (server, client) } else { (client, server) };
        let before = balancer.stats();
        let sent = fill_until_blocked(&mut from);
        assert!(sent.len() < 1024 * 1024, "more is held than one buffer and the kernel's");
        let moved = |stats: &tinylb::Stats| {
            stats.bytes_up + stats.bytes_down - before.bytes_up - before.bytes_down
        };
        assert!(moved(&balancer.stats()) < sent.len() as u64, "what is unsent is not delivered");
        pass(&mut to, &mut from, &pattern(20_000));

        from.shutdown(Shutdown::Write).unwrap();

        let (received, end) = read_to_end(&mut to);
        assert_same(&received, &sent);
        assert_eq!(end, StreamEnd::Clean);
        balancer.wait_for("all is counted", |stats| moved(stats) == sent.len() as u64 + 20_000);
        pass(&mut to, &mut from, b"thanks");
        to.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut from), (Vec::new(), StreamEnd::Clean));
        balancer.wait_for("the end", |stats| stats.ended.of(EndReason::Finished) == 1);
    }
}

/// That bytes put them off, the unit tests see.
#[test]
fn c6_5_idle_and_half_closed_pairs_are_aborted_after_their_own_limits() {
    let back = ManualBackend::new();
    let idle = Server::builder().idle_timeout(Some(SHORT));
    let half_closed = Server::builder().half_closed_timeout(SHORT);
    for (builder, ends, reason) in
        [(idle, false, EndReason::IdleTimeout), (half_closed, true, EndReason::HalfClosedTimeout)]
    {
        let balancer = Balancer::with(builder, set([("a", back.addr)]));
        let (mut client, mut server) = back.pair(&balancer);
        let start = Instant::now();
        if ends {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut server), (Vec::new(), StreamEnd::Clean));
        }
        assert_aborted(&mut client);
        assert!(start.elapsed() >= SHORT);
        wait_for("the other side is closed too", || server.write(b"x").err());
        assert_eq!(balancer.stats().ended.of(reason), 1);
    }
}

/// What is set on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    nodelay: bool,
    /// Idle time and interval in seconds, and probes.
    keepalive: Option<(u64, u64, u32)>,
    user_timeout: Option<Duration>,
}

impl Options {
    fn of(socket: &impl std::os::fd::AsFd) -> io::Result<Self> {
        let socket = SockRef::from(socket);
        let idle = socket.tcp_keepalive_time()?.as_secs();
        let interval = socket.tcp_keepalive_interval()?.as_secs();
        let keepalive = (idle, interval, socket.tcp_keepalive_retries()?);
        Ok(Self {
            nodelay: socket.tcp_nodelay()?,
            keepalive: socket.keepalive()?.then_some(keepalive),
            user_timeout: socket.tcp_user_timeout()?,
        })
    }
}

/// What a builder sets: on the sockets of clients, and on those of backends.
fn options_set(builder: Builder) -> [Options; 2] {
    let (front, echo, seen) = (listener(), TestBackend::echo("echo"), Arc::new(Mutex::new(None)));
    SockRef::from(&front).set_keepalive(true).unwrap(); // as a host may have it
    let twin = ManualBackend::of(front.try_clone().unwrap());
    let target = TcpBackend::new(echo.addr).on_socket({
        let seen = seen.clone();
        move |socket| {
            *seen.lock().unwrap() = Some(Options::of(socket)?);
            Ok(())
        }
    });
    let server = builder.backends([("a", target)].into()).build(front).unwrap();
    // The twin takes a client in the balancer's place, since nobody else can look at its sockets.
    let client = connect(server.local_addr().ip().unwrap());
    let of_clients = Options::of(&twin.accept()).unwrap();
    drop(client);
    Balancer::of(server).tagged_client();
    let of_backends = seen.lock().unwrap().take().unwrap();
    [of_clients, of_backends]
}

#[test]
#[cfg(target_os = "linux")]
fn c6_7_socket_options_are_set_on_both_sides_as_documented_and_asked_for() {
    let default = Options { nodelay: true, keepalive: Some((15, 15, 9)), user_timeout: None };
    let off = Options { nodelay: false, keepalive: None, user_timeout: None };
    if HAS_RESETS {
        assert_eq!(options_set(Server::builder()), [default; 2]);
        let (idle, interval) = (Duration::from_secs(40), Duration::from_secs(7));
        let keepalive = Keepalive::new(idle, interval, 3);
        let user_timeout = Some(Duration::from_millis(2500));
        let builder = Server::builder().nodelay(false).keepalive(Some(keepalive));
        let changed = Options { nodelay: false, keepalive: Some((40, 7, 3)), user_timeout };
        assert_eq!(options_set(builder.user_timeout(user_timeout)), [changed; 2]);
        assert_eq!(options_set(Server::builder().nodelay(false).keepalive(None)), [off; 2]);
    } else {
        let [_, of_backends] = options_set(Server::builder());
        assert_eq!(of_backends, Options { nodelay: true, ..off });
    }
}

#[test]
#[cfg(all(feature = "socket2", target_os = "linux"))]
fn c6_7_user_timeout_ends_a_peer_that_refuses_to_read() {
    let (balancer, back) = balancer_with_small_buffers(Server::builder().user_timeout(Some(SHORT)));
    let (_client, mut server) = back.pair(&balancer);
    fill_until_blocked(&mut server);
    balancer.wait_for("the end", |stats| stats.ended.of(EndReason::ClientFailed) == 1);
    assert_aborted(&mut server);
}

/// How a reader that is merely slow reads: 150 kB/s, with a receive buffer of 64 KiB.
fn read_slowly(mut stream: impl Read, count: usize) -> (Vec<u8>, StreamEnd) {
    let (mut received, mut room) = (Vec::new(), [0; 15_000]);
    while received.len() < count {
        match stream.read(&mut room) {
            Ok(0) => return (received, StreamEnd::Clean),
            Ok(len) => received.extend_from_slice(&room[..len]),
            Err(_) => return (received, StreamEnd::Reset),
        }
        std::thread::sleep(Duration::from_millis(100)); // it is slow, whatever the machine
    }
    (received, StreamEnd::Clean)
}

/// A balancer whose clients and backends have receive buffers of 64 KiB.
fn slow_readers(builder: Builder) -> (Balancer, ManualBackend) {
    let back = listener();
    SockRef::from(&back).set_recv_buffer_size(64 << 10).unwrap();
    let backends = set([("a", back.local_addr().unwrap())]);
    (Balancer::with(builder, backends), ManualBackend::of(back))
}

fn slow_client(balancer: &Balancer) -> std::net::TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.connect(&balancer.addr.into()).unwrap();
    set_io_timeouts(&socket);
    socket.into()
}

const SLOWLY: usize = 600_000;

#[test]
fn c3_10_c6_5_a_slow_reader_of_a_stream_that_has_ended_loses_nothing_to_the_half_closed_timeout() {
    for is_turned_round in [false, true] {
        let (balancer, back) =
            slow_readers(Server::builder().half_closed_timeout(Duration::from_secs(2)));
        let client = slow_client(&balancer);
        let server = back.accept();
        let (mut writer, reader) =
            if is_turned_round { (client, server) } else { (server, client) };
        let sent = pattern(SLOWLY);
        let to_send = sent.clone();
        let writer = std::thread::spawn(move || {
            writer.write_all(&to_send).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
            writer // stays open
        });

        let (received, end) = read_slowly(reader, usize::MAX);

        assert_same(&received, &sent);
        assert_eq!(end, StreamEnd::Clean, "turned round: {is_turned_round}");
        drop(writer.join());
    }
}

#[test]
#[cfg(any(target_os = "linux", target_os = "android"))]
fn c6_5_a_slow_reader_of_a_stream_that_goes_on_is_not_idle() {
    let (balancer, back) =
        slow_readers(Server::builder().idle_timeout(Some(Duration::from_secs(2))));
    let client = slow_client(&balancer);
    let mut server = back.accept();
    let sent = pattern(SLOWLY);
    let to_send = sent.clone();
    let writer = std::thread::spawn(move || server.write_all(&to_send).map(|()| server));

    let (received, end) = read_slowly(client, sent.len());

    assert_same(&received, &sent);
    assert!(end == StreamEnd::Clean || !HAS_RESETS);
    drop(writer.join());
}

#[test]
fn c6_4_a_reset_after_the_end_of_an_answer_takes_nothing_from_a_slow_reader() {
    let (balancer, back) = slow_readers(Server::builder());
    let mut client = slow_client(&balancer);
    let mut server = back.accept();
    let sent = pattern(160000); // more than is taken for the client, less than fills all buffers
    server.write_all(&sent).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    balancer.wait_for("the answer is on its way", |stats| stats.bytes_down > 100_000);
    client.write_all(b"more").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
    reset(server);

    let (received, end) = read_slowly(client, usize::MAX);

    assert_same(&received, &sent);
    assert_eq!(end, StreamEnd::Clean);
}
