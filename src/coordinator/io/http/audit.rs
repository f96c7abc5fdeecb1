//! What was done, for the operator who looks or watches.

use std::time::Duration;

use axum::{
    Json,
    extract::{Query, rejection::QueryRejection},
    http::StatusCode,
};

use super::{Problem, State};
use crate::{
    api::admin::{Audit, AuditQuery},
    clock,
    coordinator::{audit::Kind, io::store::Wanted},
};

/// Rows in one answer: a few hundred KiB.
const MAX_ROWS: usize = 1000;
/// The longest wait for a row; less than any request may take.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// `GET /audit`
///
/// Who waits for a row is answered when there is one, when its time is over, or when the coordinator stops.
pub async fn audit(
    axum::extract::State(shared): State,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Audit>, Problem> {
    let Query(query) = query.map_err(|bad| Problem::bad_request("bad_query", bad.body_text()))?;
    let kind = query.kind.as_deref().map(|word| {
        let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        let unknown = || Problem::bad_request("bad_kind", format!("{word:?} is none of {}", known.join(", ")));
        Kind::parse(word).ok_or_else(unknown)
    });
    let wanted = Wanted { after: query.after, newest: query.newest, since: query.since, kind: kind.transpose()? };
    let until = clock::now() + Duration::from_secs(query.wait_secs).min(MAX_WAIT);
    let place = match query.wait_secs {
        0 => None,
        _ => Some(shared.watchers.try_acquire().map_err(|_| {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_watchers", "too many others watch the audit already")
        })?),
    };
    // Before the first look, so that no row falls between looking and waiting.
    let mut grew = shared.store.audit_grew();
    loop {
        let mut rows = shared.store.audited(&wanted, MAX_ROWS + 1).await?;
        let more = rows.len() > MAX_ROWS;
        rows.truncate(MAX_ROWS);
        if !rows.is_empty() || place.is_none() {
            return Ok(Json(Audit { rows, more }));
        }
        tokio::select! {
            Ok(()) = grew.changed() => {}
            () = tokio::time::sleep_until(until.into()) => return Ok(Json(Audit { rows, more })),
            () = shared.stopping.cancelled() => return Ok(Json(Audit { rows, more })),
        }
    }
}
