//! The account of one request: what it asked for, who tried to answer it, and how it ended. It becomes one line of the
//! access log and, if the request is traced, spans.
//!
//! ```text
//! on_target → on_attempt … on_failed → on_attempt … → on_head → on_bytes … → on_end
//!       └ or dropped at any point: finish() tells what it came to
//! ```

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method};
use rand::rngs::SmallRng;
use serde::Serialize;
use wiremesh_certs::{NodeName, ServiceName, UnixTime};

use super::{
    Path, Refusal, Source, Target,
    route::Route,
    trace::{SpanId, TRACEPARENT, TraceId, TraceParent},
};

/// Attempts that are told apart in a trace; a plan makes fewer.
const MAX_ATTEMPTS_TOLD: usize = 8;
/// A reason is cut after so many characters.
const MAX_WHY: usize = 256;

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A worker answered, and all of its answer was passed on. Its status may still be an error.
    Ok,
    /// A worker was lost before or in the middle of its answer, when the request may have been executed.
    Interrupted,
    /// The client left before the end of the answer.
    Cancelled,
    /// An error of ours, by its `type`.
    Refused(&'static str),
}

impl Outcome {
    /// How a refused request ended.
    pub fn of(refusal: &Refusal) -> Outcome {
        match refusal {
            Refusal::Interrupted(_) => Outcome::Interrupted,
            _ => Outcome::Refused(refusal.kind()),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Ok => f.write_str("ok"),
            Outcome::Interrupted => f.write_str("interrupted"),
            Outcome::Cancelled => f.write_str("cancelled"),
            Outcome::Refused(kind) => write!(f, "refused:{kind}"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One line of the access log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// When the request arrived, RFC 3339 with milliseconds.
    pub time: String,
    /// The request id.
    pub id: String,
    /// The trace, if it is recorded.
    pub trace: Option<String>,
    /// The method.
    pub method: String,
    /// The service asked for, or that answered for a model; null if neither is known.
    pub service: Option<String>,
    /// The model asked for, if the request named a model.
    pub model: Option<String>,
    /// The member who sent the request on, by the name in its certificate; by its overlay address if it has none. Null if
    /// it came from a client of ours.
    pub from: Option<String>,
    /// Who answered, or was asked last.
    pub worker: Option<String>,
    /// Which way to the worker.
    pub path: Option<String>,
    /// How the worker was known.
    pub source: Option<String>,
    /// Attempts, the successful one included.
    pub attempts: u32,
    /// Bytes of the request's body that came from the client.
    pub request_bytes: u64,
    /// Bytes of the answer's body that went to the client.
    pub answer_bytes: u64,
    /// From the arrival to the head of the answer.
    pub head_ms: Option<f64>,
    /// From the arrival to the first byte of the answer's body.
    pub first_byte_ms: Option<f64>,
    /// From the arrival to the end.
    pub duration_ms: f64,
    /// The status of the answer; null if there was none.
    pub status: Option<u16>,
    /// `ok`, `interrupted`, `cancelled` or `refused:` and the type of the error.
    pub outcome: Outcome,
}

/// A part of a trace, as it is exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// This span.
    pub id: SpanId,
    /// The span within which this one happened.
    pub parent: Option<SpanId>,
    /// Whether the parent is somebody else's.
    pub parent_is_remote: bool,
    /// Which side of a request it is.
    pub side: Side,
    /// What happened; one of few.
    pub name: String,
    /// Since 1970.
    pub began: Duration,
    /// Since 1970.
    pub ended: Duration,
    /// What there is to know.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it is an error, if it is.
    pub error: Option<String>,
}

/// Which side of a request a span is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// We were asked.
    Server,
    /// We asked.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A count.
    Count(u64),
    /// Milliseconds.
    Millis(f64),
}

/// The part of a trace that is made here.
#[derive(Debug)]
pub struct Tracing {
    trace: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    sampled: bool,
    rng: SmallRng,
}

impl Tracing {
    /// Goes on with the trace that a request came with; whether it is recorded was decided there. One that begins here is
    /// recorded with the probability `sample`.
    pub fn of(parent: Option<TraceParent>, sample: f64, mut rng: SmallRng) -> Tracing {
        use rand::Rng;
        let span = SpanId::random(&mut rng);
        match parent {
            Some(TraceParent { trace, span: parent, sampled }) => {
                Tracing { trace, span, parent: Some(parent), sampled, rng }
            }
            None => {
                let sampled = rng.random_bool(sample.clamp(0.0, 1.0));
                Tracing { trace: TraceId::random(&mut rng), span, parent: None, sampled, rng }
            }
        }
    }

