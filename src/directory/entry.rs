//! A member's record, believed: signature, certificate and dates are checked, once, here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use wiremesh_certs::{
    NodeId, NodeName, NodeRecord, Offer, Opened, OverlayIp, Refused, Signed, Trust, UnixTime, Verified,
};

use super::key::{Key, bucket_of};

/// A record may be dated this far into the future: clocks of honest nodes differ. A sequence beyond it would lock out
/// its own signer's later records.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);
/// As an address hint a record is kept beyond its life: its node may be alive and only cut off from the table.
pub const HINT_FOR: Duration = Duration::from_secs(900);
/// So many verified records are remembered, so that the same bytes under several keys, or from several storers, cost
/// one signature check. The oldest are forgotten.
pub const MAX_REMEMBERED: usize = 1024;

/// What a member says about itself, with the proof that it said so. Clones share it.
///
/// **Invariant:** only opening a signed record makes one.
#[derive(Clone, Debug)]
pub struct Entry(Arc<Opened<NodeRecord>>);

impl Entry {
    /// Who says it.
    pub fn id(&self) -> NodeId {
        self.0.by.id()
    }

    /// The signer's name in the mesh.
    pub fn name(&self) -> &NodeName {
        self.0.by.name()
    }

    /// The signer's overlay address, by its certificate.
    pub fn address(&self) -> OverlayIp {
        self.0.by.address()
    }

    /// The signer's certificate, as checked.
    pub fn verified(&self) -> &Verified {
        &self.0.by
    }

    /// What is said: endpoints, services, load, tunnel URL.
    pub fn record(&self) -> &NodeRecord {
        &self.0.payload
    }

    /// The bytes that prove it, to be handed on.
    pub fn signed(&self) -> &Signed<NodeRecord> {
        &self.0.signed
    }

    /// Publication time in milliseconds: of two records of one signer the one with the greater is right.
    pub fn sequence(&self) -> u64 {
        self.0.payload.sequence
    }

    /// Whether it offers this, and its certificate and the mesh's policy let it.
    pub fn offers(&self, offer: &Offer, trust: &Trust) -> bool {
        self.0.payload.services_for(offer).any(|service| trust.may_offer(&self.0.by, service))
    }

    /// Whether its own date has passed: what it offers may be gone.
    pub fn is_expired(&self, now: UnixTime) -> bool {
        self.0.payload.expires_at <= now
    }

    /// Whether it may be believed at all: certificate neither ended nor revoked since it was checked.
    pub fn is_believed(&self, trust: &Trust, now: UnixTime) -> bool {
        self.0.by.is_valid_at(now) && !trust.is_revoked(&self.0.by)
    }

    /// Whether it is still good for reaching its signer, long after what it offers has expired.
    pub fn is_hint(&self, now: UnixTime) -> bool {
        now < self.0.payload.expires_at.plus(HINT_FOR) && self.0.by.is_valid_at(now)
    }

    /// Whether this is a record that belongs under `key`. A record that no longer offers what the key is about belongs
    /// under it as well, as the word that its signer withdrew.
    pub fn belongs_under(&self, key: &Key) -> bool {
        match key {
            Key::Offer { bits, bucket, .. } => bucket_of(&self.id(), *bits) == *bucket,
            Key::Address(address) => self.address() == *address,
            Key::Name(name) => self.name() == name,
        }
    }

    /// Whether a value under `key` needs this entry no more.
    pub fn is_over(&self, key: &Key, now: UnixTime) -> bool {
        match key {
            Key::Offer { .. } => self.is_expired(now),
            Key::Address(_) | Key::Name(_) => !self.is_hint(now),
        }
    }
}

/// Why a record, or a write to the store, is not accepted. Counted, never logged above DEBUG.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejected {
    /// Not signed by a member in good standing.
    #[error("not believed: {0}")]
    Refused(#[from] Refused),
    /// The signer's certificate was revoked or has ended since its signature was checked.
    #[error("its certificate was revoked or has ended")]
    NoLongerBelieved,
    /// Its own date has passed.
    #[error("expired")]
    Expired,
    /// Dated too far ahead.
    #[error("dated more than {} s into the future", CLOCK_SKEW.as_secs())]
    FromTheFuture,
    /// The key is not one of ours.
    #[error("not a key of this table")]
    BadKey,
    /// The value is malformed or too large.
    #[error("not a value of this table")]
    BadValue,
    /// Another node's address or name, another bucket, or a service that certificate or policy do not let it offer.
    #[error("does not belong under this key")]
    WrongKey,
    /// A later record of the same signer is stored.
    #[error("a later record of its signer is known")]
    Superseded,
    /// As many live entries as may be are under this key.
    #[error("the bucket is full")]
    BucketFull,
    /// The store, or the signer's share of it, is full.
    #[error("the store is full")]
    StoreFull,
}

