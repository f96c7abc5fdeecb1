//! The OpenAI-shaped face at work: which model a request is for, who serves it, and what is served at all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router as Pages,
    extract::{Path as InPath, State},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Uri, header, request::Parts, uri::PathAndQuery};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use wiremesh_certs::{Offer, OverlayIp, ServiceName};

use super::{
    Shared,
    believed::Believed,
    outbound::Whence,
    replay::{AttemptBody, MAX_AHEAD_BYTES, NotRead, REPLAY_BUFFER_BYTES, Replay, Room},
};
use crate::{
    clock,
    places::Places,
    router::{
        BadModel, Found, ModelName, Needs, Refusal, Source, Target, Worker, headers,
        openai::{self, Listed, Names, Peeked, Served},
    },
    services::{self, Asker, Reservation, Upstream},
};

/// What others serve is asked again when this old.
const LISTED_FOR: Duration = Duration::from_secs(10);
/// The same if nobody serves anything: that changes as the first worker joins.
const NOBODY_FOR: Duration = Duration::from_secs(2);
/// How long one worker has to tell what it serves.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long all of them have; who has not answered then is listed as before.
const LIST_WITHIN: Duration = Duration::from_secs(4);
/// Workers asked at once.
const MAX_ASKING: usize = 16;
/// The longest list that is read.
const MAX_LIST_BYTES: usize = 512 * 1024;
/// A body whose model has not come after this is given up: it holds room that others wait for.
const PEEK_WITHIN: Duration = Duration::from_secs(120);
/// The same for another node. An agent names the model in a header; this is for programs that ask us without one of
/// their own, and their bodies are read no further than [`REPLAY_BUFFER_BYTES`].
const MEMBER_PEEK_WITHIN: Duration = Duration::from_secs(10);
/// Bodies of other nodes that are read at once: 8 MiB in all. Beyond, they are told to come back.
const MEMBER_PEEKS: usize = 128;
/// The same of one node.
const MEMBER_PEEKS_EACH: usize = 16;
/// Where an agent, and an upstream, lists its models.
const MODELS: &str = "/v1/models";

/// What other workers served when they were last asked, and when that was. Whoever asks them holds it, so that they are
/// asked once, however many want to know.
#[derive(Default)]
pub(super) struct Models(tokio::sync::Mutex<Option<(Instant, Others)>>);

type Others = Arc<[(Worker, Vec<ModelName>)]>;

/// Who may have read ahead of their bodies, and how far.
pub(super) struct Peeks {
    room: Room,
    /// Other nodes have no part of that room: policy is asked only once it is known what they ask for.
    members: Places<OverlayIp>,
}

impl Peeks {
    /// Nothing is being read.
    pub fn new() -> Peeks {
        Peeks { room: Room::new(), members: Places::new(MEMBER_PEEKS, MEMBER_PEEKS_EACH) }
    }
}

/// Whether a request is one for a model.
pub(super) fn is_call(request: &Request<Incoming>) -> bool {
    let path = request.uri().path_and_query();
    request.uri().path().starts_with(openai::PREFIX)
        && path.is_some_and(|path| openai::call(request.method(), path).is_some())
}

/// The pages about models. Clients are told of all there are; another node only of what is served here: it asks
/// everybody itself.
pub(super) fn pages(shared: Arc<Shared>, whence: Whence) -> Pages {
    let listed = async move |shared: &Shared, headers: &HeaderMap| match whence {
        Whence::Client if !headers.contains_key(headers::VIA) => shared.listed().await,
        Whence::Client | Whence::Member(_) => {
            Listed::of([shared.served_here(|service| shared.belief.may_offer(service))])
        }
    };
    let all =
        async move |State(shared): State<Arc<Shared>>, headers: HeaderMap| Json(listed(&shared, &headers).await.json());
    let one = async move |State(shared): State<Arc<Shared>>, InPath(model): InPath<String>, headers: HeaderMap| {
        let listed = listed(&shared, &headers).await;
        match ModelName::new(&model).and_then(|model| listed.one(&model)) {
            Some(entry) => Json(entry).into_response(),
            None => no_model(&model, &listed, &headers),
        }
    };
    Pages::new().route(MODELS, get(all)).route("/v1/models/{*model}", get(one)).with_state(shared)
}

