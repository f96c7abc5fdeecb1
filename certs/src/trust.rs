//! The one door: what was claimed and signed goes in, what is believed comes out.
//!
//! ```text
//! Claims ──Authority::issue──► Chain, Signed<T> ──Trust::verify, Trust::open──► Verified, Opened<T>
//!  said                         said and signed                                  believed
//! ```
//!
//! **Invariant:** nothing outside this module makes a [`Verified`]. A function that takes one needs no check of its
//! own; a function that needs a check cannot be given anything less.

mod refused;

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
    signed::TakenApart,
};

pub use refused::Refused;

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

    /// Checks a node's chain, leaf first; the root may be in it.
    pub fn verify(&self, chain: &Chain, now: UnixTime) -> Result<Verified, Refused> {
        let candidate = self.candidate(chain)?;
        Check::ALL.into_iter().try_for_each(|check| self.check(check, &candidate, now))?;
        let Candidate { path, claims } = candidate;
        let leaf = &path.outlines[0];
        let ends = path.outlines.iter().map(|outline| outline.not_after);
        let beginnings = path.outlines.iter().map(|outline| outline.not_before);
        Ok(Verified(Arc::new(Facts {
            id: leaf.key,
            serial: leaf.serial,
            not_before: beginnings.max().unwrap_or(leaf.not_before),
            not_after: ends.min().unwrap_or(leaf.not_after).min(self.authority.not_after()),
            claims,
            chain: chain.clone(),
        })))
    }

    /// The same checks as [`Trust::verify`], each with its own outcome, for people who want to know what is wrong. When
    /// the first fails there is nothing to do the others with, and it stands alone.
    pub fn examine(&self, chain: &Chain, now: UnixTime) -> Vec<(Check, Result<(), Refused>)> {
        match self.candidate(chain) {
            Err(refused) => vec![(Check::Form, Err(refused))],
            Ok(candidate) => Check::ALL.map(|check| (check, self.check(check, &candidate, now))).to_vec(),
        }
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
        if chain.len() > certificate::MAX_CHAIN + 1 {
            return Err(BadCertificate("more certificates than a chain may have").into());
        }
        let mut ders: Vec<Vec<u8>> = chain.iter().map(|der| der.as_ref().to_vec()).collect();
        if ders.len() > 1 && ders.last().is_some_and(|der| der == self.authority.der()) {
            ders.pop();
        }
        let chain = Chain::from_ders(ders)?;
        let path = self.path(&chain)?;
        self.check_issuers(&path)?;
        self.check_limits(path.above_leaf())?;
        self.check_time(&path, now)?;
        self.check_revocation(&path)?;
        certificate::is_coordinator_tls(&path.outlines[0], self.authority.mesh())?;
        Ok(())
    }

    /// Takes over a newer list. False if it is the one we have.
    pub fn apply_revocations(&mut self, signed: &SignedRevocations, now: UnixTime) -> Result<bool, Refused> {
        let TakenApart { chain, payload, message, signature } = signed.take_apart()?;
        let signer = CaCertificate::from_der(chain.leaf().to_vec())?;
        if signer != self.authority {
            let path = self.path(&chain)?;
            self.check_issuers(&path)?;
            self.check_limits(path.ders)?;
            self.check_time(&path, now)?;
            self.check_revocation(&path)?;
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

    fn candidate<'a>(&self, chain: &'a Chain) -> Result<Candidate<'a>, Refused> {
        let path = self.path(chain)?;
        let claims = NodeClaims::of(&path.outlines[0])?;
        Ok(Candidate { path, claims })
    }

    fn path<'a>(&self, chain: &'a Chain) -> Result<Path<'a>, Refused> {
        let ders = match chain.ders() {
            [below @ .., last] if !below.is_empty() && last == self.authority.der() => below,
            all => all,
        };
        let outlines = ders.iter().map(|der| Outline::parse(der)).collect::<Result<_, _>>()?;
        Ok(Path { ders, outlines })
    }

    fn check(&self, check: Check, candidate: &Candidate<'_>, now: UnixTime) -> Result<(), Refused> {
        match check {
            Check::Form => Ok(()),
            Check::Issuer => self.check_issuers(&candidate.path),
            Check::Authority => self.check_limits(candidate.path.above_leaf()),
            Check::Time => self.check_time(&candidate.path, now),
            Check::Mesh if candidate.claims.mesh == *self.authority.mesh() => Ok(()),
            Check::Mesh => Err(Refused::AnotherMesh(candidate.claims.mesh.clone())),
            Check::Network => self.check_network(candidate),
            Check::Revocation => self.check_revocation(&candidate.path),
        }
    }

    /// Each certificate is signed by the next, the last by our authority.
    fn check_issuers(&self, path: &Path<'_>) -> Result<(), Refused> {
        let root = Outline::parse(self.authority.der())?;
        let issuers = path.outlines.iter().skip(1).chain([&root]);
        if path.outlines.iter().zip(issuers).all(|(outline, issuer)| outline.is_issued_by(issuer)) {
            return Ok(());
        }
        Err(Refused::AnotherAuthority { ours: self.authority.fingerprint().to_string()[..16].to_owned() })
    }

    /// Those between our authority and what they signed, lowest first: each an authority, and none for more than the
    /// one above it.
    fn check_limits(&self, intermediates: &[Vec<u8>]) -> Result<(), Refused> {
        let mut limits = Vec::with_capacity(certificate::MAX_CHAIN);
        for der in intermediates {
            limits.push(CaCertificate::from_der(der.clone())?);
        }
        limits.push(self.authority.clone());
        for (below, pair) in limits.windows(2).enumerate() {
            let [lower, upper] = pair else { continue };
            if lower.mesh() != self.authority.mesh() {
                return Err(Refused::AnotherMesh(lower.mesh().clone()));
            }
            if !upper.network().contains(&lower.network()) {
                return Err(Refused::AuthorityExceeded("its network is not within that of the one above it"));
            }
            // Under `upper` stand `lower` and the `below` ones under that.
            if upper.path_length().is_some_and(|length| below as u64 + 1 > u64::from(length)) {
                return Err(Refused::AuthorityExceeded("more authorities below it than its path length"));
            }
        }
        Ok(())
    }

    fn check_time(&self, path: &Path<'_>, now: UnixTime) -> Result<(), Refused> {
        let own = [(self.authority.not_before(), self.authority.not_after())];
        let below = path.outlines.iter().map(|outline| (outline.not_before, outline.not_after));
        for (not_before, not_after) in below.chain(own) {
            if now < not_before {
                return Err(Refused::NotYetValid { not_before, now });
            }
            if now >= not_after {
                return Err(Refused::Expired { not_after, now });
            }
        }
        Ok(())
    }

    /// The address is one that every authority above may give.
    fn check_network(&self, candidate: &Candidate<'_>) -> Result<(), Refused> {
        let address = candidate.claims.address;
        let mut networks = vec![self.authority.network()];
        for der in candidate.path.above_leaf() {
            networks.push(CaCertificate::from_der(der.clone())?.network());
        }
        match networks.into_iter().find(|network| !certificate::is_host_in(address, network)) {
            Some(network) => Err(Refused::OutsideNetwork { address, network }),
            None => Ok(()),
        }
    }

    /// Neither the node's certificate or key nor one above it was taken back.
    fn check_revocation(&self, path: &Path<'_>) -> Result<(), Refused> {
        match path.outlines.iter().find(|outline| self.revocations.revokes(&outline.serial, &outline.key)) {
            Some(outline) => Err(Refused::Revoked { serial: outline.serial }),
            None => Ok(()),
        }
    }
}

