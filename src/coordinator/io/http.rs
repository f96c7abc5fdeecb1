//! The coordinator's HTTP API: routes, who may use them, and how a refusal looks.

mod admin;
mod audit;
mod authority;
mod discovery;
mod enrol;
mod problem;
mod rekey;
#[cfg(test)]
mod tests;
mod worker;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, MatchedPath, Request},
    http::{Extensions, HeaderMap, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::Response,
    routing::{delete, get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use rand::RngCore;
use serde::de::DeserializeOwned;
use wiremesh_certs::{NodeId, Verified};
use zeroize::Zeroizing;

use super::{serve::Peer, shared::Shared};
use crate::{api, clock, coordinator::audit::Origin, places::Places};
pub use authority::described;
pub use problem::Problem;
pub use rekey::list_former;

/// No request takes longer; the slowest wait for the database.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Those that wait for something to happen may do so first.
const WAITING_TIMEOUT: Duration = Duration::from_secs(20 + api::authority::MAX_WAIT_SECS);
/// The routes on which one may wait, by a GET.
const WAITING: &[&str] = &["/api/revocations", "/adoption", "/rotation"];

/// A body that takes longer to arrive is given up.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Bodies that are being read from one member at once: an agent says one thing at a time, on a connection or two.
pub const MAX_BODIES_PER_MEMBER: usize = 4;
/// Bodies of all members at once: one for each connection that there can be.
pub const MAX_BODIES: usize = super::serve::MAX_CONNECTIONS;
/// Revocation lists that are being read at once, each another member's: what is longest is said least often.
pub const MAX_LISTS: usize = 8;
/// Whoever was turned away because too many speak at once may come back after this.
const SPEAK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub IpAddr);

/// Who opened the connection to the Unix socket, as the kernel says.
#[derive(Clone, Copy, Debug)]
pub struct Operator {
    /// Its user.
    pub uid: u32,
}

impl Operator {
    /// As the audit names it.
    pub fn origin(&self) -> Origin {
        Origin::operator(self.uid)
    }
}

/// The state of all handlers.
pub type State = axum::extract::State<Arc<Shared>>;

/// What is served over TLS.
pub fn public(shared: Arc<Shared>) -> Router {
    // A list at its bound is longer than anything else that members send.
    let list =
        get(authority::revocations).post(authority::take_over).layer(DefaultBodyLimit::max(api::MAX_RESPONSE_BYTES));
    let routes = Router::new()
        .route("/", get(discovery::page))
        .route("/health", get(discovery::health))
        .route("/metrics", get(discovery::metrics))
        .route("/api/enroll", post(enrol::enroll).layer(DefaultBodyLimit::max(api::MAX_JOIN_BYTES)))
        .route("/api/certs/renew", post(enrol::renew))
        .route("/api/certs/rekey", post(rekey::rekey))
        .route("/api/worker/register", post(worker::register))
        .route("/api/worker/heartbeat", post(worker::heartbeat))
        .route("/api/worker/unregister/{id}", delete(worker::unregister))
        .route("/api/dht/bootstrap", get(discovery::bootstrap))
        .route("/api/services/list", get(discovery::services))
        .route("/api/services/discover/{service}", get(discovery::discover))
        .route("/api/models/discover/{model}", get(discovery::discover_model))
        .route("/api/nodes/{node}", get(discovery::node))
        .route("/api/revocations", list);
    finish(routes, shared)
}

/// What is served on the Unix socket, to whoever may open it: the user that runs the coordinator.
pub fn admin(shared: Arc<Shared>) -> Router {
    let routes = Router::new()
        .route("/health", get(discovery::health))
        .route("/metrics", get(discovery::metrics))
        .route("/tokens", post(admin::create_token).get(admin::list_tokens))
        .route("/tokens/{id}/revoke", post(admin::revoke_token))
        .route("/joins", get(admin::list_joins))
        .route("/joins/approve", post(admin::approve_join))
        .route("/joins/refuse", post(admin::refuse_join))
        .route("/audit", get(audit::audit))
        .route("/revocations", post(admin::revoke).get(authority::revocations_for_admin))
        .route("/adoption", get(authority::adoption))
        .route("/rotation", get(authority::rotation).post(authority::rotate))
        .route("/members", get(authority::members));
    finish(routes, shared)
}

fn finish(routes: Router<Arc<Shared>>, shared: Arc<Shared>) -> Router {
    routes
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path is used with another method")
        })
        .layer(DefaultBodyLimit::max(api::MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(shared.clone(), around))
        .with_state(shared)
}

/// Around every request: an id, a time limit, a count, and JSON also for refusals that axum made.
async fn around(
    axum::extract::State(shared): State,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = RequestId(format!("{:016x}", shared.rng().next_u64()));
    request.extensions_mut().insert(id.clone());
    let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
    let method = request.method().clone();
    let may_wait = method == Method::GET && WAITING.contains(&route.as_str());
    let limit = if may_wait { WAITING_TIMEOUT } else { REQUEST_TIMEOUT };
    let mut response = match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", "the coordinator is too busy").into(),
    };
    let status = response.status();
    let problem = response.extensions_mut().remove::<Problem>();
    if let Some(problem) = problem {
        shared.metrics.count_refused(problem.kind);
        tracing::debug!(request = %id.0, %method, %route, %status, kind = problem.kind, why = %problem.message, "refused");
        response = problem.render(&id.0);
    }
    shared.metrics.count_request(&route, status.as_u16());
    if let Ok(value) = id.0.parse() {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

#[derive(Clone)]
struct RequestId(String);

/// Who sends a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A member, by its proof.
    Member(Verified),
    /// Whoever has the admin key.
    Admin,
    /// Nobody said.
    Anybody,
}

