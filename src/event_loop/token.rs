//! What an event is about, packed into the one number that the event queue hands back.

use mio::Token;

/// A source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Commands,
    Listener,
    Pair(PairToken, End),
}

/// Which of a pair's two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Backend,
}

/// A pair: its slot, and which tenant of that slot it is, so that an event of an earlier tenant is told from its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PairToken {
    pub(crate) slot: usize,
    generation: usize,
}

// From the top: generation, slot, end. On 64 bits the slot has 31 of them, on 32 bits it has 19.
const SLOT_BITS: u32 = if usize::BITS >= 64 { 31 } else { 19 };
const GENERATION_BITS: u32 = usize::BITS - SLOT_BITS - 1;
const SLOT_MASK: usize = (1 << SLOT_BITS) - 1;
const GENERATION_MASK: usize = (1 << GENERATION_BITS) - 1;

pub(crate) const COMMANDS: Token = Token(usize::MAX);
pub(crate) const LISTENER: Token = Token(usize::MAX - 1);

/// How many pairs can be told apart; the topmost slot is left to the two tokens above.
pub(crate) const MAX_PAIRS: usize = SLOT_MASK;

impl PairToken {
    /// The pair with this number, which may be any that differs from those of the slot's recent tenants.
    pub(crate) fn new(slot: usize, id: u64) -> Self {
        Self { slot, generation: id as usize & GENERATION_MASK }
    }

    pub(crate) fn of(self, end: End) -> Token {
        Token(
            (self.generation << (SLOT_BITS + 1))
                | (self.slot << 1)
                | usize::from(end == End::Backend),
        )
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Self {
        match token {
            COMMANDS => Self::Commands,
            LISTENER => Self::Listener,
            Token(bits) => {
                let pair = PairToken {
                    slot: (bits >> 1) & SLOT_MASK,
                    generation: bits >> (SLOT_BITS + 1),
                };
                Self::Pair(pair, if bits & 1 == 0 { End::Client } else { End::Backend })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_and_end_comes_back_from_its_token() {
        for slot in [0, 1, MAX_PAIRS - 1] {
            for id in [0, 1, GENERATION_MASK as u64, u64::MAX] {
                for end in [End::Client, End::Backend] {
                    let pair = PairToken::new(slot, id);
                    assert_eq!(Source::from(pair.of(end)), Source::Pair(pair, end));
                }
            }
        }
        assert_eq!(Source::from(COMMANDS), Source::Commands);
        assert_eq!(Source::from(LISTENER), Source::Listener);
    }

    #[test]
    fn tenants_of_one_slot_differ() {
        for id in [8, 7 + (1 << 11)] {
            assert_ne!(PairToken::new(3, 7), PairToken::new(3, id));
        }
    }
}
