//! The backend set: a map from keys to backends, ordered by key.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use super::Backend;

/// A map from keys to backends, ordered by key, whatever the order of insertion.
///
/// Cloning is cheap: clones share their backends. Two sets are equal if they have the same keys
/// with the same target names and weights.
///
/// Each backend has a weight, which is its share of the clients: see [`Policy`](crate::Policy). A
/// backend of weight 0 is *held*: its connections live on, but it gets no client, not even if no
/// other backend is left, and its dials in flight are cancelled. So one update can remove one
/// target, let another finish and keep a third. Changing a weight closes nothing.
///
/// ```
/// use tinylb::{BackendSet, TcpBackend};
///
/// let mut set = BackendSet::new();
/// set.insert("node-2", TcpBackend::new("10.0.0.2:6443".parse().unwrap()));
/// set.insert("node-1", TcpBackend::new("10.0.0.1:6443".parse().unwrap()));
/// assert_eq!(set.keys().collect::<Vec<_>>(), ["node-1", "node-2"]);
/// assert_eq!(set.get("node-2").unwrap().target_name(), "10.0.0.2:6443");
///
/// set.set_weight("node-1", 3); // three clients for each one of node-2
/// set.set_weight("node-2", 0); // no new client
/// let weights: Vec<_> = set.iter().map(|entry| entry.weight()).collect();
/// assert_eq!(weights, [3, 0]);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BackendSet {
    /// Shared by clones until one of them changes.
    entries: Arc<IndexMap<Arc<str>, Arc<Entry>>>,
}

/// A backend in a set, with its key, target name and weight. Cloning is cheap.
#[derive(Clone)]
pub struct Entry {
    key: Arc<str>,
    target_name: Arc<str>,
    weight: u32,
    backend: Arc<dyn Backend>,
}

/// The largest weight.
const MAX_WEIGHT: u32 = u16::MAX as u32;

impl Entry {
    fn new(key: Arc<str>, backend: impl Backend + 'static, weight: u32) -> Self {
        let backend = share(backend);
        let weight = weight.min(MAX_WEIGHT);
        Self { key, target_name: backend.target_name().into(), weight, backend }
    }

    /// Returns its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the target name that the backend had when it was inserted.
    pub fn target_name(&self) -> &str {
        &self.target_name
    }

    /// Returns its weight, from 0 to 65,535. 0 means that it is held.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    pub(crate) fn is_held(&self) -> bool {
        self.weight == 0
    }

    pub(crate) fn shared_key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn shared_target_name(&self) -> &Arc<str> {
        &self.target_name
    }

    /// Returns the backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
}

impl BackendSet {
    /// Returns an empty set. While it is in force, every client is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Inserts a backend with weight 1 under a key, and returns the backend it replaces. Reads the
    /// target name.
    ///
    /// The weight that the key had is forgotten: if it was held, it is not held any more.
    pub fn insert(
        &mut self,
        key: impl Into<Arc<str>>,
        backend: impl Backend + 'static,
    ) -> Option<Arc<dyn Backend>> {
        self.insert_weighted(key, backend, 1)
    }

    /// Inserts a backend with a weight under a key, and returns the backend it replaces. Reads the
    /// target name.
    ///
    /// Weight 0 holds the backend. Weights above 65,535 count as 65,535.
    pub fn insert_weighted(
        &mut self,
        key: impl Into<Arc<str>>,
        backend: impl Backend + 'static,
        weight: u32,
    ) -> Option<Arc<dyn Backend>> {
        let entry = Arc::new(Entry::new(key.into(), backend, weight));
        let (_, replaced) =
            Arc::make_mut(&mut self.entries).insert_sorted(entry.key.clone(), entry);
        replaced.map(|old| old.backend.clone())
    }

    /// Sets the weight of a key, and returns whether the set has the key.
    ///
    /// Weight 0 holds the backend. Weights above 65,535 count as 65,535.
    pub fn set_weight(&mut self, key: &str, weight: u32) -> bool {
        let Some(entry) = self.entries.get(key) else { return false };
        let weight = weight.min(MAX_WEIGHT);
        if entry.weight != weight {
            let entry = Arc::new(Entry { weight, ..Entry::clone(entry) });
            Arc::make_mut(&mut self.entries).insert(entry.key.clone(), entry);
        }
        true
    }

    /// Removes a key, and returns its backend.
    pub fn remove(&mut self, key: &str) -> Option<Arc<dyn Backend>> {
        if !self.contains_key(key) {
            return None; // without copying entries shared with a clone
        }
        Arc::make_mut(&mut self.entries).shift_remove(key).map(|entry| entry.backend.clone())
    }

    /// Keeps only the entries for which `keep` returns `true`.
    pub fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        Arc::make_mut(&mut self.entries).retain(|_, entry| keep(entry));
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Returns the entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key).map(|entry| &**entry)
    }

    /// Returns whether the set has this key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns the number of backends.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the set has no backend.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the entries in key order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.entries.values())
    }

    /// Returns the keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|entry| &*entry.key)
    }

    pub(crate) fn shared_entries(&self) -> impl ExactSizeIterator<Item = &Arc<Entry>> {
        self.entries.values()
    }
}

