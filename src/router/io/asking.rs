//! Questions to a worker that has a call of ours: whether it lives, what the call is doing, what became of it.
//!
//! ```text
//! sent ── 0.4 s ──► alive? ── 2 s ──► what is it doing? ── every 2 s ──► …
//!                     └ silent: the path is dead    ├ queued, loading, running: wait for as long as it takes
//!                                                   ├ never seen: a promise, so it may be sent again
//!                                                   ├ ended, twice, and its answer not here: the answer is lost
//!                                                   └ silent, twice: the agent is wedged
//! connection lost ──► what became of it? by every way there is; the first word counts
//! ```

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use wiremesh_certs::{NodeId, TunnelUrl};

use super::{
    Shared,
    attempt::Failed,
    called::TAKEN_WITHIN,
    outgoing::Outgoing,
    overlay::{Lease, MAX_WORD_BYTES, QUESTION_TIMEOUT, Sign},
    replay::AttemptBody,
};
use crate::{
    clock,
    router::{CallState, Failure, Worker, headers},
    services::Upstream,
};

/// How long a worker may be silent before it is asked whether it lives. With the question's own time-out, a request into
/// a path that died is on another path in less than two seconds. Through a tunnel a question costs a proof, and the first
/// one is what the call is doing.
const FIRST_SIGN_AFTER: Duration = Duration::from_millis(400);
/// Without a first byte for so long, the worker is asked what the call is doing, and again and again: a model may take a
/// minute to its first byte.
const QUESTION_AFTER: Duration = Duration::from_secs(2);
const QUESTION_EVERY: Duration = Duration::from_secs(2);
const TUNNEL_QUESTION_EVERY: Duration = Duration::from_secs(10);
/// How long a question through a tunnel may go unanswered: its public end may be far away.
const TUNNEL_QUESTION_TIMEOUT: Duration = Duration::from_secs(4);
/// So many questions in a row without an answer, and the agent is wedged.
const MAX_UNANSWERED: u32 = 2;
/// So many times the call has ended already, and its answer is not on its way: it would have come before the word.
const MAX_ENDED: u32 = 2;
/// How long it is tried to learn what became of a call. A connection and a question over the overlay fit in.
const BECAME_WITHIN: Duration = Duration::from_secs(4);
/// What is asked for a sign of life.
pub(super) const LIVE: &str = "/health/live";

/// What came back on a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Told {
    /// What the call is doing, and since when; never seen, for how long it would be known.
    State(CallState, Duration),
    /// A sign of life that says nothing about the call.
    Alive,
    /// Nothing.
    Silent,
    /// The connection has ended; whoever has a request on it is told so.
    Closed,
}

/// A way on which a worker can be asked.
pub(super) enum Line<'a> {
    Overlay(&'a Lease, SocketAddr),
    Tunnel(&'a NodeId, &'a TunnelUrl),
}

/// The answer at `/calls/{call}`.
#[derive(Deserialize)]
struct Word {
    state: String,
    since_ms: u64,
}

impl Shared {
    /// Watches over an attempt that began at `sent_at`, and ends when it is lost: how, and why.
    pub(super) async fn watch(&self, line: &Line<'_>, outgoing: &Outgoing, sent_at: Instant) -> Failed {
        tokio::select! {
            lost = self.question(line, outgoing, sent_at) => lost,
            // Open, and nothing more to do.
            never = self.open(line, outgoing).then(|()| std::future::pending()) => never,
        }
    }

