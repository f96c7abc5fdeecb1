//! The body of an answer: streamed as it comes, and never ended cleanly if it broke off.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicUsize},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::Sleep;

use super::{
    account::Account, believed::Believed, called::Called, lock, overlay::Lease, replay::Replay, stalls::Watched,
    underway::Underway, upstreams::Arriving,
};
use crate::{
    router::{Outcome, Pulse, Refusal, headers, sse::Events},
    services::Permit,
};

/// How long what came, and the last words, have to leave before the connection is aborted: a reset overtakes what is still
/// in the queue, even the head of the answer.
const LAST_WORDS_LEAVE_IN: Duration = Duration::from_millis(100);

/// An answer on its way to the client.
pub type Answer = Response<AnswerBody>;

/// What our server sends.
pub struct AnswerBody(Kind, Bounds);

/// What an answer ends with, and what it keeps until its end.
#[derive(Default)]
struct Bounds {
    /// Aborts the answer when it is over.
    until: Option<Over>,
    /// Kept, not read: what is being answered is not idle.
    _kept: Option<Arc<AtomicUsize>>,
    /// Is told how it goes.
    account: Account,
}

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Kind {
    Ready(Option<Bytes>),
    Page(axum::body::Body),
    Stream(Box<Stream>),
}

impl AnswerBody {
    /// A few bytes at once.
    pub fn bytes(bytes: impl Into<Bytes>) -> AnswerBody {
        AnswerBody::of(Kind::Ready(Some(bytes.into()).filter(|bytes| !bytes.is_empty())))
    }

    /// A page of the API.
    pub fn page(body: axum::body::Body) -> AnswerBody {
        AnswerBody::of(Kind::Page(body))
    }

    /// What an upstream or a worker sends. `held` is given up at its end. With `events` a break says why.
    /// `by` is the worker whose it is, if that is another node: with its membership the answer breaks.
    pub(super) fn stream(
        body: Arriving,
        held: Held,
        events: Option<Events>,
        by: Option<Believed>,
        interrupted: Counter,
    ) -> AnswerBody {
        let over = by.map(|by| -> Over { Box::pin(by.over()) });
        let mut held = held;
        let watched = held.watched.take();
        let flow = Arc::new(Mutex::new(Flow { body: Some(body), held: Some(held) }));
        if let Some(watched) = &watched {
            watched.keep(&flow);
        }
        let mut stream = Stream { flow, watched, events, over, breaking: None, interrupted };
        stream.end_if_over();
        AnswerBody::of(Kind::Stream(Box::new(stream)))
    }

    /// The same, aborted if it still runs when `over` ends.
    pub(super) fn until(mut self, over: impl Future<Output = ()> + Send + 'static) -> AnswerBody {
        self.1.until = Some(Box::pin(over));
        self
    }

    /// The same; `kept` is given up at its end.
    pub(super) fn keeping(mut self, kept: Arc<AtomicUsize>) -> AnswerBody {
        self.1._kept = Some(kept);
        self
    }

    /// The same; `account` is told how it goes on and ends.
    pub(super) fn accounted(mut self, account: Account) -> AnswerBody {
        self.1.account = account;
        self
    }

    fn of(kind: Kind) -> AnswerBody {
        AnswerBody(kind, Bounds::default())
    }
}

