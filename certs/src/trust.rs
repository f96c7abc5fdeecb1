//! The one door: what was claimed and signed goes in, what is believed comes out.
//!
//! ```text
//! Claims ──Authority::issue──► Chain, Signed<T> ──Trust::verify, Trust::open──► Verified, Opened<T>
//!  said                         said and signed                                  believed
//! ```
//!
//! **Invariant:** nothing outside this module makes a [`Verified`]. A function that takes one needs no check of its
//! own; a function that needs a check cannot be given anything less.
//!
//! A mesh has one authority, except while it is being replaced, or where an offline root stands behind the one that
//! issues. Which ones are believed is said by the [`RevocationList`], signed by one that is believed already.

mod path;
mod refused;
mod store;
mod verified;

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{
    CaCertificate, Chain, Fingerprint, MAX_AUTHORITIES, MeshName, Payload, ServiceName, Signed, SignedRevocations,
    UnixTime,
    certificate::{self, BadCertificate, NodeClaims},
    keys,
    revocation::RevocationList,
    signed::TakenApart,
};

use path::Path;
pub use refused::Refused;
pub use store::TrustStore;
use verified::Facts;
pub use verified::{Opened, Renewable, Verified};

/// Certificates that a coordinator shows in TLS: its own, and whatever leads to any of the mesh's authorities.
pub const MAX_TLS_CHAIN: usize = 1 + 2 * MAX_AUTHORITIES + crate::MAX_CROSSES;

/// Whom a node believes: its mesh's authorities, less what they have revoked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust {
    /// At least one; the one that issues first.
    authorities: Arc<[CaCertificate]>,
    network: IpNet,
    revocations: Arc<RevocationList>,
}

impl Trust {
    /// Believes what `authority` signed; nothing is revoked yet.
    pub fn new(authority: CaCertificate) -> Trust {
        Trust { network: authority.network(), authorities: [authority].into(), revocations: Arc::default() }
    }

    /// Believes what any of these signed, which are authorities of one mesh; nothing is revoked yet.
    pub fn of(authorities: Vec<CaCertificate>) -> Result<Trust, Refused> {
        let Some(first) = authorities.first() else {
            return Err(BadCertificate("no authority at all").into());
        };
        if authorities.len() > MAX_AUTHORITIES {
            return Err(BadCertificate("more authorities than a mesh has").into());
        }
        if let Some(other) = authorities.iter().find(|authority| authority.mesh() != first.mesh()) {
            return Err(Refused::AnotherMesh(other.mesh().clone()));
        }
        let contains_all = |network: &IpNet| authorities.iter().all(|authority| network.contains(&authority.network()));
        let network = authorities.iter().map(CaCertificate::network).find(contains_all);
        let network = network.ok_or(Refused::AuthorityExceeded("the authorities are limited to different networks"))?;
        Ok(Trust { network, authorities: authorities.into(), revocations: Arc::default() })
    }

    /// Checks a node's chain, leaf first; authorities may be in it.
    pub fn verify(&self, chain: &Chain, now: UnixTime) -> Result<Verified, Refused> {
        self.judge(chain, Duration::ZERO, now)
    }

