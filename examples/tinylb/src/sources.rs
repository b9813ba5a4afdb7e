//! Which backend comes from where: the file's keys and those given otherwise live side by side.

use std::fmt;

use tinylb::BackendSet;

use crate::targets::quoted;

/// The backends by where they come from. No key is in both.
#[derive(Debug)]
pub(crate) struct Sources {
    file: BackendSet,
    /// By `--backend` and by commands.
    given: BackendSet,
}

/// A key that cannot be what was asked for, and why.
#[derive(Debug)]
pub(crate) struct KeyError {
    pub(crate) key: String,
    why: &'static str,
}

impl KeyError {
    fn new(key: &str, why: &'static str) -> Self {
        Self { key: key.to_owned(), why }
    }
}

impl From<KeyError> for String {
    fn from(err: KeyError) -> Self {
        err.to_string()
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} {}", quoted(&self.key), self.why)
    }
}

impl Sources {
    /// No file's backends, and these.
    pub(crate) fn of(given: BackendSet) -> Self {
        Self { file: BackendSet::new(), given }
    }

    /// All backends there are.
    pub(crate) fn union(&self) -> BackendSet {
        // The usual case of one source is cheap: its set is shared.
        if self.file.is_empty() {
            return self.given.clone();
        }
        let mut union = self.file.clone();
        union.extend(self.given.clone());
        union
    }

    /// The file's backends replaced.
    pub(crate) fn with_file(&self, file: BackendSet) -> Result<Self, KeyError> {
        if let Some(key) = file.keys().find(|key| self.given.contains_key(key)) {
            return Err(KeyError::new(key, "is given by --backend or a command already"));
        }
        Ok(Self { file, given: self.given.clone() })
    }

    /// All but the file's backends replaced.
    pub(crate) fn with_given(&self, given: BackendSet) -> Result<Self, KeyError> {
        if let Some(key) = given.keys().find(|key| self.file.contains_key(key)) {
            return Err(KeyError::new(key, "is the backends file's"));
        }
        Ok(Self { file: self.file.clone(), given })
    }

    /// More backends; a given key's target and weight are replaced.
    pub(crate) fn with_added(&self, added: BackendSet) -> Result<Self, KeyError> {
        let mut given = self.given.clone();
        given.extend(added);
        self.with_given(given)
    }

    /// Without these keys, each of which must be there, once.
    pub(crate) fn without(&self, keys: &[String]) -> Result<Self, KeyError> {
        let mut given = self.given.clone();
        for key in keys {
            if given.remove(key).is_none() {
                let is_twice = self.given.contains_key(key);
                return Err(if is_twice {
                    KeyError::new(key, "is given twice")
                } else {
                    self.not_given(key)
                });
            }
        }
        Ok(Self { file: self.file.clone(), given })
    }

    /// With another weight of a key, which must be there.
    pub(crate) fn with_weight(&self, key: &str, weight: u16) -> Result<Self, KeyError> {
        let mut given = self.given.clone();
        match given.set_weight(key, weight.into()) {
            true => Ok(Self { file: self.file.clone(), given }),
            false => Err(self.not_given(key)),
        }
    }

    fn not_given(&self, key: &str) -> KeyError {
        let is_in_file = self.file.contains_key(key);
        KeyError::new(key, if is_in_file { "is the backends file's" } else { "is unknown" })
    }
}
