//! Changing this node's keys, as asked for over the socket: `POST /keys/rotate` returns when the next keys are certified.
//! What follows is another start, see [`super::run`].

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;

use super::view::View;

/// What `wiremesh keys` asks.
pub fn pages(view: Arc<View>) -> Router {
    Router::new().route("/keys/rotate", post(rotate)).with_state(view)
}

async fn rotate(State(view): State<Arc<View>>) -> Response {
    tracing::info!(why = "asked to", "changing keys");
    match view.membership.rotate_keys().await {
        Ok(keys) => Json(json!({ "present": keys.present.to_hex(), "next": keys.next.to_hex() })).into_response(),
        Err(why) => {
            let error = json!({ "message": why.to_string(), "hint": why.hint() });
            (StatusCode::BAD_GATEWAY, Json(json!({ "error": error }))).into_response()
        }
    }
}
