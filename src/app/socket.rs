//! The agent's Unix socket, mode 0600: the local API, and what `wiremesh status`, `peers`, `services` and `ping` ask.

use std::{path::Path, sync::Arc};

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
/// Connections the kernel holds until they are accepted.
const WAITING_CONNECTIONS: i32 = 128;

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
    private_listener(&path).with_context(|| format!("making {}", path.display()))
}

/// A socket that is its owner's alone from its first moment: Linux takes the mode of the file from the unbound socket's.
fn private_listener(path: &Path) -> anyhow::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(WAITING_CONNECTIONS)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())?)
}

/// The views, for beside the local API.
pub fn pages(view: Arc<View>) -> Router {
    Router::new()
        .route("/status", get(async |State(view): State<Arc<View>>| Json(view.status().await)))
        .route("/peers", get(async |State(view): State<Arc<View>>| Json(view.peers().await)))
        .route("/services", get(async |State(view): State<Arc<View>>| Json(view.services().await)))
        .route("/ping/{to}", post(ping))
        .route("/renew", post(renew))
        .with_state(view)
}

async fn ping(State(view): State<Arc<View>>, UrlPath(to): UrlPath<String>) -> Response {
    let Some(address) = view.address_of(&to).await else {
        let message = format!("nobody here is called {to:?}, and it is no overlay address");
        return refusal(StatusCode::NOT_FOUND, &message, "wiremesh peers lists who was met; any node's name works");
    };
    if view.is_ours(address) {
        let hint = "name another node: wiremesh peers lists who was met";
        return refusal(StatusCode::NOT_FOUND, &format!("{to} is this node itself"), hint);
    }
    match view.ping(address).await {
        Ok(pong) => Json(pong).into_response(),
        Err(why) => {
            refusal(StatusCode::BAD_GATEWAY, &format!("{to} did not answer: {why}"), "wiremesh peers shows its path")
        }
    }
}

async fn renew(State(view): State<Arc<View>>) -> Response {
    match view.membership.renew().await {
        Ok(not_after) => Json(json!({ "not_after": not_after.to_string() })).into_response(),
        Err(failed) => {
            let hint = failed.hint.as_deref().unwrap_or("wiremesh status shows how it stands with the coordinator");
            refusal(StatusCode::BAD_GATEWAY, &format!("the certificate was not renewed: {failed}"), hint)
        }
    }
}

fn refusal(status: StatusCode, message: &str, hint: &str) -> Response {
    let body: Json<Value> = Json(json!({ "error": { "message": message, "hint": hint } }));
    (status, body).into_response()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_a_dead_agents_is_replaced() {
        let folder = tempfile::tempdir().unwrap();

        drop(bind(folder.path()).await.unwrap());
        let listener = bind(folder.path()).await.unwrap();
        let again = bind(folder.path()).await;

        let mode = std::fs::metadata(folder.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(again.is_err());
        drop(listener);
    }
}
