//! Joining and renewing.

use axum::{Extension, Json, http::StatusCode};
use wiremesh_certs::{CertificateRequest, JoinToken, hash_of_secret};

use super::{Body, Caller, Problem, Source, State};
use crate::{
    api::{EnrollRequest, EnrollResponse, RenewResponse},
    clock,
    coordinator::io::store::StoreError,
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
    let secret_hash = secret_hash(body.token.expose())
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
    let mut rng = shared.rng();
    let bootstrap = {
        let mut registry = shared.registry();
        registry.admit(member);
        registry.seeds(Some(request.identity), now, &mut rng)
    };
    Ok(Json(EnrollResponse {
        certificate: chain.to_pem(),
        authority: shared.authority.certificate().pem(),
        mesh: shared.authority.certificate().mesh().clone(),
        overlay_address,
        network: shared.authority.certificate().network(),
        revocations: shared.revocations().map(|signed| signed.as_ref().clone()),
        bootstrap,
        coordinators: shared.urls.clone(),
        heartbeat_interval_secs: shared.config.heartbeat_interval.as_secs(),
    }))
}

/// `POST /api/certs/renew`
pub async fn renew(axum::extract::State(shared): State, caller: Caller) -> Result<Json<RenewResponse>, Problem> {
    let by = caller.member()?;
    let now = clock::unix();
    let (member, chain) = shared.store.renew(&by, now, |grant| shared.issue(grant, now)).await?;
    shared.metrics.renewed.inc();
    tracing::info!(name = %member.name, identity = %member.identity, "certificate renewed");
    shared.registry().admit(member);
    Ok(Json(RenewResponse { certificate: chain.to_pem() }))
}

/// Agents send the secret alone; a whole token, as a person pastes it, serves as well.
fn secret_hash(text: &str) -> Option<[u8; 32]> {
    hash_of_secret(text).or_else(|| text.parse::<JoinToken>().ok().map(|token| token.secret_hash()))
}
