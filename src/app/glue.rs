//! Where two parts meet: what one of them learns is told to the other.
//!
//! ```text
//! overlay: who is 10.42.0.9? ──► directory ──► overlay: this peer, there
//! overlay: a stranger introduced itself ──► directory: a contact
//! directory: a member moved ──► overlay: there, if it is a peer
//! services, their models, endpoints, certificate or policy changed, or 30 s passed ──► a new record ──► overlay, directory
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use rand::Rng;
use tokio::sync::{Notify, broadcast, mpsc};
use wiremesh_certs::{NodeRecord, Signed, TrustStore};

use super::{
    record::{Author, Facts},
    standing::Standing,
};
use crate::{
    clock, directory, overlay, services,
    task::{CancellationToken, Tasks},
};

/// A record lives three times as long: a worker that lost its power is forgotten within 90 s. What did not change and does
/// not end with the record is not written again each time.
const PUBLISH_EVERY: Duration = Duration::from_secs(30);
/// The same while something was heard in our name that we may not have said: two machines with the same keys find each
/// other out by it. And so long after a look for such records that nobody answered there is another.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Looks that nobody answered before the next record is published all the same, which takes the place of what they were
/// for: two machines with the same keys take the overlay's sessions from each other. A record has 90 s to live, and with
/// looks that last 3 s is late by 25.
const MAX_LOOKS: usize = 4;
/// Changes that come together make one record.
const GATHER_CHANGES: Duration = Duration::from_millis(100);
/// Addresses looked up at a time for the overlay. Beyond it a question waits in the overlay's queue of events, and the
/// overlay asks again.
const MAX_RESOLVING: usize = 64;

/// Signs a record of how things are at this moment.
pub struct Recorder {
    /// Signs it.
    pub author: Author,
    /// Where we may be reached.
    pub overlay: Option<overlay::Handle>,
    /// What we offer and how busy we are.
    pub services: services::Handle,
    /// Whom we believe.
    pub trust: Arc<TrustStore>,
    /// Whether the agent has been asked to stop: from then on nothing is offered.
    pub leaving: AtomicBool,
}

impl Recorder {
    /// A record of what is true now. `None` only if the certificate leaves no room for one, which is logged.
    pub fn record(&self) -> Option<Signed<NodeRecord>> {
        let leaving = self.leaving.load(Ordering::Relaxed);
        let endpoints = self.overlay.as_ref().map(overlay::Handle::endpoints).unwrap_or_default();
        let facts = Facts {
            endpoints: endpoints.anywhere,
            nearby: endpoints.nearby,
            services: if leaving { Arc::from([]) } else { self.services.offered() },
            models: self.services.models(),
            load: self.services.load(),
        };
        self.author
            .sign(facts, &self.trust.current(), clock::unix_millis())
            .inspect_err(|error| tracing::error!(%error, "our record cannot be made, nobody will find us"))
            .ok()
    }
}

impl Recorder {
    /// Whether others believe us at all.
    fn is_believed(&self) -> bool {
        Standing::of(&self.author.own(), &self.trust.current(), clock::unix()).is_believed()
    }
}

