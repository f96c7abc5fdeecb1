//! What the operator does over the Unix socket: tokens, decisions about who waits, revocations.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Json, extract::Path, http::StatusCode};
use wiremesh_certs::{
    IssueError, JoinToken, MAX_GROUPS, MAX_SERVICES, MAX_URLS, NodeName, OverlayIp, UnixTime, allowed_services,
    generate_keys,
};

use super::{Body, Operator, Problem, State};
use crate::{
    api::{
        Secret,
        admin::{CreateToken, CreatedToken, DecideJoin, Join, Joins, Revoke, Revoked, TOKEN_ID_BYTES, Token, Tokens},
    },
    clock,
    coordinator::{
        audit::Origin,
        config::public_url,
        enrolment::{self, FIRST_HOST},
        io::{
            ruling,
            shared::Shared,
            store::{Grant, Target, Verdict, Who},
        },
        registry::Member,
    },
};

/// Nobody needs a token that outlives this.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// `POST /tokens`
pub async fn create_token(
    axum::extract::State(shared): State,
    Extension(operator): Extension<Operator>,
    Body(body): Body<CreateToken>,
) -> Result<Json<CreatedToken>, Problem> {
    let bad = |message: String| Problem::bad_request("bad_token_request", message);
    if body.uses == 0 {
        return Err(bad("a token needs at least one use".to_owned()));
    }
    if body.groups.len() > MAX_GROUPS || body.services.len() > MAX_SERVICES {
        return Err(bad(format!("at most {MAX_GROUPS} groups and {MAX_SERVICES} services")));
    }
    let urls = if body.urls.is_empty() {
        shared.urls.clone()
    } else {
        body.urls.iter().map(|url| public_url(url)).collect::<Result<_, _>>().map_err(bad)?
    };
    if urls.is_empty() || urls.len() > MAX_URLS {
        let problem = Problem::new(StatusCode::BAD_REQUEST, "no_url", "the token must say where the coordinator is");
        return Err(problem.hint("give --url https://HOST:PORT, or set public_urls in the coordinator's configuration"));
    }
    let now = clock::unix();
    could_be_issued(&shared, &body, now).map_err(|error| {
        bad(format!("no certificate could be issued to whoever joined with it: {error}"))
            .hint("give it fewer or shorter groups and services")
    })?;
    let in_force = shared.ruling.in_force();
    let ca = in_force.authorities.issuing().root();
    let token = JoinToken::generate(urls, ca.mesh().clone(), ca.fingerprint(), &mut shared.rng())
        .map_err(|error| bad(error.to_string()))?;
    let secret_hash = token.secret_hash();
    let kept = enrolment::Token {
        id: hex::encode(&secret_hash[..TOKEN_ID_BYTES]),
        name: body.name,
        groups: body.groups,
        services: body.services,
        uses: body.uses,
        used: 0,
        approve: body.approve,
        created_at: now,
        expires_at: now.plus(Duration::from_secs(body.ttl_secs).min(MAX_TOKEN_LIFE)),
        revoked_at: None,
    };
    shared.store.add_token(&kept, &secret_hash, &operator.origin()).await?;
    tracing::info!(token = %kept.id, uses = kept.uses, until = %kept.expires_at, "join token made");
    Ok(Json(CreatedToken {
        id: kept.id,
        token: Secret::new(token.to_text().to_string()),
        expires_at: kept.expires_at,
        uses: kept.uses,
    }))
}

/// A token with which nobody could join is better refused to whoever makes it than to whoever comes with it.
fn could_be_issued(shared: &Shared, body: &CreateToken, now: UnixTime) -> Result<(), IssueError> {
    let (identity, wg) = generate_keys(&mut shared.rng());
    let shortest = NodeName::new("n").expect("a letter is a name");
    let network = shared.trust.current().network();
    let member = Member {
        identity: identity.id(),
        name: body.name.clone().unwrap_or(shortest),
        address: enrolment::address_of(network, FIRST_HOST).unwrap_or(OverlayIp(network.addr())),
        wg: wg.public(),
    };
    let services = allowed_services(body.services.clone());
    shared.issue(&Grant { member, groups: body.groups.clone(), services }, now).map(drop)
}

