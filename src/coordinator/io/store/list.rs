//! The list that rules the mesh, at rest: what goes into it changes in the transaction that writes the next one.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use wiremesh_certs::{Authority, CaCertificate, NodeId, RevocationList, Serial, SignedRevocations, UnixTime};

use super::{Store, StoreError, audit, fact, integer, node_id, set_fact, unsigned};
use crate::coordinator::{
    audit::{Event, Kind, Origin},
    list::Facts,
    rotation::{Authorities, Known, MAX_FORMER, Standing, Step},
};

/// What changes with the next list, if anything in the database does.
#[derive(Clone, Debug)]
pub enum Change {
    /// Nothing: time passed, or the configuration is another.
    Nothing,
    /// Another authority is announced.
    Begin {
        /// Its certificate.
        certificate: CaCertificate,
        /// Those above it.
        above: Vec<CaCertificate>,
        /// What leads to its root, if that is another than before.
        cross: Option<CaCertificate>,
    },
    /// A rotation goes on, or back.
    Step(Step),
    /// A list of ours turned up that this database does not know: it was restored from a backup.
    TakeOver {
        /// The list.
        list: RevocationList,
        /// How long what it revokes is kept: nobody here knows when those certificates end.
        until: UnixTime,
    },
}

impl Change {
    /// What is told of it.
    fn event(&self, origin: &Origin, published: &Published) -> Option<Event> {
        let kind = match self {
            Change::Nothing => return None,
            Change::Begin { .. } => Kind::RotationStarted,
            Change::Step(Step::Issue) => Kind::RotationIssuing,
            Change::Step(Step::Retire) => Kind::RotationRetired,
            Change::Step(Step::Withdraw) => Kind::RotationCancelled,
            Change::TakeOver { .. } => Kind::ListTakenOver,
        };
        let event = Event::new(kind, origin).with("number", published.number);
        let event = event.with("issuing", published.authorities.issuing().fingerprint());
        Some(match self {
            Change::Begin { certificate, .. } => event.with("next", certificate.fingerprint()),
            Change::TakeOver { list, .. } => event.with("given", list.number),
            Change::Nothing | Change::Step(_) => event,
        })
    }
}

/// The list in force after a change.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its number.
    pub number: u64,
    /// The list, if it is another than before.
    pub signed: Option<SignedRevocations>,
    /// The authorities behind it.
    pub authorities: Authorities,
    /// What leads to them, the oldest first.
    pub crosses: Vec<CaCertificate>,
}

/// Makes and signs the list that should be in force; `None`: it says what the one in force says.
pub trait Make: FnOnce(&Facts) -> Result<Option<SignedRevocations>, StoreError> + Send {}

impl<F: FnOnce(&Facts) -> Result<Option<SignedRevocations>, StoreError> + Send> Make for F {}

impl Store {
    /// Changes what there is to change and publishes the list that says so, or does neither.
    pub async fn publish(
        &self,
        change: &Change,
        origin: &Origin,
        now: UnixTime,
        make: impl Make,
    ) -> Result<Published, StoreError> {
        let mut tx = self.begin().await?;
        let number = last_number(&mut tx).await? + 1;
        match change {
            Change::Nothing => {}
            Change::Begin { certificate, above, cross } => {
                let begun = authorities(&mut tx).await?.begin(certificate.clone(), above.clone(), number, now)?;
                write_authorities(&mut tx, &begun).await?;
                if let Some(cross) = cross {
                    write_cross(&mut tx, cross).await?;
                }
            }
            Change::Step(step) => {
                let before = authorities(&mut tx).await?;
                write_authorities(&mut tx, &before.after(*step, now)?).await?;
                if let Some(disowned) = before.revoked_by(*step) {
                    disown(&mut tx, disowned, now).await?;
                }
            }
            Change::TakeOver { list, until } => take_over(&mut tx, list, *until, now).await?,
        }
        let published = next_list(&mut tx, now, make).await?;
        if let Some(event) = change.event(origin, &published) {
            audit::write(&mut tx, &event, now).await?;
        }
        tx.commit().await?;
        Ok(published)
    }

    /// The list in force, if there ever was one.
    pub async fn revocations(&self) -> Result<Option<SignedRevocations>, StoreError> {
        let bytes = self.fact(fact::REVOCATIONS).await?;
        bytes
            .map(|bytes| SignedRevocations::from_bytes(&bytes).map_err(|_| StoreError::Corrupt("revocation list")))
            .transpose()
    }

