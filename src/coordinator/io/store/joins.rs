//! Machines that wait for an operator, at rest.

use std::net::IpAddr;

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use wiremesh_certs::{CertificateRequest, NodeId, NodeName, UnixTime};

use super::{Store, StoreError, audit, integer, node_id, parsed, tokens, unsigned, wg_key};
use crate::{
    api::admin::Join,
    coordinator::{
        audit::{Event, Kind, Origin, TokenUse},
        enrolment::{Asked, CHANGES_EVERY, MAX_WAITING, MORE_THAN_USES, Refusal, Standing, Token, WAITING_FOR},
    },
};

/// Which machine an operator means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Who {
    /// The only one that asks under this name.
    Name(NodeName),
    /// This one.
    Identity(NodeId),
}

/// What an operator says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may join.
    Approve,
    /// It may not.
    Decline,
}

/// A machine waits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waits {
    /// Whether it did so before: this is the same question once more.
    pub before: bool,
    /// Until when.
    pub ends_at: UnixTime,
    /// Who used the token, or asked with it, before: there are more now than it was made for.
    pub crowded_by: Option<TokenUse>,
}

impl Store {
    /// All machines that wait or were decided about lately, those that wait for longest first.
    pub async fn joins(&self, now: UnixTime) -> Result<Vec<Join>, StoreError> {
        let rows = sqlx::query("SELECT * FROM joins WHERE ends_at > ? ORDER BY standing <> 'waiting', asked_at, name")
            .bind(integer(now.0))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(join).collect()
    }

