//! The agent's parts as Prometheus sees them: read at the moment of the scrape, kept nowhere.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use wiremesh_certs::{Load, UnixTime};

use crate::{clock, directory, overlay};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Direction {
    direction: &'static str,
}

/// Certificate and load.
pub fn register_agent(registry: &mut Registry, not_after: UnixTime, load: Load) {
    let agent = registry.sub_registry_with_prefix("wiremesh_agent");
    let left = not_after.saturating_since(clock::unix()).as_secs_f64();
    gauge(agent, "certificate_ends_in_seconds", "Until our certificate ends", left);
    gauge(agent, "load", "How busy this node is, 0 to 1", load.share());
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
