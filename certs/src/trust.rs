//! The one door: what was claimed and signed goes in, what is believed comes out.
//!
//! ```text
//! Claims ──Authority::issue──► Chain, Signed<T> ──Trust::verify, Trust::open──► Verified, Opened<T>
//!  said                         said and signed                                  believed
//! ```
//!
//! **Invariant:** nothing outside this module makes a [`Verified`]. A function that takes one needs no check of its
//! own; a function that needs a check cannot be given anything less.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use ipnet::IpNet;

use crate::{
    AllowedServices, CaCertificate, Chain, GroupName, MeshName, NodeId, NodeName, OverlayIp, Payload, Serial, Signed,
    SignedRevocations, UnixTime, WgPublicKey,
    certificate::{self, BadCertificate, NodeClaims, Outline},
    keys,
    revocation::RevocationList,
    signed::{BadEnvelope, TakenApart},
};

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
    #[error("its address {address} is not in the mesh's network {network}")]
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
            Refused::Envelope(_)
            | Refused::Certificate(_)
            | Refused::AuthorityExceeded(_)
            | Refused::WrongSignature
            | Refused::OlderRevocations { .. }
            | Refused::ProofForAnother(_)
            | Refused::ReplayedProof
            | Refused::TooManyProofs => None,
        }
    }
}

/// A node whose certificate was checked: chain, validity, revocation, network. Cheap to clone.
#[derive(Clone)]
pub struct Verified(Arc<Facts>);

struct Facts {
    id: NodeId,
    claims: NodeClaims,
    serial: Serial,
    not_before: UnixTime,
    not_after: UnixTime,
    chain: Chain,
}

impl Verified {
    /// Its identity.
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.0.claims.name
    }

    /// Its overlay address.
    pub fn address(&self) -> OverlayIp {
        self.0.claims.address
    }

    /// Its WireGuard key.
    pub fn wg(&self) -> WgPublicKey {
        self.0.claims.wg
    }

    /// Its groups.
    pub fn groups(&self) -> &[GroupName] {
        &self.0.claims.groups
    }

    /// What it may offer.
    pub fn services(&self) -> &AllowedServices {
        &self.0.claims.services
    }

    /// Of its certificate.
    pub fn serial(&self) -> Serial {
        self.0.serial
    }

    /// Beginning of its certificate.
    pub fn not_before(&self) -> UnixTime {
        self.0.not_before
    }

    /// End of its certificate, or of an intermediate's if that is earlier.
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after
    }

    /// The certificates it was verified by.
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// Whether its time is still on; revocation is [`Trust::is_revoked`].
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        self.0.not_before <= now && now < self.0.not_after
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({} {} {})", self.name(), self.address(), self.id())
    }
}

impl PartialEq for Verified {
    fn eq(&self, other: &Verified) -> bool {
        self.0.chain == other.0.chain
    }
}

impl Eq for Verified {}

/// A signed message that is believed: who said it, what, and the bytes to pass on.
#[derive(Clone, Debug)]
pub struct Opened<T> {
    /// Who said it.
    pub by: Verified,
    /// What was said.
    pub payload: T,
    /// The same as it travels, for whoever asks us.
    pub signed: Signed<T>,
}

/// Whom a node believes: its mesh's authority, less what that has revoked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust {
    authority: CaCertificate,
    revocations: Arc<RevocationList>,
}

impl Trust {
    /// Believes what `authority` signed; nothing is revoked yet.
    pub fn new(authority: CaCertificate) -> Trust {
        Trust { authority, revocations: Arc::default() }
    }

    /// Checks a node's chain, leaf first, without the root.
    pub fn verify(&self, chain: &Chain, now: UnixTime) -> Result<Verified, Refused> {
        let outlines = outlines(chain)?;
        let leaf = &outlines[0];
        let not_after = self.check_issuers(&outlines, chain, now)?;
        let claims = NodeClaims::of(leaf)?;
        if claims.mesh != *self.authority.mesh() {
            return Err(Refused::AnotherMesh(claims.mesh));
        }
        let network = self.authority.network();
        if !network.contains(&claims.address.0) {
            return Err(Refused::OutsideNetwork { address: claims.address, network });
        }
        if self.revocations.revokes(&leaf.serial, &leaf.key) {
            return Err(Refused::Revoked { serial: leaf.serial });
        }
        Ok(Verified(Arc::new(Facts {
            id: leaf.key,
            claims,
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after,
            chain: chain.clone(),
        })))
    }

    /// Checks a signed message and its signer's chain.
    pub fn open<T: Payload>(&self, signed: &Signed<T>, now: UnixTime) -> Result<Opened<T>, Refused> {
        let TakenApart { chain, payload, message, signature } = signed.take_apart()?;
        let by = self.verify(&chain, now)?;
        if !keys::is_signed_by(&by.id(), &message, &signature) {
            return Err(Refused::WrongSignature);
        }
        Ok(Opened { by, payload, signed: signed.clone() })
    }

