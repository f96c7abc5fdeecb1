//! One attempt: a request sent one way to one worker, until the head of its answer.

use std::{future::Future, pin::pin, time::Duration};

use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header, uri::PathAndQuery};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use wiremesh_certs::{NodeId, TunnelUrl};

use super::{
    Shared,
    outgoing::Outgoing,
    overlay::{Lease, NoConnection, Sign, dial},
    replay::AttemptBody,
};
use crate::{
    router::{Failure, Path, Refusal, Worker, headers},
    services::Upstream,
};

/// How long a worker may be silent before it is asked whether it lives. With the question's own time-out, a request into
/// a path that died is on another path in less than two seconds.
const OVERLAY_FIRST_QUESTION: Duration = Duration::from_millis(400);
/// Between further questions while an answer is awaited: a model may take a minute to its first byte.
const QUESTION_EVERY: Duration = Duration::from_secs(2);
/// A tunnel may be long, and a question costs a proof.
const TUNNEL_FIRST_QUESTION: Duration = Duration::from_secs(3);
const TUNNEL_QUESTION_EVERY: Duration = Duration::from_secs(10);
/// How long a question through a tunnel may go unanswered.
pub(super) const TUNNEL_QUESTION_TIMEOUT: Duration = Duration::from_secs(6);
/// What is asked.
pub(super) const LIVE: &str = "/health/live";

/// An attempt that failed.
pub(super) struct Failed {
    pub failure: Failure,
    /// Whether it failed on the way, not at its end.
    pub on_the_way: bool,
    /// What the worker said to a refused request.
    pub refusal: Option<Refusal>,
    pub why: String,
}

impl Failed {
    fn on_the_way(failure: Failure, why: impl ToString) -> Failed {
        Failed { failure, on_the_way: true, refusal: None, why: why.to_string() }
    }
}

