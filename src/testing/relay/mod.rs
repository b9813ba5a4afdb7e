//! Schedules of all that can happen to a connected pair, played against its relay, with a model
//! that says what must hold.
//!
//! A schedule is made of bytes: random ones in the unit test, those that a fuzzer thinks of in
//! `tests/fuzz/`. The [`wires`] judge every call by itself; here is judged what comes of them: that
//! nothing is forgotten that could go on, that the pair is over when and only when it has to be,
//! for the right reason, and that nothing was lost.

mod wires;

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::wires::{BACKEND, CLIENT, Kind, PREFACE, Socket, Wire, Wires, lock};
use crate::end_reason::EndReason;
use crate::net::Readiness;
#[cfg(test)]
use crate::random::Random;
use crate::relay::{Duplex, PipeEnds, PipeSystem, Pipes, Progress, Side};
use crate::testing::pipes::SimulatedPipe;

/// How many it takes at most until a pair whose peers do all they can is over.
const MOST_DRIVES: u32 = 100_000;

/// Plays the schedule that these bytes stand for, and panics if anything is not as it must be.
pub(crate) fn play(bytes: &[u8]) {
    Schedule::decode(bytes).play();
}

#[derive(Debug)]
struct Schedule {
    kinds: [Kind; 2],
    rooms: [u64; 2],
    preface: u64,
    scratch: usize,
    /// How many bytes a pipe takes, and how many pipes there are.
    pipes: (usize, usize),
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Something happens to one of the wires.
    Wire(usize, Happening),
    /// The relay is told what is due there, and something that means nothing.
    Event(usize, u8),
    /// From now on there are so many pipes.
    Pipes(u8),
    /// Time passes.
    Pass(Duration),
    /// The relay does what it can, but moves no more than about so many bytes each way.
    Drive(usize),
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Send(u64),
    SendMark,
    Finish,
    Die(ErrorKind, bool),
    MakeRoom(u64),
    Interrupt(u8),
    HiccupReading(u8),
    HiccupWriting(u8),
    MoveAtMost(u64),
    BecomeMute,
    TakeNothing,
}

/// Takes a byte at a time, and zeros when there are no more.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    /// A count, small or large.
    fn count(&mut self) -> u64 {
        match self.next() {
            byte @ ..224 => byte.into(),
            byte => u64::from(byte - 223) * 2039,
        }
    }
}

impl Schedule {
    fn decode(bytes: &[u8]) -> Self {
        let mut bytes = Bytes(bytes.iter());
        let kind = |flags: u8| Kind {
            drained_by_short_reads: flags & 0b101 == 1, // a bell does not tell what it takes
            drop_closes: flags & 0b10 != 0,
            is_bell: flags & 0b1_0100 == 0b100,
            holds_back: flags & 0b1_1000 == 0b1000,
            splices: flags & 0b1_0000 != 0, // so it is a plain socket
        };
        let flags = [(); 2].map(|()| bytes.next());
        let kinds = flags.map(kind);
        let pipes = (1 << (flags[0] >> 5 << 1), usize::from(flags[1] >> 6));
        let rooms = [(); 2].map(|()| bytes.count());
        let preface = bytes.count() / 8;
        let scratch = 32 << (bytes.next() % 12);
        let mut steps = Vec::new();
        while !bytes.0.as_slice().is_empty() {
            steps.push(Step::decode(&mut bytes));
        }
        Self { kinds, rooms, preface, scratch, pipes, steps }
    }

    fn play(&self) {
        let told_if_it_fails = TellIfItFails(self);
        let mut game = Game::new(self);
        for step in &self.steps {
            match *step {
                Step::Wire(end, happening) => game.happen(end, happening),
                Step::Event(end, spurious) => game.tell(end, readiness(spurious)),
                Step::Pipes(count) => game.pipes_left.store(count.into(), Relaxed),
                Step::Pass(time) => game.now += time,
                Step::Drive(budget) => game.drive(budget),
            }
            if game.is_over {
                return;
            }
        }
        game.play_to_the_end();
        drop(told_if_it_fails);
    }
}

impl Step {
    fn decode(bytes: &mut Bytes<'_>) -> Self {
        let choice = bytes.next();
        let end = usize::from(choice >> 7);
        let happening = match choice & 0x1f {
            0..=3 => Happening::Send(bytes.count()),
            4 => Happening::SendMark,
            5 => Happening::Finish,
            6 => {
                let error = bytes.next();
                let kinds = [
                    ErrorKind::ConnectionReset,
                    ErrorKind::TimedOut,
                    ErrorKind::BrokenPipe,
                    ErrorKind::Other,
                ];
                Happening::Die(kinds[usize::from(error & 3)], error & 4 == 0)
            }
            7..=9 => Happening::MakeRoom(bytes.count()),
            10 => Happening::Interrupt(1 + bytes.next() % 4),
            11 => Happening::HiccupReading(1 + bytes.next() % 2),
            12 => Happening::HiccupWriting(1 + bytes.next() % 4),
            13 => Happening::MoveAtMost(1 + bytes.count()),
            14 => match bytes.next() {
                0 => Happening::BecomeMute,
                1 => Happening::TakeNothing,
                byte @ 2..6 => return Self::Pipes(byte - 2),
                6..20 => return Self::Pass(Duration::from_millis(1100)),
                _ => Happening::Send(1),
            },
            15 => return Self::Event(end, bytes.next()),
            16..=20 => return Self::Event(end, 0),
            _ => return Self::Drive(1 + bytes.count() as usize),
        };
        Self::Wire(end, happening)
    }
}

