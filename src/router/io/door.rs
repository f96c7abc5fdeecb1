//! The three doors of an agent and who may come in: local clients (with a key, if the listener can be reached from
//! beyond this machine), members by their overlay address, members by proof.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Json, Router as Pages, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use tower::ServiceExt;
use wiremesh_certs::{NodeId, OverlayIp, ProofChecker};

use super::{
    Router, Shared,
    account::Account,
    answer::{Answer, AnswerBody, refuse},
    believed::Believed,
    called::AskedBy,
    lock, openai,
    outbound::{Caller, Whence},
    reports,
    serve::Connections,
};
use crate::{
    clock,
    router::{
        Refusal, Report, Whose,
        headers::{self, ADDED_BY_US_BYTES, MAX_HEADER_BYTES},
        health_json, stats_json,
        webpage::{self, Names},
    },
    services,
};

/// What is called below this goes to a service, as does what names a model; everything else is a page.
const SERVICES: &str = "/service/";

/// The key that local clients show. Compared by hash: how long that takes says nothing about the key.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// From the content of the key file; spaces and line ends around it do not count.
    pub fn new(key: &str) -> ApiKey {
        ApiKey(Sha256::digest(key.trim()).into())
    }

    fn opens(&self, authorization: Option<&HeaderValue>) -> bool {
        let shown = authorization.and_then(|value| value.to_str().ok()).and_then(|text| text.split_once(' '));
        shown.is_some_and(|(scheme, key)| scheme.eq_ignore_ascii_case("bearer") && ApiKey::new(key).0 == self.0)
    }
}

/// What one listener serves: the services and the pages, behind its door.
pub struct Surface {
    shared: Arc<Shared>,
    door: Door,
    pages: Pages,
}

/// What keeps others out of a surface for local clients.
pub enum Lock {
    /// The mode of a socket's file.
    File,
    /// The key that all show.
    Key(ApiKey),
    /// Where it listens. Web pages come from anywhere, and are known by their headers.
    Address(Names),
}

enum Door {
    Local(Lock),
    Overlay(IpNet),
    Ingress(Box<Mutex<ProofChecker>>),
}

impl Router {
    /// The surface for local clients; `more` are further pages of the agent. Here alone `GET /routes/{service}` tells who
    /// would be asked.
    pub fn local(&self, lock: Lock, report: Arc<dyn Report>, more: Pages) -> Surface {
        let routes = Pages::new().route("/routes/{service}", get(routes)).with_state(self.shared.clone());
        self.surface(Door::Local(lock), report, more.merge(routes))
    }

    /// The surface on the overlay address. Whoever comes from within `network` is a member: the overlay lets nobody speak
    /// from another's address.
    pub fn overlay(&self, network: IpNet, report: Arc<dyn Report>, more: Pages) -> Surface {
        self.surface(
            Door::Overlay(network),
            report,
            more.merge(self.shared.calls.pages()).merge(reports::pages(self.shared.parts.services.clone())),
        )
    }

    /// The surface where the tunnel of `node` ends: every request needs a proof of membership.
    pub fn ingress(&self, node: NodeId, report: Arc<dyn Report>) -> Surface {
        let checker = Mutex::new(ProofChecker::new(node.to_hex(), clock::unix()));
        self.surface(Door::Ingress(Box::new(checker)), report, self.shared.calls.pages())
    }

    fn surface(&self, door: Door, report: Arc<dyn Report>, more: Pages) -> Surface {
        let shared = self.shared.clone();
        let whence = match door {
            Door::Local(_) => Whence::Client,
            // Whoever it is.
            Door::Overlay(_) | Door::Ingress(_) => Whence::Member(OverlayIp([0, 0, 0, 0].into())),
        };
        let pages = pages(shared.clone(), report)
            .merge(openai::pages(shared.clone(), whence))
            .merge(more)
            .fallback(async |asked: axum::extract::Request| no_page(&Refusal::NotFound, &asked))
            .method_not_allowed_fallback(async |asked: axum::extract::Request| no_page(&Refusal::Method, &asked));
        Surface { shared, door, pages }
    }
}