impl Rejected {
    /// A short label for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Rejected::Refused(refused) => refused.reason(),
            Rejected::NoLongerBelieved => "revoked_or_ended",
            Rejected::Expired => "expired",
            Rejected::FromTheFuture => "from_the_future",
            Rejected::BadKey => "bad_key",
            Rejected::BadValue => "bad_value",
            Rejected::WrongKey => "wrong_key",
            Rejected::Superseded => "superseded",
            Rejected::BucketFull => "bucket_full",
            Rejected::StoreFull => "store_full",
        }
    }
}

/// Opens signed records and remembers which it has opened.
#[derive(Default)]
pub struct Opener {
    /// By SHA-256 of the signed bytes, with the turn in which it was last opened.
    remembered: BTreeMap<[u8; 32], (Entry, u64)>,
    turn: u64,
}

impl Opener {
    /// Believes `signed`, or says why not. An expired record is opened: whether that matters is the reader's question.
    pub fn open(&mut self, signed: &Signed<NodeRecord>, trust: &Trust, now: UnixTime) -> Result<Entry, Rejected> {
        let digest: [u8; 32] = Sha256::digest(signed.as_bytes()).into();
        self.turn += 1;
        let entry = match self.remembered.get_mut(&digest) {
            Some((entry, turn)) if entry.is_believed(trust, now) => {
                *turn = self.turn;
                return Ok(entry.clone());
            }
            Some(_) => {
                self.remembered.remove(&digest);
                return Err(Rejected::NoLongerBelieved);
            }
            None => Entry(Arc::new(trust.open(signed, now)?)),
        };
        let record = entry.record();
        // How long it promises to live from then on is bounded where it was opened.
        if record.sequence / 1000 > now.plus(CLOCK_SKEW).0 {
            return Err(Rejected::FromTheFuture);
        }
        self.remember(digest, entry.clone());
        Ok(entry)
    }

    fn remember(&mut self, digest: [u8; 32], entry: Entry) {
        if self.remembered.len() >= MAX_REMEMBERED {
            // Half at once, so that a full memory does not cost a search for every record.
            let mut turns: Vec<u64> = self.remembered.values().map(|(_, turn)| *turn).collect();
            turns.sort_unstable();
            let middle = turns[turns.len() / 2];
            self.remembered.retain(|_, (_, turn)| *turn > middle);
        }
        self.remembered.insert(digest, (entry, self.turn));
    }
}

#[cfg(test)]
pub mod testing {
    //! A mesh of one authority, its nodes, and what they say.

    use std::{
        net::IpAddr,
        sync::{Arc, OnceLock},
        time::Instant,
    };

    use rand::{SeedableRng, rngs::StdRng};
    use wiremesh_certs::{
        AllowedServices, Authority, CaParameters, Chain, Claims, IdentityKey, Load, MeshName, ModelOffer, ModelTag,
        RECORD_LIFE, RevocationList, ServiceName, TrustStore, WgPrivateKey,
    };

    use super::*;

    pub const T0: UnixTime = UnixTime(1_800_000_000);
    pub const LIFE: Duration = RECORD_LIFE;

    pub fn t0() -> Instant {
        static T0: OnceLock<Instant> = OnceLock::new();
        *T0.get_or_init(crate::clock::now)
    }

    pub struct Mesh {
        authority: Authority,
        pub store: Arc<TrustStore>,
        pub now: UnixTime,
    }

    #[derive(Clone)]
    pub struct Node {
        pub identity: Arc<IdentityKey>,
        pub chain: Chain,
        address: OverlayIp,
        name: NodeName,
        trust: Arc<Trust>,
        now: UnixTime,
    }

    impl Mesh {
        pub fn new() -> Mesh {
            Mesh::at(T0)
        }

        pub fn at(now: UnixTime) -> Mesh {
            let parameters = CaParameters {
                mesh: MeshName::new("lab").unwrap(),
                network: "127.0.0.0/8".parse().unwrap(),
                lifetime: Duration::from_secs(86_400),
            };
            let authority = Authority::create(&parameters, now, &mut rng()).unwrap();
            let store = Arc::new(TrustStore::new(Trust::new(authority.certificate().clone())));
            Mesh { authority, store, now }
        }

        /// A new identity, with the name and address of this number.
        pub fn node(&self, n: u8) -> Node {
            self.issue(n, AllowedServices::Any, Duration::from_secs(3600))
        }

