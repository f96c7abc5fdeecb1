//! Spans, exported to an OpenTelemetry collector: OTLP over HTTP, in batches, by a task of its own. A collector that does
//! not take them costs spans, never a request.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use hyper_rustls::ConfigBuilderExt;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::seldom::Seldom;
use crate::{
    clock,
    router::{Side, Span, Value},
    task::CancellationToken,
    words,
};

/// Spans that wait to be sent. With the batch under way that is all the memory a dead collector costs.
pub const QUEUE_SPANS: usize = 4096;
/// Spans in one request.
const MAX_BATCH: usize = 512;
/// How long a span waits for others at most.
const EVERY: Duration = Duration::from_secs(2);
/// How long a collector may take for a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// And for the last ones, when the agent stops.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Where collectors take spans, below the endpoint.
const PATH: &str = "/v1/traces";

/// What the operator says about tracing.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector's base URL, "http://127.0.0.1:4318".
    pub endpoint: String,
    /// What this service is called in traces.
    pub service_name: String,
    /// This node.
    pub instance: String,
}

/// What sends spans to a collector.
pub struct Exporter {
    otlp: SpanExporter,
    scope: InstrumentationScope,
    /// For people.
    endpoint: String,
    seldom: Seldom,
}

impl Exporter {
    /// Nothing is sent yet. `OTEL_EXPORTER_OTLP_HEADERS` is heeded: what a collector wants as a key is no configuration.
    pub fn new(settings: &Settings) -> anyhow::Result<Exporter> {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_webpki_roots()
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(EXPORT_TIMEOUT)
            .user_agent(concat!("wiremesh/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let base = settings.endpoint.trim_end_matches('/');
        let endpoint = if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") };
        let mut otlp = SpanExporter::builder()
            .with_http()
            .with_http_client(http)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let resource = Resource::builder_empty()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.instance.id", settings.instance.clone()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        otlp.set_resource(&resource);
        let scope = InstrumentationScope::builder("wiremesh").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Exporter { otlp, scope, endpoint, seldom: Seldom::default() })
    }

    /// Sends `spans` until `stop`, and once more what is in the queue then. What is not taken counts as `dropped`.
    pub async fn run(
        mut self,
        mut spans: mpsc::Receiver<Span>,
        dropped: Counter,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut batch = Vec::new();
        while !stop.is_cancelled() {
            tokio::select! {
                taken = spans.recv_many(&mut batch, MAX_BATCH) => if taken == 0 { return Ok(()) },
                () = stop.cancelled() => break,
            }
            let more = async {
                while let room @ 1.. = MAX_BATCH - batch.len()
                    && spans.recv_many(&mut batch, room).await > 0
                {}
            };
            tokio::select! {
                _ = tokio::time::timeout(EVERY, more) => {}
                () = stop.cancelled() => break,
            }
            self.export(std::mem::take(&mut batch), &dropped, EXPORT_TIMEOUT).await;
        }
        spans.close();
        while spans.recv_many(&mut batch, QUEUE_SPANS).await > 0 {}
        if !batch.is_empty() {
            self.export(batch, &dropped, LAST_EXPORT_TIMEOUT).await;
        }
        Ok(())
    }

    async fn export(&mut self, batch: Vec<Span>, dropped: &Counter, within: Duration) {
        let count = batch.len() as u64;
        let batch = batch.into_iter().map(|span| data_of(span, &self.scope)).collect();
        let why = match tokio::time::timeout(within, self.otlp.export(batch)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => words::few(format_args!("{:#}", anyhow::Error::new(error))),
            Err(_) => "no answer in time".to_owned(),
        };
        dropped.inc_by(count);
        if self.seldom.is_due(clock::now()) {
            tracing::warn!(spans = count, collector = self.endpoint, why, "the collector did not take spans");
        }
    }
}

fn data_of(span: Span, scope: &InstrumentationScope) -> SpanData {
    let trace = TraceId::from_bytes(span.trace.0);
    let id = SpanId::from_bytes(span.id.0);
    let attribute = |(name, value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Count(count) => KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX)),
        Value::Millis(millis) => KeyValue::new(name, millis),
    };
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.0)),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.side {
            Side::Server => SpanKind::Server,
            Side::Client => SpanKind::Client,
        },
        name: span.name.into(),
        start_time: UNIX_EPOCH + span.began,
        end_time: UNIX_EPOCH + span.ended,
        attributes: span.attributes.into_iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match span.error {
            Some(why) => Status::error(why),
            None => Status::Unset,
        },
        instrumentation_scope: scope.clone(),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use axum::{Router, body::Bytes, http::StatusCode, routing::post};
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as Any,
    };
    use prost::Message;
    use tokio::net::TcpListener;

    use super::*;
    use crate::router;

    #[tokio::test]
    async fn a_collector_gets_the_spans_with_their_ids_times_and_attributes() {
        let (endpoint, mut received) = collector(StatusCode::OK).await;
        let (sender, spans) = mpsc::channel(8);
        let (stop, dropped) = (CancellationToken::new(), Counter::default());
        let exporter = Exporter::new(&settings(endpoint)).unwrap();
        let running = tokio::task::spawn(exporter.run(spans, dropped.clone(), stop.clone()));
        sender.send(span()).await.unwrap();

        let batch = received.recv().await.unwrap();
        stop.cancel();
        running.await.unwrap().unwrap();

        let [resource] = &batch.resource_spans[..] else { panic!("{batch:?}") };
        let named = &resource.resource.as_ref().unwrap().attributes;
        assert!(named.iter().any(|a| a.key == "service.name" && text(a.value.as_ref()) == Some("mesh-1")), "{named:?}");
        let [span] = &resource.scope_spans[0].spans[..] else { panic!("{resource:?}") };
        assert_eq!((&span.trace_id[..], &span.span_id[..]), (&[7; 16][..], &[8; 8][..]));
        assert_eq!((&span.parent_span_id[..], span.name.as_str()), (&[9; 8][..], "POST ocr"));
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 2_000_000);
        assert_eq!(text(span.attributes[0].value.as_ref()), Some("bob"));
        assert_eq!(span.status.as_ref().unwrap().message, "interrupted");
        assert_eq!(dropped.get(), 0);
    }

    #[tokio::test]
    async fn what_is_in_the_queue_is_sent_before_the_end() {
        let (endpoint, mut received) = collector(StatusCode::OK).await;
        let (sender, spans) = mpsc::channel(8);
        let stop = CancellationToken::new();
        sender.send(span()).await.unwrap();
        stop.cancel();

        Exporter::new(&settings(endpoint)).unwrap().run(spans, Counter::default(), stop).await.unwrap();

        assert_eq!(received.recv().await.unwrap().resource_spans[0].scope_spans[0].spans.len(), 1);
    }

    #[tokio::test]
    async fn spans_that_a_collector_does_not_take_are_counted_and_end_nothing() {
        let (refusing, _received) = collector(StatusCode::BAD_REQUEST).await;
        for endpoint in [refusing, "http://127.0.0.1:1".to_owned()] {
            let (sender, spans) = mpsc::channel(8);
            let (stop, dropped) = (CancellationToken::new(), Counter::default());
            sender.send(span()).await.unwrap();
            stop.cancel();

            Exporter::new(&settings(endpoint)).unwrap().run(spans, dropped.clone(), stop).await.unwrap();

            assert_eq!(dropped.get(), 1);
        }
    }

    /// A collector that remembers what it is sent.
    async fn collector(status: StatusCode) -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
        let (seen, received) = mpsc::unbounded_channel();
        let take = async move |body: Bytes| {
            let _ = seen.send(ExportTraceServiceRequest::decode(body).unwrap());
            status
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route(PATH, post(take));
        tokio::task::spawn(async move { axum::serve(listener, app).await });
        (endpoint, received)
    }

    fn settings(endpoint: String) -> Settings {
        Settings { endpoint, service_name: "mesh-1".into(), instance: "alice".into() }
    }

    fn span() -> Span {
        let began = Duration::from_secs(1_700_000_000);
        Span {
            trace: router::TraceId([7; 16]),
            id: router::SpanId([8; 8]),
            parent: Some(router::SpanId([9; 8])),
            parent_is_remote: true,
            side: Side::Server,
            name: "POST ocr".into(),
            began,
            ended: began + Duration::from_millis(2),
            attributes: vec![("wiremesh.worker", Value::Text("bob".into()))],
            error: Some("interrupted".into()),
        }
    }

    fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> Option<&str> {
        match value?.value.as_ref()? {
            Any::StringValue(text) => Some(text),
            _ => None,
        }
    }
}