/// Publishes our record: at the start, every 30 s, and when something in it has changed.
pub async fn publish(
    recorder: Arc<Recorder>,
    directory: directory::Handle,
    renewed: Arc<Notify>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut services = recorder.services.changes();
    let mut models = recorder.services.models_changes();
    let mut overlay = recorder.overlay.clone();
    loop {
        if let Some(record) = recorder.record() {
            if let Some(overlay) = &overlay {
                overlay.set_own_record(record.clone()).await;
            }
            match directory.publish(&record) {
                Ok(()) => {}
                // The status says so, and renewals: not every record.
                Err(why) if !recorder.is_believed() => tracing::debug!(%why, "our record was not published"),
                Err(why) => tracing::warn!(%why, "our own record is refused and was not published"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = until_due(&recorder, &directory) => continue,
            () = renewed.notified() => {}
            changed = services.changed() => changed?,
            changed = models.changed() => changed?,
            () = moved(&mut overlay) => {}
        }
        tokio::time::sleep(GATHER_CHANGES).await;
    }
}

/// Waits until the next record is due though nothing has changed. Before it takes the place of what others may have been
/// told in our name, that is looked for.
async fn until_due(recorder: &Recorder, directory: &directory::Handle) {
    let every = if recorder.author.is_suspicious(clock::unix()) { LOOK_AGAIN } else { PUBLISH_EVERY };
    let mut interval = every.mul_f64(rand::rng().random_range(0.9..=1.0));
    for _ in 0..MAX_LOOKS {
        tokio::time::sleep(interval).await;
        if listen_for_copies(recorder, directory).await {
            return;
        }
        // The other machine does not look at the same moments.
        interval = LOOK_AGAIN.mul_f64(rand::rng().random_range(0.7..1.3));
    }
}

/// Looks for what others have been told in our name since we last told them something. False if nobody answered.
async fn listen_for_copies(recorder: &Recorder, directory: &directory::Handle) -> bool {
    let was_answered = directory.look_for_ourselves(recorder.author.own().address()).await;
    let heard = directory.take_heard_of_us();
    let sequences: Vec<u64> = heard.iter().map(|entry| entry.sequence()).collect();
    tracing::debug!(was_answered, ?sequences, "looked for copies");
    for entry in heard {
        if recorder.author.on_heard(entry.record(), clock::unix()) {
            tracing::warn!("another machine uses this machine's keys: stop one of them, or revoke this member");
        }
    }
    was_answered
}

/// Waits until our endpoints have changed; for ever, without overlay.
async fn moved(overlay: &mut Option<overlay::Handle>) {
    match overlay {
        Some(overlay) => overlay.endpoints_changed().await,
        None => std::future::pending().await,
    }
}

/// Answers the overlay's questions and passes on whom it met.
pub async fn answer_overlay(
    overlay: overlay::Handle,
    mut events: mpsc::Receiver<overlay::Event>,
    directory: directory::Handle,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut resolving = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(()) = resolving.next() => {}
            event = events.recv(), if resolving.len() < MAX_RESOLVING => match event {
                Some(overlay::Event::Resolve(address)) => {
                    let (overlay, directory) = (&overlay, &directory);
                    resolving.push(async move {
                        match directory.resolve(address).await {
                            Some(entry) => overlay.upsert_peer(entry.verified().clone(), entry.record().clone()).await,
                            None => overlay.unresolvable(address).await,
                        }
                    });
                }
                Some(overlay::Event::Introduced(member, record)) => {
                    tracing::debug!(peer = %member.name(), "introduced itself");
                    directory.add_contacts(&[record]);
                }
                Some(overlay::Event::Left(member, why)) => {
                    tracing::info!(peer = %member.name(), ?why, "peer dropped");
                }
                // The overlay has stopped, and says why itself.
                None => {
                    stop.cancelled().await;
                    return Ok(());
                }
            },
        }
    }
}

/// Tells the overlay where its peers have moved, as the directory hears of it.
pub async fn follow_members(
    overlay: overlay::Handle,
    directory: directory::Handle,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut news = directory.news();
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            heard = news.recv() => heard,
        };
        match heard {
            Ok(entry) => overlay.refresh_peer(entry.verified().clone(), entry.record().clone()).await,
            // Later news will come, and a peer that moved also says so itself.
            Err(broadcast::error::RecvError::Lagged(missed)) => tracing::debug!(missed, "news of members missed"),
            Err(broadcast::error::RecvError::Closed) => {
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}

/// Starts everything in this file.
pub fn start(
    recorder: &Arc<Recorder>,
    events: Option<mpsc::Receiver<overlay::Event>>,
    directory: &directory::Handle,
    renewed: &Arc<Notify>,
    tasks: &Tasks,
) {
    if let (Some(overlay), Some(events)) = (&recorder.overlay, events) {
        let (overlay_too, directory_too) = (overlay.clone(), directory.clone());
        tasks.spawn("resolve", |stop| answer_overlay(overlay_too, events, directory_too, stop));
        let (overlay, directory) = (overlay.clone(), directory.clone());
        tasks.spawn("follow", |stop| follow_members(overlay, directory, stop));
    }
    let (recorder, directory, renewed) = (recorder.clone(), directory.clone(), renewed.clone());
    tasks.spawn("publish", |stop| publish(recorder, directory, renewed, stop));
}
