//! Connected pairs of which one side's host has vanished.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use tinylb::{Builder, EndReason, Keepalive, Server};

use crate::cast::{Rig, SLACK, Scene, Victim, stuff};
use crate::switch::Weather;
use tinylb_tests::*;

const KEEPALIVE: Keepalive = Keepalive::new(Duration::from_secs(1), Duration::from_secs(1), 2);
/// When keepalive gives a silent peer up.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(3);
/// The same, but more patient than any test.
const MANY_PROBES: Keepalive = Keepalive::new(Duration::from_secs(1), Duration::from_secs(1), 100);
const USER_TIMEOUT: Duration = Duration::from_millis(2500);
/// The kernel counts in ticks of up to 10 ms, and a time has two ends.
const TICK: Duration = Duration::from_millis(20);

fn with_keepalive() -> Builder {
    Server::builder().keepalive(Some(KEEPALIVE))
}

fn failure_of(victim: Victim) -> EndReason {
    match victim {
        Victim::Client => EndReason::ClientFailed,
        Victim::Backend => EndReason::BackendFailed,
    }
}

#[test]
fn c6_7_an_idle_pair_whose_backend_host_vanished_ends_by_keepalive() {
    idle_pairs_end_by_keepalive(Victim::Backend);
}

#[test]
fn c6_7_an_idle_pair_whose_client_host_vanished_ends_by_keepalive() {
    idle_pairs_end_by_keepalive(Victim::Client);
}

#[track_caller]
fn idle_pairs_end_by_keepalive(victim: Victim) {
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let rig = Rig::new(&scene, with_keepalive());
    let (mut pairs, traffic) = rig.populate::<3>();
    let quiet_since = Instant::now();
    pairs.iter().for_each(|pair| pair.exchange(victim));
    scene.unplug(victim);
    for pair in &mut pairs {
        let end = rig.witness.wait_for_end_of(&pair.client);
        assert_eq!((end.reason, end.error), (failure_of(victim), Some(ErrorKind::TimedOut)));
        let took = end.at - quiet_since;
        assert!(
            (KEEPALIVE_LIMIT - TICK..KEEPALIVE_LIMIT + SLACK).contains(&took),
            "it took {took:?}"
        );
        assert_cut(pair.survivor(victim));
    }
    traffic.assert_was_undisturbed(KEEPALIVE_LIMIT);
}

#[test]
fn c6_4_a_backend_host_that_vanished_is_noticed_although_its_client_reads_nothing() {
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let rig = Rig::new(&scene, with_keepalive());
    let ([mut pair], traffic) = rig.populate();
    pair.exchange(Victim::Backend);
    stuff(&mut pair.backend); // what nobody reads keeps the balancer from reading
    let quiet_since = Instant::now();
    scene.unplug(Victim::Backend);
    let end = rig.witness.wait_for_end_of(&pair.client);
    assert_eq!((end.reason, end.error), (EndReason::BackendFailed, Some(ErrorKind::TimedOut)));
    let took = end.at - quiet_since;
    assert!(took < KEEPALIVE_LIMIT + SLACK, "it took {took:?}");
    assert_cut(&mut pair.client);
    traffic.assert_was_undisturbed(KEEPALIVE_LIMIT);
}

#[test]
fn c6_7_bytes_on_their_way_to_a_vanished_backend_host_end_the_pair_by_user_timeout_alone() {
    bytes_on_their_way_end_pairs_by_user_timeout_alone(Victim::Backend);
}

#[test]
fn c6_7_bytes_on_their_way_to_a_vanished_client_host_end_the_pair_by_user_timeout_alone() {
    bytes_on_their_way_end_pairs_by_user_timeout_alone(Victim::Client);
}

#[track_caller]
fn bytes_on_their_way_end_pairs_by_user_timeout_alone(victim: Victim) {
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let limited = Rig::new(&scene, with_keepalive().user_timeout(Some(USER_TIMEOUT)));
    let unlimited = Rig::new(&scene, with_keepalive());
    let ([mut ended], traffic) = limited.populate();
    let ([mut lasting, idle], other_traffic) = unlimited.populate();
    for pair in [&ended, &lasting, &idle] {
        pair.exchange(victim);
    }
    scene.unplug(victim);
    let sent_at = Instant::now();
    for pair in [&mut ended, &mut lasting] {
        pair.survivor(victim).write_all(b"is anybody there?").unwrap();
    }
    let end = limited.witness.wait_for_end_of(&ended.client);
    assert_eq!((end.reason, end.error), (failure_of(victim), Some(ErrorKind::TimedOut)));
    let took = end.at - sent_at;
    assert!((USER_TIMEOUT - TICK..USER_TIMEOUT + SLACK).contains(&took), "it took {took:?}");
    assert_cut(ended.survivor(victim));
    // Keepalive ends the pair that has been quiet for less time than the one with bytes on their way.
    unlimited.witness.wait_for_end_of(&idle.client);
    assert!(unlimited.witness.end_of(&lasting.client).is_none(), "keepalive does not notice");
    traffic.assert_was_undisturbed(KEEPALIVE_LIMIT);
    other_traffic.assert_was_undisturbed(KEEPALIVE_LIMIT);
}

#[test]
fn c6_7_a_user_timeout_takes_the_place_of_the_number_of_probes_for_idle_pairs_too() {
    const LONGER: Duration = Duration::from_secs(5);
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let sooner = Rig::new(
        &scene,
        Server::builder().keepalive(Some(MANY_PROBES)).user_timeout(Some(USER_TIMEOUT)),
    );
    let later = Rig::new(&scene, with_keepalive().user_timeout(Some(LONGER)));
    let (ends_sooner, ends_later) = (sooner.pair(), later.pair());
    let quiet_since = Instant::now();
    ends_sooner.exchange(Victim::Backend);
    ends_later.exchange(Victim::Backend);
    scene.unplug(Victim::Backend);
    for (rig, pair, limit) in [(&sooner, ends_sooner, USER_TIMEOUT), (&later, ends_later, LONGER)] {
        let took = rig.witness.wait_for_end_of(&pair.client).at - quiet_since;
        assert!(
            (limit - TICK..limit + SLACK).contains(&took),
            "it took {took:?} instead of {limit:?}"
        );
    }
}
