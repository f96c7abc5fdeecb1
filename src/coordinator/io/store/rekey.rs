//! A member's change of keys at rest: certified, heard, the one before put on the list. Each step is repeatable, and what
//! a crash cut off is found again.

use std::net::IpAddr;

use sqlx::{Row, Sqlite, Transaction};
use wiremesh_certs::{AllowedServices, CertificateRequest, Chain, GroupName, NodeId, NodeName, ServiceName, UnixTime};

use super::{
    Store, StoreError, audit,
    enrol::{Grant, Issue, has_room, write_certificate},
    from_json, integer, node_id, parsed, unsigned, wg_key,
};
use crate::coordinator::{
    audit::{Event, Kind, Origin},
    registry::Member,
    rekey::{self, Facts, Refusal},
};

/// A member was heard with its next keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settled {
    /// What it is from here on.
    pub member: Member,
    /// The identity it had before.
    pub former: NodeId,
}

impl Store {
    /// A certificate for the next keys of the member `present`; the present ones stay good.
    pub async fn rekey(
        &self,
        present: NodeId,
        request: &CertificateRequest,
        from: IpAddr,
        now: UnixTime,
        issue: impl Issue,
    ) -> Result<(Member, Chain), StoreError> {
        let mut tx = self.begin().await?;
        let facts = facts(&mut tx, present, request, now).await?;
        let decision = rekey::decide(present, request, &facts)?;
        // The same keys may be asked for again, but not for ever: each time is a certificate, and a row of the audit.
        has_room(&mut tx, request.identity, now).await?;
        let row = sqlx::query("SELECT * FROM members WHERE identity = ?")
            .bind(present.0.as_slice())
            .fetch_one(&mut *tx)
            .await?;
        if let Some(abandoned) = decision.abandoned {
            leave_behind(&mut tx, abandoned, row.try_get("host")?, now).await?;
        }
        let member = Member { identity: request.identity, wg: request.wg, ..self.member(&row)? };
        let groups: Vec<GroupName> = from_json(row.try_get("groups")?)?;
        let services: Option<Vec<ServiceName>> =
            row.try_get::<Option<&str>, _>("services")?.map(from_json).transpose()?;
        let services = services.map_or(AllowedServices::Any, AllowedServices::Only);
        sqlx::query(
            "INSERT INTO rekeys (identity, next, wireguard_key, asked_at) VALUES (?, ?, ?, ?)
             ON CONFLICT (identity) DO UPDATE SET
                 next = excluded.next, wireguard_key = excluded.wireguard_key, asked_at = excluded.asked_at",
        )
        .bind(present.0.as_slice())
        .bind(request.identity.0.as_slice())
        .bind(request.wg.0.as_slice())
        .bind(integer(now.0))
        .execute(&mut *tx)
        .await?;
        sqlx::query("INSERT INTO wireguard_keys (wireguard_key, identity) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(request.wg.0.as_slice())
            .bind(request.identity.0.as_slice())
            .execute(&mut *tx)
            .await?;
        let grant = Grant { member, groups, services };
        let (chain, serial, not_after) = issue(&grant)?;
        write_certificate(&mut tx, &serial, request.identity, now, not_after).await?;
        let origin = Origin::named(&grant.member.name, present, from);
        let event = Event::new(Kind::NextKeysCertified, &origin).about(&grant.member.name, request.identity);
        audit::write(&mut tx, &event.with("serial", serial), now).await?;
        tx.commit().await?;
        Ok((grant.member, chain))
    }

    /// `heard` speaks. If these are the next keys of a member, they are its keys from here on, and the ones before are
    /// left behind, to be put on the list.
    pub async fn settle(&self, heard: NodeId, from: IpAddr, now: UnixTime) -> Result<Option<Settled>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "SELECT r.identity AS former, r.wireguard_key AS next_key, m.host, m.revoked_at
             FROM rekeys r JOIN members m ON m.identity = r.identity WHERE r.next = ?",
        )
        .bind(heard.0.as_slice())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        if row.try_get::<Option<i64>, _>("revoked_at")?.is_some() {
            return Err(Refusal::NotAMember.into());
        }
        let former = node_id(row.try_get("former")?)?;
        leave_behind(&mut tx, former, row.try_get("host")?, now).await?;
        sqlx::query(
            "UPDATE members SET identity = ?, wireguard_key = ?, record = NULL, capabilities = NULL, dht_port = NULL,
             last_heartbeat = NULL WHERE identity = ?",
        )
        .bind(heard.0.as_slice())
        .bind(wg_key(row.try_get("next_key")?)?.0.as_slice())
        .bind(former.0.as_slice())
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM rekeys WHERE next = ?").bind(heard.0.as_slice()).execute(&mut *tx).await?;
        let row = sqlx::query("SELECT * FROM members WHERE identity = ?")
            .bind(heard.0.as_slice())
            .fetch_one(&mut *tx)
            .await?;
        let member = self.member(&row)?;
        let origin = Origin::named(&member.name, heard, from);
        let event = Event::new(Kind::KeysChanged, &origin).about(&member.name, heard).with("before", former.to_hex());
        audit::write(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok(Some(Settled { member, former }))
    }

