//! The mesh in which inputs are tried: the same in every run, so that what was signed once stays signed.
//!
//! Its keys are written in this file for everybody to read. No mesh but this one may have them.

use std::{sync::OnceLock, time::Duration};

use rand::RngCore;

use crate::{
    AllowedServices, Authority, CaParameters, Chain, Claims, IdentityKey, MeshName, NodeName, Signed, SignedRecord,
    Trust, UnixTime, WgPrivateKey,
};

/// When inputs are tried.
pub const NOW: UnixTime = UnixTime(1_800_000_000);
/// Whom its proofs are for.
pub const AUDIENCE: &str = "coordinator.fuzz";
/// The life of its certificates: that of a corpus.
const LIFETIME: Duration = Duration::from_secs(3650 * 86_400);

/// An authority and its members.
pub struct World {
    /// The authority, …
    pub authority: Authority,
    /// … its key, …
    pub key: IdentityKey,
    /// … and who believes it.
    pub trust: Trust,
    /// Somebody with a good certificate.
    pub member: Member,
    /// Somebody else.
    pub other: Member,
}

/// A node with its keys and certificate.
pub struct Member {
    /// Its identity.
    pub key: IdentityKey,
    /// Its WireGuard key.
    pub wg: WgPrivateKey,
    /// Its certificate.
    pub chain: Chain,
}

impl World {
    /// The one there is.
    pub fn get() -> &'static World {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(World::new)
    }

    fn new() -> World {
        let parameters = CaParameters {
            mesh: MeshName::new("fuzz").expect("a DNS label"),
            network: "10.42.0.0/16".parse().expect("a network"),
            lifetime: LIFETIME,
        };
        let authority = Authority::create(&parameters, NOW, &mut Counted(1)).expect("good parameters");
        let key = IdentityKey::from_pkcs8_pem(&authority.key_pem()).expect("it was just written");
        let trust = Trust::new(authority.certificate().clone());
        let member = World::member(&authority, 1);
        let other = World::member(&authority, 2);
        World { authority, key, trust, member, other }
    }

    fn member(authority: &Authority, number: u8) -> Member {
        let mut rng = Counted(100 * u64::from(number));
        let (key, wg) = (IdentityKey::generate(&mut rng), WgPrivateKey::generate(&mut rng));
        let claims = Claims {
            identity: key.id(),
            wg: wg.public(),
            name: NodeName::new(&format!("node-{number}")).expect("a DNS label"),
            address: crate::OverlayIp([10, 42, 0, number + 1].into()),
            groups: vec!["gpu".parse().expect("a DNS label")],
            services: AllowedServices::Any,
            lifetime: LIFETIME,
        };
        let chain = authority.issue(&claims, NOW, &mut rng).expect("good claims");
        Member { key, wg, chain }
    }

    /// A record of somebody's that says this, whatever it is; `None` if it is too long for one.
    pub fn record_by(member: &Member, payload: &[u8]) -> Option<SignedRecord> {
        Signed::seal(payload.to_vec(), &member.key, &member.chain).ok()
    }

    /// A certificate of this signed part.
    pub fn certify(&self, signed_part: &[u8]) -> Vec<u8> {
        signed_der(signed_part, &self.key)
    }
}

/// What certificates and requests alike are: the signed part, Ed25519's identifier, the signature.
pub fn signed_der(signed_part: &[u8], key: &IdentityKey) -> Vec<u8> {
    const ALGORITHM_AND_BIT_STRING: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];
    let length = signed_part.len() + ALGORITHM_AND_BIT_STRING.len() + 64;
    let header = match length.to_be_bytes() {
        [.., 0, low @ 0..0x80] => vec![0x30, low],
        [.., 0, low] => vec![0x30, 0x81, low],
        [.., high, low] => vec![0x30, 0x82, high, low],
    };
    [&header[..], signed_part, &ALGORITHM_AND_BIT_STRING, &key.sign(signed_part)].concat()
}

/// The signed part of such a thing.
pub fn signed_part(der: &[u8]) -> &[u8] {
    let header = match der[1] {
        0x82 => 4,
        0x81 => 3,
        _ => 2,
    };
    &der[header..der.len() - 74]
}

/// Numbers that look random and are always the same (SplitMix64, Steele, Lea, Flood 2014). Unlike those of a library
/// they stay so for ever.
pub struct Counted(pub u64);

impl RngCore for Counted {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}
