//! Proof that a request comes from a member: signed, for one audience and one request, good for a minute, once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use minicbor::{Decode, Encode};
use rand::RngCore;

use crate::{
    CaCertificate, Chain, IdentityKey, NodeId, Payload, Refused, Renewable, SignError, Signed, Trust, UnixTime,
    Verified, signed::BadEnvelope,
};

/// How far a proof's time and ours may be apart, either way.
pub const PROOF_LIFE: Duration = Duration::from_secs(60);
/// Proofs remembered at once. At the bound new ones are refused until old ones end: never is a replay let through.
pub const MAX_REMEMBERED_PROOFS: usize = 100_000;
/// Of these, of one member: some 400 requests a second. Nobody alone can use up the room of the others.
pub const MAX_REMEMBERED_PROOFS_OF_ONE: usize = MAX_REMEMBERED_PROOFS / 4;
/// The authorization scheme: `Authorization: Wiremesh <base64url>`.
pub const SCHEME: &str = "Wiremesh";

/// What is signed to prove who sends a request.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct RequestProof {
    /// Who is to believe it: `coordinator.<mesh>`, or a worker's node id in hexadecimal.
    #[n(0)]
    pub audience: String,
    /// The HTTP method.
    #[n(1)]
    pub method: String,
    /// Path and query as sent.
    #[n(2)]
    pub path: String,
    /// When it was made.
    #[n(3)]
    pub issued_at: UnixTime,
    /// 16 random bytes.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub nonce: [u8; 16],
}

impl Payload for RequestProof {
    const DOMAIN: &'static str = "proof";
    const MAX_BYTES: usize = 4096;

    fn check(&self) -> Result<(), &'static str> {
        if self.audience.len() > 128 || self.method.len() > 16 {
            return Err("an audience or method longer than it can be");
        }
        Ok(())
    }
}

/// The value of an `authorization` header that proves `method path` at `audience`. `rng` must be a cryptographic one.
pub fn proof_header(
    key: &IdentityKey,
    chain: &Chain,
    audience: &str,
    method: &str,
    path: &str,
    now: UnixTime,
    rng: &mut impl RngCore,
) -> Result<String, SignError> {
    let mut nonce = [0; 16];
    rng.fill_bytes(&mut nonce);
    let proof = RequestProof {
        audience: audience.to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        issued_at: now,
        nonce,
    };
    Ok(format!("{SCHEME} {}", Signed::sign(&proof, key, chain)?.to_base64()))
}

/// Checks proofs for one audience and remembers those it has seen.
#[derive(Debug)]
pub struct ProofChecker {
    audience: String,
    seen: BTreeSet<[u8; 16]>,
    /// When which nonces may be forgotten, and whose they are.
    ending: BTreeMap<UnixTime, Vec<([u8; 16], NodeId)>>,
    /// How many are remembered of each member.
    of: BTreeMap<NodeId, usize>,
    /// The latest end of a proof that was forgotten. Should the clock be set back, those up to here stay refused.
    forgotten_until: UnixTime,
}

impl ProofChecker {
    /// For proofs addressed to `audience` and made from `now` on: those from before may have been used already, and
    /// whoever remembered them is gone.
    pub fn new(audience: String, now: UnixTime) -> ProofChecker {
        let forgotten_until = UnixTime(now.0.saturating_sub(1)).plus(PROOF_LIFE);
        let (seen, ending, of) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        ProofChecker { audience, seen, ending, of, forgotten_until }
    }

    /// Who sends the request `method path`, if the `authorization` header proves it.
    pub fn check(
        &mut self,
        header: &str,
        method: &str,
        path: &str,
        trust: &Trust,
        now: UnixTime,
    ) -> Result<Verified, Refused> {
        let opened = trust.open(&envelope(header)?, now)?;
        self.accept(&opened.payload, opened.by.id(), method, path, now)?;
        Ok(opened.by)
    }