    /// The mesh's authorities.
    pub async fn authorities(&self) -> Result<Authorities, StoreError> {
        let mut tx = self.begin().await?;
        authorities(&mut tx).await
    }

    /// What leads from earlier roots to later ones, the oldest first.
    pub async fn crosses(&self) -> Result<Vec<CaCertificate>, StoreError> {
        let mut tx = self.begin().await?;
        crosses(&mut tx).await
    }

    /// Of each identity the certificate that ends last, with its end.
    pub async fn last_certificates(&self) -> Result<BTreeMap<NodeId, (Serial, UnixTime)>, StoreError> {
        // The other columns of a row with MAX() are those of the row that has it.
        let rows =
            sqlx::query("SELECT identity, serial, MAX(not_after) AS ends_at FROM certificates GROUP BY identity")
                .fetch_all(&self.pool)
                .await?;
        let certificate = |row: &SqliteRow| {
            let serial: Vec<u8> = row.try_get("serial")?;
            let serial = Serial(serial.try_into().map_err(|_| StoreError::Corrupt("serial number"))?);
            let ends_at = UnixTime(unsigned(row.try_get("ends_at")?, "time")?);
            Ok((node_id(row.try_get("identity")?)?, (serial, ends_at)))
        };
        rows.iter().map(certificate).collect()
    }