    /// The same checks as [`Trust::verify`], each with its own outcome, for people who want to know what is wrong. When
    /// the first fails there is nothing to do the others with, and it stands alone.
    pub fn examine(&self, chain: &Chain, now: UnixTime) -> Vec<(Check, Result<(), Refused>)> {
        match self.candidate(chain) {
            Err(refused) => vec![(Check::Form, Err(refused))],
            Ok(candidate) => {
                Check::ALL.map(|check| (check, self.check(check, &candidate, Duration::ZERO, now))).to_vec()
            }
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

    /// Like [`Trust::open`], for requests to renew: the certificate may have ended up to `grace` ago, and may be from one
    /// of the authorities in `former`, which are no longer believed otherwise.
    pub fn open_renewable<T: Payload>(
        &self,
        signed: &Signed<T>,
        former: &[CaCertificate],
        grace: Duration,
        now: UnixTime,
    ) -> Result<(Renewable, T), Refused> {
        let TakenApart { chain, payload, message, signature } = signed.take_apart()?;
        let by = self.renewable(&chain, former, grace, now)?;
        if !keys::is_signed_by(&by.id(), &message, &signature) {
            return Err(Refused::WrongSignature);
        }
        Ok((by, payload))
    }

    /// Like [`Trust::verify`], for whoever may renew: see [`Trust::open_renewable`]. That a former authority was revoked
    /// is no reason to refuse: whoever asks proves its own key, and the caller renews none but identities that it knows, or
    /// who stole that authority's key could bring in anybody.
    pub fn renewable(
        &self,
        chain: &Chain,
        former: &[CaCertificate],
        grace: Duration,
        now: UnixTime,
    ) -> Result<Renewable, Refused> {
        let authorities = self.authorities.iter().chain(former).cloned().collect();
        let mut revocations = self.revocations.clone();
        for former in former.iter().filter(|former| self.revocations.revokes(&former.serial(), &former.key())) {
            let revocations = Arc::make_mut(&mut revocations);
            revocations.serials.remove(&former.serial());
            revocations.identities.remove(&former.key());
        }
        let lenient = Trust { authorities, network: self.network, revocations };
        lenient.judge(chain, grace, now).map(Renewable::new)
    }

    /// Checks that a TLS server is this mesh's coordinator. `chain` is DER, the server's own first; the others in any
    /// order.
    pub fn verify_coordinator(&self, chain: &[impl AsRef<[u8]>], now: UnixTime) -> Result<(), Refused> {
        let Some((own, pool)) = chain.split_first().filter(|_| chain.len() <= MAX_TLS_CHAIN) else {
            return Err(BadCertificate("no certificates, or more than a coordinator shows").into());
        };
        let pool: Vec<&[u8]> = pool.iter().map(AsRef::as_ref).collect();
        let path = Path::searched(own.as_ref(), &pool, &self.authorities)?;
        path.check_issuers(self.authority())?;
        path.check_limits(1)?;
        path.check_time(Duration::ZERO, now)?;
        path.check_revocation(&self.revocations)?;
        certificate::is_coordinator_tls(&path.outlines[0], self.mesh())?;
        Ok(())
    }

    /// Takes over a newer list, with the authorities that it names. False if it is the one we have.
    pub fn apply_revocations(&mut self, signed: &SignedRevocations, now: UnixTime) -> Result<bool, Refused> {
        let TakenApart { chain, payload: list, message, signature } = signed.take_apart()?;
        let signer = CaCertificate::from_der(chain.leaf().to_vec())?;
        self.check_authority(&signer, &list, now)?;
        if !keys::is_signed_by(&signer.key(), &message, &signature) {
            return Err(Refused::WrongSignature);
        }
        if list.number < self.revocations.number {
            return Err(Refused::OlderRevocations { given: list.number, ours: self.revocations.number });
        }
        if list.number == self.revocations.number {
            return Ok(false);
        }
        let successor = self.successor(&signer, &list, now)?;
        *self = Trust { revocations: Arc::new(list), ..successor };
        Ok(true)
    }

    /// Whether a node that was believed no longer is: it, something it hangs on, or its authority was revoked, or its
    /// authority was retired.
    pub fn is_revoked(&self, verified: &Verified) -> bool {
        let revokes = |serial, key| self.revocations.revokes(&serial, &key);
        let authority = self.authorities.iter().find(|authority| authority.fingerprint() == verified.authority());
        self.revocations.names(verified)
            || authority.is_none_or(|authority| revokes(authority.serial(), authority.key()))
            || verified.above().iter().any(|(serial, key)| revokes(*serial, *key))
    }

    /// Whether a member may offer it, by its certificate and by the mesh's policy.
    pub fn may_offer(&self, member: &Verified, service: &ServiceName) -> bool {
        member.services().allows(service) && self.revocations.policy.may_offer(service, member.groups())
    }

    /// Whether a member may call it.
    pub fn may_call(&self, member: &Verified, service: &ServiceName) -> bool {
        self.revocations.policy.may_call(service, member.groups())
    }

    /// The number of the revocation list in force; 0: none yet.
    pub fn revocation_number(&self) -> u64 {
        self.revocations.number
    }

    /// The list in force.
    pub fn revocations(&self) -> &RevocationList {
        &self.revocations
    }

    /// The authority that issues, as far as we know.
    pub fn authority(&self) -> &CaCertificate {
        &self.authorities[0]
    }

    /// All authorities that are believed, the one that issues first.
    pub fn authorities(&self) -> &[CaCertificate] {
        &self.authorities
    }

    /// Whether the authority with this fingerprint is believed.
    pub fn believes(&self, authority: &Fingerprint) -> bool {
        self.authorities.iter().any(|known| known.fingerprint() == *authority)
    }

    /// The mesh's name.
    pub fn mesh(&self) -> &MeshName {
        self.authority().mesh()
    }

    /// The mesh's overlay network.
    pub fn network(&self) -> IpNet {
        self.network
    }

    fn judge(&self, chain: &Chain, grace: Duration, now: UnixTime) -> Result<Verified, Refused> {
        let candidate = self.candidate(chain)?;
        Check::ALL.into_iter().try_for_each(|check| self.check(check, &candidate, grace, now))?;
        let Candidate { path, claims } = candidate;
        let leaf = &path.outlines[0];
        let Some(anchor) = path.anchor() else {
            return Err(Refused::AnotherAuthority { ours: String::new() });
        };
        let ends = path.outlines.iter().map(|outline| outline.not_after);
        let beginnings = path.outlines.iter().map(|outline| outline.not_before);
        Ok(Verified::new(Facts {
            id: leaf.key,
            serial: leaf.serial,
            not_before: beginnings.max().unwrap_or(leaf.not_before),
            not_after: ends.min().unwrap_or(leaf.not_after).min(anchor.not_after()),
            authority: anchor.fingerprint(),
            above: path.outlines[1..].iter().map(|outline| (outline.serial, outline.key)).collect(),
            chain: Chain::from_ders(path.ders().iter().map(|der| der.to_vec()).collect())?,
            claims,
        }))
    }

    fn candidate<'a>(&self, chain: &'a Chain) -> Result<Candidate<'a>, Refused> {
        let path = Path::given(chain.ders(), &self.authorities)?;
        let claims = NodeClaims::of(&path.outlines[0])?;
        Ok(Candidate { path, claims })
    }

