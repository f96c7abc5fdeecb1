//! HTTP as a program on a node would speak it.

use std::{sync::Once, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use reqwest::{Client, Method, header::HeaderMap};
use serde::de::DeserializeOwned;
use wiremesh::{
    clock,
    sandbox::{Namespace, Node},
};

/// A whole answer and how long it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// From the request to the last byte.
    pub took: Duration,
}

impl Answer {
    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("{} is not that JSON", self.text()))
    }

    /// Worker, path and source, as the headers say: `worker-1 overlay dht`.
    pub fn route(&self) -> String {
        ["x-wiremesh-worker", "x-wiremesh-path", "x-wiremesh-source"].map(|name| self.header(name)).join(" ")
    }

    /// An error that shows the answer, unless it is a 200.
    pub fn expect_ok(self) -> anyhow::Result<Answer> {
        anyhow::ensure!(self.status == 200, "{} {}", self.status, self.text());
        Ok(self)
    }
}

/// A client for use inside [`Node::block_on`]: its connections belong to the node it is used on.
pub fn client() -> anyhow::Result<Client> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    // Whom a coordinator's certificate must be shown to be is for the agents to check; the lab knows whom it asks.
    let client = Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
    Ok(client.connect_timeout(Duration::from_secs(5)).build()?)
}

/// One request from `node`, on a connection of its own.
pub fn fetch(
    node: &Node,
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> anyhow::Result<Answer> {
    fetch_in(node.namespace(), method, url, headers, body, limit)
}

/// The same from any namespace.
pub fn fetch_in(
    namespace: &Namespace,
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> anyhow::Result<Answer> {
    namespace.block_on(|| async {
        let started = clock::now();
        let mut request = client()?.request(method, url).timeout(limit).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?;
        Ok(Answer { status, headers, body, took: clock::now() - started })
    })
}
