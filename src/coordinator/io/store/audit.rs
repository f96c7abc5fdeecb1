//! What was done, at rest: rows that are only ever added, and read in the order in which they were.

use std::net::IpAddr;

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use tokio::sync::watch;
use wiremesh_certs::UnixTime;

use super::{Store, StoreError, from_json, integer, node_id, parsed, to_json, unsigned};
use crate::{
    api::admin::AuditRow,
    coordinator::audit::{Event, Kind, MAX_ROWS},
};

/// The table, as SQLite tells its changes.
pub(super) const TABLE: &str = "audit";

/// Which rows are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Only those after this one.
    pub after: u64,
    /// Of those, only this many of the newest.
    pub newest: Option<u32>,
    /// Only those from then on.
    pub since: UnixTime,
    /// Only those of this kind.
    pub kind: Option<Kind>,
}

impl Store {
    /// Adds a row of its own. What is done in the database is told in the same transaction: [`write()`].
    pub async fn audit(&self, event: &Event, now: UnixTime) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        write(&mut tx, event, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The rows that are wanted, oldest first, at most `limit`.
    pub async fn audited(&self, wanted: &Wanted, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        let kind = wanted.kind.map(Kind::word);
        let since = integer(wanted.since.0);
        let mut after = integer(wanted.after);
        if let Some(newest) = wanted.newest {
            let before: Option<i64> = sqlx::query_scalar(
                "SELECT id FROM audit WHERE id > ?1 AND at >= ?2 AND (?3 IS NULL OR kind = ?3)
                 ORDER BY id DESC LIMIT 1 OFFSET ?4",
            )
            .bind(after)
            .bind(since)
            .bind(kind)
            .bind(i64::from(newest))
            .fetch_optional(&self.pool)
            .await?;
            after = before.unwrap_or(after);
        }
        let rows = sqlx::query(
            "SELECT * FROM audit WHERE id > ?1 AND at >= ?2 AND (?3 IS NULL OR kind = ?3) ORDER BY id LIMIT ?4",
        )
        .bind(after)
        .bind(since)
        .bind(kind)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(row).collect()
    }

    /// Changes whenever a row was added, or was about to be.
    pub fn audit_grew(&self) -> watch::Receiver<()> {
        self.grew.subscribe()
    }
}

/// Adds a row to what is being done, and lets go of the one that is beyond the bound.
pub async fn write(tx: &mut Transaction<'_, Sqlite>, event: &Event, now: UnixTime) -> Result<(), StoreError> {
    let Event { kind, origin, name, identity, token, detail } = event;
    let id = sqlx::query(
        "INSERT INTO audit (at, kind, actor, source, name, identity, token, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(integer(now.0))
    .bind(kind.word())
    .bind(to_json(&origin.by))
    .bind(origin.from.map(|from| from.to_string()))
    .bind(name.as_ref().map(|name| name.as_str()))
    .bind(identity.as_ref().map(|identity| identity.0.as_slice()))
    .bind(token)
    .bind(to_json(detail))
    .execute(&mut **tx)
    .await?
    .last_insert_rowid();
    sqlx::query("DELETE FROM audit WHERE id <= ?").bind(id - integer(MAX_ROWS)).execute(&mut **tx).await?;
    Ok(())
}

fn row(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    let name: Option<String> = row.try_get("name")?;
    let identity: Option<Vec<u8>> = row.try_get("identity")?;
    Ok(AuditRow {
        id: unsigned(row.try_get("id")?, "number")?,
        at: UnixTime(unsigned(row.try_get("at")?, "time")?),
        kind: row.try_get("kind")?,
        by: from_json(row.try_get("actor")?)?,
        from: address(row.try_get("source")?)?,
        name: name.map(|name| parsed(name, "name")).transpose()?,
        identity: identity.map(node_id).transpose()?,
        token: row.try_get("token")?,
        detail: from_json(row.try_get("detail")?)?,
    })
}

pub(super) fn address(text: Option<String>) -> Result<Option<IpAddr>, StoreError> {
    text.map(|text| parsed(text, "address")).transpose()
}
