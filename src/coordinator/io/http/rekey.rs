//! Changing a member's keys.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Extension, Json,
    http::{Extensions, StatusCode},
};
use wiremesh_certs::{CertificateRequest, NodeId};

use super::{Problem, Said, Source, State, admin};
use crate::{
    api::{RekeyRequest, RekeyResponse},
    clock,
    coordinator::{
        audit::Origin,
        io::{ruling, shared::Shared, store::Target},
        rekey::Refusal,
    },
};

/// `POST /api/certs/rekey`
pub async fn rekey(
    axum::extract::State(shared): State,
    Extension(Source(source)): Extension<Source>,
    Said { by, body }: Said<RekeyRequest>,
) -> Result<Json<RekeyResponse>, Problem> {
    let now = clock::unix();
    let request = CertificateRequest::parse(&body.csr).map_err(|bad| Problem::bad_request("bad_csr", bad))?;
    if request.wg != body.wireguard_key {
        return Err(Problem::bad_request("bad_csr", "the WireGuard key differs from the one in the request"));
    }
    if !shared.registry().knows(by.id()) {
        shared.adopt(&by, source, now).await?;
    }
    let (member, chain) = shared.store.rekey(by.id(), &request, source, now, |grant| shared.issue(grant, now)).await?;
    shared.metrics.rekeyed.inc();
    tracing::info!(name = %member.name, from = %by.id(), to = %member.identity, "next keys certified");
    let certificate = chain.to_pem();
    on_its_own(list_former(shared)).await?;
    Ok(Json(RekeyResponse { certificate }))
}

/// Somebody has proven to be `by`. If that is a member with its next keys, they are its keys from here on, and the ones
/// before are revoked. Costs nothing for whoever is known.
pub async fn on_heard(shared: &Arc<Shared>, by: NodeId, extensions: &Extensions) -> Result<(), Problem> {
    if shared.registry().knows(by) {
        return Ok(());
    }
    on_its_own(settle(shared.clone(), by, super::source(extensions))).await
}

async fn settle(shared: Arc<Shared>, heard: NodeId, from: IpAddr) -> Result<(), Problem> {
    let Some(settled) = shared.store.settle(heard, from, clock::unix()).await? else { return Ok(()) };
    let member = settled.member;
    tracing::info!(name = %member.name, from = %settled.former, to = %member.identity, "keys changed");
    shared.registry().admit(member);
    list_former(shared).await
}

/// Revokes every identity that was left behind. What a crash or a full disk cut off is done with the next.
pub async fn list_former(shared: Arc<Shared>) -> Result<(), Problem> {
    let now = clock::unix();
    for identity in shared.store.unlisted(now).await? {
        let _ = admin::put_in_force(shared.clone(), Target::Identity(identity), Origin::coordinator()).await?;
        shared.store.listed(identity, now).await?;
    }
    Ok(())
}

async fn on_its_own(work: impl Future<Output = Result<(), Problem>> + Send + 'static) -> Result<(), Problem> {
    let done = ruling::to_its_end(work).await;
    done.unwrap_or_else(|error| Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match refusal {
            Refusal::NotAMember => StatusCode::FORBIDDEN,
            Refusal::OtherName { .. } | Refusal::SameIdentity => StatusCode::BAD_REQUEST,
            Refusal::IdentityTaken | Refusal::WireGuardKeyTaken(_) | Refusal::TooOften => StatusCode::CONFLICT,
        };
        Problem::new(status, refusal.kind(), &refusal).hint(refusal.hint())
    }
}

/// Whatever an operator revokes, what that member had asked for goes with it.
pub async fn after_revocation(shared: &Arc<Shared>) {
    if let Err(problem) = list_former(shared.clone()).await {
        // Tried again with the next revocation or change of keys, and at the next start.
        tracing::error!(why = %problem.message, "next keys of a revoked member are not revoked yet");
    }
}