impl Caller {
    /// For what only members do, each for itself.
    pub fn member(self) -> Result<Verified, Problem> {
        match self {
            Caller::Member(verified) => Ok(verified),
            Caller::Admin | Caller::Anybody => Err(Problem::unauthorized("this needs a member's proof")),
        }
    }

    /// For reading the registry.
    pub fn reader(self, shared: &Shared) -> Result<Option<Verified>, Problem> {
        match self {
            Caller::Member(verified) => Ok(Some(verified)),
            Caller::Admin => Ok(None),
            Caller::Anybody if shared.config.public_discovery => Ok(None),
            Caller::Anybody => Err(Problem::unauthorized("reading this needs a member's proof or the admin key")),
        }
    }
}

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Caller, Problem> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let caller = who(&parts.headers, parts.method.as_str(), path, shared)?;
        if let Caller::Member(by) = &caller {
            rekey::on_heard(shared, by.id(), &parts.extensions).await?;
        }
        if !matches!(caller, Caller::Anybody) {
            known(&parts.extensions);
        }
        Ok(caller)
    }
}

fn who(headers: &HeaderMap, method: &str, path: &str, shared: &Shared) -> Result<Caller, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Caller::Anybody) };
    let value = value.to_str().map_err(|_| Problem::unauthorized("an authorization header that is not text"))?;
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    let is_admin = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => shared.is_admin_key(rest.trim()),
        // What a browser sends after asking; any user name, the admin key as password.
        "basic" => {
            let decoded = Zeroizing::new(BASE64_STANDARD.decode(rest.trim()).unwrap_or_default());
            let text = std::str::from_utf8(&decoded).unwrap_or_default();
            text.split_once(':').is_some_and(|(_, password)| shared.is_admin_key(password))
        }
        _ => {
            let trust = shared.trust.current();
            let checked = shared.proofs().check(value, method, path, &trust, clock::unix());
            return checked.map(Caller::Member).map_err(Problem::from);
        }
    };
    if is_admin { Ok(Caller::Admin) } else { Err(Problem::unauthorized("this is not the admin key")) }
}

/// A JSON body, no longer than its route takes; what is wrong with it is said in JSON. Whoever may be anybody is asked
/// first who it is: see [`Said`] and [`enrol::Attempt`].
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Body<T>, Problem> {
        let reading = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, shared));
        let read = reading.await.map_err(|_| {
            let why = format!("the body did not arrive within {} s", BODY_WITHIN.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", why)
        })?;
        let bytes = read.map_err(|rejection| {
            let kind = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "body_too_large" } else { "bad_body" };
            Problem::new(rejection.status(), kind, "the body could not be read, or is longer than this path takes")
        })?;
        api::read(&bytes).map(Body).map_err(|error| Problem::bad_request("bad_body", error))
    }
}

/// What a member says. Nobody else's body is read, and of a member not more at once than it has places.
pub struct Said<T> {
    /// Who says it.
    pub by: Verified,
    /// What.
    pub body: T,
}

/// Something that members say.
pub trait Saying: DeserializeOwned {
    /// The places of those who are saying it.
    fn places(shared: &Shared) -> &Places<NodeId> {
        &shared.bodies
    }
}

impl Saying for api::RegisterRequest {}

impl Saying for api::HeartbeatRequest {}

impl Saying for api::RekeyRequest {}

impl Saying for api::SendRevocations {
    fn places(shared: &Shared) -> &Places<NodeId> {
        &shared.lists
    }
}

impl<T: Saying> FromRequest<Arc<Shared>> for Said<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Said<T>, Problem> {
        let (mut parts, body) = request.into_parts();
        let by = Caller::from_request_parts(&mut parts, shared).await?.member()?;
        let _place = T::places(shared).take(by.id()).ok_or_else(|| {
            Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_much_at_once",
                "too much is being said here at this moment",
            )
            .retry_after(SPEAK_AGAIN_AFTER)
        })?;
        let Body(body) = Body::from_request(Request::from_parts(parts, body), shared).await?;
        Ok(Said { by, body })
    }
}

/// Where a request came from; from nowhere in particular if nothing says so.
fn source(extensions: &Extensions) -> IpAddr {
    extensions.get::<Source>().map_or(IpAddr::from([0, 0, 0, 0]), |source| source.0)
}

/// Whoever is at the other end of this connection has shown who it is.
fn known(extensions: &Extensions) {
    if let Some(peer) = extensions.get::<Arc<Peer>>() {
        peer.is_known();
    }
}

/// Requests that come from elsewhere.
pub fn with_source(router: Router, source: IpAddr) -> Router {
    router.layer(Extension(Source(source)))
}

/// Requests on the Unix socket come from a user of this machine.
pub fn with_operator(router: Router, uid: u32) -> Router {
    router.layer(Extension(Operator { uid }))
}
