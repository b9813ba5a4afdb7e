//! Numbers that a seed determines.

/// A sequence of numbers that its seed determines.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        scramble(self.0)
    }

    /// From `least` to `most`, both included.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    /// Below `count`, for an index.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        self.next() as usize % count
    }

    pub(crate) fn is_heads(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// A number that two others determine, and that tells nothing of them.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    scramble(scramble(a).wrapping_add(b.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// The finish of SplitMix64: each bit of what comes out depends on each that goes in.
fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
