//! The keys of the table: where a record is kept.
//!
//! Numbers are big-endian. Kademlia hashes these bytes; the nodes whose hashed identities are closest keep the value.
//!
//! | at | bytes  | field                                                                     |
//! |----|--------|---------------------------------------------------------------------------|
//! | 0  | 1      | version, 1                                                                |
//! | 1  | 1      | kind: 1 service, 2 overlay address, 3 name, 4 model, 5 any model          |
//! | 2  | 1      | 1, 4, 5: bits, how many bits of the signer's hash choose a bucket (0–12)  |
//! | 3  | 2      | 1, 4, 5: the bucket, below 2^bits                                         |
//! | …  | 0–63   | service or node name; an address is 4 or 16 bytes, a model's tag 8        |

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use wiremesh_certs::{ModelTag, NodeId, NodeName, Offer, OverlayIp, ServiceName};

/// An offer is spread over at most 2^12 buckets: at 32 workers a bucket that is 131,072 workers of one service.
pub const MAX_BITS: u8 = 12;
/// No key is longer: the fixed part and a name of 63 bytes.
pub const MAX_KEY_BYTES: usize = 5 + 63;

const VERSION: u8 = 1;
const SERVICE: u8 = 1;
const ADDRESS: u8 = 2;
const NAME: u8 = 3;
const MODEL: u8 = 4;
const ANY_MODEL: u8 = 5;

/// What a value in the table is about.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Key {
    /// Some of the workers that offer it: those whose [`bucket_of`] is this one.
    Offer { offer: Offer, bits: u8, bucket: u16 },
    /// The node that has this overlay address.
    Address(OverlayIp),
    /// The node of this name.
    Name(NodeName),
}

impl Key {
    /// Where `signer` is found among those who offer it while they are spread over 2^`bits` buckets.
    pub fn of_worker(offer: Offer, bits: u8, signer: &NodeId) -> Key {
        Key::Offer { offer, bits, bucket: bucket_of(signer, bits) }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Key::Offer { offer, bits, bucket } => {
                let (kind, rest): (u8, &[u8]) = match offer {
                    Offer::Service(service) => (SERVICE, service.as_str().as_bytes()),
                    Offer::Model(tag) => (MODEL, &tag.0),
                    Offer::AnyModel => (ANY_MODEL, &[]),
                };
                [&[VERSION, kind, *bits], &bucket.to_be_bytes()[..], rest].concat()
            }
            Key::Address(OverlayIp(IpAddr::V4(address))) => [&[VERSION, ADDRESS], &address.octets()[..]].concat(),
            Key::Address(OverlayIp(IpAddr::V6(address))) => [&[VERSION, ADDRESS], &address.octets()[..]].concat(),
            Key::Name(name) => [&[VERSION, NAME], name.as_str().as_bytes()].concat(),
        }
    }

    /// `None` for whatever is not a key of ours: nothing is kept under it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Key> {
        if bytes.len() > MAX_KEY_BYTES {
            return None;
        }
        match bytes {
            [VERSION, kind @ (SERVICE | MODEL | ANY_MODEL), bits, high, low, rest @ ..] => {
                let bucket = u16::from_be_bytes([*high, *low]);
                let offer = match *kind {
                    SERVICE => Offer::Service(ServiceName::new(std::str::from_utf8(rest).ok()?).ok()?),
                    MODEL => Offer::Model(ModelTag(rest.try_into().ok()?)),
                    _ if rest.is_empty() => Offer::AnyModel,
                    _ => return None,
                };
                (*bits <= MAX_BITS && u32::from(bucket) < 1 << bits).then_some(Key::Offer {
                    offer,
                    bits: *bits,
                    bucket,
                })
            }
            [VERSION, ADDRESS, address @ ..] => {
                let four = <[u8; 4]>::try_from(address).map(IpAddr::from);
                let sixteen = || <[u8; 16]>::try_from(address).map(IpAddr::from);
                four.or_else(|_| sixteen()).ok().map(|address| Key::Address(OverlayIp(address)))
            }
            [VERSION, NAME, name @ ..] => NodeName::new(std::str::from_utf8(name).ok()?).ok().map(Key::Name),
            _ => None,
        }
    }
}

/// The bucket a signer belongs to: the first `bits` bits of a hash of its identity.
pub fn bucket_of(signer: &NodeId, bits: u8) -> u16 {
    let hash = Sha256::new().chain_update(b"wiremesh bucket v1").chain_update(signer.0).finalize();
    let first = u16::from_be_bytes([hash[0], hash[1]]);
    first.checked_shr(16 - u32::from(bits.min(MAX_BITS))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_never_panics_and_what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
            if let Some(key) = Key::from_bytes(&bytes) {
                prop_assert_eq!(key.to_bytes(), bytes);
            }
        }

        #[test]
        fn keys_survive_the_wire(name in "[a-z0-9][a-z0-9-]{0,30}[a-z0-9]", bits in 0u8..=MAX_BITS, id: [u8; 32], tag: [u8; 8], v4: [u8; 4], v6: [u8; 16]) {
            let keys = [
                Key::of_worker(Offer::Service(ServiceName::new(&name).unwrap()), bits, &NodeId(id)),
                Key::of_worker(Offer::Model(ModelTag(tag)), bits, &NodeId(id)),
                Key::of_worker(Offer::AnyModel, bits, &NodeId(id)),
                Key::Address(OverlayIp(IpAddr::from(v4))),
                Key::Address(OverlayIp(IpAddr::from(v6))),
                Key::Name(NodeName::new(&name).unwrap()),
            ];
            for key in keys {
                prop_assert_eq!(Key::from_bytes(&key.to_bytes()), Some(key));
            }
        }
    }

    #[test]
    fn a_bucket_splits_into_two_as_bits_grow() {
        let signer = NodeId([7; 32]);

        for bits in 0..MAX_BITS {
            assert_eq!(bucket_of(&signer, bits), bucket_of(&signer, bits + 1) >> 1);
        }
        assert_eq!(bucket_of(&signer, 0), 0);
    }

    #[test]
    fn a_bucket_beyond_its_bits_is_no_key() {
        assert_eq!(Key::from_bytes(&[VERSION, SERVICE, 1, 0, 2, b'a']), None);
        assert!(Key::from_bytes(&[VERSION, SERVICE, 1, 0, 1, b'a']).is_some());
    }
}
