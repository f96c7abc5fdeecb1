//! The authorities at work: which of them issues, which list is in force, and how both change.
//!
//! ```text
//! revoke · rotate · start ──► publish ─ one transaction: change, compose, sign ─► trust ─► whoever waits
//! ```

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use wiremesh_certs::{Authority, CaCertificate, Fingerprint, Refused, SignedRevocations, Trust, UnixTime};

use super::{
    shared::Shared,
    store::{Change, Published, Revocation, StoreError, Target},
};
use crate::{
    clock,
    coordinator::{audit::Origin, list, rotation::Authorities},
};

/// What is in force at one moment.
pub struct InForce {
    /// Who is believed, and who was.
    pub authorities: Authorities,
    /// What leads from earlier roots to later ones, the oldest first.
    pub crosses: Vec<CaCertificate>,
    /// The one that issues.
    pub issuer: Arc<Authority>,
}

impl InForce {
    /// Every root that a token may pin, as far as there is room: the present ones first.
    pub fn roots_pem(&self) -> String {
        let mut roots = self.authorities.roots();
        roots.truncate(wiremesh_certs::MAX_BUNDLE);
        CaCertificate::bundle_to_pem(&roots)
    }
}

/// The authorities, their keys, and the list that they signed.
pub struct Ruling {
    in_force: ArcSwap<InForce>,
    keys: Mutex<BTreeMap<Fingerprint, Arc<Authority>>>,
    list: watch::Sender<Option<Arc<SignedRevocations>>>,
    /// One list after the other.
    publishing: tokio::sync::Mutex<()>,
}

impl Ruling {
    /// With the keys of all that are next, issuing or leaving, as far as they are here.
    pub fn new(
        authorities: Authorities,
        crosses: Vec<CaCertificate>,
        keys: impl IntoIterator<Item = Authority>,
    ) -> Result<Ruling, StoreError> {
        let keys: BTreeMap<_, _> =
            keys.into_iter().map(|key| (key.certificate().fingerprint(), Arc::new(key))).collect();
        let fingerprint = authorities.issuing().fingerprint();
        let issuer = keys.get(&fingerprint).cloned().ok_or(StoreError::NoKey(fingerprint))?;
        Ok(Ruling {
            in_force: ArcSwap::from_pointee(InForce { authorities, crosses, issuer }),
            keys: Mutex::new(keys),
            list: watch::Sender::new(None),
            publishing: tokio::sync::Mutex::new(()),
        })
    }

    /// What is in force at this moment.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// The list in force, signed.
    pub fn list(&self) -> Option<Arc<SignedRevocations>> {
        self.list.borrow().clone()
    }

    /// Changes with the list in force.
    pub fn list_changes(&self) -> watch::Receiver<Option<Arc<SignedRevocations>>> {
        self.list.subscribe()
    }

    /// Has another key at hand.
    pub fn add_key(&self, authority: Authority) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(authority.certificate().fingerprint(), Arc::new(authority));
    }

    fn key(&self, of: Fingerprint) -> Result<Arc<Authority>, StoreError> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.get(&of).cloned().ok_or(StoreError::NoKey(of))
    }
}

impl Shared {
    /// Puts a list in force, unless a newer one is.
    pub fn set_revocations(&self, signed: SignedRevocations, now: UnixTime) -> Result<(), Refused> {
        match self.trust.apply_revocations(&signed, now) {
            Ok(true) => _ = self.ruling.list.send_replace(Some(Arc::new(signed))),
            Ok(false) | Err(Refused::OlderRevocations { .. }) => {}
            Err(refused) => return Err(refused),
        }
        Ok(())
    }

    /// Makes a change, and the list that says so.
    pub async fn publish(&self, change: &Change, origin: &Origin, now: UnixTime) -> Result<Published, StoreError> {
        let _one_at_a_time = self.ruling.publishing.lock().await;
        let published = self.store.publish(change, origin, now, |facts| self.next_list(facts, now)).await?;
        self.put_in_force(&published, now)?;
        Ok(published)
    }

    /// Revokes, and publishes the list that says so.
    pub async fn revoke(&self, target: &Target, origin: &Origin, now: UnixTime) -> Result<Revocation, StoreError> {
        let _one_at_a_time = self.ruling.publishing.lock().await;
        let revoked = self.store.revoke(target, origin, now, |facts| self.next_list(facts, now)).await?;
        self.put_in_force(&revoked.published, now)?;
        Ok(revoked)
    }

    /// The list that should be in force, signed by whoever issues; `None`: it is. What members would refuse is not made.
    fn next_list(&self, facts: &list::Facts, now: UnixTime) -> Result<Option<SignedRevocations>, StoreError> {
        let list = list::compose(facts, &self.config.policy, now);
        let trust = self.trust.current();
        if list.number == trust.revocation_number() + 1 && list::say_the_same(&list, trust.revocations()) {
            return Ok(None);
        }
        let signed = self.ruling.key(facts.authorities.issuing().fingerprint())?.sign_revocations(&list)?;
        Trust::clone(&trust).apply_revocations(&signed, now).map_err(StoreError::Unbelieved)?;
        Ok(Some(signed))
    }

    fn put_in_force(&self, published: &Published, now: UnixTime) -> Result<(), StoreError> {
        let issuer = self.ruling.key(published.authorities.issuing().fingerprint())?;
        let (authorities, crosses) = (published.authorities.clone(), published.crosses.clone());
        self.ruling.in_force.store(Arc::new(InForce { authorities, crosses, issuer }));
        if let Some(signed) = &published.signed {
            self.set_revocations(signed.clone(), now).map_err(StoreError::Unbelieved)?;
            tracing::info!(number = published.number, "list published");
        }
        Ok(())
    }
}

/// Does it to its end, also if whoever asked for it has left: what is in the database and not in force would be neither
/// done nor repeatable.
#[expect(clippy::disallowed_methods, reason = "it ends by itself, and its end is awaited by whoever still wants it")]
pub async fn to_its_end<T: Send + 'static>(
    doing: impl Future<Output = T> + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn(doing).await
}

/// At start, and whenever time may have changed what the list should say.
pub async fn refresh(shared: &Shared) -> Result<(), StoreError> {
    shared.publish(&Change::Nothing, &Origin::coordinator(), clock::unix()).await.map(drop)
}