    /// Like [`ProofChecker::check`], for requests to renew: see [`Trust::open_renewable`].
    #[expect(clippy::too_many_arguments, reason = "a request, whom to believe, and when")]
    pub fn check_renewable(
        &mut self,
        header: &str,
        method: &str,
        path: &str,
        trust: &Trust,
        former: &[CaCertificate],
        grace: Duration,
        now: UnixTime,
    ) -> Result<Renewable, Refused> {
        let (by, proof) = trust.open_renewable::<RequestProof>(&envelope(header)?, former, grace, now)?;
        self.accept(&proof, by.id(), method, path, now)?;
        Ok(by)
    }

    fn accept(
        &mut self,
        proof: &RequestProof,
        by: NodeId,
        method: &str,
        path: &str,
        now: UnixTime,
    ) -> Result<(), Refused> {
        if proof.audience != self.audience {
            return Err(Refused::ProofForAnother("audience"));
        }
        if proof.method != method {
            return Err(Refused::ProofForAnother("method"));
        }
        if proof.path != path {
            return Err(Refused::ProofForAnother("path"));
        }
        if now.0.abs_diff(proof.issued_at.0) > PROOF_LIFE.as_secs() {
            return Err(Refused::StaleProof { issued_at: proof.issued_at, now });
        }
        if proof.issued_at.plus(PROOF_LIFE) <= self.forgotten_until {
            return Err(Refused::StaleProof { issued_at: proof.issued_at, now });
        }
        self.remember(proof.nonce, by, proof.issued_at, now)
    }

    fn remember(&mut self, nonce: [u8; 16], by: NodeId, issued_at: UnixTime, now: UnixTime) -> Result<(), Refused> {
        while let Some(entry) = self.ending.first_entry().filter(|entry| *entry.key() < now) {
            self.forgotten_until = self.forgotten_until.max(*entry.key());
            for (ended, by) in entry.remove() {
                self.seen.remove(&ended);
                match self.of.get_mut(&by) {
                    Some(of) if *of > 1 => *of -= 1,
                    _ => _ = self.of.remove(&by),
                }
            }
        }
        if self.seen.contains(&nonce) {
            return Err(Refused::ReplayedProof);
        }
        let of = self.of.get(&by).copied().unwrap_or_default();
        if self.seen.len() >= MAX_REMEMBERED_PROOFS || of >= MAX_REMEMBERED_PROOFS_OF_ONE {
            return Err(Refused::TooManyProofs);
        }
        self.seen.insert(nonce);
        self.of.insert(by, of + 1);
        self.ending.entry(issued_at.plus(PROOF_LIFE)).or_default().push((nonce, by));
        Ok(())
    }
}

/// What an `authorization` header proves, if it is a proof of ours.
fn envelope(header: &str) -> Result<Signed<RequestProof>, BadEnvelope> {
    let text = header
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME))
        .map(|(_, text)| text)
        .ok_or(BadEnvelope("not \"Wiremesh\" and a proof"))?;
    Signed::from_base64(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn one_member_does_not_use_up_the_room_of_the_others() {
        let mut checker = ProofChecker::new("a".to_owned(), NOW);
        let (greedy, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let nonce = |n: usize| (n as u128).to_be_bytes();

        for n in 0..MAX_REMEMBERED_PROOFS_OF_ONE {
            checker.remember(nonce(n), greedy, NOW, NOW).unwrap();
        }

        let one_more = nonce(MAX_REMEMBERED_PROOFS_OF_ONE);
        assert!(matches!(checker.remember(one_more, greedy, NOW, NOW), Err(Refused::TooManyProofs)));
        assert!(checker.remember(one_more, other, NOW, NOW).is_ok());
        let later = NOW.plus(2 * PROOF_LIFE);
        assert!(checker.remember(nonce(0), greedy, later, later).is_ok());
        assert_eq!((checker.of.len(), checker.seen.len()), (1, 1));
    }
}
