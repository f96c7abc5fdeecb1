//! A request answered by another worker: who is asked, in which order, and what is learned from it.

use std::time::{Duration, Instant};

use http::Response;
use hyper::body::Incoming;
use wiremesh_certs::{Offer, ServiceName};

use super::{
    Shared,
    answer::{Answer, Held},
    attempt::Failed,
    believed::{Believed, over},
    finish::Way,
    header,
    here::NotHere,
    lock,
    outgoing::Outgoing,
    overlay::Lease,
    underway::Underway,
    upstreams::Arriving,
};
use crate::{
    clock,
    router::{
        Affinity, Asked, CallId, Failure, Found, Next, Path, Plan, Refusal, Selection, Source, Target, Worker, explain,
        headers,
        route::{self, Route},
        select,
        timing::Timing,
    },
};

/// The directory answers sooner; a request does not hang if it does not.
const FIND_TIMEOUT: Duration = Duration::from_secs(8);
/// Whether others do better is looked at if they are known: a question to the network takes longer than many a line.
const KNOWN_AT_ONCE: Duration = Duration::from_millis(50);
/// A request leaves our line for another worker that scores less than this part of what it has to wait here.
const CLEARLY_LOWER: f64 = 0.5;
/// Workers of one service that are considered for one request.
const MAX_WORKERS: usize = 64;

impl Shared {
    /// By another worker. Gives the request back with what its client is to be told.
    pub(super) async fn elsewhere(
        &self,
        mut outgoing: Outgoing,
        not_here: NotHere,
    ) -> Result<Answer, (Outgoing, Refusal)> {
        lock(&self.budget).on_request();
        let target = outgoing.needs.target.clone();
        if let Target::Model(model) = &target {
            outgoing.headers.insert(headers::MODEL, model.header());
        }
        let service = subject(&target);
        let found = self.find_target(&target).await;
        outgoing.account.on_route(|| Route {
            source: found.source,
            ways: self.ways(&service, &found.workers),
            forbidden: found.forbidden,
        });
        let selection = self.select(&service, &found.workers, outgoing.affinity);
        let mut plan = Plan::new(selection.ways, outgoing.needs.repeatable);
        if matches!(&not_here, NotHere::Failed(Failed { failure: Failure::Uncertain, .. })) {
            plan = plan.after_us();
        }
        let mut full = match &not_here {
            NotHere::Full(after) => Some(selection.full_for.map_or(*after, |other| other.min(*after))),
            NotHere::NotOffered | NotHere::Draining | NotHere::Waits | NotHere::Stalled | NotHere::Failed(_) => {
                selection.full_for
            }
        };
        let draining = matches!(&not_here, NotHere::Draining);
        let mut forbidden = found.forbidden;
        let mut why = match not_here {
            NotHere::Failed(failed) => Some(failed.why),
            NotHere::NotOffered | NotHere::Draining | NotHere::Waits | NotHere::Stalled | NotHere::Full(_) => None,
        };
        let mut next = plan.first();
        let tried = loop {
            let Next::Try(tried) = next else { break next };
            let worker = &found.workers[tried.worker];
            let began_at = clock::now();
            outgoing.account.on_attempt(&worker.name, tried.path);
            let mut underway = Underway::begin(&self.fleet, &service, worker.id, tried.path);
            let by = self.parts.members.known(&worker.id).map(|member| Believed::member(&self.belief, member));
            let failed = match self.attempt(&outgoing, worker, by.as_ref(), tried.path, &mut underway).await {
                Ok((answer, held)) => {
                    self.on_answered(&target, worker, tried.path);
                    let way = Way {
                        worker: header(worker.name.as_str()),
                        path: tried.path,
                        source: found.source,
                        timing: match &held.lease {
                            Some(lease) => Timing::default().with("connect", lease.waited_for()),
                            None => Timing::default(),
                        }
                        .with("worker", clock::now().saturating_duration_since(began_at)),
                        by,
                    };
                    return Ok(self.finish(
                        outgoing,
                        answer.map(Arriving::from),
                        Held { underway: Some(underway), ..held },
                        way,
                    ));
                }
                Err(failed) => failed,
            };
            outgoing.account.on_failed(&failed.why);
            tracing::debug!(worker = %worker.name, path = %tried.path, why = failed.why, "attempt failed");
            underway.on_failed(failed.ended(tried.path));
            self.learn(&target, worker, tried.path, &failed);
            match failed.refusal {
                Some(Refusal::Full(after)) => full = Some(full.map_or(after, |sooner: Duration| sooner.min(after))),
                // The policy is the mesh's: all who offer the service would say the same. A model may be served by
                // another service elsewhere.
                Some(refusal) if matches!(target, Target::Service(_)) => return Err((outgoing, refusal)),
                Some(_) => forbidden = true,
                None => {}
            }
            next = plan.after(tried, failed.failure, outgoing.replay.is_intact());
            why = Some(failed.why);
            if matches!(next, Next::Try(_)) {
                if !lock(&self.budget).take(clock::now()) {
                    self.counters.retries_denied.inc();
                    break plan.end();
                }
                self.counters.retries.inc();
                // Of the call before, its worker may have been asked, and have promised not to execute it.
                outgoing.via.call = CallId::random(&mut *lock(&self.rng));
            }
        };
        let refusal = match (tried, full, why) {
            (Next::Uncertain, _, why) => Refusal::Interrupted(why.unwrap_or_default()),
            (_, Some(retry_after), _) => Refusal::Full(retry_after),
            (_, None, None) if draining => Refusal::Draining,
            (_, None, _) if forbidden => self.not_allowed(&target),
            (_, None, Some(why)) => Refusal::NobodyReached { target, why },
            (_, None, None) => self.nobody_but(&target).await,
        };
        Err((outgoing, refusal))
    }