/// One thing that is checked before a node's certificate is believed, in this order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Check {
    /// The certificates are of the profile, and the first is a node's.
    Form,
    /// Signatures lead up to the mesh's authority.
    Issuer,
    /// Those in between may sign certificates, and only within the limits of the ones above them.
    Authority,
    /// All of them are valid at this time.
    Time,
    /// It names this mesh.
    Mesh,
    /// Its address is one of the mesh's network.
    Network,
    /// It is not revoked.
    Revocation,
}

impl Check {
    /// All, in the order in which they are made.
    pub const ALL: [Check; 7] =
        [Check::Form, Check::Issuer, Check::Authority, Check::Time, Check::Mesh, Check::Network, Check::Revocation];

    /// One short word for it.
    pub fn name(self) -> &'static str {
        match self {
            Check::Form => "form",
            Check::Issuer => "issuer",
            Check::Authority => "authority",
            Check::Time => "time",
            Check::Mesh => "mesh",
            Check::Network => "network",
            Check::Revocation => "revocation",
        }
    }
}

/// A chain taken apart, leaf first, without the root even if that was sent along.
struct Path<'a> {
    ders: &'a [Vec<u8>],
    outlines: Vec<Outline<'a>>,
}

impl<'a> Path<'a> {
    fn above_leaf(&self) -> &'a [Vec<u8>] {
        &self.ders[1..]
    }
}

/// What asks to be believed.
struct Candidate<'a> {
    path: Path<'a>,
    claims: NodeClaims,
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
