//! What the table makes of bytes from other nodes: see [`wiremesh_certs::fuzz`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    time::Duration,
};

use wiremesh_certs::{Load, ModelOffer, ModelTag, NodeRecord, Offer, RECORD_LIFE, Signed, UnixTime};

use super::{
    entry::{Entry, Opener},
    key::{Key, MAX_KEY_BYTES},
    store::{self, Store},
    value::{self, MAX_ENTRIES, MAX_VALUE_BYTES},
};
use crate::fuzz::{Choices, Member, NOW, Verdict, World, address, told, verified};

/// The services of which members of the world offer some.
const SERVICES: [&str; 3] = ["llm", "ocr", "asr"];
/// Sequences of their records, so many, in milliseconds.
const SEQUENCES: u64 = 4;

/// A key of the table.
pub fn key(bytes: &[u8]) -> Verdict {
    let key = Key::from_bytes(bytes);
    if let Some(key) = &key {
        assert_eq!(key.to_bytes(), bytes, "a key of two forms");
        assert!(bytes.len() <= MAX_KEY_BYTES);
    }
    Verdict::of(&key)
}

/// A value of the table.
pub fn value(bytes: &[u8]) -> Verdict {
    let records = value::decode(bytes);
    if let Some(records) = &records {
        assert_eq!(value::encode(records), bytes, "a value of two forms");
        assert!(records.len() <= MAX_ENTRIES && bytes.len() <= MAX_VALUE_BYTES);
    }
    Verdict::of(&records)
}

/// A write to this node's store: the length of the key, the key, the value.
pub fn put(bytes: &[u8]) -> Verdict {
    let Some((length, rest)) = bytes.split_first() else { return Verdict::Refused };
    let (key, value) = rest.split_at(usize::from(*length).min(rest.len()));
    let World { trust, .. } = World::get();
    let (mut store, mut opener) = (Store::default(), Opener::default());
    let stored = told(store.put(key, value, &mut opener, trust, NOW));
    check_value(&store, key, NOW);
    assert!(store.len() <= stored.as_ref().map_or(0, Vec::len), "more than is said to be stored");
    store.sweep(trust, UnixTime(u64::MAX));
    assert_eq!((store.len(), store.keys()), (0, 0));
    Verdict::of(&stored)
}

/// A run of writes, reads and sweeps, each told by four bytes: what, under which key, whose record, how much later.
pub fn store(bytes: &[u8]) -> Verdict {
    let World { trust, .. } = World::get();
    let (mut store, mut opener) = (Store::default(), Opener::default());
    let (mut now, mut choices) = (NOW, Choices(bytes));
    let mut newest = BTreeMap::new();
    let mut taken = false;
    while let (Some(what), Some(which), Some(record), Some(later)) =
        (choices.byte(), choices.byte(), choices.byte(), choices.byte())
    {
        now = now.plus(Duration::from_secs(u64::from(later % 64)));
        let record = &records()[usize::from(record) % records().len()];
        let key = &keys()[usize::from(which) % keys().len()];
        match what % 4 {
            0 | 1 => {
                let stored = told(store.put(&key.to_bytes(), &value::encode([record]), &mut opener, trust, now));
                for entry in stored.unwrap_or_default() {
                    taken = true;
                    // A withdrawal of what is not there is taken, and not kept.
                    if store::is_withdrawal(key, &entry) && !newest.contains_key(&(key.clone(), entry.id())) {
                        continue;
                    }
                    let sequence = newest.entry((key.clone(), entry.id())).or_insert(entry.sequence());
                    assert!(entry.sequence() >= *sequence, "an earlier record in the place of a later one");
                    *sequence = entry.sequence();
                }
            }
            2 => check_value(&store, &key.to_bytes(), now),
            _ => {
                store.sweep(trust, now);
                newest.clear();
            }
        }
        assert!(store.len() <= keys().len() * 2 && store.keys() <= store.len());
    }
    store.sweep(trust, UnixTime(u64::MAX));
    assert_eq!((store.len(), store.keys()), (0, 0), "what is over is gone");
    Verdict::taken_if(taken)
}

