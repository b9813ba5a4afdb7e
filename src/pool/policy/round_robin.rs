//! Round robin: members in turn, and in proportion to their weights where these differ.
//!
//! With equal weights the next turn is that of the first available member after the cursor. With
//! different ones, a member of weight `w` has a turn at each multiple of `1 / w` of a virtual time,
//! and the earliest turn is next (earliest deadline first). In each whole cycle of that time every
//! member has exactly as many turns as its weight, and a change of the set leaves the turns of the
//! others where they are.
//!
//! That alone would give a heavy member long runs whenever all others have just had their turn. So
//! a run ends once it is as long as the member's share requires. The earliest of the others then
//! has its turn early.

use std::cmp::Ordering;

use super::super::min_tree::MinTree;
use super::super::position_set::PositionSet;
use super::{MemberInfo, Selector};

/// A turn of a member of this weight, at `cycle + part / weight` in virtual time. `part` is from 1
/// to `weight`, so a cycle ends with a turn of each member.
#[derive(Clone, Copy, Debug)]
struct Turn {
    cycle: u64,
    part: u32,
    weight: u32,
}

impl Turn {
    /// The beginning of virtual time.
    const START: Self = Self { cycle: 0, part: 0, weight: 1 };

    /// Returns the first turn of a member of this weight after this time.
    fn after(self, weight: u32) -> Self {
        let part = u64::from(self.part) * u64::from(weight) / u64::from(self.weight) + 1;
        match u32::try_from(part) {
            Ok(part) if part <= weight => Self { cycle: self.cycle, part, weight },
            _ => Self { cycle: self.cycle + 1, part: 1, weight },
        }
    }

    /// Returns the next turn of the same member.
    fn next(self) -> Self {
        self.after(self.weight)
    }

    /// Returns how many turns its member has after `now` until this one, which is included.
    fn turns_since(self, now: Self) -> u64 {
        let weight = u64::from(self.weight);
        let past = u64::from(now.part) * weight / u64::from(now.weight);
        (self.cycle.saturating_sub(now.cycle) * weight + u64::from(self.part)).saturating_sub(past)
    }

    /// Returns the first turn of a member of this weight that is not before this time.
    fn not_before(self, weight: u32) -> Self {
        let part = u64::from(self.part) * u64::from(weight);
        match part % u64::from(self.weight) {
            0 => Self { part: (part / u64::from(self.weight)) as u32, weight, ..self },
            _ => self.after(weight),
        }
    }
}

/// How many turns a member may get ahead by breaking the runs of others. That alone needs up to
/// three.
const AHEAD_BY_RUNS: u64 = 4;

/// How many turns a member may get ahead by standing in for others that fail. Further ones do not
/// count, so that it does not have to wait for as long afterwards.
const AHEAD_BY_FAILOVER: u64 = 8;

pub(super) struct RoundRobin {
    /// The next turn of each member, in the order of the pool. None if it is held.
    turns: Vec<Option<Turn>>,
    /// The turns of the available members, if weights differ.
    queue: Option<MinTree<Turn>>,
    /// The sum of the weights of the available members.
    available_weight: u64,
    /// The last turn that was due. Turns that were taken early do not count.
    now: Turn,
    /// The member picked last, and how often in a row.
    run: Option<(usize, u64)>,
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self { turns: Vec::new(), queue: None, available_weight: 0, now: Turn::START, run: None }
    }
}

impl Selector for RoundRobin {
    fn replace(&mut self, members: Vec<MemberInfo>) {
        let turn = |member: &MemberInfo| {
            let before = member.before.and_then(|position| self.turns[position]);
            (member.weight > 0).then(|| match before {
                Some(turn) if turn.weight == member.weight => {
                    turn.max(self.now.not_before(member.weight))
                }
                _ => self.now.after(member.weight),
            })
        };
        self.turns = members.iter().map(turn).collect();
        self.run = self.run.and_then(|(position, count)| {
            let is_it = |member: &MemberInfo| member.before == Some(position);
            members.iter().position(is_it).map(|position| (position, count))
        });
        let available = || members.iter().filter(|member| member.is_available);
        self.available_weight = available().map(|member| u64::from(member.weight)).sum();
        let mut weights = members.iter().map(|member| member.weight).filter(|weight| *weight > 0);
        let first = weights.next();
        let is_equal = weights.all(|weight| Some(weight) == first);
        self.queue = (!is_equal).then(|| {
            let keys = members.iter().zip(&self.turns);
            MinTree::new(keys.map(|(member, turn)| turn.filter(|_| member.is_available)).collect())
        });
    }