impl Shared {
    /// Sends the request to our own upstream.
    pub(super) async fn to_upstream(
        &self,
        outgoing: &Outgoing,
        upstream: &Upstream,
    ) -> Result<Response<Incoming>, Failed> {
        let Some(uri) = upstream.uri(&outgoing.needs.path) else {
            return Err(Failed::on_the_way(Failure::Unreachable, "the URL is too long"));
        };
        // An idempotent request that met a connection just being closed is worth a second try on the spot.
        let mut again = outgoing.needs.repeatable;
        loop {
            match self.upstreams.request(outgoing.request(uri.clone())).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_connect() => {
                    return Err(Failed::on_the_way(Failure::ConnectionRefused, error));
                }
                Err(_) if again && outgoing.replay.is_intact() => again = false,
                Err(error) => return Err(Failed::on_the_way(outgoing.broken(), chain(&error))),
            }
        }
    }

    /// Sends the request to another agent over the overlay.
    pub(super) async fn over_overlay(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let Some(address) = worker.overlay else { return Err(Failed::on_the_way(Failure::Unreachable, "no address")) };
        let uri =
            |path: PathAndQuery| Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path);
        let asked = uri(outgoing.asked.clone()).build().map_err(|e| Failed::on_the_way(Failure::Unreachable, e))?;
        let live =
            uri(PathAndQuery::from_static(LIVE)).build().map_err(|e| Failed::on_the_way(Failure::Unreachable, e))?;
        // A connection that was open a moment ago may be closing: the second is a fresh one, or we know why not.
        let mut again = true;
        loop {
            let lease = self.pool.lease(address).await.map_err(|error| match error {
                NoConnection::Refused => Failed::on_the_way(Failure::ConnectionRefused, error),
                NoConnection::Unreachable => Failed::on_the_way(Failure::Unreachable, error),
            })?;
            if !outgoing.needs.repeatable && lease.is_stale() {
                match lease.ask(live.clone()).await {
                    Sign::Alive => {}
                    Sign::Closed if again => {
                        again = false;
                        continue;
                    }
                    Sign::Closed => return Err(Failed::on_the_way(Failure::Unreachable, "the connection closes")),
                    Sign::Silent => return Err(self.silent(&lease, Failure::Unreachable)),
                }
            }
            let sending: futures::future::Either<_, _> = if outgoing.upgrade.is_some() {
                futures::future::Either::Left(self.upgrading(outgoing, address, asked.clone()))
            } else {
                futures::future::Either::Right(async {
                    lease.send(outgoing.request(asked.clone())).await.map_err(|mut error| {
                        let unsent = error.take_message().is_some() || never_begun(error.error());
                        (unsent, chain(error.error()))
                    })
                })
            };
            let ask = || async { lease.ask(live.clone()).await != Sign::Silent };
            let answered = watched(sending, OVERLAY_FIRST_QUESTION, QUESTION_EVERY, ask).await;
            match answered {
                Some(Ok(answer)) => return Ok((answer, lease)),
                Some(Err((true, _))) if again && outgoing.replay.is_intact() => again = false,
                Some(Err((true, why))) => return Err(Failed::on_the_way(Failure::Unreachable, why)),
                Some(Err((false, why))) => return Err(Failed::on_the_way(outgoing.broken(), why)),
                None => return Err(self.silent(&lease, outgoing.broken())),
            }
        }
    }

    /// A question over the overlay went unanswered: nobody is to use that connection again.
    fn silent(&self, lease: &Lease, failure: Failure) -> Failed {
        lease.give_up();
        self.counters.unanswered_questions.inc();
        Failed::on_the_way(failure, "the worker does not answer")
    }

    /// A request to upgrade needs a connection of its own. The error says whether it was surely not sent.
    async fn upgrading(
        &self,
        outgoing: &Outgoing,
        address: std::net::SocketAddr,
        uri: Uri,
    ) -> Result<Response<Incoming>, (bool, String)> {
        use hyper::rt::Executor;

        let stream = dial(address).await.map_err(|error| (true, error.to_string()))?;
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| (true, chain(&error)))?;
        let driver = connection.with_upgrades();
        hyper_util::rt::TokioExecutor::new().execute(async move {
            let _ = driver.await;
        });
        let mut request = outgoing.request(uri);
        // HTTP/1.1 wants the path alone, and the host in its header.
        request.headers_mut().insert(
            header::HOST,
            HeaderValue::try_from(address.to_string()).map_err(|error| (true, error.to_string()))?,
        );
        *request.uri_mut() = Uri::from(outgoing.asked.clone());
        send.send_request(request).await.map_err(|error| (false, chain(&error)))
    }

    /// Sends the request to another agent's public URL, with a proof of who we are.
    pub(super) async fn through_tunnel(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
    ) -> Result<Response<Incoming>, Failed> {
        let never = |why: String| Failed { on_the_way: false, ..Failed::on_the_way(Failure::Unreachable, why) };
        let Some(url) = &worker.tunnel else { return Err(never("no tunnel".into())) };
        let base: Upstream = url.as_str().parse().map_err(|error| never(format!("tunnel URL: {error}")))?;
        let uri = base.uri(&outgoing.asked).ok_or_else(|| never("the URL is too long".into()))?;

        let mut request = outgoing.request(uri);
        let proof = (self.parts.prove)(&worker.id, &outgoing.method, outgoing.asked.as_str())
            .and_then(|proof| Ok(HeaderValue::try_from(proof)?))
            .map_err(|error| never(format!("no proof can be made: {error:#}")))?;
        if let Some(own) = request.headers_mut().insert(header::AUTHORIZATION, proof) {
            request.headers_mut().insert(headers::AUTHORIZATION, own);
        }
        let sending = self.tunnels.request(request);
        let ask = || self.ask_through_tunnel(&worker.id, url);
        match watched(sending, TUNNEL_FIRST_QUESTION, TUNNEL_QUESTION_EVERY, ask).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) if error.is_connect() => {
                Err(Failed::on_the_way(Failure::ConnectionRefused, chain(&error)))
            }
            Some(Err(error)) => Err(Failed::on_the_way(outgoing.broken(), chain(&error))),
            None => {
                self.counters.unanswered_questions.inc();
                Err(Failed::on_the_way(outgoing.broken(), "the worker does not answer through its tunnel"))
            }
        }
    }

    /// Whether the agent at the end of the worker's tunnel says anything.
    pub(super) async fn ask_through_tunnel(&self, worker: &NodeId, url: &TunnelUrl) -> bool {
        let live = PathAndQuery::from_static(LIVE);
        let uri = url.as_str().parse::<Upstream>().ok().and_then(|base| base.uri(&live));
        let proof = (self.parts.prove)(worker, &Method::GET, LIVE).ok().and_then(|p| HeaderValue::try_from(p).ok());
        let (Some(uri), Some(proof)) = (uri, proof) else { return false };
        let mut question = Request::new(AttemptBody::empty());
        *question.uri_mut() = uri;
        question.headers_mut().insert(header::AUTHORIZATION, proof);
        let answer = tokio::time::timeout(TUNNEL_QUESTION_TIMEOUT, self.tunnels.request(question)).await;
        matches!(answer, Ok(Ok(answer)) if answer.headers().contains_key(headers::WORKER))
    }

    /// Reads from the head of another agent's answer whether it is one, and if not, what it means.
    pub(super) fn judge(&self, answer: &Response<Incoming>, path: Path) -> Result<(), Failed> {
        let said = |name: HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if said(headers::WORKER).is_none() {
            // Not an agent: the tunnel's own error page, or somebody else's server.
            let why = format!("answered by somebody who is no agent, with status {}", answer.status().as_u16());
            return Err(Failed::on_the_way(Failure::Uncertain, why));
        }
        let failure = match said(headers::EXECUTED) {
            None => return Ok(()),
            Some("no") => Failure::Refused,
            Some(_) => Failure::Interrupted,
        };
        let retry_after = said(header::RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let full = answer.status() == http::StatusCode::TOO_MANY_REQUESTS;
        let refusal = full.then(|| Refusal::Full(retry_after.unwrap_or(Duration::from_secs(1))));
        let why = format!("refused over the {path} with status {}", answer.status().as_u16());
        Err(Failed { failure, on_the_way: false, refusal, why })
    }
}

/// Waits for `answer`, and asks again and again whether the other side lives. `None` if it does not.
async fn watched<T, Q: Future<Output = bool>>(
    answer: impl Future<Output = T>,
    first: Duration,
    every: Duration,
    ask: impl Fn() -> Q,
) -> Option<T> {
    let mut answer = pin!(answer);
    let mut wait = first;
    loop {
        tokio::select! {
            answered = &mut answer => return Some(answered),
            () = tokio::time::sleep(wait) => {}
        }
        tokio::select! {
            answered = &mut answer => return Some(answered),
            alive = ask() => if !alive { return None },
        }
        wait = every;
    }
}

/// Whether the other side provably did not begin with the request: it said so by refusing the stream, or by closing the
/// connection for new ones before it saw this one.
fn never_begun(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let refused = h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            let closing = h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
            return refused || closing;
        }
        source = error.source();
    }
    false
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