/// Inserts backends with weight 1.
impl<K: Into<Arc<str>>, B: Backend + 'static> Extend<(K, B)> for BackendSet {
    fn extend<I: IntoIterator<Item = (K, B)>>(&mut self, backends: I) {
        let entry = |(key, backend): (K, B)| Entry::new(key.into(), backend, 1);
        self.extend(backends.into_iter().map(entry));
    }
}

/// Inserts backends with the weights they have.
impl Extend<Entry> for BackendSet {
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        // Runs the host's code first: if it panics, the set is unchanged. Sorts once at the end,
        // because each sorted insertion would move every later entry.
        let new: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let entries = Arc::make_mut(&mut self.entries);
        entries.extend(new.into_iter().map(|entry| (entry.key.clone(), entry)));
        entries.sort_keys();
    }
}

/// Wraps a backend in an [`Arc`], unless it is one already. Otherwise each set that a host builds
/// from the backends of the previous one would add a layer.
fn share<B: Backend + 'static>(backend: B) -> Arc<dyn Backend> {
    match (&backend as &dyn Any).downcast_ref::<Arc<dyn Backend>>() {
        Some(shared) => shared.clone(),
        None => Arc::new(backend),
    }
}

impl<K: Into<Arc<str>>, B: Backend + 'static> FromIterator<(K, B)> for BackendSet {
    fn from_iter<I: IntoIterator<Item = (K, B)>>(backends: I) -> Self {
        let mut set = Self::new();
        set.extend(backends);
        set
    }
}

impl FromIterator<Entry> for BackendSet {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut set = Self::new();
        set.extend(entries);
        set
    }
}

impl<K: Into<Arc<str>>, B: Backend + 'static, const N: usize> From<[(K, B); N]> for BackendSet {
    fn from(backends: [(K, B); N]) -> Self {
        backends.into_iter().collect()
    }
}

