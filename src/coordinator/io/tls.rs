//! The coordinator's TLS: a certificate of its own authority, replaced at half its life without a connection lost.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use wiremesh_certs::UnixTime;

use super::shared::Shared;
use crate::{clock, coordinator::list, task::CancellationToken};

/// Looked at this often, also in case the machine slept through the moment.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// The certificate in use and when to replace it.
#[derive(Debug)]
pub struct Certificate {
    current: ArcSwap<CertifiedKey>,
}

impl Certificate {
    /// Has a first one issued.
    pub fn issue(shared: &Shared, now: UnixTime) -> anyhow::Result<Arc<Certificate>> {
        Ok(Arc::new(Certificate { current: ArcSwap::from_pointee(certified(shared, now)?) }))
    }

    /// What a TLS listener needs.
    pub fn server_config(self: &Arc<Self>) -> anyhow::Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("the TLS library offers no protocol version")?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Replaces the certificate at half its life, and when the authorities change, until stopped.
    pub async fn keep(self: Arc<Self>, shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
        let half = shared.config.certificate_lifetime / 2;
        let mut renew_at = clock::unix().plus(half);
        let mut lists = shared.ruling.list_changes();
        let mut shown = shared.ruling.in_force();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = lists.changed() => {}
                () = tokio::time::sleep(CHECK_EVERY.min(half)) => {}
            }
            let now = clock::unix();
            let in_force = shared.ruling.in_force();
            let is_same = in_force.authorities == shown.authorities && in_force.crosses == shown.crosses;
            if now < renew_at && is_same {
                continue;
            }
            match certified(&shared, now) {
                Ok(key) => {
                    self.current.store(Arc::new(key));
                    renew_at = now.plus(half);
                    shown = in_force;
                    tracing::info!("TLS certificate renewed");
                }
                Err(error) => tracing::error!("could not renew the TLS certificate: {error:#}"),
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    /// Clients know us by our authority, not by the name they dialled.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn certified(shared: &Shared, now: UnixTime) -> anyhow::Result<CertifiedKey> {
    let lifetime = shared.config.certificate_lifetime;
    let in_force = shared.ruling.in_force();
    let (chain, key) = in_force.issuer.issue_coordinator_tls(lifetime, now, &mut shared.rng())?;
    let chain = list::shown(chain, &in_force.authorities, &in_force.crosses, now);
    let der = key.to_pkcs8_der();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice()));
    let signer = ring::sign::any_supported_type(&key).context("the TLS key cannot be used")?;
    Ok(CertifiedKey::new(chain.into_iter().map(CertificateDer::from).collect(), signer))
}
