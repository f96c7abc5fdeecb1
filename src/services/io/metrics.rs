//! The services' numbers in Prometheus' words, read when they are asked for.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Registry,
};

use super::Handle;

#[derive(Debug)]
struct Services(Handle);

/// Shows requests running and waiting by service.
pub(super) fn register(handle: &Handle, registry: &mut Registry) {
    registry.register_collector(Box::new(Services(handle.clone())));
}

impl Collector for Services {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let occupancy = self.0.occupancy();
        for (name, help, pick) in [
            ("wiremesh_service_running", "Requests at the upstream", 0),
            ("wiremesh_service_waiting", "Requests in line", 1),
        ] {
            let gauge = ConstGauge::new(0_i64);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (service, running, waiting) in &occupancy {
                let value = [running, waiting][pick];
                let labels = [("service", service.as_str())];
                ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Capabilities, Machine, ServiceConfig};

    #[test]
    fn every_service_has_its_line() {
        let upstream = "http://127.0.0.1:9".parse().unwrap();
        let config = ServiceConfig::new("ocr".parse().unwrap(), upstream);
        let handle = Handle::new(vec![config], Capabilities::of(Machine::default(), None));
        let ocr = "ocr".parse().unwrap();
        handle.set_up(&ocr);
        let _place = handle.reserve(&ocr).unwrap();
        let mut registry = Registry::default();
        handle.register(&mut registry);

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();

        for line in ["wiremesh_service_running{service=\"ocr\"} 1", "wiremesh_service_waiting{service=\"ocr\"} 0"] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