    /// The mesh's policy does not let this node call it.
    pub(super) fn not_allowed(&self, target: &Target) -> Refusal {
        Refusal::NotAllowed { who: self.parts.name.to_string(), target: target.clone() }
    }

    /// Whether a request would have to wait here. Of several services for one model one may be free.
    pub(super) fn would_wait(&self, target: &Target) -> bool {
        matches!(target, Target::Service(service) if self.parts.services.would_wait(service))
    }

    /// Whether a request of our own client that would have to wait in the line of a service is likely answered much sooner
    /// by another worker.
    pub(super) async fn had_better_leave(&self, target: &Target) -> bool {
        let Target::Service(service) = target else { return false };
        let Some(own) = self.work(service).filter(|work| work.running + work.queued >= work.capacity) else {
            return false;
        };
        let Ok(found) = tokio::time::timeout(KNOWN_AT_ONCE, self.find_target(target)).await else { return false };
        let asked = Asked { service, workers: &found.workers, overlay: self.parts.overlay, affinity: None };
        let ways = explain(&asked, &mut lock(&self.fleet), &mut self.health(), clock::now());
        let Some(best) = ways.first().filter(|best| best.excluded.is_none() && !best.candidate.ejected) else {
            return false;
        };
        // As long as it is not known how long requests take, they take as long as there.
        let service_time = match own.service_time_ms {
            0 => best.score.service_time,
            millis => f64::from(millis) / 1000.0,
        };
        let own = f64::from(own.running + own.queued + 1) / f64::from(own.capacity) * service_time;
        best.score.estimate < best.score.capacity && best.score.total < own * CLEARLY_LOWER
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
        by: Option<&Believed>,
        path: Path,
        underway: &mut Underway,
    ) -> Result<(Response<Incoming>, Held), Failed> {
        let sent_at = clock::now();
        let sending = async {
            match path {
                Path::Tunnel => self.through_tunnel(outgoing, worker).await.map(|answer| (answer, None)),
                Path::Overlay | Path::Local => {
                    self.over_overlay(outgoing, worker).await.map(|(answer, lease)| (answer, Some(lease)))
                }
            }
        };
        let sent = tokio::select! {
            biased;
            sent = sending => sent,
            () = over(by.cloned()) => Err(put_out(outgoing)),
        };
        let judged = sent.and_then(|(answer, lease)| {
            self.judge(&answer, &outgoing.needs.target, path, underway)?;
            Ok((answer, lease))
        });
        match judged {
            Ok((answer, lease)) => {
                if let Some(took) = lease.as_ref().and_then(|lease: &Lease| lease.connected_in) {
                    underway.on_connect(took);
                }
                Ok((answer, Held { lease, ..Held::default() }))
            }
            Err(failed) => {
                // At once: the client may leave while it is being cleared up, and others are on their way there.
                self.learn_of_way(worker, path, &failed);
                Err(self.cleared_up(outgoing, worker, sent_at, failed).await)
            }
        }
    }

    /// What is known of a failed attempt once its worker was asked, if that matters.
    async fn cleared_up(&self, outgoing: &Outgoing, worker: &Worker, sent_at: Instant, failed: Failed) -> Failed {
        // An idempotent request is sent again without asking.
        let matters = failed.failure == Failure::Uncertain && !outgoing.needs.repeatable;
        if matters { self.clear_up(outgoing, worker, sent_at, failed).await } else { failed }
    }

