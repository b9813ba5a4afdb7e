//! What a schedule is made of, and drawing one by dice.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::pool::Policy;
use crate::random::Random;

pub(crate) const KEYS: [&str; 4] = ["k0", "k1", "k2", "k3"];
pub(crate) const TARGETS: [&str; 4] = ["t0", "t1", "t2", "t3"];
/// The most that a peer sends at once.
pub(crate) const LARGEST: usize = 3 << 19;

/// What a set names: a target for each key.
pub(crate) type Names = BTreeMap<&'static str, &'static str>;
/// The weights of its keys.
pub(crate) type Weights = BTreeMap<&'static str, u32>;

/// A life of the balancer, from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) setting: Setting,
    pub(crate) steps: Vec<Step>,
}

/// In what surroundings a schedule is played. Each has some faults and lacks others, since they may
/// hide one another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) max_connections: usize,
    pub(crate) buffer_size: usize,
    /// After how many failed dials a backend is ejected; 0 for never.
    pub(crate) ejecting_failures: u32,
    pub(crate) policy: Policy,
    /// Whether calls are interrupted by signals.
    pub(crate) interrupts: bool,
    /// Whether any call may fail.
    pub(crate) failures: bool,
    /// Whether reads and writes are mostly of a few bytes.
    pub(crate) trickles: bool,
    /// Whether backends call in while they are asked to dial.
    pub(crate) calls_in: bool,
    /// How many events a poll returns at most.
    pub(crate) batch: usize,
    /// Whether time jumps after events were read, as if the process had been stopped.
    pub(crate) jumps: bool,
    /// Whether backends are busy at times.
    pub(crate) busy: bool,
    /// Whether many clients come at once, and many peers do the same at once.
    pub(crate) bursts: bool,
    /// Whether some peers read slowly and steadily from a kernel that holds bytes for them.
    pub(crate) steady: bool,
}

/// What comes next, with what decides all that it leaves open: so a step does the same when another
/// is left out.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) seed: u64,
    pub(crate) action: Action,
}

/// Something that happens, of which the balancer may learn at once or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// So many clients connect.
    Arrive(usize),
    /// The host gives these updates before the balancer wakes.
    Update(Vec<Change>),
    /// Time goes by; the balancer is always this much late.
    Pass {
        time: Duration,
        late: Duration,
    },
    /// So many of the next calls that need a descriptor find none.
    RunShort(usize),
    /// A peer of one of the balancer's sockets does something.
    Happen {
        peer: usize,
        what: Happening,
    },
    /// All peers do the same at once, but for one in so many, which sends a message.
    HappenToAll {
        spared: u64,
        what: Happening,
    },
    /// The host wants it to end within a limit, or at once.
    Drain(Duration),
    Shutdown,
    /// The balancer makes a turn, of some of the events that there are.
    Turn,
    /// The balancer makes so many turns, while more events come than a batch has room for.
    Storm(usize),
    /// The balancer makes turns until it rests.
    Settle,
}

/// An update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) names: Names,
    pub(crate) weights: Weights,
    /// Whether it drains what it does not name, and for how long.
    pub(crate) limit: Option<Duration>,
}

impl Change {
    /// Whether it has the pairs of a target closed.
    pub(crate) fn closes(&self, target: &str) -> bool {
        self.limit.is_none() && !self.is_naming(target)
    }

    pub(crate) fn is_naming(&self, target: &str) -> bool {
        self.names.values().any(|named| *named == target)
    }

    /// Whether a key that is not held names a target.
    pub(crate) fn is_open(&self, target: &str) -> bool {
        not_held(&self.names, &self.weights).any(|(_, named)| named == target)
    }
}

/// The keys that may be given clients, with their targets.
pub(crate) fn not_held<'a>(
    names: &'a Names,
    weights: &'a Weights,
) -> impl Iterator<Item = (&'static str, &'static str)> + 'a {
    names.iter().map(|(key, target)| (*key, *target)).filter(|(key, _)| weights[key] > 0)
}

