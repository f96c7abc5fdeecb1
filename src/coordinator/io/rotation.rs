//! Rotations in the world: files, the database, and members that take their time.
//!
//! ```text
//! begin: make or open the new authority ─► its files ─► cross ─► list that announces it
//! keep:  a member shows something, or falls silent, or time passes ─► the next step, if its time has come ─► list
//! ```

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use wiremesh_certs::{Authority, CaCertificate, NodeName, UnixTime, files};

use super::{
    keys,
    shared::Shared,
    store::{Change, StoreError},
};
use crate::{
    api::authority::Brought,
    clock,
    coordinator::{
        audit::Origin,
        care,
        rotation::{CannotRotate, Fleet, Stage, Step},
    },
    task::CancellationToken,
};

/// Between two looks at the fleet: heartbeats of many members make one.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// After a step that could not be taken.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// With nothing heard. Members that fall silent are seen when they do.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What needs care is said in the log so often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(12 * 3600);

/// Why a rotation did not begin.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// It may not, or cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The files are not what they should be.
    #[error("{0:#}")]
    Files(anyhow::Error),
}

impl From<CannotRotate> for NotBegun {
    fn from(why: CannotRotate) -> NotBegun {
        NotBegun::Store(why.into())
    }
}

/// Takes the steps of a rotation when their time has come, until stopped.
pub async fn keep(shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut fleet = shared.fleet.subscribe();
    let mut lists = shared.ruling.list_changes();
    let mut complain_at = clock::now();
    loop {
        let mut pause = LOOK_AT_MOST_EVERY;
        if let Err(error) = advance(&shared).await {
            tracing::warn!("the rotation of the authority does not go on, trying again: {error}");
            pause = RETRY_AFTER;
        }
        if clock::now() >= complain_at {
            complain_at = clock::now() + COMPLAIN_EVERY;
            for care in care::of(&shared.ruling.in_force().authorities, clock::unix()) {
                tracing::warn!(hint = care.hint, "{}", care.what);
            }
        }
        let wait = next_look(&shared);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = fleet.changed() => {}
            _ = lists.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Announces another authority: the one that was brought, or one that is made here.
pub async fn begin(shared: Arc<Shared>, brought: Option<Brought>, origin: Origin) -> Result<(), NotBegun> {
    let now = clock::unix();
    let in_force = shared.ruling.in_force();
    in_force.authorities.check_idle()?;
    let ours = in_force.authorities.issuing().root().clone();
    // The passphrase of a key costs a second of work.
    let made = tokio::task::spawn_blocking({
        let shared = shared.clone();
        move || made(&shared, brought.as_ref(), &ours, now)
    });
    let (authority, given) = made.await.map_err(|error| NotBegun::Files(error.into()))??;
    let cross = cross(&shared, &authority, given, now)?;
    let (certificate, above) = (authority.certificate().clone(), authority.above().to_vec());
    let fingerprint = certificate.fingerprint();
    shared.ruling.add_key(authority);
    let published = shared.publish(&Change::Begin { certificate, above, cross }, &origin, now).await?;
    tracing::info!(to = %fingerprint, number = published.number, "rotation of the authority begun");
    Ok(())
}

/// Takes one step at an operator's word. Says whom it cut off.
pub async fn step(shared: Arc<Shared>, step: Step, origin: Origin) -> Result<Vec<NodeName>, StoreError> {
    let now = clock::unix();
    let fleet = fleet(&shared, now);
    let authorities = shared.ruling.in_force();
    let stage = authorities.authorities.stage();
    let depend = fleet.living.iter().filter(|member| step == Step::Retire && stage.waits_for(member));
    let cut_off: Vec<_> = depend.map(|member| member.name.clone()).collect();
    take(&shared, step, &origin, now).await?;
    if !cut_off.is_empty() {
        tracing::warn!(members = ?cut_off, "an authority was retired although members depend on it");
    }
    Ok(cut_off)
}

/// All members that are heard.
pub fn fleet(shared: &Shared, now: UnixTime) -> Fleet {
    shared.registry().fleet(shared.started_at, now)
}

async fn advance(shared: &Shared) -> Result<(), StoreError> {
    loop {
        let now = clock::unix();
        let in_force = shared.ruling.in_force();
        if in_force.authorities.stage() == Stage::Idle {
            return Ok(());
        }
        let Some(step) = in_force.authorities.next_step(&fleet(shared, now)) else { return Ok(()) };
        take(shared, step, &Origin::coordinator(), now).await?;
    }
}

async fn take(shared: &Shared, step: Step, origin: &Origin, now: UnixTime) -> Result<(), StoreError> {
    let published = shared.publish(&Change::Step(step), origin, now).await?;
    shared.fleet_changed();
    let (issuing, number) = (published.authorities.issuing().fingerprint(), published.number);
    match step {
        Step::Issue => tracing::info!(%issuing, number, "the new authority issues"),
        Step::Retire => tracing::info!(%issuing, number, "the old authority is retired"),
        Step::Withdraw => tracing::info!(%issuing, number, "the rotation of the authority is cancelled"),
    }
    Ok(())
}

/// Until something may be different although nobody says anything.
fn next_look(shared: &Shared) -> Duration {
    if shared.ruling.in_force().authorities.stage() == Stage::Idle {
        return LOOK_EVERY;
    }
    let now = clock::unix();
    let registry = shared.registry();
    let complete_at = shared.started_at.plus(registry.silent_after());
    let changes = [Some(complete_at).filter(|at| *at > now), registry.next_silence(now)];
    let wait = changes.into_iter().flatten().min().map(|at| at.saturating_since(now));
    wait.unwrap_or(LOOK_EVERY).clamp(LOOK_AT_MOST_EVERY, LOOK_EVERY)
}

/// The new authority, with its files in their place, and the cross that came with it.
fn made(
    shared: &Shared,
    brought: Option<&Brought>,
    ours: &CaCertificate,
    now: UnixTime,
) -> Result<(Authority, Option<CaCertificate>), NotBegun> {
    let Some(brought) = brought else {
        if !shared.ruling.in_force().issuer.certificate().is_root() {
            return Err(CannotRotate::OfflineRoot(ours.fingerprint()).into());
        }
        let authority = keys::make_successor(&shared.config, now, &mut shared.rng()).map_err(NotBegun::Files)?;
        return Ok((authority, None));
    };
    let cross = brought.cross.as_deref().map(read_cross).transpose().map_err(NotBegun::Files)?;
    let authority = keys::bring_successor(&shared.config, &brought.certificate, &brought.key, |authority| {
        let (certificate, above) = (authority.certificate().clone(), authority.above().to_vec());
        // Nothing of what will be refused is kept.
        let in_force = shared.ruling.in_force();
        in_force.authorities.begin(certificate, above, 0, now).map(drop)?;
        needs_cross(shared, authority, cross.as_ref()).map(drop)
    });
    Ok((authority?, cross))
}

fn read_cross(path: &Path) -> anyhow::Result<CaCertificate> {
    let text = files::read_text(path)?;
    CaCertificate::from_pem(&text).with_context(|| format!("{} cannot be used", path.display()))
}

/// What leads from a root that is believed to that of the new authority: nothing, if it is the same; what was brought; or
/// what we sign ourselves.
fn cross(
    shared: &Shared,
    authority: &Authority,
    given: Option<CaCertificate>,
    now: UnixTime,
) -> Result<Option<CaCertificate>, NotBegun> {
    match needs_cross(shared, authority, given.as_ref())? {
        Cross::Needless => Ok(None),
        Cross::Given => Ok(given),
        Cross::Ours => {
            let issuer = shared.ruling.in_force().issuer.clone();
            let cross = issuer.cross_sign(authority.root(), now, &mut shared.rng());
            Ok(Some(cross.map_err(StoreError::Issue)?))
        }
    }
}

enum Cross {
    Needless,
    Given,
    Ours,
}

fn needs_cross(shared: &Shared, authority: &Authority, given: Option<&CaCertificate>) -> Result<Cross, CannotRotate> {
    let in_force = shared.ruling.in_force();
    let believed = in_force.authorities.believed();
    let (ours, theirs) = (in_force.authorities.issuing().root(), authority.root());
    if believed.contains(theirs) {
        return Ok(Cross::Needless);
    }
    match given {
        Some(given) => {
            let leads = given.key() == theirs.key() && believed.iter().any(|root| given.is_issued_by(root));
            if leads { Ok(Cross::Given) } else { Err(CannotRotate::WrongCross) }
        }
        None if in_force.issuer.certificate().is_root() => Ok(Cross::Ours),
        None => Err(CannotRotate::NoCross { ours: ours.fingerprint(), theirs: theirs.fingerprint() }),
    }
}
