//! Being a member: heartbeats, renewals and what coordinators tell in return, until the agent stops.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};
use wiremesh_certs::{SignedRevocations, UnixTime, Verified};

use super::{
    client::Client,
    disk::StateDir,
    handle::{Event, Handle, MAX_RENEWALS, NotRenewed, Renewal, Sources, Status, tell},
    http::ClientError,
    join::Member,
    list::{self, Lists, Taker},
    rekey::{Desk, KeyCare},
};
use crate::{
    api::{HeartbeatResponse, Instance, RegisterRequest},
    clock,
    membership::{heartbeat::Heartbeat, joining, lease::Lease, state::SeedsFile},
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
/// The running side of a membership. Owns the state directory.
pub struct Session {
    pub(super) member: Member,
    pub(super) disk: Arc<StateDir>,
    pub(super) care: KeyCare,
    pub(super) desk: Desk,
    instance: Instance,
    seeds: SeedsFile,
    lease: Lease,
    heartbeat: Heartbeat,
    handle: Handle,
    taker: Option<Taker>,
    renewals: mpsc::Receiver<Renewal>,
    registered: Option<serde_json::Map<String, serde_json::Value>>,
    /// The list's number in the last heartbeat that was answered.
    reported: u64,
    seeds_at: Instant,
    /// Whether it was said that our clock is off.
    clock_was_wrong: bool,
    /// Whether it was said that our certificate has ended.
    had_ended: bool,
    /// Our certificate, while it could not be written to disk.
    unkept: Option<Verified>,
    seed: u64,
}

impl Session {
    pub(super) fn new(
        member: Member,
        disk: StateDir,
        seeds: SeedsFile,
        list: Option<SignedRevocations>,
        care: KeyCare,
        instance: Instance,
        seed: u64,
    ) -> Session {
        let (now, disk) = (clock::now(), Arc::new(disk));
        let lease = Lease::new(&member.verified, seed);
        let status = Status {
            coordinator: None,
            last_contact: None,
            failures: 0,
            last_error: None,
            lease_ends_at: lease.ends_at(),
            renew_at: lease.poll_timeout().0,
            renew_why: lease.poll_timeout().1,
            renewal_error: None,
            renewals_failed: 0,
            clock: None,
            keys_made_at: care.made_at,
            rotate_at: care.schedule.due_at(),
            is_revoked: false,
            copied: None,
            tunnel: None,
        };
        let desk = Desk::default();
        let (lists, taker) = Lists::new(member.client.clone(), member.trust.clone(), disk.clone(), list);
        let (asked, renewals) = mpsc::channel(MAX_RENEWALS);
        let handle = Handle {
            client: member.client.clone(),
            lists,
            status: Arc::new(Mutex::new(status)),
            changed: Arc::new(Notify::new()),
            met: Arc::default(),
            renewals: asked,
            desk: desk.clone(),
        };
        Session {
            heartbeat: Heartbeat::new(seed.wrapping_add(1), now),
            member,
            disk,
            care,
            desk,
            instance,
            seeds,
            lease,
            handle,
            taker: Some(taker),
            renewals,
            registered: None,
            reported: 0,
            seeds_at: now,
            clock_was_wrong: false,
            had_ended: false,
            unkept: None,
            seed,
        }
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
        let (client, lists): (Client, Lists) = (self.member.client.clone(), self.handle.lists.clone());
        let taker = self.taker.take().map(|taker| taker.run(events.clone(), stop.clone()));
        let taking = async {
            if let Some(taker) = taker {
                taker.await;
            }
        };
        // A heartbeat may wait for a coordinator that does not answer; a list does not wait for the heartbeat.
        let following = list::follow(client, lists, self.seed.wrapping_add(2), stop.clone());
        tokio::join!(self.keep(&sources, &events, &stop), taking, following);
        if self.registered.is_some() {
            let farewell = tokio::time::timeout(FAREWELL, self.member.client.unregister()).await;
            tracing::debug!(heard = matches!(farewell, Ok(Ok(()))), "said farewell to the coordinator");
        }
        Ok(())
    }

    /// Heartbeats and renewals.
    async fn keep(&mut self, sources: &Sources, events: &mpsc::Sender<Event>, stop: &CancellationToken) {
        let (changed, met) = (self.handle.changed.clone(), self.handle.met.clone());
        let rotation = self.desk.asked.clone();
        loop {
            let (heartbeat_at, _why) = self.heartbeat.poll_timeout();
            let mut asked = None;
            tokio::select! {
                biased;

                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(heartbeat_at.into()) => {}
                () = tokio::time::sleep(self.lease_wait()) => {}
                () = changed.notified() => self.on_changed(),
                () = met.1.notified() => {}
                () = rotation.notified() => {}
                Some(renewal) = self.renewals.recv() => asked = Some(renewal),
            }
            self.keep_met();
            // Whatever is under way when the agent stops is given up: all of it can be repeated.
            let step = async {
                self.rotate_if_due().await;
                self.renew_if_due(asked, events).await;
                self.report_if_due(sources, events).await;
                self.look_at_the_clock();
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = step => {}
            }
        }
        self.keep_met();
    }

    /// What we say is news. That we enforce another list is waited for.
    fn on_changed(&mut self) {
        let now = clock::now();
        match *self.handle.enforced().borrow() > self.reported {
            true => self.heartbeat.hurry(now),
            false => self.heartbeat.hasten(now),
        }
    }

    fn lease_wait(&self) -> Duration {
        self.lease.poll_timeout().0.saturating_since(clock::unix()).clamp(NOT_READY, LEASE_CHECK)
    }

    async fn report_if_due(&mut self, sources: &Sources, events: &mpsc::Sender<Event>) {
        if clock::now() < self.heartbeat.poll_timeout().0 {
            return;
        }
        if self.member.client.verified().not_after() <= clock::unix() {
            return self.on_failure(ClientError::Ended, events).await;
        }
        let Some(record) = (sources.record)() else {
            tokio::time::sleep(NOT_READY).await;
            return;
        };
        let capabilities = (sources.capabilities)();
        let number = *self.handle.enforced().borrow();
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
                self.reported = number;
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
            status.is_revoked = false;
            status.copied = answer.copied;
            status.tunnel = answer.tunnel;
            was_connected
        };
        if !was_connected {
            tracing::info!("coordinator reached");
            tell(events, Event::CoordinatorReached).await;
            self.seeds_at = now;
            self.lease.hasten(clock::unix());
        }
        if let Some(signed) = answer.revocations {
            self.handle.lists.offer(signed).await;
        }
        if answer.send_revocations
            && let Some(signed) = self.handle.lists.latest()
            && let Err(error) = self.member.client.send_list(signed.as_ref().clone()).await
        {
            tracing::debug!(why = %error, "the coordinator did not take our list");
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

    /// Renews when it is time, or when somebody asks for it.
    async fn renew_if_due(&mut self, asked: Option<Renewal>, events: &mpsc::Sender<Event>) {
        if self.desk.ready.is_cancelled() {
            // A certificate newer than that of the next keys would be believed before theirs.
            let why = "this machine starts with other keys and another certificate".to_owned();
            return answer(asked, Err(NotRenewed { why, hint: None }));
        }
        if let Some(unkept) = self.unkept.clone() {
            self.write_down(unkept);
        }
        let now = clock::unix();
        let (trust, own) = (self.member.trust.current(), self.member.client.verified());
        if asked.is_some() {
            self.lease.ask(now);
        } else if !trust.believes(&own.authority()) {
            self.lease.on_retired(now);
        } else if trust.authority().fingerprint() != own.authority() {
            self.lease.on_replaced(now);
        }
        self.note_lease(None);
        if !self.lease.is_due(now) {
            return;
        }
        if trust.revocations().names(&own) {
            // Nobody renews it, and asking would be noise.
            self.lease.on_failure(now);
            let why = "our certificate is revoked".to_owned();
            answer(
                asked,
                Err(NotRenewed {
                    why: why.clone(),
                    hint: Some("move the state directory away and join with a new token".to_owned()),
                }),
            );
            return self.note_lease(Some(why));
        }
        match self.renew().await {
            Ok(verified) => {
                self.lease.on_renewed(&verified);
                self.member.client.set_verified(verified.clone());
                self.had_ended = false;
                self.handle.locked().renewal_error = None;
                self.note_lease(None);
                self.heartbeat.retry(clock::now());
                tracing::info!(until = %verified.not_after(), "certificate renewed");
                answer(asked, Ok(verified.not_after()));
                tell(events, Event::Renewed(verified)).await;
            }
            Err(error) => {
                let now = clock::unix();
                self.lease.on_failure(now);
                self.handle.locked().renewals_failed += 1;
                self.note_lease(Some(format!("{error:#}")));
                let (ends_at, ended) = (self.lease.ends_at(), now >= self.lease.ends_at());
                // Once when it begins and once when it matters, then quietly: an outage is one event, however long.
                if self.lease.failures() == 1 || ended && !self.had_ended {
                    tracing::warn!(%ends_at, ended, "could not renew the certificate, trying on: {error:#}");
                } else {
                    tracing::debug!(%ends_at, ended, "could not renew the certificate: {error:#}");
                }
                self.had_ended |= ended;
                let hint = error.downcast_ref::<ClientError>().and_then(ClientError::hint).map(str::to_owned);
                answer(asked, Err(NotRenewed { why: format!("{error:#}"), hint }));
            }
        }
    }

    async fn renew(&mut self) -> anyhow::Result<Verified> {
        let renewed = self.member.client.renew().await?;
        // The certificate may be of an authority that only this list makes believed.
        if let Some(signed) = renewed.revocations {
            self.handle.lists.offer(signed).await;
        }
        let (before, now) = (self.member.client.verified(), clock::unix());
        let trust = self.member.trust.current();
        let verified = joining::accept_renewed(&trust, &renewed.certificate, &before.as_ref().into(), now)?;
        self.write_down(verified.clone());
        Ok(verified)
    }

    /// Writes our certificate to disk, as well as that can be done: a full disk is no reason to go on with one that ends.
    fn write_down(&mut self, verified: Verified) {
        let (trust, list) = (self.member.trust.current(), self.handle.lists.latest());
        let kept = self.disk.keep_certificate(&verified.chain().to_pem());
        let kept = kept.and_then(|()| self.disk.settle_authorities(&trust, list.as_deref(), clock::unix()));
        match kept {
            Ok(()) if self.unkept.take().is_some() => tracing::info!("the renewed certificate is on disk now"),
            Ok(()) => {}
            Err(error) => {
                if self.unkept.replace(verified).is_none() {
                    tracing::warn!(
                        "the renewed certificate is used, and could not be written to disk, which is tried again: {error:#}"
                    );
                }
            }
        }
    }

    /// Says once that our clock is off, and once that it is right again.
    fn look_at_the_clock(&mut self) {
        let Some(offset) = self.member.client.clock_offset() else { return };
        let is_wrong = offset.is_wrong();
        if is_wrong && !self.clock_was_wrong {
            tracing::warn!("this machine's clock is {offset} the coordinator's: set it");
        } else if !is_wrong && self.clock_was_wrong {
            tracing::info!("this machine's clock agrees with the coordinator's again");
            self.heartbeat.retry(clock::now());
        }
        self.clock_was_wrong = is_wrong;
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
        let coordinators = self.member.client.coordinators();
        let trust = self.member.trust.current();
        if let Err(error) = self.disk.change_member(&trust, |member| member.coordinators = coordinators) {
            tracing::warn!("could not keep the list of coordinators: {error:#}");
        }
    }

    /// Shows how it stands with the lease; an error stays until it is over.
    fn note_lease(&self, renewal_error: Option<String>) {
        let mut status = self.handle.locked();
        status.lease_ends_at = self.lease.ends_at();
        (status.renew_at, status.renew_why) = self.lease.poll_timeout();
        status.renewal_error = renewal_error.or_else(|| status.renewal_error.take());
    }
}

fn answer(asked: Option<Renewal>, renewed: Result<UnixTime, NotRenewed>) {
    if let Some(asked) = asked {
        // Whoever asked may have gone.
        let _ = asked.send(renewed);
    }
}
