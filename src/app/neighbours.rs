//! The list that rules the mesh, from node to node: so it reaches all of them also while no coordinator does.
//!
//! ```text
//! a list was taken over, from wherever ──► a few neighbours, by chance: POST /revocations ──► they, a few others …
//! a record tells of a higher number ──► its node: GET /revocations?after=N ──► offered to our membership
//! ```
//!
//! A list is believed because an authority signed it, not because of who hands it over.

mod manners;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use wiremesh_certs::{OverlayIp, Payload, RevocationList, SignedRevocations};

use self::manners::Manners;
use super::view::heard_lately;
use crate::{
    clock, directory,
    membership::{self, io::Offered},
    overlay,
    task::{CancellationToken, Tasks},
};

/// The path of the list on overlay addresses.
const PATH: &str = "/revocations";
/// To reach a neighbour.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a whole exchange with one.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What lists need to go from node to node. Clones share all.
#[derive(Clone)]
pub struct Gossip {
    membership: membership::io::Handle,
    directory: directory::Handle,
    overlay: overlay::Handle,
    manners: Arc<Mutex<Manners>>,
    http: reqwest::Client,
    me: OverlayIp,
    /// Where agents listen on their overlay address.
    port: u16,
}

impl Gossip {
    /// For the node at `me`.
    pub fn new(
        membership: membership::io::Handle,
        directory: directory::Handle,
        overlay: overlay::Handle,
        me: OverlayIp,
        port: u16,
    ) -> anyhow::Result<Gossip> {
        // Never spoken: the overlay encrypts. But the library wants to know which it would be.
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("the TLS library offers no protocol version")?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(EXCHANGE_TIMEOUT)
            // They are many, and asked seldom.
            .pool_max_idle_per_host(0)
            .build()
            .context("preparing to speak to neighbours")?;
        Ok(Gossip { membership, directory, overlay, manners: Arc::default(), http, me, port })
    }

    /// Tells and asks from here on.
    pub fn start(self, tasks: &Tasks) {
        tasks.spawn("neighbours", |stop| self.run(stop));
    }

