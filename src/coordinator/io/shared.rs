//! What every request handler and background task of the coordinator works with.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rand::{RngCore, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc, watch};
use wiremesh_certs::{Chain, Claims, IssueError, NodeId, ProofChecker, Serial, Trust, TrustStore, UnixTime, Verified};
use zeroize::Zeroizing;

use super::{
    http,
    metrics::Metrics,
    ruling::Ruling,
    store::{Grant, Store, StoreError},
    tunnels::Look,
};
use crate::{
    clock,
    coordinator::{Config, copies::Copies, limiter::Limiter, registry::Registry, tunnels::Tunnels},
    places::Places,
    task::CancellationToken,
};

/// Members that wait for the next list at once: as many as there can be connections. Beyond, they are answered at once.
const MAX_LIST_WAITERS: usize = super::serve::MAX_CONNECTIONS;
/// Who may wait at once for a row of the audit: half of the connections that the operator's socket takes.
const MAX_WATCHERS: usize = 8;

/// One coordinator.
pub struct Shared {
    /// What it was told.
    pub config: Config,
    /// Where agents reach it.
    pub urls: Vec<String>,
    /// The authorities that admit members, and their list.
    pub ruling: Ruling,
    /// Whom it believes.
    pub trust: TrustStore,
    /// What must survive.
    pub store: Store,
    /// What it counts.
    pub metrics: Metrics,
    /// Room for members that wait for the next list.
    pub list_waiters: Semaphore,
    /// Counts what members show of themselves: which list they enforce, which authority their certificate is from.
    pub fleet: watch::Sender<u64>,
    /// Since when it hears members.
    pub started_at: UnixTime,
    /// Room for those who wait for a row of the audit.
    pub watchers: Semaphore,
    /// Cancelled when the coordinator stops: whoever waits for something to happen is answered.
    pub stopping: CancellationToken,
    /// Places of members whose bodies are being read.
    pub bodies: Places<NodeId>,
    /// The same for revocation lists.
    pub lists: Places<NodeId>,
    /// Tunnel URLs to be looked at.
    pub looks: mpsc::Sender<Look>,
    admin_key_hash: [u8; 32],
    registry: Mutex<Registry>,
    copies: Mutex<Copies>,
    tunnels: Mutex<Tunnels>,
    proofs: Mutex<ProofChecker>,
    limiter: Mutex<Limiter>,
    rng: Mutex<StdRng>,
}

impl Shared {
    /// A coordinator with nobody in its registry.
    pub fn new(
        config: Config,
        urls: Vec<String>,
        (trust, ruling): (Trust, Ruling),
        store: Store,
        admin_key: &Zeroizing<String>,
        (stopping, looks): (CancellationToken, mpsc::Sender<Look>),
        rng: StdRng,
    ) -> Shared {
        Shared {
            admin_key_hash: Sha256::digest(admin_key.trim().as_bytes()).into(),
            registry: Mutex::new(Registry::new(config.heartbeat_interval)),
            copies: Mutex::new(Copies::new(config.heartbeat_interval)),
            tunnels: Mutex::default(),
            looks,
            proofs: Mutex::new(ProofChecker::new(crate::api::audience(trust.mesh()), clock::unix())),
            limiter: Mutex::new(Limiter::new(clock::now())),
            bodies: Places::new(http::MAX_BODIES, http::MAX_BODIES_PER_MEMBER),
            lists: Places::new(http::MAX_LISTS, 1),
            watchers: Semaphore::new(MAX_WATCHERS),
            list_waiters: Semaphore::new(MAX_LIST_WAITERS),
            fleet: watch::Sender::new(0),
            started_at: clock::unix(),
            stopping,
            rng: Mutex::new(rng),
            metrics: Metrics::new(),
            trust: TrustStore::new(trust),
            config,
            urls,
            ruling,
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

    /// Where members' tunnel URLs lead. Held for one call.
    pub fn tunnels(&self) -> MutexGuard<'_, Tunnels> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A member showed something of itself that others may wait for.
    pub fn fleet_changed(&self) {
        self.fleet.send_modify(|version| *version = version.wrapping_add(1));
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
        let chain = self.ruling.in_force().issuer.issue(&claims, now, &mut self.rng())?;
        // What is not believed here is believed nowhere: a certificate leaves this program only if it verifies.
        let verified = self.trust.current().verify(&chain, now);
        let verified = verified.map_err(|refused| IssueError::WouldBeRefused(Box::new(refused)))?;
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