    /// An operator decides about a machine. Saying the same twice changes nothing.
    pub async fn decide_join(
        &self,
        who: &Who,
        verdict: Verdict,
        origin: &Origin,
        now: UnixTime,
    ) -> Result<Join, StoreError> {
        let mut tx = self.begin().await?;
        let found = find(&mut tx, who, now).await?;
        let (standing, kind) = match verdict {
            Verdict::Approve => (Standing::Approved, Kind::JoinApproved),
            Verdict::Decline => (Standing::Declined, Kind::JoinDeclined),
        };
        if found.standing == standing.word() {
            return Ok(found);
        }
        if verdict == Verdict::Approve {
            may_be_approved(&mut tx, &found).await?;
        }
        let ends_at = now.plus(WAITING_FOR);
        sqlx::query("UPDATE joins SET standing = ?, ends_at = ? WHERE identity = ?")
            .bind(standing.word())
            .bind(integer(ends_at.0))
            .bind(found.identity.0.as_slice())
            .execute(&mut *tx)
            .await?;
        let event = Event::new(kind, origin)
            .about(&found.name, found.identity)
            .with_token(&found.token)
            .with("wireguard_key", found.wireguard_key)
            .with("asked_from", found.from);
        audit::write(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok(Join { standing: standing.word().to_owned(), ends_at, ..found })
    }
}

/// What this identity asked, if that still stands.
pub(super) async fn asked(
    tx: &mut Transaction<'_, Sqlite>,
    identity: NodeId,
    now: UnixTime,
) -> Result<Option<Asked>, StoreError> {
    let row = sqlx::query("SELECT * FROM joins WHERE identity = ? AND ends_at > ?")
        .bind(identity.0.as_slice())
        .bind(integer(now.0))
        .fetch_optional(&mut **tx)
        .await?;
    let Some(join) = row.as_ref().map(join).transpose()? else { return Ok(None) };
    Ok(Some(Asked {
        name: join.name,
        wg: join.wireguard_key,
        token: join.token,
        standing: Standing::parse(&join.standing).ok_or(StoreError::Corrupt("standing"))?,
        asked_at: join.asked_at,
        heard_at: join.heard_at,
    }))
}

/// Keeps what a machine asks until an operator decides. What it asked before with other facts is replaced.
pub(super) async fn wait(
    tx: &mut Transaction<'_, Sqlite>,
    request: &CertificateRequest,
    token: &Token,
    asked: Option<&Asked>,
    from: IpAddr,
    now: UnixTime,
) -> Result<Waits, StoreError> {
    let same = asked.filter(|asked| asked.is(request, &token.id));
    if let Some(same) = same {
        if now.saturating_since(same.heard_at) >= CHANGES_EVERY {
            sqlx::query("UPDATE joins SET heard_at = ?, source = ? WHERE identity = ?")
                .bind(integer(now.0))
                .bind(from.to_string())
                .bind(request.identity.0.as_slice())
                .execute(&mut **tx)
                .await?;
        }
        return Ok(Waits { before: true, ends_at: ends_at(tx, request.identity).await?, crowded_by: None });
    }
    if asked.is_some_and(|asked| now.saturating_since(asked.asked_at) < CHANGES_EVERY) {
        return Err(StoreError::Full("this machine asked to join as another one less than a minute ago"));
    }
    let (waiting, with_token) = counts(tx, request.identity, &token.id, now).await?;
    if waiting >= MAX_WAITING {
        return Err(StoreError::Full("1,024 machines wait for an operator already; decide about some: wiremesh join"));
    }
    if with_token >= token.uses.saturating_add(MORE_THAN_USES) {
        return Err(StoreError::Full("more machines wait with this join token than it was made for"));
    }
    let crowded_by = match token.used.saturating_add(with_token) >= token.uses {
        true => first_asked(tx, &token.id, request.identity, now).await?,
        false => None,
    };
    let ends_at = now.plus(WAITING_FOR);
    sqlx::query(
        "INSERT OR REPLACE INTO joins (identity, name, wireguard_key, token, source, asked_at, heard_at, ends_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(request.identity.0.as_slice())
    .bind(request.name.as_str())
    .bind(request.wg.0.as_slice())
    .bind(&token.id)
    .bind(from.to_string())
    .bind(integer(now.0))
    .bind(integer(now.0))
    .bind(integer(ends_at.0))
    .execute(&mut **tx)
    .await?;
    let event = Event::new(Kind::JoinWaiting, &Origin::stranger(from))
        .about(&request.name, request.identity)
        .with_token(&token.id)
        .with("wireguard_key", request.wg)
        .with("until", ends_at)
        .with_if("first_use", crowded_by.as_ref());
    audit::write(tx, &event, now).await?;
    Ok(Waits { before: false, ends_at, crowded_by })
}

/// It joined: there is nothing left to be decided.
pub(super) async fn forget(tx: &mut Transaction<'_, Sqlite>, identity: NodeId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM joins WHERE identity = ?").bind(identity.0.as_slice()).execute(&mut **tx).await?;
    Ok(())
}

/// Removes those whose time is over, and tells of them.
pub(super) async fn lapse(tx: &mut Transaction<'_, Sqlite>, now: UnixTime) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT * FROM joins WHERE ends_at <= ?").bind(integer(now.0)).fetch_all(&mut **tx).await?;
    for row in &rows {
        let join = join(row)?;
        if join.standing != Standing::Declined.word() {
            let event = Event::new(Kind::JoinLapsed, &Origin::coordinator())
                .about(&join.name, join.identity)
                .with_token(&join.token)
                .with("standing", &join.standing);
            audit::write(tx, &event, now).await?;
        }
        forget(tx, join.identity).await?;
    }
    Ok(())
}

/// A revoked token lets nobody in, also not after an approval; nor does one that as many were let in with as it was made
/// for.
async fn may_be_approved(tx: &mut Transaction<'_, Sqlite>, join: &Join) -> Result<(), StoreError> {
    let token = tokens::by_id(tx, &join.token).await?.ok_or(Refusal::UnknownToken)?;
    if token.revoked_at.is_some() {
        return Err(Refusal::TokenRevoked(token.id).into());
    }
    let promised: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM joins WHERE token = ? AND standing = 'approved' AND identity <> ?")
            .bind(&join.token)
            .bind(join.identity.0.as_slice())
            .fetch_one(&mut **tx)
            .await?;
    let used_before = tokens::was_used_by(tx, &join.token, join.identity).await?;
    if !used_before && i64::from(token.used) + promised >= i64::from(token.uses) {
        return Err(Refusal::TokenUsed { id: token.id, uses: token.uses }.into());
    }
    Ok(())
}

async fn find(tx: &mut Transaction<'_, Sqlite>, who: &Who, now: UnixTime) -> Result<Join, StoreError> {
    let rows = match who {
        Who::Identity(identity) => {
            sqlx::query("SELECT * FROM joins WHERE identity = ? AND ends_at > ?")
                .bind(identity.0.as_slice())
                .bind(integer(now.0))
                .fetch_all(&mut **tx)
                .await?
        }
        Who::Name(name) => {
            sqlx::query("SELECT * FROM joins WHERE name = ? AND ends_at > ? ORDER BY asked_at")
                .bind(name.as_str())
                .bind(integer(now.0))
                .fetch_all(&mut **tx)
                .await?
        }
    };
    let mut found = rows.iter().map(join).collect::<Result<Vec<_>, _>>()?;
    if found.len() > 1 {
        found.retain(|join| join.standing != Standing::Declined.word());
    }
    match (found.len(), who) {
        (1, _) => Ok(found.remove(0)),
        (0, Who::Name(name)) => Err(StoreError::NotFound(format!("machine called {name} that asks to join"))),
        (0, Who::Identity(identity)) => {
            Err(StoreError::NotFound(format!("machine with identity {} that asks to join", identity.to_hex())))
        }
        (more, _) => {
            let name = &found[0].name;
            Err(StoreError::Ambiguous(format!("{more} machines ask to join as {name}: say which by its identity")))
        }
    }
}

/// How many others wait or are approved, and how many others asked with this token.
async fn counts(
    tx: &mut Transaction<'_, Sqlite>,
    identity: NodeId,
    token: &str,
    now: UnixTime,
) -> Result<(u32, u32), StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) FILTER (WHERE standing <> 'declined') AS waiting, COUNT(*) FILTER (WHERE token = ?) AS with_token
         FROM joins WHERE ends_at > ? AND identity <> ?",
    )
    .bind(token)
    .bind(integer(now.0))
    .bind(identity.0.as_slice())
    .fetch_one(&mut **tx)
    .await?;
    let count = |value: i64| u32::try_from(value).map_err(|_| StoreError::Corrupt("count"));
    Ok((count(row.try_get("waiting")?)?, count(row.try_get("with_token")?)?))
}

