//! Wires that delay, lose and reorder: they change nothing but speed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use tinylb::{EndReason, Server};

use crate::cast::{HostedBackend, Scene};
use crate::switch::Weather;
use tinylb_tests::*;

/// Enough of all to be felt, and little enough for a megabyte to come through within seconds.
fn rough(seed: u64) -> Weather {
    Weather {
        delay: Duration::from_micros(200)..Duration::from_millis(6),
        lost_per_mille: 15,
        seed,
    }
}

/// It was as rough as it was meant to be.
#[track_caller]
fn assert_was_rough(scene: &Scene) {
    use std::sync::atomic::Ordering::SeqCst;
    let tally = scene.network.tally();
    let (carried, lost, overtaken) =
        (tally.carried.load(SeqCst), tally.lost.load(SeqCst), tally.overtaken.load(SeqCst));
    assert!(lost * 200 > carried && overtaken * 20 > carried, "{tally:?}");
}

#[test]
fn c6_1_a_wire_that_delays_loses_and_reorders_changes_no_byte() {
    const SIZES: [usize; 4] = [1, 5_000, 300_000, 1_000_000];
    let Some(scene) = Scene::new(rough(1)) else { return };
    let echo = HostedBackend::echo(&scene.backend, "echo");
    let (balancer, _) = scene.balancer(Server::builder(), set([("a", echo.addr)]));
    thread::scope(|scope| {
        for size in SIZES {
            let mut client = scene.client.connect(balancer.addr);
            scope.spawn(move || {
                assert_eq!(read_tag(&mut client), "echo");
                assert_comes_back(&client, &pattern(size));
            });
        }
    });
    let stats = balancer.wait_for("all have finished", |stats| stats.open == 0);
    assert_eq!((stats.ended.of(EndReason::Finished), stats.ended.total()), (4, 4));
    let bytes = SIZES.iter().sum::<usize>() as u64;
    assert_eq!((stats.bytes_up, stats.bytes_down), (bytes, bytes + 4 * "echo\n".len() as u64));
    assert_was_rough(&scene);
}

/// Sends, ends the stream, and gets the same bytes and an end in order back.
#[track_caller]
fn assert_comes_back(stream: &TcpStream, bytes: &[u8]) {
    let (received, end) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stream;
            stream.write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        read_to_end(&mut &*stream)
    });
    assert_eq!(end, StreamEnd::Clean);
    assert!(received == bytes, "{} bytes came back for {}", received.len(), bytes.len());
}

#[test]
fn c6_2_a_wire_that_delays_loses_and_reorders_passes_each_end_of_stream_on() {
    const SIZE: usize = 400_000;
    let Some(scene) = Scene::new(rough(2)) else { return };
    // One answers when all of the question is there, the other ends its stream before anything is asked.
    let answering = HostedBackend::new(&scene.backend, |mut stream| {
        let (question, end) = read_to_end(&mut stream);
        assert_eq!(end, StreamEnd::Clean);
        let _ = stream.write_all(&question).and_then(|()| stream.shutdown(Shutdown::Write));
    });
    let listening = scene.steady_backend.listener();
    let (balancer, _) = scene.balancer(
        Server::builder(),
        set([("a", answering.addr), ("b", listening.local_addr().unwrap())]),
    );
    let bytes = pattern(SIZE);

    let asking = scene.client.connect(balancer.addr);
    assert_comes_back(&asking, &bytes);

    let mut telling = scene.client.connect(balancer.addr);
    let mut listener = crate::cast::accept(&listening);
    listener.shutdown(Shutdown::Write).unwrap();
    assert_eq!(telling.read(&mut [0]).unwrap(), 0);
    let received = thread::scope(|scope| {
        let receiver = scope.spawn(|| read_to_end(&mut listener));
        telling.write_all(&bytes).unwrap();
        telling.shutdown(Shutdown::Write).unwrap();
        receiver.join().unwrap()
    });
    assert!(received == (bytes, StreamEnd::Clean));

    let stats = balancer.wait_for("both have finished", |stats| stats.open == 0);
    assert_eq!((stats.ended.of(EndReason::Finished), stats.ended.total()), (2, 2));
    assert_was_rough(&scene);
}
