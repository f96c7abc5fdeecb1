//! Join tokens at rest: their hashes, what they allow, who used them.

use std::net::IpAddr;

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use wiremesh_certs::{CertificateRequest, GroupName, NodeId, ServiceName, UnixTime};

use super::{
    Store, StoreError,
    audit::{self, address},
    from_json, integer, node_id, parsed, to_json, unsigned,
};
use crate::coordinator::{
    audit::{Event, Kind, Origin, TokenUse},
    enrolment::Token,
};

/// Tokens kept at once, ended ones of the last days included. At the bound no more are made.
pub const MAX_TOKENS: i64 = 10_000;

impl Store {
    /// Keeps a new token. Its secret was never here.
    pub async fn add_token(&self, token: &Token, secret_hash: &[u8; 32], origin: &Origin) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tokens").fetch_one(&mut *tx).await?;
        if kept >= MAX_TOKENS {
            return Err(StoreError::Full("there are 10,000 join tokens; ended ones are forgotten after 30 days"));
        }
        sqlx::query(
            "INSERT INTO tokens (id, hash, name, groups, services, uses, approve, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&token.id)
        .bind(secret_hash.as_slice())
        .bind(token.name.as_ref().map(|name| name.as_str()))
        .bind(to_json(&token.groups))
        .bind(to_json(&token.services))
        .bind(i64::from(token.uses))
        .bind(i64::from(token.approve))
        .bind(integer(token.created_at.0))
        .bind(integer(token.expires_at.0))
        .execute(&mut *tx)
        .await?;
        let event = Event::new(Kind::TokenMade, origin)
            .with_token(&token.id)
            .with_if("for_name", token.name.as_ref())
            .with("groups", &token.groups)
            .with("services", &token.services)
            .with("uses", token.uses)
            .with("approve", token.approve)
            .with("until", token.expires_at);
        audit::write(&mut tx, &event, token.created_at).await?;
        tx.commit().await?;
        Ok(())
    }

    /// All of them, newest first.
    pub async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let rows = sqlx::query("SELECT * FROM tokens ORDER BY created_at DESC, id").fetch_all(&self.pool).await?;
        rows.iter().map(token).collect()
    }

    /// Takes one back. Who joined with it stays; who waits with it waits in vain. Twice is as good as once.
    pub async fn revoke_token(&self, id: &str, origin: &Origin, now: UnixTime) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let token = by_id(&mut tx, id).await?.ok_or_else(|| StoreError::NotFound(format!("join token {id:?}")))?;
        if token.revoked_at.is_some() {
            return Ok(());
        }
        sqlx::query("UPDATE tokens SET revoked_at = ? WHERE id = ?")
            .bind(integer(now.0))
            .bind(id)
            .execute(&mut *tx)
            .await?;
        let event =
            Event::new(Kind::TokenRevoked, origin).with_token(id).with("uses", token.uses).with("used", token.used);
        audit::write(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok(())
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

pub(super) async fn by_id(tx: &mut Transaction<'_, Sqlite>, id: &str) -> Result<Option<Token>, StoreError> {
    let row = sqlx::query("SELECT * FROM tokens WHERE id = ?").bind(id).fetch_optional(&mut **tx).await?;
    row.as_ref().map(token).transpose()
}

/// Who joined with it first, other than this one.
pub(super) async fn first_use(
    tx: &mut Transaction<'_, Sqlite>,
    token: &str,
    other_than: NodeId,
) -> Result<Option<TokenUse>, StoreError> {
    let row = sqlx::query(
        "SELECT u.identity, COALESCE(u.name, m.name) AS name, u.used_at, u.source
         FROM token_uses u LEFT JOIN members m ON m.identity = u.identity
         WHERE u.token = ? AND u.identity <> ? ORDER BY u.used_at, u.identity LIMIT 1",
    )
    .bind(token)
    .bind(other_than.0.as_slice())
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let name: Option<String> = row.try_get("name")?;
    Ok(Some(TokenUse {
        name: name.map(|name| parsed(name, "name")).transpose()?,
        identity: node_id(row.try_get("identity")?)?,
        at: UnixTime(unsigned(row.try_get("used_at")?, "time")?),
        from: address(row.try_get("source")?)?,
    }))
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
    request: &CertificateRequest,
    from: IpAddr,
    now: UnixTime,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE tokens SET used = used + 1 WHERE id = ?").bind(token).execute(&mut **tx).await?;
    sqlx::query("INSERT INTO token_uses (token, identity, used_at, name, source) VALUES (?, ?, ?, ?, ?)")
        .bind(token)
        .bind(request.identity.0.as_slice())
        .bind(integer(now.0))
        .bind(request.name.as_str())
        .bind(from.to_string())
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
        approve: row.try_get::<i64, _>("approve")? != 0,
        created_at: time(row.try_get("created_at")?)?,
        expires_at: time(row.try_get("expires_at")?)?,
        revoked_at: row.try_get::<Option<i64>, _>("revoked_at")?.map(time).transpose()?,
    })
}
