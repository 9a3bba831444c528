//! Things by id, of which some are still being made or already being taken down.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::id::ContainerId;

/// Things by id. The lock is held for look-ups only, never across a wait.
#[derive(Debug)]
pub(super) struct Registry<T> {
    slots: Mutex<HashMap<ContainerId, Slot<T>>>,
}

/// A place under an id. While something is being made or taken down, its id is neither free nor good for use.
#[derive(Debug)]
enum Slot<T> {
    Busy,
    Ready(Arc<T>),
}

/// Why an id does not lead to a thing, or cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Missing,
    Busy,
    Exists,
}

/// An id that is held while its thing is being made or deleted. Dropped, the id becomes free.
#[derive(Debug)]
pub struct Reservation<T> {
    registry: Arc<Registry<T>>,
    id: ContainerId,
    /// What stands in the registry when the reservation ends.
    result: Option<Arc<T>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<T> Registry<T> {
    /// Takes a free id.
    pub(super) fn reserve(self: &Arc<Self>, id: &ContainerId) -> Result<Reservation<T>, Refused> {
        match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => Err(Refused::Exists),
            Entry::Vacant(entry) => {
                entry.insert(Slot::Busy);
                Ok(Reservation { registry: Arc::clone(self), id: id.clone(), result: None })
            }
        }
    }

    /// Takes a thing out for its deletion. Unless the reservation is used to put it back, the id is free when it
    /// is dropped.
    pub(super) fn retire(self: &Arc<Self>, id: &ContainerId) -> Result<Reservation<T>, Refused> {
        let mut slots = self.lock();
        let slot = slots.get_mut(id).ok_or(Refused::Missing)?;
        match std::mem::replace(slot, Slot::Busy) {
            Slot::Busy => Err(Refused::Busy),
            Slot::Ready(_) => Ok(Reservation { registry: Arc::clone(self), id: id.clone(), result: None }),
        }
    }

    pub(super) fn get(&self, id: &ContainerId) -> Result<Arc<T>, Refused> {
        match self.lock().get(id) {
            None => Err(Refused::Missing),
            Some(Slot::Busy) => Err(Refused::Busy),
            Some(Slot::Ready(thing)) => Ok(Arc::clone(thing)),
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<T>> {
        let ready = |slot: &Slot<T>| match slot {
            Slot::Ready(thing) => Some(Arc::clone(thing)),
            Slot::Busy => None,
        };
        self.lock().values().filter_map(ready).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Slot<T>>> {
        // Nothing panics with the lock held.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Reservation<T> {
    /// Puts a thing in its place, for all to see.
    pub fn keep(mut self, thing: Arc<T>) {
        self.result = Some(thing);
    }
}

impl<T> Drop for Reservation<T> {
    fn drop(&mut self) {
        let mut slots = self.registry.lock();
        match self.result.take() {
            Some(thing) => slots.insert(self.id.clone(), Slot::Ready(thing)),
            None => slots.remove(&self.id),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        text.parse().unwrap()
    }

    #[test]
    fn reserved_id_is_busy_until_kept() {
        let registry = Arc::new(Registry::<u32>::default());
        let reservation = registry.reserve(&id("a")).unwrap();
        assert_eq!(registry.get(&id("a")), Err(Refused::Busy));
        assert!(matches!(registry.reserve(&id("a")), Err(Refused::Exists)));
        reservation.keep(Arc::new(7));
        assert_eq!(registry.get(&id("a")), Ok(Arc::new(7)));
    }

    #[test]
    fn dropped_reservation_frees_the_id() {
        let registry = Arc::new(Registry::<u32>::default());
        drop(registry.reserve(&id("a")).unwrap());
        assert_eq!(registry.get(&id("a")), Err(Refused::Missing));
        assert!(registry.reserve(&id("a")).is_ok());
    }

    #[test]
    fn second_retirement_of_a_thing_is_refused() {
        let registry = Arc::new(Registry::<u32>::default());
        registry.reserve(&id("a")).unwrap().keep(Arc::new(7));
        let first = registry.retire(&id("a")).unwrap();
        assert!(matches!(registry.retire(&id("a")), Err(Refused::Busy)));
        drop(first);
        assert!(matches!(registry.retire(&id("a")), Err(Refused::Missing)));
    }
}
