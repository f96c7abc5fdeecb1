//! Who is told how requests end, as the operator wishes: the access log, a collector of spans, or nobody.

use anyhow::Context;
use tokio::sync::mpsc;
use wiremesh_certs::NodeName;

use crate::{
    cli::failure::Failure,
    config::Config,
    router::{Counters, Line, Span, io::Audience},
    task::Tasks,
    telemetry::{
        access_log::{self, AccessLog},
        spans::{self, Exporter},
    },
};

/// What the router speaks to, before it is there.
#[derive(Default)]
pub struct Telling {
    lines: Option<(AccessLog, mpsc::Receiver<Line>)>,
    spans: Option<(Exporter, mpsc::Receiver<Span>)>,
}

impl Telling {
    /// Opens what was asked for, and tells what cannot be opened.
    pub async fn open(config: &Config, name: &NodeName) -> Result<(Audience, Telling), Failure> {
        let mut audience = Audience { sample: config.telemetry.sample, ..Audience::default() };
        let mut telling = Telling::default();
        if let Some(to) = &config.api.access_log {
            let log = AccessLog::open(to).await.map_err(Failure::usage)?;
            let (sender, lines) = mpsc::channel(access_log::QUEUE_LINES);
            audience.lines = Some(sender);
            telling.lines = Some((log, lines));
        }
        if let Some(endpoint) = &config.telemetry.otlp_endpoint {
            let settings = spans::Settings {
                endpoint: endpoint.clone(),
                service_name: config.telemetry.service_name.clone(),
                instance: name.as_str().to_owned(),
            };
            let exporter = Exporter::new(&settings).context("preparing to send spans")?;
            let (sender, spans) = mpsc::channel(spans::QUEUE_SPANS);
            audience.spans = Some(sender);
            telling.spans = Some((exporter, spans));
        }
        Ok((audience, telling))
    }

    /// Starts to listen. The tasks are to be stopped after the last request has ended.
    pub fn start(self, counters: &Counters, tasks: &Tasks) {
        if let Some((log, lines)) = self.lines {
            let dropped = counters.dropped_lines.clone();
            tasks.spawn("access log", |stop| log.run(lines, dropped, stop));
        }
        if let Some((exporter, spans)) = self.spans {
            let dropped = counters.dropped_spans.clone();
            tasks.spawn("spans", |stop| exporter.run(spans, dropped, stop));
        }
    }
}
