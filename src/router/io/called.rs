//! Calls of other agents that are under way here, and what their callers are told of them.
//!
//! ```text
//! GET /calls/{call}         what it is doing; one that was never seen is refused from then on
//! GET /calls/{call}/taken   the same once it has left the line, or after a second; promises nothing
//! ```
//!
//! Who knows the id may ask. It is 128 random bits that the caller's agent made and that nobody gets to see but the
//! worker. Who asks counts only for how many promises it was made: there is room for so many of each member.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Extension, Json, Router as Pages, extract::Path, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::sync::Notify;
use wiremesh_certs::OverlayIp;

use super::lock;
use crate::{
    clock,
    router::{CallId, CallState, Calls, Refusal},
};

/// How long the answer to "is it taken" may wait for the call to leave the line.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// Which member asks a page, by its overlay address, whichever way it came. Put into the request by the door.
#[derive(Clone, Copy)]
pub(super) struct AskedBy(pub OverlayIp);

/// The calls of this node.
pub(super) struct CallLog {
    calls: Mutex<Calls>,
    /// Told whenever a call goes on.
    changed: Notify,
}

impl CallLog {
    /// Remembers nothing yet.
    pub fn new() -> Arc<CallLog> {
        Arc::new(CallLog { calls: Mutex::new(Calls::new(clock::now())), changed: Notify::new() })
    }

    /// A call arrived.
    pub fn begin(self: &Arc<CallLog>, call: CallId) -> Result<Called, Refusal> {
        lock(&self.calls).begin(call, clock::now()).map_err(|_| Refusal::Duplicate)?;
        Ok(Called { log: self.clone(), call, begun: false })
    }

    /// The questions that callers may ask.
    pub fn pages(self: &Arc<CallLog>) -> Pages {
        let (asked, taken) = (self.clone(), self.clone());
        Pages::new()
            .route(
                "/calls/{call}",
                get(async move |Path(call): Path<String>, Extension(AskedBy(member)): Extension<AskedBy>| {
                    asked.answer(&call, member)
                }),
            )
            .route("/calls/{call}/taken", get(async move |Path(call): Path<String>| taken.answer_taken(&call).await))
    }

    fn answer(&self, call: &str, member: OverlayIp) -> Result<Json<Value>, StatusCode> {
        let call = call.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
        Ok(told(call, lock(&self.calls).ask(call, member, clock::now())))
    }

    async fn answer_taken(&self, call: &str) -> Result<Json<Value>, StatusCode> {
        let call = call.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
        let leaves_the_line = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                // From here on no change is missed.
                changed.as_mut().enable();
                if !waits(lock(&self.calls).look(call, clock::now()).0) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(TAKEN_WITHIN, leaves_the_line).await;
        Ok(told(call, lock(&self.calls).look(call, clock::now())))
    }
}

/// One that comes in the same breath as the question may be handled after it: "never seen" may change too.
fn waits(state: CallState) -> bool {
    match state {
        CallState::NeverSeen | CallState::Queued | CallState::Loading => true,
        CallState::Running | CallState::Done | CallState::Refused => false,
    }
}

fn told(call: CallId, (state, since): (CallState, Duration)) -> Json<Value> {
    let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Json(json!({ "call": call.to_string(), "state": state.as_str(), "since_ms": since_ms }))
}

/// A call under way; it ends when this is dropped.
pub(super) struct Called {
    log: Arc<CallLog>,
    call: CallId,
    begun: bool,
}

impl Called {
    /// It is given to what executes it.
    pub fn on_running(&mut self) {
        self.begun = true;
        self.on_state(CallState::Running);
    }

    /// It waits in line; or, with the line, for what executes it to start.
    pub fn on_waiting(&mut self, loading: bool) {
        self.on_state(if loading { CallState::Loading } else { CallState::Queued });
    }

    /// It was not: what executes it took nothing of it.
    pub fn on_not_taken(&mut self) {
        self.begun = false;
    }

    fn on_state(&self, state: CallState) {
        lock(&self.log.calls).on_state(self.call, state, clock::now());
        self.log.changed.notify_waiters();
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        self.on_state(if self.begun { CallState::Done } else { CallState::Refused });
    }
}
