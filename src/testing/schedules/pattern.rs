//! What the peers send: bytes in which a lost, doubled, moved or mistaken piece shows.

use std::sync::LazyLock;

use super::steps::LARGEST;
use crate::random::Random;

const CYCLE: usize = 65_521;

/// What a peer sends, from a position on: the bytes of each begin at another place of one cycle.
pub(super) fn bytes_of(peer: usize, position: usize, len: usize) -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut dice = Random::new(7);
        let cycle: Vec<u8> = (0..CYCLE).map(|_| dice.next() as u8).collect();
        cycle.into_iter().cycle().take(CYCLE + LARGEST).collect()
    });
    let start = (peer * 7919 + position) % CYCLE;
    &BYTES[start..start + len]
}
