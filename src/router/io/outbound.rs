//! A request for a service, from its arrival to the head of its answer: here, or at another worker.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use serde_json::{Value, json};
use wiremesh_certs::ServiceName;

use super::{
    Shared,
    account::Account,
    answer::{Answer, AnswerBody, Held, InFlight, refuse},
    attempt::{Failed, Outgoing},
    lock,
    replay::Replay,
    serve::Connections,
    upgrade,
};
use crate::{
    clock,
    router::{
        CallId, Candidate, Failure, Found, Needs, Next, Path, Plan, Refusal, Source, Via, Worker, headers, order, sse,
        timing::Timing,
    },
    services,
};

/// The directory answers sooner; a request does not hang if it does not.
const FIND_TIMEOUT: Duration = Duration::from_secs(8);
/// Workers of one service that are considered for one request.
const MAX_WORKERS: usize = 64;

/// By whom a request was sent to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whence {
    /// A program that uses the mesh through us.
    Client,
    /// Another node. Its request has crossed the mesh and does not cross it again, whether or not it says so itself.
    Member,
}

/// Counts how a request ends, also if it is dropped before it does.
struct Ending<'a> {
    shared: &'a Shared,
    told: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.shared.counters.cancelled.inc();
        }
    }
}

impl Shared {
    /// Answers a request below `/service/`. The door has checked who asks.
    pub(super) async fn answer_call(
        self: &Arc<Shared>,
        request: Request<Incoming>,
        header_limit: usize,
        whence: Whence,
    ) -> Answer {
        let mut ending = Ending { shared: self, told: false };
        let call = CallId::random(&mut *lock(&self.rng));
        let request_id = self.request_id(request.headers());

        let answered = self.accept_call(request, call, request_id.clone(), header_limit, whence).await;
        ending.told = true;
        let mut answer = answered.unwrap_or_else(|refusal| self.fail(&refusal, &request_id));
        answer.headers_mut().insert(headers::REQUEST_ID, request_id);
        answer
    }

    /// The id that a request came with, or a new one.
    pub(super) fn request_id(&self, headers: &http::HeaderMap) -> HeaderValue {
        headers::request_id(headers).unwrap_or_else(|| header(&CallId::random(&mut *lock(&self.rng)).to_string()))
    }

    /// Counts a request that gets an error of ours, and makes its answer.
    fn fail(&self, refusal: &Refusal, request_id: &HeaderValue) -> Answer {
        self.counters.failed.inc();
        self.counters.failed_by.get_or_create(&crate::router::counters::Reason { reason: refusal.kind() }).inc();
        tracing::debug!(request = ?request_id, why = %refusal, "request failed");
        let mut answer = refuse(refusal, request_id.to_str().unwrap_or_default());
        answer.headers_mut().insert(headers::WORKER, self.worker_header.clone());
        answer
    }

    async fn accept_call(
        self: &Arc<Shared>,
        mut request: Request<Incoming>,
        call: CallId,
        request_id: HeaderValue,
        header_limit: usize,
        whence: Whence,
    ) -> Result<Answer, Refusal> {
        let arrived_at = clock::now();
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        if headers::size(request.uri(), request.headers()) > header_limit {
            return Err(Refusal::HeadersTooLarge);
        }
        let asked = request.uri().path_and_query().cloned().ok_or(Refusal::NotFound)?;
        let needs = Needs::of(request.method(), &asked).ok_or(Refusal::NotFound)??;
        let forwarded = self.read_via(&request)?;
        let upgrade = headers::upgrade(request.headers());
        let turn = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();

        headers::strip_hop_by_hop(&mut parts.headers);
        headers::strip_ours(&mut parts.headers, None);
        headers::move_host(&mut parts.headers, &parts.uri);
        let to_client = forwarded.is_none();
        let account = parts.extensions.remove::<Account>().unwrap_or_default();
        account.on_service(&needs.service, None, forwarded.as_ref().map(|via| &via.origin));
        let via = forwarded.unwrap_or_else(|| Via { origin: self.parts.name.clone(), call });
        parts.headers.insert(headers::VIA, via.header());
        parts.headers.insert(headers::REQUEST_ID, request_id);
        let outgoing = Outgoing {
            method: parts.method,
            asked,
            needs,
            headers: parts.headers,
            upgrade,
            arrived_at,
            to_client,
            replay: Replay::new(body, account.received()),
            account,
        };
        let turn = turn.zip(parts.extensions.get::<Connections>().cloned());
        let in_flight = InFlight::new(&self.counters.in_flight);
        if to_client && whence == Whence::Client {
            self.route(outgoing, turn, in_flight).await
        } else {
            lock(&self.calls).begin(via.call, arrived_at).map_err(|_| Refusal::Duplicate)?;
            self.only_here(outgoing, turn, in_flight).await
        }
    }

