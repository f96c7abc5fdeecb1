//! Asks upstreams about themselves, over connections of its own: a question never waits behind work.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

/// Longer than between two questions, so that they share a connection.
const IDLE_FOR: Duration = Duration::from_secs(5);
/// An answer takes no longer.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// A longer answer is not read to its end, and counts as none. vLLM's metrics with many histograms have 200 kB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// By which an upstream's log tells our questions from work.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("wiremesh/", env!("CARGO_PKG_VERSION"), " (probe)"));

/// Clones share their connections.
#[derive(Clone)]
pub(super) struct Client(legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

/// What an upstream said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Said {
    /// This.
    Text(String),
    /// That it has no such thing, or something too large to be it.
    Nothing,
    /// Nothing now: it is starting, or busy.
    NotNow,
}

impl Client {
    pub fn new() -> anyhow::Result<Client> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_webpki_roots()
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let mut client = legacy::Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_FOR).pool_max_idle_per_host(1);
        Ok(Client(client.build(connector.build())))
    }

    /// The head of an answer. `None` if it does not come in time.
    pub async fn head(&self, uri: Uri) -> Option<Result<Response<Incoming>, legacy::Error>> {
        tokio::time::timeout(ANSWER_WITHIN, self.0.request(question(uri))).await.ok()
    }

    /// A whole answer.
    pub async fn ask(&self, uri: Uri) -> Said {
        let asking = async {
            let Ok(answer) = self.0.request(question(uri)).await else { return Said::NotNow };
            match answer.status() {
                status if status.is_success() => {}
                status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => return Said::NotNow,
                _ => return Said::Nothing,
            }
            match Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await {
                Ok(body) => String::from_utf8(body.to_bytes().into()).map_or(Said::Nothing, Said::Text),
                Err(_) => Said::Nothing,
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, asking).await.unwrap_or(Said::NotNow)
    }
}

fn question(uri: Uri) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
    request
}
