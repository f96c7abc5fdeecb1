//! Draining: nobody is sent to this node any more, and what was begun here is finished.
//!
//! By SIGTERM the agent ends afterwards. By `POST /drain` on its socket it goes on: its clients are answered by others, it
//! stays in the mesh, and whoever asked looks at `in_flight` until nothing is left. `DELETE /drain` calls it off.

use std::sync::{Arc, atomic::Ordering};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};

use super::view::View;

impl View {
    /// Begins to drain. Returns when others have been told; what is in flight goes on.
    pub async fn drain(&self) {
        self.recorder.leaving.store(true, Ordering::Relaxed);
        self.router.drain();
        self.membership.announce();
        if let Some(record) = self.recorder.record()
            && let Err(why) = self.directory.withdraw(&record).await
        {
            tracing::debug!(%why, "not withdrawn, our record ends by itself");
        }
    }

    /// Calls a drain off: what is up is offered again. False if the agent ends anyway.
    pub fn stay(&self) -> bool {
        if self.ending.load(Ordering::Relaxed) {
            return false;
        }
        self.recorder.leaving.store(false, Ordering::Relaxed);
        // That something is offered again is a change, by which a record of it is published.
        self.router.stay();
        self.membership.announce();
        true
    }

    fn draining(&self) -> Value {
        json!({ "draining": self.router.is_draining(), "in_flight": self.router.counters().in_flight.get() })
    }
}

/// `POST /drain` begins, `GET /drain` tells how far it is, `DELETE /drain` calls it off.
pub fn pages(view: Arc<View>) -> Router {
    let begin = async |State(view): State<Arc<View>>| {
        tracing::info!(why = "asked to", "draining");
        view.drain().await;
        Json(view.draining())
    };
    let cancel = async |State(view): State<Arc<View>>| match view.stay() {
        true => {
            tracing::info!(why = "asked to", "draining no more");
            Ok(Json(view.draining()))
        }
        false => {
            let error = json!({ "message": "this agent is stopping" });
            Err((StatusCode::CONFLICT, Json(json!({ "error": error }))))
        }
    };
    let look = async |State(view): State<Arc<View>>| Json(view.draining());
    Router::new().route("/drain", get(look).post(begin).delete(cancel)).with_state(view)
}