    fn parent_of_next(&self, span: SpanId) -> TraceParent {
        TraceParent { trace: self.trace, span, sampled: self.sampled }
    }
}

/// One attempt to get an answer.
#[derive(Debug)]
struct Attempt {
    worker: String,
    path: Path,
    span: Option<SpanId>,
    began_at: Instant,
    ended_at: Option<Instant>,
    why: Option<String>,
}

/// What is known of one request so far.
#[derive(Debug)]
pub struct Facts {
    line: Line,
    arrived_at: Instant,
    /// Since 1970.
    arrived: Duration,
    /// The length of the answer's body, if it is known beforehand: who gets all of it may not ask for its end.
    expected: Option<u64>,
    ended: Option<Outcome>,
    tracing: Option<Tracing>,
    attempts: Vec<Attempt>,
    route: Option<Route>,
}

impl Facts {
    /// A request has arrived; `arrived` is the time since 1970.
    pub fn new(id: &str, method: &Method, tracing: Option<Tracing>, arrived: Duration, now: Instant) -> Facts {
        let recorded = tracing.as_ref().filter(|tracing| tracing.sampled);
        let line = Line {
            time: rfc3339(arrived),
            id: id.to_owned(),
            trace: recorded.map(|tracing| tracing.trace.to_string()),
            method: method.to_string(),
            service: None,
            model: None,
            from: None,
            worker: None,
            path: None,
            source: None,
            attempts: 0,
            request_bytes: 0,
            answer_bytes: 0,
            head_ms: None,
            first_byte_ms: None,
            duration_ms: 0.0,
            status: None,
            outcome: Outcome::Cancelled,
        };
        Facts {
            line,
            arrived_at: now,
            arrived,
            expected: None,
            ended: None,
            tracing,
            attempts: Vec::new(),
            route: None,
        }
    }

    /// What it asks for, and which member sent it on.
    pub fn on_target(&mut self, target: &Target, from: Option<&str>) {
        let name = Some(target.as_str().to_owned());
        match target {
            Target::Service(_) => self.line.service = name,
            Target::Model(_) => self.line.model = name,
        }
        self.line.from = from.map(str::to_owned);
    }

    /// This service of ours is to answer it.
    pub fn on_service(&mut self, service: &ServiceName) {
        self.line.service = Some(service.as_str().to_owned());
    }

    /// `worker` is asked by `path`.
    pub fn on_attempt(&mut self, worker: &NodeName, path: Path, now: Instant) {
        self.close(None, now);
        self.line.attempts += 1;
        self.line.worker = Some(worker.as_str().to_owned());
        self.line.path = Some(path.as_str().to_owned());
        if self.attempts.len() < MAX_ATTEMPTS_TOLD {
            let span = self.tracing.as_mut().map(|tracing| SpanId::random(&mut tracing.rng));
            let worker = worker.as_str().to_owned();
            self.attempts.push(Attempt { worker, path, span, began_at: now, ended_at: None, why: None });
        }
    }

    /// The attempt under way failed.
    pub fn on_failed(&mut self, why: &str, now: Instant) {
        self.close(Some(why), now);
    }

