//! A request under way at another worker: what the fleet is told of it, from its dispatch to the end of its body.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use wiremesh_certs::{NodeId, ServiceName};

use super::lock;
use crate::{
    clock,
    router::{Blame, Dispatch, Ended, Fleet, Path, Work, headers},
};

/// Counts as in flight at its worker until it is dropped. Dropped without a word, its client has left.
pub(super) struct Underway {
    fleet: Arc<Mutex<Fleet>>,
    /// None once its end was told.
    dispatch: Option<Dispatch>,
    ended: Ended,
}

impl Underway {
    /// It is sent to `worker`.
    pub fn begin(fleet: &Arc<Mutex<Fleet>>, service: &ServiceName, worker: NodeId, path: Path) -> Underway {
        let dispatch = lock(fleet).on_dispatch(service, worker, path, clock::now());
        Underway { fleet: fleet.clone(), dispatch: Some(dispatch), ended: Ended::Otherwise }
    }

    /// A connection was made for it.
    pub fn on_connect(&self, took: Duration) {
        if let Some(dispatch) = &self.dispatch {
            lock(&self.fleet).on_connect(dispatch, took, clock::now());
        }
    }

    /// The head of an answer came, be it a refusal.
    pub fn on_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let said = headers.get(headers::LOAD).and_then(|value| value.to_str().ok());
        let work = said.and_then(|said| said.parse::<Work>().ok());
        if let Some(dispatch) = &self.dispatch {
            lock(&self.fleet).on_head(dispatch, work, clock::now());
        }
        if status.is_server_error() {
            self.ended = Ended::Failed(Blame::Service);
        }
    }

    /// It failed, or was refused.
    pub fn on_failed(mut self, ended: Ended) {
        self.ended = ended;
    }

    /// Its answer came to an end.
    pub fn on_end(&mut self) {
        if self.ended == Ended::Otherwise {
            self.ended = Ended::Well;
        }
    }

    /// Its answer broke off.
    pub fn on_break(&mut self) {
        self.ended = Ended::Failed(Blame::Service);
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(dispatch) = self.dispatch.take() {
            lock(&self.fleet).on_end(dispatch, self.ended, clock::now());
        }
    }
}
