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
    body::{Body, Bytes},
    extract::{ConnectInfo, Query, State},
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
    places::Places,
    task::{CancellationToken, Tasks},
};

/// The path of the list on overlay addresses.
const PATH: &str = "/revocations";
/// To reach a neighbour.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a whole exchange with one.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Lists that are read at once, one of each neighbour. Beyond, they are told that others are: news goes many ways.
const MAX_READ: usize = 4;

/// What lists need to go from node to node. Clones share all.
#[derive(Clone)]
pub struct Gossip {
    membership: membership::io::Handle,
    directory: directory::Handle,
    overlay: overlay::Handle,
    manners: Arc<Mutex<Manners>>,
    readers: Places<OverlayIp>,
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
        // Within the overlay HTTP is plain: no authority's TLS would be believed.
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
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
        Ok(Gossip { membership, directory, overlay, manners: Arc::default(), readers: readers(), http, me, port })
    }

    /// Tells and asks from here on.
    pub fn start(self, tasks: &Tasks) {
        tasks.spawn("neighbours", |stop| self.run(stop));
    }

    /// `GET` and `POST /revocations`, for the overlay address.
    pub fn pages(&self) -> Router {
        Router::new().route(PATH, get(give).post(take)).with_state(self.clone())
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

fn readers() -> Places<OverlayIp> {
    Places::new(MAX_READ, 1)
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
async fn take(
    State(neighbours): State<Gossip>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    told: axum::extract::Request,
) -> Response {
    let node = OverlayIp(peer.ip().to_canonical());
    let avoid = |why: &dyn std::fmt::Display| {
        neighbours.manners().avoid(node, clock::now());
        refusal(StatusCode::BAD_REQUEST, "not_believed", &format!("this list is not believed: {why}"))
    };
    if neighbours.manners().is_avoided(&node, clock::now()) {
        return refusal(StatusCode::TOO_MANY_REQUESTS, "not_listened_to", "the last list from here was not believed");
    }
    let body = match read(&neighbours.readers, node, told.into_body()).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
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

/// What a neighbour sends, if it comes in time and not too many send at once. Nothing of it is read before.
async fn read(readers: &Places<OverlayIp>, node: OverlayIp, body: Body) -> Result<Bytes, Response> {
    let Some(_place) = readers.take(node) else {
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "other lists are read"));
    };
    let reading = axum::body::to_bytes(body, RevocationList::MAX_BYTES);
    match tokio::time::timeout(EXCHANGE_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(broken)) => Err(refusal(StatusCode::BAD_REQUEST, "not_read", &format!("no list came: {broken}"))),
        Err(_) => Err(refusal(StatusCode::REQUEST_TIMEOUT, "not_read", "the list did not come in time")),
    }
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "type": kind, "message": message } }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lists_are_read_a_few_at_once_one_of_each_neighbour_and_for_a_while() {
        let (readers, node) = (readers(), |n| OverlayIp([10, 42, 0, n].into()));
        let stalls = || Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let unread = || Body::from_stream(futures::stream::poll_fn(|_| -> Poll { panic!("it is not to be read") }));
        type Poll = std::task::Poll<Option<Result<Bytes, std::io::Error>>>;
        let status = |read: Result<Bytes, Response>| read.map_err(|refused| refused.status());

        let stalled: FuturesUnordered<_> = (0..MAX_READ).map(|n| read(&readers, node(n as u8), stalls())).collect();
        let mut stalled = std::pin::pin!(stalled.collect::<Vec<_>>());
        assert!(futures::poll!(&mut stalled).is_pending());
        assert_eq!(status(read(&readers, node(0), unread()).await), Err(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(status(read(&readers, node(200), unread()).await), Err(StatusCode::SERVICE_UNAVAILABLE));

        for late in tokio::time::timeout(2 * EXCHANGE_TIMEOUT, stalled).await.expect("nobody may stall for ever") {
            assert_eq!(status(late), Err(StatusCode::REQUEST_TIMEOUT));
        }
        assert_eq!(status(read(&readers, node(200), Body::from("list")).await), Ok(Bytes::from("list")));
        let long = Body::from(vec![0; RevocationList::MAX_BYTES + 1]);
        assert_eq!(status(read(&readers, node(0), long).await), Err(StatusCode::BAD_REQUEST));
        let one = readers.take(node(1)).unwrap();
        assert_eq!(status(read(&readers, node(1), unread()).await), Err(StatusCode::SERVICE_UNAVAILABLE));
        drop(one);
    }
}
