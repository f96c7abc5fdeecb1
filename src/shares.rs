//! A few places that many share, of which nobody takes more than a share.
//!
//! What is done for others before it is known what they may ask for takes a place here first: one who asks for too much
//! of it is sent away, and the others are not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places, and who has them. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Shares<K: Ord> {
    all: usize,
    each: usize,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Clone + Ord> Shares<K> {
    /// So many places in all, of which each takes at most so many.
    pub fn new(all: usize, each: usize) -> Shares<K> {
        Shares { all, each, taken: Arc::default() }
    }

    /// A place for `who`, until it is dropped. `None` if it has its share, or all are taken.
    pub fn take(&self, who: K) -> Option<Share<K>> {
        let mut taken = self.taken();
        // At most as many as there are places.
        let in_all: usize = taken.values().sum();
        let own = taken.get(&who).copied().unwrap_or(0);
        if in_all >= self.all || own >= self.each {
            return None;
        }
        taken.insert(who.clone(), own + 1);
        Some(Share { shares: self.clone(), who })
    }
}

impl<K: Ord> Shares<K> {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Share<K: Ord> {
    shares: Shares<K>,
    who: K,
}

impl<K: Ord> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        match taken.get_mut(&self.who) {
            Some(own) if *own > 1 => *own -= 1,
            _ => _ = taken.remove(&self.who),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_share_and_all_no_more_than_there_is() {
        let shares = Shares::new(3, 2);

        let greedy = [shares.take("mallory"), shares.take("mallory")];
        assert!(greedy.iter().all(Option::is_some));
        assert!(shares.take("mallory").is_none());

        let _alice = shares.take("alice").expect("there is one left");
        assert!(shares.take("bob").is_none());

        drop(greedy);
        assert!(shares.take("bob").is_some());
    }

    #[test]
    fn who_has_given_all_back_is_not_remembered() {
        let shares = Shares::new(3, 2);

        drop((shares.take("alice"), shares.take("alice"), shares.take("bob")));

        assert!(shares.taken().is_empty());
    }
}