    fn check(&self, check: Check, candidate: &Candidate<'_>, grace: Duration, now: UnixTime) -> Result<(), Refused> {
        let Candidate { path, claims } = candidate;
        match check {
            Check::Form => Ok(()),
            Check::Issuer => path.check_issuers(self.authority()),
            Check::Authority => path.check_limits(1),
            Check::Time => path.check_time(grace, now),
            Check::Mesh if claims.mesh == *self.mesh() => Ok(()),
            Check::Mesh => Err(Refused::AnotherMesh(claims.mesh.clone())),
            Check::Network => path.check_network(claims.address),
            Check::Revocation => path.check_revocation(&self.revocations),
        }
    }

    /// Whether an authority is believed: it is known, or a known one vouches for its key, perhaps through the crosses of
    /// `list`.
    fn check_authority(&self, authority: &CaCertificate, list: &RevocationList, now: UnixTime) -> Result<(), Refused> {
        if authority.mesh() != self.mesh() {
            return Err(Refused::AnotherMesh(authority.mesh().clone()));
        }
        if self.believes(&authority.fingerprint()) {
            return match self.revocations.revokes(&authority.serial(), &authority.key()) {
                true => Err(Refused::Revoked { serial: authority.serial() }),
                false => Ok(()),
            };
        }
        // A cross has the key and name of the authority that it leads to, so that authority's own certificate, which it
        // signed itself, is as good as signed by the cross.
        let pool: Vec<&[u8]> = list.crosses.iter().chain(&list.authorities).map(Vec::as_slice).collect();
        let path = Path::searched(authority.der(), &pool, &self.authorities)?;
        path.check_issuers(self.authority())?;
        path.check_limits(0)?;
        path.check_time(Duration::ZERO, now)?;
        path.check_revocation(&self.revocations)
    }

    /// Whom we believe when `list`, which `signer` signed, is in force.
    fn successor(&self, signer: &CaCertificate, list: &RevocationList, now: UnixTime) -> Result<Trust, Refused> {
        let mut successor = self.clone();
        if !list.authorities.is_empty() {
            let mut named = Vec::with_capacity(list.authorities.len());
            for der in &list.authorities {
                let authority = CaCertificate::from_der(der.clone())?;
                self.check_authority(&authority, list, now)?;
                named.push(authority);
            }
            successor = Trust::of(named)?;
            if successor.network != self.network {
                return Err(Refused::AuthorityExceeded("its list changes the mesh's network"));
            }
        }
        // Else who steals the key of an online intermediate could lock out the offline root above it.
        let stays = |root: &CaCertificate| {
            successor.believes(&root.fingerprint()) && !list.revokes(&root.serial(), &root.key())
        };
        let mut roots = self.authorities.iter().filter(|authority| authority.is_root());
        if !signer.is_root() && !roots.all(stays) {
            return Err(Refused::AuthorityExceeded("an intermediate may not put out a root"));
        }
        Ok(successor)
    }
}

/// One thing that is checked before a node's certificate is believed, in this order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Check {
    /// The certificates are of the profile, and the first is a node's.
    Form,
    /// Signatures lead up to an authority of the mesh.
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

/// What asks to be believed.
struct Candidate<'a> {
    path: Path<'a>,
    claims: NodeClaims,
}