    /// Puts the span that sends the request into its headers.
    pub fn mark(&self, headers: &mut HeaderMap) {
        let Some(tracing) = &self.tracing else { return };
        let sender = self.attempts.last().and_then(|attempt| attempt.span).unwrap_or(tracing.span);
        headers.insert(TRACEPARENT, tracing.parent_of_next(sender).header());
    }

    /// These ways were considered.
    pub fn on_route(&mut self, route: Route) {
        self.route = Some(route);
    }

    /// Why the request went where it went, for `x-wiremesh-route`.
    pub fn route(&self) -> HeaderValue {
        let nowhere = Route { source: Source::Local, ways: Vec::new(), forbidden: false };
        let tried = self.attempts.iter().map(|tried| (tried.worker.as_str(), tried.path, tried.why.as_deref()));
        self.route.as_ref().unwrap_or(&nowhere).header(tried)
    }

    /// The head of the answer is there. `expected`: the length of its body, if that is known.
    pub fn on_head(&mut self, status: u16, headers: &HeaderMap, expected: Option<u64>, now: Instant) {
        let said = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.line.status = Some(status);
        self.line.head_ms = Some(millis(now.saturating_duration_since(self.arrived_at)));
        self.line.source = said(super::headers::SOURCE);
        // A refusal of ours carries our own name; who was asked last says more.
        if let Some(path) = said(super::headers::PATH) {
            self.line.path = Some(path);
            self.line.worker = said(super::headers::WORKER);
        }
        self.expected = expected;
    }

    /// A piece of the answer is passed on.
    pub fn on_bytes(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 && self.line.first_byte_ms.is_none() {
            self.line.first_byte_ms = Some(millis(now.saturating_duration_since(self.arrived_at)));
        }
        self.line.answer_bytes += bytes as u64;
    }

    /// It is decided how it ends. What was said first stays.
    pub fn on_end(&mut self, outcome: Outcome) {
        self.ended.get_or_insert(outcome);
    }

    /// Nothing more comes.
    pub fn finish(&mut self, request_bytes: u64, now: Instant) -> (Line, Vec<Span>) {
        let all_sent = self.line.status.is_some() && self.expected == Some(self.line.answer_bytes);
        let outcome = self.ended.unwrap_or(if all_sent { Outcome::Ok } else { Outcome::Cancelled });
        self.close(None, now);
        self.line.request_bytes = request_bytes;
        self.line.duration_ms = millis(now.saturating_duration_since(self.arrived_at));
        self.line.outcome = outcome;
        (self.line.clone(), self.spans(now))
    }

    /// The attempt under way, if there is one, is over.
    fn close(&mut self, why: Option<&str>, now: Instant) {
        let open = self.attempts.last_mut().filter(|attempt| attempt.ended_at.is_none());
        if let Some(attempt) = open {
            attempt.ended_at = Some(now);
            attempt.why = why.map(|why| why.chars().take(MAX_WHY).collect());
        }
    }

