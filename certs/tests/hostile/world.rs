//! The mesh that is attacked: its authority, a member, and what that member rightly says.

use std::sync::OnceLock;

use coset::{CborSerializable, CoseSign1Builder, HeaderBuilder, cbor::Value, iana};
use minicbor::Encoder;
use wiremesh_certs::*;

use crate::forge::{Ca, DAY, NOW};

/// COSE header parameter "x5chain" (RFC 9360).
pub const X5CHAIN: i64 = 33;
/// What a signature over a record covers besides the record.
pub const RECORD: &[u8] = b"wiremesh/1/record";
/// … over a proof.
pub const PROOF: &[u8] = b"wiremesh/1/proof";
/// … over a list of revocations.
pub const REVOCATIONS: &[u8] = b"wiremesh/1/revocations";

/// The mesh's authority.
pub fn root() -> &'static Ca {
    static ROOT: OnceLock<Ca> = OnceLock::new();
    ROOT.get_or_init(|| Ca::root("lab"))
}

/// What those who know its fingerprint are told of a stranger's certificate.
pub fn another_authority() -> String {
    let ours = root().certificate().fingerprint().to_string();
    format!("its certificate was issued by another authority than this mesh's ({})", &ours[..16])
}

/// The words for a certificate outside the profile.
pub fn outside_the_profile(why: &str) -> String {
    format!("not a certificate of this kind: {why}")
}

/// The words for a message that is none.
pub fn no_message(why: &str) -> String {
    format!("not a signed message of this kind: {why}")
}

/// What the mesh says to a chain.
pub fn verify(ders: Vec<Vec<u8>>) -> Result<Verified, Refused> {
    verify_under(root(), ders)
}

/// What a mesh under that authority says.
pub fn verify_under(root: &Ca, ders: Vec<Vec<u8>>) -> Result<Verified, Refused> {
    root.trust().verify(&Chain::from_ders(ders)?, NOW)
}

/// What the mesh says to a record.
pub fn open(bytes: &[u8]) -> Result<Opened<NodeRecord>, Refused> {
    root().trust().open(&SignedRecord::from_bytes(bytes)?, NOW)
}

/// Somebody with a good certificate.
pub struct Member {
    pub key: IdentityKey,
    pub chain: Chain,
}

/// A member, with keys of its own.
pub fn member() -> Member {
    member_of(&root().authority())
}

/// A member of another mesh, perhaps.
pub fn member_of(authority: &Authority) -> Member {
    let (key, wg) = generate_keys(&mut rand::rng());
    let claims = Claims {
        identity: key.id(),
        wg: wg.public(),
        name: NodeName::new("worker-1").unwrap(),
        address: "10.42.0.7".parse().unwrap(),
        groups: Vec::new(),
        services: AllowedServices::Any,
        lifetime: DAY,
    };
    Member { chain: authority.issue(&claims, NOW, &mut rand::rng()).unwrap(), key }
}

impl Member {
    /// A record, whatever it holds, rightly signed.
    pub fn message(&self, payload: &[u8]) -> Vec<u8> {
        self.signed(RECORD, payload)
    }

    /// A payload of the type of this domain.
    pub fn signed(&self, domain: &[u8], payload: &[u8]) -> Vec<u8> {
        sign(&self.key, self.chain.leaf(), domain, payload)
    }

    /// A record under this header.
    pub fn envelope(&self, header: HeaderBuilder, payload: &[u8]) -> Vec<u8> {
        CoseSign1Builder::new()
            .protected(header.build())
            .payload(payload.to_vec())
            .create_signature(RECORD, |message| self.key.sign(message).to_vec())
            .build()
            .to_vec()
            .unwrap()
    }

    /// A record under these header bytes as they are.
    pub fn under(&self, header: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        let mut encoder = Encoder::new(&mut message);
        encoder.array(4).unwrap().str("Signature1").unwrap().bytes(header).unwrap();
        encoder.bytes(RECORD).unwrap().bytes(payload).unwrap();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.array(4).unwrap().bytes(header).unwrap().map(0).unwrap().bytes(payload).unwrap();
        encoder.bytes(&self.key.sign(&message)).unwrap();
        bytes
    }
}

/// An envelope in its one form.
pub fn sign(key: &IdentityKey, leaf: &[u8], domain: &[u8], payload: &[u8]) -> Vec<u8> {
    let x5chain = Value::Bytes(leaf.to_vec());
    CoseSign1Builder::new()
        .protected(HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).value(X5CHAIN, x5chain).build())
        .payload(payload.to_vec())
        .create_signature(domain, |message| key.sign(message).to_vec())
        .build()
        .to_vec()
        .unwrap()
}

/// What a member says about itself.
pub fn record() -> NodeRecord {
    NodeRecord {
        sequence: 7,
        expires_at: UnixTime(90),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        services: vec![ServiceName::new("ocr").unwrap()],
        load: Load::default(),
        tunnel_url: None,
        overlay: true,
        models: Vec::new(),
        revocations: 0,
        nearby: Vec::new(),
    }
}

/// CBOR written by hand.
pub fn cbor(write: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Encoder::new(&mut bytes));
    bytes
}
