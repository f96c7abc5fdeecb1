//! Talking to a running agent or coordinator of this machine over its Unix socket: HTTP/1.1, JSON.

use std::{io, path::Path, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::failure::Failure;
use crate::{app, membership};

/// Answers are views for people: none is longer.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// The other side is a process of this machine; a ping of an unreachable node takes the longest.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks with GET.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    ask(socket, Method::GET, path, Bytes::new()).await
}

/// Asks with POST and a JSON body.
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, Failure> {
    ask(socket, Method::POST, path, serde_json::to_vec(body)?.into()).await
}

/// Asks with DELETE.
pub async fn delete<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    ask(socket, Method::DELETE, path, Bytes::new()).await
}

/// How the answer to a GET begins, whatever it says.
pub async fn status_of(socket: &Path, path: &str) -> Result<StatusCode, Failure> {
    let asked = tokio::time::timeout(TIMEOUT, exchange(socket, Method::GET, path, Bytes::new())).await;
    Ok(asked.with_context(|| no_answer(socket))??.0)
}

/// A connection, or what to do to get one.
pub async fn connect(socket: &Path) -> Result<UnixStream, Failure> {
    UnixStream::connect(socket).await.map_err(|error| cannot_connect(socket, error))
}

async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
    let (status, answer) = tokio::time::timeout(TIMEOUT, exchange(socket, method, path, body))
        .await
        .with_context(|| no_answer(socket))??;
    if status.is_success() {
        return Ok(serde_json::from_slice(&answer).context("the answer is not what this version expects")?);
    }
    let said: Option<serde_json::Value> = serde_json::from_slice(&answer).ok();
    let error = said.as_ref().map(|said| &said["error"]);
    let message = error.and_then(|error| error["message"].as_str()).unwrap_or("no reason given").to_owned();
    let failure = match status {
        StatusCode::NOT_FOUND => Failure::not_so(anyhow::anyhow!(message)),
        _ => Failure::from(anyhow::anyhow!(message)),
    };
    Err(match error.and_then(|error| error["hint"].as_str()) {
        Some(hint) => failure.hint(hint),
        None => failure,
    })
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Failure> {
    let stream = connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(body))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(|error| anyhow::anyhow!(error))?.to_bytes()))
    };
    // The connection must be driven while the exchange goes on; it ends with it.
    tokio::select! {
        exchanged = exchange => exchanged,
        Err(error) = connection => Err(error.into()),
    }
}

/// Whether an agent has taken the state directory in which this would be its socket.
fn is_starting(socket: &Path) -> bool {
    let lock = socket.parent().map(|folder| folder.join(membership::io::LOCK));
    let lock = lock.and_then(|lock| std::fs::File::open(lock).ok());
    // If this takes the lock, it is given back at once, with the file.
    lock.is_some_and(|lock| matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

fn no_answer(socket: &Path) -> String {
    format!("{} did not answer within {} s", socket.display(), TIMEOUT.as_secs())
}

fn cannot_connect(socket: &Path, error: io::Error) -> Failure {
    let is_agents = socket.file_name().is_some_and(|name| name == app::SOCKET);
    let hint = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if is_agents && is_starting(socket) => {
            "an agent runs there and has not joined the mesh yet, or is just starting: its log says what it waits for"
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if is_agents => {
            "is it running on this machine? name its configuration with --config, or its folder with --state-dir"
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "is it running on this machine? name its configuration with --config, or its folder with --data-dir"
        }
        io::ErrorKind::PermissionDenied => "its socket is its owner's alone: run this as the same user, or as root",
        _ => "the socket is in the state directory of the agent, the data directory of the coordinator",
    };
    let what = format!("could not connect to {}", socket.display());
    Failure::from(anyhow::Error::new(error).context(what)).hint(hint)
}
