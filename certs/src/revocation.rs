//! What is no longer to be believed: numbered lists of serials and identities, signed by the authority.

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};

use crate::{NodeId, Payload, Serial, Signed, Verified};

/// Of each kind. At the bound the oldest certificates have long expired and need no entry.
pub const MAX_REVOCATIONS: usize = 10_000;

/// A [`RevocationList`] as it travels.
pub type SignedRevocations = Signed<RevocationList>;

/// Which certificates and identities are revoked. A higher number replaces a lower one whole.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct RevocationList {
    /// Grows with each change.
    #[n(0)]
    pub number: u64,
    /// Revoked certificates.
    #[n(1)]
    pub serials: BTreeSet<Serial>,
    /// Revoked identity keys, with every certificate they have or will have.
    #[n(2)]
    pub identities: BTreeSet<NodeId>,
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

impl Payload for RevocationList {
    const DOMAIN: &'static str = "revocations";
    const MAX_BYTES: usize = 1024 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.serials.len() > MAX_REVOCATIONS || self.identities.len() > MAX_REVOCATIONS {
            return Err("more than 10,000 revocations");
        }
        Ok(())
    }
}