    /// Identities that were left behind and are not on the list yet; those that a revoked member had asked for are among
    /// them.
    pub async fn unlisted(&self, now: UnixTime) -> Result<Vec<NodeId>, StoreError> {
        let mut tx = self.begin().await?;
        let pending = sqlx::query(
            "SELECT r.next, m.host FROM rekeys r JOIN members m ON m.identity = r.identity
             WHERE m.revoked_at IS NOT NULL",
        )
        .fetch_all(&mut *tx)
        .await?;
        for row in pending {
            let next = node_id(row.try_get("next")?)?;
            leave_behind(&mut tx, next, row.try_get("host")?, now).await?;
            sqlx::query("DELETE FROM rekeys WHERE next = ?").bind(next.0.as_slice()).execute(&mut *tx).await?;
        }
        let rows: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT identity FROM former_identities WHERE listed_at IS NULL ORDER BY replaced_at")
                .fetch_all(&mut *tx)
                .await?;
        tx.commit().await?;
        rows.into_iter().map(node_id).collect()
    }

    /// An identity that was left behind is on the list.
    pub async fn listed(&self, identity: NodeId, now: UnixTime) -> Result<(), StoreError> {
        sqlx::query("UPDATE former_identities SET listed_at = COALESCE(listed_at, ?) WHERE identity = ?")
            .bind(integer(now.0))
            .bind(identity.0.as_slice())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Whether it is an identity that a member has left behind.
pub(super) async fn is_former(tx: &mut Transaction<'_, Sqlite>, identity: NodeId) -> Result<bool, StoreError> {
    let former: Option<i64> = sqlx::query_scalar("SELECT 1 FROM former_identities WHERE identity = ?")
        .bind(identity.0.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(former.is_some())
}

async fn leave_behind(
    tx: &mut Transaction<'_, Sqlite>,
    identity: NodeId,
    host: i64,
    now: UnixTime,
) -> Result<(), StoreError> {
    let ends_at = super::revoke::last_end(tx, identity, now).await?;
    sqlx::query(
        "INSERT INTO former_identities (identity, host, replaced_at, ends_at) VALUES (?, ?, ?, ?)
         ON CONFLICT DO NOTHING",
    )
    .bind(identity.0.as_slice())
    .bind(host)
    .bind(integer(now.0))
    .bind(ends_at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn facts(
    tx: &mut Transaction<'_, Sqlite>,
    present: NodeId,
    request: &CertificateRequest,
    now: UnixTime,
) -> Result<Facts, StoreError> {
    let (present, next) = (present.0.as_slice(), request.identity.0.as_slice());
    let row = sqlx::query("SELECT name, host, revoked_at FROM members WHERE identity = ?")
        .bind(present)
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(Facts::default()) };
    let name: NodeName = parsed(row.try_get("name")?, "name")?;
    let revoked = row.try_get::<Option<i64>, _>("revoked_at")?.is_some();
    let pending: Option<Vec<u8>> = sqlx::query_scalar("SELECT next FROM rekeys WHERE identity = ?")
        .bind(present)
        .fetch_optional(&mut **tx)
        .await?;
    let taken: i64 = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM members WHERE identity = ?1)
             OR EXISTS (SELECT 1 FROM rekeys WHERE next = ?1 AND identity <> ?2)
             OR EXISTS (SELECT 1 FROM former_identities WHERE identity = ?1)
             OR EXISTS (SELECT 1 FROM revocations WHERE kind = 'identity' AND value = ?1)",
    )
    .bind(next)
    .bind(present)
    .fetch_one(&mut **tx)
    .await?;
    let key_holder: Option<Vec<u8>> = sqlx::query_scalar("SELECT identity FROM wireguard_keys WHERE wireguard_key = ?")
        .bind(request.wg.0.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    let former: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM former_identities WHERE host = ? AND ends_at > ?")
        .bind(row.try_get::<i64, _>("host")?)
        .bind(integer(now.0))
        .fetch_one(&mut **tx)
        .await?;
    Ok(Facts {
        present: Some((name, revoked)),
        pending: pending.map(node_id).transpose()?,
        next_is_taken: taken != 0,
        key_holder: key_holder.map(node_id).transpose()?,
        former: unsigned(former, "count")?,
    })
}
