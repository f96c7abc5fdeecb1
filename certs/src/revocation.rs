//! The one list that rules a mesh, numbered and signed by its authority: what is revoked, who may offer and call what, and
//! which authorities are believed.
//!
//! CBOR array, in this order:
//!
//! | at | type | field | bounds |
//! |----|------|-------|--------|
//! | 0 | uint | number | grows with each change |
//! | 1 | array of bytes | serials | at most 10,000 of 16 bytes |
//! | 2 | array of bytes | identities | at most 10,000 of 32 bytes |
//! | 3 | array, absent or null if open | policy | see [`Policy`] |
//! | 4 | array of bytes, absent or null if none | authorities | at most 4 certificates of at most 2,048 bytes |
//! | 5 | array of bytes, absent if none | crosses | at most 8 of the same |
//!
//! All of it travels under one number, so that one acknowledgement tells what an agent enforces, and an older state of any
//! of it can never come back.

use std::collections::BTreeSet;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::{MAX_CERTIFICATE_BYTES, NodeId, Payload, Policy, Serial, Signed, Verified};

/// Of each kind. At the bound the oldest certificates have long expired and need no entry.
pub const MAX_REVOCATIONS: usize = 10_000;
/// Authorities believed at once: one offline root, the intermediate in use, and the next of each while they are replaced.
pub const MAX_AUTHORITIES: usize = 4;
/// Certificates that lead from earlier authorities to these. At the bound those who missed the oldest changes join anew.
pub const MAX_CROSSES: usize = 8;

/// A [`RevocationList`] as it travels.
pub type SignedRevocations = Signed<RevocationList>;

/// What the mesh's authority has ruled. A higher number replaces a lower one whole.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct RevocationList {
    /// Grows with each change.
    #[n(0)]
    pub number: u64,
    /// Revoked certificates.
    #[n(1)]
    pub serials: BTreeSet<Serial>,
    /// Revoked identity keys, with every certificate they have or will have. An authority's key may be among them.
    #[n(2)]
    pub identities: BTreeSet<NodeId>,
    /// Who may offer and call what.
    #[n(3)]
    #[cbor(with = "open_policy", has_nil)]
    pub policy: Policy,
    /// The authorities that are believed from here on, as certificates in DER: the one that issues first. Empty: those
    /// that are known stay.
    #[n(4)]
    #[cbor(with = "certificates", has_nil)]
    pub authorities: Vec<Vec<u8>>,
    /// Certificates of authorities' keys, signed by earlier authorities: what makes these believed by those who know only
    /// the earlier ones.
    #[n(5)]
    #[cbor(with = "certificates", has_nil)]
    pub crosses: Vec<Vec<u8>>,
}

impl RevocationList {
    /// Whether it names this certificate or its key.
    pub fn revokes(&self, serial: &Serial, identity: &NodeId) -> bool {
        self.serials.contains(serial) || self.identities.contains(identity)
    }

    /// Whether it names a certificate that was believed.
    pub fn names(&self, verified: &Verified) -> bool {
        self.revokes(&verified.serial(), &verified.id())
    }
}

impl SignedRevocations {
    /// The number that it says it has; not to be believed. For little, before anything dear is looked at: an old list
    /// need not be.
    pub fn claimed_number(&self) -> Option<u64> {
        let mut envelope = Decoder::new(self.as_bytes());
        envelope.array().ok()?;
        envelope.bytes().ok()?;
        envelope.map().ok()?;
        let mut list = Decoder::new(envelope.bytes().ok()?);
        list.array().ok()?;
        list.u64().ok()
    }
}

impl Payload for RevocationList {
    const DOMAIN: &'static str = "revocations";
    const MAX_BYTES: usize = 1024 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.serials.len() > MAX_REVOCATIONS || self.identities.len() > MAX_REVOCATIONS {
            return Err("more than 10,000 revocations");
        }
        if self.authorities.len() > MAX_AUTHORITIES {
            return Err("more than 4 authorities");
        }
        if self.crosses.len() > MAX_CROSSES {
            return Err("more than 8 certificates that lead to its authorities");
        }
        if self.authorities.iter().chain(&self.crosses).any(|der| der.len() > MAX_CERTIFICATE_BYTES) {
            return Err("a certificate of more than 2,048 bytes");
        }
        self.policy.check()
    }
}

/// Whether a field stands empty because a later one does not; passes over it if so.
pub(crate) fn is_null(decoder: &mut Decoder<'_>) -> Result<bool, decode::Error> {
    let is_null = decoder.datatype()? == minicbor::data::Type::Null;
    if is_null {
        decoder.null()?;
    }
    Ok(is_null)
}