    /// Who sent the request into the mesh, if it was not our own client.
    fn read_via(&self, request: &Request<Incoming>) -> Result<Option<Via>, Refusal> {
        let mut all = request.headers().get_all(headers::VIA).iter();
        let Some(first) = all.next() else { return Ok(None) };
        if all.next().is_some() {
            return Err(Refusal::HopLimit);
        }
        let via =
            first.to_str().ok().and_then(|text| text.parse::<Via>().ok()).ok_or(Refusal::Header("x-wiremesh-via"))?;
        // It left us once: an upstream of somebody, maybe our own, leads back to an agent.
        if via.origin == self.parts.name { Err(Refusal::HopLimit) } else { Ok(Some(via)) }
    }

    /// A request from another agent: answered here or not at all.
    async fn only_here(&self, outgoing: Outgoing, turn: Turn, in_flight: InFlight) -> Result<Answer, Refusal> {
        let service = outgoing.needs.service.clone();
        match self.here(outgoing, turn, in_flight).await {
            Ok(answer) => {
                self.counters.inbound.inc();
                Ok(answer)
            }
            Err((_, NotHere::NotOffered)) => Err(Refusal::ServiceNotFound(service)),
            Err((_, NotHere::Full(retry_after))) => Err(Refusal::Full(retry_after)),
            Err((_, NotHere::Failed(Failed { failure: Failure::Uncertain, why, .. }))) => {
                Err(Refusal::Interrupted(why))
            }
            Err((_, NotHere::Failed(failed))) => Err(Refusal::NobodyReached { service, why: failed.why }),
        }
    }

    /// A request from a client of ours: here if we can, else by the best worker.
    async fn route(&self, outgoing: Outgoing, turn: Turn, in_flight: InFlight) -> Result<Answer, Refusal> {
        let (rest, not_here) = match self.here(outgoing, turn, in_flight).await {
            Ok(answer) => {
                self.counters.local.inc();
                return Ok(answer);
            }
            Err(failed) => failed,
        };
        if let NotHere::Failed(Failed { failure: Failure::Uncertain, why, .. }) = &not_here
            && !(rest.0.needs.repeatable && rest.0.replay.is_intact())
        {
            return Err(Refusal::Interrupted(why.clone()));
        }
        self.elsewhere(rest, not_here).await
    }

    /// By a service of this node. Gives the request back if it was not executed, or may safely be again.
    async fn here(&self, outgoing: Outgoing, turn: Turn, in_flight: InFlight) -> Result<Answer, (Rest, NotHere)> {
        let reservation = match self.parts.services.reserve(&outgoing.needs.service) {
            Ok(reservation) => reservation,
            Err(services::Refused::NotOffered) => return Err(((outgoing, turn, in_flight), NotHere::NotOffered)),
            Err(services::Refused::Full(after)) => return Err(((outgoing, turn, in_flight), NotHere::Full(after))),
        };
        let queued_at = clock::now();
        let permit = reservation.ready().await;
        let began_at = clock::now();
        outgoing.account.on_attempt(&self.parts.name, Path::Local);
        match self.to_upstream(&outgoing, permit.upstream()).await {
            Ok(answer) => {
                let timing = Timing::default()
                    .with("queue", began_at.saturating_duration_since(queued_at))
                    .with("upstream", clock::now().saturating_duration_since(began_at));
                let way = Way { worker: self.worker_header.clone(), path: Path::Local, source: Source::Local, timing };
                let held = Held { permit: Some(permit), in_flight: Some(in_flight), ..Held::default() };
                Ok(self.finish(outgoing, answer, held, turn, way))
            }
            Err(failed) => {
                outgoing.account.on_failed(&failed.why);
                if failed.failure == Failure::ConnectionRefused {
                    self.parts.services.on_unreachable(&outgoing.needs.service);
                }
                Err(((outgoing, turn, in_flight), NotHere::Failed(failed)))
            }
        }
    }

