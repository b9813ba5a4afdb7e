//! The smallest of many keys, found by position.

use std::ops::Range;

/// A key for each position, or none, as a tournament tree: each change and each query takes O(log
/// n) steps.
pub(super) struct MinTree<K> {
    keys: Vec<Option<K>>,
    /// The root is at 1, the children of `i` at `2 * i` and `2 * i + 1`, and the leaves are the
    /// positions. Each node has the first position of the smallest key below it.
    winners: Vec<Option<usize>>,
}

impl<K> Default for MinTree<K> {
    fn default() -> Self {
        Self { keys: Vec::new(), winners: Vec::new() }
    }
}

impl<K: Copy + Ord> MinTree<K> {
    pub(super) fn new(keys: Vec<Option<K>>) -> Self {
        let leaf = |(position, key): (usize, &Option<K>)| key.map(|_| position);
        let inner = std::iter::repeat_n(None, keys.len());
        let winners = inner.chain(keys.iter().enumerate().map(leaf)).collect();
        let mut tree = Self { keys, winners };
        (1..tree.keys.len()).rev().for_each(|node| tree.replay(node));
        tree
    }

    pub(super) fn contains(&self, position: usize) -> bool {
        self.keys[position].is_some()
    }

    pub(super) fn set(&mut self, position: usize, key: Option<K>) {
        self.keys[position] = key;
        let mut node = self.keys.len() + position;
        self.winners[node] = key.map(|_| position);
        while node > 1 {
            node /= 2;
            let before = self.winners[node];
            self.replay(node);
            if self.winners[node] == before && before != Some(position) {
                return; // above it nothing has changed
            }
        }
    }

    /// Returns the first position of the smallest key among `count` positions from `from` on,
    /// wrapping around.
    pub(super) fn min_from(&self, from: usize, count: usize) -> Option<usize> {
        let (end, len) = (from + count, self.keys.len());
        self.better(self.min_in(from..end.min(len)), self.min_in(0..end.saturating_sub(len)))
    }

    fn min_in(&self, range: Range<usize>) -> Option<usize> {
        let len = self.keys.len();
        let (mut start, mut end) = (range.start + len, range.end + len);
        let (mut first, mut last) = (None, None);
        while start < end {
            if start % 2 == 1 {
                first = self.better(first, self.winners[start]);
                start += 1;
            }
            if end % 2 == 1 {
                end -= 1;
                last = self.better(self.winners[end], last);
            }
            (start, end) = (start / 2, end / 2);
        }
        self.better(first, last)
    }

    /// Finds the winner of a node anew, from those of its children.
    fn replay(&mut self, node: usize) {
        self.winners[node] = self.better(self.winners[2 * node], self.winners[2 * node + 1]);
    }

    /// Returns the position of the smaller key, or the first position if they are equal.
    fn better(&self, first: Option<usize>, second: Option<usize>) -> Option<usize> {
        match (first, second) {
            (Some(a), Some(b)) if self.keys[b] < self.keys[a] => second,
            _ => first.or(second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn it_finds_the_first_of_the_smallest() {
        for len in [1, 2, 3, 5, 8, 13, 64, 100] {
            let mut random = Random::new(len as u64);
            let mut draw = |below: usize| (random.next() % below as u64) as usize;
            let mut keys: Vec<Option<usize>> =
                (0..len).map(|_| Some(draw(5)).filter(|key| *key > 0)).collect();
            let mut tree = MinTree::new(keys.clone());
            for _ in 0..500 {
                let (position, key) = (draw(len), Some(draw(5)).filter(|key| *key > 0));
                keys[position] = key;
                tree.set(position, key);
                let (from, count) = (draw(len + 1), draw(len + 1));
                let wrapped = (from..from + count).map(|position| position % len);
                let first = wrapped.filter(|&position| keys[position].is_some());
                assert_eq!(tree.min_from(from, count), first.min_by_key(|&p| keys[p]));
                assert_eq!(tree.contains(position), key.is_some());
            }
        }
        assert_eq!(MinTree::<u8>::new(Vec::new()).min_from(0, 0), None);
    }
}
