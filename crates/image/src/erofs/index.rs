//! A hash index over names that are stored elsewhere: four bytes a slot, linear probing.
//!
//! The standard map would store the key a second time. Names come from a hostile archive, so the hash is
//! keyed with random numbers; nothing that reaches the blob depends on it.

use std::hash::{BuildHasher, RandomState};

const EMPTY: u32 = u32::MAX;
const FIRST_CAPACITY: usize = 64;

pub(crate) struct Index {
    slots: Vec<u32>,
    used: usize,
    keys: RandomState,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { slots: vec![EMPTY; FIRST_CAPACITY], used: 0, keys: RandomState::new() }
    }

    pub(crate) fn hash(&self, parent: u32, name: &[u8]) -> u64 {
        self.keys.hash_one((parent, name))
    }

    pub(crate) fn memory(&self) -> u64 {
        self.slots.len() as u64 * 4
    }

    /// The value for which `matches` holds among those stored under `hash`.
    pub(crate) fn find(&self, hash: u64, matches: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        // The table is never full, so an empty slot ends every walk.
        while self.slots[at] != EMPTY {
            if matches(self.slots[at]) {
                return Some(self.slots[at]);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Adds a value that is not in the index yet. `hash_of` gives the hash of values stored before.
    pub(crate) fn insert(&mut self, hash: u64, value: u32, hash_of: impl Fn(&RandomState, u32) -> u64) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let doubled = vec![EMPTY; self.slots.len() * 2];
            let old = std::mem::replace(&mut self.slots, doubled);
            for value in old.into_iter().filter(|value| *value != EMPTY) {
                let hash = hash_of(&self.keys, value);
                self.place(hash, value);
            }
        }
        self.place(hash, value);
        self.used += 1;
    }

    fn place(&mut self, hash: u64, value: u32) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.slots[at] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_found_again_after_growth() {
        let mut index = Index::new();
        let name = |value: u32| format!("n{}", value / 3);
        for value in 0..10_000 {
            let hash = index.hash(value % 3, name(value).as_bytes());
            index.insert(hash, value, |keys, value| keys.hash_one((value % 3, name(value).as_bytes())));
        }
        for value in 0..10_000 {
            let hash = index.hash(value % 3, name(value).as_bytes());
            assert_eq!(index.find(hash, |other| other == value), Some(value));
        }
        assert_eq!(index.find(index.hash(9, b"absent"), |_| false), None);
    }
}
