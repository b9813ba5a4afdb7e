//! A switch played by a thread: it carries frames between hosts as a wire would that may be cut, slow or bad.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto,
    setsockopt, socket,
};

use crate::frame::{self, Destination, Mac};

/// How soon a switch notices that it is to stop.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// How many frames are taken before those that are due go out.
const FRAMES_AT_ONCE: usize = 64;
/// What waits for a thread that the machine gives no time is not lost before this.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// `PACKET_OUTGOING`: a packet socket sees its own frames too.
const OUTGOING: u8 = 4;

/// How a wire treats the frames on it.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// Each frame takes as long as the dice say, so that those behind may overtake it.
    pub(crate) delay: Range<Duration>,
    /// How many of a thousand frames are lost.
    pub(crate) lost_per_mille: u64,
    /// What the dice are made from. It repeats the dice, not the moments at which frames come.
    pub(crate) seed: u64,
}

impl Weather {
    /// Frames go on as they come.
    pub(crate) fn fair() -> Self {
        Self { delay: Duration::ZERO..Duration::ZERO, lost_per_mille: 0, seed: 0 }
    }
}

/// Where a host is plugged in.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) mac: Mac,
    /// The switch's end of the cable.
    pub(crate) interface: String,
    pub(crate) is_cut: Arc<AtomicBool>,
}

/// What became of the frames.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Delivered.
    pub(crate) carried: AtomicU64,
    /// Delivered after one that had been sent later.
    pub(crate) overtaken: AtomicU64,
    /// Lost by bad weather.
    pub(crate) lost: AtomicU64,
    /// Sent from or to a host that is cut off.
    pub(crate) swallowed: AtomicU64,
}

/// Carries frames until it is dropped.
#[derive(Debug)]
pub(crate) struct Switch {
    pub(crate) tally: Arc<Tally>,
    /// In milliseconds: hosts are cut off from each other for as long.
    longest_pause: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// To be called in the namespace that has the ports' interfaces.
    pub(crate) fn start(ports: Vec<Port>, weather: Weather) -> io::Result<Self> {
        let (tally, longest_pause, is_over) =
            (Arc::<Tally>::default(), Arc::default(), Arc::<AtomicBool>::default());
        let mut carrier = Carrier::new(ports, weather, tally.clone())?;
        let thread = std::thread::spawn({
            let (longest_pause, is_over) =
                (Arc::<AtomicU64>::clone(&longest_pause), is_over.clone());
            move || {
                ask_for_priority();
                while !is_over.load(SeqCst) {
                    let start = Instant::now();
                    carrier.carry();
                    longest_pause.fetch_max(start.elapsed().as_millis() as u64, SeqCst);
                }
            }
        });
        Ok(Self { tally, longest_pause, is_over, thread: Some(thread) })
    }
}

/// Has this thread run before others, for a switch does not wait until the machine is less busy: while it did, every host
/// would have vanished. Where that is not allowed, tests do as well as the machine is idle.
fn ask_for_priority() {
    let thread = nix::unistd::gettid().to_string();
    let _ = Command::new("chrt")
        .args(["--fifo", "--pid", "10", &thread])
        .stderr(Stdio::null())
        .status();
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        let outcome = self.thread.take().map(JoinHandle::join);
        if std::thread::panicking() {
            eprintln!(
                "the switch paused for {} ms at most: {:?}",
                self.longest_pause.load(SeqCst),
                self.tally
            );
        } else {
            assert!(!matches!(outcome, Some(Err(_))), "the switch broke down");
        }
    }
}

struct Carrier {
    /// Sees the frames of all ports.
    socket: OwnedFd,
    ports: Vec<(Port, LinkAddr)>,
    weather: Weather,
    dice: Dice,
    tally: Arc<Tally>,
    /// By the moment at which each is due, and its place in the order of sending.
    on_the_way: BTreeMap<(Instant, u64), Frame>,
    taken: u64,
    /// For each port the place of the frame sent last among those delivered.
    delivered: Vec<u64>,
}

