//! Being a member: heartbeats, renewals and what coordinators tell in return, until the agent stops.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};
use wiremesh_certs::{NodeRecord, Signed, UnixTime, Verified};

use super::{
    client::Client,
    disk::StateDir,
    http::ClientError,
    join::Member,
    rekey::{Desk, KeyCare, NextKeys, RotateFailed},
};
use crate::{
    api::{Copied, HeartbeatResponse, Instance, RegisterRequest, Seed},
    clock,
    membership::{
        heartbeat::Heartbeat,
        joining,
        lease::Lease,
        state::{MemberFile, SeedsFile},
    },
    task::CancellationToken,
};

/// How often other seeds are asked for, to have fresh ones on disk when the coordinator goes.
pub const SEEDS_EVERY: Duration = Duration::from_secs(300);
/// How long a leaving agent waits for the coordinator to hear of it.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// How often the clock is looked at for the lease: the machine may have slept.
const LEASE_CHECK: Duration = Duration::from_secs(30);
/// While there is no record to send yet.
const NOT_READY: Duration = Duration::from_millis(200);
/// Events that wait for the agent. At the bound membership waits, nothing is lost.
pub const MAX_EVENTS: usize = 64;

/// What the agent should know.
#[derive(Clone, Debug)]
pub enum Event {
    /// There is another certificate: sign and serve with it.
    Renewed(Verified),
    /// These nodes asked for our record and are about to try to reach us. Not yet checked.
    Introductions(Vec<Signed<NodeRecord>>),
    /// [`Member::trust`] revokes more than before: end what it no longer allows.
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
    /// Why the last renewal failed, if it did.
    pub renewal_error: Option<String>,
    /// When the keys in use were made.
    pub keys_made_at: UnixTime,
    /// When they are due to be changed; `None`: only when somebody wants it.
    pub rotate_at: Option<UnixTime>,
    /// The coordinator refuses us because our certificate is revoked.
    pub is_revoked: bool,
    /// Another machine uses our keys, as the coordinator last said.
    pub copied: Option<Copied>,
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

/// For the rest of the agent: the client, the status, and a way to have a heartbeat sent sooner. Clones share all.
#[derive(Clone)]
pub struct Handle {
    /// The coordinator.
    pub client: Client,
    status: Arc<Mutex<Status>>,
    changed: Arc<Notify>,
    met: Arc<(Mutex<Vec<Seed>>, Notify)>,
    desk: Desk,
}

impl Handle {
    /// How it stands.
    pub fn status(&self) -> Status {
        self.locked().clone()
    }

    /// What we say about ourselves has changed: send a heartbeat soon.
    pub fn announce(&self) {
        self.changed.notify_one();
    }

    /// Has new keys made and certified, at once. They are in use from the next start of the session on.
    pub async fn rotate_keys(&self) -> Result<NextKeys, RotateFailed> {
        self.desk.ask().await
    }

    /// Waits until there are keys to start anew with.
    pub async fn keys_ready(&self) {
        self.desk.ready.cancelled().await;
    }

    /// Members met elsewhere than at the coordinator, to begin with after a restart. On disk at once, unless a
    /// coordinator is being waited for.
    pub fn keep_seeds(&self, seeds: Vec<Seed>) {
        *self.met.0.lock().unwrap_or_else(PoisonError::into_inner) = seeds;
        self.met.1.notify_one();
    }

