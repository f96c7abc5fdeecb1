//! The agent's Unix socket: what `wiremesh status`, `peers`, `services` and `ping` ask. Mode 0600; HTTP and JSON.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::view::View;
use crate::task::CancellationToken;

/// The socket's name in the state directory.
pub const SOCKET: &str = "agent.sock";

/// Makes the socket. One that a dead agent left behind is replaced; one that still answers is not.
pub async fn bind(state_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    if tokio::net::UnixStream::connect(&path).await.is_ok() {
        anyhow::bail!("another agent is running with the state directory {}", state_dir.display());
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("making {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("making {} private", path.display()))?;
    Ok(listener)
}

/// Answers until `stop`.
pub async fn serve(listener: UnixListener, view: Arc<View>, stop: CancellationToken) -> anyhow::Result<()> {
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let router = Router::new()
        .route("/status", get(async |State(view): State<Arc<View>>| Json(view.status().await)))
        .route("/peers", get(async |State(view): State<Arc<View>>| Json(view.peers().await)))
        .route("/services", get(async |State(view): State<Arc<View>>| Json(view.services().await)))
        .route("/ping/{to}", post(ping))
        .with_state(view);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

async fn ping(State(view): State<Arc<View>>, UrlPath(to): UrlPath<String>) -> Response {
    let Some(address) = view.address_of(&to).await else {
        let message = format!("nobody here is called {to:?}, and it is no overlay address");
        return refusal(StatusCode::NOT_FOUND, &message, "wiremesh peers lists who was met; any node's name works");
    };
    match view.ping(address).await {
        Ok(pong) => Json(pong).into_response(),
        Err(why) => {
            refusal(StatusCode::BAD_GATEWAY, &format!("{to} did not answer: {why}"), "wiremesh peers shows its path")
        }
    }
}

fn refusal(status: StatusCode, message: &str, hint: &str) -> Response {
    let body: Json<Value> = Json(json!({ "error": { "message": message, "hint": hint } }));
    (status, body).into_response()
}
