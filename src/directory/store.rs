//! What this node stores for others: checked as it comes in, merged per signer, gone when its own date has passed.
//!
//! ```text
//!   put(key, value) ─► each record: believed? in time? belongs under this key? ─► newest per signer ─► stored
//!   get(key) ─► the live entries under it, in one value
//! ```
//!
//! **Invariant:** a record is stored because of its own signature and date, never because of who wrote it.

use std::collections::BTreeMap;

use wiremesh_certs::{NodeId, Trust, UnixTime};

use super::{
    entry::{Entry, Opener, Rejected},
    key::Key,
    value::{self, MAX_ENTRIES},
};

/// Keys with anything under them; beyond it new keys are refused.
pub const MAX_KEYS: usize = 8_192;
/// Entries under all keys together, about 1 KiB each and shared between keys; beyond it new ones are refused.
pub const MAX_STORED: usize = 16_384;
/// Keys one signer may have entries under: sixteen services, sixteen models and "any model" at two spreads each,
/// address, name, and a few that a change of services left behind. No member can fill the store of another.
pub const MAX_KEYS_PER_SIGNER: usize = 84;
/// Nodes that may say an address or name is theirs: an old certificate of a name that was given on.
pub const MAX_CLAIMANTS: usize = 4;

/// Entries by key and signer.
#[derive(Default)]
pub struct Store {
    keys: BTreeMap<Key, BTreeMap<NodeId, Entry>>,
    keys_of_signer: BTreeMap<NodeId, usize>,
    stored: usize,
}

