//! A small, embeddable round-robin load balancer for stream connections.

mod backend;
mod control;
mod error;
mod event_loop;
mod net;
mod observe;
mod relay;
mod rotation;
mod server;

pub use mio;

#[cfg(unix)]
pub use crate::backend::UnixBackend;
pub use crate::backend::{Backend, BackendSet, Dial, DialRequest, Entry, IntoIter, Iter, TcpBackend};
pub use crate::control::{Control, Update};
pub use crate::error::Error;
#[cfg(feature = "socket2")]
pub use crate::net::ListenOptions;
pub use crate::net::{Address, IntoListener, Keepalive, Listener, Readiness, SocketOptions, Stream};
pub use crate::observe::{
    Applied, AttemptFailed, BackendStats, Client, Connected, EndCounts, EndReason, Ended, Observer, Stats, Summary,
    Usage,
};
pub use crate::rotation::Ejection;
pub use crate::server::{Builder, Server, ServerThread};
