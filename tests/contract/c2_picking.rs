//! Picking. The logic has its own tests; here is what a builder makes of it.

use tinylb::{BackendSet, Server};
use tinylb_tests::*;

fn fleet() -> ([TestBackend; 3], BackendSet) {
    let fleet = ["c", "a", "b"].map(TestBackend::echo);
    let backends = set(["c", "a", "b"].into_iter().zip(fleet.each_ref().map(|one| one.addr)));
    (fleet, backends)
}

#[test]
fn c2_1_clients_go_round_in_key_order_whatever_the_order_of_insertion() {
    let (_fleet, backends) = fleet();
    assert_eq!(Balancer::start(backends).tags(7), "abcabca");
}

#[test]
fn c2_2_a_random_first_pick_spreads_a_fleet_and_the_rotation_goes_on_from_there() {
    let (_fleet, backends) = fleet();
    let mut firsts = String::new();
    for seed in 0..24 {
        let builder = Server::builder().random_first_pick(true).seed(seed);
        let served = Balancer::with(builder, backends.clone()).tags(4);
        assert!(["abca", "bcab", "cabc"].contains(&served.as_str()), "{served}");
        firsts += &served[..1];
    }
    assert!("abc".chars().all(|key| firsts.contains(key)), "{firsts}");
}