/// What a peer does. A backend that has not answered yet is refused by a reset, and connected by
/// all but `Alarm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Send(usize),
    /// Sends a byte out of band, at which reads stop short.
    SendUrgently,
    /// Finishes sending.
    End,
    /// Resets the connection.
    Reset,
    /// Closes it both ways, without a reset.
    Leave,
    StopReading,
    /// Goes on reading, so many bytes at least.
    Read(usize),
    /// Has the next flush, or end of the write side, wait.
    Hesitate,
    /// Nothing, but an event says that there is something; an error, even.
    Alarm {
        error: bool,
    },
}

/// Where decisions come from.
pub(crate) trait Dice {
    fn next(&mut self) -> u64;

    /// From 0 to `sides`, exclusive.
    fn throw(&mut self, sides: u64) -> u64 {
        self.next() % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.throw(sides) == 0
    }

    /// Mostly few, at times many.
    fn some_bytes(&mut self) -> usize {
        match self.throw(80) {
            0 => self.throw(LARGEST as u64) as usize + 1,
            1..12 => self.throw(40_000) as usize + 1,
            _ => self.throw(300) as usize + 1,
        }
    }
}

impl Dice for Random {
    fn next(&mut self) -> u64 {
        self.next()
    }
}

/// Bytes as dice, for a fuzzer to choose. When they are used up, all throws are zero.
pub(crate) struct Tape<'a>(pub(crate) &'a [u8]);

impl Dice for Tape<'_> {
    fn next(&mut self) -> u64 {
        let (throw, rest) = self.0.split_at(self.0.len().min(3));
        self.0 = rest;
        throw.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl Schedule {
    /// The schedule that bytes stand for.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut tape = Tape(bytes);
        let setting = Setting::draw(&mut tape);
        let steps =
            std::iter::from_fn(|| (!tape.0.is_empty()).then(|| Step::draw(&mut tape, &setting)));
        Self { setting, steps: steps.collect() }
    }

    /// The schedule of a seed.
    #[cfg(test)]
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = Random::new(seed);
        let setting = Setting::draw(&mut dice);
        let count = 30 + Dice::throw(&mut dice, 200);
        let steps = (0..count).map(|_| Step::draw(&mut dice, &setting)).collect();
        Self { setting, steps }
    }

    /// The schedule of a seed in which clients come, and do things, by the thousand.
    #[cfg(test)]
    pub(crate) fn of_bursts(seed: u64) -> Self {
        let mut dice = Random::new(seed);
        let drawn = Setting::draw(&mut dice);
        let (max_connections, batch) = (3000, 1024);
        let setting = Setting { bursts: true, max_connections, batch, trickles: false, ..drawn };
        let steps = (0..40).map(|_| Step::draw(&mut dice, &setting)).collect();
        Self { setting, steps }
    }
}

impl Setting {
    /// The most that is sent at once. Many tiny reads and writes would take too long.
    pub(crate) fn most(&self) -> usize {
        if self.trickles { 4000 } else { LARGEST.min(self.buffer_size * 2000) }
    }

    pub(crate) fn draw(dice: &mut impl Dice) -> Self {
        Self {
            max_connections: if dice.one_in(4) { 3 } else { 10 },
            bursts: false,
            buffer_size: [1, 1000, 64 * 1024, 64 * 1024][dice.throw(4) as usize],
            ejecting_failures: [0, 1, 3, 3][dice.throw(4) as usize],
            policy: [Policy::RoundRobin, Policy::LeastConnections][dice.throw(2) as usize],
            interrupts: dice.one_in(4),
            failures: dice.one_in(3),
            trickles: dice.one_in(6),
            calls_in: dice.one_in(8),
            batch: [1, 2, 5, 1024, 1024, 1024][dice.throw(6) as usize],
            jumps: dice.one_in(4),
            steady: dice.one_in(4),
            busy: dice.one_in(5),
        }
    }
}

