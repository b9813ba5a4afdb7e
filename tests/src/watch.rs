//! Observers: one that remembers what it is told, and one that does something at each moment.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tinylb::{Applied, AttemptFailed, Client, Connected, EndReason, Ended, Observer, Summary};

use crate::wait_for;

/// Remembers what it is told, and checks that each client is told of in order (C8.2).
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
pub struct Seen {
    /// Everything, in words.
    pub events: Vec<String>,
    pub accepted: u64,
    /// The key of each client's backend.
    pub connected: BTreeMap<u64, String>,
    /// From accept to connect.
    pub took: Vec<Duration>,
    /// Failed attempts: to which key, and why.
    pub failed: Vec<(String, ErrorKind)>,
    pub ended: BTreeMap<u64, End>,
    pub updates: u64,
}

/// How a client ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub reason: EndReason,
    pub error: Option<ErrorKind>,
    pub was_connected: bool,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub lasted: Duration,
    pub at: Instant,
}

impl Watch {
    pub fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    /// How a client ended, once it has.
    #[track_caller]
    pub fn end_of(&self, client: u64) -> End {
        wait_for("the client ends", || self.lock().ended.get(&client).copied())
    }

    /// Exactly this is told next.
    #[track_caller]
    pub fn assert_tells(&self, expected: &[&str]) {
        wait_for(&format!("{expected:?} after {:?}", self.lock().events), || {
            (self.lock().events.len() >= expected.len()).then_some(())
        });
        assert_eq!(std::mem::take(&mut self.lock().events), expected);
    }

    /// One end for each client, and the summary says the same.
    #[track_caller]
    pub fn assert_agrees(&self, summary: &Summary) {
        let seen = self.lock();
        let (served, refused): (Vec<_>, Vec<_>) =
            seen.ended.values().partition(|end| end.was_connected);
        assert_eq!(seen.accepted, seen.ended.len() as u64, "C8.2: not one end for each client");
        let sum = |bytes: fn(&End) -> u64| served.iter().copied().map(bytes).sum::<u64>();
        let told = [
            seen.accepted,
            refused.len() as u64,
            served.len() as u64,
            sum(|end| end.bytes_up),
            sum(|end| end.bytes_down),
        ];
        let (refused, ended) = (summary.refused.total(), summary.ended.total());
        let (up, down) = (summary.bytes_up, summary.bytes_down);
        assert_eq!(told, [summary.accepted, refused, ended, up, down]);
    }
}

impl Observer for Watch {
    fn accepted(&mut self, client: &Client<'_>) {
        let mut seen = self.lock();
        assert_eq!(client.id, seen.accepted);
        seen.accepted += 1;
        seen.events.push(format!("{} accepted", client.id));
    }

    fn connected(&mut self, connected: &Connected<'_>) {
        let Connected { client, key, target_name, took, .. } = connected;
        let mut seen = self.lock();
        let earlier = seen.connected.insert(client.id, (*key).to_owned());
        assert_eq!(earlier, None, "connected twice");
        seen.took.push(*took);
        seen.events.push(format!("{} connected {key}={target_name}", client.id));
    }

    fn attempt_failed(&mut self, failed: &AttemptFailed<'_>) {
        let AttemptFailed { client, key, target_name, attempt, error, .. } = failed;
        let (id, kind) = (client.id, error.kind());
        let mut seen = self.lock();
        seen.failed.push(((*key).to_owned(), kind));
        seen.events.push(format!("{id} failed {key}={target_name} #{attempt} {kind:?}"));
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let Ended { client, backend, lasted, bytes_up, bytes_down, reason, error, .. } = *ended;
        let mut seen = self.lock();
        let key = seen.connected.get(&client.id).map(String::as_str);
        assert_eq!(backend.map(|backend| backend.key), key, "C8.2");
        let error = error.map(std::io::Error::kind);
        let (was_connected, at) = (key.is_some(), Instant::now());
        let end = End { reason, error, was_connected, bytes_up, bytes_down, lasted, at };
        assert!(seen.ended.insert(client.id, end).is_none(), "C8.2: ended twice");
        let backend =
            backend.map(|it| format!(" {}={}", it.key, it.target_name)).unwrap_or_default();
        let error = error.map(|kind| format!(", {kind:?}")).unwrap_or_default();
        seen.events.push(format!(
            "{} ended{backend} {bytes_up}/{bytes_down} {reason:?}{error}",
            client.id
        ));
    }

    fn updated(&mut self, applied: &Applied) {
        let Applied { closed, cancelled, draining, backends, .. } = applied;
        let mut seen = self.lock();
        seen.updates += 1;
        seen.events.push(format!("updated to {backends}: {closed} {cancelled} {draining}"));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Accepted,
    Connected,
    Updated,
    Ended,
}

/// Does something at each moment, on the balancer's thread.
pub struct OnMoment<F>(pub F);

impl<F: FnMut(Moment) + Send> Observer for OnMoment<F> {
    fn accepted(&mut self, _: &Client<'_>) {
        (self.0)(Moment::Accepted);
    }
    fn connected(&mut self, _: &Connected<'_>) {
        (self.0)(Moment::Connected);
    }
    fn updated(&mut self, _: &Applied) {
        (self.0)(Moment::Updated);
    }
    fn ended(&mut self, _: &Ended<'_>) {
        (self.0)(Moment::Ended);
    }
}