fn readiness(flags: u8) -> Readiness {
    Readiness {
        readable: flags & 1 != 0,
        writable: flags & 2 != 0,
        read_closed: flags & 4 != 0,
        write_closed: flags & 8 != 0,
        error: flags & 16 != 0,
        priority: flags & 32 != 0,
    }
}

/// A fuzzer keeps the bytes; a reader of a failure wants to know what they stand for.
struct TellIfItFails<'a>(&'a Schedule);

impl Drop for TellIfItFails<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Schedule { steps, .. } = self.0;
            eprintln!("{:?}", Schedule { steps: Vec::new(), ..*self.0 });
            steps.iter().for_each(|step| eprintln!("    {step:?}"));
        }
    }
}

/// So many pipes more can be made.
struct FewPipes {
    capacity: usize,
    left: Arc<AtomicUsize>,
}

impl PipeSystem for FewPipes {
    fn is_safe(&self) -> bool {
        true
    }

    fn open(&self) -> Option<Box<dyn PipeEnds>> {
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Relaxed, Relaxed, one_less).ok()?;
        Some(Box::new(SimulatedPipe::new(self.capacity)))
    }

    fn is_for_all(&self) -> bool {
        true // schedules are too short for reads to grow
    }
}

/// A pair with its wires, while a schedule is played.
struct Game {
    wires: Arc<Mutex<Wires>>,
    duplex: Duplex,
    scratch: Vec<u8>,
    pipes: Pipes,
    pipes_left: Arc<AtomicUsize>,
    pipe_capacity: usize,
    now: Instant,
    is_over: bool,
}

impl Game {
    fn new(schedule: &Schedule) -> Self {
        let [client, backend] =
            [CLIENT, BACKEND].map(|end| Wire::new(schedule.kinds[end], schedule.rooms[end]));
        let wires =
            Arc::new(Mutex::new(Wires { ends: [client, backend], preface: schedule.preface }));
        let side = |end| Side::new(Box::new(Socket::new(wires.clone(), end)));
        let now = Instant::now();
        let (capacity, left) = (schedule.pipes.0, Arc::new(AtomicUsize::new(schedule.pipes.1)));
        let preface = PREFACE[..schedule.preface as usize].to_vec();
        Self {
            duplex: Duplex::new(side(CLIENT), side(BACKEND), preface, now),
            wires,
            scratch: vec![0; schedule.scratch],
            pipes: Pipes::new(Some(Box::new(FewPipes { capacity, left: left.clone() }))),
            pipes_left: left,
            pipe_capacity: capacity,
            now,
            is_over: false,
        }
    }

    fn happen(&mut self, end: usize, happening: Happening) {
        let wire = &mut lock(&self.wires).ends[end];
        match happening {
            Happening::Send(count) => wire.send(count),
            Happening::SendMark => wire.send_mark(),
            Happening::Finish => wire.finish(),
            Happening::Die(error, says_so) => wire.die(error, says_so),
            Happening::MakeRoom(count) => wire.make_room(count),
            Happening::Interrupt(calls) => wire.interruptions = calls,
            Happening::HiccupReading(calls) => wire.read_hiccups = calls,
            Happening::HiccupWriting(calls) => wire.write_hiccups = calls,
            Happening::MoveAtMost(count) => wire.move_at_most(count),
            Happening::BecomeMute => wire.is_mute = true,
            Happening::TakeNothing => wire.takes_nothing = true,
        }
    }

    fn tell(&mut self, end: usize, spurious: Readiness) {
        let event = lock(&self.wires).ends[end].event(spurious);
        let duplex = &mut self.duplex;
        let side = if end == CLIENT { duplex.client_mut() } else { duplex.backend_mut() };
        side.set_ready(event);
        let wire = &lock(&self.wires).ends[end];
        assert!(
            wire.has_told || !event.error || !wire.is_dead,
            "C6.4: not asked for its error: {wire:?}"
        );
    }

