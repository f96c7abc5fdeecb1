//! A request answered by a service of this node.

use std::time::Duration;

use super::{
    Shared,
    answer::{Answer, Held},
    attempt::Failed,
    finish::Way,
    outgoing::Outgoing,
};
use crate::{
    clock,
    router::{Failure, Path, Refusal, Source, timing::Timing},
    services,
};

/// Why a service of this node does not answer.
pub(super) enum NotHere {
    NotOffered,
    Full(Duration),
    Failed(Failed),
}

impl Shared {
    /// A request from another agent: answered here or not at all.
    pub(super) async fn only_here(&self, outgoing: Outgoing) -> Result<Answer, Refusal> {
        let target = outgoing.needs.target.clone();
        match self.here(outgoing).await {
            Ok(answer) => {
                self.counters.inbound.inc();
                Ok(answer)
            }
            Err((_, NotHere::NotOffered)) => Err(Shared::nobody(&target, Vec::new())),
            Err((_, NotHere::Full(retry_after))) => Err(Refusal::Full(retry_after)),
            Err((_, NotHere::Failed(Failed { failure: Failure::Uncertain, why, .. }))) => {
                Err(Refusal::Interrupted(why))
            }
            Err((_, NotHere::Failed(failed))) => Err(Refusal::NobodyReached { target, why: failed.why }),
        }
    }

    /// By a service of this node. Gives the request back if it was not executed, or may safely be again.
    pub(super) async fn here(&self, outgoing: Outgoing) -> Result<Answer, (Outgoing, NotHere)> {
        let queued_at = clock::now();
        let mut place = self.reserve(&outgoing.needs.target);
        loop {
            let permit = match place {
                Ok((service, reservation)) => reservation.ready().await.map(|permit| (service, permit)),
                Err(refused) => Err(refused),
            };
            let (service, permit) = match permit {
                Ok(permitted) => permitted,
                Err(services::Refused::NotOffered) => return Err((outgoing, NotHere::NotOffered)),
                Err(services::Refused::Full(after)) => return Err((outgoing, NotHere::Full(after))),
            };
            let began_at = clock::now();
            outgoing.account.on_service(&service);
            outgoing.account.on_attempt(&self.parts.name, Path::Local);
            let failed = match self.to_upstream(&outgoing, permit.upstream()).await {
                Ok(answer) => {
                    let way = Way {
                        worker: self.worker_header.clone(),
                        path: Path::Local,
                        source: Source::Local,
                        timing: Timing::default()
                            .with("queue", began_at.saturating_duration_since(queued_at))
                            .with("upstream", clock::now().saturating_duration_since(began_at)),
                    };
                    let held = Held { permit: Some(permit), ..Held::default() };
                    return Ok(self.finish(outgoing, answer, held, way));
                }
                Err(failed) => failed,
            };
            outgoing.account.on_failed(&failed.why);
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
}