    /// Who would be asked for `service`, in order, and why. Sends nothing to anybody but the directory.
    pub(super) async fn explain(&self, service: &ServiceName) -> Value {
        let found = self.find(service).await;
        let here = self.parts.services.offered().contains(service);
        let source = if here { Source::Local } else { found.source };
        let now = clock::unix();
        let local = here.then(|| {
            json!({"path": Path::Local.as_str(), "worker": self.parts.name.as_str(),
                   "load": self.parts.services.load().share(), "ejected": false})
        });
        let ways = self.candidates(&found.workers).into_iter().map(|way| {
            let worker = &found.workers[way.worker];
            json!({"path": way.path.as_str(), "worker": worker.name.as_str(), "load": way.load.share(),
                   "age_seconds": now.saturating_since(worker.published_at).as_secs(), "ejected": way.ejected})
        });
        json!({"service": service.as_str(), "source": source.as_str(), "ways": local.into_iter().chain(ways).collect::<Vec<_>>()})
    }

    async fn find(&self, service: &ServiceName) -> Found {
        let finding = tokio::time::timeout(FIND_TIMEOUT, self.parts.directory.find(service));
        let mut found = finding.await.unwrap_or(Found { workers: Vec::new(), source: Source::Http });
        found.workers.retain(|worker| worker.name != self.parts.name);
        found.workers.truncate(MAX_WORKERS);
        found
    }

    /// By another worker.
    async fn elsewhere(&self, (outgoing, turn, in_flight): Rest, not_here: NotHere) -> Result<Answer, Refusal> {
        let service = &outgoing.needs.service;
        let found = self.find(service).await;
        let mut plan = Plan::new(self.candidates(&found.workers), outgoing.needs.repeatable);
        if matches!(&not_here, NotHere::Failed(Failed { failure: Failure::Uncertain, .. })) {
            plan = plan.after_us();
        }
        let mut full = match &not_here {
            NotHere::Full(after) => Some(*after),
            NotHere::NotOffered | NotHere::Failed(_) => None,
        };
        let mut why = match not_here {
            NotHere::Failed(failed) => Some(failed.why),
            NotHere::NotOffered | NotHere::Full(_) => None,
        };
        let mut next = plan.first();
        let tried = loop {
            let Next::Try(tried) = next else { break next };
            let worker = &found.workers[tried.worker];
            let began_at = clock::now();
            outgoing.account.on_attempt(&worker.name, tried.path);
            let failed = match self.attempt(&outgoing, worker, tried.path).await {
                Ok((answer, held)) => {
                    self.health().on_success((worker.id, tried.path));
                    self.counters.forwarded.inc();
                    if tried.path == Path::Tunnel {
                        self.counters.forwarded_by_tunnel.inc();
                    }
                    let way = Way {
                        worker: header(worker.name.as_str()),
                        path: tried.path,
                        source: found.source,
                        timing: match &held.lease {
                            Some(lease) => Timing::default().with("connect", lease.waited_for()),
                            None => Timing::default(),
                        }
                        .with("worker", clock::now().saturating_duration_since(began_at)),
                    };
                    let held = Held { in_flight: Some(in_flight), ..held };
                    return Ok(self.finish(outgoing, answer, held, turn, way));
                }
                Err(failed) => failed,
            };
            outgoing.account.on_failed(&failed.why);
            tracing::debug!(worker = %worker.name, path = %tried.path, why = failed.why, "attempt failed");
            self.learn(&outgoing, worker, tried.path, &failed);
            if let Some(Refusal::Full(after)) = failed.refusal {
                full = Some(full.map_or(after, |sooner: Duration| sooner.min(after)));
            }
            next = plan.after(tried, failed.failure, outgoing.replay.is_intact());
            why = Some(failed.why);
            if matches!(next, Next::Try(_)) {
                self.counters.retries.inc();
            }
        };
        Err(match (tried, full, why) {
            (Next::Uncertain, _, why) => Refusal::Interrupted(why.unwrap_or_default()),
            (_, Some(retry_after), _) => Refusal::Full(retry_after),
            (_, None, Some(why)) => Refusal::NobodyReached { service: service.clone(), why },
            (_, None, None) => Refusal::ServiceNotFound(service.clone()),
        })
    }

