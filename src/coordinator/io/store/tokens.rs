//! Join tokens at rest: their hashes, what they allow, who used them.

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use wiremesh_certs::{GroupName, NodeId, ServiceName, UnixTime};

use super::{Store, StoreError, from_json, integer, parsed, to_json, unsigned};
use crate::coordinator::enrolment::Token;

/// Tokens kept at once, ended ones of the last days included. At the bound no more are made.
pub const MAX_TOKENS: i64 = 10_000;

impl Store {
    /// Keeps a new token. Its secret was never here.
    pub async fn add_token(&self, token: &Token, secret_hash: &[u8; 32]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tokens").fetch_one(&mut *tx).await?;
        if kept >= MAX_TOKENS {
            return Err(StoreError::Full("there are 10,000 join tokens; ended ones are forgotten after 30 days"));
        }
        sqlx::query(
            "INSERT INTO tokens (id, hash, name, groups, services, uses, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&token.id)
        .bind(secret_hash.as_slice())
        .bind(token.name.as_ref().map(|name| name.as_str()))
        .bind(to_json(&token.groups))
        .bind(to_json(&token.services))
        .bind(i64::from(token.uses))
        .bind(integer(token.created_at.0))
        .bind(integer(token.expires_at.0))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// All of them, newest first.
    pub async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let rows = sqlx::query("SELECT * FROM tokens ORDER BY created_at DESC, id").fetch_all(&self.pool).await?;
        rows.iter().map(token).collect()
    }

    /// Takes one back. Who joined with it stays.
    pub async fn revoke_token(&self, id: &str, now: UnixTime) -> Result<(), StoreError> {
        let changed = sqlx::query("UPDATE tokens SET revoked_at = COALESCE(revoked_at, ?) WHERE id = ?")
            .bind(integer(now.0))
            .bind(id)
            .execute(&self.pool)
            .await?;
        match changed.rows_affected() {
            0 => Err(StoreError::NotFound(format!("join token {id:?}"))),
            _ => Ok(()),
        }
    }
}

pub(super) async fn by_hash(
    tx: &mut Transaction<'_, Sqlite>,
    secret_hash: &[u8; 32],
) -> Result<Option<Token>, StoreError> {
    let row = sqlx::query("SELECT * FROM tokens WHERE hash = ?")
        .bind(secret_hash.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(token).transpose()
}

pub(super) async fn was_used_by(
    tx: &mut Transaction<'_, Sqlite>,
    token: &str,
    identity: NodeId,
) -> Result<bool, StoreError> {
    let used: Option<i64> = sqlx::query_scalar("SELECT 1 FROM token_uses WHERE token = ? AND identity = ?")
        .bind(token)
        .bind(identity.0.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(used.is_some())
}

/// The table itself refuses a use beyond the last one.
pub(super) async fn charge(
    tx: &mut Transaction<'_, Sqlite>,
    token: &str,
    identity: NodeId,
    now: UnixTime,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE tokens SET used = used + 1 WHERE id = ?").bind(token).execute(&mut **tx).await?;
    sqlx::query("INSERT INTO token_uses (token, identity, used_at) VALUES (?, ?, ?)")
        .bind(token)
        .bind(identity.0.as_slice())
        .bind(integer(now.0))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn token(row: &SqliteRow) -> Result<Token, StoreError> {
    let name: Option<String> = row.try_get("name")?;
    let groups: Vec<GroupName> = from_json(row.try_get("groups")?)?;
    let services: Vec<ServiceName> = from_json(row.try_get("services")?)?;
    let count = |value: i64| u32::try_from(value).map_err(|_| StoreError::Corrupt("count"));
    let time = |value: i64| unsigned(value, "time").map(UnixTime);
    Ok(Token {
        id: row.try_get("id")?,
        name: name.map(|name| parsed(name, "name")).transpose()?,
        groups,
        services,
        uses: count(row.try_get("uses")?)?,
        used: count(row.try_get("used")?)?,
        created_at: time(row.try_get("created_at")?)?,
        expires_at: time(row.try_get("expires_at")?)?,
        revoked_at: row.try_get::<Option<i64>, _>("revoked_at")?.map(time).transpose()?,
    })
}
