//! The database: SQLite in one file, one connection, every change a transaction.
//!
//! One connection is enough: what is read often is in the registry, and writes come one at a time anyway. It also means
//! that two transactions never wait for each other inside SQLite.

mod audit;
mod enrol;
mod facts;
mod joins;
mod list;
mod rekey;
mod revoke;
mod tokens;

use std::{path::Path, sync::Arc, time::Duration};

use ipnet::IpNet;
use sqlx::{
    Row, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::watch;
use wiremesh_certs::{Authority, Fingerprint, IssueError, NodeId, Refused, SignError, UnixTime, WgPublicKey};

use crate::coordinator::{
    enrolment::{self, Refusal},
    registry::{Capabilities, Dirty, Member},
    rekey::Refusal as RekeyRefusal,
    rotation::{CannotRotate, Known},
};

pub use audit::Wanted;
pub use enrol::{Enrolled, Grant, Newcomers};
pub use joins::{Verdict, Waits, Who};
pub use list::{Change, Published};
pub use revoke::{Revocation, Target};

/// How long a request waits for the connection before it fails.
const WAIT: Duration = Duration::from_secs(10);
/// Tokens that ended are listed for this long.
const KEEP_TOKENS: Duration = Duration::from_secs(30 * 86_400);

mod fact {
    pub const AUTHORITY: &str = "authority";
    pub const FLUSHED_AT: &str = "flushed_at";
    pub const REVOCATION_NUMBER: &str = "revocation_number";
    pub const REVOCATIONS: &str = "revocations";
}

/// Something was not done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It may not be done; trying again changes nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Keys may not be changed so; trying again with them changes nothing.
    #[error(transparent)]
    Rekey(#[from] RekeyRefusal),
    /// There is no such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// It is not said which of several is meant.
    #[error("{0}")]
    Ambiguous(String),
    /// A bound is reached.
    #[error("{0}")]
    Full(&'static str),
    /// The authority did not sign.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A rotation does not begin or go on.
    #[error(transparent)]
    CannotRotate(#[from] CannotRotate),
    /// Its file is missing.
    #[error("the key of the authority {0} is not here")]
    NoKey(Fingerprint),
    /// Members would not take the list over, so it is not published.
    #[error("the list would be refused by members: {0}")]
    Unbelieved(#[source] Refused),
    /// The revocation list could not be signed.
    #[error("the revocation list could not be signed: {0}")]
    Sign(#[from] SignError),
    /// The file holds something that this program did not write.
    #[error("the database holds a {0} that cannot be read")]
    Corrupt(&'static str),
    /// SQLite, or the disk under it.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

/// What was known of one member when it was last written.
pub struct Saved {
    /// Who it is.
    pub member: Member,
    /// What it said: record, capabilities, directory port, and when it was last heard.
    pub said: Option<Said>,
}

/// What a member said, as it is stored.
pub struct Said {
    /// The signed record.
    pub record: Vec<u8>,
    /// What the machine is.
    pub capabilities: Option<Arc<Capabilities>>,
    /// Where its directory listens.
    pub dht_port: u16,
    /// When it was last heard.
    pub last_heartbeat: UnixTime,
}

/// The database. Clones share it.
#[derive(Clone)]
pub struct Store {
    pool: SqlitePool,
    network: IpNet,
    /// Told of every row that the audit grows by.
    grew: watch::Sender<()>,
}

impl Store {
    /// Returns when the database has answered, whatever it says.
    pub async fn answers(&self) {
        let _ = sqlx::query("SELECT 1").execute(&self.pool).await;
    }

    /// Opens or makes the database and brings its tables up to date. `first` is the authority in ca.crt: the mesh's first,
    /// or whichever of its later ones the operator put there.
    pub async fn open(path: &Path, first: &Authority, now: UnixTime) -> anyhow::Result<Store> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A token that was used stays used and an address given stays given, also when the power goes.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT);
        let grew = watch::Sender::new(());
        let told = grew.clone();
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(WAIT)
            // SQLite tells of a row as it is written. Whoever then comes to read it gets the one connection when the
            // transaction is over.
            .after_connect(move |connection, _| {
                let told = told.clone();
                Box::pin(async move {
                    connection.lock_handle().await?.set_update_hook(move |change| {
                        if change.table == audit::TABLE {
                            told.send_replace(());
                        }
                    });
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        sqlx::migrate!("src/coordinator/migrations").run(&pool).await?;
        let store = Store { pool, network: first.certificate().network(), grew };
        let given = first.certificate().fingerprint();
        let founder = store.fact(fact::AUTHORITY).await?;
        if founder.is_none() {
            let mut tx = store.begin().await?;
            set_fact(&mut tx, fact::AUTHORITY, &given.0).await?;
            tx.commit().await?;
        }
        let is_founder = founder.is_none_or(|founder| founder == given.0);
        if is_founder {
            store.note_first(first, now).await?;
        }
        let is_known = |known: &Known| known.fingerprint() == given;
        anyhow::ensure!(
            is_founder || store.authorities().await?.all().iter().any(is_known),
            "{} belongs to another authority than ca.crt",
            path.display()
        );
        Ok(store)
    }

    /// Every member that is not revoked.
    pub async fn members(&self) -> Result<Vec<Saved>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM members WHERE revoked_at IS NULL ORDER BY name").fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(Saved { member: self.member(row)?, said: said(row)? })).collect()
    }

    /// Writes what changed, in one transaction.
    pub async fn flush(&self, changes: &[(NodeId, Dirty)], now: UnixTime) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for (identity, change) in changes {
            let identity = identity.0.as_slice();
            match change {
                Dirty::Heard(at) => {
                    sqlx::query("UPDATE members SET last_heartbeat = ? WHERE identity = ?")
                        .bind(integer(at.0))
                        .bind(identity)
                        .execute(&mut *tx)
                        .await?;
                }
                Dirty::Said(presence) => {
                    let capabilities = presence.capabilities.as_deref().map(to_json);
                    sqlx::query(
                        "UPDATE members SET record = ?, capabilities = ?, dht_port = ?, last_heartbeat = ?
                         WHERE identity = ?",
                    )
                    .bind(presence.signed.as_bytes())
                    .bind(capabilities)
                    .bind(i64::from(presence.dht_port))
                    .bind(integer(presence.last_heartbeat.0))
                    .bind(identity)
                    .execute(&mut *tx)
                    .await?;
                }
                Dirty::Gone => {
                    sqlx::query(
                        "UPDATE members SET record = NULL, capabilities = NULL, dht_port = NULL, last_heartbeat = NULL
                         WHERE identity = ?",
                    )
                    .bind(identity)
                    .execute(&mut *tx)
                    .await?;
                }
            }
        }
        set_fact(&mut tx, fact::FLUSHED_AT, &now.0.to_be_bytes()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// When members were last written: since then nobody was heard.
    pub async fn flushed_at(&self) -> Result<Option<UnixTime>, StoreError> {
        let bytes = self.fact(fact::FLUSHED_AT).await?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(|bytes| UnixTime(u64::from_be_bytes(bytes))))
    }

    /// Forgets what no longer matters to anybody: a certificate that ended may be renewed for `renewal_window`, and must
    /// not be if it was revoked.
    pub async fn tidy(&self, renewal_window: Duration, now: UnixTime) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let ended = integer(now.minus(renewal_window).0);
        sqlx::query("DELETE FROM revocations WHERE ends_at < ?").bind(ended).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM certificates WHERE not_after < ?").bind(ended).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM former_identities WHERE ends_at < ? AND listed_at IS NOT NULL")
            .bind(ended)
            .execute(&mut *tx)
            .await?;
        joins::lapse(&mut tx, now).await?;
        sqlx::query("DELETE FROM tokens WHERE expires_at < ?")
            .bind(integer(now.minus(KEEP_TOKENS).0))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Closes the file; what is under way is waited for.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// `IMMEDIATE`: who reads in order to write holds the write lock from the first read on.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.pool.begin_with("BEGIN IMMEDIATE").await
    }

    async fn fact(&self, key: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(sqlx::query_scalar("SELECT value FROM facts WHERE key = ?").bind(key).fetch_optional(&self.pool).await?)
    }

    fn member(&self, row: &SqliteRow) -> Result<Member, StoreError> {
        let host = unsigned(row.try_get("host")?, "place in the network")?;
        Ok(Member {
            identity: node_id(row.try_get("identity")?)?,
            name: parsed(row.try_get("name")?, "name")?,
            address: enrolment::address_of(self.network, host).ok_or(StoreError::Corrupt("place in the network"))?,
            wg: wg_key(row.try_get("wireguard_key")?)?,
        })
    }
}

fn said(row: &SqliteRow) -> Result<Option<Said>, StoreError> {
    let Some(record) = row.try_get::<Option<Vec<u8>>, _>("record")? else { return Ok(None) };
    let capabilities: Option<String> = row.try_get("capabilities")?;
    let capabilities: Option<Capabilities> = capabilities.as_deref().map(from_json).transpose()?;
    let dht_port: Option<i64> = row.try_get("dht_port")?;
    Ok(Some(Said {
        record,
        capabilities: capabilities.map(Arc::new),
        dht_port: dht_port.and_then(|port| port.try_into().ok()).unwrap_or(crate::api::DEFAULT_DHT_PORT),
        last_heartbeat: UnixTime(unsigned(row.try_get::<Option<i64>, _>("last_heartbeat")?.unwrap_or(0), "time")?),
    }))
}

async fn set_fact(tx: &mut Transaction<'_, Sqlite>, key: &'static str, value: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(key)
        .bind(value)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// SQLite's integers are signed. Ours are times and counts, far below the limit.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64, what: &'static str) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Corrupt(what))
}

fn node_id(bytes: Vec<u8>) -> Result<NodeId, StoreError> {
    bytes.try_into().map(NodeId).map_err(|_| StoreError::Corrupt("identity"))
}

fn wg_key(bytes: Vec<u8>) -> Result<WgPublicKey, StoreError> {
    bytes.try_into().map(WgPublicKey).map_err(|_| StoreError::Corrupt("WireGuard key"))
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("names and JSON objects are JSON")
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Corrupt("JSON value"))
}

fn parsed<T: std::str::FromStr>(text: String, what: &'static str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt(what))
}

#[cfg(test)]
mod tests;