impl Store {
    /// Merges `value` into what is stored under `key`. Returns its entries that are stored, or were already; if there
    /// are none, why the first of its records was not.
    pub fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        opener: &mut Opener,
        trust: &Trust,
        now: UnixTime,
    ) -> Result<Vec<Entry>, Rejected> {
        let key = Key::from_bytes(key).ok_or(Rejected::BadKey)?;
        let records = value::decode(value).ok_or(Rejected::BadValue)?;
        let (mut stored, mut rejected) = (Vec::new(), None);
        for record in records {
            let opened = opener.open(&record, trust, now);
            match opened.and_then(|entry| self.put_entry(&key, entry.clone(), trust, now).map(|()| entry)) {
                Ok(entry) => stored.push(entry),
                Err(why) => rejected = rejected.or(Some(why)),
            }
        }
        if stored.is_empty() { Err(rejected.unwrap_or(Rejected::BadValue)) } else { Ok(stored) }
    }

    /// Stores one believed entry under `key`.
    pub fn put_entry(&mut self, key: &Key, entry: Entry, trust: &Trust, now: UnixTime) -> Result<(), Rejected> {
        check(key, &entry, trust, now)?;
        let signer = entry.id();
        let held = self.keys.get(key).and_then(|entries| entries.get(&signer));
        if let Some(held) = held {
            if held.sequence() > entry.sequence() {
                return Err(Rejected::Superseded);
            }
        } else {
            if is_withdrawal(key, &entry) {
                return Ok(());
            }
            self.make_room(key, &signer, now)?;
            self.stored += 1;
            *self.keys_of_signer.entry(signer).or_default() += 1;
        }
        self.keys.entry(key.clone()).or_default().insert(signer, entry);
        Ok(())
    }

    /// Forgets what has expired, ended or been revoked, and what its signer may no longer offer.
    pub fn sweep(&mut self, trust: &Trust, now: UnixTime) {
        let mut gone = Vec::new();
        self.keys.retain(|key, entries| {
            entries.retain(|signer, entry| {
                let stays = entry.is_believed(trust, now) && check(key, entry, trust, now).is_ok();
                if !stays {
                    gone.push(*signer);
                }
                stays
            });
            !entries.is_empty()
        });
        for signer in gone {
            self.count_out(signer);
        }
    }

    /// The live entries under `key`, newest first, as a value. A withdrawal is among them: a reader that also hears an
    /// older word of that signer then knows which is right. What was revoked since it was stored is not.
    pub fn get(&self, key: &[u8], trust: &Trust, now: UnixTime) -> Option<Vec<u8>> {
        let live = self.live(key, trust, now);
        (!live.is_empty()).then(|| value::encode(live.into_iter().map(Entry::signed)))
    }

    /// The sequence of the newest of them.
    pub fn latest(&self, key: &[u8], trust: &Trust, now: UnixTime) -> Option<u64> {
        self.live(key, trust, now).first().map(|entry| entry.sequence())
    }

    fn live(&self, key: &[u8], trust: &Trust, now: UnixTime) -> Vec<&Entry> {
        let Some(key) = Key::from_bytes(key) else { return Vec::new() };
        let is_live = |entry: &&Entry| entry.is_believed(trust, now) && check(&key, entry, trust, now).is_ok();
        let mut live: Vec<&Entry> =
            self.keys.get(&key).into_iter().flat_map(|of| of.values()).filter(is_live).collect();
        live.sort_by_key(|entry| std::cmp::Reverse(entry.sequence()));
        live
    }

    /// Entries stored, under all keys.
    pub fn len(&self) -> usize {
        self.stored
    }

    /// Keys with anything under them.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Room for an entry of a signer who has none under `key` yet.
    fn make_room(&mut self, key: &Key, signer: &NodeId, now: UnixTime) -> Result<(), Rejected> {
        let limit = match key {
            Key::Offer { .. } => MAX_ENTRIES,
            Key::Address(_) | Key::Name(_) => MAX_CLAIMANTS,
        };
        let entries = self.keys.get(key);
        if entries.is_some_and(|entries| entries.len() >= limit) {
            let replaceable = entries.into_iter().flatten().find(|(_, entry)| match key {
                Key::Offer { .. } => entry.is_over(key, now) || is_withdrawal(key, entry),
                // The latest claimants are the right ones: an address that was given on, and on.
                Key::Address(_) | Key::Name(_) => true,
            });
            let replaceable = *replaceable.ok_or(Rejected::BucketFull)?.0;
            self.remove(key, &replaceable);
        }
        let full = self.stored >= MAX_STORED
            || (self.keys.len() >= MAX_KEYS && !self.keys.contains_key(key))
            || self.keys_of_signer.get(signer).is_some_and(|keys| *keys >= MAX_KEYS_PER_SIGNER);
        if full { Err(Rejected::StoreFull) } else { Ok(()) }
    }

    fn remove(&mut self, key: &Key, signer: &NodeId) {
        if self.keys.get_mut(key).and_then(|entries| entries.remove(signer)).is_some() {
            self.count_out(*signer);
        }
    }

    fn count_out(&mut self, signer: NodeId) {
        self.stored -= 1;
        if let Some(keys) = self.keys_of_signer.get_mut(&signer) {
            *keys -= 1;
            if *keys == 0 {
                self.keys_of_signer.remove(&signer);
            }
        }
    }
}

/// What storer and reader both ask of an entry under a key.
pub fn check(key: &Key, entry: &Entry, trust: &Trust, now: UnixTime) -> Result<(), Rejected> {
    if !entry.belongs_under(key) {
        return Err(Rejected::WrongKey);
    }
    if let Key::Offer { offer, .. } = key
        && entry.record().claims(offer)
        && !entry.offers(offer, trust)
    {
        return Err(Rejected::WrongKey);
    }
    if entry.is_over(key, now) {
        return Err(Rejected::Expired);
    }
    Ok(())
}