/// Makes the answer to a request that is refused.
pub fn refuse(refusal: &Refusal, request_id: &str) -> Answer {
    let mut answer = Response::new(AnswerBody::bytes(refusal.body(request_id)));
    *answer.status_mut() = refusal.status();
    answer.extensions_mut().insert(Outcome::of(refusal));
    let answer_headers = answer.headers_mut();
    answer_headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer_headers.insert(headers::EXECUTED, HeaderValue::from_static(refusal.executed().as_str()));
    answer_headers.insert(headers::REFUSED, HeaderValue::from_static(refusal.kind()));
    if let Some(seconds) = refusal.retry_after_secs() {
        answer_headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if matches!(refusal, Refusal::NoProof(_)) {
        answer_headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Wiremesh"));
    }
    if matches!(refusal, Refusal::NoKey) {
        answer_headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// What an answer keeps until its last byte; kept, not read.
#[derive(Default)]
#[expect(dead_code, reason = "what counts is when it is dropped")]
pub(super) struct Held {
    /// The place at our own upstream.
    pub permit: Option<Permit>,
    /// The same, as long as it is looked at.
    pub watched: Option<Watched>,
    /// The stream on a connection to another agent.
    pub lease: Option<Lease>,
    /// The request's body: an answer may begin before it ends.
    pub replay: Option<Replay>,
    /// Counts the request as in flight.
    pub in_flight: Option<InFlight>,
    /// What the caller is told of it.
    pub called: Option<Called>,
    /// Counts it as in flight at its worker.
    pub underway: Option<Underway>,
}

/// One up in a gauge, until dropped.
pub(super) struct InFlight(Gauge);

impl InFlight {
    pub fn new(gauge: &Gauge) -> InFlight {
        gauge.inc();
        InFlight(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

type Failed = Box<dyn Error + Send + Sync>;

/// What an answer comes from, and what its request holds. Nothing is left of it after its end or break: what it came from
/// is told at once.
#[derive(Default)]
pub(super) struct Flow {
    body: Option<Arriving>,
    held: Option<Held>,
}

struct Stream {
    flow: Arc<Mutex<Flow>>,
    /// If it is of a service of this node: its client is to take it, or loses its place.
    watched: Option<Watched>,
    events: Option<Events>,
    /// Ends when whose answer it is is no member any more.
    over: Option<Over>,
    /// The answer broke off, the last words are on their way.
    breaking: Option<Pin<Box<Sleep>>>,
    interrupted: Counter,
}

impl Stream {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if let Some(leaving) = &mut self.breaking {
            ready!(leaving.as_mut().poll(context));
            return Poll::Ready(Some(Err("the worker was lost in the middle of its answer".into())));
        }
        if self.over.as_mut().is_some_and(|over| over.as_mut().poll(context).is_ready()) {
            return self.break_off(&"its worker is no longer a member", context);
        }
        self.note(Pulse::on_taken);
        let polled = match &mut lock(&self.flow).body {
            Some(body) => Some(ready!(Pin::new(body).poll_frame(context))),
            None => None,
        };
        match polled {
            None if self.is_cut() => self.break_off(&"its client did nothing while others waited", context),
            None => Poll::Ready(None),
            Some(Some(Ok(frame))) => {
                if let (Some(events), Some(data)) = (&mut self.events, frame.data_ref()) {
                    events.on_bytes(data);
                }
                self.note(Pulse::on_answer);
                self.end_if_over();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Some(Err(error))) => self.break_off(&error, context),
            Some(None) => {
                self.end_well();
                Poll::Ready(None)
            }
        }
    }

    /// The answer has begun and will not come to its end.
    fn break_off(
        &mut self,
        why: &dyn fmt::Display,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        self.interrupted.inc();
        self.underway(Underway::on_break);
        self.end();
        tracing::debug!(%why, "answer broke off");
        self.breaking = Some(Box::pin(tokio::time::sleep(LAST_WORDS_LEAVE_IN)));
        let Some(events) = self.events.take() else { return self.poll(context) };
        let refusal = Refusal::Interrupted("in the middle of its answer".into());
        Poll::Ready(Some(Ok(Frame::data(events.last_words(&refusal.body("")).into()))))
    }

    /// Who knows that nothing more comes does not ask for it.
    fn end_if_over(&mut self) {
        let is_over = lock(&self.flow).body.as_ref().is_some_and(Body::is_end_stream);
        if is_over {
            self.end_well();
        }
    }

    fn end_well(&mut self) {
        self.underway(Underway::on_end);
        self.end();
    }

    fn underway(&mut self, tell: impl FnOnce(&mut Underway)) {
        if let Some(underway) = lock(&self.flow).held.as_mut().and_then(|held| held.underway.as_mut()) {
            tell(underway);
        }
    }

    fn end(&mut self) {
        self.watched = None;
        // Dropped after the lock is.
        let gone = std::mem::take(&mut *lock(&self.flow));
        drop(gone);
        self.over = None;
    }

    fn note(&self, note: impl FnOnce(&mut Pulse, Instant)) {
        if let Some(watched) = &self.watched {
            watched.place().note(note);
        }
    }

    fn is_cut(&self) -> bool {
        self.watched.as_ref().is_some_and(Watched::is_cut)
    }

    /// Whether nothing more comes, and nothing is to be said about that.
    fn is_over(&self) -> bool {
        self.breaking.is_none() && lock(&self.flow).body.as_ref().map_or(!self.is_cut(), Body::is_end_stream)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if let Some(over) = &mut self.1.until
            && over.as_mut().poll(context).is_ready()
        {
            *self = AnswerBody::bytes("");
            return Poll::Ready(Some(Err("who asked is no longer a member, or no longer allowed to".into())));
        }
        let polled = match &mut self.0 {
            Kind::Ready(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Page(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Kind::Stream(stream) => stream.poll(context),
        };
        if let Poll::Ready(frame) = &polled {
            self.1.account.on_frame(frame.as_ref(), self.is_end_stream());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Ready(bytes) => bytes.is_none(),
            Kind::Page(body) => body.is_end_stream(),
            Kind::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Ready(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Page(body) => body.size_hint(),
            Kind::Stream(stream) => match &lock(&stream.flow).body {
                Some(body) => body.size_hint(),
                None if stream.breaking.is_some() || stream.is_cut() => SizeHint::default(),
                None => SizeHint::with_exact(0),
            },
        }
    }
}
