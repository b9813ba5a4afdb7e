//! Hosts that are back before a limit is reached.

use std::sync::atomic::Ordering::SeqCst;

use tinylb::{EndReason, Server};

use crate::cast::{HostedBackend, Scene, Traffic, Victim};
use crate::switch::Weather;
use tinylb_tests::*;

#[test]
fn c6_1_an_outage_of_the_backend_host_shorter_than_the_limits_costs_no_byte() {
    outages_cost_no_byte(Victim::Backend);
}

#[test]
fn c6_1_an_outage_of_the_client_host_shorter_than_the_limits_costs_no_byte() {
    outages_cost_no_byte(Victim::Client);
}

#[track_caller]
fn outages_cost_no_byte(victim: Victim) {
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let echo = HostedBackend::echo(&scene.backend, "echo");
    let (balancer, _) =
        scene.balancer(Server::builder().user_timeout(Some(PATIENCE)), set([("a", echo.addr)]));
    let clients = [(); 3].map(|()| scene.client.connect(balancer.addr));
    let clients =
        clients.into_iter().inspect(|mut client| assert_eq!(read_tag(&mut client), "echo"));
    let traffic = Traffic::over(clients.collect());
    let swallowed = || scene.network.tally().swallowed.load(SeqCst);
    for _ in 0..2 {
        traffic.assert_goes_on();
        let before = swallowed();
        scene.unplug(victim);
        wait_for("frames are swallowed", || (swallowed() >= before + 12).then_some(()));
        scene.plug_in(victim);
    }
    traffic.assert_was_undisturbed(PATIENCE);
    let stats = balancer.wait_for("all have finished", |stats| stats.open == 0);
    assert_eq!((stats.ended.of(EndReason::Finished), stats.ended.total()), (3, 3));
}
