//! Joining and renewing.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use wiremesh_certs::{CertificateRequest, Chain, JoinToken, hash_of_secret};

use super::{Body, Problem, Source, State, authority::Returning};
use crate::{
    api::{EnrollRequest, EnrollResponse, JoinWaiting, RenewResponse},
    clock,
    coordinator::{
        audit::{Event, Kind, Origin, TokenUse},
        enrolment::Refusal,
        io::{
            shared::Shared,
            store::{Enrolled, Newcomers, Waits},
        },
        limiter::TooMany,
        registry::Member,
    },
};

/// A machine that waits for an operator is asked to come back no sooner. Longer than it takes the limiter to let it.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// One attempt to join from somewhere, charged before anything of its body is read: bodies that never end are so many as
/// the limiter lets, and no more.
pub struct Attempt(IpAddr);

impl FromRequestParts<Arc<Shared>> for Attempt {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Attempt, Problem> {
        let source = super::source(&parts.extensions);
        shared.limiter().charge(source, clock::now()).map_err(too_many)?;
        Ok(Attempt(source))
    }
}

/// `POST /api/enroll`
pub async fn enroll(
    axum::extract::State(shared): State,
    Attempt(source): Attempt,
    Body(body): Body<EnrollRequest>,
) -> Result<Response, Problem> {
    let now = clock::unix();
    let request = CertificateRequest::parse(&body.csr).map_err(|bad| Problem::bad_request("bad_csr", bad))?;
    if request.wg != body.wireguard_key {
        return Err(Problem::bad_request("bad_csr", "the WireGuard key differs from the one in the request"));
    }
    let secret_hash = secret_hash(body.token.expose())
        .ok_or_else(|| Problem::bad_request("bad_token", "that is not the secret of a join token"))?;

    match shared.store.enrol(&request, &secret_hash, source, now, |grant| shared.issue(grant, now)).await? {
        Enrolled::Joined { member, chain } => {
            shared.limiter().refund(source);
            Ok(Json(welcome(&shared, member, &chain)).into_response())
        }
        Enrolled::Waits(waits) => {
            // Beginning to wait is bounded by what a token was made for.
            shared.limiter().waits(request.identity, source, clock::now());
            if !waits.before {
                tell_waiting(&shared, &request, source, &waits);
            }
            Ok((StatusCode::ACCEPTED, Json(please_wait(&request, &waits))).into_response())
        }
        Enrolled::Refused { refusal, token, first_use } => {
            tell_refused(&shared, &request, source, &refusal, token, first_use).await?;
            Err(refusal.into())
        }
    }
}

/// `POST /api/certs/renew`: also for whoever was away while its certificate ended or its authority was replaced.
pub async fn renew(
    axum::extract::State(shared): State,
    Extension(Source(source)): Extension<Source>,
    Returning(by): Returning,
) -> Result<Json<RenewResponse>, Problem> {
    let now = clock::unix();
    let is_member = now < by.not_after() && shared.trust.current().believes(&by.authority());
    let newcomers = if is_member { Newcomers::Welcome } else { Newcomers::Refused };
    let renewed = shared.store.renew(&by, newcomers, source, now, |grant| shared.issue(grant, now));
    let (member, chain) = renewed.await?;
    shared.metrics.renewed.inc();
    tracing::info!(name = %member.name, identity = %member.identity, "certificate renewed");
    shared.registry().admit(member);
    let revocations = shared.ruling.list().map(|signed| signed.as_ref().clone());
    Ok(Json(RenewResponse { certificate: chain.to_pem(), revocations }))
}

fn welcome(shared: &Shared, member: Member, chain: &Chain) -> EnrollResponse {
    shared.metrics.enrolled.inc();
    tracing::info!(name = %member.name, address = %member.address, identity = %member.identity, "joined");
    let (identity, overlay_address) = (member.identity, member.address);
    let (mut rng, trust) = (shared.rng(), shared.trust.current());
    let bootstrap = {
        let mut registry = shared.registry();
        registry.admit(member);
        registry.seeds(Some(identity), clock::unix(), &mut rng)
    };
    EnrollResponse {
        certificate: chain.to_pem(),
        authority: shared.ruling.in_force().roots_pem(),
        mesh: trust.mesh().clone(),
        overlay_address,
        network: trust.network(),
        revocations: shared.ruling.list().map(|signed| signed.as_ref().clone()),
        bootstrap,
        coordinators: shared.urls.clone(),
        heartbeat_interval_secs: shared.config.heartbeat_interval.as_secs(),
    }
}

fn please_wait(request: &CertificateRequest, waits: &Waits) -> JoinWaiting {
    let identity = request.identity.to_hex();
    JoinWaiting {
        status: "waiting_for_approval".to_owned(),
        name: request.name.clone(),
        identity: request.identity,
        wireguard_key: request.wg,
        compare: format!(
            "on the coordinator `wiremesh join list` shows who waits: if it shows this identity, \
             `wiremesh join approve {identity}` lets this machine in"
        ),
        ask_again_secs: ASK_AGAIN.as_secs(),
        ends_at: waits.ends_at,
    }
}

fn tell_waiting(shared: &Shared, request: &CertificateRequest, source: IpAddr, waits: &Waits) {
    shared.metrics.waiting.inc();
    let (name, identity) = (&request.name, request.identity.to_hex());
    match &waits.crowded_by {
        None => tracing::info!(%name, identity, %source, "a machine waits for approval: wiremesh join list"),
        Some(first) => tracing::warn!(
            %name,
            identity,
            %source,
            first_by = %first.identity.to_hex(),
            first_from = ?first.from,
            "more machines ask to join with one token than it was made for: wiremesh join list"
        ),
    }
}

/// In log and audit as long as there is room; the metrics count all.
async fn tell_refused(
    shared: &Shared,
    request: &CertificateRequest,
    source: IpAddr,
    refusal: &Refusal,
    token: Option<String>,
    first_use: Option<TokenUse>,
) -> Result<(), Problem> {
    let Some(untold) = shared.limiter().tell(token.as_deref(), clock::now()) else {
        shared.metrics.untold.inc();
        return Ok(());
    };
    let (name, identity) = (&request.name, request.identity.to_hex());
    match &first_use {
        Some(first) => tracing::warn!(
            %name, identity, %source, why = %refusal,
            first_by = %first.identity.to_hex(),
            first_from = ?first.from,
            first_at = %first.at,
            "join refused, and its token was used by another machine before: was it stolen?"
        ),
        None => tracing::warn!(%name, identity, %source, why = %refusal, untold, "join refused"),
    }
    let event = Event::new(Kind::JoinRefused, &Origin::stranger(source)).about(name, request.identity);
    let event = Event { token, ..event }
        .with("why", refusal.kind())
        .with("wireguard_key", request.wg)
        .with_if("first_use", first_use)
        .with_if("untold_before", (untold > 0).then_some(untold));
    Ok(shared.store.audit(&event, clock::unix()).await?)
}

fn too_many(too_many: TooMany) -> Problem {
    let (wait, why) = match too_many {
        TooMany::FromHere(wait) => (wait, "too many failed attempts to join from here"),
        TooMany::InAll(wait) => (wait, "too many attempts to join at once, from everywhere together"),
    };
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_attempts", why).retry_after(wait)
}

/// Agents send the secret alone; a whole token, as a person pastes it, serves as well.
fn secret_hash(text: &str) -> Option<[u8; 32]> {
    hash_of_secret(text).or_else(|| text.parse::<JoinToken>().ok().map(|token| token.secret_hash()))
}