        pub fn node_allowed(&self, n: u8, services: &[&str]) -> Node {
            let services = services.iter().map(|name| ServiceName::new(name).unwrap()).collect();
            self.issue(n, AllowedServices::Only(services), Duration::from_secs(3600))
        }

        pub fn issue(&self, n: u8, services: AllowedServices, lifetime: Duration) -> Node {
            let mut rng = rng();
            let identity = IdentityKey::generate(&mut rng);
            let claims = Claims {
                identity: identity.id(),
                wg: WgPrivateKey::generate(&mut rng).public(),
                name: NodeName::new(&format!("node-{n}")).unwrap(),
                address: OverlayIp(IpAddr::from([127, 0, 10, n])),
                // Even ones are in a group that policies may name.
                groups: if n.is_multiple_of(2) { vec!["even".parse().unwrap()] } else { Vec::new() },
                services,
                lifetime,
            };
            let chain = self.authority.issue(&claims, self.now, &mut rng).unwrap();
            let trust = self.trust();
            Node {
                identity: Arc::new(identity),
                chain,
                address: claims.address,
                name: claims.name,
                trust,
                now: self.now,
            }
        }

        /// The same node with a certificate of another serial number.
        pub fn renew(&self, node: &Node) -> Node {
            let claims = Claims {
                identity: node.id(),
                wg: WgPrivateKey::generate(&mut rng()).public(),
                name: node.name(),
                address: node.address,
                groups: Vec::new(),
                services: AllowedServices::Any,
                lifetime: Duration::from_secs(3600),
            };
            Node { chain: self.authority.issue(&claims, self.now, &mut rng()).unwrap(), ..node.clone() }
        }

        pub fn trust(&self) -> Arc<Trust> {
            self.store.current()
        }

        pub fn revoke(&self, list: RevocationList) {
            let signed = self.authority.sign_revocations(&list).unwrap();
            assert!(self.store.apply_revocations(&signed, self.now).unwrap());
        }

        pub fn sequence(order: u64) -> u64 {
            T0.0 * 1000 + order
        }
    }

    impl Node {
        /// Its record of this order, which lives as long after that many seconds as records do.
        pub fn offering(&self, services: &[&str], order: u64) -> Entry {
            let expires_at = self.now.plus(LIFE + Duration::from_secs(order));
            self.open(&self.sign(services, order, expires_at))
        }

        /// The same, of a service that serves models.
        pub fn serving(&self, service: &str, models: &[&str], order: u64) -> Entry {
            let offered = |model: &&str| ModelOffer { service: 0, tag: ModelTag::of(model) };
            let expires_at = self.now.plus(LIFE + Duration::from_secs(order));
            let record = NodeRecord {
                models: models.iter().map(offered).collect(),
                revocations: 0,
                nearby: Vec::new(),
                ..self.record(&[service], order, expires_at)
            };
            self.open(&Signed::sign(&record, &self.identity, &self.chain).unwrap())
        }

        pub fn dated(&self, order: u64, expires_at: UnixTime) -> Entry {
            self.open(&self.sign(&["ocr"], order, expires_at))
        }

        /// The same, reached at another place.
        pub fn moved(&self, services: &[&str], order: u64) -> Entry {
            let record = NodeRecord {
                endpoints: vec!["192.0.2.2:51820".parse().unwrap()],
                ..self.record(services, order, self.now.plus(LIFE + Duration::from_secs(order)))
            };
            self.open(&Signed::sign(&record, &self.identity, &self.chain).unwrap())
        }

        pub fn sign(&self, services: &[&str], order: u64, expires_at: UnixTime) -> Signed<NodeRecord> {
            Signed::sign(&self.record(services, order, expires_at), &self.identity, &self.chain).unwrap()
        }

        fn record(&self, services: &[&str], order: u64, expires_at: UnixTime) -> NodeRecord {
            NodeRecord {
                sequence: self.now.0 * 1000 + order,
                expires_at,
                endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
                services: services.iter().map(|name| ServiceName::new(name).unwrap()).collect(),
                load: Load::default(),
                tunnel_url: None,
                overlay: true,
                models: Vec::new(),
                revocations: 0,
                nearby: Vec::new(),
            }
        }

        pub fn open(&self, signed: &Signed<NodeRecord>) -> Entry {
            Opener::default().open(signed, &self.trust, self.now).unwrap()
        }

        pub fn id(&self) -> NodeId {
            self.identity.id()
        }

        pub fn address(&self) -> OverlayIp {
            self.address
        }

        pub fn name(&self) -> NodeName {
            self.name.clone()
        }
    }

    pub fn rng() -> StdRng {
        StdRng::from_os_rng()
    }
}
