//! The list, who enforces it, and one authority after the other.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{FromRequestParts, Query},
    http::{StatusCode, header, request::Parts},
};
use wiremesh_certs::{Refused, Renewable, Trust, UnixTime};

use super::{Body, Caller, Operator, Problem, Said, Source, State};
use crate::{
    api::{
        RevocationsResponse, SendRevocations,
        authority::{
            Adoption, Authority, Behind, FleetQuery, MAX_WAIT_SECS, Members, RevocationsQuery, Rotate, Rotation, Silent,
        },
    },
    clock,
    coordinator::{
        audit::Origin,
        care,
        io::{
            fleet,
            rotation::{self, NotBegun},
            ruling,
            shared::Shared,
            store::Change,
        },
        registry,
        rotation::{Known, Living, Step},
    },
};

/// A member, or one that was: its certificate may have ended within the renewal window, or be from an authority that is no
/// longer believed.
pub struct Returning(pub Renewable);

impl FromRequestParts<Arc<Shared>> for Returning {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Returning, Problem> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let header = parts.headers.get(header::AUTHORIZATION);
        let header = header.ok_or_else(|| Problem::unauthorized("this needs a member's proof"))?;
        let header = header.to_str().map_err(|_| Problem::unauthorized("an authorization header that is not text"))?;
        let (trust, former) = (shared.trust.current(), shared.ruling.in_force().authorities.former());
        let (window, now) = (shared.config.renewal_window, clock::unix());
        let checked =
            shared.proofs().check_renewable(header, parts.method.as_str(), path, &trust, &former, window, now);
        let by = checked.map_err(|refused| match refused {
            Refused::Expired { not_after, .. } => window_over(not_after, window),
            refused => refused.into(),
        })?;
        super::rekey::on_heard(shared, by.id(), &parts.extensions).await?;
        super::known(&parts.extensions);
        Ok(Returning(by))
    }
}

fn window_over(not_after: UnixTime, window: Duration) -> Problem {
    let message =
        format!("its certificate ended at {not_after}, and it may be renewed for {} only", care::coarse(window));
    // Known, and too late: another proof would change nothing.
    Problem::new(StatusCode::FORBIDDEN, "renewal_window_over", message)
        .hint("join again with a new token: wiremesh token create; renewal_window in the coordinator's configuration")
}

/// Whoever may read the list: also those that are out of date and find back by it.
pub struct ListReader;

impl FromRequestParts<Arc<Shared>> for ListReader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<ListReader, Problem> {
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let scheme = value.split(' ').next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case(wiremesh_certs::SCHEME) {
            Returning::from_request_parts(parts, shared).await?;
        } else {
            Caller::from_request_parts(parts, shared).await?.reader(shared)?;
        }
        Ok(ListReader)
    }
}

/// `GET /api/revocations?after=N&wait=SECS`
pub async fn revocations(
    axum::extract::State(shared): State,
    _reader: ListReader,
    Query(query): Query<RevocationsQuery>,
) -> Json<RevocationsResponse> {
    let mut lists = shared.ruling.list_changes();
    if let Ok(_room) = shared.list_waiters.try_acquire() {
        let newer = lists.wait_for(|_| shared.trust.current().revocation_number() > query.after);
        tokio::select! {
            _ = newer => {}
            () = tokio::time::sleep(bounded(query.wait)) => {}
            () = shared.stopping.cancelled() => {}
        }
    }
    Json(list(&shared, query.after))
}

/// The same on the Unix socket, at once.
pub async fn revocations_for_admin(axum::extract::State(shared): State) -> Json<RevocationsResponse> {
    Json(list(&shared, 0))
}

fn list(shared: &Shared, after: u64) -> RevocationsResponse {
    let number = shared.trust.current().revocation_number();
    let signed = shared.ruling.list().filter(|_| number > after);
    RevocationsResponse { number, revocations: signed.map(|signed| signed.as_ref().clone()) }
}

/// `POST /api/revocations`: a member has a newer list than we, who were restored from a backup. It is believed because an
/// authority of ours signed it.
pub async fn take_over(
    axum::extract::State(shared): State,
    Extension(Source(source)): Extension<Source>,
    Said { by, body }: Said<SendRevocations>,
) -> Result<Json<RevocationsResponse>, Problem> {
    let now = clock::unix();
    let mut trust = Trust::clone(&shared.trust.current());
    let is_news = match trust.apply_revocations(&body.revocations, now) {
        // Another member was faster.
        Err(Refused::OlderRevocations { .. }) => false,
        applied => applied?,
    };
    if is_news {
        let list = trust.revocations().clone();
        let ours = shared.ruling.in_force().authorities.issuing().certificate.der().to_vec();
        if !list.authorities.is_empty() && list.authorities.first() != Some(&ours) {
            tracing::error!(
                given = list.number, by = %by.name(),
                "a newer list of this mesh names another authority than ours as the one that issues; \
                 restore the database and the folder of the authorities from the same backup"
            );
            let message = "that list is from after a change of authority that this coordinator does not know of";
            return Err(Problem::new(StatusCode::CONFLICT, "lineage_lost", message));
        }
        let ours = shared.trust.current().revocation_number();
        tracing::warn!(
            ours, given = list.number, by = %by.name(),
            "a member has a newer list than this coordinator, whose database is from a backup: taken over"
        );
        let until = now.plus(shared.config.certificate_lifetime);
        let doing = {
            let shared = shared.clone();
            async move {
                let change = Change::TakeOver { list, until };
                let published = shared.publish(&change, &Origin::member(&by, source), now).await;
                forget_revoked(&shared);
                published
            }
        };
        ruling::to_its_end(doing).await.map_err(internal)??;
    }
    Ok(Json(list(&shared, 0)))
}

