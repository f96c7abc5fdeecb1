//! Asks each upstream every two seconds whether it is there.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, uri::PathAndQuery};
use http_body_util::Empty;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio_util::sync::CancellationToken;

use super::{Service, Shared};
use crate::{clock, services::Probe};

/// How long an upstream may take to come to others' notice, or to go from it.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// An upstream that takes longer is busy or wedged.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Sends probes over connections of its own, so that a probe never waits behind work.
#[derive(Clone)]
pub(super) struct Prober(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Prober {
    pub(super) fn new() -> anyhow::Result<Prober> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_webpki_roots()
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(PROBE_EVERY * 2).pool_max_idle_per_host(1);
        Ok(Prober(client.build(connector.build())))
    }

    async fn probe(&self, service: &Service) -> Probe {
        let path = PathAndQuery::try_from(service.config.health.as_str());
        let Some(uri) = path.ok().and_then(|path| service.config.upstream.uri(&path)) else { return Probe::Silent };
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        // The answer's body is dropped unread: a health page that streams for ever costs one connection, not a hang.
        match tokio::time::timeout(PROBE_TIMEOUT, self.0.request(request)).await {
            Ok(Ok(answer)) if answer.status().is_server_error() => Probe::Failing(answer.status().as_u16()),
            Ok(Ok(_)) => Probe::Answered,
            Ok(Err(error)) if error.is_connect() => Probe::Refused,
            Ok(Err(_)) | Err(_) => Probe::Silent,
        }
    }
}

pub(super) async fn run(
    service: Arc<Service>,
    prober: Prober,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut due = clock::beats(PROBE_EVERY);
    loop {
        let probe = prober.probe(&service).await;
        tracing::trace!(service = %service.config.name, ?probe, "probed");
        shared.on_probe(&service, probe);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = due.tick() => {}
        }
    }
}
