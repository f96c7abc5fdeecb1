//! Reading the registry.

use axum::{
    Json,
    extract::Path,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use wiremesh_certs::{Offer, ServiceName};

use super::{Caller, Problem, State};
use crate::{
    api::{
        ANY_MODEL, BootstrapResponse, DiscoverModelResponse, DiscoverResponse, HealthResponse, NodeResponse,
        ServicesResponse,
    },
    clock,
    coordinator::{care, page, registry::NodeKey},
};

/// What Prometheus expects of `prometheus-client`'s text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The page has one style of its own and nothing else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

/// `GET /health`: open, and says nothing about anybody.
pub async fn health(axum::extract::State(shared): State) -> Json<HealthResponse> {
    Json(HealthResponse {
        status: "healthy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        members: shared.registry().counts(clock::unix()),
    })
}

/// `GET /metrics`: open, and says nothing about anybody.
pub async fn metrics(axum::extract::State(shared): State) -> Response {
    let (now, number) = (clock::unix(), shared.trust.current().revocation_number());
    let (counts, unwritten) = {
        let registry = shared.registry();
        shared.metrics.fleet.set(&registry, &shared.ruling.in_force().authorities, number, now);
        (registry.counts(now), registry.dirty_count())
    };
    shared.metrics.set_copied(shared.copies().count(now));
    let text = shared.metrics.encode(counts, number, unwritten);
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

/// `GET /`
pub async fn page(axum::extract::State(shared): State, caller: Caller) -> Result<Response, Problem> {
    caller.reader(&shared)?;
    let now = clock::unix();
    let authorities = &shared.ruling.in_force().authorities;
    let care = care::of(authorities, now);
    let html = page::render(&shared.config, &shared.registry(), &shared.copies(), authorities, &care, now);
    let headers = [
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, Html(html)).into_response())
}

/// `GET /api/dht/bootstrap`
pub async fn bootstrap(
    axum::extract::State(shared): State,
    caller: Caller,
) -> Result<Json<BootstrapResponse>, Problem> {
    let asker = caller.reader(&shared)?.map(|by| by.id());
    let now = clock::unix();
    let mut rng = shared.rng();
    let seeds = shared.registry().seeds(asker, now, &mut rng);
    Ok(Json(BootstrapResponse { seed_count: seeds.len(), seeds, timestamp: now }))
}

/// `GET /api/services/list`
pub async fn services(axum::extract::State(shared): State, caller: Caller) -> Result<Json<ServicesResponse>, Problem> {
    caller.reader(&shared)?;
    let now = clock::unix();
    let services = shared.registry().services(&shared.config.catalog, now);
    let total_available = services.values().filter(|service| service.healthy_workers > 0).count();
    Ok(Json(ServicesResponse { services, total_available, timestamp: now }))
}

/// `GET /api/services/discover/{type}`
pub async fn discover(
    axum::extract::State(shared): State,
    caller: Caller,
    Path(service): Path<String>,
) -> Result<Json<DiscoverResponse>, Problem> {
    caller.reader(&shared)?;
    let service = ServiceName::new(&service).map_err(|bad| Problem::bad_request("bad_service", bad))?;
    let workers = shared.registry().discover(&Offer::Service(service.clone()), clock::unix());
    if workers.is_empty() {
        let message = format!("no healthy worker offers {service}");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "service_not_found", message)
            .retry_after(shared.config.heartbeat_interval));
    }
    let recommended = workers.first().map(|worker| worker.worker_id.clone());
    Ok(Json(DiscoverResponse { service, count: workers.len(), recommended, workers }))
}

/// `GET /api/models/discover/{tag}`, or `any` for whoever serves a model at all.
pub async fn discover_model(
    axum::extract::State(shared): State,
    caller: Caller,
    Path(model): Path<String>,
) -> Result<Json<DiscoverModelResponse>, Problem> {
    caller.reader(&shared)?;
    let offer = match model.as_str() {
        ANY_MODEL => Offer::AnyModel,
        tag => Offer::Model(tag.parse().map_err(|bad| Problem::bad_request("bad_model", bad))?),
    };
    let workers = shared.registry().discover(&offer, clock::unix());
    if workers.is_empty() {
        let message = format!("no healthy worker serves {offer}");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "model_not_found", message)
            .retry_after(shared.config.heartbeat_interval));
    }
    Ok(Json(DiscoverModelResponse { model, count: workers.len(), workers }))
}

/// `GET /api/nodes/{name or address}`: the node learns with its next heartbeat who asked, so that both try.
pub async fn node(
    axum::extract::State(shared): State,
    caller: Caller,
    Path(node): Path<String>,
) -> Result<Json<NodeResponse>, Problem> {
    let asker = caller.reader(&shared)?;
    let key =
        NodeKey::parse(&node).ok_or_else(|| Problem::bad_request("bad_node", "not a name, address or identity"))?;
    let mut registry = shared.registry();
    let (target, record) =
        registry.node(&key).ok_or_else(|| Problem::not_found(format!("there is no member {node}")))?;
    let record = record
        .cloned()
        .ok_or_else(|| Problem::not_found(format!("{} is a member, but not registered", target.name)))?;
    let target = target.identity;
    if let Some(asker) = asker {
        registry.introduce(asker.id(), target);
    }
    Ok(Json(NodeResponse { record }))
}