impl Step {
    fn draw(dice: &mut impl Dice, setting: &Setting) -> Self {
        Self { seed: dice.next(), action: Action::draw(dice, setting) }
    }
}

impl Action {
    pub(crate) fn draw(dice: &mut impl Dice, setting: &Setting) -> Self {
        let millis = Duration::from_millis;
        let throw = dice.throw(120);
        if setting.bursts && throw < 60 {
            return Self::draw_burst(dice);
        }
        match throw {
            0..12 => Self::Arrive(if dice.one_in(8) { 1 + dice.throw(12) as usize } else { 1 }),
            12..20 => Self::Update((0..=dice.throw(3)).map(|_| Change::draw(dice)).collect()),
            20..24 => {
                let longest = if dice.one_in(3) { 60_000 } else { 4_000 };
                Self::Pass {
                    time: millis(dice.throw(longest)),
                    late: millis(dice.throw(2) * dice.throw(50)),
                }
            }
            24..26 => Self::RunShort(1 + dice.throw(3) as usize),
            26 if dice.one_in(2) => Self::Drain(Duration::from_secs(dice.throw(30))),
            26 if dice.one_in(4) => Self::Shutdown,
            27..30 => Self::Storm(10 + dice.throw(100) as usize),
            30..52 => Self::Turn,
            52..75 => Self::Settle,
            _ => Self::Happen { peer: dice.throw(64) as usize, what: Happening::draw(dice) },
        }
    }

    fn draw_burst(dice: &mut impl Dice) -> Self {
        let secs = Duration::from_secs;
        match dice.throw(12) {
            0..3 => Self::Arrive(1000 + dice.throw(500) as usize),
            3..5 => Self::Update((0..=dice.throw(2)).map(|_| Change::draw(dice)).collect()),
            5 => Self::RunShort(dice.throw(1000) as usize),
            6 => Self::Pass { time: secs(dice.throw(40)), late: secs(0) },
            7 => Self::Settle,
            _ => {
                let what = match dice.throw(6) {
                    0 => Happening::Send(1 + dice.throw(100) as usize),
                    1 => Happening::Alarm { error: false },
                    2 => Happening::End,
                    3 => Happening::Reset,
                    4 => Happening::Leave,
                    _ => Happening::Hesitate,
                };
                Self::HappenToAll { spared: 20 + dice.throw(500), what }
            }
        }
    }
}

impl Change {
    pub(crate) fn draw(dice: &mut impl Dice) -> Self {
        let (mut names, mut weights) = (Names::new(), Weights::new());
        let is_weighted = dice.one_in(2);
        for key in KEYS {
            if !dice.one_in(3) {
                names.insert(key, TARGETS[dice.throw(4) as usize]);
                weights.insert(key, if is_weighted { dice.throw(5) as u32 } else { 1 });
            }
        }
        Self {
            names,
            weights,
            limit: dice.one_in(2).then(|| Duration::from_secs(1 + dice.throw(20))),
        }
    }
}

impl Happening {
    /// What it is called when a thousand peers do it at once.
    pub(crate) fn burst(&self) -> &'static str {
        match self {
            Self::Send(_) | Self::SendUrgently => "bursts of messages",
            Self::End => "bursts of ends",
            Self::Reset => "bursts of resets",
            Self::Leave => "bursts of closes",
            Self::Alarm { .. } => "bursts of events about nothing",
            Self::StopReading | Self::Read(_) | Self::Hesitate => "bursts of slow readers",
        }
    }

    fn draw(dice: &mut impl Dice) -> Self {
        match dice.throw(40) {
            0..14 => Self::Send(dice.some_bytes()),
            14..16 => Self::SendUrgently,
            16..22 => Self::End,
            22 => Self::Reset,
            23 => Self::Leave,
            24..26 => Self::StopReading,
            26..36 => Self::Read(dice.some_bytes()),
            36..38 => Self::Hesitate,
            _ => Self::Alarm { error: dice.one_in(2) },
        }
    }
}