/// `GET /tokens`
pub async fn list_tokens(axum::extract::State(shared): State) -> Result<Json<Tokens>, Problem> {
    let now = clock::unix();
    let tokens = shared.store.tokens().await?;
    let tokens = tokens.into_iter().map(|token| Token {
        state: token.state(now).to_owned(),
        id: token.id,
        name: token.name,
        groups: token.groups,
        services: token.services,
        uses: token.uses,
        used: token.used,
        approve: token.approve,
        created_at: token.created_at,
        expires_at: token.expires_at,
    });
    Ok(Json(Tokens { tokens: tokens.collect() }))
}

/// `POST /tokens/{id}/revoke`
pub async fn revoke_token(
    axum::extract::State(shared): State,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>, Problem> {
    shared.store.revoke_token(&id, &operator.origin(), clock::unix()).await?;
    tracing::info!(token = %id, "join token revoked");
    Ok(Json(serde_json::json!({ "id": id, "state": "revoked" })))
}

/// `GET /joins`
pub async fn list_joins(axum::extract::State(shared): State) -> Result<Json<Joins>, Problem> {
    Ok(Json(Joins { joins: shared.store.joins(clock::unix()).await? }))
}

/// `POST /joins/approve`
pub async fn approve_join(
    axum::extract::State(shared): State,
    Extension(operator): Extension<Operator>,
    Body(body): Body<DecideJoin>,
) -> Result<Json<Join>, Problem> {
    decide_join(&shared, Verdict::Approve, body, &operator.origin()).await
}

/// `POST /joins/refuse`
pub async fn refuse_join(
    axum::extract::State(shared): State,
    Extension(operator): Extension<Operator>,
    Body(body): Body<DecideJoin>,
) -> Result<Json<Join>, Problem> {
    decide_join(&shared, Verdict::Decline, body, &operator.origin()).await
}

async fn decide_join(
    shared: &Shared,
    verdict: Verdict,
    body: DecideJoin,
    origin: &Origin,
) -> Result<Json<Join>, Problem> {
    let who = match body {
        DecideJoin { name: Some(name), identity: None } => Who::Name(name),
        DecideJoin { name: None, identity: Some(identity) } => Who::Identity(identity),
        _ => return Err(Problem::bad_request("bad_decision", "exactly one of name and identity")),
    };
    let join = shared.store.decide_join(&who, verdict, origin, clock::unix()).await?;
    tracing::info!(name = %join.name, identity = %join.identity, standing = join.standing, "an operator decided");
    Ok(Json(join))
}

/// `POST /revocations`
///
/// Goes on if its client leaves or its time is over.
pub async fn revoke(
    axum::extract::State(shared): State,
    Extension(operator): Extension<Operator>,
    Body(body): Body<Revoke>,
) -> Result<Json<Revoked>, Problem> {
    let target = match body {
        Revoke { name: Some(name), identity: None, serial: None } => Target::Name(name),
        Revoke { name: None, identity: Some(identity), serial: None } => Target::Identity(identity),
        Revoke { name: None, identity: None, serial: Some(serial) } => Target::Serial(serial),
        _ => return Err(Problem::bad_request("bad_revocation", "exactly one of name, identity and serial")),
    };
    let done = ruling::to_its_end(async move {
        let revoked = put_in_force(shared.clone(), target, operator.origin()).await?;
        super::rekey::after_revocation(&shared).await;
        Ok(revoked)
    })
    .await;
    done.unwrap_or_else(|error| Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)))
}

/// Revokes and has everybody who asks told so from here on.
pub async fn put_in_force(shared: Arc<Shared>, target: Target, origin: Origin) -> Result<Json<Revoked>, Problem> {
    let now = clock::unix();
    let revoked = shared.revoke(&target, &origin, now).await?;
    match target {
        Target::Name(_) | Target::Identity(_) => {
            shared.registry().remove(revoked.identity);
            shared.copies().remove(&revoked.identity);
        }
        // The member may have another certificate; it is heard again if so.
        Target::Serial(_) => {
            shared.registry().unregister(revoked.identity);
        }
    }
    shared.fleet_changed();
    let number = revoked.published.number;
    tracing::info!(identity = %revoked.identity, number, "revoked");
    Ok(Json(Revoked { number, name: revoked.name }))
}
