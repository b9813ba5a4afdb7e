//! A small, embeddable, userland round-robin load balancer for stream connections, whose backends change while it runs.
//!
//! A host program (an agent, a node daemon, a client-side sidecar) needs one local address in front of a set of
//! backends: the API servers of a cluster, the replicas of a database. It gives tinylb a listener, runs it in a thread,
//! and hands it a new [`BackendSet`] whenever its own source of truth says so. tinylb spreads new connections round
//! robin over the set, and **the moment a target leaves the set, every connection to it is closed, on both sides, even
//! those still dialling**, so that clients reconnect to a live backend at once instead of hanging on a dead one.
//!
//! # A whole program
//!
//! ```
//! use std::net::TcpListener;
//! use std::time::Duration;
//! use tinylb::{BackendSet, Server, TcpBackend};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let server = Server::builder().connect_timeout(Duration::from_secs(2)).build(listener)?;
//! println!("listening on {}", server.local_addr());
//! let control = server.control(); // can be cloned, and used on any thread
//! let balancer = std::thread::spawn(move || server.run());
//!
//! let mut set = BackendSet::new();
//! set.insert("node-1", TcpBackend::new("10.0.0.1:6443".parse()?));
//! set.insert("node-2", TcpBackend::resolve("localhost:6443")?);
//! control.update(set.clone())?; // takes effect within a turn of the loop
//!
//! set.remove("node-1");
//! let applied = control.update(set)?.wait()?;
//! // From here on not a byte goes to node-1 or comes from it.
//! println!("closed {} connections, cancelled {} dials", applied.closed, applied.cancelled);
//!
//! control.drain(Duration::from_secs(5))?;
//! let summary = balancer.join().expect("the balancer panicked")?;
//! println!("served {} clients in {:?}", summary.ended.total(), summary.ran_for);
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! - **Updates** ([`Control::update`]) replace the whole set in one step, which also ends every connection to a target
//!   that the new set does not name: relaying, half-closed, blocked on a client that does not read, or still dialling.
//!   Once [`Update::wait`] says *applied*, nothing is read from such a target or written to it any more. Connections to
//!   targets that stay are not touched. What counts is the target name, not the key: a key that is given another
//!   target closes its old connections; a target that another key still names keeps them. Updates can ask for a drain
//!   instead: [`Control::update_draining`].
//! - **Picking** is round robin in key order, and goes on after the key that was served last, however the set changes.
//!   A backend whose dials fail three times in a row is passed over for a while: see [`Ejection`].
//! - **Failover**: a client whose backend cannot be reached is given the next, until each has been tried once or
//!   [`dial_limit`](Builder::dial_limit) runs out. No byte of a client is read before its backend is connected, so
//!   none is lost by trying another.
//! - **Relaying** delivers each byte once and in order, passes on the end of one direction while the other goes on
//!   (half-close), stops reading from a side whose counterpart does not take more, and holds no buffer for a
//!   connection that has nothing stuck.
//! - **A cut looks cut.** What ends before both streams have ended in order ends by a reset, never by a clean end of
//!   stream that could pass for a complete answer. A reset that one side sends is passed on to the other. This holds
//!   for TCP, and needs the feature `socket2`; otherwise, and on Unix-domain sockets, a cut is a plain close.
//! - **Nothing outlives** [`Server::run`]: when it has returned, there is no socket, thread or timer of the balancer.
//! - **Trouble stays where it is**: no peer, and no lack of descriptors or memory for sockets, stops the balancer or
//!   makes it spin.
//!
//! What it does not do: look into the streams, terminate TLS (though a [`Stream`] of the host's own can), balance
//! datagrams, or find out by itself which backends there are.
//!
//! # Behaviour at the edges
//!
//! | when | then |
//! | --- | --- |
//! | the set is empty, or none was given yet | clients are refused at once |
//! | a backend refuses, or does not answer within [`connect_timeout`](Builder::connect_timeout) | the next one is tried |
//! | all backends fail | the client is refused |
//! | one side ends its stream | what it sent is delivered, then the end; the other direction goes on, at most [`half_closed_timeout`](Builder::half_closed_timeout) without a byte |
//! | one side resets | what it sent before goes on as far as the other takes it at once, then the reset |
//! | a client resets while its backend is being dialled | the dial is given up; if it only ended its stream, it is not |
//! | a peer vanishes | noticed by [`keepalive`](Builder::keepalive) if idle, by [`user_timeout`](Builder::user_timeout) if bytes are on their way |
//! | no descriptor is left | accepting pauses; who was accepted waits for one |
//! | [`max_connections`](Builder::max_connections) is reached | clients wait in the kernel's backlog |
//!
//! # Threads
//!
//! The balancer is one loop on one thread: that of [`Server::run`]'s caller, or the one that [`Server::spawn`] starts.
//! [`Backend::dial`] and the [`Observer`] are called on it and must not block. Names are looked up where a backend is
//! made, on the thread that makes it. [`Control`] can be used anywhere; a thread that must not block, such as one of an
//! async runtime, asks [`Update::poll`] instead of waiting.
//!
//! # Seeing and stopping
//!
//! [`Control::stats`] takes one consistent snapshot of the counters, by backend and by reason of end. An [`Observer`] is
//! told of each client, failed attempt, end and update as it happens. The [`log`](https://docs.rs/log) crate gets
//! `info` for the start, the stop and what each update changed, `warn` (limited in rate) for what an operator must see,
//! and `debug` for each connection.
//!
//! [`Control::shutdown`] ends everything at once. [`Control::drain`] accepts nobody any more and lets connections finish
//! within a limit. [`Server::run`] then returns a [`Summary`]. To drop the handle that [`Server::spawn`] returns is to
//! shut down and to wait for the end; to drop a [`Control`] stops nothing.
//!
//! # Unix-domain sockets, and transports of your own
//!
//! TCP and Unix-domain sockets come with the crate, on both sides: [`Builder::build`] takes the listeners of the
//! standard library and of mio, and besides [`TcpBackend`] there is `UnixBackend`. Anything else that has a [`mio`]
//! event source fits by three traits: [`Listener`], [`Stream`] and [`Backend`].
//!
//! # Features
//!
//! - `socket2` (default): sets what mio cannot: resets, keepalive, `TCP_USER_TIMEOUT`, the options of the listener that
//!   accepted sockets inherit, and `ListenOptions`. Without it the crate has five direct dependencies and does
//!   without these.
//!
//! # Platforms
//!
//! Developed and tested on Linux. It uses nothing but what mio and socket2 offer on other systems too, but has not been
//! proven there.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct TheReadmesProgramsCompile;

mod backend;
mod builder;
mod control;
mod error;
mod event_loop;
mod log;
mod mailbox;
mod net;
mod observer;
mod pool;
mod random;
mod relay;
mod server;
mod stats;
mod sync;
#[cfg(any(test, fuzzing))]
mod testing;
mod time;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use crate::testing::fuzzing;

/// The event library in whose terms [`Stream`] and [`Listener`] are written.
pub use mio;

#[cfg(unix)]
pub use crate::backend::UnixBackend;
pub use crate::backend::{Backend, BackendSet, Dial, DialRequest, Entry, Iter, TcpBackend};
pub use crate::builder::Builder;
pub use crate::control::{Control, Update};
pub use crate::error::Error;
#[cfg(feature = "socket2")]
pub use crate::net::ListenOptions;
pub use crate::net::{
    Address, IntoListener, Keepalive, Listener, Readiness, SocketOptions, Stream,
};
pub use crate::observer::{AttemptFailed, Client, Connected, Ended, Observer};
pub use crate::pool::Ejection;
pub use crate::server::{Server, ServerThread};
pub use crate::stats::{Applied, BackendStats, EndCounts, EndReason, Stats, Summary, Usage};
