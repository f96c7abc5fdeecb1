//! A request answered by another worker: who is asked, in which order, and what is learned from it.

use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};
use wiremesh_certs::ServiceName;

use super::{
    Shared,
    answer::{Answer, Held},
    attempt::Failed,
    finish::Way,
    header,
    here::NotHere,
    lock,
    outgoing::Outgoing,
};
use crate::{
    clock,
    router::{CallId, Candidate, Failure, Found, Next, Path, Plan, Refusal, Source, Worker, order},
};

/// The directory answers sooner; a request does not hang if it does not.
const FIND_TIMEOUT: Duration = Duration::from_secs(8);
/// Workers of one service that are considered for one request.
const MAX_WORKERS: usize = 64;

impl Shared {
    /// By another worker.
    pub(super) async fn elsewhere(&self, mut outgoing: Outgoing, not_here: NotHere) -> Result<Answer, Refusal> {
        lock(&self.budget).on_request();
        let service = outgoing.needs.service.clone();
        let found = self.find(&service).await;
        let mut plan = Plan::new(self.candidates(&found.workers), outgoing.needs.repeatable);
        if matches!(&not_here, NotHere::Failed(Failed { failure: Failure::Uncertain, .. })) {
            plan = plan.after_us();
        }
        let mut full = match &not_here {
            NotHere::Full(after) => Some(*after),
            NotHere::NotOffered | NotHere::Draining | NotHere::Failed(_) => None,
        };
        let draining = matches!(&not_here, NotHere::Draining);
        let mut why = match not_here {
            NotHere::Failed(failed) => Some(failed.why),
            NotHere::NotOffered | NotHere::Draining | NotHere::Full(_) => None,
        };
        let mut next = plan.first();
        let tried = loop {
            let Next::Try(tried) = next else { break next };
            let worker = &found.workers[tried.worker];
            let began_at = clock::now();
            let failed = match self.attempt(&outgoing, worker, tried.path).await {
                Ok((answer, held)) => {
                    self.health().on_success((worker.id, tried.path));
                    self.counters.forwarded.inc();
                    if tried.path == Path::Tunnel {
                        self.counters.forwarded_by_tunnel.inc();
                    }
                    let way = Way {
                        worker: header(worker.name.as_str()),
                        path: tried.path,
                        source: found.source,
                        timing: Shared::timing("worker", began_at),
                    };
                    return Ok(self.finish(outgoing, answer, held, way));
                }
                Err(failed) => failed,
            };
            tracing::debug!(worker = %worker.name, path = %tried.path, why = failed.why, "attempt failed");
            self.learn(&outgoing, worker, tried.path, &failed);
            if let Some(Refusal::Full(after)) = failed.refusal {
                full = Some(full.map_or(after, |sooner: Duration| sooner.min(after)));
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
        Err(match (tried, full, why) {
            (Next::Uncertain, _, why) => Refusal::Interrupted(why.unwrap_or_default()),
            (_, Some(retry_after), _) => Refusal::Full(retry_after),
            (_, None, Some(why)) => Refusal::NobodyReached { service, why },
            (_, None, None) if draining => Refusal::Draining,
            (_, None, None) => Refusal::ServiceNotFound(service),
        })
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
        path: Path,
    ) -> Result<(Response<Incoming>, Held), Failed> {
        let sent_at = clock::now();
        let sent = match path {
            Path::Tunnel => self.through_tunnel(outgoing, worker).await.map(|answer| (answer, None)),
            Path::Overlay | Path::Local => {
                self.over_overlay(outgoing, worker).await.map(|(answer, lease)| (answer, Some(lease)))
            }
        };
        let judged = sent.and_then(|(answer, lease)| self.judge(&answer, path).map(|()| (answer, lease)));
        match judged {
            Ok((answer, lease)) => Ok((answer, Held { lease, ..Held::default() })),
            // An idempotent request is sent again without asking.
            Err(failed) if failed.failure == Failure::Uncertain && !outgoing.needs.repeatable => {
                Err(self.clear_up(outgoing, worker, sent_at, failed).await)
            }
            Err(failed) => Err(failed),
        }
    }

    /// What a failed attempt says about the way and about the worker.
    fn learn(&self, outgoing: &Outgoing, worker: &Worker, path: Path, failed: &Failed) {
        let mut health = self.health();
        let is_lost = if failed.on_the_way {
            let now = clock::now();
            health.on_failure(worker, path, now);
            self.ejected.notify_one();
            let other = match path {
                Path::Tunnel => worker.overlay.is_some().then_some(Path::Overlay),
                Path::Overlay | Path::Local => worker.tunnel.is_some().then_some(Path::Tunnel),
            };
            other.is_none_or(|other| health.is_ejected((worker.id, other), now))
        } else {
            // A worker that is full still offers the service; one that refuses for another reason does not.
            failed.failure == Failure::Refused && failed.refusal.is_none()
        };
        drop(health);
        if is_lost {
            self.parts.directory.forget(&outgoing.needs.service, &worker.id);
        }
    }

    /// Who would be asked for `service`, in order, and why. Sends nothing to anybody but the directory.
    pub(super) async fn explain(&self, service: &ServiceName) -> Value {
        let found = self.find(service).await;
        let here = self.parts.services.offered().contains(service);
        let source = if here { Source::Local } else { found.source };
        let now = clock::unix();
        let local = here.then(|| {
            json!({"path": Path::Local.as_str(), "worker": self.parts.name.as_str(),
                   "load": self.parts.services.load().share(), "ejected": false})
        });
        let ways = self.candidates(&found.workers).into_iter().map(|way| {
            let worker = &found.workers[way.worker];
            json!({"path": way.path.as_str(), "worker": worker.name.as_str(), "load": way.load.share(),
                   "age_seconds": now.saturating_since(worker.published_at).as_secs(), "ejected": way.ejected})
        });
        json!({"service": service.as_str(), "source": source.as_str(), "ways": local.into_iter().chain(ways).collect::<Vec<_>>()})
    }

    async fn find(&self, service: &ServiceName) -> Found {
        let finding = tokio::time::timeout(FIND_TIMEOUT, self.parts.directory.find(service));
        let mut found = finding.await.unwrap_or(Found { workers: Vec::new(), source: Source::Http });
        found.workers.retain(|worker| worker.name != self.parts.name);
        found.workers.truncate(MAX_WORKERS);
        found
    }

    fn candidates(&self, workers: &[Worker]) -> Vec<Candidate> {
        let now = clock::now();
        let mut health = self.health();
        let mut candidates = Vec::with_capacity(workers.len() * 2);
        for (index, worker) in workers.iter().enumerate() {
            let mut add = |path| {
                let ejected = health.is_ejected((worker.id, path), now);
                candidates.push(Candidate { ejected, path, load: worker.load, worker: index });
            };
            if self.parts.overlay && worker.overlay.is_some() {
                add(Path::Overlay);
            }
            if worker.tunnel.is_some() {
                add(Path::Tunnel);
            }
        }
        drop(health);
        order(&mut candidates, &mut *lock(&self.rng));
        candidates
    }
}
