//! A request answered by a service of this node.

use std::time::Duration;

use http::HeaderValue;
use wiremesh_certs::ServiceName;

use super::{
    Shared,
    answer::{Answer, Held},
    attempt::Failed,
    finish::Way,
    outgoing::Outgoing,
};
use crate::{
    clock,
    router::{Failure, Path, Refusal, Source, Trouble, headers, timing::Timing},
    services::{self, Permit, Reservation, ServiceState},
};

/// Why a service of this node does not answer.
pub(super) enum NotHere {
    NotOffered,
    Draining,
    /// It would have to wait, and another worker is idle.
    Waits,
    Full(Duration),
    /// Its client did nothing while others waited for its place.
    Stalled,
    Failed(Failed),
}

impl Shared {
    /// A request from another agent: answered here or not at all, and either way with a word about how we do.
    pub(super) async fn only_here(&self, outgoing: Outgoing) -> Answer {
        let service = self.service_of(&outgoing.needs.target);
        let request_id = outgoing.headers.get(headers::REQUEST_ID).cloned();
        let request_id = request_id.unwrap_or_else(|| HeaderValue::from_static(""));
        let answered = self.if_here(outgoing).await;
        let mut answer = answered.unwrap_or_else(|refusal| self.fail(&refusal, &request_id));
        if let Some(work) = service.and_then(|service| self.work_header(&service)) {
            answer.headers_mut().insert(headers::LOAD, work);
        }
        answer
    }

    async fn if_here(&self, outgoing: Outgoing) -> Result<Answer, Refusal> {
        let target = outgoing.needs.target.clone();
        match self.here(outgoing).await {
            Ok(answer) => {
                self.counters.inbound.inc();
                Ok(answer)
            }
            Err((_, NotHere::NotOffered | NotHere::Waits)) => Err(Shared::nobody(&target, Vec::new())),
            Err((_, NotHere::Draining)) => Err(Refusal::Draining),
            Err((_, NotHere::Full(retry_after))) => Err(Refusal::Full(retry_after)),
            Err((_, NotHere::Stalled)) => Err(Refusal::Stalled),
            Err((_, NotHere::Failed(Failed { failure: Failure::Uncertain, why, .. }))) => {
                Err(Refusal::Interrupted(why))
            }
            Err((_, NotHere::Failed(failed))) => Err(Refusal::NobodyReached { target, why: failed.why }),
        }
    }

    /// By a service of this node. Gives the request back if it was not executed, or may safely be again.
    pub(super) async fn here(&self, mut outgoing: Outgoing) -> Result<Answer, (Outgoing, NotHere)> {
        let queued_at = clock::now();
        if self.is_draining() {
            let target = &outgoing.needs.target;
            let is_ours = self.service_of(target).is_some_and(|service| self.parts.services.is_configured(&service));
            return Err((outgoing, if is_ours { NotHere::Draining } else { NotHere::NotOffered }));
        }
        // Our own clients have our services anyway, whatever others may.
        let serves = |service: &ServiceName| match &outgoing.believed {
            Some(by) => by.may_call(service) && self.belief.may_offer(service),
            None => true,
        };
        let mut place = self.reserve(&outgoing.needs.target, outgoing.asker, serves);
        loop {
            let permit = match place {
                Ok((service, reservation)) => {
                    self.turn(reservation, &service, &mut outgoing).await.map(|permit| (service, permit))
                }
                Err(refused) => Err(refused),
            };
            let (service, permit) = match permit {
                Ok(permitted) => permitted,
                Err(services::Refused::NotOffered) => return Err((outgoing, NotHere::NotOffered)),
                Err(services::Refused::Full(after)) => return Err((outgoing, NotHere::Full(after))),
            };
            let began_at = clock::now();
            outgoing.account.on_service(&service);
            if let Some(by) = &outgoing.believed {
                by.on_service(&service);
            }
            outgoing.account.on_attempt(&self.parts.name, Path::Local);
            let watched = self.stalls.begin(permit.demand());
            outgoing.replay.tell(watched.place());
            let answered = tokio::select! {
                biased;
                answered = self.to_upstream(&outgoing, permit.upstream()) => answered,
                () = watched.cut() => return Err((outgoing, NotHere::Stalled)),
            };
            let failed = match answered {
                Ok(answer) => {
                    let way = Way {
                        worker: self.worker_header.clone(),
                        path: Path::Local,
                        source: Source::Local,
                        timing: Timing::default()
                            .with("queue", began_at.saturating_duration_since(queued_at))
                            .with("upstream", clock::now().saturating_duration_since(began_at)),
                        by: None,
                    };
                    let held = Held { permit: Some(permit), watched: Some(watched), ..Held::default() };
                    return Ok(self.finish(outgoing, answer, held, way));
                }
                Err(failed) => failed,
            };
            outgoing.account.on_failed(&failed.why);
            if let (Some(called), Failure::ConnectionRefused | Failure::Unreachable) =
                (&mut outgoing.called, failed.failure)
            {
                called.on_not_taken();
            }
            if failed.trouble == Some(Trouble::Broken) {
                self.parts.services.on_broken(&service);
            }
            if failed.failure == Failure::ConnectionRefused {
                self.parts.services.on_unreachable(&service);
                // Nothing was sent, and the upstream is being started again: the line waits for it.
                if let Some(again) = permit.back_in_line() {
                    place = Ok((service, again));
                    continue;
                }
            }
            return Err((outgoing, NotHere::Failed(failed)));
        }
    }

    /// Waits for the request's turn, and tells who asks what it waits for.
    async fn turn(
        &self,
        reservation: Reservation,
        service: &ServiceName,
        outgoing: &mut Outgoing,
    ) -> Result<Permit, services::Refused> {
        let Some(called) = &mut outgoing.called else { return reservation.ready().await };
        if reservation.must_wait() {
            let state = self.parts.services.report(service).map(|report| report.state);
            called.on_waiting(state == Some(ServiceState::Loading));
        }
        let permit = reservation.ready().await?;
        called.on_running();
        Ok(permit)
    }
}
