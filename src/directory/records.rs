//! The latest record of every member heard of lately, by identity, address and name.
//!
//! An unknown overlay address is answered from here before anybody is asked: a lookup in the table may itself dial
//! members whose address must be resolved first.

use std::{collections::BTreeMap, time::Instant};

use wiremesh_certs::{NodeId, NodeName, OverlayIp, Trust, UnixTime};

use super::entry::Entry;

/// Members remembered; beyond it whoever was neither heard of nor asked for the longest is forgotten.
pub const MAX_RECORDS: usize = 4096;

/// Records by who signed them.
#[derive(Default)]
pub struct Records {
    members: BTreeMap<NodeId, Known>,
    by_address: BTreeMap<OverlayIp, NodeId>,
    by_name: BTreeMap<NodeName, NodeId>,
}

struct Known {
    entry: Entry,
    used_at: Instant,
}

/// What a record that was learnt means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Learnt {
    /// It says something later than was known of its signer.
    News,
    /// It, or a later one, was known.
    Known,
}

impl Records {
    /// Takes note of a believed entry.
    pub fn learn(&mut self, entry: &Entry, now: Instant) -> Learnt {
        if let Some(known) = self.members.get_mut(&entry.id()) {
            known.used_at = now;
            let same_certificate = known.entry.verified().serial() == entry.verified().serial();
            if known.entry.sequence() > entry.sequence()
                || (known.entry.sequence() == entry.sequence() && same_certificate)
            {
                return Learnt::Known;
            }
        } else if self.members.len() >= MAX_RECORDS {
            self.forget_half();
        }
        self.forget(&entry.id());
        self.claim(entry);
        self.members.insert(entry.id(), Known { entry: entry.clone(), used_at: now });
        Learnt::News
    }

    /// The record of the node that has this address.
    pub fn by_address(&mut self, address: OverlayIp, trust: &Trust, unix: UnixTime, now: Instant) -> Option<Entry> {
        let id = *self.by_address.get(&address)?;
        self.by_id(&id, trust, unix, now)
    }

    /// The record of the node of this name.
    pub fn by_name(&mut self, name: &NodeName, trust: &Trust, unix: UnixTime, now: Instant) -> Option<Entry> {
        let id = *self.by_name.get(name)?;
        self.by_id(&id, trust, unix, now)
    }

    /// The record of this node. One whose certificate has ended or was revoked is forgotten instead.
    pub fn by_id(&mut self, id: &NodeId, trust: &Trust, unix: UnixTime, now: Instant) -> Option<Entry> {
        let known = self.members.get_mut(id)?;
        if known.entry.is_believed(trust, unix) {
            known.used_at = now;
            return Some(known.entry.clone());
        }
        self.forget(id);
        None
    }

    /// Forgets whoever is no longer believed.
    pub fn sweep(&mut self, trust: &Trust, unix: UnixTime) {
        let gone: Vec<NodeId> =
            self.members.iter().filter(|(_, known)| !known.entry.is_believed(trust, unix)).map(|(id, _)| *id).collect();
        for id in gone {
            self.forget(&id);
        }
    }

    /// All of them, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.members.values().map(|known| &known.entry)
    }

    /// Members known.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// An address and a name belong to whoever spoke last: the coordinator gives one on only when its owner is gone.
    fn claim(&mut self, entry: &Entry) {
        let is_later = |owner: Option<&NodeId>| {
            owner
                .and_then(|owner| self.members.get(owner))
                .is_none_or(|known| known.entry.sequence() <= entry.sequence())
        };
        let (address, name) =
            (is_later(self.by_address.get(&entry.address())), is_later(self.by_name.get(entry.name())));
        if address {
            self.by_address.insert(entry.address(), entry.id());
        }
        if name {
            self.by_name.insert(entry.name().clone(), entry.id());
        }
    }

    fn forget(&mut self, id: &NodeId) {
        let Some(known) = self.members.remove(id) else { return };
        if self.by_address.get(&known.entry.address()) == Some(id) {
            self.by_address.remove(&known.entry.address());
        }
        if self.by_name.get(known.entry.name()) == Some(id) {
            self.by_name.remove(known.entry.name());
        }
    }

    fn forget_half(&mut self) {
        let mut used: Vec<Instant> = self.members.values().map(|known| known.used_at).collect();
        used.sort_unstable();
        let middle = used[used.len() / 2];
        let old: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, known)| known.used_at <= middle)
            .map(|(id, _)| *id)
            .take(MAX_RECORDS / 2)
            .collect();
        for id in old {
            self.forget(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::RevocationList;

    use super::*;
    use crate::directory::entry::testing::{Mesh, T0, t0};

    #[test]
    fn the_latest_word_of_a_member_is_found_by_address_and_name() {
        let (mesh, mut records) = (Mesh::new(), Records::default());
        let node = mesh.node(1);

        let news = [2, 1, 2, 3].map(|second| records.learn(&node.offering(&["ocr"], second), t0()));
        let by_address = records.by_address(node.address(), &mesh.trust(), T0, t0()).unwrap();
        let by_name = records.by_name(&node.name(), &mesh.trust(), T0, t0()).unwrap();

        assert_eq!(news, [Learnt::News, Learnt::Known, Learnt::Known, Learnt::News]);
        assert_eq!((by_address.sequence(), by_name.sequence()), (Mesh::sequence(3), Mesh::sequence(3)));
    }

    #[test]
    fn a_revoked_member_is_no_answer() {
        let (mesh, mut records) = (Mesh::new(), Records::default());
        let entry = mesh.node(1).offering(&[], 1);
        records.learn(&entry, t0());

        mesh.revoke(RevocationList { number: 1, identities: [entry.id()].into(), ..RevocationList::default() });

        assert!(records.by_address(entry.address(), &mesh.trust(), T0, t0()).is_none());
        assert_eq!((records.len(), records.by_address.len(), records.by_name.len()), (0, 0, 0));
    }

    #[test]
    fn an_address_that_was_given_on_belongs_to_whoever_spoke_last() {
        let (mesh, mut records) = (Mesh::new(), Records::default());
        let (old, new) = (mesh.node(1), mesh.node(1));
        assert_ne!(old.id(), new.id());

        records.learn(&old.offering(&[], 1), t0());
        records.learn(&new.offering(&[], 2), t0());
        records.learn(&old.offering(&[], 1), t0() + Duration::from_secs(1));

        let found = records.by_address(old.address(), &mesh.trust(), T0, t0()).unwrap();
        assert_eq!(found.id(), new.id());
    }
}
