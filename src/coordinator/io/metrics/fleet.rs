//! The fleet's certificates and authorities, for Prometheus.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use wiremesh_certs::UnixTime;

use crate::coordinator::{registry, rotation::Authorities};

const HOUR: u64 = 3600;
/// How much is left of a certificate, at most.
const LEFT: &[(&str, u64)] =
    &[("0s", 0), ("1h", HOUR), ("6h", 6 * HOUR), ("1d", 24 * HOUR), ("7d", 168 * HOUR), ("30d", 720 * HOUR)];

/// Gauges, set when they are read.
#[derive(Default)]
pub struct FleetMetrics {
    ending: Family<LeftLabels, Gauge>,
    certificates: Gauge,
    soonest: Gauge,
    enforcing: Family<AdoptionLabels, Gauge>,
    authorities: Family<StandingLabels, Gauge>,
    authority_ends: Gauge,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LeftLabels {
    left_at_most: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AdoptionLabels {
    list: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StandingLabels {
    standing: &'static str,
}

impl FleetMetrics {
    /// Shows them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Members whose certificate has at most so much time left; each counts in all that apply";
        registry.register("certificates_ending", help, self.ending.clone());
        registry.register("certificates", "Members whose certificate was shown", self.certificates.clone());
        let help = "Unix time at which the first member's certificate ends; 0: none was shown";
        registry.register("certificate_ends_first", help, self.soonest.clone());
        let help = "Members heard lately, by whether they enforce the list in force";
        registry.register("members_by_list", help, self.enforcing.clone());
        registry.register("authorities", "Authorities by what they do", self.authorities.clone());
        let help = "Unix time at which the authority that issues ends";
        registry.register("authority_ends", help, self.authority_ends.clone());
    }

    /// As it is now.
    pub fn set(&self, registry: &registry::Registry, authorities: &Authorities, number: u64, now: UnixTime) {
        let ends: Vec<UnixTime> = registry.seen(now).filter_map(|seen| Some(seen.shown?.ends_at)).collect();
        for (label, secs) in LEFT {
            let limit = now.plus(Duration::from_secs(*secs));
            let ending = ends.iter().filter(|ends_at| **ends_at <= limit).count();
            self.ending.get_or_create(&LeftLabels { left_at_most: label }).set(gauge(ending));
        }
        self.certificates.set(gauge(ends.len()));
        self.soonest.set(ends.iter().min().map_or(0, |ends_at| seconds(*ends_at)));
        let adoption = registry.adoption(number, now);
        for (list, count) in [("enforced", adoption.enforced), ("behind", adoption.behind.len())] {
            self.enforcing.get_or_create(&AdoptionLabels { list }).set(gauge(count));
        }
        self.authorities.clear();
        for known in authorities.all() {
            self.authorities.get_or_create(&StandingLabels { standing: known.standing.word() }).inc();
        }
        self.authority_ends.set(seconds(authorities.issuing().certificate.not_after()));
    }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}
