//! How two sets differ, for the log.

use std::fmt;
use std::sync::Arc;

/// The keys by which two sets differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) added: Vec<Arc<str>>,
    pub(crate) removed: Vec<Arc<str>>,
    /// Keys with another target.
    pub(crate) changed: Vec<Arc<str>>,
}

impl Difference {
    /// How many keys of each kind are shown by name.
    const NAMED: usize = 8;

    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// `added a, b and 3 more, removed c`
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds =
            [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)];
        let mut separator = "";
        for (verb, keys) in kinds.into_iter().filter(|(_, keys)| !keys.is_empty()) {
            let named = &keys[..keys.len().min(Self::NAMED)];
            write!(f, "{separator}{verb} {}", named.join(", "))?;
            if keys.len() > named.len() {
                write!(f, " and {} more", keys.len() - named.len())?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn difference(added: Range<u32>, removed: Range<u32>, changed: Range<u32>) -> Difference {
        let keys = |keys: Range<u32>| keys.map(|key| key.to_string().into()).collect();
        Difference { added: keys(added), removed: keys(removed), changed: keys(changed) }
    }

    #[test]
    fn c8_3_some_keys_of_each_kind_are_named_and_the_rest_are_counted() {
        assert_eq!(
            difference(0..8, 10..20, 0..0).to_string(),
            "added 0, 1, 2, 3, 4, 5, 6, 7, removed 10, 11, 12, 13, 14, 15, 16, 17 and 2 more"
        );
        assert!(difference(0..0, 0..0, 0..0).is_empty());
        for one in [(0..1, 0..0, 0..0), (0..0, 0..1, 0..0), (0..0, 0..0, 0..1)] {
            assert!(!difference(one.0, one.1, one.2).is_empty());
        }
    }
}