    /// Checks that a TLS server is this mesh's coordinator. `chain` is DER, leaf first; the root may be in it.
    pub fn verify_coordinator(&self, chain: &[impl AsRef<[u8]>], now: UnixTime) -> Result<(), Refused> {
        let mut ders: Vec<Vec<u8>> =
            chain.iter().take(certificate::MAX_CHAIN + 1).map(|der| der.as_ref().to_vec()).collect();
        if ders.last().is_some_and(|der| der == self.authority.der()) {
            ders.pop();
        }
        let chain = Chain::from_ders(ders)?;
        let outlines = outlines(&chain)?;
        self.check_issuers(&outlines, &chain, now)?;
        if self.revocations.serials.contains(&outlines[0].serial) {
            return Err(Refused::Revoked { serial: outlines[0].serial });
        }
        certificate::is_coordinator_tls(&outlines[0], self.authority.mesh())?;
        Ok(())
    }

    /// Takes over a newer list. False if it is the one we have.
    pub fn apply_revocations(&mut self, signed: &SignedRevocations, now: UnixTime) -> Result<bool, Refused> {
        let TakenApart { chain, payload, message, signature } = signed.take_apart()?;
        let signer = CaCertificate::from_der(chain.leaf().to_vec())?;
        if signer != self.authority {
            self.check_issuers(&outlines(&chain)?, &chain, now)?;
            self.check_subordinate(&signer)?;
        }
        if !keys::is_signed_by(&signer.key(), &message, &signature) {
            return Err(Refused::WrongSignature);
        }
        if payload.number < self.revocations.number {
            return Err(Refused::OlderRevocations { given: payload.number, ours: self.revocations.number });
        }
        let newer = payload.number > self.revocations.number;
        if newer {
            self.revocations = Arc::new(payload);
        }
        Ok(newer)
    }

    /// Whether a node that was believed no longer is, by revocation.
    pub fn is_revoked(&self, verified: &Verified) -> bool {
        self.revocations.names(verified)
    }

    /// The number of the revocation list in force; 0: none yet.
    pub fn revocation_number(&self) -> u64 {
        self.revocations.number
    }

    /// The list in force.
    pub fn revocations(&self) -> &RevocationList {
        &self.revocations
    }

    /// The authority believed.
    pub fn authority(&self) -> &CaCertificate {
        &self.authority
    }

    /// The mesh's name.
    pub fn mesh(&self) -> &MeshName {
        self.authority.mesh()
    }

    /// The mesh's overlay network.
    pub fn network(&self) -> IpNet {
        self.authority.network()
    }

    /// Follows a chain up to our authority. Returns the earliest end in it.
    fn check_issuers(&self, outlines: &[Outline<'_>], chain: &Chain, now: UnixTime) -> Result<UnixTime, Refused> {
        let root = Outline::parse(self.authority.der())?;
        let mut not_after = self.authority.not_after();
        check_time(&root, now)?;
        for (at, outline) in outlines.iter().enumerate() {
            let issuer = outlines.get(at + 1).unwrap_or(&root);
            if !outline.is_issued_by(issuer) {
                return Err(Refused::AnotherAuthority {
                    ours: self.authority.fingerprint().to_string()[..16].to_owned(),
                });
            }
        }
        for (at, outline) in outlines.iter().enumerate() {
            check_time(outline, now)?;
            not_after = not_after.min(outline.not_after);
            if at > 0 {
                let intermediate = CaCertificate::from_der(chain.ders()[at].clone())?;
                self.check_subordinate(&intermediate)?;
                if intermediate.path_length().is_some_and(|length| (at - 1) as u32 > length) {
                    return Err(Refused::AuthorityExceeded("its path length"));
                }
                if self.revocations.serials.contains(&intermediate.serial()) {
                    return Err(Refused::Revoked { serial: intermediate.serial() });
                }
            }
        }
        if self.authority.path_length().is_some_and(|length| outlines.len() as u32 - 1 > length) {
            return Err(Refused::AuthorityExceeded("the root's path length"));
        }
        Ok(not_after)
    }

    /// An intermediate may not speak for more than the root.
    fn check_subordinate(&self, intermediate: &CaCertificate) -> Result<(), Refused> {
        if intermediate.mesh() != self.authority.mesh() {
            return Err(Refused::AnotherMesh(intermediate.mesh().clone()));
        }
        if !self.authority.network().contains(&intermediate.network()) {
            return Err(Refused::AuthorityExceeded("its network is not within the root's"));
        }
        Ok(())
    }
}

/// The trust of a running agent, shared by its parts and replaced as a whole.
#[derive(Debug)]
pub struct TrustStore(RwLock<Arc<Trust>>);

impl TrustStore {
    /// Begins with `trust`.
    pub fn new(trust: Trust) -> TrustStore {
        TrustStore(RwLock::new(Arc::new(trust)))
    }

    /// What is believed at this moment.
    pub fn current(&self) -> Arc<Trust> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a newer revocation list for all who share this. False if it is the one in force.
    pub fn apply_revocations(&self, signed: &SignedRevocations, now: UnixTime) -> Result<bool, Refused> {
        let mut slot = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut trust = Trust::clone(&slot);
        let newer = trust.apply_revocations(signed, now)?;
        *slot = Arc::new(trust);
        Ok(newer)
    }
}

fn outlines(chain: &Chain) -> Result<Vec<Outline<'_>>, BadCertificate> {
    chain.ders().iter().map(|der| Outline::parse(der)).collect()
}

fn check_time(outline: &Outline<'_>, now: UnixTime) -> Result<(), Refused> {
    if now < outline.not_before {
        return Err(Refused::NotYetValid { not_before: outline.not_before, now });
    }
    if now >= outline.not_after {
        return Err(Refused::Expired { not_after: outline.not_after, now });
    }
    Ok(())
}
