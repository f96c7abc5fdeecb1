//! The coordinator as a member sees it: every request signed, coordinators tried in turn.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rand::rngs::StdRng;
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use wiremesh_certs::{
    IdentityKey, NodeName, NodeRecord, Offer, Signed, SignedRevocations, TrustStore, Verified, proof_header,
};

use super::{
    http::{self, Asked, ClientError, EXCHANGE_TIMEOUT, OurClock},
    pin::Expect,
    renewing::RENEW,
};
use crate::{
    api::{
        self, ANY_MODEL, BootstrapResponse, DiscoverModelResponse, DiscoverResponse, HeartbeatRequest,
        HeartbeatResponse, Instance, NodeResponse, RegisterRequest, RekeyRequest, RekeyResponse, RenewResponse,
        RevocationsResponse, Seed, SendRevocations, Worker,
    },
    clock,
    membership::{heartbeat::Coordinators, skew::Offset},
};

/// How long a coordinator is asked to keep a question for a newer list: less than what closes quiet connections on the way
/// waits for.
pub const LIST_WAIT: Duration = Duration::from_secs(50);
/// How much later its answer may come.
const LIST_GRACE: Duration = Duration::from_secs(10);

/// Asks coordinators in our name. Clones share everything.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    identity: Arc<IdentityKey>,
    verified: ArcSwap<Verified>,
    audience: String,
    coordinators: Mutex<Coordinators>,
    our_clock: OurClock,
    rng: Mutex<StdRng>,
}

impl Client {
    /// Speaks for the member `verified`, whose key is `identity`.
    pub fn new(
        identity: Arc<IdentityKey>,
        verified: Verified,
        trust: Arc<TrustStore>,
        coordinators: Coordinators,
        rng: StdRng,
    ) -> anyhow::Result<Client> {
        let audience = api::audience(trust.current().mesh());
        Ok(Client(Arc::new(Inner {
            http: http::client(Expect::Trusted(trust))?,
            identity,
            verified: ArcSwap::from_pointee(verified),
            audience,
            coordinators: Mutex::new(coordinators),
            our_clock: OurClock::default(),
            rng: Mutex::new(rng),
        })))
    }

    /// Says what this machine is and offers.
    pub async fn register(&self, body: &RegisterRequest) -> Result<HeartbeatResponse, ClientError> {
        self.ask(Method::POST, "/api/worker/register", Some(body)).await
    }

    /// Says that we are alive, with our latest record.
    pub async fn heartbeat(
        &self,
        record: Signed<NodeRecord>,
        revocation_number: u64,
        instance: Instance,
    ) -> Result<HeartbeatResponse, ClientError> {
        let body = HeartbeatRequest { record, revocation_number, instance: Some(instance) };
        self.ask(Method::POST, "/api/worker/heartbeat", Some(&body)).await
    }

