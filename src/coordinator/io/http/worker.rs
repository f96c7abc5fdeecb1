//! What members say about themselves, each for itself.

use std::net::IpAddr;

use axum::{Extension, Json, extract::Path};
use wiremesh_certs::{NodeRecord, Opened, Signed, TunnelUrl, UnixTime, Verified};

use super::{Caller, Problem, Said, Source, State};
use crate::{
    api::{
        Copied, HeartbeatRequest, HeartbeatResponse, Instance, MAX_CAPABILITIES_BYTES, RegisterRequest, TunnelFound,
    },
    clock,
    coordinator::{
        audit::{Event, Kind, Origin},
        io::{shared::Shared, tunnels::Look},
        registry::NodeKey,
    },
};

/// `POST /api/worker/register`
pub async fn register(
    axum::extract::State(shared): State,
    Extension(Source(source)): Extension<Source>,
    Said { by, body }: Said<RegisterRequest>,
) -> Result<Json<HeartbeatResponse>, Problem> {
    let length = serde_json::to_string(&body.capabilities).map_or(usize::MAX, |json| json.len());
    if length > MAX_CAPABILITIES_BYTES {
        return Err(Problem::bad_request("bad_capabilities", "capabilities longer than 8 KiB"));
    }
    let (opened, now) = open(&shared, &by, source, &body.record).await?;
    if body.services.is_some_and(|services| services != opened.payload.services) {
        return Err(Problem::bad_request("bad_services", "the services differ from those in the signed record"));
    }
    let (trust, sequence) = (shared.trust.current(), opened.payload.sequence);
    let tunnel_url = opened.payload.tunnel_url.clone();
    let introductions =
        shared.registry().handle_register(&trust, &by, opened, body.capabilities, body.dht_port, now)?;
    let tunnel = tunnel(&shared, &by, tunnel_url.as_ref(), now);
    let copied = copied(&shared, &by, body.instance, source, sequence, now).await;
    Ok(Json(HeartbeatResponse { copied, tunnel, ..answer(&shared, &by, introductions, body.revocation_number) }))
}

/// `POST /api/worker/heartbeat`
pub async fn heartbeat(
    axum::extract::State(shared): State,
    Extension(Source(source)): Extension<Source>,
    Said { by, body }: Said<HeartbeatRequest>,
) -> Result<Json<HeartbeatResponse>, Problem> {
    let (opened, now) = open(&shared, &by, source, &body.record).await?;
    let (sequence, tunnel_url) = (opened.payload.sequence, opened.payload.tunnel_url.clone());
    let introductions = shared.registry().handle_heartbeat(&shared.trust.current(), &by, opened, now)?;
    let tunnel = tunnel(&shared, &by, tunnel_url.as_ref(), now);
    let copied = copied(&shared, &by, body.instance, source, sequence, now).await;
    Ok(Json(HeartbeatResponse { copied, tunnel, ..answer(&shared, &by, introductions, body.revocation_number) }))
}

/// `DELETE /api/worker/unregister/{id}`
pub async fn unregister(
    axum::extract::State(shared): State,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>, Problem> {
    let key = NodeKey::parse(&id).ok_or_else(|| Problem::bad_request("bad_node", "not a name, address or identity"))?;
    let found = shared.registry().node(&key).map(|(member, _)| (member.identity, member.name.clone()));
    let allowed = match &caller {
        Caller::Member(by) => found.as_ref().is_some_and(|(identity, _)| *identity == by.id()),
        Caller::Admin => true,
        Caller::Anybody => return Err(Problem::unauthorized("this needs the member's proof or the admin key")),
    };
    if !allowed {
        return Err(Problem::forbidden("not_yours", "a member may unregister itself only"));
    }
    let (identity, name) = found.ok_or_else(|| Problem::not_found(format!("there is no member {id}")))?;
    let was_there = shared.registry().unregister(identity);
    shared.fleet_changed();
    tracing::info!(%name, %identity, "left");
    Ok(Json(serde_json::json!({ "worker_id": name, "unregistered": was_there })))
}

/// Checks a record and makes sure that whoever sent it is in the registry.
async fn open(
    shared: &Shared,
    by: &Verified,
    source: IpAddr,
    record: &Signed<NodeRecord>,
) -> Result<(Opened<NodeRecord>, UnixTime), Problem> {
    let now = clock::unix();
    let opened = shared.trust.current().open(record, now)?;
    if !shared.registry().knows(by.id()) {
        shared.adopt(by, source, now).await?;
    }
    Ok((opened, now))
}

/// Whether another process uses the same keys; older agents do not say which process they are.
async fn copied(
    shared: &Shared,
    by: &Verified,
    instance: Option<Instance>,
    from: IpAddr,
    sequence: u64,
    now: UnixTime,
) -> Option<Copied> {
    let heard = shared.copies().handle_heartbeat(by.id(), instance?, from, sequence, now);
    if let Some(copied) = heard.copied.filter(|_| heard.is_news) {
        shared.metrics.copies_detected.inc();
        tracing::warn!(
            name = %by.name(), identity = %by.id(), one = %from, other = %copied.seen_from,
            "two machines use the keys of this member: stop one of them; if nobody copied them, revoke it"
        );
        let event = Event::new(Kind::CopiedIdentity, &Origin::coordinator()).about(by.name(), by.id());
        let event = event.with("one", from).with("other", copied.seen_from);
        if let Err(error) = shared.store.audit(&event, now).await {
            tracing::error!(why = %error, "the audit has no row about it");
        }
    }
    heard.copied
}

/// What is known of the member's tunnel URL; has it looked at if it is time to.
fn tunnel(shared: &Shared, by: &Verified, url: Option<&TunnelUrl>, now: UnixTime) -> Option<TunnelFound> {
    if !shared.config.check_tunnels {
        return None;
    }
    let mut tunnels = shared.tunnels();
    if tunnels.handle_heartbeat(by.id(), url, now)
        && let Some(url) = url
        && shared.looks.try_send(Look { member: by.id(), name: by.name().clone(), url: url.clone() }).is_err()
    {
        tunnels.on_not_looked(by.id(), now);
    }
    tunnels.found(&by.id()).cloned()
}

fn answer(
    shared: &Shared,
    by: &Verified,
    introductions: Vec<Signed<NodeRecord>>,
    revocation_number: u64,
) -> HeartbeatResponse {
    shared.metrics.heartbeats.inc();
    let number = shared.trust.current().revocation_number();
    let revocations = shared.ruling.list().filter(|_| revocation_number < number);
    // A number that we never gave proves nothing.
    let enforces = if revocation_number <= number { revocation_number } else { 0 };
    if shared.registry().on_shown(by, enforces) {
        shared.fleet_changed();
    }
    HeartbeatResponse {
        revocation_number: number,
        revocations: revocations.map(|signed| signed.as_ref().clone()),
        introductions,
        coordinators: shared.urls.clone(),
        interval_secs: shared.config.heartbeat_interval.as_secs(),
        register: !shared.registry().is_registered(by.id()),
        copied: None,
        tunnel: None,
        send_revocations: revocation_number > number,
    }
}
