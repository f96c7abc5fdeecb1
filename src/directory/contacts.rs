//! Members to begin from: who to dial when the table is empty, and what is worth keeping on disk.

use std::{collections::BTreeMap, time::Instant};

use wiremesh_certs::{NodeId, Trust, UnixTime};

use super::entry::Entry;

/// Contacts remembered; beyond it whoever was proven longest ago, or never, is forgotten.
pub const MAX_CONTACTS: usize = 256;

/// Members with a record, most recently proven first.
#[derive(Default)]
pub struct Contacts {
    members: BTreeMap<NodeId, Contact>,
}

struct Contact {
    entry: Entry,
    /// When a connection to it, or from it, was last seen to work.
    proven_at: Option<Instant>,
}

impl Contacts {
    /// Somebody to begin from. True if it was not known.
    pub fn add(&mut self, entry: &Entry) -> bool {
        if self.members.contains_key(&entry.id()) {
            self.refresh(entry);
            return false;
        }
        if self.members.len() >= MAX_CONTACTS {
            let worst = self.members.iter().min_by_key(|(_, contact)| contact.proven_at).map(|(id, _)| *id);
            worst.map(|id| self.members.remove(&id));
        }
        self.members.insert(entry.id(), Contact { entry: entry.clone(), proven_at: None });
        true
    }

    /// A later record of a contact was heard.
    pub fn refresh(&mut self, entry: &Entry) {
        if let Some(contact) = self.members.get_mut(&entry.id())
            && contact.entry.sequence() < entry.sequence()
        {
            contact.entry = entry.clone();
        }
    }

    /// It was connected to.
    pub fn on_proven(&mut self, id: &NodeId, now: Instant) {
        if let Some(contact) = self.members.get_mut(id) {
            contact.proven_at = Some(now);
        }
    }

    /// Forgets whoever is no longer believed.
    pub fn sweep(&mut self, trust: &Trust, unix: UnixTime) {
        self.members.retain(|_, contact| contact.entry.is_believed(trust, unix));
    }

    /// Most recently proven first.
    pub fn list(&self) -> Vec<Entry> {
        let mut contacts: Vec<&Contact> = self.members.values().collect();
        contacts.sort_by_key(|contact| std::cmp::Reverse(contact.proven_at));
        contacts.into_iter().map(|contact| contact.entry.clone()).collect()
    }

    /// Contacts known.
    pub fn len(&self) -> usize {
        self.members.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::directory::entry::testing::{Mesh, t0};

    #[test]
    fn the_most_recently_proven_come_first() {
        let (mesh, mut contacts) = (Mesh::new(), Contacts::default());
        let entries = [1, 2, 3].map(|n| mesh.node(n).offering(&[], 1));
        for entry in &entries {
            contacts.add(entry);
        }

        contacts.on_proven(&entries[2].id(), t0());
        contacts.on_proven(&entries[0].id(), t0() + Duration::from_secs(1));

        let order: Vec<NodeId> = contacts.list().iter().map(Entry::id).collect();
        assert_eq!(order, [entries[0].id(), entries[2].id(), entries[1].id()]);
    }

    #[test]
    fn at_the_bound_the_least_proven_makes_room() {
        let (mesh, mut contacts) = (Mesh::new(), Contacts::default());
        let proven = mesh.node(1).offering(&[], 1);
        contacts.add(&proven);
        contacts.on_proven(&proven.id(), t0());

        for _ in 0..MAX_CONTACTS + 5 {
            contacts.add(&mesh.node(2).offering(&[], 1));
        }

        assert_eq!(contacts.len(), MAX_CONTACTS);
        assert_eq!(contacts.list()[0].id(), proven.id());
    }
}
