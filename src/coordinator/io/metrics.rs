//! What the coordinator counts, for Prometheus.

mod fleet;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::api::MemberCounts;
use fleet::FleetMetrics;

/// Counters and gauges.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    members: Family<StateLabels, Gauge>,
    revocation_number: Gauge,
    unwritten: Gauge,
    /// Certificates and authorities.
    pub fleet: FleetMetrics,
    /// Machines that joined, re-joins included.
    pub enrolled: Counter,
    /// Machines that began to wait for an operator.
    pub waiting: Counter,
    /// Refused joins for which the audit had no room.
    pub untold: Counter,
    /// Certificates renewed.
    pub renewed: Counter,
    /// Certificates for the next keys of a member.
    pub rekeyed: Counter,
    /// Identities that two processes used at once, each time it began.
    pub copies_detected: Counter,
    copied: Gauge,
    /// Heartbeats and registrations taken.
    pub heartbeats: Counter,
    /// Batches of changes written.
    pub flushes: Counter,
    /// Batches that could not be written.
    pub flush_failures: Counter,
    /// TLS handshakes that failed.
    pub handshake_failures: Counter,
    /// Connections refused because there were too many.
    pub connections_refused: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RefusedLabels {
    reason: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    state: &'static str,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("wiremesh_coordinator"),
            requests: Family::default(),
            refused: Family::default(),
            members: Family::default(),
            revocation_number: Gauge::default(),
            unwritten: Gauge::default(),
            fleet: FleetMetrics::default(),
            enrolled: Counter::default(),
            waiting: Counter::default(),
            untold: Counter::default(),
            renewed: Counter::default(),
            rekeyed: Counter::default(),
            copies_detected: Counter::default(),
            copied: Gauge::default(),
            heartbeats: Counter::default(),
            flushes: Counter::default(),
            flush_failures: Counter::default(),
            handshake_failures: Counter::default(),
            connections_refused: Counter::default(),
        };
        let registry = &mut metrics.registry;
        metrics.fleet.register(registry);
        registry.register("requests", "Requests by route and status", metrics.requests.clone());
        registry.register("refused", "Requests refused, by reason", metrics.refused.clone());
        registry.register("members", "Members by state", metrics.members.clone());
        registry.register("revocation_number", "Revocation list in force", metrics.revocation_number.clone());
        registry.register("unwritten_members", "Members with changes not yet written", metrics.unwritten.clone());
        registry.register("enrolments", "Machines that joined", metrics.enrolled.clone());
        registry.register("joins_waiting", "Machines that began to wait for an operator", metrics.waiting.clone());
        registry.register("refusals_untold", "Refused joins that are not in the audit", metrics.untold.clone());
        registry.register("renewals", "Certificates renewed", metrics.renewed.clone());
        registry.register("rekeys", "Certificates for next keys", metrics.rekeyed.clone());
        registry.register("copies_detected", "Identities found in use twice", metrics.copies_detected.clone());
        registry.register("copied_identities", "Identities in use twice", metrics.copied.clone());
        registry.register("heartbeats", "Heartbeats and registrations taken", metrics.heartbeats.clone());
        registry.register("flushes", "Batches of changes written", metrics.flushes.clone());
        registry.register("flush_failures", "Batches that could not be written", metrics.flush_failures.clone());
        registry.register("handshake_failures", "TLS handshakes that failed", metrics.handshake_failures.clone());
        registry.register("connections_refused", "Connections over the limit", metrics.connections_refused.clone());
        metrics
    }

    /// A request was answered. `route` is the pattern, not the path: few.
    pub fn count_request(&self, route: &str, status: u16) {
        self.requests.get_or_create(&RequestLabels { route: route.to_owned(), status }).inc();
    }

    /// A request was refused for one of our few reasons.
    pub fn count_refused(&self, reason: &str) {
        self.refused.get_or_create(&RefusedLabels { reason: reason.to_owned() }).inc();
    }

    /// So many identities are used by two processes at once.
    pub fn set_copied(&self, identities: usize) {
        self.copied.set(i64::try_from(identities).unwrap_or(i64::MAX));
    }

    /// The text that Prometheus reads.
    pub fn encode(&self, counts: MemberCounts, revocation_number: u64, unwritten: usize) -> String {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for (state, count) in
            [("enrolled", counts.enrolled), ("registered", counts.registered), ("healthy", counts.healthy)]
        {
            self.members.get_or_create(&StateLabels { state }).set(gauge(count));
        }
        self.revocation_number.set(i64::try_from(revocation_number).unwrap_or(i64::MAX));
        self.unwritten.set(gauge(unwritten));
        let mut encoded = String::new();
        if text::encode(&mut encoded, &self.registry).is_err() {
            encoded.clear();
        }
        encoded
    }
}
