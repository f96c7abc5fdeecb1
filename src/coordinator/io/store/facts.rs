//! What the database knows that bears on one machine.

use sqlx::{Row, Sqlite, Transaction};
use wiremesh_certs::{NodeId, NodeName, WgPublicKey};

use super::{StoreError, node_id, parsed, unsigned};
use crate::coordinator::enrolment::{Facts, Holder};

/// Of its identity, its name and its WireGuard key; of a token nothing yet.
pub(super) async fn facts(
    tx: &mut Transaction<'_, Sqlite>,
    identity: NodeId,
    name: &NodeName,
    wg: WgPublicKey,
) -> Result<Facts, StoreError> {
    let same_identity = sqlx::query("SELECT identity, name, host, revoked_at FROM members WHERE identity = ?")
        .bind(identity.0.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    let same_name =
        sqlx::query("SELECT identity, name, host, revoked_at FROM members WHERE name = ? AND revoked_at IS NULL")
            .bind(name.as_str())
            .fetch_optional(&mut **tx)
            .await?;
    let key_holder: Option<Vec<u8>> = sqlx::query_scalar("SELECT identity FROM wireguard_keys WHERE wireguard_key = ?")
        .bind(wg.0.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    let revoked: Option<i64> = sqlx::query_scalar("SELECT 1 FROM revocations WHERE kind = 'identity' AND value = ?")
        .bind(identity.0.as_slice())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(Facts {
        token: None,
        used_before: false,
        asked: None,
        same_identity: same_identity.as_ref().map(holder).transpose()?,
        identity_revoked: revoked.is_some(),
        same_name: same_name.as_ref().map(holder).transpose()?,
        key_holder: key_holder.map(node_id).transpose()?,
    })
}

fn holder(row: &sqlx::sqlite::SqliteRow) -> Result<Holder, StoreError> {
    Ok(Holder {
        identity: node_id(row.try_get("identity")?)?,
        name: parsed(row.try_get("name")?, "name")?,
        host: unsigned(row.try_get("host")?, "place in the network")?,
        revoked: row.try_get::<Option<i64>, _>("revoked_at")?.is_some(),
    })
}
