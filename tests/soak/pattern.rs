//! The bytes that a stream carries: each depends on the stream and its place in it, so that one that is lost, doubled,
//! moved or another connection's shows.

use crate::random::mix;

/// What one direction of one connection carries.
#[derive(Clone, Copy)]
pub(crate) struct Pattern(u64);

const WORD: usize = size_of::<u64>();

impl Pattern {
    pub(crate) fn new(key: u64) -> Self {
        Self(key)
    }

    /// The bytes from this position on.
    pub(crate) fn fill(self, bytes: &mut [u8], position: u64) {
        self.each_piece(bytes.len(), position, |range, piece| bytes[range].copy_from_slice(piece));
    }

    /// The first of these bytes, which begin at this position, that is another than it should be.
    pub(crate) fn first_wrong(self, bytes: &[u8], position: u64) -> Option<usize> {
        let mut wrong = None;
        self.each_piece(bytes.len(), position, |range, piece| {
            if wrong.is_none() && bytes[range.clone()] != *piece {
                wrong = range
                    .clone()
                    .zip(piece)
                    .find(|(index, byte)| bytes[*index] != **byte)
                    .map(|(index, _)| index);
            }
        });
        wrong
    }

    /// Goes through so many bytes from this position on, a word or what is left of one at a time.
    fn each_piece(
        self,
        len: usize,
        position: u64,
        mut see: impl FnMut(std::ops::Range<usize>, &[u8]),
    ) {
        let mut at = 0;
        while at < len {
            let place = position + at as u64;
            let word = mix(self.0, place / WORD as u64).to_le_bytes();
            let from = (place % WORD as u64) as usize;
            let piece = &word[from..WORD.min(from + len - at)];
            see(at..at + piece.len(), piece);
            at += piece.len();
        }
    }
}
