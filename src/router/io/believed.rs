//! Another node that something runs for, or at, for as long as that goes on.
//!
//! A proof, or an overlay address, says who asks at one moment; an answer or an upgraded connection may run for days
//! after it. It is cut when its member is revoked, when the certificate ended and no later one of the same identity is
//! known, and when the mesh's policy no longer lets the member call what it called. Who renewed is who it was.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::watch;
use wiremesh_certs::{NodeName, OverlayIp, ServiceName, Trust, TrustStore, Verified};

use crate::{
    clock,
    router::{Members, Whose},
};

/// A certificate that ends later is looked at again after this all the same: clocks are set, machines sleep.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// How long it may take to find the later certificate of a member whose last one has just ended.
const LATER_WITHIN: Duration = Duration::from_secs(2);

/// Whom we believe, and who else is a member.
pub(super) struct Belief {
    pub members: Arc<dyn Members>,
    pub trust: Arc<TrustStore>,
    /// Told whenever revocations or policy have changed.
    changes: watch::Sender<()>,
}

impl Belief {
    pub fn new(members: Arc<dyn Members>, trust: Arc<TrustStore>) -> Arc<Belief> {
        Arc::new(Belief { members, trust, changes: watch::Sender::new(()) })
    }

    /// Revocations or policy have changed.
    pub fn on_changed(&self) {
        self.changes.send_replace(());
    }

    /// Whether the mesh lets this node offer a service to others.
    pub fn may_offer(&self, service: &ServiceName) -> bool {
        self.trust.current().may_offer(&self.members.own(), service)
    }

    /// Whether a member is one at this moment.
    pub fn stands(&self, member: &Verified) -> bool {
        stands(member, &self.trust.current())
    }

    /// Whether somebody may speak from this overlay address.
    pub fn is_inhabited(&self, address: OverlayIp) -> bool {
        match self.members.whose(address) {
            Whose::Member(member) => self.stands(&member),
            Whose::Stranger => true,
            Whose::Nobody => false,
        }
    }

    /// Ends when revocations or policy have changed and nobody may speak from this overlay address any longer.
    pub async fn deserted(&self, address: OverlayIp) {
        let mut changes = self.changes.subscribe();
        loop {
            // Never an error: the sender is ours.
            let _ = changes.changed().await;
            if !self.is_inhabited(address) {
                return;
            }
        }
    }
}

/// Who that other node is. Clones are the same, and run the same errand.
#[derive(Clone)]
pub(super) struct Believed {
    belief: Arc<Belief>,
    /// `None`: a standard WireGuard peer of the configuration, which has no certificate and so no group.
    member: Option<Verified>,
    /// What it was let in for; as long as that is unknown it is only asked whether it is a member.
    service: Arc<OnceLock<ServiceName>>,
}

impl Believed {
    /// By its certificate.
    pub fn member(belief: &Arc<Belief>, member: Verified) -> Believed {
        Believed { belief: belief.clone(), member: Some(member), service: Arc::default() }
    }

    /// By the configuration of this node.
    pub fn stranger(belief: &Arc<Belief>) -> Believed {
        Believed { belief: belief.clone(), member: None, service: Arc::default() }
    }

    /// Its address in the overlay, whichever way it came.
    pub fn address(&self) -> Option<OverlayIp> {
        self.member.as_ref().map(Verified::address)
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        self.certified_name().map_or("a WireGuard peer without a certificate", NodeName::as_str)
    }

    /// Its name, if it has a certificate that says one.
    pub fn certified_name(&self) -> Option<&NodeName> {
        self.member.as_ref().map(Verified::name)
    }

    /// Whether the mesh's policy lets it call a service.
    pub fn may_call(&self, service: &ServiceName) -> bool {
        may_call(self.member.as_ref(), service, &self.belief.trust.current())
    }

    /// This service is called by it, from here on until it is over.
    pub fn on_service(&self, service: &ServiceName) {
        // The first one is it: a request is executed by one service.
        let _ = self.service.set(service.clone());
    }

    /// Ends when what runs has to be cut.
    pub async fn over(self) {
        let mut changes = self.belief.changes.subscribe();
        let mut member = self.member.clone();
        loop {
            changes.borrow_and_update();
            let trust = self.belief.trust.current();
            let mut look_again_in = LOOK_AT_LEAST_EVERY;
            if let Some(known) = &mut member {
                if !stands(known, &trust) {
                    match self.later(known, &trust).await {
                        Some(later) => *known = later,
                        None => break,
                    }
                }
                let left = known.not_after().saturating_since(clock::unix());
                look_again_in = left.clamp(Duration::from_millis(100), LOOK_AT_LEAST_EVERY);
            }
            if self.service.get().is_some_and(|service| !may_call(member.as_ref(), service, &trust)) {
                break;
            }
            tokio::select! {
                // Never an error: the sender is ours.
                _ = changes.changed() => {}
                () = tokio::time::sleep(look_again_in) => {}
            }
        }
        tracing::info!(member = self.name(), "revoked, over, or no longer allowed: what was under way is cut");
    }

    /// A later certificate of a member whose last one is good no more. It is looked for beyond this node only if there
    /// may be one: who was revoked is cut at once.
    async fn later(&self, member: &Verified, trust: &Trust) -> Option<Verified> {
        let is_good = |later: &Verified| later.id() == member.id() && stands(later, trust);
        let members = &self.belief.members;
        if let Some(known) = members.known(&member.id()).filter(is_good) {
            return Some(known);
        }
        if trust.revocations().names(member) {
            return None;
        }
        let latest = tokio::time::timeout(LATER_WITHIN, members.latest(member)).await.ok().flatten();
        latest.filter(is_good)
    }
}

/// Never, for a client of ours and for our own upstream.
pub(super) async fn over(believed: Option<Believed>) {
    match believed {
        Some(believed) => believed.over().await,
        None => std::future::pending().await,
    }
}

fn stands(member: &Verified, trust: &Trust) -> bool {
    member.is_valid_at(clock::unix()) && !trust.is_revoked(member)
}

fn may_call(member: Option<&Verified>, service: &ServiceName, trust: &Trust) -> bool {
    match member {
        Some(member) => trust.may_call(member, service),
        None => trust.revocations().policy.may_call(service, &[]),
    }
}