    /// The connection on which `outgoing` was sent to `worker` at `sent_at` was lost. Asks by every way what became of
    /// the call, and makes of `failed` what the worker knows.
    pub(super) async fn clear_up(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
        sent_at: Instant,
        failed: Failed,
    ) -> Failed {
        let asking = FuturesUnordered::new();
        if let Some(address) = worker.overlay.filter(|_| self.parts.overlay) {
            asking.push(self.ask_anew(address, outgoing).boxed());
        }
        if let Some(url) = &worker.tunnel {
            let line = Line::Tunnel(&worker.id, url);
            asking.push(async move { self.ask(&line, &outgoing.about(), TUNNEL_QUESTION_TIMEOUT).await }.boxed());
        }
        let mut words = asking.filter_map(|told| {
            std::future::ready(match told {
                Told::State(state, since) => Some((state, since)),
                Told::Alive | Told::Silent | Told::Closed => None,
            })
        });
        let word = tokio::time::timeout(BECAME_WITHIN, words.next()).await.ok().flatten();
        tracing::debug!(worker = %worker.name, ?word, why = failed.why, "asked what became of a lost call");
        let Some((state, since)) = word else { return failed };
        self.counters.cleared_up.get_or_create(&crate::router::counters::Reason { reason: state.as_str() }).inc();
        match state {
            CallState::NeverSeen if reaches_back(since, sent_at) => Failed { failure: Failure::Unreachable, ..failed },
            // It restarted since, and does not remember so far back.
            CallState::NeverSeen => failed,
            CallState::Refused => Failed { failure: Failure::Refused, ..failed },
            CallState::Queued | CallState::Loading | CallState::Running | CallState::Done => Failed {
                failure: Failure::Interrupted,
                why: format!("{}; the worker says: {}", failed.why, state.as_str()),
                ..failed
            },
        }
    }

    /// Whether the agent at the end of the worker's tunnel says anything.
    pub(super) async fn lives_behind_tunnel(&self, worker: &NodeId, url: &TunnelUrl) -> bool {
        let live = PathAndQuery::from_static(LIVE);
        self.ask(&Line::Tunnel(worker, url), &live, TUNNEL_QUESTION_TIMEOUT).await != Told::Silent
    }

