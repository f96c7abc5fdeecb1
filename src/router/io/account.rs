//! Who wants to know how requests end, and the one object of each request that tells them when it is dropped.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::sync::mpsc;
use wiremesh_certs::{NodeName, ServiceName};

use super::{Answer, Shared, lock};
use crate::{
    clock,
    router::{
        Path, Target,
        access::{Facts, Line, Outcome, Span, Tracing},
        headers,
        route::Route,
        trace::TraceParent,
    },
};

/// Where the accounts of requests go. Both ways are bounded: what finds no place is dropped and counted, and no request
/// waits for it.
#[derive(Clone, Default)]
pub struct Audience {
    /// The access log, if there is one.
    pub lines: Option<mpsc::Sender<Line>>,
    /// Where spans are exported, if they are.
    pub spans: Option<mpsc::Sender<Span>>,
    /// How many of the traces that begin here are recorded, 0 to 1.
    pub sample: f64,
}

/// The account of one request. Clones are the same one; it is told when the last is dropped, which is when its answer has
/// ended in whatever way. Without an audience it is nothing and costs nothing.
#[derive(Clone, Default)]
pub(super) struct Account(Option<Arc<Inner>>);

struct Inner {
    shared: Arc<Shared>,
    facts: Mutex<Facts>,
    /// Whether the client wants to know why.
    explains: bool,
    received: Received,
}

/// Counts the bytes of a request's body.
pub(super) type Received = Arc<AtomicU64>;

impl Account {
    /// The account of a request that has just arrived, kept in its extensions too. From here on the request has an id, and
    /// no trace that is none. `is_local`: it comes from a client of ours, who may ask why it goes where it goes.
    pub fn open(shared: &Arc<Shared>, request: &mut Request<Incoming>, is_local: bool) -> Account {
        let parent = TraceParent::arriving(request.headers_mut());
        let audience = &shared.parts.audience;
        let explains = is_local && request.headers().get(headers::EXPLAIN).is_some_and(|value| value == "1");
        if audience.lines.is_none() && audience.spans.is_none() && !explains {
            return Account::default();
        }
        let id = shared.request_id(request.headers());
        request.headers_mut().insert(headers::REQUEST_ID, id.clone());
        let tracing = audience.spans.is_some().then(|| {
            let chance = SmallRng::from_rng(&mut *lock(&shared.rng));
            Tracing::of(parent, audience.sample, chance)
        });
        let arrived = Duration::from_micros(clock::unix_micros());
        let facts = Facts::new(id.to_str().unwrap_or_default(), request.method(), tracing, arrived, clock::now());
        let inner = Inner { shared: shared.clone(), facts: Mutex::new(facts), explains, received: Received::default() };
        let account = Account(Some(Arc::new(inner)));
        request.extensions_mut().insert(account.clone());
        account
    }

    /// What the request asks for, and which member sent it on.
    pub fn on_target(&self, target: &Target, from: Option<&str>) {
        self.note(|facts| facts.on_target(target, from));
    }

    /// This service of ours is to answer.
    pub fn on_service(&self, service: &ServiceName) {
        self.note(|facts| facts.on_service(service));
    }

    /// These ways were considered; made only if somebody wants to know.
    pub fn on_route(&self, route: impl FnOnce() -> Route) {
        if self.0.as_ref().is_some_and(|inner| inner.explains) {
            let route = route();
            self.note(|facts| facts.on_route(route));
        }
    }

    /// `worker` is asked by `path`.
    pub fn on_attempt(&self, worker: &NodeName, path: Path) {
        self.note(|facts| facts.on_attempt(worker, path, clock::now()));
    }

    /// The attempt under way failed.
    pub fn on_failed(&self, why: &str) {
        self.note(|facts| facts.on_failed(why, clock::now()));
    }

    /// Puts the trace into the headers of the attempt under way.
    pub fn mark(&self, headers: &mut HeaderMap) {
        self.note(|facts| facts.mark(headers));
    }

    /// What counts the request's body, if anybody wants to know.
    pub fn received(&self) -> Option<Received> {
        self.0.as_ref().map(|inner| inner.received.clone())
    }

    /// The head of the answer is there, and its body tells how it goes on.
    pub fn answered(self, mut answer: Answer) -> Answer {
        let Some(inner) = &self.0 else { return answer };
        if inner.explains {
            answer.headers_mut().insert(headers::ROUTE, lock(&inner.facts).route());
        }
        self.note(|facts| {
            let body = answer.body();
            facts.on_head(answer.status().as_u16(), answer.headers(), body.size_hint().exact(), clock::now());
            match answer.extensions().get::<Outcome>() {
                Some(refused) => facts.on_end(*refused),
                None if body.is_end_stream() => facts.on_end(Outcome::Ok),
                None => {}
            }
        });
        answer.map(|body| body.accounted(self))
    }

    /// A piece of the answer's body, its end or its break.
    pub fn on_frame<E>(&self, frame: Option<&Result<Frame<Bytes>, E>>, is_last: bool) {
        self.note(|facts| match frame {
            Some(Ok(frame)) => {
                facts.on_bytes(frame.data_ref().map_or(0, Bytes::len), clock::now());
                if is_last {
                    facts.on_end(Outcome::Ok);
                }
            }
            Some(Err(_)) => facts.on_end(Outcome::Interrupted),
            None => facts.on_end(Outcome::Ok),
        });
    }

    fn note(&self, note: impl FnOnce(&mut Facts)) {
        if let Some(inner) = &self.0 {
            note(&mut lock(&inner.facts));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let facts = self.facts.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (line, spans) = facts.finish(self.received.load(Ordering::Relaxed), clock::now());
        let (audience, counters) = (&self.shared.parts.audience, &self.shared.counters);
        for span in spans {
            if audience.spans.as_ref().is_some_and(|out| out.try_send(span).is_err()) {
                counters.dropped_spans.inc();
            }
        }
        if audience.lines.as_ref().is_some_and(|out| out.try_send(line).is_err()) {
            counters.dropped_lines.inc();
        }
    }
}