    fn spans(&self, now: Instant) -> Vec<Span> {
        let Some(tracing) = self.tracing.as_ref().filter(|tracing| tracing.sampled) else { return Vec::new() };
        let since_1970 = |at: Instant| self.arrived + at.saturating_duration_since(self.arrived_at);
        let line = &self.line;
        let text = |value: &Option<String>| value.clone().map(Value::Text);
        let attributes = [
            ("http.request.method", Some(Value::Text(line.method.clone()))),
            ("http.response.status_code", line.status.map(|status| Value::Count(status.into()))),
            ("http.request.body.size", Some(Value::Count(line.request_bytes))),
            ("http.response.body.size", Some(Value::Count(line.answer_bytes))),
            ("wiremesh.request_id", Some(Value::Text(line.id.clone()))),
            ("wiremesh.service", text(&line.service)),
            ("wiremesh.model", text(&line.model)),
            ("wiremesh.from", text(&line.from)),
            ("wiremesh.worker", text(&line.worker)),
            ("wiremesh.path", text(&line.path)),
            ("wiremesh.source", text(&line.source)),
            ("wiremesh.attempts", Some(Value::Count(line.attempts.into()))),
            ("wiremesh.head_ms", line.head_ms.map(Value::Millis)),
            ("wiremesh.first_byte_ms", line.first_byte_ms.map(Value::Millis)),
            ("wiremesh.outcome", Some(Value::Text(line.outcome.to_string()))),
        ];
        let is_bad = line.outcome == Outcome::Interrupted || line.status.is_some_and(|status| status >= 500);
        let whole = Span {
            trace: tracing.trace,
            id: tracing.span,
            parent: tracing.parent,
            parent_is_remote: tracing.parent.is_some(),
            side: Side::Server,
            name: format!("{} {}", line.method, line.service.as_deref().or(line.model.as_deref()).unwrap_or("-")),
            began: self.arrived,
            ended: since_1970(now),
            attributes: attributes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            error: is_bad.then(|| line.outcome.to_string()),
        };
        let attempts = self.attempts.iter().zip(1..).filter_map(|(attempt, number)| {
            Some(Span {
                trace: tracing.trace,
                id: attempt.span?,
                parent: Some(tracing.span),
                parent_is_remote: false,
                side: Side::Client,
                name: match attempt.path {
                    Path::Local => "upstream".to_owned(),
                    Path::Overlay | Path::Tunnel => format!("attempt {}", attempt.path),
                },
                began: since_1970(attempt.began_at),
                ended: since_1970(attempt.ended_at.unwrap_or(now)),
                attributes: vec![
                    ("wiremesh.worker", Value::Text(attempt.worker.clone())),
                    ("wiremesh.path", Value::Text(attempt.path.as_str().to_owned())),
                    ("wiremesh.attempt", Value::Count(number)),
                ],
                error: attempt.why.clone(),
            })
        });
        std::iter::once(whole).chain(attempts).collect()
    }
}

fn millis(took: Duration) -> f64 {
    // Microseconds: more digits say nothing.
    (took.as_secs_f64() * 1e6).round() / 1e3
}

fn rfc3339(since_1970: Duration) -> String {
    let seconds = UnixTime(since_1970.as_secs()).to_string();
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), since_1970.subsec_millis())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const AT: Duration = Duration::from_millis(1_700_000_000_250);

    #[test]
    fn a_request_that_took_two_attempts_is_one_line_with_all_of_its_figures() {
        let (mut facts, t0) = facts(None);
        facts.on_target(&Target::Service("ocr".parse().unwrap()), None);
        facts.on_attempt(&"ann".parse().unwrap(), Path::Overlay, t0);
        facts.on_failed("connection refused", t0 + Duration::from_millis(2));
        facts.on_attempt(&"bob".parse().unwrap(), Path::Tunnel, t0 + Duration::from_millis(2));
        facts.on_head(200, &answered_by("bob", "tunnel"), None, t0 + Duration::from_millis(5));
        facts.on_bytes(0, t0 + Duration::from_millis(6));
        facts.on_bytes(30, t0 + Duration::from_millis(8));
        facts.on_bytes(12, t0 + Duration::from_millis(9));
        facts.on_end(Outcome::Ok);

        let (line, spans) = facts.finish(7, t0 + Duration::from_millis(10));

        assert_eq!(
            serde_json::to_value(&line).unwrap(),
            serde_json::json!({
                "time": "2023-11-14T22:13:20.250Z", "id": "r-1", "trace": null, "method": "POST", "service": "ocr",
                "model": null, "from": null, "worker": "bob", "path": "tunnel", "source": "dht", "attempts": 2,
                "request_bytes": 7, "answer_bytes": 42, "head_ms": 5.0, "first_byte_ms": 8.0, "duration_ms": 10.0,
                "status": 200, "outcome": "ok",
            })
        );
        assert_eq!(spans, []);
    }

    #[test]
    fn how_it_ended_is_what_was_said_first_or_whether_all_was_sent() {
        for (said, expected, sent, outcome) in [
            (Some(Outcome::Ok), None, 5, Outcome::Ok),
            (Some(Outcome::Interrupted), Some(10), 5, Outcome::Interrupted),
            (Some(Outcome::Refused("overloaded")), Some(99), 0, Outcome::Refused("overloaded")),
            (None, Some(5), 5, Outcome::Ok),
            (None, Some(0), 0, Outcome::Ok),
            (None, Some(10), 5, Outcome::Cancelled),
            (None, None, 5, Outcome::Cancelled),
        ] {
            let (mut facts, t0) = facts(None);
            facts.on_head(200, &HeaderMap::new(), expected, t0);
            facts.on_bytes(sent, t0);
            if let Some(said) = said {
                facts.on_end(said);
                facts.on_end(Outcome::Cancelled);
            }

            assert_eq!(facts.finish(0, t0).0.outcome, outcome, "{said:?} {expected:?} {sent}");
        }
    }

    #[test]
    fn a_request_whose_client_left_before_an_answer_is_cancelled() {
        let (mut facts, t0) = facts(None);

        let (line, _) = facts.finish(0, t0 + Duration::from_secs(1));

        assert_eq!((line.outcome, line.status, line.duration_ms), (Outcome::Cancelled, None, 1000.0));
    }

    #[test]
    fn a_traced_request_is_a_span_with_its_attempts_in_it_and_each_attempt_sends_its_own() {
        let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let (mut facts, t0) = facts(Some(tracing(Some(parent), 0.0)));
        let mut sent = Vec::new();
        facts.on_target(&Target::Service("ocr".parse().unwrap()), None);
        for worker in ["ann", "bob"] {
            facts.on_attempt(&worker.parse().unwrap(), Path::Overlay, t0);
            let mut headers = HeaderMap::new();
            facts.mark(&mut headers);
            sent.push(headers[TRACEPARENT].to_str().unwrap().parse::<TraceParent>().unwrap());
            facts.on_failed("gone", t0 + Duration::from_millis(3));
        }

        let (line, spans) = facts.finish(0, t0 + Duration::from_millis(4));

        assert_eq!(line.trace, Some(parent.trace.to_string()));
        assert!(sent.iter().chain([&parent]).all(|sent| sent.trace == parent.trace && sent.sampled));
        let [whole, first, second] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((whole.parent, whole.side, whole.name.as_str()), (Some(parent.span), Side::Server, "POST ocr"));
        assert_eq!([first.id, second.id], [sent[0].span, sent[1].span]);
        assert!([first, second].iter().all(|span| span.parent == Some(whole.id) && span.side == Side::Client));
        assert_eq!(
            (first.began, first.ended, first.error.as_deref()),
            (AT, AT + Duration::from_millis(3), Some("gone"))
        );
    }

    #[test]
    fn whether_a_trace_is_recorded_is_decided_where_it_begins() {
        let mut unrecorded: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        unrecorded.sampled = false;

        for (parent, sample, spans) in [(Some(unrecorded), 1.0, 0), (None, 0.0, 0), (None, 1.0, 1)] {
            let (mut facts, t0) = facts(Some(tracing(parent, sample)));
            let mut headers = HeaderMap::new();
            facts.mark(&mut headers);

            let sent: TraceParent = headers[TRACEPARENT].to_str().unwrap().parse().unwrap();
            assert_eq!((sent.sampled, facts.finish(0, t0).1.len()), (spans > 0, spans));
        }
    }

    fn facts(tracing: Option<Tracing>) -> (Facts, Instant) {
        let t0 = crate::clock::now();
        (Facts::new("r-1", &Method::POST, tracing, AT, t0), t0)
    }

    fn tracing(parent: Option<TraceParent>, sample: f64) -> Tracing {
        Tracing::of(parent, sample, SmallRng::seed_from_u64(1))
    }

    fn answered_by(worker: &str, path: &str) -> HeaderMap {
        let pairs = [("x-wiremesh-worker", worker), ("x-wiremesh-path", path), ("x-wiremesh-source", "dht")];
        pairs
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    }
}
