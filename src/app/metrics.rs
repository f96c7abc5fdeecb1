//! The agent's parts as Prometheus sees them: read at the moment of the scrape, kept nowhere.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use wiremesh_certs::{Load, UnixTime};

use crate::{clock, directory, membership, overlay};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Direction {
    direction: &'static str,
}

/// Load.
pub fn register_agent(registry: &mut Registry, load: Load) {
    let agent = registry.sub_registry_with_prefix("wiremesh_agent");
    gauge(agent, "load", "How busy this node is, 0 to 1", load.share());
}

/// What is to be told of our certificate and of the list.
pub struct Lease {
    /// When our certificate ends.
    pub ends: UnixTime,
    /// When its authority ends; `None`: that is believed no more.
    pub authority_ends: Option<UnixTime>,
    /// How it stands with renewals and with our clock.
    pub membership: membership::io::Status,
    /// The number of the list that is enforced.
    pub enforced: u64,
}

/// Certificate, list and clock: what an alert is made of before anything ends.
pub fn register_lease(registry: &mut Registry, lease: &Lease) {
    let agent = registry.sub_registry_with_prefix("wiremesh_agent");
    let left = lease.ends.saturating_since(clock::unix()).as_secs_f64();
    gauge(agent, "certificate_ends_in_seconds", "Until our certificate ends", left);
    let mut moment = |name: &str, help: &str, at: UnixTime| gauge(agent, name, help, at.0 as f64);
    moment("certificate_ends_timestamp_seconds", "When our certificate ends, in Unix time", lease.ends);
    let renew_at = lease.membership.renew_at;
    moment("certificate_renew_at_timestamp_seconds", "When our certificate is to be renewed, in Unix time", renew_at);
    if let Some(ends) = lease.authority_ends {
        moment("authority_ends_timestamp_seconds", "When the authority of our certificate ends, in Unix time", ends);
    }
    let failed = lease.membership.renewals_failed;
    counter(agent, "renewals_failed", "Renewals of our certificate that failed", failed);
    gauge(agent, "list_enforced", "The number of the list that this node enforces", lease.enforced as f64);
    if let Some(offset) = lease.membership.clock {
        let help = "How far our clock is ahead of the coordinator's";
        gauge(agent, "clock_offset_seconds", help, offset.seconds as f64);
    }
}

/// The directory's table and memory.
pub fn register_directory(registry: &mut Registry, status: &directory::Status) {
    let directory = registry.sub_registry_with_prefix("wiremesh_directory");
    gauge(directory, "connections", "Connections to other members", status.connections as f64);
    gauge(directory, "members", "Members in our part of the table", status.members as f64);
    gauge(directory, "records", "Members whose record is remembered", status.records as f64);
    gauge(directory, "stored_entries", "Entries stored here for others", status.stored as f64);
    gauge(directory, "stored_by", "Members that store our record", status.stored_by as f64);
    if let Some(millis) = status.average_lookup_ms {
        gauge(directory, "lookup_seconds", "Moving average of the time of a lookup", millis / 1000.0);
    }
    counter(directory, "cache_hits", "Questions answered from memory", status.counters.cache_hits);
    counter(directory, "cache_misses", "Questions that waited for a lookup", status.counters.cache_misses);
    counter(directory, "dht_lookups", "Questions to the table", status.counters.dht_lookups);
    counter(directory, "http_lookups", "Questions to the coordinator", status.counters.http_lookups);
    counter(directory, "refreshes", "Lookups behind an answer", status.counters.refreshes);
    let rejected = Family::<Reason, Counter>::default();
    for (reason, count) in &status.rejected {
        rejected.get_or_create(&Reason { reason }).inc_by(*count);
    }
    directory.register("rejected", "Records and writes refused", rejected);
}

/// The overlay's traffic and drops.
pub fn register_overlay(registry: &mut Registry, status: &overlay::Status) {
    let overlay = registry.sub_registry_with_prefix("wiremesh_overlay");
    gauge(overlay, "peers", "Peers", status.peers.len() as f64);
    gauge(overlay, "mtu", "The MTU of the TUN device", f64::from(status.mtu));
    let (packets, bytes) = (Family::<Direction, Counter>::default(), Family::<Direction, Counter>::default());
    let traffic = &status.traffic;
    for (direction, packet_count, byte_count) in
        [("in", traffic.packets_in, traffic.bytes_in), ("out", traffic.packets_out, traffic.bytes_out)]
    {
        packets.get_or_create(&Direction { direction }).inc_by(packet_count);
        bytes.get_or_create(&Direction { direction }).inc_by(byte_count);
    }
    overlay.register("packets", "Packets carried", packets);
    overlay.register("bytes", "Bytes carried, without WireGuard's overhead", bytes);
    let dropped = Family::<Reason, Counter>::default();
    for (reason, count) in &status.dropped {
        dropped.get_or_create(&Reason { reason }).inc_by(*count);
    }
    overlay.register("dropped", "Packets and datagrams dropped", dropped);
}

/// The text of a scrape.
pub fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to memory does not fail.
    let _ = text::encode(&mut out, registry);
    out
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::membership::skew::Offset;

    #[test]
    fn the_end_of_everything_is_told_before_it_comes() {
        let now = clock::unix();
        let lease = Lease {
            ends: now.plus(Duration::from_secs(3600)),
            authority_ends: Some(UnixTime(1_900_000_000)),
            membership: membership::io::Status {
                coordinator: None,
                last_contact: None,
                failures: 0,
                last_error: None,
                lease_ends_at: now,
                renew_at: UnixTime(1_850_000_000),
                renew_why: "half of the certificate's life is over",
                renewal_error: None,
                renewals_failed: 3,
                clock: Some(Offset { seconds: -3600 }),
                keys_made_at: UnixTime(0),
                rotate_at: None,
                is_revoked: false,
                copied: None,
                tunnel: None,
            },
            enforced: 7,
        };
        let mut registry = Registry::default();

        register_lease(&mut registry, &lease);

        let text = encode(&registry);
        for line in [
            "wiremesh_agent_authority_ends_timestamp_seconds 1900000000.0",
            "wiremesh_agent_certificate_renew_at_timestamp_seconds 1850000000.0",
            "wiremesh_agent_renewals_failed_total 3",
            "wiremesh_agent_list_enforced 7.0",
            "wiremesh_agent_clock_offset_seconds -3600.0",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(text.contains(&format!("certificate_ends_timestamp_seconds {}.0", lease.ends.0)), "{text}");
    }
}