    /// What an answer says about the way and about the worker.
    fn on_answered(&self, target: &Target, worker: &Worker, path: Path) {
        let now = clock::now();
        self.health().on_success((worker.id, path), now);
        self.counters.forwarded.inc();
        if path == Path::Tunnel {
            self.counters.forwarded_by_tunnel.inc();
        }
        // Which service of the worker serves a model is the worker's affair: it says how that does on its answers.
        if let (Path::Overlay, Some(address), Target::Service(service)) = (path, worker.overlay, target)
            && lock(&self.followed).on_use(service, worker.id, address, now)
        {
            self.to_follow.notify_one();
        }
    }

    /// What a failed attempt says about the way it went.
    fn learn_of_way(&self, worker: &Worker, path: Path, failed: &Failed) {
        if let Some(trouble) = failed.trouble {
            self.health().on_failure(worker, path, trouble, clock::now(), &mut *lock(&self.rng));
            self.ejected.notify_one();
        }
    }

    /// What a failed attempt says about the worker.
    fn learn(&self, target: &Target, worker: &Worker, path: Path, failed: &Failed) {
        let now = clock::now();
        if let Some(Refusal::Full(retry_after)) = failed.refusal {
            lock(&self.fleet).on_full(&subject(target), worker.id, retry_after, now);
        }
        let mut health = self.health();
        let is_lost = if failed.trouble.is_some() {
            let other = match path {
                Path::Tunnel => worker.overlay.is_some().then_some(Path::Overlay),
                Path::Overlay | Path::Local => worker.tunnel.is_some().then_some(Path::Tunnel),
            };
            health.is_ejected((worker.id, path), now)
                && other.is_none_or(|other| health.is_ejected((worker.id, other), now))
        } else {
            // A worker that is full still offers the service; one that refuses for another reason does not.
            failed.failure == Failure::Refused && failed.refusal.is_none()
        };
        drop(health);
        if is_lost {
            self.parts.directory.forget(&target.offer(), &worker.id);
        }
    }

    /// Who would be asked for `service`, in order, and why. Sends nothing to anybody but the directory.
    pub(super) async fn explain(&self, service: &ServiceName) -> Route {
        let found = self.find(&Offer::Service(service.clone())).await;
        let here = self.parts.services.offered().contains(service);
        let source = if here { Source::Local } else { found.source };
        let local = here.then(|| route::Way {
            worker: self.parts.name.clone(),
            path: Path::Local,
            load: self.parts.services.load().share(),
            age: None,
            score: None,
            parts: Vec::new(),
            report_age: None,
            excluded: None,
        });
        let others = self.ways(service, &found.workers);
        Route { source, ways: local.into_iter().chain(others).collect(), forbidden: found.forbidden }
    }

    pub(super) async fn find(&self, offer: &Offer) -> Found {
        let finding = tokio::time::timeout(FIND_TIMEOUT, self.parts.directory.find(offer));
        let mut found = finding.await.unwrap_or(Found { workers: Vec::new(), source: Source::Http, forbidden: false });
        found.workers.retain(|worker| worker.name != self.parts.name);
        found.workers.truncate(MAX_WORKERS);
        found
    }

    /// The ways that would be gone now, for people.
    fn ways(&self, service: &ServiceName, workers: &[Worker]) -> Vec<route::Way> {
        let asked = Asked { service, workers, overlay: self.parts.overlay, affinity: None };
        let considered = explain(&asked, &mut lock(&self.fleet), &mut self.health(), clock::now());
        let now = clock::unix();
        considered.iter().map(|way| route::Way::of(&workers[way.candidate.worker], way, now)).collect()
    }

    fn select(&self, service: &ServiceName, workers: &[Worker], affinity: Option<Affinity>) -> Selection {
        let asked = Asked { service, workers, overlay: self.parts.overlay, affinity };
        let (fleet, health, rng) = (&mut *lock(&self.fleet), &mut *self.health(), &mut *lock(&self.rng));
        let selection = select(&asked, fleet, health, rng, clock::now());
        if fleet.take_missed() {
            self.to_follow.notify_one();
        }
        selection
    }
}

/// The worker of an attempt is no member any longer: neither is it waited for, nor is it asked what became of the call.
fn put_out(outgoing: &Outgoing) -> Failed {
    let failure = if outgoing.replay.is_untouched() { Failure::Refused } else { Failure::Interrupted };
    Failed::there(failure, "the worker is no longer a member")
}

/// Under which name the fleet knows what is asked for. A model has one that no service has: which service of a worker
/// serves it is not known.
fn subject(target: &Target) -> ServiceName {
    match target {
        Target::Service(service) => service.clone(),
        Target::Model(model) => {
            ServiceName::new(&format!("model-{}", model.tag())).expect("letters and hexadecimal digits make a name")
        }
    }
}