impl Surface {
    /// Answers one request from `peer`.
    pub(super) async fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        connections: Arc<Connections>,
    ) -> Answer {
        if !is_call(&request) {
            return self.answer_one(request, peer, connections).await;
        }
        let account = Account::open(&self.shared, &mut request, matches!(self.door, Door::Local(_)));
        account.answered(self.answer_one(request, peer, connections).await)
    }

    async fn answer_one(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        connections: Arc<Connections>,
    ) -> Answer {
        let believed = match self.let_in(&mut request, peer) {
            Ok(believed) => believed,
            Err(refusal) => return self.keep_out(&refusal, &request, peer),
        };
        if is_call(&request) {
            return self.answer_call(request, self.caller(peer, believed, connections)).await;
        }
        if let Whence::Member(member) = self.whence(peer, believed.as_ref()) {
            request.extensions_mut().insert(AskedBy(member));
        }
        let id = self.shared.request_id(request.headers());
        request.headers_mut().insert(headers::REQUEST_ID, id.clone());
        request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
        // The pages of an agent never fail: their error type has no value.
        let Ok(page) = self.pages.clone().oneshot(request.map(axum::body::Body::new)).await;
        let mut answer = page.map(AnswerBody::page);
        answer.headers_mut().insert(headers::WORKER, self.shared.worker_header.clone());
        answer.headers_mut().insert(headers::REQUEST_ID, id);
        answer
    }

    /// Whether this door leads to other nodes, each of whom is to have its share of it.
    pub(super) fn is_shared_by_members(&self) -> bool {
        matches!(self.door, Door::Overlay(_))
    }

    /// Ends when nobody may speak any longer from the overlay address that a connection of this door came from.
    pub(super) async fn deserted(&self, peer: SocketAddr) {
        match self.door {
            Door::Overlay(_) => self.shared.belief.deserted(OverlayIp(peer.ip().to_canonical())).await,
            Door::Local(_) | Door::Ingress(_) => std::future::pending().await,
        }
    }

    async fn answer_call(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        let Some(believed) = caller.believed.clone() else { return self.shared.answer_call(request, caller).await };
        tokio::select! {
            answer = self.shared.answer_call(request, caller) => answer.map(|body| body.until(believed.over())),
            () = believed.clone().over() => {
                refuse(&Refusal::Interrupted("who asked is no longer a member, or no longer allowed to".into()), "")
            }
        }
    }

    fn caller(&self, peer: SocketAddr, believed: Option<Believed>, connections: Arc<Connections>) -> Caller {
        let whence = self.whence(peer, believed.as_ref());
        let header_limit = match whence {
            Whence::Client => MAX_HEADER_BYTES,
            Whence::Member(_) => MAX_HEADER_BYTES + ADDED_BY_US_BYTES,
        };
        Caller { whence, header_limit, believed, connections }
    }

    fn whence(&self, peer: SocketAddr, believed: Option<&Believed>) -> Whence {
        match self.door {
            Door::Local(_) => Whence::Client,
            Door::Overlay(_) | Door::Ingress(_) => {
                let by_overlay = OverlayIp(peer.ip().to_canonical());
                Whence::Member(believed.and_then(Believed::address).unwrap_or(by_overlay))
            }
        }
    }

    fn keep_out(&self, refusal: &Refusal, request: &Request<Incoming>, peer: SocketAddr) -> Answer {
        let id = self.shared.request_id(request.headers());
        tracing::debug!(%peer, request = ?id, why = %refusal, "not let in");
        let mut answer = refuse(refusal, id.to_str().unwrap_or_default());
        answer.headers_mut().insert(headers::WORKER, self.shared.worker_header.clone());
        answer.headers_mut().insert(headers::REQUEST_ID, id);
        answer
    }

    /// Another node is named: it may stay only as long as it is believed.
    fn let_in(&self, request: &mut Request<Incoming>, peer: SocketAddr) -> Result<Option<Believed>, Refusal> {
        match &self.door {
            Door::Local(Lock::File) => Ok(None),
            Door::Local(Lock::Address(names)) => {
                let checked = webpage::check(request.uri(), request.headers(), *names);
                checked.map(|()| None).map_err(|page| Refusal::Forbidden(page.to_string()))
            }
            Door::Local(Lock::Key(key)) => {
                if matches!(request.uri().path(), "/health/live" | "/health/ready") {
                    return Ok(None);
                }
                if !key.opens(request.headers().get(header::AUTHORIZATION)) {
                    return Err(Refusal::NoKey);
                }
                // It is ours: no upstream is to see it.
                request.headers_mut().remove(header::AUTHORIZATION);
                Ok(None)
            }
            Door::Overlay(network) => {
                let (belief, address) = (&self.shared.belief, OverlayIp(peer.ip().to_canonical()));
                // What an agent sends on bears the headers of its client, which it has let in.
                if !request.headers().contains_key(headers::VIA) {
                    let checked = webpage::check(request.uri(), request.headers(), Names::Any);
                    checked.map_err(|_| Refusal::Forbidden("a web page of another site asks".into()))?;
                }
                if !network.contains(&address.0) {
                    return Err(Refusal::Forbidden("only members of the mesh, from their overlay address".into()));
                }
                match belief.members.whose(address) {
                    Whose::Member(member) if belief.stands(&member) => Ok(Some(Believed::member(belief, member))),
                    Whose::Member(_) => Err(Refusal::Forbidden("the certificate is revoked or over".into())),
                    Whose::Stranger => Ok(Some(Believed::stranger(belief))),
                    Whose::Nobody => Err(Refusal::Forbidden("nobody has this overlay address".into())),
                }
            }
            Door::Ingress(checker) => {
                let trust = &self.shared.belief.trust;
                let headers = request.headers();
                let proof = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                let proof = proof.ok_or_else(|| Refusal::NoProof("none was sent".into()))?;
                let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                let checked =
                    lock(checker).check(proof, request.method().as_str(), path, &trust.current(), clock::unix());
                let member = checked.map_err(|refused| refusal_of(&refused))?;
                tracing::trace!(member = %member.name().as_str(), "proved");
                let headers = request.headers_mut();
                headers.remove(header::AUTHORIZATION);
                if let Some(own) = headers.remove(headers::AUTHORIZATION) {
                    headers.insert(header::AUTHORIZATION, own);
                }
                Ok(Some(Believed::member(&self.shared.belief, member)))
            }
        }
    }
}

