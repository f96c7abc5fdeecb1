//! What the rest of the agent sees of its membership: what happens, how it stands, and what may be asked of it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use wiremesh_certs::{NodeRecord, Signed, SignedRevocations, UnixTime, Verified};

use super::{
    client::Client,
    list::{Lists, Offered},
    rekey::{Desk, NextKeys, RotateFailed},
};
use crate::{
    api::{Copied, Seed, TunnelFound},
    membership::skew::Offset,
};

/// Events that wait for the agent. At the bound membership waits, nothing is lost.
pub const MAX_EVENTS: usize = 64;
/// Operators who wait for a renewal; beyond it they are told to come again.
pub(super) const MAX_RENEWALS: usize = 4;

/// What the agent should know.
#[derive(Clone, Debug)]
pub enum Event {
    /// There is another certificate, or another authority vouches for the one there is: sign and serve with it.
    Renewed(Verified),
    /// These nodes asked for our record and are about to try to reach us. Not yet checked.
    Introductions(Vec<Signed<NodeRecord>>),
    /// Another list is in force: end what [`Member::trust`](super::Member::trust) no longer allows, then
    /// [`Handle::acknowledge`].
    RevocationsChanged,
    /// Members that are healthy. Their records were checked.
    Seeds(Vec<Seed>),
    /// A coordinator answers, for the first time or again.
    CoordinatorReached,
    /// No coordinator answers.
    CoordinatorLost,
}

/// What is said about this machine with each heartbeat.
pub struct Sources {
    /// Our latest signed record; `None`: the agent is not ready.
    pub record: Box<dyn Fn() -> Option<Signed<NodeRecord>> + Send + Sync>,
    /// What the machine is. Sent again when it changes.
    pub capabilities: Box<dyn Fn() -> serde_json::Map<String, serde_json::Value> + Send + Sync>,
    /// Where our directory listens, if it does.
    pub dht_port: Option<u16>,
}

/// How it stands with the coordinator, as of when it is asked.
#[derive(Clone, Debug)]
pub struct Status {
    /// The coordinator that answered last.
    pub coordinator: Option<String>,
    /// When it did.
    pub last_contact: Option<Instant>,
    /// Heartbeats lost since then.
    pub failures: u32,
    /// Why the last one was lost.
    pub last_error: Option<String>,
    /// When our certificate ends.
    pub lease_ends_at: UnixTime,
    /// When it is to be renewed.
    pub renew_at: UnixTime,
    /// Why then.
    pub renew_why: &'static str,
    /// Why the last renewal failed, if it did.
    pub renewal_error: Option<String>,
    /// Renewals that failed since the agent started.
    pub renewals_failed: u64,
    /// How far our clock is from the coordinator's; `None`: none has told yet.
    pub clock: Option<Offset>,
    /// When the keys in use were made.
    pub keys_made_at: UnixTime,
    /// When they are due to be changed; `None`: only when somebody wants it.
    pub rotate_at: Option<UnixTime>,
    /// The coordinator refuses us because our certificate is revoked.
    pub is_revoked: bool,
    /// Another machine uses our keys, as the coordinator last said.
    pub copied: Option<Copied>,
    /// Where our tunnel URL leads, as the coordinator last said.
    pub tunnel: Option<TunnelFound>,
}

impl Status {
    /// How long ago a coordinator answered.
    pub fn last_contact_age(&self, now: Instant) -> Option<Duration> {
        self.last_contact.map(|at| now.saturating_duration_since(at))
    }

    /// Whether the last heartbeat was answered.
    pub fn is_connected(&self) -> bool {
        self.last_contact.is_some() && self.failures == 0
    }
}

/// A renewal that was asked for did not come about.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct NotRenewed {
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: Option<String>,
}

pub(super) type Renewal = oneshot::Sender<Result<UnixTime, NotRenewed>>;

/// For the rest of the agent: the client, the status, and what may be asked. Clones share all.
#[derive(Clone)]
pub struct Handle {
    /// The coordinator.
    pub client: Client,
    pub(super) lists: Lists,
    pub(super) status: Arc<Mutex<Status>>,
    pub(super) changed: Arc<Notify>,
    pub(super) met: Arc<(Mutex<Vec<Seed>>, Notify)>,
    pub(super) renewals: mpsc::Sender<Renewal>,
    pub(super) desk: Desk,
}

impl Handle {
    /// How it stands.
    pub fn status(&self) -> Status {
        Status { clock: self.client.clock_offset(), ..self.locked().clone() }
    }

    /// What we say about ourselves has changed: send a heartbeat soon.
    pub fn announce(&self) {
        self.changed.notify_one();
    }

    /// Members met elsewhere than at the coordinator, to begin with after a restart. On disk at once, unless a
    /// coordinator is being waited for.
    pub fn keep_seeds(&self, seeds: Vec<Seed>) {
        *self.met.0.lock().unwrap_or_else(PoisonError::into_inner) = seeds;
        self.met.1.notify_one();
    }

    /// Somebody offers the list that rules the mesh: taken over if it is newer and an authority's, whoever it is.
    pub async fn offer_revocations(&self, signed: SignedRevocations) -> Offered {
        self.lists.offer(signed).await
    }

    /// The list in force, as it travels. `None`: there is none yet.
    pub fn revocations(&self) -> Option<Arc<SignedRevocations>> {
        self.lists.latest()
    }

    /// Every part of the agent enforces the list of this number: the coordinator hears of it at once.
    pub fn acknowledge(&self, number: u64) {
        if self.lists.acknowledge(number) {
            self.changed.notify_one();
        }
    }

    /// The number of the list that every part of the agent enforces, as it changes.
    pub fn enforced(&self) -> watch::Receiver<u64> {
        self.lists.enforced()
    }

    /// Renews the certificate now, and says when the fresh one ends.
    pub async fn renew(&self) -> Result<UnixTime, NotRenewed> {
        let busy = || NotRenewed { why: "others wait for a renewal already".to_owned(), hint: None };
        let (answer, answered) = oneshot::channel();
        self.renewals.try_send(answer).map_err(|_| busy())?;
        let stopping = || NotRenewed { why: "the agent is stopping".to_owned(), hint: None };
        answered.await.map_err(|_| stopping())?
    }

    /// Has new keys made and certified, at once. They are in use from the next start of the session on.
    pub async fn rotate_keys(&self) -> Result<NextKeys, RotateFailed> {
        self.desk.ask().await
    }

    /// Waits until there are keys to start anew with.
    pub async fn keys_ready(&self) {
        self.desk.ready.cancelled().await;
    }

    pub(super) fn locked(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody listens any more only while the agent stops.
pub(super) async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    let _ = events.send(event).await;
}
