//! Joining and renewing.

use axum::{Extension, Json, http::StatusCode};
use wiremesh_certs::{CertificateRequest, JoinToken, hash_of_secret};

use super::{Body, Problem, Source, State, authority::Returning};
use crate::{
    api::{EnrollRequest, EnrollResponse, RenewResponse},
    clock,
    coordinator::io::store::{Newcomers, StoreError},
};

/// `POST /api/enroll`
pub async fn enroll(
    axum::extract::State(shared): State,
    Extension(Source(source)): Extension<Source>,
    Body(body): Body<EnrollRequest>,
) -> Result<Json<EnrollResponse>, Problem> {
    shared.limiter().charge(source, clock::now()).map_err(|wait| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_attempts", "too many failed attempts to join from here")
            .retry_after(wait)
    })?;
    let now = clock::unix();
    let request = CertificateRequest::parse(&body.csr).map_err(|bad| Problem::bad_request("bad_csr", bad))?;
    if request.wg != body.wireguard_key {
        return Err(Problem::bad_request("bad_csr", "the WireGuard key differs from the one in the request"));
    }
    let secret_hash = secret_hash(&body.token)
        .ok_or_else(|| Problem::bad_request("bad_token", "that is not the secret of a join token"))?;

    let enrolled = shared.store.enrol(&request, &secret_hash, now, |grant| shared.issue(grant, now)).await;
    let (member, chain) = enrolled.inspect_err(|error| {
        if matches!(error, StoreError::Refused(_)) {
            tracing::warn!(name = %request.name, identity = %request.identity, %source, why = %error, "join refused");
        }
    })?;

    shared.limiter().refund(source);
    shared.metrics.enrolled.inc();
    tracing::info!(name = %member.name, address = %member.address, identity = %member.identity, "joined");
    let overlay_address = member.address;
    let (mut rng, trust) = (shared.rng(), shared.trust.current());
    let bootstrap = {
        let mut registry = shared.registry();
        registry.admit(member);
        registry.seeds(Some(request.identity), now, &mut rng)
    };
    Ok(Json(EnrollResponse {
        certificate: chain.to_pem(),
        authority: shared.ruling.in_force().roots_pem(),
        mesh: trust.mesh().clone(),
        overlay_address,
        network: trust.network(),
        revocations: shared.ruling.list().map(|signed| signed.as_ref().clone()),
        bootstrap,
        coordinators: shared.urls.clone(),
        heartbeat_interval_secs: shared.config.heartbeat_interval.as_secs(),
    }))
}

/// `POST /api/certs/renew`: also for whoever was away while its certificate ended or its authority was replaced.
pub async fn renew(
    axum::extract::State(shared): State,
    Returning(by): Returning,
) -> Result<Json<RenewResponse>, Problem> {
    let now = clock::unix();
    let is_member = now < by.not_after() && shared.trust.current().believes(&by.authority());
    let newcomers = if is_member { Newcomers::Welcome } else { Newcomers::Refused };
    let (member, chain) = shared.store.renew(&by, newcomers, now, |grant| shared.issue(grant, now)).await?;
    shared.metrics.renewed.inc();
    tracing::info!(name = %member.name, identity = %member.identity, "certificate renewed");
    shared.registry().admit(member);
    let revocations = shared.ruling.list().map(|signed| signed.as_ref().clone());
    Ok(Json(RenewResponse { certificate: chain.to_pem(), revocations }))
}

/// Agents send the secret alone; a whole token, as a person pastes it, serves as well.
fn secret_hash(text: &str) -> Option<[u8; 32]> {
    hash_of_secret(text).or_else(|| text.parse::<JoinToken>().ok().map(|token| token.secret_hash()))
}
