//! Signed messages: the envelope with each payload that travels in it.

use std::fmt;

use super::{
    Verdict, told,
    world::{AUDIENCE, NOW, World},
};
use crate::{
    Chain, MAX_AUTHORITIES, MAX_ENDPOINTS, MAX_MODELS, MAX_NEARBY, MAX_REVOCATIONS, MAX_SERVICES, NodeRecord,
    PROOF_LIFE, Payload, ProofChecker, Refused, RequestProof, RevocationList, Signed, Verified,
};

/// A node's record.
pub fn record(bytes: &[u8]) -> Verdict {
    let opened = open::<NodeRecord>(bytes);
    if let Some(record) = &opened {
        assert!(record.endpoints.len() <= MAX_ENDPOINTS && record.nearby.len() <= MAX_NEARBY);
        assert!(record.services.len() <= MAX_SERVICES);
        assert!(record.models.len() <= MAX_MODELS);
        assert!(record.load.percent() <= 100);
        assert!(record.claimed().iter().all(|offer| record.claims(offer)));
    }
    Verdict::of(&opened)
}

/// What a record says, under a member's signature.
pub fn record_signed(payload: &[u8]) -> Verdict {
    sealed::<NodeRecord>(payload).map_or(Verdict::Refused, |signed| record(signed.as_bytes()))
}

/// A proof of who sends a request.
pub fn proof(bytes: &[u8]) -> Verdict {
    Verdict::of(&open::<RequestProof>(bytes))
}

/// What a proof says, under a member's signature.
pub fn proof_signed(payload: &[u8]) -> Verdict {
    sealed::<RequestProof>(payload).map_or(Verdict::Refused, |signed| proof(signed.as_bytes()))
}

/// The header that carries a proof: believed once.
pub fn proof_header(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let World { trust, member, .. } = World::get();
    let mut checker = ProofChecker::new(AUDIENCE.to_owned(), NOW);
    let proved = told(checker.check(text, "POST", "/api/x?a=1", trust, NOW));
    if let Some(by) = &proved {
        assert_eq!(by.id(), member.key.id(), "somebody else");
        let again = checker.check(text, "POST", "/api/x?a=1", trust, NOW);
        assert_eq!(again, Err(Refused::ReplayedProof));
    }
    let mut checker = ProofChecker::new(AUDIENCE.to_owned(), NOW);
    let renewing = told(checker.check_renewable(text, "POST", "/api/x?a=1", trust, &[], PROOF_LIFE, NOW));
    assert_eq!(
        renewing.map(|by| by.id()),
        proved.as_ref().map(Verified::id),
        "who is believed may renew, and no other"
    );
    Verdict::of(&proved)
}

/// A list of what is no longer believed.
pub fn revocations(bytes: &[u8]) -> Verdict {
    let Some(signed) = taken_apart::<RevocationList>(bytes) else { return Verdict::Refused };
    let World { trust: before, .. } = World::get();
    let mut trust = before.clone();
    let Some(newer) = told(trust.apply_revocations(&signed, NOW)) else { return Verdict::Refused };
    let list = trust.revocations().clone();
    assert!(list.serials.len() <= MAX_REVOCATIONS && list.identities.len() <= MAX_REVOCATIONS);
    assert_eq!(trust.revocation_number(), list.number);
    assert!((1..=MAX_AUTHORITIES).contains(&trust.authorities().len()));
    assert_eq!((trust.mesh(), trust.network()), (before.mesh(), before.network()), "another mesh");
    assert_eq!(list.policy.check(), Ok(()));
    assert_eq!(newer, list.number > 0);
    assert_eq!(trust.apply_revocations(&signed, NOW), Ok(false), "the same again is no news");
    Verdict::Taken
}

/// What a list says, under the authority's signature.
pub fn revocations_signed(payload: &[u8]) -> Verdict {
    let World { authority, key, .. } = World::get();
    let chain = Chain::from_ders(vec![authority.certificate().der().to_vec()]).expect("one certificate");
    let signed = told(Signed::<RevocationList>::seal(payload.to_vec(), key, &chain));
    signed.map_or(Verdict::Refused, |signed| revocations(signed.as_bytes()))
}

fn sealed<T: Payload>(payload: &[u8]) -> Option<Signed<T>> {
    let World { member, .. } = World::get();
    told(Signed::seal(payload.to_vec(), &member.key, &member.chain))
}

/// An envelope, if it is one of this type by its form.
fn taken_apart<T: Payload + fmt::Debug + PartialEq>(bytes: &[u8]) -> Option<Signed<T>> {
    let signed = told(Signed::<T>::from_bytes(bytes))?;
    assert_eq!(signed.as_bytes(), bytes);
    assert_eq!(Signed::from_base64(&signed.to_base64()).as_ref(), Ok(&signed));
    let apart = told(signed.take_apart())?;
    assert!(bytes.len() <= T::MAX_BYTES);
    assert_eq!(apart.payload.check(), Ok(()), "beyond its bounds");
    let written = minicbor::to_vec(&apart.payload).expect("writing to memory does not fail");
    assert_eq!(minicbor::decode::<T>(&written).expect("it was just written"), apart.payload);
    Some(signed)
}

/// What is believed to be said by a member.
fn open<T: Payload + fmt::Debug + PartialEq>(bytes: &[u8]) -> Option<T> {
    let signed = taken_apart::<T>(bytes)?;
    let World { trust, member, .. } = World::get();
    let opened = told(trust.open(&signed, NOW))?;
    assert_eq!(opened.signed, signed);
    assert_eq!(opened.by.id(), member.key.id(), "somebody else");
    let again = Signed::sign(&opened.payload, &member.key, opened.by.chain());
    assert_eq!(again.as_ref(), Ok(&signed), "a message of two forms");
    Some(opened.payload)
}