/// An open policy is no field.
mod open_policy {
    use super::*;

    pub fn encode<C, W: encode::Write>(
        policy: &Policy,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        if policy.is_open() { encoder.null()?.ok() } else { policy.encode(encoder, context) }
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, context: &mut C) -> Result<Policy, decode::Error> {
        if is_null(decoder)? {
            return Ok(Policy::default());
        }
        let policy = Policy::decode(decoder, context)?;
        if policy.is_open() { Err(decode::Error::message("an open policy that is written out")) } else { Ok(policy) }
    }

    pub fn nil() -> Option<Policy> {
        Some(Policy::default())
    }

    pub fn is_nil(policy: &Policy) -> bool {
        policy.is_open()
    }
}

/// Certificates as an array of byte strings; none are no field.
mod certificates {
    use super::*;

    pub fn encode<C, W: encode::Write>(
        certificates: &[Vec<u8>],
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        if certificates.is_empty() {
            return encoder.null()?.ok();
        }
        encoder.array(certificates.len() as u64)?;
        certificates.iter().try_for_each(|der| encoder.bytes(der).map(drop))
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<Vec<u8>>, decode::Error> {
        let bad = || decode::Error::message("not a list of certificates");
        if is_null(decoder)? {
            return Ok(Vec::new());
        }
        let count = decoder.array()?.ok_or_else(bad)?;
        if count == 0 || count > MAX_CROSSES as u64 {
            return Err(bad());
        }
        (0..count).map(|_| Ok(decoder.bytes()?.to_vec())).collect()
    }

    pub fn nil() -> Option<Vec<Vec<u8>>> {
        Some(Vec::new())
    }

    pub fn is_nil(certificates: &[Vec<u8>]) -> bool {
        certificates.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rule, ServiceName};

    #[test]
    fn a_list_of_revocations_alone_has_three_fields() {
        let list = RevocationList { number: 7, serials: [Serial([1; 16])].into(), ..RevocationList::default() };

        let bytes = minicbor::to_vec(&list).unwrap();

        assert_eq!(bytes[0], 0x83, "an array of three");
        assert_eq!(minicbor::decode::<RevocationList>(&bytes).unwrap(), list);
    }

    #[test]
    fn everything_in_a_list_survives_its_encoding() {
        let rule = Rule { offer: Some(["gpu".parse().unwrap()].into()), call: None };
        let policy = Policy { services: [(ServiceName::new("llm").unwrap(), rule)].into(), ..Policy::default() };
        for (policy, authorities, crosses) in [
            (policy.clone(), vec![], vec![]),
            (Policy::default(), vec![vec![1, 2]], vec![]),
            (policy, vec![vec![1, 2], vec![3]], vec![vec![4]]),
            (Policy::default(), vec![], vec![vec![4]]),
        ] {
            let list = RevocationList { number: 7, policy, authorities, crosses, ..RevocationList::default() };

            let bytes = minicbor::to_vec(&list).unwrap();

            assert_eq!(minicbor::decode::<RevocationList>(&bytes).unwrap(), list);
        }
    }

    #[test]
    fn what_number_a_list_claims_is_read_without_the_rest() {
        let authority = crate::Authority::create(
            &crate::CaParameters {
                mesh: "lab".parse().unwrap(),
                network: "10.42.0.0/16".parse().unwrap(),
                lifetime: std::time::Duration::from_secs(3600),
            },
            crate::UnixTime(1_800_000_000),
            &mut rand::rng(),
        );
        let list = RevocationList { number: 70_000, serials: [Serial([1; 16])].into(), ..RevocationList::default() };
        let signed = authority.unwrap().sign_revocations(&list).unwrap();

        assert_eq!(signed.claimed_number(), Some(70_000));
        for length in 0..signed.as_bytes().len() {
            // Whatever is said of a part, it is said without a panic.
            let _ = SignedRevocations::from_bytes(&signed.as_bytes()[..length]).unwrap().claimed_number();
        }
        assert_eq!(SignedRevocations::from_bytes(b"junk").unwrap().claimed_number(), None);
    }

    #[test]
    fn the_bounds_hold() {
        let der = |length| vec![0; length];
        for list in [
            RevocationList { authorities: vec![der(1); MAX_AUTHORITIES + 1], ..RevocationList::default() },
            RevocationList { crosses: vec![der(1); MAX_CROSSES + 1], ..RevocationList::default() },
            RevocationList { crosses: vec![der(MAX_CERTIFICATE_BYTES + 1)], ..RevocationList::default() },
        ] {
            assert!(list.check().is_err());
        }
    }
}
