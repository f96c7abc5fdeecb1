//! A request as every attempt sends it.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;

use super::{
    account::Account,
    answer::InFlight,
    believed::Believed,
    called::Called,
    replay::{AttemptBody, Replay},
    serve::Connections,
};
use crate::{
    router::{Affinity, Failure, Needs, Via, headers},
    services::Asker,
};

/// The client's side of a connection that may become something else.
pub(super) struct Turn {
    pub client: OnUpgrade,
    /// Those of the listener it came in by.
    pub connections: Arc<Connections>,
    /// Which other node it is, if it is one.
    pub believed: Option<Believed>,
}

/// A request, with all that it holds until its end.
pub(super) struct Outgoing {
    pub method: Method,
    /// Path and query as the client sent them.
    pub asked: PathAndQuery,
    pub needs: Needs,
    /// End-to-end headers, with the request id.
    pub headers: HeaderMap,
    /// Who sent it into the mesh, and as which call it is attempted next.
    pub via: Via,
    /// What the connection is to become.
    pub upgrade: Option<HeaderValue>,
    pub turn: Option<Turn>,
    pub arrived_at: Instant,
    /// Whether our client is a program that uses the mesh, not another agent of it.
    pub to_client: bool,
    /// The conversation it belongs to.
    pub affinity: Option<Affinity>,
    pub replay: Replay,
    pub in_flight: InFlight,
    /// Whose it is, for the line of a service of this node.
    pub asker: Asker,
    /// Which other node that is, if it is one.
    pub believed: Option<Believed>,
    /// What its caller is told of it, if that is another agent.
    pub called: Option<Called>,
    pub account: Account,
}

impl Outgoing {
    /// What an attempt at our own upstream sends.
    pub fn request_here(&self, uri: Uri) -> Request<AttemptBody> {
        self.request_with(self.replay.attempt(), uri)
    }

    /// What an attempt at another agent sends. Of a large body nothing goes before it has taken the call.
    pub fn request(&self, uri: Uri) -> Request<AttemptBody> {
        self.request_with(self.replay.attempt_held_back(), uri)
    }

    /// Where its worker is asked what it is doing.
    pub fn about(&self) -> PathAndQuery {
        PathAndQuery::try_from(format!("/calls/{}", self.via.call)).expect("hexadecimal digits make a path")
    }

    /// Where its worker is asked whether it was taken.
    pub fn about_taking(&self) -> PathAndQuery {
        PathAndQuery::try_from(format!("/calls/{}/taken", self.via.call)).expect("hexadecimal digits make a path")
    }

    /// What a connection that broke before the answer means.
    pub fn broken(&self) -> Failure {
        if self.replay.is_untouched() { Failure::Unreachable } else { Failure::Uncertain }
    }

    fn request_with(&self, body: AttemptBody, uri: Uri) -> Request<AttemptBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        self.account.mark(request.headers_mut());
        request.headers_mut().insert(headers::VIA, self.via.header());
        if let Some(upgrade) = &self.upgrade {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(header::UPGRADE, upgrade.clone());
        }
        request
    }
}
