//! A set of positions in which the next one is found quickly.

const WORD_BITS: usize = u64::BITS as usize;

/// A set of numbers below a fixed length, as a tree of bits.
///
/// `words[0]` has a bit for each position, each further level a bit for each word below it that is
/// not zero. So a lookup takes three steps for 10,000 positions, and the set 1.3 kB.
#[derive(Clone, Debug, Default)]
pub(super) struct PositionSet {
    words: Vec<Vec<u64>>,
    len: usize,
}

impl PositionSet {
    /// Returns an empty set for positions below `length`.
    pub(super) fn empty(length: usize) -> Self {
        let mut words = Vec::new();
        let mut bits = length;
        while bits > 0 {
            let count = bits.div_ceil(WORD_BITS);
            words.push(vec![0; count]);
            bits = if count > 1 { count } else { 0 };
        }
        Self { words, len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn contains(&self, position: usize) -> bool {
        let word = self.words.first().and_then(|words| words.get(position / WORD_BITS));
        word.is_some_and(|word| word & bit(position) != 0)
    }

    pub(super) fn insert(&mut self, position: usize) {
        self.len += usize::from(!self.contains(position));
        let mut index = position;
        for level in &mut self.words {
            level[index / WORD_BITS] |= bit(index);
            index /= WORD_BITS;
        }
    }

    pub(super) fn remove(&mut self, position: usize) {
        self.len -= usize::from(self.contains(position));
        let mut index = position;
        for level in &mut self.words {
            level[index / WORD_BITS] &= !bit(index);
            if level[index / WORD_BITS] != 0 {
                return;
            }
            index /= WORD_BITS;
        }
    }

    /// Inserts or removes a position.
    pub(super) fn set(&mut self, position: usize, is_in: bool) {
        if is_in {
            self.insert(position);
        } else {
            self.remove(position);
        }
    }

    /// Returns the first position of the set that is not below `from`.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let mut index = from;
        for (level, words) in self.words.iter().enumerate() {
            let word = index / WORD_BITS;
            let bits = words.get(word)? & (u64::MAX << (index % WORD_BITS));
            if bits != 0 {
                // Go down again, to the first position below this bit.
                let first = word * WORD_BITS + bits.trailing_zeros() as usize;
                return Some(self.words[..level].iter().rev().fold(first, |index, words| {
                    index * WORD_BITS + words[index].trailing_zeros() as usize
                }));
            }
            index = word + 1;
        }
        None
    }

    /// Returns the first position from `from` on, wrapping around.
    pub(super) fn next_from(&self, from: usize) -> Option<usize> {
        self.next(from).or_else(|| self.next(0))
    }

    /// Returns the first position from `from` on, wrapping around, that is in both sets, which have
    /// the same length. Looks at 64 positions at a time.
    pub(super) fn next_common(&self, other: &Self, from: usize) -> Option<usize> {
        if self.is_empty() || other.is_empty() {
            return None;
        }
        let first_word = from / WORD_BITS;
        let not_before = u64::MAX << (from % WORD_BITS);
        let after = self.common_words(other, first_word).enumerate();
        let after = after.map(|(index, bits)| {
            (first_word + index, if index == 0 { bits & not_before } else { bits })
        });
        // Up to `from`, whose word is looked at again as a whole.
        let before = self.common_words(other, 0).take(first_word + 1).enumerate();
        let (word, bits) = after.chain(before).find(|(_, bits)| *bits != 0)?;
        Some(word * WORD_BITS + bits.trailing_zeros() as usize)
    }

    /// Returns how many positions are in both sets, which have the same length.
    pub(super) fn common_len(&self, other: &Self) -> usize {
        self.common_words(other, 0).map(|bits| bits.count_ones() as usize).sum()
    }

    fn common_words<'a>(
        &'a self,
        other: &'a Self,
        from: usize,
    ) -> impl Iterator<Item = u64> + use<'a> {
        let words = |set: &'a Self| set.words.first().into_iter().flatten().skip(from);
        words(self).zip(words(other)).map(|(ours, theirs)| ours & theirs)
    }
}

fn bit(position: usize) -> u64 {
    1 << (position % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::random::Random;

    fn draw(random: &mut Random, below: usize) -> usize {
        (random.next() % below as u64) as usize
    }

    #[test]
    fn it_is_a_set_of_numbers_in_order() {
        for length in [1, 2, 63, 64, 65, 4096, 4097, 300_000] {
            let (mut random, mut model) = (Random::new(length as u64), BTreeSet::new());
            let mut set = PositionSet::empty(length);
            for _ in 0..500 {
                let (position, from) = (draw(&mut random, length), draw(&mut random, length + 2));
                if random.next() % 3 == 0 {
                    set.remove(position);
                    model.remove(&position);
                } else {
                    set.insert(position);
                    model.insert(position);
                }
                assert_eq!(set.contains(position), model.contains(&position));
                assert_eq!(set.next(from), model.range(from..).next().copied());
                assert_eq!((set.len, set.is_empty()), (model.len(), model.is_empty()));
            }
        }
        assert_eq!(PositionSet::empty(0).next(0), None);
        assert!(!PositionSet::empty(0).contains(0));
    }

    #[test]
    fn the_next_common_position_wraps_around_once() {
        let mut random = Random::new(1);
        for length in [1, 10, 100, 5000] {
            for _ in 0..200 {
                let (mut a, mut b) = (PositionSet::empty(length), PositionSet::empty(length));
                let mut common = BTreeSet::new();
                for position in 0..length {
                    let in_which = draw(&mut random, 5);
                    if in_which <= 2 {
                        a.insert(position);
                    }
                    if in_which == 0 || in_which == 3 {
                        b.insert(position);
                    }
                    if in_which == 0 {
                        common.insert(position);
                    }
                }
                let from = draw(&mut random, length + 1);
                let next = common.range(from..).chain(common.range(..from)).next().copied();
                assert_eq!(a.next_common(&b, from), next);
                assert_eq!(a.common_len(&b), common.len());
                assert_eq!(a.next_from(from), a.next_common(&a, from));
            }
        }
    }
}
