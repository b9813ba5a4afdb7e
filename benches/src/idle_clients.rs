//! As many idle clients as there may be.

use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver, Sender};

use crate::clients::{connect, exchange};
use crate::{descriptors, loopback};

/// Clients on a thread with descriptors of its own.
pub struct IdleClients {
    orders: Sender<(u16, usize)>,
    done: Receiver<()>,
}

impl IdleClients {
    pub fn new() -> Self {
        let (orders, received) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        descriptors::spawn_with_own(move || run_orders(&received, &tell));
        Self { orders, done }
    }

    /// Has the clients leave, and so many others connect with this port. When this returns, each
    /// has been answered.
    pub fn replace(&self, port: u16, clients: usize) {
        self.orders.send((port, clients)).unwrap();
        self.done.recv().expect("a client has failed");
    }
}

fn run_orders(orders: &Receiver<(u16, usize)>, done: &Sender<()>) {
    let mut clients = Vec::new();
    for (port, count) in orders {
        clients.clear();
        clients.extend(gather(port, count));
        done.send(()).unwrap();
    }
}

/// Connects so many clients with this port. When this returns, each has been answered.
pub fn gather(port: u16, count: usize) -> Vec<TcpStream> {
    let mut addrs = loopback::addrs(64, port).into_iter().cycle().take(count);
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let newcomers = connect(addrs.by_ref().take(64));
        exchange(&newcomers); // so that no more wait to be accepted than any backlog holds
        clients.extend(newcomers);
    }
    clients
}

/// Of these numbers of pairs those that there are descriptors for, and in place of larger ones as
/// many as there are.
pub fn sizes(wanted: &[usize]) -> Vec<usize> {
    const SPARE: u64 = 100;
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let most = (limit.saturating_sub(SPARE) / 2) as usize; // the balancer holds two for each pair
    let mut sizes: Vec<_> = wanted.iter().map(|&size| size.min(most)).collect();
    sizes.dedup();
    sizes
}