    fn locked(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running side of a membership. Owns the state directory.
pub struct Session {
    pub(super) member: Member,
    pub(super) disk: StateDir,
    pub(super) care: KeyCare,
    pub(super) desk: Desk,
    instance: Instance,
    seeds: SeedsFile,
    lease: Lease,
    heartbeat: Heartbeat,
    handle: Handle,
    registered: Option<serde_json::Map<String, serde_json::Value>>,
    seeds_at: Instant,
}

impl Session {
    pub(super) fn new(
        member: Member,
        disk: StateDir,
        seeds: SeedsFile,
        care: KeyCare,
        instance: Instance,
        seed: u64,
    ) -> Session {
        let now = clock::now();
        let lease = Lease::new(&member.verified, seed);
        let status = Status {
            coordinator: None,
            last_contact: None,
            failures: 0,
            last_error: None,
            lease_ends_at: lease.ends_at(),
            renew_at: lease.poll_timeout().0,
            renewal_error: None,
            keys_made_at: care.made_at,
            rotate_at: care.schedule.due_at(),
            is_revoked: false,
            copied: None,
        };
        let desk = Desk::default();
        let handle = Handle {
            client: member.client.clone(),
            status: Arc::new(Mutex::new(status)),
            changed: Arc::new(Notify::new()),
            met: Arc::default(),
            desk: desk.clone(),
        };
        let heartbeat = Heartbeat::new(seed.wrapping_add(1), now);
        Session { member, disk, care, desk, instance, seeds, lease, heartbeat, handle, registered: None, seeds_at: now }
    }

    /// For the rest of the agent.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `stop`, then tells the coordinator that we leave. Never fails because of a coordinator.
    pub async fn run(
        mut self,
        sources: Sources,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let (heartbeat_at, _why) = self.heartbeat.poll_timeout();
            let (changed, met) = (self.handle.changed.clone(), self.handle.met.clone());
            let asked = self.desk.asked.clone();
            tokio::select! {
                biased;

                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(heartbeat_at.into()) => {}
                () = tokio::time::sleep(self.lease_wait()) => {}
                () = changed.notified() => self.heartbeat.hasten(clock::now()),
                () = met.1.notified() => {}
                () = asked.notified() => {}
            }
            self.keep_met();
            // Whatever is under way when the agent stops is given up: all of it can be repeated.
            let step = async {
                self.rotate_if_due().await;
                self.renew_if_due(&events).await;
                self.report_if_due(&sources, &events).await;
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = step => {}
            }
        }
        self.keep_met();
        if self.registered.is_some() {
            let farewell = tokio::time::timeout(FAREWELL, self.member.client.unregister()).await;
            tracing::debug!(heard = matches!(farewell, Ok(Ok(()))), "said farewell to the coordinator");
        }
        Ok(())
    }

    fn lease_wait(&self) -> Duration {
        self.lease.poll_timeout().0.saturating_since(clock::unix()).clamp(NOT_READY, LEASE_CHECK)
    }

    async fn report_if_due(&mut self, sources: &Sources, events: &mpsc::Sender<Event>) {
        if clock::now() < self.heartbeat.poll_timeout().0 {
            return;
        }
        let Some(record) = (sources.record)() else {
            tokio::time::sleep(NOT_READY).await;
            return;
        };
        let capabilities = (sources.capabilities)();
        let number = self.member.trust.current().revocation_number();
        let client = &self.member.client;
        let known = self.registered.as_ref() == Some(&capabilities);
        let answered = if known {
            client.heartbeat(record, number, self.instance).await
        } else {
            let body = RegisterRequest {
                record,
                capabilities: capabilities.clone(),
                services: None,
                dht_port: sources.dht_port,
                revocation_number: number,
                instance: Some(self.instance),
            };
            client.register(&body).await
        };
        match answered {
            Ok(answer) => {
                self.on_answer(answer, capabilities, known, events).await;
            }
            Err(error) => self.on_failure(error, events).await,
        }
    }

    async fn on_answer(
        &mut self,
        answer: HeartbeatResponse,
        capabilities: serde_json::Map<String, serde_json::Value>,
        known: bool,
        events: &mpsc::Sender<Event>,
    ) {
        let now = clock::now();
        self.heartbeat.on_answer(Duration::from_secs(answer.interval_secs), now);
        self.registered = (!answer.register).then_some(capabilities);
        // Asked only after a plain heartbeat: a coordinator that always asks does not make us flood it.
        if answer.register && known {
            self.heartbeat.hasten(now);
        }
        let was_connected = {
            let mut status = self.handle.locked();
            let was_connected = status.is_connected();
            status.coordinator = self.member.client.coordinators().into_iter().next();
            status.last_contact = Some(now);
            status.failures = 0;
            status.last_error = None;
            status.copied = answer.copied;
            status.is_revoked = false;
            was_connected
        };
        if !was_connected {
            tracing::info!("coordinator reached");
            tell(events, Event::CoordinatorReached).await;
            self.seeds_at = now;
        }
        if let Some(signed) = answer.revocations {
            self.take_revocations(&signed, events).await;
        }
        if !answer.introductions.is_empty() {
            tell(events, Event::Introductions(answer.introductions)).await;
        }
        if self.member.client.learn_coordinators(&answer.coordinators) {
            self.keep_coordinators();
        }
        if now >= self.seeds_at {
            self.refresh_seeds(events).await;
        }
    }

    async fn on_failure(&mut self, error: ClientError, events: &mpsc::Sender<Event>) {
        self.heartbeat.on_failure(clock::now());
        let was_connected = {
            let mut status = self.handle.locked();
            let was_connected = status.is_connected();
            status.failures = self.heartbeat.failures();
            status.last_error = Some(error.to_string());
            status.is_revoked = error.kind() == Some("revoked");
            was_connected
        };
        let hint = error.hint();
        // Once at WARN, then quietly: an outage is one event, however long.
        if self.heartbeat.failures() == 1 {
            tracing::warn!(why = %error, hint, "heartbeat was not taken; the mesh goes on without the coordinator");
        } else {
            tracing::debug!(why = %error, failures = self.heartbeat.failures(), "heartbeat was not taken");
        }
        if was_connected {
            tell(events, Event::CoordinatorLost).await;
        }
    }

    async fn renew_if_due(&mut self, events: &mpsc::Sender<Event>) {
        let now = clock::unix();
        // A certificate newer than that of the next keys would be believed before theirs.
        if !self.lease.is_due(now) || self.desk.ready.is_cancelled() {
            return;
        }
        match self.renew(now).await {
            Ok(verified) => {
                self.lease.on_renewed(&verified);
                self.member.client.set_verified(verified.clone());
                self.note_lease(None);
                tracing::info!(until = %verified.not_after(), "certificate renewed");
                tell(events, Event::Renewed(verified)).await;
            }
            Err(error) => {
                self.lease.on_failure(now);
                self.note_lease(Some(format!("{error:#}")));
                tracing::warn!(ends_at = %self.lease.ends_at(), "could not renew the certificate: {error:#}");
            }
        }
    }

    async fn renew(&self, now: UnixTime) -> anyhow::Result<Verified> {
        let answer = self.member.client.renew().await?;
        let before = self.member.client.verified();
        let trust = self.member.trust.current();
        let verified = joining::accept_renewed(&trust, &answer.certificate, &before, now)?;
        self.disk.keep_certificate(&verified.chain().to_pem())?;
        Ok(verified)
    }

    async fn take_revocations(&mut self, signed: &wiremesh_certs::SignedRevocations, events: &mpsc::Sender<Event>) {
        match self.member.trust.apply_revocations(signed, clock::unix()) {
            Ok(true) => {
                if let Err(error) = self.disk.keep_revocations(signed) {
                    tracing::warn!("could not keep the revocation list: {error:#}");
                }
                tracing::info!(number = self.member.trust.current().revocation_number(), "revocation list taken over");
                tell(events, Event::RevocationsChanged).await;
            }
            Ok(false) => {}
            Err(refused) => tracing::warn!(why = %refused, "the coordinator's revocation list is not believed"),
        }
    }

    async fn refresh_seeds(&mut self, events: &mpsc::Sender<Event>) {
        self.seeds_at = clock::now() + SEEDS_EVERY;
        let Ok(fresh) = self.member.client.bootstrap().await else { return };
        let trust = self.member.trust.current();
        let now = clock::unix();
        let fresh = SeedsFile { seeds: fresh }.believed(&trust, now);
        if fresh.seeds.is_empty() {
            return;
        }
        self.seeds.merge(fresh.seeds.clone());
        self.seeds = std::mem::take(&mut self.seeds).believed(&trust, now);
        if let Err(error) = self.disk.keep_seeds(&self.seeds) {
            tracing::warn!("could not keep the seeds: {error:#}");
        }
        tell(events, Event::Seeds(fresh.seeds)).await;
    }

    fn keep_met(&mut self) {
        let met = std::mem::take(&mut *self.handle.met.0.lock().unwrap_or_else(PoisonError::into_inner));
        if met.is_empty() {
            return;
        }
        self.seeds.merge(met);
        if let Err(error) = self.disk.keep_seeds(&self.seeds) {
            tracing::warn!("could not keep the seeds: {error:#}");
        }
    }

    fn keep_coordinators(&self) {
        let trust = self.member.trust.current();
        let member = MemberFile {
            mesh: trust.mesh().clone(),
            network: trust.network(),
            coordinators: self.member.client.coordinators(),
            keys_made_at: Some(self.care.made_at),
        };
        if let Err(error) = self.disk.keep_member(&member) {
            tracing::warn!("could not keep the list of coordinators: {error:#}");
        }
    }

    fn note_lease(&self, renewal_error: Option<String>) {
        let mut status = self.handle.locked();
        status.lease_ends_at = self.lease.ends_at();
        status.renew_at = self.lease.poll_timeout().0;
        status.renewal_error = renewal_error;
    }
}

/// Nobody listens any more only while the agent stops.
async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    let _ = events.send(event).await;
}