/// Whether this is its signer's word that it offers what `key` is about no longer.
pub(super) fn is_withdrawal(key: &Key, entry: &Entry) -> bool {
    matches!(key, Key::Offer { offer, .. } if !entry.record().claims(offer))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::{ModelTag, Offer, Policy, RevocationList, Rule, ServiceName};

    use super::*;
    use crate::directory::{
        entry::testing::{LIFE, Mesh, Node, T0},
        value::{decode, encode},
    };

    #[test]
    fn a_later_record_replaces_an_earlier_one_and_never_the_other_way_round() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let node = mesh.node(1);

        store.put(&mesh, &node.offering(&["ocr"], 1)).unwrap();
        store.put(&mesh, &node.offering(&["ocr", "asr"], 3)).unwrap();
        let late = store.put(&mesh, &node.offering(&["ocr"], 2));

        assert!(matches!(late, Err(Rejected::Superseded)));
        assert_eq!(store.sequences(&mesh, "ocr", T0), [Mesh::sequence(3)]);
    }

    #[test]
    fn entries_of_several_writers_are_merged() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());

        for n in 1..=5 {
            store.put(&mesh, &mesh.node(n).offering(&["ocr"], u64::from(n))).unwrap();
        }

        assert_eq!(store.sequences(&mesh, "ocr", T0).len(), 5);
    }

    #[test]
    fn an_entry_is_gone_when_its_own_date_has_passed() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        store.put(&mesh, &mesh.node(1).offering(&["ocr"], 1)).unwrap();
        let after = T0.plus(LIFE + Duration::from_secs(1));

        assert_eq!(store.sequences(&mesh, "ocr", after), [0u64; 0]);
        store.store.sweep(&mesh.trust(), after);

        assert_eq!((store.store.len(), store.store.keys()), (0, 0));
        assert!(store.store.keys_of_signer.is_empty());
    }

    #[test]
    fn a_withdrawal_takes_the_place_of_the_offer_and_is_kept_so_that_the_offer_stays_away() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let node = mesh.node(1);
        store.put(&mesh, &node.offering(&["ocr"], 1)).unwrap();

        store.put_under(&mesh, &key("ocr"), &node.offering(&[], 2)).unwrap();
        let again = store.put(&mesh, &node.offering(&["ocr"], 1));

        assert!(matches!(again, Err(Rejected::Superseded)));
        assert_eq!(store.sequences(&mesh, "ocr", T0), [Mesh::sequence(2)]);
    }

    #[test]
    fn a_withdrawal_of_what_was_never_offered_takes_no_room() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());

        store.put_under(&mesh, &key("ocr"), &mesh.node(1).offering(&[], 1)).unwrap();

        assert_eq!(store.store.len(), 0);
    }

    #[test]
    fn what_is_forged_misplaced_not_allowed_or_out_of_time_is_refused() {
        let (mesh, other, mut store) = (Mesh::new(), Mesh::new(), Stored::default());
        let node = mesh.node(1);
        let limited = mesh.node_allowed(2, &["asr"]);
        let good = node.offering(&["ocr"], 1);
        let mut forged = encode([good.signed()]);
        let last = forged.len() - 1;
        forged[last] ^= 1;

        let cases: [(&str, Key, Vec<u8>); 7] = [
            ("one byte changed", key("ocr"), forged),
            ("of another mesh", key("ocr"), encode([other.node(1).offering(&["ocr"], 1).signed()])),
            ("service not allowed", key("ocr"), encode([limited.offering(&["ocr"], 1).signed()])),
            ("another node's address", Key::Address(mesh.node(3).address()), encode([good.signed()])),
            ("another node's name", Key::Name(mesh.node(3).name()), encode([good.signed()])),
            ("expired", key("ocr"), encode([node.dated(1, T0).signed()])),
            ("from the future", key("ocr"), encode([&node.sign(&["ocr"], 3_600_000, T0.plus(LIFE))])),
        ];
        for (case, key, value) in cases {
            let refused = store.store.put(&key.to_bytes(), &value, &mut store.opener, &mesh.trust(), T0);
            assert!(refused.is_err(), "{case}");
        }
        assert_eq!(store.store.len(), 0);
    }

    #[test]
    fn a_revoked_signer_is_swept_out_and_not_let_in_again() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let entry = mesh.node(1).offering(&["ocr"], 1);
        store.put(&mesh, &entry).unwrap();

        mesh.revoke(RevocationList {
            number: 1,
            serials: [entry.verified().serial()].into(),
            ..RevocationList::default()
        });
        assert_eq!(store.sequences(&mesh, "ocr", T0), [0u64; 0], "nobody is told of it, swept or not");
        store.store.sweep(&mesh.trust(), T0);

        assert_eq!(store.store.len(), 0);
        assert!(store.put(&mesh, &entry).is_err());
    }

    #[test]
    fn what_a_signer_may_not_offer_by_policy_is_neither_stored_nor_told() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let (even, odd) = (mesh.node(2).offering(&["ocr"], 1), mesh.node(1).offering(&["ocr"], 2));
        store.put(&mesh, &odd).unwrap();
        let only_even = Rule { offer: Some(["even".parse().unwrap()].into()), call: None };

        mesh.revoke(RevocationList {
            number: 1,
            policy: Policy { services: [("ocr".parse().unwrap(), only_even)].into(), ..Policy::default() },
            ..RevocationList::default()
        });

        assert_eq!(store.sequences(&mesh, "ocr", T0), [0u64; 0]);
        assert!(matches!(store.put(&mesh, &odd), Err(Rejected::WrongKey)));
        store.put(&mesh, &even).unwrap();
        store.store.sweep(&mesh.trust(), T0);
        assert_eq!((store.sequences(&mesh, "ocr", T0), store.store.len()), (vec![Mesh::sequence(1)], 1));
    }

    #[test]
    fn a_full_bucket_refuses_newcomers_and_still_takes_refreshes() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let nodes: Vec<Node> = (1..=49).map(|n| mesh.node(n)).collect();
        for node in &nodes[..48] {
            store.put(&mesh, &node.offering(&["ocr"], 1)).unwrap();
        }

        let newcomer = store.put(&mesh, &nodes[48].offering(&["ocr"], 1));

        assert!(matches!(newcomer, Err(Rejected::BucketFull)));
        store.put(&mesh, &nodes[0].offering(&["ocr"], 2)).unwrap();
        assert_eq!(store.store.len(), 48);
    }

    #[test]
    fn who_serves_a_model_is_kept_under_it_if_its_certificate_allows_the_service() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let (free, limited) = (mesh.node(1), mesh.node_allowed(2, &["asr"]));
        let under = |offer| Key::Offer { offer, bits: 0, bucket: 0 };

        for key in [under(Offer::Model(ModelTag::of("llama"))), under(Offer::AnyModel)] {
            store.put_under(&mesh, &key, &free.serving("llm", &["llama"], 1)).unwrap();
            let refused = store.put_under(&mesh, &key, &limited.serving("llm", &["llama"], 1));
            assert!(matches!(refused, Err(Rejected::WrongKey)));
        }
        let other = under(Offer::Model(ModelTag::of("mistral")));
        store.put_under(&mesh, &other, &free.serving("llm", &["llama"], 1)).unwrap();

        assert_eq!(store.store.len(), 2, "what was never offered takes no room");
    }

    #[test]
    fn one_signer_cannot_fill_the_store() {
        let (mesh, mut store) = (Mesh::new(), Stored::default());
        let node = mesh.node(1);

        let refused = (0..100)
            .map(|n| node.offering(&[&format!("service-{n}")], n))
            .filter(|entry| store.put(&mesh, entry).is_err())
            .count();

        assert_eq!(refused, 100 - MAX_KEYS_PER_SIGNER);
    }

    fn key(service: &str) -> Key {
        Key::Offer { offer: ServiceName::new(service).unwrap().into(), bits: 0, bucket: 0 }
    }

    #[derive(Default)]
    struct Stored {
        store: Store,
        opener: Opener,
    }

    impl Stored {
        fn put(&mut self, mesh: &Mesh, entry: &Entry) -> Result<(), Rejected> {
            let service = entry.record().services[0].as_str().to_owned();
            self.put_under(mesh, &key(&service), entry)
        }

        fn put_under(&mut self, mesh: &Mesh, key: &Key, entry: &Entry) -> Result<(), Rejected> {
            self.store.put(&key.to_bytes(), &encode([entry.signed()]), &mut self.opener, &mesh.trust(), T0).map(drop)
        }

        fn sequences(&mut self, mesh: &Mesh, service: &str, now: UnixTime) -> Vec<u64> {
            let value = self.store.get(&key(service).to_bytes(), &mesh.trust(), now);
            let read = value.map(|value| decode(&value).unwrap()).unwrap_or_default();
            let mesh_records = read.iter().map(|signed| {
                self.store
                    .keys
                    .values()
                    .flat_map(BTreeMap::values)
                    .find(|entry| entry.signed().as_bytes() == signed.as_bytes())
            });
            mesh_records.map(|entry| entry.unwrap().sequence()).collect()
        }
    }
}