    /// Says that we leave.
    pub async fn unregister(&self) -> Result<(), ClientError> {
        let path = format!("/api/worker/unregister/{}", self.verified().id().to_hex());
        self.ask::<serde_json::Value>(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    /// A fresh certificate, not yet checked.
    pub async fn renew(&self) -> Result<RenewResponse, ClientError> {
        self.ask(Method::POST, RENEW, None::<&()>).await
    }

    /// A certificate for our next keys, not yet checked.
    pub async fn rekey(&self, body: &RekeyRequest) -> Result<RekeyResponse, ClientError> {
        self.ask(Method::POST, "/api/certs/rekey", Some(body)).await
    }

    /// Some healthy members.
    pub async fn bootstrap(&self) -> Result<Vec<Seed>, ClientError> {
        let answer: BootstrapResponse = self.ask(Method::GET, "/api/dht/bootstrap", None::<&()>).await?;
        Ok(answer.seeds)
    }

    /// Healthy workers that offer it, the least busy first; none is an answer too. Their records are not yet checked.
    pub async fn discover(&self, offer: &Offer) -> Result<Vec<Worker>, ClientError> {
        let answer = match offer {
            Offer::Service(service) => {
                let path = format!("/api/services/discover/{service}");
                self.ask(Method::GET, &path, None::<&()>).await.map(|answer: DiscoverResponse| answer.workers)
            }
            Offer::Model(tag) => self.discover_model(&tag.to_string()).await,
            Offer::AnyModel => self.discover_model(ANY_MODEL).await,
        };
        match answer {
            Err(error) if matches!(error.kind(), Some("service_not_found" | "model_not_found")) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// The record of the node with this name; `None`: the coordinator has none. Not yet checked. That node learns that
    /// we asked.
    pub async fn node(&self, name: &NodeName) -> Result<Option<Signed<NodeRecord>>, ClientError> {
        self.node_by(name.as_str()).await
    }

    /// The record of the node at this overlay address; as [`Client::node`].
    pub async fn node_at(&self, address: wiremesh_certs::OverlayIp) -> Result<Option<Signed<NodeRecord>>, ClientError> {
        self.node_by(&address.to_string()).await
    }

    /// The list in force, not yet checked; `None`: it is not newer than number `after`. Waits for a newer one to come.
    pub async fn list_after(&self, after: u64, wait: Duration) -> Result<Option<SignedRevocations>, ClientError> {
        let path = format!("/api/revocations?after={after}&wait={}", wait.as_secs());
        let limit = (wait + LIST_GRACE).max(EXCHANGE_TIMEOUT);
        let answer: RevocationsResponse = self.ask_within(Method::GET, &path, None::<&()>, limit).await?;
        Ok(answer.revocations.filter(|_| answer.number > after))
    }

    /// Gives the coordinator a list that is newer than its own.
    pub async fn send_list(&self, signed: SignedRevocations) -> Result<(), ClientError> {
        let body = SendRevocations { revocations: signed };
        self.ask::<serde_json::Value>(Method::POST, "/api/revocations", Some(&body)).await.map(drop)
    }

    /// How far our clock is from the coordinator's; `None`: none has told yet.
    pub fn clock_offset(&self) -> Option<Offset> {
        self.0.our_clock.offset()
    }

    /// Ourselves, by the certificate in use.
    pub fn verified(&self) -> Arc<Verified> {
        self.0.verified.load_full()
    }

    /// Uses another certificate from here on.
    pub fn set_verified(&self, verified: Verified) {
        self.0.verified.store(Arc::new(verified));
    }

    /// Where coordinators are reached, the one that answered last first.
    pub fn coordinators(&self) -> Vec<String> {
        self.known().order()
    }

    /// A coordinator named these. True if that changed anything.
    pub fn learn_coordinators(&self, urls: &[String]) -> bool {
        self.known().learn(urls)
    }

    async fn discover_model(&self, model: &str) -> Result<Vec<Worker>, ClientError> {
        let path = format!("/api/models/discover/{model}");
        self.ask(Method::GET, &path, None::<&()>).await.map(|answer: DiscoverModelResponse| answer.workers)
    }

    async fn node_by(&self, key: &str) -> Result<Option<Signed<NodeRecord>>, ClientError> {
        match self.ask::<NodeResponse>(Method::GET, &format!("/api/nodes/{key}"), None::<&()>).await {
            Ok(answer) => Ok(Some(answer.record)),
            Err(ClientError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.ask_within(method, path, body, EXCHANGE_TIMEOUT).await
    }

    /// One question, to one coordinator after the other until one answers it, be it with no.
    async fn ask_within<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = body.map(|body| Bytes::from(serde_json::to_vec(body).expect("our bodies are JSON")));
        let mut failed = ClientError::NoCoordinator;
        for url in self.coordinators() {
            // Each attempt has a proof of its own: the one before may have been used up.
            let proof = Some(self.proof(&method, path)?);
            let asked = Asked { method: method.clone(), path, body: body.clone(), proof, limit };
            match http::exchange(&self.0.http, &url, asked, &self.0.our_clock).await {
                Ok(answer) => {
                    self.known().on_answer(&url);
                    return Ok(answer);
                }
                Err(refused @ ClientError::Refused { .. }) => {
                    self.known().on_answer(&url);
                    return Err(refused);
                }
                Err(other) => failed = other,
            }
        }
        Err(failed)
    }

    fn proof(&self, method: &Method, path: &str) -> Result<String, ClientError> {
        let inner = &self.0;
        let verified = self.verified();
        let mut rng = inner.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::unix();
        proof_header(&inner.identity, verified.chain(), &inner.audience, method.as_str(), path, now, &mut *rng)
            .map_err(|error| ClientError::Signing(error.to_string()))
    }

    fn known(&self) -> MutexGuard<'_, Coordinators> {
        self.0.coordinators.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