async fn ends_at(tx: &mut Transaction<'_, Sqlite>, identity: NodeId) -> Result<UnixTime, StoreError> {
    let ends_at: i64 = sqlx::query_scalar("SELECT ends_at FROM joins WHERE identity = ?")
        .bind(identity.0.as_slice())
        .fetch_one(&mut **tx)
        .await?;
    Ok(UnixTime(unsigned(ends_at, "time")?))
}

/// Who joined with the token first, or asked to, other than this one.
async fn first_asked(
    tx: &mut Transaction<'_, Sqlite>,
    token: &str,
    other_than: NodeId,
    now: UnixTime,
) -> Result<Option<TokenUse>, StoreError> {
    if let Some(used) = tokens::first_use(tx, token, other_than).await? {
        return Ok(Some(used));
    }
    let row = sqlx::query(
        "SELECT * FROM joins WHERE token = ? AND ends_at > ? AND identity <> ? ORDER BY asked_at, identity LIMIT 1",
    )
    .bind(token)
    .bind(integer(now.0))
    .bind(other_than.0.as_slice())
    .fetch_optional(&mut **tx)
    .await?;
    let join = row.as_ref().map(join).transpose()?;
    Ok(join.map(|join| TokenUse {
        name: Some(join.name),
        identity: join.identity,
        at: join.asked_at,
        from: Some(join.from),
    }))
}

fn join(row: &SqliteRow) -> Result<Join, StoreError> {
    let time = |column: &str| -> Result<UnixTime, StoreError> { Ok(UnixTime(unsigned(row.try_get(column)?, "time")?)) };
    Ok(Join {
        identity: node_id(row.try_get("identity")?)?,
        name: parsed(row.try_get("name")?, "name")?,
        wireguard_key: wg_key(row.try_get("wireguard_key")?)?,
        token: row.try_get("token")?,
        from: parsed(row.try_get("source")?, "address")?,
        standing: row.try_get("standing")?,
        asked_at: time("asked_at")?,
        heard_at: time("heard_at")?,
        ends_at: time("ends_at")?,
    })
}
