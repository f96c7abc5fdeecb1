//! What every request handler and background task of the coordinator works with.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwapOption;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use wiremesh_certs::{
    Authority, Chain, Claims, IssueError, ProofChecker, Refused, Serial, SignedRevocations, Trust, TrustStore,
    UnixTime, Verified,
};
use zeroize::Zeroizing;

use super::{
    metrics::Metrics,
    store::{Grant, Store, StoreError},
};
use crate::{
    clock,
    coordinator::{Config, copies::Copies, limiter::Limiter, registry::Registry},
    task::CancellationToken,
};

/// Who may wait at once for a row of the audit: half of the connections that the operator's socket takes.
const MAX_WATCHERS: usize = 8;

/// One coordinator.
pub struct Shared {
    /// What it was told.
    pub config: Config,
    /// Where agents reach it.
    pub urls: Vec<String>,
    /// The key that admits members.
    pub authority: Authority,
    /// Whom it believes.
    pub trust: TrustStore,
    /// What must survive.
    pub store: Store,
    /// What it counts.
    pub metrics: Metrics,
    /// Room for those who wait for a row of the audit.
    pub watchers: Semaphore,
    /// Cancelled when the coordinator stops: whoever waits for something to happen is answered.
    pub stopping: CancellationToken,
    admin_key_hash: [u8; 32],
    registry: Mutex<Registry>,
    copies: Mutex<Copies>,
    proofs: Mutex<ProofChecker>,
    limiter: Mutex<Limiter>,
    revocations: ArcSwapOption<SignedRevocations>,
    rng: Mutex<StdRng>,
}

impl Shared {
    /// A coordinator with nobody in its registry.
    pub fn new(
        config: Config,
        urls: Vec<String>,
        authority: Authority,
        store: Store,
        admin_key: &Zeroizing<String>,
        stopping: CancellationToken,
        rng: StdRng,
    ) -> Shared {
        let trust = Trust::new(authority.certificate().clone());
        Shared {
            admin_key_hash: Sha256::digest(admin_key.trim().as_bytes()).into(),
            registry: Mutex::new(Registry::new(config.heartbeat_interval)),
            copies: Mutex::new(Copies::new(config.heartbeat_interval)),
            proofs: Mutex::new(ProofChecker::new(crate::api::audience(trust.mesh()), clock::unix())),
            limiter: Mutex::new(Limiter::new(clock::now())),
            watchers: Semaphore::new(MAX_WATCHERS),
            stopping,
            revocations: ArcSwapOption::empty(),
            rng: Mutex::new(rng),
            metrics: Metrics::new(),
            trust: TrustStore::new(trust),
            config,
            urls,
            authority,
            store,
        }
    }

    /// The registry. Held for one call, never across an `.await`.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which identities are used twice. Held as the registry is; who needs both takes the registry first.
    pub fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory of proofs that were used.
    pub fn proofs(&self) -> MutexGuard<'_, ProofChecker> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failed attempts to enrol.
    pub fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generator of its own for whoever needs one.
    pub fn rng(&self) -> StdRng {
        let mut seed = Zeroizing::new([0; 32]);
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut *seed);
        StdRng::from_seed(*seed)
    }

    /// The revocation list in force, signed.
    pub fn revocations(&self) -> Option<Arc<SignedRevocations>> {
        self.revocations.load_full()
    }

    /// Puts a revocation list in force, unless a newer one is.
    pub fn set_revocations(&self, signed: SignedRevocations, now: UnixTime) -> Result<(), Refused> {
        match self.trust.apply_revocations(&signed, now) {
            Ok(true) => self.revocations.store(Some(Arc::new(signed))),
            Ok(false) | Err(Refused::OlderRevocations { .. }) => {}
            Err(refused) => return Err(refused),
        }
        Ok(())
    }

    /// Whether `key` is the admin key. Hashes are compared, so that time tells nothing about the key.
    pub fn is_admin_key(&self, key: &str) -> bool {
        <[u8; 32]>::from(Sha256::digest(key.as_bytes())) == self.admin_key_hash
    }

    /// Signs a certificate for what was decided in the database.
    pub fn issue(&self, grant: &Grant, now: UnixTime) -> Result<(Chain, Serial, UnixTime), IssueError> {
        let claims = Claims {
            identity: grant.member.identity,
            wg: grant.member.wg,
            name: grant.member.name.clone(),
            address: grant.member.address,
            groups: grant.groups.clone(),
            services: grant.services.clone(),
            lifetime: self.config.certificate_lifetime,
        };
        let chain = self.authority.issue(&claims, now, &mut self.rng())?;
        // What is not believed here is believed nowhere: a certificate leaves this program only if it verifies.
        let verified = Trust::new(self.authority.certificate().clone())
            .verify(&chain, now)
            .map_err(|refused| IssueError::Encoding(refused.to_string()))?;
        Ok((chain, verified.serial(), verified.not_after()))
    }

    /// Takes a verified member that the registry does not know into it, if nothing it holds is another's.
    pub async fn adopt(&self, by: &Verified, from: IpAddr, now: UnixTime) -> Result<(), StoreError> {
        let member = self.store.adopt(by, from, now).await?;
        tracing::info!(name = %member.name, identity = %member.identity, "member taken into the registry");
        self.registry().admit(member);
        Ok(())
    }
}