/// What is answered under a key is what anybody would store under it, newest first and of each signer once.
fn check_value(store: &Store, key: &[u8], now: UnixTime) {
    let World { trust, .. } = World::get();
    let Some(answer) = store.get(key, trust, now) else { return };
    let key = Key::from_bytes(key).expect("something is stored under it");
    let records = value::decode(&answer).expect("it is what we answer");
    let open = |signed: &Signed<NodeRecord>| Opener::default().open(signed, trust, now).expect("it was believed");
    let entries: Vec<Entry> = records.iter().map(open).collect();
    assert!(entries.iter().all(|entry| store::check(&key, entry, trust, now).is_ok()), "what does not belong there");
    assert!(entries.is_sorted_by_key(|entry| std::cmp::Reverse(entry.sequence())));
    let signers: BTreeSet<_> = entries.iter().map(Entry::id).collect();
    assert_eq!(signers.len(), entries.len(), "two words of one signer");
}

/// Of each member of the world with each choice of services, as often as there are sequences.
fn records() -> &'static [Signed<NodeRecord>] {
    static RECORDS: OnceLock<Vec<Signed<NodeRecord>>> = OnceLock::new();
    RECORDS.get_or_init(|| {
        let World { member, other, .. } = World::get();
        let choices = || (0..1 << SERVICES.len()).flat_map(|services| (0..SEQUENCES).map(move |n| (services, n)));
        let of = |member: &Member| choices().map(|(services, n)| record(member, services, n)).collect::<Vec<_>>();
        [of(member), of(other)].concat()
    })
}

fn record(member: &Member, services: usize, order: u64) -> Signed<NodeRecord> {
    let services = SERVICES.iter().enumerate().filter(|(at, _)| services & (1 << at) != 0);
    let services: Vec<_> = services.map(|(_, name)| name.parse().expect("a service name")).collect();
    let models = services.iter().take(1).map(|_| ModelOffer { service: 0, tag: ModelTag::of("llama") }).collect();
    let record = NodeRecord {
        sequence: NOW.0 * 1000 + order,
        expires_at: NOW.plus(RECORD_LIFE),
        endpoints: vec!["192.0.2.1:51820".parse().expect("an endpoint")],
        services,
        load: Load::default(),
        tunnel_url: None,
        overlay: true,
        models,
        revocations: 0,
        nearby: Vec::new(),
    };
    Signed::sign(&record, &member.key, &member.chain).expect("a good record")
}

/// Where they belong, and where not.
fn keys() -> &'static [Key] {
    static KEYS: OnceLock<Vec<Key>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let World { member, other, .. } = World::get();
        let mut keys = Vec::new();
        for member in [member, other] {
            let id = member.key.id();
            let services = SERVICES.iter().map(|name| Offer::Service(name.parse().expect("a service name")));
            let offers = services.chain([Offer::Model(ModelTag::of("llama")), Offer::AnyModel]);
            keys.extend(offers.flat_map(|offer| [0, 1, 12].map(|bits| Key::of_worker(offer.clone(), bits, &id))));
            keys.push(Key::Address(address(member)));
            keys.push(Key::Name(verified(member).name().clone()));
        }
        keys
    })
}

/// A value of two records, and the key of a service under which both belong.
#[cfg(test)]
pub fn specimen() -> (Vec<u8>, Vec<u8>) {
    let key = Key::Offer { offer: Offer::Service("llm".parse().unwrap()), bits: 0, bucket: 0 };
    let World { member, other, .. } = World::get();
    (key.to_bytes(), value::encode(&[record(member, 1, 1), record(other, 3, 0)]))
}

/// A key of each kind, by its name.
#[cfg(test)]
pub fn specimens_of_keys() -> Vec<(&'static str, Vec<u8>)> {
    let World { member, .. } = World::get();
    let id = member.key.id();
    [
        ("service", Key::of_worker(Offer::Service("llm".parse().unwrap()), 4, &id)),
        ("model", Key::of_worker(Offer::Model(ModelTag::of("llama")), 12, &id)),
        ("any-model", Key::of_worker(Offer::AnyModel, 0, &id)),
        ("address", Key::Address(address(member))),
        ("address-of-ipv6", Key::Address("fd00:42::7".parse().unwrap())),
        ("name", Key::Name(verified(member).name().clone())),
    ]
    .map(|(name, key)| (name, key.to_bytes()))
    .into()
}
