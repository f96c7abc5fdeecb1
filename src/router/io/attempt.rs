//! One attempt: a request sent one way to one worker, until the head of its answer.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, Uri, header, uri::PathAndQuery};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::{
    Shared,
    asking::{LIVE, Line},
    outgoing::Outgoing,
    overlay::{Lease, NoConnection, Sign, dial},
    underway::Underway,
    upstreams::{Arriving, NoAnswer},
};
use crate::{
    clock,
    router::{Blame, Ended, Failure, Path, Refusal, Target, Trouble, Worker, headers},
    services::Upstream,
};

/// An attempt that failed.
pub(super) struct Failed {
    pub failure: Failure,
    /// How it failed, if it did so on the way and not at its end.
    pub trouble: Option<Trouble>,
    /// What the worker said to a refused request.
    pub refusal: Option<Refusal>,
    pub why: String,
}

impl Failed {
    /// Nobody answers.
    pub fn silent(failure: Failure, why: impl ToString) -> Failed {
        Failed { failure, trouble: Some(Trouble::Silent), refusal: None, why: why.to_string() }
    }

    /// The connection broke, or was refused.
    pub fn broken(failure: Failure, why: impl ToString) -> Failed {
        let refused = failure == Failure::ConnectionRefused;
        let trouble = if refused { Trouble::Refused } else { Trouble::Broken };
        Failed { failure, trouble: Some(trouble), refusal: None, why: why.to_string() }
    }

    /// It failed at its end, or never got on its way.
    pub fn there(failure: Failure, why: impl ToString) -> Failed {
        Failed { failure, trouble: None, refusal: None, why: why.to_string() }
    }

    /// What the fleet is told of it.
    pub fn ended(&self, path: Path) -> Ended {
        match (self.trouble, self.failure) {
            (Some(Trouble::Refused), _) if path == Path::Overlay => Ended::Failed(Blame::Worker),
            (Some(_), _) => Ended::Failed(Blame::Path(path)),
            (None, Failure::Interrupted | Failure::Uncertain) => Ended::Failed(Blame::Service),
            (None, Failure::Refused | Failure::Unreachable | Failure::ConnectionRefused) => Ended::Otherwise,
        }
    }
}

impl Shared {
    /// Sends the request to our own upstream.
    pub(super) async fn to_upstream(
        &self,
        outgoing: &Outgoing,
        upstream: &Upstream,
    ) -> Result<Response<Arriving>, Failed> {
        let Some(path) = upstream.path(&outgoing.needs.path) else {
            return Err(Failed::there(Failure::Unreachable, "the URL is too long"));
        };
        // An idempotent request that met a connection just being closed is worth a second try on the spot.
        let mut again = outgoing.needs.repeatable;
        loop {
            match self.upstreams.request(upstream, &path, outgoing).await {
                Ok(answer) => return Ok(answer),
                Err(NoAnswer::NoConnection(error)) => {
                    return Err(Failed::broken(Failure::ConnectionRefused, chain(&*error)));
                }
                Err(_) if again && outgoing.replay.is_intact() => again = false,
                Err(error) => return Err(Failed::broken(outgoing.broken(), chain(&error))),
            }
        }
    }

    /// Sends the request to another agent over the overlay.
    pub(super) async fn over_overlay(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let Some(address) = worker.overlay else { return Err(Failed::there(Failure::Unreachable, "no address")) };
        let uri =
            |path: PathAndQuery| Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path);
        let asked = uri(outgoing.asked.clone()).build().map_err(|e| Failed::there(Failure::Unreachable, e))?;
        let live = uri(PathAndQuery::from_static(LIVE)).build().map_err(|e| Failed::there(Failure::Unreachable, e))?;
        // A connection that was open a moment ago may be closing: the second is a fresh one, or we know why not.
        let mut again = true;
        loop {
            let lease = self.pool.lease(address).await.map_err(|error| match error {
                NoConnection::Refused => Failed::broken(Failure::ConnectionRefused, error),
                NoConnection::Unreachable => Failed::silent(Failure::Unreachable, error),
            })?;
            if !outgoing.needs.repeatable && lease.is_stale() {
                match lease.ask(live.clone()).await {
                    Sign::Alive => {}
                    Sign::Closed if again => {
                        again = false;
                        continue;
                    }
                    Sign::Closed => return Err(Failed::broken(Failure::Unreachable, "the connection closes")),
                    Sign::Silent => {
                        lease.give_up();
                        self.counters.unanswered_questions.inc();
                        return Err(Failed::silent(Failure::Unreachable, "the worker does not answer"));
                    }
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
            let line = Line::Overlay(&lease, address);
            let answered = tokio::select! {
                biased;
                answered = sending => answered,
                lost = self.watch(&line, outgoing, clock::now()) => return Err(lost),
            };
            match answered {
                Ok(answer) => return Ok((answer, lease)),
                Err((true, _)) if again && outgoing.replay.is_intact() => again = false,
                Err((true, why)) => return Err(Failed::broken(Failure::Unreachable, why)),
                Err((false, why)) => return Err(Failed::broken(outgoing.broken(), why)),
            }
        }
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
        let never = |why: String| Failed::there(Failure::Unreachable, why);
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
        let line = Line::Tunnel(&worker.id, url);
        let answered = tokio::select! {
            biased;
            answered = self.tunnels.request(request) => answered,
            lost = self.watch(&line, outgoing, clock::now()) => return Err(lost),
        };
        answered.map_err(|error| {
            let failure = if error.is_connect() { Failure::ConnectionRefused } else { outgoing.broken() };
            Failed::broken(failure, chain(&error))
        })
    }

    /// Reads from the head of another agent's answer whether it is one, and if not, what it means.
    pub(super) fn judge(
        &self,
        answer: &Response<Incoming>,
        target: &Target,
        path: Path,
        underway: &mut Underway,
    ) -> Result<(), Failed> {
        let said = |name: HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if said(headers::WORKER).is_none() {
            // Not an agent: the tunnel's own error page, or somebody else's server.
            let why = format!("answered by somebody who is no agent, with status {}", answer.status().as_u16());
            return Err(Failed::broken(Failure::Uncertain, why));
        }
        underway.on_head(answer.status(), answer.headers());
        let failure = match said(headers::EXECUTED) {
            None => return Ok(()),
            Some("no") => Failure::Refused,
            Some(_) => Failure::Interrupted,
        };
        let retry_after = said(header::RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let refusal = if answer.status() == http::StatusCode::TOO_MANY_REQUESTS {
            Some(Refusal::Full(retry_after.unwrap_or(Duration::from_secs(1))))
        } else {
            let not_allowed = self.not_allowed(target);
            (said(headers::REFUSED) == Some(not_allowed.kind())).then_some(not_allowed)
        };
        let why = format!("refused over the {path} with status {}", answer.status().as_u16());
        Err(Failed { failure, trouble: None, refusal, why })
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
