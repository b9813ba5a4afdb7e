//! The backends in force, changed by one thread at a time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tinylb::{Applied, Control, Error, Update};

use crate::sources::Sources;

/// The balancer's backends by source, and the hand on the balancer.
pub(crate) struct RunningSet {
    pub(crate) control: Control,
    sources: Mutex<Sources>,
}

impl RunningSet {
    pub(crate) fn new(control: Control, sources: Sources) -> Self {
        Self { control, sources: Mutex::new(sources) }
    }

    /// Hands the backends to a balancer that has none yet.
    pub(crate) fn install(&self) -> Result<Update, Error> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.update(sources.union())
    }

    /// Replaces the sources by what `change` makes of them, and waits until that is applied. When anything is wrong,
    /// nothing has changed.
    ///
    /// Another change waits meanwhile, so that each is told of its own closed connections. No name must be looked up in
    /// `change`.
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
