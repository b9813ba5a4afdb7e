//! How many sockets a bench may have: a pair takes four descriptors when its client and its backend
//! are here too.

use std::sync::mpsc;
use std::thread;

/// Starts a thread with a table of descriptors of its own, and with it a limit of its own. (On
/// Linux.)
///
/// What is opened there must be used and dropped there.
pub fn spawn_with_own(work: impl FnOnce() + Send + 'static) {
    let (tell, separated) = mpsc::channel();
    thread::spawn(move || {
        #[cfg(target_os = "linux")]
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
        tell.send(()).unwrap();
        work();
    });
    // What is opened before would be in both tables, and stay open when it is closed in one.
    separated.recv().unwrap();
}