struct Frame {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Carrier {
    fn new(ports: Vec<Port>, weather: Weather, tally: Arc<Tally>) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
        let addrs: BTreeMap<String, LinkAddr> = getifaddrs()?
            .filter_map(|interface| {
                Some((interface.interface_name, *interface.address?.as_link_addr()?))
            })
            .collect();
        let delivered = vec![0; ports.len()];
        let ports = ports.into_iter().map(|port| {
            let addr = addrs.get(&port.interface).copied();
            addr.map(|addr| (port, addr)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        });
        let dice = Dice(weather.seed);
        Ok(Self {
            socket,
            ports: ports.collect::<io::Result<_>>()?,
            weather,
            dice,
            tally,
            on_the_way: BTreeMap::new(),
            taken: 0,
            delivered,
        })
    }

    /// Waits for the next thing to do, and does it.
    fn carry(&mut self) {
        let next = self
            .on_the_way
            .first_key_value()
            .map(|(&(due, _), _)| due.saturating_duration_since(Instant::now()));
        let wait = next.map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT));
        let wait =
            PollTimeout::try_from(wait.as_micros().div_ceil(1000) as u32).expect("waits are short");
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => panic!("cannot wait for frames: {err}"),
        }
        for _ in 0..FRAMES_AT_ONCE {
            let Some((bytes, from)) = self.receive() else { break };
            self.take(bytes, from);
        }
        self.deliver(Instant::now());
    }

    /// The next frame that a host has sent, if there is one, and its port.
    fn receive(&mut self) -> Option<(Box<[u8]>, usize)> {
        let mut room = [0; 2048];
        loop {
            let (len, addr) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut room) {
                Ok((len, addr)) => (len, addr?),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return None,
                Err(err) => panic!("cannot receive a frame: {err}"),
            };
            let port = self.ports.iter().position(|(_, port)| port.ifindex() == addr.ifindex());
            if let Some(port) = port.filter(|_| addr.pkttype() != OUTGOING) {
                assert!(len < room.len(), "a frame that no wire could carry");
                return Some((room[..len].into(), port));
            }
        }
    }

    /// Sends a frame on its way to whom it is for, or loses it.
    fn take(&mut self, mut bytes: Box<[u8]>, from: usize) {
        let Some(destination) = frame::destination(&bytes) else { return };
        frame::finish_checksum(&mut bytes);
        let is_meant = |port: &Port| match destination {
            Destination::One(mac) => port.mac == mac,
            Destination::All => true,
        };
        let receivers: Vec<usize> =
            (0..self.ports.len()).filter(|&to| to != from && is_meant(&self.ports[to].0)).collect();
        for to in receivers {
            if self.dice.below(1000) < self.weather.lost_per_mille {
                self.tally.lost.fetch_add(1, SeqCst);
                continue;
            }
            self.taken += 1;
            let due = Instant::now() + self.delay();
            self.on_the_way.insert((due, self.taken), Frame { bytes: bytes.clone(), from, to });
        }
    }

    fn delay(&mut self) -> Duration {
        let Range { start, end } = self.weather.delay;
        start + Duration::from_nanos(self.dice.below(end.saturating_sub(start).as_nanos() as u64))
    }

    fn deliver(&mut self, now: Instant) {
        while let Some(first) = self.on_the_way.first_entry().filter(|first| first.key().0 <= now) {
            let place = first.key().1;
            let Frame { bytes, from, to } = first.remove();
            if [from, to].iter().any(|&port| self.ports[port].0.is_cut.load(SeqCst)) {
                self.tally.swallowed.fetch_add(1, SeqCst);
                continue;
            }
            if self.delivered[to] > place {
                self.tally.overtaken.fetch_add(1, SeqCst);
            }
            self.delivered[to] = self.delivered[to].max(place);
            match sendto(self.socket.as_raw_fd(), &bytes, &self.ports[to].1, MsgFlags::empty()) {
                // A port that takes no more loses a frame, as ports do.
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    self.tally.carried.fetch_add(1, SeqCst)
                }
                Err(err) => panic!("cannot send a frame of {} bytes: {err}", bytes.len()),
            };
        }
    }
}

/// A sequence of numbers that its seed determines (SplitMix64).
struct Dice(u64);

impl Dice {
    /// From 0 to below the limit; 0 if that is 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).checked_rem(limit).unwrap_or(0)
    }
}
