//! A request for a service, from its arrival to the head of its answer.
//!
//! ```text
//! answer_call ─► accept_call ─┬─ of a client of ours ─► route ──► here, else elsewhere
//!                             └─ of another agent ────► only_here
//! ```

use std::{borrow::Cow, sync::Arc};

use http::{HeaderValue, Request};
use hyper::body::Incoming;
use wiremesh_certs::OverlayIp;

use super::{
    Shared,
    account::Account,
    answer::{Answer, InFlight, refuse},
    attempt::Failed,
    believed::Believed,
    here::NotHere,
    lock,
    outgoing::{Outgoing, Turn},
    replay::Replay,
    serve::Connections,
};
use crate::{
    clock,
    router::{Affinity, CallId, Executed, Failure, Needs, Refusal, Via, headers},
    services::Asker,
};

/// By whom a request was sent to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whence {
    /// A program that uses the mesh through us.
    Client,
    /// Another node. Its request has crossed the mesh and does not cross it again, whether or not it says so itself.
    Member(OverlayIp),
}

/// Who sent a request, and what that allows.
pub(super) struct Caller {
    pub whence: Whence,
    /// The most bytes of headers.
    pub header_limit: usize,
    /// Which other node it is, if it is one.
    pub believed: Option<Believed>,
    /// Those of the listener it came in by.
    pub connections: Arc<Connections>,
}

impl Caller {
    /// Which other node sent the request on: its name, or its overlay address if it has no certificate.
    fn sent_on_by(&self) -> Option<Cow<'_, str>> {
        let Whence::Member(address) = self.whence else { return None };
        let name = self.believed.as_ref().and_then(Believed::certified_name);
        Some(name.map_or_else(|| address.to_string().into(), |name| name.as_str().into()))
    }
}

impl Shared {
    /// Answers a request for a service or a model. The door has checked who asks.
    pub(super) async fn answer_call(self: &Arc<Shared>, request: Request<Incoming>, caller: Caller) -> Answer {
        let mut ending = Ending { shared: self, told: false };
        let call = CallId::random(&mut *lock(&self.rng));
        let request_id = self.request_id(request.headers());

        let answered = self.accept_call(request, call, request_id.clone(), caller).await;
        ending.told = true;
        let mut answer = answered.unwrap_or_else(|refusal| self.fail(&refusal, &request_id));
        answer.headers_mut().insert(headers::REQUEST_ID, request_id);
        answer
    }

