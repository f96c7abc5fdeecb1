//! What `/health` and `/stats` say, in the shapes of the HTTP API.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use wiremesh_certs::{Load, NodeName, OverlayIp, ServiceName};

use super::Counters;
use crate::services::Capabilities;

/// How this agent is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// All it is configured to do works.
    Healthy,
    /// Something does not, the rest does.
    Degraded,
    /// Not everything has begun.
    Starting,
}

impl Status {
    /// The word in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Healthy => "healthy",
            Status::Degraded => "degraded",
            Status::Starting => "starting",
        }
    }
}

/// What `/health` shows.
#[derive(Clone, Debug)]
pub struct HealthReport {
    /// How we are.
    pub status: Status,
    /// Our name.
    pub worker_id: NodeName,
    /// Our address; `None` without overlay.
    pub vpn_ip: Option<OverlayIp>,
    /// What we offer now.
    pub services: Arc<[ServiceName]>,
    /// Whether the Kademlia table is in use.
    pub dht_enabled: bool,
    /// Since the agent started.
    pub uptime: Duration,
}

/// What the directory counts, for `/stats`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DirectoryCounters {
    /// Services looked up and found remembered.
    pub cache_hits: u64,
    /// Services looked up and not found remembered.
    pub cache_misses: u64,
    /// Questions to the Kademlia table.
    pub dht_lookups: u64,
    /// Questions to the coordinator.
    pub http_lookups: u64,
    /// Services remembered now.
    pub cache_size: u64,
}

/// What the agent as a whole knows and the router shows.
pub trait Report: Send + Sync {
    /// For `/health`.
    fn health(&self) -> HealthReport;
    /// For `/stats`.
    fn directory(&self) -> DirectoryCounters;
    /// For `/metrics`: Prometheus text of every part, ending in `# EOF`.
    fn metrics(&self) -> BoxFuture<'_, String>;
}

/// The body of `/health`.
pub fn health_json(report: &HealthReport) -> Value {
    json!({
        "status": report.status.as_str(),
        "worker_id": report.worker_id.as_str(),
        "vpn_ip": report.vpn_ip.map(|ip| ip.0.to_string()),
        "services": names(&report.services),
        "dht_enabled": report.dht_enabled,
        "uptime": report.uptime.as_secs(),
    })
}

/// The body of `/stats`.
pub fn stats_json(
    report: &HealthReport,
    capabilities: &Capabilities,
    load: Load,
    counters: &Counters,
    directory: &DirectoryCounters,
) -> Value {
    let lookups = directory.cache_hits + directory.cache_misses;
    let hit_rate = if lookups == 0 { 0.0 } else { directory.cache_hits as f64 / lookups as f64 };
    json!({
        "worker_id": report.worker_id.as_str(),
        "vpn_ip": report.vpn_ip.map(|ip| ip.0.to_string()),
        "services": names(&report.services),
        "capabilities": capabilities,
        "load": load.share(),
        "routing": {
            "local_requests": counters.local.get(),
            "forwarded_requests": counters.forwarded.get(),
            "tunnel_requests": counters.forwarded_by_tunnel.get(),
            "inbound_requests": counters.inbound.get(),
            "failed_requests": counters.failed.get(),
            "cancelled_requests": counters.cancelled.get(),
            "retries": counters.retries.get(),
            "interrupted_answers": counters.interrupted_answers.get(),
            "in_flight": counters.in_flight.get(),
            "cache_hits": directory.cache_hits,
            "cache_misses": directory.cache_misses,
            "dht_lookups": directory.dht_lookups,
            "http_lookups": directory.http_lookups,
            "cache_size": directory.cache_size,
            "cache_hit_rate": hit_rate,
        },
    })
}

fn names(services: &[ServiceName]) -> Vec<&str> {
    services.iter().map(ServiceName::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Machine;

    #[test]
    fn health_has_the_documented_shape() {
        assert_eq!(
            health_json(&report(None)),
            json!({"status": "healthy", "worker_id": "worker-1", "vpn_ip": null, "services": ["ocr"],
                   "dht_enabled": true, "uptime": 61})
        );
        assert_eq!(health_json(&report(Some("10.42.0.7")))["vpn_ip"], "10.42.0.7");
    }

    #[test]
    fn stats_have_the_documented_fields_and_the_hit_rate_is_hits_over_lookups() {
        let counters = Counters::default();
        counters.local.inc();
        let directory = DirectoryCounters { cache_hits: 9, cache_misses: 1, dht_lookups: 1, ..Default::default() };
        let capabilities = Capabilities::of(Machine::default(), None);

        let stats = stats_json(&report(None), &capabilities, Load::from_share(0.25), &counters, &directory);

        assert_eq!(stats["load"], 0.25);
        assert_eq!(stats["routing"]["local_requests"], 1);
        assert_eq!(stats["routing"]["cache_hit_rate"], 0.9);
        for field in ["forwarded_requests", "failed_requests", "dht_lookups", "http_lookups", "cache_size"] {
            assert!(stats["routing"][field].is_u64(), "{field}");
        }
    }

    fn report(ip: Option<&str>) -> HealthReport {
        HealthReport {
            status: Status::Healthy,
            worker_id: "worker-1".parse().unwrap(),
            vpn_ip: ip.map(|ip| OverlayIp(ip.parse().unwrap())),
            services: Arc::from(["ocr".parse().unwrap()]),
            dht_enabled: true,
            uptime: Duration::from_millis(61_500),
        }
    }
}
