//! Revocations at rest: what is revoked, until when that matters, and for whom.

use sqlx::{Row, Sqlite, Transaction};
use wiremesh_certs::{NodeId, NodeName, Serial, UnixTime};

use super::{
    Store, StoreError, audit, integer,
    list::{self, Make, Published},
    node_id, parsed, rekey,
};
use crate::coordinator::audit::{Event, Kind, Origin};

/// What is to be revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// The member with this name, and all its certificates.
    Name(NodeName),
    /// This identity, and all its certificates.
    Identity(NodeId),
    /// One certificate.
    Serial(Serial),
}

/// What was revoked.
pub struct Revocation {
    /// Whose it was.
    pub identity: NodeId,
    /// What that member is called.
    pub name: Option<NodeName>,
    /// The list that says so.
    pub published: Published,
}

impl Store {
    /// Revokes and signs the next list, or does neither.
    pub async fn revoke(
        &self,
        target: &Target,
        origin: &Origin,
        now: UnixTime,
        make: impl Make,
    ) -> Result<Revocation, StoreError> {
        let mut tx = self.begin().await?;
        let (identity, serial) = find(&mut tx, target).await?;
        let (kind, value, ends_at) = match &serial {
            Some((serial, not_after)) => ("serial", serial.0.to_vec(), *not_after),
            None => ("identity", identity.0.to_vec(), last_end(&mut tx, identity, now).await?),
        };
        sqlx::query(
            "INSERT INTO revocations (kind, value, revoked_at, ends_at) VALUES (?, ?, ?, ?)
             ON CONFLICT (kind, value) DO UPDATE SET ends_at = MAX(ends_at, excluded.ends_at)",
        )
        .bind(kind)
        .bind(value)
        .bind(integer(now.0))
        .bind(ends_at)
        .execute(&mut *tx)
        .await?;
        let name: Option<String> = sqlx::query_scalar(
            "SELECT name FROM members WHERE identity = ?1
             UNION ALL SELECT m.name FROM former_identities f JOIN members m ON m.host = f.host WHERE f.identity = ?1",
        )
        .bind(identity.0.as_slice())
        .fetch_optional(&mut *tx)
        .await?;
        let name: Option<NodeName> = name.map(|name| parsed(name, "name")).transpose()?;
        if serial.is_none() {
            sqlx::query("UPDATE members SET revoked_at = COALESCE(revoked_at, ?), record = NULL WHERE identity = ?")
                .bind(integer(now.0))
                .bind(identity.0.as_slice())
                .execute(&mut *tx)
                .await?;
        }
        let published = list::next_list(&mut tx, now, make).await?;
        let event = Event { name: name.clone(), identity: Some(identity), ..Event::new(Kind::Revoked, origin) }
            .with("number", published.number)
            .with_if("serial", serial.map(|(serial, _)| serial));
        audit::write(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok(Revocation { identity, name, published })
    }
}

/// Whose it is; and the certificate with its end, if only that is meant.
async fn find(
    tx: &mut Transaction<'_, Sqlite>,
    target: &Target,
) -> Result<(NodeId, Option<(Serial, i64)>), StoreError> {
    match target {
        Target::Name(name) => {
            let identity: Option<Vec<u8>> =
                sqlx::query_scalar("SELECT identity FROM members WHERE name = ? AND revoked_at IS NULL")
                    .bind(name.as_str())
                    .fetch_optional(&mut **tx)
                    .await?;
            let identity = identity.ok_or_else(|| StoreError::NotFound(format!("member called {name}")))?;
            Ok((node_id(identity)?, None))
        }
        Target::Identity(identity) => {
            let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM members WHERE identity = ?")
                .bind(identity.0.as_slice())
                .fetch_optional(&mut **tx)
                .await?;
            if known.is_none() && !rekey::is_former(tx, *identity).await? {
                return Err(StoreError::NotFound(format!("member with identity {}", identity.to_hex())));
            }
            Ok((*identity, None))
        }
        Target::Serial(serial) => {
            let row = sqlx::query("SELECT identity, not_after FROM certificates WHERE serial = ?")
                .bind(serial.0.as_slice())
                .fetch_optional(&mut **tx)
                .await?
                .ok_or_else(|| StoreError::NotFound(format!("certificate with serial {serial} that has not ended")))?;
            Ok((node_id(row.try_get("identity")?)?, Some((*serial, row.try_get("not_after")?))))
        }
    }
}

/// When the last certificate of `identity` ends.
pub(super) async fn last_end(
    tx: &mut Transaction<'_, Sqlite>,
    identity: NodeId,
    now: UnixTime,
) -> Result<i64, StoreError> {
    let end: Option<i64> = sqlx::query_scalar("SELECT MAX(not_after) FROM certificates WHERE identity = ?")
        .bind(identity.0.as_slice())
        .fetch_one(&mut **tx)
        .await?;
    Ok(end.unwrap_or(0).max(integer(now.0)))
}