    async fn accept_call(
        self: &Arc<Shared>,
        mut request: Request<Incoming>,
        call: CallId,
        request_id: HeaderValue,
        caller: Caller,
    ) -> Result<Answer, Refusal> {
        let arrived_at = clock::now();
        let whence = caller.whence;
        if headers::size(request.uri(), request.headers()) > caller.header_limit {
            return Err(Refusal::HeadersTooLarge);
        }
        let asked = request.uri().path_and_query().cloned().ok_or(Refusal::NotFound)?;
        let needs = Needs::of(request.method(), &asked).transpose()?;
        let forwarded = self.read_via(&request)?;
        let upgrade = headers::upgrade(request.headers());
        let turn = upgrade.is_some().then(|| Turn {
            client: hyper::upgrade::on(&mut request),
            connections: caller.connections.clone(),
            believed: caller.believed.clone(),
        });
        let expects = headers::expects(request.headers());
        let (mut parts, body) = request.into_parts();
        let account = parts.extensions.remove::<Account>().unwrap_or_default();
        let replay = Replay::new(body, expects).counting(account.received());
        let needs = match needs {
            Some(needs) => needs,
            None => Box::pin(self.needs_of_model(&parts, &asked, &replay, whence)).await?,
        };
        if let Some(by) = &caller.believed {
            self.admit(by, &needs.target)?;
        }

        headers::strip_hop_by_hop(&mut parts.headers);
        headers::strip_ours(&mut parts.headers, None);
        headers::move_host(&mut parts.headers, &parts.uri);
        let to_client = forwarded.is_none();
        account.on_target(&needs.target, caller.sent_on_by().as_deref());
        let via = self.via(&caller, forwarded, call);
        parts.headers.insert(headers::REQUEST_ID, request_id);
        let affinity = parts.headers.get(headers::SESSION_ID).map(|session| Affinity::of(session.as_bytes()));
        let by_us = to_client && whence == Whence::Client;
        let outgoing = Outgoing {
            method: parts.method,
            asked,
            needs,
            asker: match whence {
                Whence::Client => Asker::Own,
                Whence::Member(member) => Asker::Member(member),
            },
            believed: caller.believed,
            called: if by_us { None } else { Some(self.calls.begin(via.call)?) },
            via,
            headers: parts.headers,
            upgrade,
            turn,
            arrived_at,
            to_client,
            affinity,
            replay,
            account,
            in_flight: InFlight::new(&self.counters.in_flight),
        };
        if by_us { self.route(outgoing).await } else { Ok(self.only_here(outgoing).await) }
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

    /// Who sent the request into the mesh, and as which call, as its upstream is told: another node is who the door says
    /// it is, whatever name the request bears. One without a certificate has entered the mesh here.
    fn via(&self, caller: &Caller, said: Option<Via>, call: CallId) -> Via {
        let (said_origin, call) = said.map_or((None, call), |via| (Some(via.origin), via.call));
        let origin = match &caller.believed {
            Some(by) => by.certified_name().cloned(),
            // An upstream of another node that leads to an agent on its machine: the name ends loops.
            None => said_origin,
        };
        Via { origin: origin.unwrap_or_else(|| self.parts.name.clone()), call }
    }

    /// A request from a client of ours: here if we can, else by the best worker. It does not wait in our line while
    /// another worker is idle, unless that says no.
    async fn route(&self, outgoing: Outgoing) -> Result<Answer, Refusal> {
        let outgoing = if self.would_wait(&outgoing.needs.target)
            && Box::pin(self.had_better_leave(&outgoing.needs.target)).await
        {
            match Box::pin(self.elsewhere(outgoing, NotHere::Waits)).await {
                Ok(answer) => return Ok(answer),
                Err((outgoing, refusal)) if refusal.executed() == Executed::No && outgoing.replay.is_intact() => {
                    outgoing
                }
                Err((_, refusal)) => return Err(refusal),
            }
        } else {
            outgoing
        };
        let (outgoing, not_here) = match self.here(outgoing).await {
            Ok(answer) => {
                self.counters.local.inc();
                return Ok(answer);
            }
            Err(failed) => failed,
        };
        if matches!(not_here, NotHere::Stalled) {
            return Err(Refusal::Stalled);
        }
        if let NotHere::Failed(Failed { failure: Failure::Uncertain, why, .. }) = &not_here
            && !(outgoing.needs.repeatable && outgoing.replay.is_intact())
        {
            return Err(Refusal::Interrupted(why.clone()));
        }
        // Large, and not made room for in requests that are answered here.
        Box::pin(self.elsewhere(outgoing, not_here)).await.map_err(|(_, refusal)| refusal)
    }

    /// The id that a request came with, or a new one.
    pub(super) fn request_id(&self, headers: &http::HeaderMap) -> HeaderValue {
        headers::request_id(headers).unwrap_or_else(|| CallId::random(&mut *lock(&self.rng)).header())
    }

    /// Counts a request that gets an error of ours, and makes its answer.
    pub(super) fn fail(&self, refusal: &Refusal, request_id: &HeaderValue) -> Answer {
        self.counters.failed.inc();
        self.counters.failed_by.get_or_create(&crate::router::counters::Reason { reason: refusal.kind() }).inc();
        tracing::debug!(request = ?request_id, why = %refusal, "request failed");
        let mut answer = refuse(refusal, request_id.to_str().unwrap_or_default());
        answer.headers_mut().insert(headers::WORKER, self.worker_header.clone());
        answer
    }
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
