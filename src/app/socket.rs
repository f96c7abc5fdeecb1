//! The agent's Unix socket, mode 0600: the local API, and what `wiremesh status`, `peers`, `services` and `ping` ask.

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

/// The views, for beside the local API.
pub fn pages(view: Arc<View>) -> Router {
    Router::new()
        .route("/status", get(async |State(view): State<Arc<View>>| Json(view.status().await)))
        .route("/peers", get(async |State(view): State<Arc<View>>| Json(view.peers().await)))
        .route("/services", get(async |State(view): State<Arc<View>>| Json(view.services().await)))
        .route("/ping/{to}", post(ping))
        .with_state(view)
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
