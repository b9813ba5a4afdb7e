//! What an event is about, packed into the one number that the event queue hands back.

use mio::Token;

/// A source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The waker of the mailbox.
    Mailbox,
    Listener,
    Pair(PairToken, Role),
}

/// One of a pair's two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Backend,
}

/// A pair: its slot, and a generation as ABA guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PairToken {
    pub(crate) slot: usize,
    generation: usize,
}

// From the top: generation, slot, side. The slot has 31 of 64 bits, or 19 of 32.
const SLOT_BITS: u32 = if usize::BITS >= 64 { 31 } else { 19 };
const GENERATION_BITS: u32 = usize::BITS - SLOT_BITS - 1;
const SLOT_MASK: usize = (1 << SLOT_BITS) - 1;
const GENERATION_MASK: usize = (1 << GENERATION_BITS) - 1;

pub(crate) const MAILBOX: Token = Token(usize::MAX);
pub(crate) const LISTENER: Token = Token(usize::MAX - 1);

/// How many pairs can be told apart. The topmost slot is left to the two tokens above.
pub(crate) const MAX_PAIRS: usize = SLOT_MASK;

impl PairToken {
    /// Returns a token for a slot. The id must differ from those of the slot's recent occupants.
    pub(crate) fn new(slot: usize, id: u64) -> Self {
        Self { slot, generation: id as usize & GENERATION_MASK }
    }

    /// Returns the event queue's token for one side.
    pub(crate) fn of(self, side: Role) -> Token {
        let side = usize::from(side == Role::Backend);
        Token((self.generation << (SLOT_BITS + 1)) | (self.slot << 1) | side)
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Self {
        match token {
            MAILBOX => Self::Mailbox,
            LISTENER => Self::Listener,
            Token(bits) => {
                let slot = (bits >> 1) & SLOT_MASK;
                let pair = PairToken { slot, generation: bits >> (SLOT_BITS + 1) };
                Self::Pair(pair, if bits & 1 == 0 { Role::Client } else { Role::Backend })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_and_side_comes_back_from_its_token() {
        for slot in [0, 1, MAX_PAIRS - 1] {
            for id in [0, 1, GENERATION_MASK as u64, u64::MAX] {
                for side in [Role::Client, Role::Backend] {
                    let pair = PairToken::new(slot, id);
                    assert_eq!(Source::from(pair.of(side)), Source::Pair(pair, side));
                }
            }
        }
        assert_eq!(Source::from(MAILBOX), Source::Mailbox);
        assert_eq!(Source::from(LISTENER), Source::Listener);
    }

    #[test]
    fn occupants_of_one_slot_differ() {
        for id in [8, 7 + (1 << 11)] {
            assert_ne!(PairToken::new(3, 7), PairToken::new(3, id));
        }
    }
}