    /// `GET` and `POST /revocations`, for the overlay address.
    pub fn pages(&self) -> Router {
        Router::new()
            .route(PATH, get(give).post(take))
            .layer(DefaultBodyLimit::max(RevocationList::MAX_BYTES))
            .with_state(self.clone())
    }

    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let (mut news, mut enforced) = (self.directory.news(), self.membership.enforced());
        let mut asking: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut telling: BoxFuture<'_, ()> = Box::pin(std::future::pending());
        for entry in self.directory.remembered() {
            asking.extend(self.on_record(&entry));
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = asking.next() => {}
                () = &mut telling => telling = Box::pin(std::future::pending()),
                // Whoever was to be told of an older one is told of this, or by others.
                changed = enforced.changed() => match changed {
                    Ok(()) => telling = Box::pin(self.tell_some()),
                    Err(_) => return stopped(&stop).await,
                },
                heard = news.recv() => match heard {
                    Ok(entry) => asking.extend(self.on_record(&entry)),
                    // Records are published again and again.
                    Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "claims of members missed"),
                    Err(RecvError::Closed) => return stopped(&stop).await,
                },
            }
        }
    }

    /// A question to whoever says that it enforces a newer list.
    fn on_record(&self, entry: &directory::Entry) -> Option<BoxFuture<'_, ()>> {
        let (node, claimed) = (entry.address(), entry.record().revocations);
        let ours = *self.membership.enforced().borrow();
        let asks = node != self.me && self.manners().handle_claim(node, claimed, ours, clock::now());
        asks.then(|| {
            let asked: BoxFuture<'_, ()> = Box::pin(async move {
                let answered = self.ask(node, ours).await;
                let shown = answered.unwrap_or_else(|why| {
                    tracing::debug!(%node, claimed, why = format!("{why:#}"), "no newer list from a neighbour");
                    false
                });
                self.manners().on_answer(node, shown, clock::now());
            });
            asked
        })
    }

    /// True if it has a list that is newer than `ours`, and believed.
    async fn ask(&self, node: OverlayIp, ours: u64) -> anyhow::Result<bool> {
        let url = format!("{}?after={ours}", self.url(node));
        let mut answer = self.http.get(url).send().await?.error_for_status()?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            anyhow::ensure!(bytes.len() + chunk.len() <= RevocationList::MAX_BYTES, "longer than any list");
            bytes.extend_from_slice(&chunk);
        }
        anyhow::ensure!(!bytes.is_empty(), "it has none");
        let signed = SignedRevocations::from_bytes(&bytes)?;
        let claimed = signed.claimed_number().unwrap_or_default();
        Ok(match self.membership.offer_revocations(signed).await {
            Offered::TakenOver | Offered::Busy => true,
            Offered::Known => claimed > ours,
            Offered::Refused(refused) => anyhow::bail!(refused),
        })
    }

    /// Passes the list in force on.
    async fn tell_some(&self) {
        let Some(signed) = self.membership.revocations() else { return };
        let peers = self.overlay.status().await.map(|status| status.peers).unwrap_or_default();
        let heard = peers.iter().filter(|peer| peer.id.is_some() && heard_lately(peer));
        let heard = heard.filter_map(|peer| peer.address.map(OverlayIp));
        let contacts = self.directory.contacts().into_iter().map(|entry| entry.address());
        let some = manners::some_of(heard.chain(contacts), self.me, &mut rand::rng());
        futures::future::join_all(some.into_iter().map(|node| self.tell(node, &signed))).await;
    }

    async fn tell(&self, node: OverlayIp, signed: &SignedRevocations) {
        let told = self.http.post(self.url(node)).body(signed.as_bytes().to_vec()).send().await;
        match told.and_then(reqwest::Response::error_for_status) {
            Ok(_) => tracing::debug!(%node, "neighbour has the list"),
            Err(why) => tracing::debug!(%node, %why, "neighbour was not told of the list"),
        }
    }

    fn url(&self, node: OverlayIp) -> String {
        format!("http://{}{PATH}", SocketAddr::new(node.0, self.port))
    }

    fn manners(&self) -> MutexGuard<'_, Manners> {
        self.manners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn stopped(stop: &CancellationToken) -> anyhow::Result<()> {
    stop.cancelled().await;
    Ok(())
}

/// What a neighbour has already.
#[derive(Deserialize)]
struct Has {
    /// The number of its list.
    #[serde(default)]
    after: u64,
}

/// `GET /revocations?after=N`: the list, if it is newer.
async fn give(State(neighbours): State<Gossip>, Query(Has { after }): Query<Has>) -> Response {
    match neighbours.membership.revocations() {
        Some(signed) if signed.claimed_number().is_some_and(|number| number > after) => {
            ([(header::CONTENT_TYPE, "application/cose")], signed.as_bytes().to_vec()).into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

/// `POST /revocations`: a neighbour has taken over a list.
async fn take(State(neighbours): State<Gossip>, ConnectInfo(peer): ConnectInfo<SocketAddr>, body: Bytes) -> Response {
    let node = OverlayIp(peer.ip().to_canonical());
    let avoid = |why: &dyn std::fmt::Display| {
        neighbours.manners().avoid(node, clock::now());
        refusal(StatusCode::BAD_REQUEST, "not_believed", &format!("this list is not believed: {why}"))
    };
    if neighbours.manners().is_avoided(&node, clock::now()) {
        return refusal(StatusCode::TOO_MANY_REQUESTS, "not_listened_to", "the last list from here was not believed");
    }
    let signed = match SignedRevocations::from_bytes(&body) {
        Ok(signed) => signed,
        Err(bad) => return avoid(&bad),
    };
    match neighbours.membership.offer_revocations(signed).await {
        Offered::TakenOver | Offered::Known => StatusCode::NO_CONTENT.into_response(),
        Offered::Refused(refused) => avoid(&refused),
        Offered::Busy => refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "other lists are looked at"),
    }
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "type": kind, "message": message } }))).into_response()
}
