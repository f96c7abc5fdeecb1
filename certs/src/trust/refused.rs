//! The reasons for which nothing is believed, and what to do about each.

use ipnet::IpNet;

use crate::{MeshName, OverlayIp, Serial, UnixTime, certificate::BadCertificate, signed::BadEnvelope};

/// Why something was not believed. One variant for each thing its owner could do about it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Not the bytes of such a thing at all.
    #[error(transparent)]
    Envelope(#[from] BadEnvelope),
    /// A certificate outside the profile.
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    /// Signed by an authority that is not ours.
    #[error("its certificate was issued by another authority than this mesh's ({ours})")]
    AnotherAuthority {
        /// The fingerprint of ours.
        ours: String,
    },
    /// An authority used beyond what it may do.
    #[error("an authority in its chain may not sign this: {0}")]
    AuthorityExceeded(&'static str),
    /// Its time has not come.
    #[error("its certificate is valid from {not_before}, and it is {now}")]
    NotYetValid {
        /// The certificate's beginning.
        not_before: UnixTime,
        /// The time given.
        now: UnixTime,
    },
    /// Its time is over.
    #[error("its certificate ended at {not_after}, and it is {now}")]
    Expired {
        /// The certificate's end.
        not_after: UnixTime,
        /// The time given.
        now: UnixTime,
    },
    /// Taken back by the authority.
    #[error("its certificate {serial} is revoked")]
    Revoked {
        /// Which one.
        serial: Serial,
    },
    /// An address outside the mesh's network.
    #[error("its address {address} is not that of a node in the network {network}, to which its authority is limited")]
    OutsideNetwork {
        /// What it claims.
        address: OverlayIp,
        /// What there is.
        network: IpNet,
    },
    /// Another mesh's name in a certificate of our authority.
    #[error("it names the mesh {0}, which is not ours")]
    AnotherMesh(MeshName),
    /// The signature on the message is not its certificate's.
    #[error("its signature is not that of its certificate's key, or it was changed")]
    WrongSignature,
    /// A revocation list older than the one we have.
    #[error("revocation list {given} is older than {ours}, which we have")]
    OlderRevocations {
        /// Its number.
        given: u64,
        /// The number of ours.
        ours: u64,
    },
    /// A proof for somebody else, or for another request.
    #[error("the proof is for another {0}")]
    ProofForAnother(&'static str),
    /// A proof outside its minute.
    #[error("the proof was made at {issued_at}, and it is {now}: more than {} s apart", crate::proof::PROOF_LIFE.as_secs())]
    StaleProof {
        /// Its time.
        issued_at: UnixTime,
        /// Ours.
        now: UnixTime,
    },
    /// A proof that was used before.
    #[error("the proof was used before")]
    ReplayedProof,
    /// More proofs in a minute than can be remembered.
    #[error("too many proofs in the last minute to tell whether this one was used before")]
    TooManyProofs,
}

impl Refused {
    /// One short word for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Refused::Envelope(_) => "malformed",
            Refused::Certificate(_) => "bad_certificate",
            Refused::AnotherAuthority { .. } => "another_authority",
            Refused::AuthorityExceeded(_) => "authority_exceeded",
            Refused::NotYetValid { .. } => "not_yet_valid",
            Refused::Expired { .. } => "expired",
            Refused::Revoked { .. } => "revoked",
            Refused::OutsideNetwork { .. } => "outside_network",
            Refused::AnotherMesh(_) => "another_mesh",
            Refused::WrongSignature => "wrong_signature",
            Refused::OlderRevocations { .. } => "older_revocations",
            Refused::ProofForAnother(_) => "proof_for_another",
            Refused::StaleProof { .. } => "stale_proof",
            Refused::ReplayedProof => "replayed_proof",
            Refused::TooManyProofs => "too_many_proofs",
        }
    }

    /// What the owner of the refused thing could do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Refused::AnotherAuthority { .. } | Refused::AnotherMesh(_) => {
                Some("join this mesh with a token of its coordinator")
            }
            Refused::NotYetValid { .. } => Some("set the clock of this machine or of the one that issued it"),
            Refused::StaleProof { .. } => Some("set the clocks of both machines"),
            Refused::Expired { .. } => Some("renew it: the agent does so while its coordinator is reachable"),
            Refused::Revoked { .. } => Some("ask the operator of the mesh for a new join token"),
            Refused::OutsideNetwork { .. } => Some("sign it with an address of the mesh's network"),
            Refused::AuthorityExceeded(_) => {
                Some("have it signed by the root, or by an intermediate within its limits")
            }
            Refused::Envelope(_)
            | Refused::Certificate(_)
            | Refused::WrongSignature
            | Refused::OlderRevocations { .. }
            | Refused::ProofForAnother(_)
            | Refused::ReplayedProof
            | Refused::TooManyProofs => None,
        }
    }
}