    fn candidates(&self, workers: &[Worker]) -> Vec<Candidate> {
        let now = clock::now();
        let mut health = self.health();
        let mut candidates = Vec::with_capacity(workers.len() * 2);
        for (index, worker) in workers.iter().enumerate() {
            let mut add = |path| {
                let ejected = health.is_ejected((worker.id, path), now);
                candidates.push(Candidate { ejected, path, load: worker.load, worker: index });
            };
            if self.parts.overlay && worker.overlay.is_some() {
                add(Path::Overlay);
            }
            if worker.tunnel.is_some() {
                add(Path::Tunnel);
            }
        }
        drop(health);
        order(&mut candidates, &mut *lock(&self.rng));
        candidates
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
        path: Path,
    ) -> Result<(Response<Incoming>, Held), Failed> {
        let (answer, lease) = match path {
            Path::Tunnel => (self.through_tunnel(outgoing, worker).await?, None),
            Path::Overlay | Path::Local => {
                self.over_overlay(outgoing, worker).await.map(|(answer, lease)| (answer, Some(lease)))?
            }
        };
        self.judge(&answer, path)?;
        Ok((answer, Held { lease, ..Held::default() }))
    }

    /// What a failed attempt says about the way and about the worker.
    fn learn(&self, outgoing: &Outgoing, worker: &Worker, path: Path, failed: &Failed) {
        let mut health = self.health();
        let is_lost = if failed.on_the_way {
            let now = clock::now();
            health.on_failure(worker, path, now);
            self.ejected.notify_one();
            let other = match path {
                Path::Tunnel => worker.overlay.is_some().then_some(Path::Overlay),
                Path::Overlay | Path::Local => worker.tunnel.is_some().then_some(Path::Tunnel),
            };
            other.is_none_or(|other| health.is_ejected((worker.id, other), now))
        } else {
            // A worker that is full still offers the service; one that refuses for another reason does not.
            failed.failure == Failure::Refused && failed.refusal.is_none()
        };
        drop(health);
        if is_lost {
            self.parts.directory.forget(&outgoing.needs.service, &worker.id);
        }
    }

    /// Makes our answer of a worker's or upstream's.
    fn finish(&self, outgoing: Outgoing, answer: Response<Incoming>, mut held: Held, turn: Turn, way: Way) -> Answer {
        let took = self.first_byte(outgoing.arrived_at);
        let Outgoing { replay, upgrade, to_client, account, .. } = outgoing;
        let (mut parts, body) = answer.into_parts();
        let events = to_client.then(|| sse::Events::in_answer(&parts.headers)).flatten();
        let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let theirs = parts.extensions.remove::<OnUpgrade>();
        headers::strip_hop_by_hop(&mut parts.headers);
        headers::strip_ours(&mut parts.headers, None);
        parts.headers.insert(headers::WORKER, way.worker);
        parts.headers.insert(headers::PATH, HeaderValue::from_static(way.path.as_str()));
        parts.headers.insert(headers::SOURCE, HeaderValue::from_static(way.source.as_str()));
        let timing = if to_client { way.timing.with("total", took) } else { way.timing };
        if let Some(timing) = timing.header() {
            parts.headers.append(headers::SERVER_TIMING, timing);
        }
        // What belongs to their connection is not ours.
        parts.extensions.clear();
        parts.version = http::Version::HTTP_11;
        if !switches {
            held.replay = Some(replay);
            let body = AnswerBody::stream(body, held, events, self.counters.interrupted_answers.clone());
            return Response::from_parts(parts, body);
        }
        parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = upgrade {
            parts.headers.insert(http::header::UPGRADE, protocol);
        }
        if let (Some((ours, connections)), Some(theirs)) = (turn, theirs) {
            let upgraded = InFlight::new(&self.counters.upgraded);
            upgrade::splice(ours, theirs, connections, (held, upgraded, account));
        }
        Response::from_parts(parts, AnswerBody::bytes(""))
    }
}

/// The client's side of a connection that may become something else.
type Turn = Option<(OnUpgrade, Connections)>;
/// A request that was not answered here.
type Rest = (Outgoing, Turn, InFlight);

/// Why a service of this node does not answer.
enum NotHere {
    NotOffered,
    Full(Duration),
    Failed(Failed),
}

/// How an answer came.
struct Way {
    worker: HeaderValue,
    path: Path,
    source: Source,
    timing: Timing,
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).expect("names and identifiers are visible ASCII")
}