/// The entries of a [`BackendSet`] in key order.
#[derive(Clone, Debug)]
pub struct Iter<'a>(indexmap::map::Values<'a, Arc<str>, Arc<Entry>>);

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        self.0.next().map(|entry| &**entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a BackendSet {
    type Item = &'a Entry;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for BackendSet {
    type Item = Entry;
    type IntoIter = std::vec::IntoIter<Entry>;

    /// Returns the entries in key order.
    fn into_iter(self) -> Self::IntoIter {
        self.iter().cloned().collect::<Vec<_>>().into_iter()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
            && self.target_name == other.target_name
            && self.weight == other.weight
    }
}

impl Eq for Entry {}

/// Shows a map from keys to target names, and to weights other than 1.
impl fmt::Debug for BackendSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for Entry { key, target_name, weight, .. } in self {
            match weight {
                1 => map.entry(key, target_name),
                _ => map.entry(key, &(target_name, weight)),
            };
        }
        map.finish()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("target_name", &self.target_name)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;
    use crate::backend::{Dial, DialRequest};

    struct Named(&'static str);

    impl Backend for Named {
        fn target_name(&self) -> String {
            self.0.to_owned()
        }
        fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn targets(set: &BackendSet) -> Vec<(&str, &str)> {
        set.iter().map(|entry| (entry.key(), entry.target_name())).collect()
    }

    #[test]
    fn c1_1_the_order_is_that_of_the_keys_however_they_came() {
        let mut inserted = BackendSet::new();
        for key in ["c", "a", "d", "b"] {
            assert!(inserted.insert(key, Named("t")).is_none());
        }
        let mut extended = BackendSet::from([("d", Named("t")), ("b", Named("t"))]);
        extended.extend([("c", Named("t")), ("a", Named("t"))]);
        assert_eq!(inserted.keys().collect::<String>(), "abcd");
        assert_eq!(extended.keys().collect::<String>(), "abcd");
        assert_eq!(inserted, extended);
    }

    #[test]
    fn c1_1_it_does_what_a_map_does() {
        let mut set = BackendSet::from([("a", Named("old")), ("b", Named("t"))]);
        assert_eq!(set.insert("a", Named("new")).unwrap().target_name(), "old");
        assert_eq!(targets(&set), [("a", "new"), ("b", "t")]);
        assert!(set.remove("x").is_none());
        assert_eq!(set.remove("a").unwrap().target_name(), "new");
        assert!(set.get("a").is_none() && !set.contains_key("a") && set.len() == 1);
        assert_eq!(set.clone().into_iter().collect::<BackendSet>(), set);
        set.retain(|entry| entry.key() != "b");
        assert!(set.is_empty());
        set.insert("c", Named("t"));
        assert!(!set.is_empty());
        set.clear();
        assert!(set.is_empty());
    }

    #[test]
    fn c1_1_its_iterators_know_how_many_are_left() {
        let set = BackendSet::from([("a", Named("t")), ("b", Named("t"))]);
        let mut entries = set.iter();
        assert_eq!(entries.size_hint(), (2, Some(2)));
        entries.next();
        assert_eq!(entries.len(), 1);
    }

    #[test]
    fn it_shows_keys_and_target_names() {
        let set = BackendSet::from([("a", Named("t")), ("b", Named("u"))]);
        assert_eq!(format!("{set:?}"), r#"{"a": "t", "b": "u"}"#);
        let entry = r#"Entry { key: "a", target_name: "t", weight: 1, .. }"#;
        assert_eq!(format!("{:?}", set.get("a").unwrap()), entry);
        assert!(format!("{:?}", set.iter()).contains(entry));
        let mut held = set;
        held.set_weight("b", 0);
        assert_eq!(format!("{held:?}"), r#"{"a": "t", "b": ("u", 0)}"#);
    }

    #[test]
    fn c1_1_a_clone_shares_its_backends_and_then_goes_its_own_way() {
        let set = BackendSet::from([("a", Named("t")), ("b", Named("t"))]);
        let mut clone = set.clone();
        assert!(Arc::ptr_eq(&set.entries, &clone.entries));
        clone.remove("a");
        assert_eq!((set.len(), clone.len()), (2, 1));
        let backend = |set: &BackendSet| set.get("b").unwrap().backend().clone();
        assert!(Arc::ptr_eq(&backend(&set), &backend(&clone)));
    }

    #[test]
    fn c9_1_a_set_made_of_the_backends_of_another_has_those_and_no_wrappers() {
        let set = BackendSet::from([("a", Named("t"))]);
        let backend = |set: &BackendSet| set.get("a").unwrap().backend().clone();
        let collected: BackendSet = set.clone().into_iter().collect();
        let mut inserted = BackendSet::new();
        inserted.insert("a", backend(&set));
        assert!(Arc::ptr_eq(&backend(&set), &backend(&collected)));
        assert!(Arc::ptr_eq(&backend(&set), &backend(&inserted)));
    }

    fn weights(set: &BackendSet) -> Vec<u32> {
        set.iter().map(Entry::weight).collect()
    }

    #[test]
    fn c1_5_a_weight_is_1_unless_set_and_inserting_sets_it_anew() {
        let mut set = BackendSet::from([("a", Named("t")), ("b", Named("t"))]);
        assert!(set.insert_weighted("c", Named("old"), 7).is_none());
        assert_eq!(weights(&set), [1, 1, 7]);
        assert!(set.set_weight("b", 0) && !set.set_weight("x", 0));
        assert_eq!(weights(&set), [1, 0, 7]);
        assert_eq!(set.insert_weighted("c", Named("new"), 0).unwrap().target_name(), "old");
        set.insert("b", Named("t"));
        set.extend([("c", Named("t"))]);
        assert_eq!(weights(&set), [1, 1, 1]);
        set.insert_weighted("a", Named("t"), 65_536);
        set.set_weight("b", u32::MAX);
        set.set_weight("c", 65_535);
        assert_eq!(weights(&set), [65_535; 3]);
    }

    #[test]
    fn c1_5_weights_survive_a_round_trip_and_make_a_difference() {
        let mut set = BackendSet::from([("a", Named("t")), ("b", Named("t"))]);
        let equal = set.clone();
        set.set_weight("b", 0);
        assert_ne!(set, equal, "and the clone keeps its own");
        assert_eq!(set.clone().into_iter().collect::<BackendSet>(), set);
        assert_eq!(set.iter().cloned().collect::<BackendSet>(), set);
        let mut extended = equal;
        extended.extend(set.clone());
        assert_eq!(extended, set);
        set.set_weight("b", 1);
        assert_ne!(extended, set);
    }

    #[test]
    fn c1_1_the_order_survives_a_panic_in_the_hosts_code() {
        let mut set = BackendSet::from([("b", Named("t"))]);
        let backends = [("a", false), ("c", true)].into_iter().map(|(key, panics)| {
            assert!(!panics, "on purpose");
            (key, Named("t"))
        });
        let extend = std::panic::AssertUnwindSafe(|| set.extend(backends));
        assert!(std::panic::catch_unwind(extend).is_err());
        assert_eq!(set.keys().collect::<String>(), "b");
    }

    #[test]
    fn c1_1_sets_differ_by_key_and_by_target() {
        let set = |key, target| BackendSet::from([(key, Named(target))]);
        assert_eq!(set("a", "t"), set("a", "t"));
        assert_ne!(set("a", "t"), set("b", "t"));
        assert_ne!(set("a", "t"), set("a", "u"));
        assert_ne!(set("a", "t"), BackendSet::new());
    }

    #[test]
    fn c1_3_the_target_name_is_read_once() {
        struct Renamed(std::sync::Mutex<Cell<u32>>);
        impl Backend for Renamed {
            fn target_name(&self) -> String {
                let count = self.0.lock().unwrap();
                count.set(count.get() + 1);
                format!("name {}", count.get())
            }
            fn dial(&self, _: &DialRequest<'_>) -> io::Result<Dial> {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
        let set = BackendSet::from([("a", Renamed(Default::default()))]);
        assert_eq!(targets(&set), [("a", "name 1")]);
        assert_eq!(targets(&set.clone()), [("a", "name 1")]);
    }
}
