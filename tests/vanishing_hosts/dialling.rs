//! Dials to a host that has vanished.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tinylb::{Builder, Ejection, Server};

use crate::cast::{HostedBackend, SLACK, Scene, Traffic, Victim, Witness};
use crate::switch::Weather;
use tinylb_tests::*;

/// A balancer whose next client goes to "a", which may vanish; "b" has traffic and stays.
struct Stage {
    balancer: Balancer,
    witness: Witness,
    traffic: Traffic,
    _backends: [HostedBackend; 2],
}

impl Stage {
    #[track_caller]
    fn new(scene: &Scene, builder: Builder) -> Self {
        let (a, b) = (
            HostedBackend::echo(&scene.backend, "a"),
            HostedBackend::echo(&scene.steady_backend, "b"),
        );
        let (balancer, witness) = scene.balancer(builder, set([("b", b.addr)]));
        let clients = [(); 3].map(|()| scene.steady_client.connect(balancer.addr));
        let clients =
            clients.into_iter().inspect(|mut client| assert_eq!(read_tag(&mut client), "b"));
        let traffic = Traffic::over(clients.collect());
        balancer.update(set([("a", a.addr), ("b", b.addr)]));
        Self { balancer, witness, traffic, _backends: [a, b] }
    }

    /// Which backend a new client is served by, and after which time.
    #[track_caller]
    fn serve_another(&self, scene: &Scene) -> (String, Duration) {
        let start = Instant::now();
        let mut client = scene.client.connect(self.balancer.addr);
        let tag = read_tag(&mut client);
        let took = start.elapsed();
        assert_echo(&mut client, b"all is well");
        (tag, took)
    }
}

#[test]
fn c5_3_a_client_whose_backend_host_has_vanished_is_served_by_another_when_the_connect_timeout_runs_out()
 {
    const LIMIT: Duration = Duration::from_secs(2);
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let ejection = Ejection::new(3, PATIENCE, Duration::from_secs(30));
    let stage = Stage::new(&scene, Server::builder().connect_timeout(LIMIT).ejection(ejection));
    scene.unplug(Victim::Backend);
    for attempts in 1..=3 {
        let (tag, took) = stage.serve_another(&scene);
        assert_eq!(tag, "b");
        assert!((LIMIT..LIMIT + SLACK).contains(&took), "served after {took:?}");
        assert_eq!(
            stage.witness.failed_dials(),
            vec![("a".to_owned(), ErrorKind::TimedOut); attempts]
        );
    }
    // Three failures eject it, and others need not wait for it.
    assert!(stage.balancer.stats().backend("a").unwrap().ejected);
    stage.traffic.assert_was_undisturbed(LIMIT);
}

#[test]
fn c5_3_a_client_whose_backend_host_answers_no_arp_is_served_by_another_once_the_system_gives_up() {
    const LIMIT: Duration = Duration::from_secs(15);
    const ARP_RETRY_MS: u32 = 100;
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let stage = Stage::new(&scene, Server::builder().connect_timeout(LIMIT));
    scene.balancer.forget(&scene.backend, ARP_RETRY_MS);
    assert_eq!(stage.serve_another(&scene).0, "a", "as long as it answers");
    assert_eq!(stage.serve_another(&scene).0, "b");
    scene.unplug(Victim::Backend);
    scene.balancer.forget(&scene.backend, ARP_RETRY_MS);
    let (tag, took) = stage.serve_another(&scene);
    assert_eq!(tag, "b");
    assert!(took < SLACK, "served after {took:?}");
    assert_eq!(stage.witness.failed_dials(), [("a".to_owned(), ErrorKind::HostUnreachable)]);
    stage.traffic.assert_was_undisturbed(SLACK);
}

#[test]
fn c5_5_a_host_that_comes_back_is_served_again_when_its_ejection_has_run_out() {
    const LIMIT: Duration = Duration::from_millis(400);
    let Some(scene) = Scene::new(Weather::fair()) else { return };
    let ejection = Ejection::new(1, Duration::from_secs(8), Duration::from_secs(8));
    let stage = Stage::new(&scene, Server::builder().connect_timeout(LIMIT).ejection(ejection));
    scene.unplug(Victim::Backend);
    assert_eq!(stage.serve_another(&scene).0, "b");
    assert!(stage.balancer.stats().backend("a").unwrap().ejected);
    scene.plug_in(Victim::Backend);
    wait_for("a client is served by it", || (stage.serve_another(&scene).0 == "a").then_some(()));
    assert!(!stage.balancer.stats().backend("a").unwrap().ejected);
    stage.traffic.assert_was_undisturbed(SLACK);
}
