//! What the router counts. One set of numbers, shown in `/stats` and `/metrics`.
//!
//! **Invariant:** every request for a service ends in exactly one of `local`, `forwarded`, `inbound`, `failed` and
//! `cancelled`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The label of counters that are kept by reason.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Reason {
    /// One of a fixed set of words.
    pub reason: &'static str,
}

/// The numbers. Clones count into the same.
#[derive(Clone)]
pub struct Counters {
    /// Requests of our own clients that a service of this node answered.
    pub local: Counter,
    /// Requests of our own clients that another worker answered.
    pub forwarded: Counter,
    /// Those of the forwarded ones that went through a tunnel.
    pub forwarded_by_tunnel: Counter,
    /// Requests of other agents that a service of this node answered.
    pub inbound: Counter,
    /// Requests that got no worker's answer but an error of ours.
    pub failed: Counter,
    /// The failed ones by the `type` of their error.
    pub failed_by: Family<Reason, Counter>,
    /// Requests whose client left before there was an answer.
    pub cancelled: Counter,
    /// Attempts beyond the first of their request.
    pub retries: Counter,
    /// Attempts that were not made because the budget for repeats was spent.
    pub retries_denied: Counter,
    /// Lost calls of which the worker said what became of them, by what it said.
    pub cleared_up: Family<Reason, Counter>,
    /// Answers that began and broke off.
    pub interrupted_answers: Counter,
    /// Questions to silent workers that went unanswered.
    pub unanswered_questions: Counter,
    /// Requests in flight, until the last byte of their answer.
    pub in_flight: Gauge,
    /// Upgraded connections, open now.
    pub upgraded: Gauge,
    /// Lines of the access log that found no place.
    pub dropped_lines: Counter,
    /// Spans that found no place, or that nobody took.
    pub dropped_spans: Counter,
    /// From the request's arrival to the first byte of its answer.
    pub first_byte_seconds: Histogram,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            local: Counter::default(),
            forwarded: Counter::default(),
            forwarded_by_tunnel: Counter::default(),
            inbound: Counter::default(),
            failed: Counter::default(),
            failed_by: Family::default(),
            cancelled: Counter::default(),
            retries: Counter::default(),
            retries_denied: Counter::default(),
            cleared_up: Family::default(),
            interrupted_answers: Counter::default(),
            unanswered_questions: Counter::default(),
            in_flight: Gauge::default(),
            upgraded: Gauge::default(),
            dropped_lines: Counter::default(),
            dropped_spans: Counter::default(),
            // 0.5 ms to 65 s.
            first_byte_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 18)),
        }
    }
}

impl Counters {
    /// Shows the numbers in `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        let router = registry.sub_registry_with_prefix("wiremesh_router");
        router.register("local_requests", "Answered by a service of this node for its own clients", self.local.clone());
        router.register("forwarded_requests", "Answered by another worker", self.forwarded.clone());
        router.register("tunnel_requests", "Forwarded through a tunnel", self.forwarded_by_tunnel.clone());
        router.register("inbound_requests", "Answered here for other agents", self.inbound.clone());
        router.register("failed_requests", "Answered with an error of the router", self.failed.clone());
        router.register("failures", "The same, by reason", self.failed_by.clone());
        router.register("cancelled_requests", "Left by their client before an answer", self.cancelled.clone());
        router.register("retries", "Attempts beyond the first", self.retries.clone());
        router.register("retries_denied", "Repeats the budget did not allow", self.retries_denied.clone());
        router.register("cleared_up", "Lost calls their worker knew about, by state", self.cleared_up.clone());
        router.register("interrupted_answers", "Answers that broke off", self.interrupted_answers.clone());
        router.register("unanswered_questions", "Silent workers found dead", self.unanswered_questions.clone());
        router.register("in_flight", "Requests in flight", self.in_flight.clone());
        router.register("upgraded", "Upgraded connections", self.upgraded.clone());
        router.register("access_lines_dropped", "Lines the access log had no place for", self.dropped_lines.clone());
        router.register("spans_dropped", "Spans that could not be exported", self.dropped_spans.clone());
        router.register("first_byte_seconds", "Time to the first byte", self.first_byte_seconds.clone());
    }
}
