//! Updates that take a vanished host out of the set, and name it again when it is back.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use tinylb::{EndReason, Server};

use crate::cast::{Rig, Scene, Victim, stuff};
use crate::switch::Weather;
use tinylb_tests::*;

/// An update waits for nobody, so this is a busy machine's time. No limit of the balancer's is as short.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn c3_2_an_update_closes_each_pair_of_a_vanished_host_at_once_and_serves_the_host_again_when_it_is_back()
 {
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let rig = Rig::new(&scene, Server::builder().connect_timeout(PATIENCE).dial_limit(PATIENCE));
    let ([idle, mut waiting, mut stuck, mut half_closed], traffic) = rig.populate();
    half_closed.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half_closed.backend.read(&mut [0]).unwrap(), 0);
    scene.unplug(Victim::Backend);
    waiting.client.write_all(b"is anybody there?").unwrap();
    stuff(&mut stuck.client);
    let mut dialling = scene.client.connect(rig.balancer.addr);
    rig.balancer.wait_for("a dial is in flight", |stats| stats.dialling == 1);

    let mut remaining = rig.set.clone();
    remaining.remove("a");
    let start = Instant::now();
    let applied = rig.balancer.update(remaining);
    assert_eq!((applied.closed, applied.cancelled, applied.backends), (4, 1, 1), "{applied:?}");
    for pair in [&idle, &waiting, &stuck, &half_closed] {
        assert_cut(&mut &pair.client);
        assert_eq!(rig.witness.end_of(&pair.client).unwrap().reason, EndReason::TargetRemoved);
    }
    assert_eq!(read_tag(&mut dialling), "steady");
    assert!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());

    scene.plug_in(Victim::Backend);
    rig.balancer.update(rig.set.clone());
    rig.pair().exchange(Victim::Backend);
    // What was left of the old pairs on the host is told when it asks.
    for mut pair in [idle, waiting, stuck, half_closed] {
        wait_for("its end of the old pair is reset", || pair.backend.write(b"still here?").err());
    }
    traffic.assert_was_undisturbed(AT_ONCE);
}

#[test]
fn c7_2_a_drain_ends_at_its_limit_although_vanished_hosts_cannot_finish() {
    const LIMIT: Duration = Duration::from_millis(500);
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let rig = Rig::new(&scene, Server::builder());
    let ([idle, mut waiting], traffic) = rig.populate();
    scene.unplug(Victim::Backend);
    waiting.client.write_all(b"is anybody there?").unwrap();
    traffic.assert_was_undisturbed(AT_ONCE);
    let Rig { balancer, .. } = rig;
    let start = Instant::now();
    balancer.control.drain(LIMIT).unwrap();
    wait_for("the balancer ends", || balancer.control.stats().and_then(|stats| stats.wait()).err());
    assert!((LIMIT..LIMIT + AT_ONCE).contains(&start.elapsed()), "it took {:?}", start.elapsed());
    let ended = balancer.thread.join().unwrap().ended;
    assert_eq!(
        (ended.of(EndReason::DrainLimit), ended.of(EndReason::Finished), ended.total()),
        (2, 2, 4)
    );
    for mut pair in [idle, waiting] {
        assert_cut(&mut pair.client);
    }
}
