//! The ways to a backend that the benches set side by side.
//!
//! A figure is the time that clients, balancer and backend take together, so it is the ratios that
//! tell, and what a balancer adds to the time of the direct way.

use std::net::SocketAddr;

use tinylb::{BackendSet, Builder, Server, ServerThread, TcpBackend};

use crate::{loopback, tokio_twin};

/// At how many addresses a balancer can be reached.
const LISTEN_ADDRS: u32 = 64;

/// A way to the backends.
pub struct Route {
    pub name: &'static str,
    /// Where clients connect.
    listen_addrs: Vec<SocketAddr>,
    /// Serves as long as the route is there.
    _balancer: Option<ServerThread>,
}

/// Without a balancer, through the loop that people write by hand, and through tinylb with its
/// default settings.
pub fn all(backends: &[SocketAddr]) -> [Route; 3] {
    [direct(backends), tokio(backends), tinylb("tinylb", Server::builder(), backends)]
}

fn direct(backends: &[SocketAddr]) -> Route {
    Route { name: "direct", listen_addrs: backends.to_vec(), _balancer: None }
}

fn tokio(backends: &[SocketAddr]) -> Route {
    let listener = loopback::listener();
    let port = listener.local_addr().unwrap().port();
    let backends = backends.to_vec();
    std::thread::spawn(move || tokio_twin::serve(listener, &backends).unwrap());
    Route { name: "tokio", listen_addrs: loopback::addrs(LISTEN_ADDRS, port), _balancer: None }
}

pub fn tinylb(name: &'static str, settings: Builder, backends: &[SocketAddr]) -> Route {
    let with_keys =
        backends.iter().enumerate().map(|(n, &addr)| (format!("{n:05}"), TcpBackend::new(addr)));
    tinylb_with(name, settings, with_keys.collect())
}

pub fn tinylb_with(name: &'static str, settings: Builder, backends: BackendSet) -> Route {
    let server = settings.backends(backends).build(loopback::listener()).unwrap();
    let port = server.local_addr().ip().unwrap().port();
    Route {
        name,
        listen_addrs: loopback::addrs(LISTEN_ADDRS, port),
        _balancer: Some(server.spawn().unwrap()),
    }
}

impl Route {
    /// Where one client after the other connects, without an end.
    pub fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.listen_addrs.iter().copied().cycle()
    }
}