fn no_model(asked: &str, listed: &Listed, headers: &HeaderMap) -> Response {
    let refusal = match ModelName::new(asked) {
        Some(model) => Refusal::ModelNotFound { nearby: openai::nearby(&model, listed.names()), model },
        None => Refusal::Model(BadModel::NotAName),
    };
    let id = headers::request_id(headers);
    let body = refusal.body(id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default());
    (refusal.status(), [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl Shared {
    /// What a request of this face asks for. Reads as much of its body as it takes to know.
    pub(super) async fn needs_of_model(
        &self,
        parts: &Parts,
        asked: &PathAndQuery,
        replay: &Replay,
        whence: Whence,
    ) -> Result<Needs, Refusal> {
        let names = openai::call(&parts.method, asked).ok_or(Refusal::NotFound)?;
        let model = match (parts.headers.get(headers::MODEL), names) {
            (Some(named), _) => ModelName::from_header(named).ok_or(Refusal::Header("x-wiremesh-model"))?,
            (None, Names::InQuery(model)) => model.ok_or(BadModel::Missing)?,
            (None, Names::InBody) => self.peek(&parts.headers, replay, whence).await?,
        };
        Ok(Needs::of_model(&parts.method, asked, model)?)
    }

    async fn peek(&self, headers: &HeaderMap, replay: &Replay, whence: Whence) -> Result<ModelName, Refusal> {
        let (most, within, _place) = match whence {
            Whence::Client => (MAX_AHEAD_BYTES, PEEK_WITHIN, None),
            Whence::Member(member) => {
                let place = self.peeks.members.take(member).ok_or(Refusal::NoRoom)?;
                (REPLAY_BUFFER_BYTES, MEMBER_PEEK_WITHIN, Some(place))
            }
        };
        let mut peek = openai::peek(headers);
        let look = |piece: &[u8]| Some(peek.push(piece)).filter(|seen| *seen != Peeked::More);
        match tokio::time::timeout(within, replay.peek(most, &self.peeks.room, look)).await {
            Ok(Ok(Some(Peeked::Model(model)))) => Ok(model),
            Ok(Ok(Some(Peeked::Bad(why)))) => Err(why.into()),
            Ok(Ok(None | Some(Peeked::More))) if replay.ahead_bytes() >= most => Err(BadModel::TooFar(most).into()),
            Ok(Ok(None | Some(Peeked::More))) => Err(peek.end().into()),
            Ok(Err(NotRead::Broken(_))) => Err(BadModel::Body("it broke off").into()),
            Ok(Err(NotRead::NoRoom)) => Err(Refusal::NoRoom),
            Err(_) => Err(BadModel::Body("it did not come in time").into()),
        }
    }

    /// A place at a service of this node that answers for it, of those that `serves` the asker: of several the first that
    /// is free.
    pub(super) fn reserve(
        &self,
        target: &Target,
        asker: Asker,
        serves: impl Fn(&ServiceName) -> bool,
    ) -> Result<(ServiceName, Reservation), services::Refused> {
        let services = &self.parts.services;
        let model = match target {
            Target::Service(service) if serves(service) => {
                return Ok((service.clone(), services.reserve_for(service, asker)?));
            }
            Target::Service(_) => return Err(services::Refused::NotOffered),
            Target::Model(model) => model.as_str(),
        };
        let (mut waiting, mut refused) = (None, services::Refused::NotOffered);
        for (service, models) in services.models().iter() {
            if !models.iter().any(|served| served == model) || !serves(service) {
                continue;
            }
            match services.reserve_for(service, asker) {
                Ok(reservation) if reservation.must_wait() => {
                    waiting = waiting.or(Some((service.clone(), reservation)))
                }
                Ok(reservation) => return Ok((service.clone(), reservation)),
                Err(full @ services::Refused::Full(_)) => refused = full,
                Err(services::Refused::NotOffered) => {}
            }
        }
        waiting.ok_or(refused)
    }

    /// Whether the mesh's policy lets another node have this of the services here. Where none serves it, nothing forbids it.
    pub(super) fn admit(&self, by: &Believed, target: &Target) -> Result<(), Refusal> {
        let first = match target {
            Target::Service(service) => Some(service.clone()),
            Target::Model(model) => {
                let models = self.parts.services.models();
                let mut serving = models.iter().filter(|(_, models)| models.iter().any(|name| name == model.as_str()));
                let first = serving.clone().next().map(|(service, _)| service.clone());
                if serving.any(|(service, _)| by.may_call(service)) { None } else { first }
            }
        };
        match first.filter(|service| !by.may_call(service)) {
            Some(service) => Err(Refusal::NotAllowed { who: by.name().to_owned(), target: Target::Service(service) }),
            None => Ok(()),
        }
    }

    /// The service of this node that a request for it would have to do with.
    pub(super) fn service_of(&self, target: &Target) -> Option<ServiceName> {
        match target {
            Target::Service(service) => Some(service.clone()),
            Target::Model(model) => {
                let models = self.parts.services.models();
                let mut serving = models.iter().filter(|(_, models)| models.iter().any(|name| name == model.as_str()));
                serving.next().map(|(service, _)| service.clone())
            }
        }
    }

    /// Who answers for it. A model under which nobody is found may be one of more than a record has room for: then the
    /// lists of models tell.
    pub(super) async fn find_target(&self, target: &Target) -> Found {
        let found = self.find(&target.offer()).await;
        let Target::Model(model) = target else { return found };
        if !found.workers.is_empty() || found.forbidden {
            return found;
        }
        let others = self.others().await;
        let serving = others.iter().filter(|(_, models)| models.contains(model));
        Found { workers: serving.map(|(worker, _)| worker.clone()).collect(), source: Source::Cache, forbidden: false }
    }

    /// Nobody answers for it; names like a model's are found out.
    pub(super) async fn nobody_but(&self, target: &Target) -> Refusal {
        let nearby = match target {
            Target::Service(_) => Vec::new(),
            Target::Model(model) => openai::nearby(model, self.listed().await.names()),
        };
        Shared::nobody(target, nearby)
    }

    /// Nobody answers for it.
    pub(super) fn nobody(target: &Target, nearby: Vec<ModelName>) -> Refusal {
        match target {
            Target::Service(service) => Refusal::ServiceNotFound(service.clone()),
            Target::Model(model) => Refusal::ModelNotFound { model: model.clone(), nearby },
        }
    }

    /// Every model, here and elsewhere.
    async fn listed(&self) -> Listed {
        let others = self.others().await;
        let others =
            others.iter().map(|(worker, models)| Served { worker: worker.name.clone(), models: models.clone() });
        Listed::of(std::iter::once(self.served_here(|_| true)).chain(others))
    }

    /// What the services of this node serve that are up, of those that are to be shown.
    fn served_here(&self, shown: impl Fn(&ServiceName) -> bool) -> Served {
        let offered = self.parts.services.offered();
        let served = self.parts.services.models();
        let up = served.iter().filter(|(service, _)| offered.contains(service) && shown(service));
        Served {
            worker: self.parts.name.clone(),
            models: up.flat_map(|(_, models)| models.iter()).filter_map(|name| ModelName::new(name)).collect(),
        }
    }

    /// What the others serve: remembered, or asked of each.
    async fn others(&self) -> Others {
        let mut known = self.models.0.lock().await;
        let now = clock::now();
        if let Some((at, others)) = &*known
            && now.saturating_duration_since(*at) < if others.is_empty() { NOBODY_FOR } else { LISTED_FOR }
        {
            return others.clone();
        }
        let before = known.take().map(|(_, others)| others);
        let found = self.find(&Offer::AnyModel).await;
        let asking = stream::iter(found.workers.clone())
            .map(|worker| async move { (worker.id, self.models_of(&worker).await) })
            .buffer_unordered(MAX_ASKING)
            .take_until(tokio::time::sleep(LIST_WITHIN));
        let mut told: Vec<_> = asking.collect().await;
        let others: Others = found
            .workers
            .iter()
            .filter_map(|worker| {
                let told = told.iter_mut().find(|(id, _)| *id == worker.id).and_then(|(_, models)| models.take());
                let said = || before.iter().flat_map(|before| before.iter()).find(|(known, _)| known.id == worker.id);
                Some((worker.clone(), told.or_else(|| said().map(|(_, models)| models.clone()))?))
            })
            .collect();
        *known = Some((clock::now(), others.clone()));
        others
    }

    /// What one worker says that it serves.
    async fn models_of(&self, worker: &Worker) -> Option<Vec<ModelName>> {
        let by_overlay = tokio::time::timeout(ANSWER_WITHIN, self.models_over_overlay(worker));
        if let Ok(Some(models)) = by_overlay.await {
            return Some(models);
        }
        tokio::time::timeout(ANSWER_WITHIN, self.models_through_tunnel(worker)).await.ok()?
    }

    async fn models_over_overlay(&self, worker: &Worker) -> Option<Vec<ModelName>> {
        let address = worker.overlay.filter(|_| self.parts.overlay)?;
        let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(MODELS).build().ok()?;
        let lease = self.pool.lease(address).await.ok()?;
        let mut question = Request::new(AttemptBody::empty());
        *question.uri_mut() = uri;
        read(lease.send(question).await.ok()?).await
    }

    async fn models_through_tunnel(&self, worker: &Worker) -> Option<Vec<ModelName>> {
        let base: Upstream = worker.tunnel.as_ref()?.as_str().parse().ok()?;
        let proof = (self.parts.prove)(&worker.id, &http::Method::GET, MODELS).ok()?;
        let mut question = Request::new(AttemptBody::empty());
        *question.uri_mut() = base.uri(&PathAndQuery::from_static(MODELS))?;
        question.headers_mut().insert(header::AUTHORIZATION, HeaderValue::try_from(proof).ok()?);
        read(self.tunnels.request(question).await.ok()?).await
    }
}

/// Another agent's list of models.
async fn read(answer: http::Response<Incoming>) -> Option<Vec<ModelName>> {
    if !answer.status().is_success() || !answer.headers().contains_key(headers::WORKER) {
        return None;
    }
    let body = Limited::new(answer.into_body(), MAX_LIST_BYTES).collect().await.ok()?;
    openai::read_listing(&body.to_bytes())
}
