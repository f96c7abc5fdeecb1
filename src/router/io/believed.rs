//! A member that was let in by its proof, for as long as what it began goes on.
//!
//! Through the overlay the packets of a member stop with its certificate. At an ingress nothing else stops it: an answer
//! or an upgraded connection may run for days after the proof that opened it.

use std::{sync::Arc, time::Duration};

use wiremesh_certs::{OverlayIp, TrustStore, Verified};

use crate::clock;

/// How often it is looked whether a member with something under way is still one.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whom a proof was believed of.
#[derive(Clone)]
pub(super) struct Believed {
    member: Verified,
    trust: Arc<TrustStore>,
}

impl Believed {
    /// By this trust, at this moment.
    pub fn new(member: Verified, trust: Arc<TrustStore>) -> Believed {
        Believed { member, trust }
    }

    /// Its address in the overlay, whichever way it came.
    pub fn address(&self) -> OverlayIp {
        self.member.address()
    }

    /// Ends when the member's certificate is revoked or over.
    pub async fn over(self) {
        while self.member.is_valid_at(clock::unix()) && !self.trust.current().is_revoked(&self.member) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tracing::info!(member = %self.member.name(), "certificate revoked or over, what it had under way is cut");
    }
}