/// Whether a request is for a service or a model.
fn is_call(request: &Request<Incoming>) -> bool {
    request.uri().path().starts_with(SERVICES) || openai::is_call(request)
}

/// Who proves who they are and may not come in is told so; who proves nothing is asked for a proof.
fn refusal_of(refused: &wiremesh_certs::Refused) -> Refusal {
    match refused {
        wiremesh_certs::Refused::Revoked { .. } => Refusal::Forbidden(refused.to_string()),
        _ => Refusal::NoProof(refused.to_string()),
    }
}

/// What the pages know.
#[derive(Clone)]
struct Known {
    shared: Arc<Shared>,
    report: Arc<dyn Report>,
}

fn pages(shared: Arc<Shared>, report: Arc<dyn Report>) -> Pages {
    Pages::new()
        .route("/health", get(async |State(known): State<Known>| Json(health_json(&known.report.health()))))
        .route("/health/live", get(async || "live\n"))
        .route("/health/ready", get(ready))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics))
        .with_state(Known { shared, report })
}

/// What is not a page, or not one that is asked for like this.
fn no_page(refusal: &Refusal, asked: &axum::extract::Request) -> impl IntoResponse + use<> {
    let id = headers::request_id(asked.headers());
    let body = refusal.body(id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default());
    (refusal.status(), [(header::CONTENT_TYPE, "application/json")], body)
}

/// Who would be asked for a service.
async fn routes(
    State(shared): State<Arc<Shared>>,
    axum::extract::Path(service): axum::extract::Path<String>,
) -> Result<Json<serde_json::Value>, (StatusCode, String)> {
    let service: wiremesh_certs::ServiceName = service.parse().map_err(|_| {
        let refusal = Refusal::Path(crate::router::BadPath::Service);
        (refusal.status(), refusal.body(""))
    })?;
    Ok(Json(shared.explain(&service).await.json(service.as_str())))
}

async fn ready(State(known): State<Known>) -> impl IntoResponse {
    let status = known.report.health().status;
    if known.shared.is_draining() || status == crate::router::Status::Starting {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
    }
    (StatusCode::OK, "ready\n")
}

async fn stats(State(known): State<Known>) -> Json<serde_json::Value> {
    let services: &services::Handle = &known.shared.parts.services;
    Json(stats_json(
        &known.report.health(),
        &services.capabilities(),
        services.load(),
        &known.shared.counters,
        &known.report.directory(),
    ))
}

async fn metrics(State(known): State<Known>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, known.report.metrics().await)
}
