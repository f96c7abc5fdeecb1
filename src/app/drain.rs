//! Draining: nobody is sent to this node any more, and what was begun here is finished.
//!
//! By SIGTERM the agent ends afterwards. By `POST /drain` on its socket it goes on: its clients are answered by others, it
//! stays in the mesh, and whoever asked looks at `in_flight` until nothing is left.

use std::sync::{Arc, atomic::Ordering};

use axum::{Json, Router, extract::State, routing::get};
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

    fn draining(&self) -> Value {
        json!({ "draining": self.router.is_draining(), "in_flight": self.router.counters().in_flight.get() })
    }
}

/// `POST /drain` begins, `GET /drain` tells how far it is.
pub fn pages(view: Arc<View>) -> Router {
    let begin = async |State(view): State<Arc<View>>| {
        tracing::info!(why = "asked to", "draining");
        view.drain().await;
        Json(view.draining())
    };
    Router::new()
        .route("/drain", get(async |State(view): State<Arc<View>>| Json(view.draining())).post(begin))
        .with_state(view)
}