/// Members that are revoked leave the registry.
fn forget_revoked(shared: &Shared) {
    let trust = shared.trust.current();
    let mut registry = shared.registry();
    for identity in &trust.revocations().identities {
        registry.remove(*identity);
    }
}

/// `GET /adoption`
pub async fn adoption(axum::extract::State(shared): State, Query(query): Query<FleetQuery>) -> Json<Adoption> {
    wait_for_change(&shared, &query).await;
    let now = clock::unix();
    let version = *shared.fleet.borrow();
    let number = query.number.unwrap_or_else(|| shared.trust.current().revocation_number());
    let registry = shared.registry();
    let registry::Adoption { enforced, behind } = registry.adoption(number, now);
    let silent = registry.seen(now).filter(|seen| !seen.lives);
    let silent = silent.map(|seen| Silent { name: seen.member.name.clone(), heard_at: seen.heard_at }).collect();
    let living = enforced + behind.len();
    Json(Adoption { number, living, enforced, behind: behind.into_iter().map(shown).collect(), silent, version })
}

/// `GET /rotation`
pub async fn rotation(axum::extract::State(shared): State, Query(query): Query<FleetQuery>) -> Json<Rotation> {
    wait_for_change(&shared, &query).await;
    Json(state(&shared))
}

/// `POST /rotation`
pub async fn rotate(
    axum::extract::State(shared): State,
    Extension(operator): Extension<Operator>,
    Body(body): Body<Rotate>,
) -> Result<Json<Rotation>, Problem> {
    let mut cut_off = Vec::new();
    let (doing, origin) = (shared.clone(), operator.origin());
    match body {
        Rotate::Begin { brought } => {
            ruling::to_its_end(rotation::begin(doing, brought, origin)).await.map_err(internal)??;
        }
        Rotate::Cancel => {
            ruling::to_its_end(rotation::step(doing, Step::Withdraw, origin)).await.map_err(internal)??;
        }
        Rotate::Force => {
            cut_off = ruling::to_its_end(rotation::step(doing, Step::Retire, origin)).await.map_err(internal)??;
        }
    }
    shared.fleet_changed();
    Ok(Json(Rotation { cut_off, ..state(&shared) }))
}

/// `GET /members`
pub async fn members(axum::extract::State(shared): State) -> Result<Json<Members>, Problem> {
    Ok(Json(fleet::members(&shared, clock::unix()).await?))
}

fn state(shared: &Shared) -> Rotation {
    let version = *shared.fleet.borrow();
    let fleet = rotation::fleet(shared, clock::unix());
    let in_force = shared.ruling.in_force();
    let stage = in_force.authorities.stage();
    Rotation {
        stage: stage.word().to_owned(),
        authorities: in_force.authorities.all().iter().map(described).collect(),
        living: fleet.living.len(),
        heard_everybody: fleet.is_complete,
        waits_for: fleet.living.into_iter().filter(|member| stage.waits_for(member)).map(shown).collect(),
        cut_off: Vec::new(),
        number: shared.trust.current().revocation_number(),
        version,
    }
}

/// Returns at once if anything has changed since the version that is asked about; else when something does, or somebody
/// falls silent, or the time is over.
async fn wait_for_change(shared: &Shared, query: &FleetQuery) {
    let Some(version) = query.version else { return };
    let mut fleet = shared.fleet.subscribe();
    let now = clock::unix();
    let silence = shared.registry().next_silence(now).map(|at| at.saturating_since(now) + Duration::from_secs(1));
    let wait = bounded(query.wait_secs).min(silence.unwrap_or(Duration::MAX));
    tokio::select! {
        _ = fleet.wait_for(|current| *current != version) => {}
        () = tokio::time::sleep(wait) => {}
        () = shared.stopping.cancelled() => {}
    }
}

fn bounded(secs: u64) -> Duration {
    Duration::from_secs(secs.min(MAX_WAIT_SECS))
}

/// As the socket's answers describe it.
pub fn described(known: &Known) -> Authority {
    Authority {
        fingerprint: known.fingerprint(),
        standing: known.standing.word().to_owned(),
        since: known.since,
        root: known.root().fingerprint(),
        begins_at: known.certificate.not_before(),
        ends_at: known.certificate.not_after(),
        published: known.published,
    }
}

fn shown(member: Living) -> Behind {
    let Living { name, heard_at, enforces, authority } = member;
    Behind { name, heard_at, enforces, authority }
}

fn internal(error: tokio::task::JoinError) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)
}

impl From<NotBegun> for Problem {
    fn from(error: NotBegun) -> Problem {
        match error {
            NotBegun::Store(error) => error.into(),
            NotBegun::Files(why) => Problem::bad_request("bad_authority", format!("{why:#}"))
                .hint("its files must be readable by the user that runs the coordinator"),
        }
    }
}
