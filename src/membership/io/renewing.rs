//! A machine whose certificate ended while it was off: it waits for a coordinator, as long as it takes, and renews by proof
//! of the same key. Whether that is still allowed is the coordinator's to say.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use rand::{Rng, rngs::StdRng};
use reqwest::Method;
use wiremesh_certs::{
    Chain, IdentityKey, Renewable, SignedRevocations, Trust, TrustStore, UnixTime, Verified, proof_header,
};

use super::{
    client::Client,
    disk::StateDir,
    http::{self, Asked, ClientError, EXCHANGE_TIMEOUT, OurClock},
    join::{RETRY_AFTER, RETRY_AT_MOST},
    pin::Expect,
};
use crate::{
    api::{self, RenewResponse},
    backoff::Backoff,
    clock,
    membership::joining,
    telemetry::seldom::Seldom,
};

/// The coordinator's word for a certificate that ended too long ago.
pub const WINDOW_OVER: &str = "renewal_window_over";
/// Where certificates are renewed.
pub const RENEW: &str = "/api/certs/renew";

/// What a machine has whose certificate ended.
pub struct Ended {
    /// Whom it believes.
    pub trust: Trust,
    /// The list that says so.
    pub list: Option<SignedRevocations>,
    /// Who it is.
    pub before: Renewable,
    /// By which certificates.
    pub chain: Chain,
}

/// Renews; a [`ClientError`] is a coordinator's no.
pub async fn renew_ended(
    disk: &StateDir,
    ended: Ended,
    identity: &IdentityKey,
    urls: &[String],
    rng: &mut StdRng,
) -> anyhow::Result<(Trust, Verified, Option<SignedRevocations>)> {
    let Ended { trust, mut list, before, chain } = ended;
    let audience = api::audience(trust.mesh());
    let store = Arc::new(TrustStore::new(trust));
    let (http, our_clock) = (http::client(Expect::Trusted(store.clone()))?, OurClock::default());
    let mut waiting = Waiting::new(rng.random());
    let answer = loop {
        let mut failed = ClientError::NoCoordinator;
        let mut answer = None;
        for url in urls {
            let proof = proof_header(identity, &chain, &audience, "POST", RENEW, clock::unix(), rng)?;
            let (method, limit) = (Method::POST, EXCHANGE_TIMEOUT);
            let asked = Asked { method, path: RENEW, body: None, proof: Some(proof), limit };
            match http::exchange::<RenewResponse>(&http, url, asked, &our_clock).await {
                Ok(renewed) => answer = Some(renewed),
                Err(error) if error.is_passing() || matches!(error, ClientError::Wrong { .. }) => {
                    failed = error;
                    continue;
                }
                Err(refused) => return Err(refused.into()),
            }
            break;
        }
        match answer {
            Some(answer) => break answer,
            None => waiting.on(&failed, before.not_after(), &our_clock).await,
        }
    };
    let now = clock::unix();
    if let Some(newer) = answer.revocations
        && newer.claimed_number().is_some_and(|number| number > store.current().revocation_number())
    {
        let known = store.current();
        store.apply_revocations(&newer, now).context("the list in the coordinator's answer is not believed")?;
        // Who signed the old certificate stays on disk until the new one is there.
        disk.keep_trust(Some(&known), &store.current(), &newer, None, now)?;
        list = Some(newer);
    }
    let trust = store.current();
    let verified = joining::accept_renewed(&trust, &answer.certificate, &(&before).into(), now)?;
    disk.keep_certificate(&verified.chain().to_pem())?;
    disk.settle_authorities(&trust, list.as_ref(), now)?;
    tracing::info!(until = %verified.not_after(), ended_at = %before.not_after(), "certificate renewed after its end");
    Ok((Trust::clone(&trust), verified, list))
}

/// Waits until a coordinator gives a list of at least number `enforced`: this machine has enforced one, and lost it.
pub async fn await_list(
    disk: &StateDir,
    client: &Client,
    trust: &TrustStore,
    own: &Verified,
    enforced: u64,
    seed: u64,
) -> anyhow::Result<SignedRevocations> {
    let mut backoff = Backoff::new(RETRY_AFTER, RETRY_AT_MOST, seed);
    tracing::warn!(enforced, "the list in force is missing: waiting for a coordinator to give it again");
    loop {
        let before = trust.current();
        match client.list_after(before.revocation_number(), Duration::ZERO).await {
            Ok(Some(signed)) => {
                let now = clock::unix();
                trust.apply_revocations(&signed, now).context("the coordinator's list is not believed")?;
                let after = trust.current();
                if after.revocation_number() >= enforced {
                    disk.keep_trust(Some(&before), &after, &signed, Some(&own.authority()), now)?;
                    return Ok(signed);
                }
                tracing::warn!(enforced, given = after.revocation_number(), "the coordinator's list is an older one");
            }
            Ok(None) => tracing::debug!("the coordinator has no newer list"),
            Err(error) if error.is_passing() => tracing::debug!(why = %error, "no list yet"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// What is said while it waits: once aloud, then seldom.
struct Waiting {
    backoff: Backoff,
    told: Seldom,
    was_told: bool,
}

impl Waiting {
    fn new(seed: u64) -> Waiting {
        Waiting { backoff: Backoff::new(RETRY_AFTER, RETRY_AT_MOST, seed), told: Seldom::default(), was_told: false }
    }

    async fn on(&mut self, failed: &ClientError, ended_at: UnixTime, our_clock: &OurClock) {
        let hint = failed.hint();
        if !self.was_told {
            tracing::warn!(%ended_at, why = %failed, hint, "our certificate has ended: waiting for a coordinator to renew it");
            self.was_told = true;
        } else if self.told.is_due(clock::now()) {
            tracing::info!(%ended_at, why = %failed, hint, "our certificate has ended: still waiting for a coordinator");
        }
        if let Some(offset) = our_clock.offset().filter(|offset| offset.is_wrong()) {
            tracing::debug!("this machine's clock is {offset} the coordinator's");
        }
        tokio::time::sleep(self.backoff.next_delay()).await;
    }
}
