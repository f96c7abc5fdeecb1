//! A request answered by another worker: who is asked, in which order, and what is learned from it.

use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use wiremesh_certs::{Offer, ServiceName};

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
    router::{
        Candidate, Failure, Found, Next, Path, Plan, Refusal, Source, Target, Trouble, Worker, headers, order,
        route::{self, Route},
        timing::Timing,
    },
};

/// The directory answers sooner; a request does not hang if it does not.
const FIND_TIMEOUT: Duration = Duration::from_secs(8);
/// Workers of one service that are considered for one request.
const MAX_WORKERS: usize = 64;

impl Shared {
    /// By another worker.
    pub(super) async fn elsewhere(&self, mut outgoing: Outgoing, not_here: NotHere) -> Result<Answer, Refusal> {
        if let Target::Model(model) = &outgoing.needs.target {
            outgoing.headers.insert(headers::MODEL, model.header());
        }
        let target = &outgoing.needs.target;
        let found = self.find_target(target).await;
        let candidates = self.candidates(&found.workers);
        outgoing.account.on_route(|| Route { source: found.source, ways: ways(&found.workers, &candidates) });
        let mut plan = Plan::new(candidates, outgoing.needs.repeatable);
        if matches!(&not_here, NotHere::Failed(Failed { failure: Failure::Uncertain, .. })) {
            plan = plan.after_us();
        }
        let mut full = match &not_here {
            NotHere::Full(after) => Some(*after),
            NotHere::NotOffered | NotHere::Failed(_) => None,
        };
        let mut why = match not_here {
            NotHere::Failed(failed) => Some(failed.why),
            NotHere::NotOffered | NotHere::Full(_) => None,
        };
        let mut next = plan.first();
        let tried = loop {
            let Next::Try(tried) = next else { break next };
            let worker = &found.workers[tried.worker];
            let began_at = clock::now();
            outgoing.account.on_attempt(&worker.name, tried.path);
            let failed = match self.attempt(&outgoing, worker, tried.path).await {
                Ok((answer, held)) => {
                    self.health().on_success((worker.id, tried.path), clock::now());
                    self.counters.forwarded.inc();
                    if tried.path == Path::Tunnel {
                        self.counters.forwarded_by_tunnel.inc();
                    }
                    let way = Way {
                        worker: header(worker.name.as_str()),
                        path: tried.path,
                        source: found.source,
                        timing: match &held.lease {
                            Some(lease) => Timing::default().with("connect", lease.waited_for()),
                            None => Timing::default(),
                        }
                        .with("worker", clock::now().saturating_duration_since(began_at)),
                    };
                    return Ok(self.finish(outgoing, answer, held, way));
                }
                Err(failed) => failed,
            };
            outgoing.account.on_failed(&failed.why);
            tracing::debug!(worker = %worker.name, path = %tried.path, why = failed.why, "attempt failed");
            self.learn(&outgoing, worker, tried.path, &failed);
            if let Some(Refusal::Full(after)) = failed.refusal {
                full = Some(full.map_or(after, |sooner: Duration| sooner.min(after)));
            }
            next = plan.after(tried, failed.failure, outgoing.replay.is_intact());
            why = Some(failed.why);
            if matches!(next, Next::Try(_)) {
                self.counters.retries.inc();
            }
        };
        Err(match (tried, full, why) {
            (Next::Uncertain, _, why) => Refusal::Interrupted(why.unwrap_or_default()),
            (_, Some(retry_after), _) => Refusal::Full(retry_after),
            (_, None, Some(why)) => Refusal::NobodyReached { target: target.clone(), why },
            (_, None, None) => self.nobody_but(target).await,
        })
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing,
        worker: &Worker,
        path: Path,
    ) -> Result<(Response<Incoming>, Held), Failed> {
        let (answer, lease) = match path {
            Path::Tunnel => (self.through_tunnel(outgoing, worker).await?, None),
            Path::Overlay | Path::Local => {
                self.over_overlay(outgoing, worker).await.map(|(answer, lease)| (answer, Some(lease)))?
            }
        };
        self.judge(&answer, path)?;
        Ok((answer, Held { lease, ..Held::default() }))
    }

    /// What a failed attempt says about the way and about the worker.
    fn learn(&self, outgoing: &Outgoing, worker: &Worker, path: Path, failed: &Failed) {
        let mut health = self.health();
        let is_lost = if failed.on_the_way {
            let now = clock::now();
            // What broke may have broken because nobody was there any more.
            let refused = failed.failure == Failure::ConnectionRefused;
            let trouble = if refused { Trouble::Refused } else { Trouble::Silent };
            health.on_failure(worker, path, trouble, now, &mut *lock(&self.rng));
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
            self.parts.directory.forget(&outgoing.needs.target.offer(), &worker.id);
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
        let others = ways(&found.workers, &self.candidates(&found.workers));
        Route { source, ways: local.into_iter().chain(others).collect() }
    }

    pub(super) async fn find(&self, offer: &Offer) -> Found {
        let finding = tokio::time::timeout(FIND_TIMEOUT, self.parts.directory.find(offer));
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

/// The ways in their order, for people.
fn ways(workers: &[Worker], candidates: &[Candidate]) -> Vec<route::Way> {
    let now = clock::unix();
    let way = |candidate: &Candidate| {
        let worker = &workers[candidate.worker];
        route::Way {
            worker: worker.name.clone(),
            path: candidate.path,
            load: candidate.load.share(),
            age: Some(now.saturating_since(worker.published_at)),
            score: None,
            parts: Vec::new(),
            report_age: None,
            excluded: candidate.ejected.then_some("ejected"),
        }
    };
    candidates.iter().map(way).collect()
}