    async fn question(&self, line: &Line<'_>, outgoing: &Outgoing, sent_at: Instant) -> Failed {
        if let Line::Overlay(..) = line {
            tokio::time::sleep(FIRST_SIGN_AFTER).await;
            if self.ask(line, &PathAndQuery::from_static(LIVE), QUESTION_TIMEOUT).await == Told::Silent {
                return self.silent(line, outgoing);
            }
        }
        let passed = clock::now().saturating_duration_since(sent_at);
        tokio::time::sleep(QUESTION_AFTER.saturating_sub(passed)).await;
        let (every, within) = line.patience();
        let (mut unanswered, mut ended) = (0, 0);
        loop {
            let told = self.ask(line, &outgoing.about(), within).await;
            unanswered = if told == Told::Silent { unanswered + 1 } else { 0 };
            match told {
                Told::State(CallState::NeverSeen, since) => {
                    let failure = if reaches_back(since, sent_at) { Failure::Unreachable } else { Failure::Uncertain };
                    return Failed::there(failure, "the worker never saw the call");
                }
                Told::State(CallState::Done | CallState::Refused, _) => ended += 1,
                Told::State(CallState::Queued | CallState::Loading | CallState::Running, _) => ended = 0,
                Told::Silent if unanswered >= MAX_UNANSWERED => return self.silent(line, outgoing),
                // Asked again at once: it has been silent for long enough.
                Told::Silent => continue,
                Told::Alive | Told::Closed => {}
            }
            if ended >= MAX_ENDED {
                return Failed::there(Failure::Interrupted, "the call ended, and its answer did not come");
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Lets a large body go on once the worker has taken the call.
    async fn open(&self, line: &Line<'_>, outgoing: &Outgoing) {
        outgoing.replay.held_back().await;
        let (every, within) = line.patience();
        loop {
            match self.ask(line, &outgoing.about_taking(), TAKEN_WITHIN + within).await {
                Told::State(CallState::Running | CallState::Done, _) => return outgoing.replay.open(),
                // Something on the way wants the body before it passes the head on, or an agent that knows no such
                // question.
                Told::State(CallState::NeverSeen, _) | Told::Alive => return outgoing.replay.open(),
                Told::State(CallState::Queued | CallState::Loading, _) => {}
                // Its answer says so.
                Told::State(CallState::Refused, _) => return,
                Told::Silent | Told::Closed => tokio::time::sleep(every).await,
            }
        }
    }

    /// A worker is not there any more: nobody is to use that connection again.
    fn silent(&self, line: &Line<'_>, outgoing: &Outgoing) -> Failed {
        self.counters.unanswered_questions.inc();
        if let Line::Overlay(lease, _) = line {
            lease.give_up();
        }
        Failed::silent(outgoing.broken(), "the worker does not answer")
    }

    /// Over a connection that is not the lost one.
    async fn ask_anew(&self, address: SocketAddr, outgoing: &Outgoing) -> Told {
        // The pool may not have noticed yet that the lost one is closed: the second is new.
        for _ in 0..2 {
            let Ok(lease) = self.pool.lease(address).await else { return Told::Silent };
            match self.ask(&Line::Overlay(&lease, address), &outgoing.about(), QUESTION_TIMEOUT).await {
                Told::Closed => {}
                told => return told,
            }
        }
        Told::Closed
    }

    /// Asks one thing.
    pub(super) async fn ask(&self, line: &Line<'_>, what: &PathAndQuery, within: Duration) -> Told {
        match line {
            Line::Overlay(lease, address) => {
                let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(what.clone());
                let Ok(uri) = uri.build() else { return Told::Silent };
                match lease.question(uri, within).await {
                    Ok(word) => told(&word),
                    Err(Sign::Alive) => Told::Alive,
                    Err(Sign::Silent) => Told::Silent,
                    Err(Sign::Closed) => Told::Closed,
                }
            }
            Line::Tunnel(worker, url) => {
                let asking = self.ask_through_tunnel(worker, url, what);
                let word = tokio::time::timeout(within, asking).await.ok().flatten();
                word.map_or(Told::Silent, |word| told(&word))
            }
        }
    }

    /// What the agent at the end of a tunnel says. `None` if nobody does, or somebody who is no agent.
    async fn ask_through_tunnel(&self, worker: &NodeId, url: &TunnelUrl, what: &PathAndQuery) -> Option<bytes::Bytes> {
        let uri = url.as_str().parse::<Upstream>().ok()?.uri(what)?;
        let proof = (self.parts.prove)(worker, &Method::GET, what.as_str()).ok()?;
        let mut question = Request::new(AttemptBody::empty());
        *question.uri_mut() = uri;
        question.headers_mut().insert(header::AUTHORIZATION, HeaderValue::try_from(proof).ok()?);
        let answer = self.tunnels.request(question).await.ok()?;
        answer.headers().get(headers::WORKER)?;
        Some(Limited::new(answer.into_body(), MAX_WORD_BYTES).collect().await.ok()?.to_bytes())
    }
}

impl Line<'_> {
    /// How often the worker is asked, and how long it has for its answer.
    fn patience(&self) -> (Duration, Duration) {
        match self {
            Line::Overlay(..) => (QUESTION_EVERY, QUESTION_TIMEOUT),
            Line::Tunnel(..) => (TUNNEL_QUESTION_EVERY, TUNNEL_QUESTION_TIMEOUT),
        }
    }
}

/// A word that is none about a call is a sign of life.
fn told(word: &[u8]) -> Told {
    let Ok(word) = serde_json::from_slice::<Word>(word) else { return Told::Alive };
    word.state.parse().map_or(Told::Alive, |state| Told::State(state, Duration::from_millis(word.since_ms)))
}

/// Whether somebody who remembers for so long would know a call that was sent at `sent_at`.
fn reaches_back(remembers: Duration, sent_at: Instant) -> bool {
    remembers > clock::now().saturating_duration_since(sent_at)
}
