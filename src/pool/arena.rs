//! A slab whose ids are never reused.

use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

use slab::Slab;

/// Values by id. The id of a removed value finds nothing, even when its slot is in use again.
pub(super) struct Arena<T> {
    slots: Slab<(u64, T)>,
    inserted: u64,
}

/// The id of a value in an [`Arena`]: its slot, and a generation as ABA guard.
pub(crate) struct Id<T> {
    slot: usize,
    generation: u64,
    of: PhantomData<fn() -> T>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { slots: Slab::new(), inserted: 0 }
    }
}

impl<T> Arena<T> {
    pub(super) fn insert(&mut self, value: T) -> Id<T> {
        let generation = self.inserted;
        self.inserted += 1;
        Id { slot: self.slots.insert((generation, value)), generation, of: PhantomData }
    }

    pub(super) fn get(&self, id: Id<T>) -> Option<&T> {
        let (generation, value) = self.slots.get(id.slot)?;
        (*generation == id.generation).then_some(value)
    }

    pub(super) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let (generation, value) = self.slots.get_mut(id.slot)?;
        (*generation == id.generation).then_some(value)
    }

    pub(super) fn contains(&self, id: Id<T>) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn remove(&mut self, id: Id<T>) -> Option<T> {
        if self.contains(id) { Some(self.slots.remove(id.slot).1) } else { None }
    }
}

/// For ids that the owner of the arena keeps only while their values are in it.
impl<T> Index<Id<T>> for Arena<T> {
    type Output = T;

    fn index(&self, id: Id<T>) -> &T {
        self.get(id).expect("the value was not removed")
    }
}

impl<T> IndexMut<Id<T>> for Arena<T> {
    fn index_mut(&mut self, id: Id<T>) -> &mut T {
        self.get_mut(id).expect("the value was not removed")
    }
}

// Written out, since a derive would ask the same of `T`.
impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> Eq for Id<T> {}

impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.slot, self.generation).hash(state);
    }
}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.slot, self.generation) == (other.slot, other.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_finds_its_own_value_and_no_later_one() {
        let mut arena = Arena::default();
        let a = arena.insert('a');
        assert_eq!((arena.get(a), arena[a]), (Some(&'a'), 'a'));
        assert_eq!(arena.remove(a), Some('a'));
        let b = arena.insert('b');
        assert_eq!(a.slot, b.slot);
        assert!(arena.get(a).is_none() && arena.get_mut(a).is_none());
        assert_eq!(arena.remove(a), None);
        assert!(!arena.contains(a) && arena.contains(b) && a != b);
    }
}