    fn pick(&mut self, available: &PositionSet, from: usize) -> Option<usize> {
        let queue = match &self.queue {
            Some(queue) if self.run.is_some() || self.now > Turn::START => queue,
            // The very first pick is that of the cursor: the first key, or a random one.
            Some(_) => {
                let first = available.next_from(from)?;
                self.take_early(first);
                return Some(first);
            }
            None => {
                let next = available.next_from(from)?;
                self.take_turn(next);
                return Some(next);
            }
        };
        let count = self.turns.len();
        let first = queue.min_from(from, count)?;
        if self.ends_run(first) {
            // The member whose run ends was served last, so it is the last one from the cursor on.
            let other = queue.min_from(from, count - 1);
            if let Some(other) = other.filter(|other| self.turns_ahead(*other) <= AHEAD_BY_RUNS) {
                self.take_early(other);
                return Some(other);
            }
        }
        self.take_turn(first);
        Some(first)
    }

    fn picked_otherwise(&mut self, position: usize) {
        if self.queue.is_none() {
            self.take_turn(position);
        } else if self.turns_ahead(position) <= AHEAD_BY_FAILOVER {
            self.take_early(position);
        } else {
            self.count_run(position);
        }
    }

    fn set_available(&mut self, position: usize, is_available: bool) {
        let Some(turn) = &mut self.turns[position] else { return };
        if is_available {
            // It does not make up for what it missed, or pay for having been the last resort.
            let first = self.now.after(turn.weight);
            *turn = (*turn).clamp(first, first.next());
            self.available_weight += u64::from(turn.weight);
        } else {
            self.available_weight -= u64::from(turn.weight);
        }
        if let Some(queue) = &mut self.queue {
            queue.set(position, is_available.then_some(*turn));
        }
    }
}

impl RoundRobin {
    /// Returns whether a member has been picked so often in a row that others come first.
    fn ends_run(&self, position: usize) -> bool {
        let Some((last, count)) = self.run else { return false };
        let weight = self.turns[position].map_or(0, |turn| u64::from(turn.weight));
        let others = self.available_weight.saturating_sub(weight);
        position == last && others > 0 && count >= weight.div_ceil(others)
    }

    /// Returns how many turns early the next turn of a member would be.
    fn turns_ahead(&self, position: usize) -> u64 {
        self.turns[position].map_or(0, |turn| turn.turns_since(self.now))
    }

    /// Gives a member its turn, which is due.
    fn take_turn(&mut self, position: usize) {
        if let Some(turn) = self.turns[position] {
            self.now = self.now.max(turn);
        }
        self.take_early(position);
    }

    /// Gives a member its next turn, due or not.
    fn take_early(&mut self, position: usize) {
        self.count_run(position);
        let Some(turn) = &mut self.turns[position] else { return };
        *turn = turn.next();
        if let Some(queue) = self.queue.as_mut().filter(|queue| queue.contains(position)) {
            queue.set(position, Some(*turn));
        }
    }

    fn count_run(&mut self, position: usize) {
        let earlier = self.run.filter(|(last, _)| *last == position).map_or(0, |(_, count)| count);
        self.run = Some((position, earlier + 1));
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let product = |part: u32, weight: u32| u64::from(part) * u64::from(weight);
        let parts = || product(self.part, other.weight).cmp(&product(other.part, self.weight));
        self.cycle.cmp(&other.cycle).then_with(parts)
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Turn {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_is_not_before_a_time_is_at_that_time_if_the_weight_has_one_then() {
        let half = Turn { cycle: 2, part: 2, weight: 4 };
        let turn = |weight| {
            let Turn { cycle, part, weight } = half.not_before(weight);
            (cycle, part, weight)
        };
        assert_eq!([turn(2), turn(3)], [(2, 1, 2), (2, 2, 3)]);
    }
}
