//! The settings of a balancer. `server` builds one.

use std::fmt;
use std::time::Duration;

use crate::backend::BackendSet;
use crate::error::Error;
use crate::event_loop::{Config, Limits};
use crate::net::{Keepalive, SocketOptions};
use crate::observer::Observer;
use crate::pool::{Ejection, PickSettings, Policy};

/// The settings of a balancer. The defaults suit a client-side proxy.
///
/// ```
/// use std::time::Duration;
/// use tinylb::Server;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let server = Server::builder()
///     .connect_timeout(Duration::from_secs(2))
///     .idle_timeout(Some(Duration::from_secs(3600)))
///     .build(listener)?;
/// # Ok(())
/// # }
/// ```
pub struct Builder {
    pub(crate) config: Config,
    pub(crate) pick: PickSettings,
    pub(crate) backends: Option<BackendSet>,
    pub(crate) seed: Option<u64>,
    pub(crate) observer: Box<dyn Observer>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            config: Config {
                limits: Limits {
                    connect_timeout: Duration::from_secs(5),
                    dial_limit: Duration::from_secs(15),
                    idle_timeout: None,
                    half_closed_timeout: Duration::from_secs(60),
                },
                max_connections: usize::MAX,
                buffer_size: 256 << 10,
                socket_options: SocketOptions::default(),
                splice: true,
            },
            backends: None,
            pick: PickSettings::default(),
            seed: None,
            observer: Box::new(None::<Box<dyn Observer>>),
        }
    }
}

impl Builder {
    /// Sets the first backend set, like an update before the start. Defaults to none: clients are
    /// refused until the first update.
    pub fn backends(mut self, set: BackendSet) -> Self {
        self.backends = Some(set);
        self
    }