    fn drive(&mut self, budget: usize) {
        self.now += Duration::from_millis(1);
        let read_before = {
            let wires = &mut lock(&self.wires);
            wires.ends.each_mut().map(|wire| {
                wire.begin_drive();
                wire.read
            })
        };
        let progress = self.duplex.drive(&mut self.scratch, &mut self.pipes, budget, self.now);
        let wires = &lock(&self.wires);
        let read = [CLIENT, BACKEND].map(|end| wires.ends[end].read - read_before[end]);
        let [client, backend] = &wires.ends;
        assert_eq!(
            (self.duplex.bytes_up, self.duplex.bytes_down),
            (backend.written, client.written)
        );
        if !client.has_told && !backend.has_told {
            // The last of a stream is read ahead.
            let largest = self.scratch.len().max(self.pipe_capacity) + self.scratch.len();
            let most = (budget + largest) as u64;
            assert!(
                read.iter().all(|read| *read < most),
                "C6.6: {read:?} bytes, {budget} allowed: {wires:?}"
            );
        }
        match progress {
            Progress::Waiting => wires.assert_all_is_waiting(),
            Progress::Unfinished => {
                assert!(read.iter().any(|read| *read > 0), "nothing was done: {wires:?}")
            }
            Progress::Over(reason) => {
                wires.assert_is_over(reason);
                self.is_over = true;
            }
        }
    }

    /// Lets both peers finish and take everything, by which the pair comes to an end.
    fn play_to_the_end(&mut self) {
        for end in [CLIENT, BACKEND] {
            self.happen(end, Happening::Finish);
            self.happen(end, Happening::MakeRoom(u64::MAX));
        }
        for _ in 0..MOST_DRIVES {
            if self.is_over {
                return;
            }
            for end in [CLIENT, BACKEND] {
                self.tell(end, Readiness::default());
            }
            self.drive(64 * 1024);
        }
        panic!("C6.1: it does not come to an end: {:?}", lock(&self.wires));
    }
}

impl Wires {
    /// The relay has left nothing that it could do: whatever is to be done yet, an event will tell
    /// when.
    fn assert_all_is_waiting(&self) {
        assert!(self.ends.iter().any(|wire| !wire.is_shut), "not over after both ends: {self:?}");
        for end in [CLIENT, BACKEND] {
            let (source, sink) = (&self.ends[1 - end], &self.ends[end]);
            if source.has_told || sink.has_told {
                // Only what had ended before the error is still delivered.
                let is_delivering = source.has_told && source.end_was_read && sink.write_is_blocked;
                let is_other_way = sink.has_told && sink.end_was_read && source.write_is_blocked;
                let is_one_way = is_delivering != is_other_way && source.has_told != sink.has_told;
                assert!(is_one_way, "C6.4: not over after an error: {self:?}");
                continue;
            }
            let may_read = !self.has_undelivered_bytes_to(end) && !source.end_was_read;
            let is_waiting = sink.write_is_blocked || may_read && source.will_tell_what_to_read();
            assert!(is_waiting || sink.is_shut, "C6.1: end {end} is forgotten: {self:?}");
        }
    }

    fn assert_is_over(&self, reason: EndReason) {
        let [client, backend] = &self.ends;
        let right = match (client.has_told, backend.has_told) {
            (true, _) => EndReason::ClientFailed,
            (_, true) => EndReason::BackendFailed,
            (false, false) => EndReason::Finished,
        };
        assert_eq!(reason, right, "{self:?}");
        match reason {
            EndReason::Finished => self.assert_is_complete(),
            _ => self.assert_last_words_were_passed_on(),
        }
    }

    /// All that was sent has been delivered, and the ends of both streams, one of them perhaps by
    /// the closing that follows.
    fn assert_is_complete(&self) {
        for end in [CLIENT, BACKEND] {
            let (source, sink) = (&self.ends[1 - end], &self.ends[end]);
            assert!(
                source.end_was_read && source.read == source.sent,
                "C6.1: not all was read: {self:?}"
            );
            assert!(!self.has_undelivered_bytes_to(end), "C6.1: not all was delivered: {self:?}");
            assert!(sink.is_shut || sink.kind.drop_closes, "C6.2: no end for {end}: {self:?}");
        }
        assert!(
            self.ends.iter().any(|wire| wire.is_shut),
            "C6.2: neither has got an end: {self:?}"
        );
    }

    /// What a failed side had sent went on as far as the other side took it without blocking.
    fn assert_last_words_were_passed_on(&self) {
        for end in [CLIENT, BACKEND] {
            let (source, sink) = (&self.ends[1 - end], &self.ends[end]);
            let is_heard =
                source.read == source.sent || source.read_is_cut_short || source.due.priority;
            assert!(
                is_heard || !source.has_told || sink.has_told || sink.write_is_blocked,
                "C3.10: words are lost: {self:?}"
            );
            if source.has_told && source.end_was_read && !sink.has_told {
                let is_ended = sink.is_shut || (sink.kind.drop_closes && sink.end_was_read);
                let is_complete = is_ended && !self.has_undelivered_bytes_to(end);
                assert!(is_complete, "C6.4: an end that was read before the error: {self:?}");
            }
        }
    }

    fn has_undelivered_bytes_to(&self, end: usize) -> bool {
        self.ends[end].held > 0 || self.ends[end].written < self.owed_to(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_bytes(seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let len = random.next() % 500;
        (0..len).map(|_| random.next() as u8).collect()
    }

    #[test]
    fn c6_1_all_is_delivered_or_the_pair_is_aborted_whatever_happens() {
        for seed in 0..20_000 {
            play(&random_bytes(seed));
        }
    }
}
