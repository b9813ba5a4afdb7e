//! Transports: the traits [`Stream`] and [`Listener`], their implementations for TCP and
//! Unix-domain sockets, socket options, and the sorting of I/O errors.

mod address;
mod error_kind;
#[cfg(feature = "socket2")]
mod listen_options;
mod listener;
mod options;
mod readiness;
mod stream;
pub(crate) mod tcp;
#[cfg(unix)]
mod unix;

pub use address::Address;
pub(crate) use error_kind::{is_client_error, is_local_failure, is_shortage};
#[cfg(feature = "socket2")]
pub use listen_options::ListenOptions;
pub use listener::{IntoListener, Listener};
pub use options::{Keepalive, SocketOptions};
pub(crate) use options::{raise_notsent_lowat, set_notsent_lowat};
pub(crate) use readiness::INTEREST;
pub use readiness::Readiness;
pub use stream::Stream;