    /// Notes the first authority, if none is known yet.
    pub(super) async fn note_first(&self, first: &Authority, now: UnixTime) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let known: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM authorities").fetch_one(&mut *tx).await?;
        if known == 0 {
            let first = Authorities::first(first.certificate().clone(), first.above().to_vec(), now);
            write_authorities(&mut tx, &first).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Publishes the list that should be in force, if it is another than the one that is.
pub(super) async fn next_list(
    tx: &mut Transaction<'_, Sqlite>,
    now: UnixTime,
    make: impl Make,
) -> Result<Published, StoreError> {
    let last = last_number(tx).await?;
    let (serials, identities) = revoked(tx, now).await?;
    let (authorities, crosses) = (authorities(tx).await?, crosses(tx).await?);
    let facts = Facts { number: last + 1, serials, identities, authorities, crosses };
    let signed = make(&facts)?;
    if let Some(signed) = &signed {
        set_fact(tx, fact::REVOCATION_NUMBER, &facts.number.to_be_bytes()).await?;
        set_fact(tx, fact::REVOCATIONS, signed.as_bytes()).await?;
    }
    let number = if signed.is_some() { facts.number } else { last };
    Ok(Published { number, signed, authorities: facts.authorities, crosses: facts.crosses })
}

async fn last_number(tx: &mut Transaction<'_, Sqlite>) -> Result<u64, StoreError> {
    let number: Option<Vec<u8>> = sqlx::query_scalar("SELECT value FROM facts WHERE key = ?")
        .bind(fact::REVOCATION_NUMBER)
        .fetch_optional(&mut **tx)
        .await?;
    let corrupt = |_| StoreError::Corrupt("revocation number");
    number.map_or(Ok(0), |bytes| bytes.try_into().map(u64::from_be_bytes).map_err(corrupt))
}

/// Certificates and identities that were revoked and have not ended.
async fn revoked(
    tx: &mut Transaction<'_, Sqlite>,
    now: UnixTime,
) -> Result<(BTreeSet<Serial>, BTreeSet<NodeId>), StoreError> {
    let rows = sqlx::query("SELECT kind, value FROM revocations WHERE ends_at >= ?")
        .bind(integer(now.0))
        .fetch_all(&mut **tx)
        .await?;
    let (mut serials, mut identities) = (BTreeSet::new(), BTreeSet::new());
    for row in rows {
        let value: Vec<u8> = row.try_get("value")?;
        match row.try_get::<String, _>("kind")?.as_str() {
            "serial" => {
                serials.insert(Serial(value.try_into().map_err(|_| StoreError::Corrupt("serial number"))?));
            }
            _ => {
                identities.insert(node_id(value)?);
            }
        }
    }
    Ok((serials, identities))
}

async fn authorities(tx: &mut Transaction<'_, Sqlite>) -> Result<Authorities, StoreError> {
    let rows = sqlx::query("SELECT * FROM authorities ORDER BY place").fetch_all(&mut **tx).await?;
    let known = rows.iter().map(known).collect::<Result<_, _>>()?;
    Authorities::of(known).ok_or(StoreError::Corrupt("set of authorities"))
}

fn known(row: &SqliteRow) -> Result<Known, StoreError> {
    let corrupt = || StoreError::Corrupt("authority");
    let certificates = CaCertificate::bundle_from_pem(row.try_get("certificates")?).map_err(|_| corrupt())?;
    let mut certificates = certificates.into_iter();
    Ok(Known {
        certificate: certificates.next().ok_or_else(corrupt)?,
        above: certificates.collect(),
        standing: Standing::parse(row.try_get("standing")?).ok_or_else(corrupt)?,
        since: UnixTime(unsigned(row.try_get("since")?, "time")?),
        published: unsigned(row.try_get("published")?, "number")?,
    })
}

async fn write_authorities(tx: &mut Transaction<'_, Sqlite>, authorities: &Authorities) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM authorities").execute(&mut **tx).await?;
    for known in authorities.all() {
        let certificates: Vec<_> = [&known.certificate].into_iter().chain(&known.above).cloned().collect();
        sqlx::query("INSERT INTO authorities (certificates, standing, since, published) VALUES (?, ?, ?, ?)")
            .bind(CaCertificate::bundle_to_pem(&certificates))
            .bind(known.standing.word())
            .bind(integer(known.since.0))
            .bind(integer(known.published))
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

async fn crosses(tx: &mut Transaction<'_, Sqlite>) -> Result<Vec<CaCertificate>, StoreError> {
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT certificate FROM crosses ORDER BY place").fetch_all(&mut **tx).await?;
    let read = |pem: &String| CaCertificate::from_pem(pem).map_err(|_| StoreError::Corrupt("authority"));
    rows.iter().map(read).collect()
}

/// As many are kept as there are former authorities to lead from.
async fn write_cross(tx: &mut Transaction<'_, Sqlite>, cross: &CaCertificate) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO crosses (certificate) VALUES (?)").bind(cross.pem()).execute(&mut **tx).await?;
    sqlx::query("DELETE FROM crosses WHERE place <= (SELECT MAX(place) FROM crosses) - ?")
        .bind(integer(MAX_FORMER as u64 + 1))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Revokes an authority's key, and forgets what leads to it.
async fn disown(tx: &mut Transaction<'_, Sqlite>, disowned: &CaCertificate, now: UnixTime) -> Result<(), StoreError> {
    for cross in crosses(tx).await?.iter().filter(|cross| cross.key() == disowned.key()) {
        sqlx::query("DELETE FROM crosses WHERE certificate = ?").bind(cross.pem()).execute(&mut **tx).await?;
    }
    sqlx::query("INSERT INTO revocations (kind, value, revoked_at, ends_at) VALUES ('identity', ?, ?, ?)")
        .bind(disowned.key().0.as_slice())
        .bind(integer(now.0))
        .bind(integer(disowned.not_after().0))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// What it revokes is revoked here, and the next number is above its own.
async fn take_over(
    tx: &mut Transaction<'_, Sqlite>,
    list: &RevocationList,
    until: UnixTime,
    now: UnixTime,
) -> Result<(), StoreError> {
    let serials = list.serials.iter().map(|serial| ("serial", serial.0.to_vec()));
    let identities = list.identities.iter().map(|identity| ("identity", identity.0.to_vec()));
    for (kind, value) in serials.chain(identities) {
        sqlx::query(
            "INSERT INTO revocations (kind, value, revoked_at, ends_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(kind)
        .bind(value)
        .bind(integer(now.0))
        .bind(integer(until.0))
        .execute(&mut **tx)
        .await?;
    }
    sqlx::query(
        "UPDATE members SET revoked_at = ?, record = NULL WHERE revoked_at IS NULL
         AND identity IN (SELECT value FROM revocations WHERE kind = 'identity')",
    )
    .bind(integer(now.0))
    .execute(&mut **tx)
    .await?;
    let number = last_number(tx).await?.max(list.number);
    set_fact(tx, fact::REVOCATION_NUMBER, &number.to_be_bytes()).await?;
    Ok(())
}
