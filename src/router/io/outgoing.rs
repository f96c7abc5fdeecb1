//! A request as every attempt sends it.

use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;

use super::{
    account::Account,
    answer::InFlight,
    replay::{AttemptBody, Replay},
    serve::Connections,
};
use crate::router::{Failure, Needs, Via, headers};

/// The client's side of a connection that may become something else.
pub(super) type Turn = Option<(OnUpgrade, Connections)>;

/// A request, with all that it holds until its end.
pub(super) struct Outgoing {
    pub method: Method,
    /// Path and query as the client sent them.
    pub asked: PathAndQuery,
    pub needs: Needs,
    /// End-to-end headers, with the call and the request id.
    pub headers: HeaderMap,
    /// What the connection is to become.
    pub upgrade: Option<HeaderValue>,
    pub turn: Turn,
    pub arrived_at: Instant,
    /// Whether our client is a program that uses the mesh, not another agent of it.
    pub to_client: bool,
    pub replay: Replay,
    pub in_flight: InFlight,
    pub account: Account,
}

impl Outgoing {
    /// The next attempt is this call.
    pub fn name(&mut self, via: &Via) {
        self.headers.insert(headers::VIA, via.header());
    }

    /// What an attempt sends.
    pub fn request(&self, uri: Uri) -> Request<AttemptBody> {
        let mut request = Request::new(self.replay.attempt());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        self.account.mark(request.headers_mut());
        if let Some(upgrade) = &self.upgrade {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(header::UPGRADE, upgrade.clone());
        }
        request
    }

    /// What a connection that broke before the answer means.
    pub fn broken(&self) -> Failure {
        if self.replay.is_untouched() { Failure::Unreachable } else { Failure::Uncertain }
    }
}