    /// Sets how long one attempt to reach one address of a backend may take. Defaults to 5 seconds.
    ///
    /// When it runs out, the next candidate is tried. While other candidates are left, an attempt
    /// may get less: its fair share of the time that is left of [`dial_limit`](Self::dial_limit),
    /// but at least 2 seconds, or this limit if it is shorter. The share is the time left, divided
    /// by the number of addresses of this backend and other backends that are still to be tried;
    /// backends that are ejected or half-open count only if there are no others. With the defaults,
    /// a client survives six backends in a row that do not answer.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.config.limits.connect_timeout = limit;
        self
    }

    /// Sets how long all attempts for one client may take together, from accept to connected.
    /// Defaults to 15 seconds.
    ///
    /// When it runs out, the client is refused. Waiting for a free descriptor counts too.
    pub fn dial_limit(mut self, limit: Duration) -> Self {
        self.config.limits.dial_limit = limit;
        self
    }

    /// Sets how long a connection may move no byte either way before it is aborted. Defaults to
    /// `None`: no limit.
    ///
    /// A peer that vanished is noticed without it, by [`keepalive`](Self::keepalive).
    pub fn idle_timeout(mut self, limit: Option<Duration>) -> Self {
        self.config.limits.idle_timeout = limit;
        self
    }

    /// Sets how long a connection of which one side has ended its stream may move no byte before
    /// it is aborted. Defaults to 60 seconds. A shorter [`idle_timeout`](Self::idle_timeout)
    /// applies too.
    pub fn half_closed_timeout(mut self, limit: Duration) -> Self {
        self.config.limits.half_closed_timeout = limit;
        self
    }

    /// Sets how many clients there may be at a time. Clients that are still dialling count, and so
    /// do those whose sockets are still to be closed. Defaults to no limit but that of
    /// descriptors, of which each client needs two.
    ///
    /// More clients wait in the kernel's backlog. When that is full too, connecting takes them
    /// longer and may time out. `ListenOptions` opens a listener with a large backlog.
    pub fn max_connections(mut self, clients: usize) -> Self {
        self.config.max_connections = clients;
        self
    }

    /// Sets how many unsent bytes one direction of a connection holds at most, when its reader is
    /// slow. Defaults to 256 KiB; at most 16 MiB.
    ///
    /// It is also the size of the largest read, and large reads cost less CPU: a bulk transfer over
    /// loopback took 0.58 s of CPU per GB with 16 KiB, 0.39 s with 64 KiB, 0.33 s with 256 KiB, and
    /// 0.31 s with 512 KiB. One buffer of this size serves all connections. A connection holds
    /// bytes of its own only while its reader does not take them, and this many only if its reader
    /// kept up for megabytes before.
    pub fn buffer_size(mut self, bytes: usize) -> Self {
        self.config.buffer_size = bytes;
        self
    }

    /// Sets whether small writes are sent at once (`TCP_NODELAY`), on both sides. Defaults to
    /// `true`.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.config.socket_options.nodelay = nodelay;
        self
    }

    /// Sets how the system probes idle connections, on both sides; `None` disables it. Defaults to
    /// [`Keepalive::default`]: a peer that vanished is noticed after two and a half minutes. Has no
    /// effect without the feature `socket2`.
    pub fn keepalive(mut self, keepalive: Option<Keepalive>) -> Self {
        self.config.socket_options.keepalive = keepalive;
        self
    }

    /// Sets how long sent bytes may stay unacknowledged before the connection fails, on both sides
    /// (`TCP_USER_TIMEOUT`). From 1 millisecond to 24 days. Defaults to `None`: the system decides,
    /// about 15 minutes. Linux and Android only, with the feature `socket2`; no effect elsewhere.
    ///
    /// It notices a peer that vanishes while bytes are on their way to it, which keepalive does
    /// not. It also ends a connection whose peer does not read for this long.
    ///
    /// It replaces [`Keepalive::probes`]: an idle connection fails at the first probe due after
    /// nothing has arrived for this long, if an earlier probe is unanswered. For the same time in
    /// both cases, set it to idle + interval × probes.
    pub fn user_timeout(mut self, limit: Option<Duration>) -> Self {
        self.config.socket_options.user_timeout = limit;
        self
    }

    /// Sets how many unsent bytes the kernel holds for a connection, on both sides
    /// (`TCP_NOTSENT_LOWAT`). Defaults to 128 KiB. `None` leaves the system's value, usually no
    /// limit. Linux and Android only, with the feature `socket2`; no effect elsewhere.
    ///
    /// Bytes count as moved when the kernel takes them. Without this limit it takes megabytes for a
    /// slow reader, which then runs into [`idle_timeout`](Self::idle_timeout) or
    /// [`half_closed_timeout`](Self::half_closed_timeout) although it keeps reading. With the
    /// default, a reader of about 200 kB per timeout runs into neither.
    pub fn notsent_lowat(mut self, bytes: Option<u32>) -> Self {
        self.config.socket_options.notsent_lowat = bytes;
        self
    }

    /// Sets how clients are spread over the backends. Defaults to [`Policy::RoundRobin`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.pick.policy = policy;
        self
    }

    /// Sets whether bulk is spliced: it then moves from socket to socket by reference, uncopied.
    /// Defaults to `true`. Linux only, with the feature `splice`; no effect elsewhere.
    ///
    /// See the [crate docs](crate#splicing) for what is spliced, and when to use it.
    pub fn splice(mut self, splice: bool) -> Self {
        self.config.splice = splice;
        self
    }

    /// Sets when a failing backend is ejected, and for how long. Defaults to
    /// [`Ejection::default`]: after three failed dials in a row, for 1 to 30 seconds. With
    /// `failures` 0 no backend is ever ejected.
    pub fn ejection(mut self, ejection: Ejection) -> Self {
        self.pick.ejection = ejection;
        self
    }

    /// Sets whether the first client goes to a random backend. Defaults to `false`: it goes to the
    /// first key.
    ///
    /// For hosts that run on many machines, which would otherwise all start with the same backend.
    pub fn random_first_pick(mut self, random: bool) -> Self {
        self.pick.random_first_pick = random;
        self
    }

    /// Sets the seed of all randomness: the random first pick, and the jitter of ejections.
    /// Defaults to a different number in each run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets the observer, which is told what happens as it happens. Defaults to none.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Checks even what Linux would check: its error would not name the setting, and would count
    /// against a backend.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Config { limits, max_connections, buffer_size, socket_options, .. } = &self.config;
        let is_bad_keepalive = |Keepalive { idle, interval, probes }: Keepalive| {
            [idle, interval].iter().any(|time| !(1..=32_767).contains(&time.as_secs()))
                || !(1..=127).contains(&probes)
        };
        let is_bad_user_timeout =
            |limit: Duration| !(1..=i32::MAX as u128).contains(&limit.as_millis());
        let is_zero = |limit: Duration| limit.is_zero();
        let zero = "must not be zero";
        let rules = [
            ("connect_timeout", limits.connect_timeout.is_zero(), zero),
            ("dial_limit", limits.dial_limit.is_zero(), zero),
            ("idle_timeout", limits.idle_timeout.is_some_and(is_zero), zero),
            ("half_closed_timeout", limits.half_closed_timeout.is_zero(), zero),
            ("max_connections", *max_connections == 0, zero),
            ("buffer_size", *buffer_size == 0, zero),
            ("buffer_size", *buffer_size > 16 << 20, "must be at most 16 MiB"),
            (
                "keepalive",
                socket_options.keepalive.is_some_and(is_bad_keepalive),
                "needs times from 1 to 32,767 seconds and 1 to 127 probes",
            ),
            (
                "user_timeout",
                socket_options.user_timeout.is_some_and(is_bad_user_timeout),
                "must be from 1 millisecond to 24 days",
            ),
            ("notsent_lowat", socket_options.notsent_lowat == Some(0), zero),
            ("ejection", self.pick.ejection.base.is_zero(), "must have a base above zero"),
            (
                "ejection",
                self.pick.ejection.max < self.pick.ejection.base,
                "must have a maximum that is not below its base",
            ),
        ];
        match rules.into_iter().find(|(_, is_broken, _)| *is_broken) {
            Some((setting, _, problem)) => Err(Error::Setting { setting, problem }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("backends", &self.backends)
            .field("policy", &self.pick.policy)
            .field("ejection", &self.pick.ejection)
            .field("random_first_pick", &self.pick.random_first_pick)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_shows_all_that_was_set() {
        let secs = Duration::from_secs;
        let set = BackendSet::from([("key", crate::TcpBackend::new(([127, 0, 0, 1], 80).into()))]);
        let keepalive = Keepalive { idle: secs(101), ..Keepalive::default() };
        let builder = Builder::default()
            .seed(102)
            .backends(set)
            .connect_timeout(secs(103))
            .dial_limit(secs(104))
            .idle_timeout(Some(secs(105)))
            .half_closed_timeout(secs(106))
            .max_connections(107)
            .buffer_size(108)
            .nodelay(false)
            .keepalive(Some(keepalive))
            .user_timeout(Some(secs(109)))
            .policy(Policy::LeastConnections)
            .ejection(Ejection { failures: 110, ..Ejection::default() })
            .notsent_lowat(Some(111))
            .splice(false)
            .random_first_pick(true)
            .observer(None::<Box<dyn Observer>>);
        let shown = format!("{builder:?}");
        for value in (101..=111).map(|number| number.to_string()) {
            assert!(shown.contains(&value), "{value} is not in {shown}");
        }
        for value in [
            "key",
            "127.0.0.1:80",
            "nodelay: false",
            "splice: false",
            "random_first_pick: true",
            "LeastConnections",
        ] {
            assert!(shown.contains(value), "{value} is not in {shown}");
        }
    }

    #[test]
    fn c9_1_limits_may_be_as_large_as_they_are_documented_to_be() {
        let build =
            |builder: Builder| builder.build(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let second = Duration::from_secs(1);
        assert!(build(Builder::default().buffer_size(16 << 20)).is_ok());
        assert!(build(Builder::default().buffer_size((16 << 20) + 1)).is_err());
        let steady = Ejection { base: second, max: second, ..Ejection::default() };
        assert!(build(Builder::default().ejection(steady)).is_ok());
        assert!(
            build(Builder::default().ejection(Ejection { base: 2 * second, ..steady })).is_err()
        );
    }

    #[test]
    fn c6_7_options_that_no_socket_takes_are_refused_when_the_server_is_built() {
        let build =
            |builder: Builder| builder.build(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let keepalive = Keepalive { idle: Duration::from_secs(32_768), ..Keepalive::default() };
        for builder in [
            Builder::default().keepalive(Some(keepalive)),
            Builder::default().keepalive(Some(Keepalive { probes: 128, ..Keepalive::default() })),
            Builder::default().user_timeout(Some(Duration::MAX)),
            Builder::default().notsent_lowat(Some(0)),
        ] {
            assert!(matches!(build(builder), Err(Error::Setting { .. })));
        }
        let longest = Keepalive {
            idle: Duration::from_secs(32_767),
            interval: Duration::from_secs(32_767),
            probes: 127,
        };
        let user_timeout = Duration::from_millis(i32::MAX as u64);
        assert!(
            build(Builder::default().keepalive(Some(longest)).user_timeout(Some(user_timeout)))
                .is_ok()
        );
    }
}
