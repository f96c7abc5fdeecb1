//! Whether a member may change its keys, and what becomes of the ones before.
//!
//! ```text
//! proof by the present key + request by the next one ─► next key certified: both are good
//!                           the next one is first heard ─► it is the member; the one before is revoked and forgotten
//! ```
//!
//! **Invariant:** name, address, groups and services stay; the facts are read, the decision made and its consequences
//! written in one transaction.

use wiremesh_certs::{CertificateRequest, NodeId, NodeName, WgPublicKey};

/// Identities that one member may have left behind while a certificate of each is still good. One that changes its keys
/// every few days leaves one or two; beyond it somebody fills the revocation list.
pub const MAX_FORMER: u64 = 16;

/// What the database knows that bears on one request.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The member that asks, and whether it was revoked.
    pub present: Option<(NodeName, bool)>,
    /// What it asked for before and was not heard with yet.
    pub pending: Option<NodeId>,
    /// Whether the next identity is, or was, anybody else's, or is on the revocation list.
    pub next_is_taken: bool,
    /// The identity that the next WireGuard key was ever bound to.
    pub key_holder: Option<NodeId>,
    /// Identities it has left behind that still have a good certificate.
    pub former: u64,
}

/// The member may have its next keys certified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// What it asked for before and will not use: to be revoked.
    pub abandoned: Option<NodeId>,
}

/// The member may not change its keys so. Final: trying again with the same keys changes nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Whoever asks is not, or no longer, a member.
    #[error("this identity is no member, or was revoked")]
    NotAMember,
    /// A change of keys is not a change of names.
    #[error("the request is for {given}, but this member is called {wanted}")]
    OtherName {
        /// The member's name.
        wanted: NodeName,
        /// The name asked for.
        given: NodeName,
    },
    /// The next identity is the present one.
    #[error("the next identity key is the present one")]
    SameIdentity,
    /// The next identity is known already.
    #[error("the next identity key belongs, or belonged, to another member")]
    IdentityTaken,
    /// The next WireGuard key is known already.
    #[error("the WireGuard key {0} belongs, or belonged, to an identity that is another than the next one")]
    WireGuardKeyTaken(WgPublicKey),
    /// Again and again.
    #[error("this member has left {MAX_FORMER} identities behind whose certificates have not ended")]
    TooOften,
}

impl Refusal {
    /// One stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::NotAMember => "not_a_member",
            Refusal::OtherName { .. } => "other_name",
            Refusal::SameIdentity => "same_identity",
            Refusal::IdentityTaken => "identity_taken",
            Refusal::WireGuardKeyTaken(_) => "wireguard_key_taken",
            Refusal::TooOften => "rotates_too_often",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::NotAMember => "join with an empty state directory and a new token",
            Refusal::OtherName { .. } => "keep the name; another name is another member",
            Refusal::SameIdentity | Refusal::IdentityTaken | Refusal::WireGuardKeyTaken(_) => {
                "make new keys: wiremesh keys rotate"
            }
            Refusal::TooOften => "wait until certificates end, or rotate less often: rotate_keys_every",
        }
    }
}

/// Decides about one request of `present`, whose signature was checked.
pub fn decide(present: NodeId, request: &CertificateRequest, facts: &Facts) -> Result<Decision, Refusal> {
    let Some((name, revoked)) = &facts.present else { return Err(Refusal::NotAMember) };
    if *revoked {
        return Err(Refusal::NotAMember);
    }
    if *name != request.name {
        return Err(Refusal::OtherName { wanted: name.clone(), given: request.name.clone() });
    }
    if request.identity == present {
        return Err(Refusal::SameIdentity);
    }
    if facts.next_is_taken {
        return Err(Refusal::IdentityTaken);
    }
    if facts.key_holder.is_some_and(|holder| holder != request.identity) {
        return Err(Refusal::WireGuardKeyTaken(request.wg));
    }
    let abandoned = facts.pending.filter(|pending| *pending != request.identity);
    // The present one will be left behind too, and one that is pending with it.
    if facts.pending != Some(request.identity) && facts.former >= MAX_FORMER {
        return Err(Refusal::TooOften);
    }
    Ok(Decision { abandoned })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT: NodeId = NodeId([1; 32]);
    const NEXT: NodeId = NodeId([2; 32]);

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn request() -> CertificateRequest {
        CertificateRequest { identity: NEXT, name: name("a"), wg: WgPublicKey([2; 32]) }
    }

    fn facts() -> Facts {
        Facts { present: Some((name("a"), false)), ..Facts::default() }
    }

    #[test]
    fn each_change_that_must_not_happen_is_refused_with_its_own_reason() {
        let cases = [
            ("not_a_member", Facts { present: None, ..facts() }),
            ("not_a_member", Facts { present: Some((name("a"), true)), ..facts() }),
            ("other_name", Facts { present: Some((name("b"), false)), ..facts() }),
            ("identity_taken", Facts { next_is_taken: true, ..facts() }),
            ("wireguard_key_taken", Facts { key_holder: Some(PRESENT), ..facts() }),
            ("rotates_too_often", Facts { former: MAX_FORMER, ..facts() }),
        ];

        for (expected, facts) in cases {
            assert_eq!(decide(PRESENT, &request(), &facts).unwrap_err().kind(), expected);
        }
        let same = CertificateRequest { identity: PRESENT, ..request() };
        assert_eq!(decide(PRESENT, &same, &facts()), Err(Refusal::SameIdentity));
    }

    #[test]
    fn a_request_whose_answer_was_lost_may_be_repeated_and_costs_nothing() {
        let again = Facts { pending: Some(NEXT), key_holder: Some(NEXT), former: MAX_FORMER, ..facts() };

        assert_eq!(decide(PRESENT, &request(), &again), Ok(Decision { abandoned: None }));
    }

    #[test]
    fn other_keys_than_those_asked_for_before_leave_these_behind() {
        let other = NodeId([3; 32]);

        let decision = decide(PRESENT, &request(), &Facts { pending: Some(other), ..facts() });

        assert_eq!(decision, Ok(Decision { abandoned: Some(other) }));
    }
}
