//! One HTTP request from a node to itself, as a client on that machine would make it.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{clock, sandbox::Node};

/// Every answer of the demo is a few lines of JSON.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(30);

/// A whole answer.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// From connecting to the last byte.
    pub took: Duration,
}

impl Answer {
    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// GET from a port of the node's loopback.
pub fn get(node: &Node, port: u16, path: &str) -> anyhow::Result<Answer> {
    exchange(node, port, Method::GET, path, Vec::new())
}

/// POST to a port of the node's loopback.
pub fn post(node: &Node, port: u16, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
    exchange(node, port, Method::POST, path, body)
}

fn exchange(node: &Node, port: u16, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
    node.block_on(|| async {
        let exchange = async {
            let started = clock::now();
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", format!("127.0.0.1:{port}"))
                .body(Full::new(Bytes::from(body)))?;
            let answer = async {
                let response = sender.send_request(request).await?;
                let (status, headers) = (response.status().as_u16(), response.headers().clone());
                let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
                let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
                Ok(Answer { status, headers, body, took: clock::now() - started })
            };
            tokio::select! {
                biased;
                answer = answer => answer,
                Err(error) = connection => Err(error.into()),
            }
        };
        tokio::time::timeout(LIMIT, exchange).await.with_context(|| format!("no answer within {LIMIT:?}"))?
    })
}
