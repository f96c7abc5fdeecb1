//! Places that many share: so many in all, and so many for each.
//!
//! What is done for others before it is known what they may ask for takes a place here first: one who asks for too much of
//! it is sent away, and the others are not.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Who has how many. Its table is no longer than there are places taken. Clones are the same places.
#[derive(Clone, Debug)]
pub struct Places<K: Ord> {
    in_all: usize,
    each: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    in_all: usize,
    by: BTreeMap<K, usize>,
}

impl<K: Clone + Ord> Places<K> {
    /// All are free. Of `in_all`, nobody gets more than `each`.
    pub fn new(in_all: usize, each: usize) -> Places<K> {
        Places { in_all, each, taken: Arc::new(Mutex::new(Taken { in_all: 0, by: BTreeMap::new() })) }
    }

    /// A place, until it is dropped; none if `who` has enough of them, or if all are taken.
    pub fn take(&self, who: K) -> Option<Place<K>> {
        let mut taken = lock(&self.taken);
        let has = taken.by.get(&who).copied().unwrap_or_default();
        if taken.in_all >= self.in_all || has >= self.each {
            return None;
        }
        taken.in_all += 1;
        taken.by.insert(who.clone(), has + 1);
        Some(Place { who, of: self.taken.clone() })
    }
}

/// One place.
#[derive(Debug)]
pub struct Place<K: Ord> {
    who: K,
    of: Arc<Mutex<Taken<K>>>,
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.of);
        taken.in_all -= 1;
        match taken.by.get_mut(&self.who) {
            Some(has) if *has > 1 => *has -= 1,
            _ => _ = taken.by.remove(&self.who),
        }
    }
}

/// Whose an address is: one household of IPv6 has 2^64 of them.
pub fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_does_not_take_all_places_and_all_together_take_no_more_than_there_are() {
        let places = Places::new(5, 2);
        let mut taken: Vec<_> = (0..2).map(|_| places.take("a").unwrap()).collect();

        assert!(places.take("a").is_none());
        taken.extend(["b", "b", "c"].map(|who| places.take(who).unwrap()));
        assert!(places.take("d").is_none());

        taken.remove(0);
        assert!(places.take("a").is_some());
        drop(taken);
        let left = lock(&places.taken);
        assert_eq!((left.in_all, left.by.len()), (0, 0));
    }
}
