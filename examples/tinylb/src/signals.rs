//! Signals: SIGTERM and SIGINT end the balancer, SIGHUP has the backends file reread.

use std::io;
use std::sync::mpsc::Sender;
use std::time::Duration;

use log::{error, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tinylb::Control;

/// From now on these signals are kept for [`handle`], and do nothing by themselves.
pub(crate) fn catch() -> io::Result<Signals> {
    Signals::new([SIGHUP, SIGTERM, SIGINT])
}

/// Handles signals for as long as the process lives.
pub(crate) fn handle(
    mut signals: Signals,
    control: &Control,
    drain: Duration,
    reread: &Sender<()>,
) {
    let mut is_ending = false;
    for signal in signals.forever() {
        if signal == SIGHUP {
            if reread.send(()).is_err() {
                warn!("SIGHUP: there is no backends file to reread");
            }
            continue;
        }
        let at_once = is_ending || drain.is_zero();
        is_ending = true;
        if let Err(err) = if at_once { control.shutdown() } else { control.drain(drain) } {
            error!("{err}");
        }
    }
}
