//! The backends in force, changed by one thread at a time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tinylb::{Applied, Control, Error, Update};

use crate::sources::Sources;

/// The balancer's backends by source, and the control of the balancer.
pub(crate) struct RunningSet {
    pub(crate) control: Control,
    sources: Mutex<Sources>,
}

impl RunningSet {
    pub(crate) fn new(control: Control, sources: Sources) -> Self {
        Self { control, sources: Mutex::new(sources) }
    }

    /// Gives the backends to a balancer that has none yet.
    pub(crate) fn install(&self) -> Result<Update, Error> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.update(sources.union())
    }

    /// Replaces the sources by what `change` makes of them, and waits until that is applied. If
    /// anything is wrong, nothing changes.
    ///
    /// Other changes wait meanwhile, so that none is lost and each reports its own closed
    /// connections. `change` must not look up names.
    pub(crate) fn change<M, E: From<M> + From<String>>(
        &self,
        drain: Option<Duration>,
        change: impl FnOnce(&Sources) -> Result<Sources, M>,
    ) -> Result<Applied, E> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&sources)?;
        let update = match drain {
            None => self.control.update(changed.union()),
            Some(limit) => self.control.update_draining(changed.union(), limit),
        };
        let applied = update.and_then(|update| update.wait()).map_err(|err| err.to_string())?;
        *sources = changed;
        Ok(applied)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread;

    use tinylb::{BackendSet, Server, TcpBackend};

    use super::*;

    fn backend(key: &str) -> BackendSet {
        let addr = "127.0.0.1:1".parse().unwrap();
        [(key, TcpBackend::new(addr))].into_iter().collect()
    }

    /// A command and a reload of the file come at once, before the first of them is applied.
    #[test]
    fn a_change_waits_until_the_one_before_it_is_applied_so_that_neither_is_lost() {
        // Nothing is applied as long as the server is not running.
        let server = Server::builder().build(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let running = RunningSet::new(server.control(), Sources::of(BackendSet::new()));
        let (begun, changes) = mpsc::channel();
        thread::scope(|scope| {
            let command = scope.spawn(|| {
                running.change::<_, String>(None, |sources| {
                    begun.send("command").unwrap();
                    sources.with_added(backend("a"))
                })
            });
            assert_eq!(changes.recv(), Ok("command"));
            let reload = scope.spawn(|| {
                running.change::<_, String>(None, |sources| {
                    begun.send("reload").unwrap();
                    sources.with_file(backend("f"))
                })
            });
            assert!(changes.recv_timeout(Duration::from_millis(200)).is_err(), "it did not wait");
            let _server = server.spawn().unwrap();
            assert_eq!(command.join().unwrap().unwrap().backends, 1);
            assert_eq!(reload.join().unwrap().unwrap().backends, 2, "one was lost");
        });
    }
}
