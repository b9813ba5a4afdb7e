//! A small, embeddable, userland round-robin load balancer for stream connections, whose backends
//! change while it runs.
//!
//! A program (an agent, a node daemon, a client-side sidecar) needs one local address in front of a
//! set of backends: the API servers of a cluster, the replicas of a database. It gives tinylb a
//! listener, runs it on a thread, and passes it a new [`BackendSet`] whenever its own source of
//! truth changes. tinylb spreads new connections over the set. **When a target leaves the set,
//! every connection to it is closed at once, on both sides, even one that is still dialling.**
//! Clients then reconnect to a live backend instead of hanging on a dead one.
//!
//! # A complete program
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
//! let control = server.control(); // can be cloned and used on any thread
//! let balancer = std::thread::spawn(move || server.run());
//!
//! let mut set = BackendSet::new();
//! set.insert("node-1", TcpBackend::new("10.0.0.1:6443".parse()?));
//! set.insert("node-2", TcpBackend::resolve("localhost:6443")?);
//! control.update(set.clone())?; // applied in the loop's next turn
//!
//! set.remove("node-1");
//! let applied = control.update(set)?.wait()?;
//! // From here on no byte is written to node-1 or read from it.
//! println!("closed {} connections, cancelled {} dials", applied.closed, applied.cancelled);
//!
//! control.drain(Duration::from_secs(5))?;
//! let summary = balancer.join().expect("the balancer panicked")?;
//! println!("served {} clients in {:?}", summary.ended.total(), summary.ran_for);
//! # Ok(())
//! # }
//! ```
//!
//! # In an async program
//!
//! The balancer has a thread of its own; nothing of it runs in the runtime. Answers that take a
//! moment are [`Pending`], which any executor can await. `examples/cookbook/src/bin/tokio_host.rs`:
//!
//! ```ignore
//! //! A tokio program with a balancer in front of whatever a name resolves to.
//!
//! use std::time::Duration;
//!
//! use tinylb::{BackendSet, Control, Error, Server, TcpBackend};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let args: Vec<String> = std::env::args().collect();
//!     let [_, listen, name] = &args[..] else { return Err("usage: LISTEN HOST:PORT".into()) };
//!     let listener = std::net::TcpListener::bind(listen)?;
//!     let balancer = Server::builder().build(listener)?.spawn()?; // on a thread of its own
//!     let control = balancer.control();
//!     println!("listening on {}", control.local_addr());
//!     tokio::select! {
//!         result = follow(&control, name) => result?,
//!         pressed = tokio::signal::ctrl_c() => pressed?,
//!     }
//!     control.drain(Duration::from_secs(5))?;
//!     let summary = control.ended().await?; // all sockets are closed
//!     println!("served {} clients in {:.1?}", summary.ended.total(), summary.ran_for);
//!     Ok(())
//! }
//!
//! /// Looks the name up again and again, and replaces the backend set.
//! async fn follow(control: &Control, name: &str) -> Result<(), Error> {
//!     let mut lookups = tokio::time::interval(Duration::from_secs(10));
//!     loop {
//!         lookups.tick().await;
//!         match tokio::net::lookup_host(name).await {
//!             Ok(addrs) => {
//!                 let backends = addrs.map(|addr| (addr.to_string(), TcpBackend::new(addr)));
//!                 let applied = control.update(backends.collect::<BackendSet>())?.await?;
//!                 println!("{} backends, closed {}", applied.backends, applied.closed);
//!             }
//!             Err(err) => eprintln!("{name}: {err}"), // the set stays as it is
//!         }
//!     }
//! }
//! ```
//!
//! # Promises
//!
//! - **Updates** ([`Control::update`]) replace the whole set in one step. The same step ends every
//!   connection to a target that the new set lacks: relaying, half-closed, blocked on a client that
//!   does not read, or dialling. Once the [`Update`] is applied, no byte is read from such a target
//!   or written to it. Connections to other targets are not touched. The target name counts, not
//!   the key: a key with a new target loses its old connections, unless another key names the old
//!   target. [`Control::update_draining`] lets old connections finish within a limit.
//! - **Picking** is round robin in key order, in proportion to the backends' weights, or by least
//!   connections: see [`Policy`]. It continues after the last key served, however the set changes.
//!   A backend that fails three dials in a row is ejected for a while: see [`Ejection`]. One of
//!   weight 0 is held: it gets no client, and its connections live on.
//! - **Failover**: if a backend cannot be reached, the client gets the next one, until each has
//!   been tried once or [`dial_limit`] runs out. No byte of a client is read before its backend is
//!   connected, so failover loses none.
//! - **Relaying** delivers every byte once and in order. If one side ends its stream, the other
//!   direction continues (half-close). If one side does not read, the other is not read either
//!   (backpressure). A connection without unsent bytes holds no buffer.
//! - **An abort looks like one.** A connection that does not end in an orderly way ends with a TCP
//!   reset, never with an end of stream that could pass for a complete answer. A reset from one
//!   side is passed on to the other. This needs TCP and the feature `socket2`; without it, and on
//!   Unix-domain sockets, an abort is a plain close.
//! - **Nothing outlives** [`Server::run`]: when it returns, the balancer has no socket, thread or
//!   timer left.
//! - **Trouble stays local**: no peer, and no shortage of descriptors or memory for sockets, stops
//!   the balancer or makes it spin.
//!
//! tinylb does not look into the streams, balance datagrams, discover backends, or check their
//! health except by dialling. It does not speak TLS, but a [`Stream`] of your own can.
//!
//! # Edge cases
//!
//! | when | then |
//! | --- | --- |
//! | the set is empty, all of it is held, or no update came yet | clients are refused at once |
//! | a backend refuses, or [`connect_timeout`] runs out | the next one is tried |
//! | a backend's dial returns `WouldBlock` (busy) | the next one is tried, or the client waits |
//! | all backends fail | the client is refused |
//! | one side ends its stream | the other gets the rest, then the end, and may still send |
//! | no byte moves for [`half_closed_timeout`] after that | the connection is aborted |
//! | one side resets | the other gets what it accepts without waiting, then a reset |
//! | a client resets while its backend is dialled | the dial is cancelled |
//! | a client ends its stream while its backend is dialled | the dial continues |
//! | a peer vanishes silently, connection idle | [`keepalive`] notices |
//! | a peer vanishes silently, bytes on their way | [`user_timeout`] notices, if set |
//! | no descriptor is left | accepting pauses; a client that is already accepted waits for one |
//! | [`max_connections`] is reached | clients wait in the kernel's backlog |
//!
//! # Threads
//!
//! The balancer is one event loop on one thread: the caller's ([`Server::run`]) or its own
//! ([`Server::spawn`]). Your [`Backend::dial`], your [`Observer`] and your logger are called on
//! that thread and must not block. Names are looked up where a backend is created, on the thread
//! that creates it. [`Control`] works on any thread. What it returns is [`Pending`]: a thread waits
//! for it, a task awaits it, on any executor.
//!
//! # Observing and stopping
//!
//! [`Control::stats`] asks for a consistent snapshot of the counters, per backend and per reason of
//! ending. An [`Observer`] is told of each client, failed attempt, end and update as it happens.
//! The [`log`](https://docs.rs/log) crate gets lines with the target `tinylb`: `info` for start,
//! stop and what each update changed, `warn` (rate-limited) for what an operator must see, `debug`
//! for each connection.
//!
//! [`Control::shutdown`] ends everything at once. [`Control::drain`] accepts the clients that are
//! already waiting, and lets connections finish within a limit. [`Server::run`] then returns a
//! [`Summary`], and [`Control::ended`] answers with it. Dropping the [`ServerThread`] that
//! [`Server::spawn`] returns shuts down and waits for the end. Dropping a [`Control`] stops
//! nothing.
//!
//! Counters for Prometheus, in `examples/cookbook/src/bin/prometheus.rs`:
//!
//! ```no_run
//! //! A balancer whose counters Prometheus scrapes.
//!
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! use tinylb::{BackendSet, BackendStats, EndCounts, EndReason, Server, Stats, TcpBackend};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let args: Vec<String> = std::env::args().collect();
//!     let [_, listen, metrics, node] = &args[..] else { return Err("needs three addresses".into()) };
//!     let set = BackendSet::from([("node", TcpBackend::resolve(node)?)]);
//!     let server = Server::builder().backends(set).build(TcpListener::bind(listen)?)?.spawn()?;
//!     let metrics = TcpListener::bind(metrics)?;
//!     println!("listening on {}, metrics on {}", server.local_addr(), metrics.local_addr()?);
//!     for scraper in metrics.incoming() {
//!         let text = render(&server.control().stats()?.wait()?);
//!         scraper.and_then(|scraper| answer(scraper, &text)).unwrap_or_else(|err| eprintln!("{err}"));
//!     }
//!     Ok(())
//! }
//!
//! fn answer(mut scraper: TcpStream, text: &str) -> std::io::Result<()> {
//!     scraper.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
//!     let _ = scraper.read(&mut [0; 4096])?; // whatever is asked for
//!     let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
//!     write!(scraper, "{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len())
//! }
//!
//! fn render(stats: &Stats) -> String {
//!     let metric = |name: &str, kind: &str, label: &str, samples: Vec<(&str, u64)>| {
//!         let line = |(value, count)| format!("tinylb_{name}{{{label}={value:?}}} {count}\n");
//!         let lines: String = samples.into_iter().map(line).collect();
//!         format!("# TYPE tinylb_{name} {kind}\n{lines}")
//!     };
//!     let reasons = |counts: &EndCounts, reasons: &'static [EndReason]| {
//!         reasons.iter().map(|reason| (reason.as_str(), counts.of(*reason))).collect()
//!     };
//!     let backends = |value: fn(&BackendStats) -> u64| {
//!         stats.backends.iter().map(|backend| (&*backend.key, value(backend))).collect()
//!     };
//!     metric("ended_total", "counter", "reason", reasons(&stats.ended, EndReason::ENDED))
//!         + &metric("refused_total", "counter", "reason", reasons(&stats.refused, EndReason::REFUSED))
//!         + &metric("open", "gauge", "backend", backends(|backend| backend.usage.open))
//!         + &metric("ejected", "gauge", "backend", backends(|backend| backend.ejected.into()))
//! }
//! ```
//!
//! # Sockets and descriptors
//!
//! [`Builder::build`] takes TCP and Unix-domain listeners of the standard library and of mio.
//! Besides [`TcpBackend`] there is `UnixBackend`. Other transports implement [`Listener`],
//! [`Stream`] and [`Backend`] over any event source of [`mio`](https://docs.rs/mio/1):
//! `tls_backend.rs` in `examples/cookbook` speaks TLS to backends, with rustls.
//!
//! - **Descriptor limit**: each client needs two descriptors. The library does not raise the
//!   process's limit; call `setrlimit(RLIMIT_NOFILE)` yourself.
//! - **Socket activation**: turn the inherited descriptor into a listener of the standard library
//!   and pass it to [`Builder::build`].
//! - **Child processes**: a socket closes only when its last duplicate does, so a child that keeps
//!   an inherited duplicate delays the end that the peer sees. The crate opens all sockets with
//!   `CLOEXEC`; let children `exec` right after `fork`, and set `CLOEXEC` on listeners that you
//!   inherit yourself.
//!
//! # Features
//!
//! - `socket2` (default): everything that mio cannot set on a socket. These are resets, keepalive,
//!   `TCP_USER_TIMEOUT`, `TCP_NOTSENT_LOWAT`, urgent data in line, source addresses, and
//!   `ListenOptions`. Without it urgent bytes are lost, and the crate has five direct dependencies.
//! - `splice`: bulk between plain sockets is not copied on Linux: see [below](#splicing). It adds
//!   the dependency rustix, and has no effect on other systems.
//!
//! # Semver
//!
//! - [`mio`](https://docs.rs/mio/1) 1 is part of the interface: [`Stream`] and [`Listener`] extend
//!   its event sources, so a new major version of it is one of this crate. Use the re-export to
//!   have the same version. No type of another dependency is in the interface.
//! - Minor versions may add fields and variants to what is `#[non_exhaustive]`, provided methods to
//!   the traits, reasons to [`EndReason::ALL`] with their labels, and may raise the minimum Rust
//!   version (now 1.85). They do not change labels or the log target.
//! - The text of errors and log lines, and what `Debug` shows, may change in any version.
//!
//! # Splicing
//!
//! With the feature `splice`, bulk between TCP or Unix-domain sockets moves through pipes by
//! reference. How much CPU time that saves depends on what copying costs on your machine: measured
//! were 0.5 to 0.7 of it for one connection, and 0.55 to 0.95 for 16 connections both ways. Try it
//! where connections move many megabytes each. It changes nothing for small messages, which are
//! copied as before, and wait less behind bulk.
//!
//! - A direction is spliced once it has filled the largest reads several times in a row and its
//!   reader has kept up: after 4 MB with the default [`buffer_size`](Builder::buffer_size). It is
//!   copied again as soon as little comes at a time, or its reader takes nothing for a while.
//! - The balancer has at most 32 pipes, each with two descriptors and up to 512 KiB. Most of the
//!   time one of them serves all connections. A pipe that holds unsent bytes belongs to its
//!   connection until its reader has taken them, in addition to `buffer_size`.
//! - When a pipe cannot be had, bytes are copied: `pipe-user-pages-soft` and `pipe-max-size` in
//!   `/proc/sys/fs` limit users without privileges. When descriptors run out, empty pipes are
//!   closed before a client has to wait.
//! - **`SIGPIPE` must be ignored**, as it is in Rust programs by default. The kernel raises it when
//!   bytes are spliced to a peer that has reset the connection, and unlike with a write nothing
//!   prevents that. The balancer looks for that in `/proc` before it splices a connection, and
//!   copies if the signal is not ignored or it cannot tell. A host that restores the signal has to
//!   do so before [`Server::run`].
//! - While a direction is spliced, the kernel holds up to 1 MiB for its reader, in place of
//!   [`notsent_lowat`](Builder::notsent_lowat). Its timeouts then count from when a reader of
//!   20 kB/s has read that, 46 seconds later at most.
//! - A stream of your own is spliced if it offers a descriptor: [`Stream::splice_fd`] (on Unix).
//!
//! # Platforms
//!
//! Developed and tested on Linux. The crate uses only what mio and socket2 offer on other systems
//! too, but is not tested there.
//!
//! [`connect_timeout`]: Builder::connect_timeout
//! [`dial_limit`]: Builder::dial_limit
//! [`half_closed_timeout`]: Builder::half_closed_timeout
//! [`keepalive`]: Builder::keepalive
//! [`max_connections`]: Builder::max_connections
//! [`user_timeout`]: Builder::user_timeout

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

mod backend;
mod builder;
mod control;
mod end_reason;
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

/// The event library that [`Stream`] and [`Listener`] build on.
pub use mio;

#[cfg(unix)]
pub use crate::backend::UnixBackend;
pub use crate::backend::{Backend, BackendSet, Dial, DialRequest, Entry, Iter, TcpBackend};
pub use crate::builder::Builder;
pub use crate::control::{Control, Update};
pub use crate::end_reason::{EndCounts, EndReason};
pub use crate::error::Error;
pub use crate::mailbox::Pending;
#[cfg(feature = "socket2")]
pub use crate::net::ListenOptions;
pub use crate::net::{
    Address, IntoListener, Keepalive, Listener, Readiness, SocketOptions, Stream,
};
pub use crate::observer::{
    AcceptChanged, AttemptFailed, BackendRef, BreakerChanged, BreakerState, Client, Connected,
    Ended, Observer,
};
pub use crate::pool::{Ejection, Policy};
pub use crate::server::{Server, ServerThread};
pub use crate::stats::{Applied, BackendStats, DialError, Stats, Summary, Usage};
