//! What is believed: members, those who may still renew, and what was signed by either.

use std::{fmt, sync::Arc};

use crate::{
    AllowedServices, Chain, Fingerprint, GroupName, NodeId, NodeName, OverlayIp, Serial, Signed, UnixTime, WgPublicKey,
    certificate::NodeClaims,
};

/// A node whose certificate was checked: chain, validity, revocation, network. Cheap to clone.
#[derive(Clone)]
pub struct Verified(Arc<Facts>);

/// What [`Trust`](super::Trust) found out about a node.
pub(super) struct Facts {
    pub id: NodeId,
    pub claims: NodeClaims,
    pub serial: Serial,
    pub not_before: UnixTime,
    pub not_after: UnixTime,
    /// Without what everybody believes anyway.
    pub chain: Chain,
    pub authority: Fingerprint,
    /// Those between the node and the authority.
    pub above: Vec<(Serial, NodeId)>,
}

impl Verified {
    pub(super) fn new(facts: Facts) -> Verified {
        Verified(Arc::new(facts))
    }

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

    /// What its certificate allows it to offer; [`Trust::may_offer`](super::Trust::may_offer) knows the mesh's policy too.
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

    /// End of its certificate, or of one above it if that is earlier.
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after
    }

    /// The certificates it was verified by, without those of authorities that every member believes: as short as it can
    /// be for a record.
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// Which authority vouches for it.
    pub fn authority(&self) -> Fingerprint {
        self.0.authority
    }

    /// Whether its time is still on; revocation is [`Trust::is_revoked`](super::Trust::is_revoked).
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        self.0.not_before <= now && now < self.0.not_after
    }

    /// Serial numbers and keys of the certificates it hangs on, below the authority.
    pub(super) fn above(&self) -> &[(Serial, NodeId)] {
        &self.0.above
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

/// A node whose certificate is good, or was until not long ago: it may have a fresh one for the same name, address and
/// keys, and nothing else.
///
/// **Invariant:** there is no way from here to a [`Verified`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Renewable(Verified);

impl Renewable {
    pub(super) fn new(verified: Verified) -> Renewable {
        Renewable(verified)
    }

    /// Its identity.
    pub fn id(&self) -> NodeId {
        self.0.id()
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        self.0.name()
    }

    /// Its overlay address.
    pub fn address(&self) -> OverlayIp {
        self.0.address()
    }

    /// Its WireGuard key.
    pub fn wg(&self) -> WgPublicKey {
        self.0.wg()
    }

    /// Its groups.
    pub fn groups(&self) -> &[GroupName] {
        self.0.groups()
    }

    /// What its certificate allows it to offer.
    pub fn services(&self) -> &AllowedServices {
        self.0.services()
    }

    /// Of its certificate.
    pub fn serial(&self) -> Serial {
        self.0.serial()
    }

    /// Beginning of its certificate.
    pub fn not_before(&self) -> UnixTime {
        self.0.not_before()
    }

    /// End of its certificate.
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after()
    }

    /// Which authority vouches for it, or did.
    pub fn authority(&self) -> Fingerprint {
        self.0.authority()
    }
}

impl From<Verified> for Renewable {
    /// Who is a member may renew.
    fn from(verified: Verified) -> Renewable {
        Renewable(verified)
    }
}

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
