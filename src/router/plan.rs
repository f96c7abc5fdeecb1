//! What to do next in one request: whom to try, whether a failed attempt may be repeated and by whom.
//!
//! | the attempt | another worker | the same worker by its tunnel |
//! |---|---|---|
//! | was never sent, or the worker promised never to have seen it | yes | yes |
//! | was refused (`x-wiremesh-executed: no`) | yes | no |
//! | may have been executed, and nobody can tell | only if repeatable | only if repeatable |
//! | was begun, says the worker | only if repeatable | no |
//!
//! All of it only while the body can be sent again from its beginning. Before an attempt counts as one of which nobody
//! can tell, the worker was asked.

use super::{Candidate, Path};

/// Attempts for one request, the first included. With one more the client had better decide.
pub const MAX_ATTEMPTS: usize = 3;

/// How an attempt failed, as far as it matters to what may follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Nothing reached the worker, or it promised not to execute what still does; the path to it seems dead.
    Unreachable,
    /// The worker's machine answers, but nobody listens there.
    ConnectionRefused,
    /// The worker said that it did not and will not execute this call.
    Refused,
    /// It may have been executed: the path or the worker was lost, and nobody can tell.
    Uncertain,
    /// The worker says that it was begun, or that it may have been executed.
    Interrupted,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// Try this way to this worker.
    Try(Candidate),
    /// Nobody is left, and surely nobody executed it.
    NobodyLeft,
    /// Nobody is left, or none that it would be safe to try: somebody may have executed it.
    Uncertain,
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Plan {
    /// In the order of [`super::order`]; each way is taken out when it is tried or ruled out.
    left: Vec<Candidate>,
    repeatable: bool,
    attempts: usize,
    /// Whether somebody may have executed the request.
    uncertain: bool,
}

impl Plan {
    /// `ordered` by [`super::order`]; `repeatable` as in [`super::Needs`].
    pub fn new(ordered: Vec<Candidate>, repeatable: bool) -> Plan {
        Plan { left: ordered, repeatable, attempts: 0, uncertain: false }
    }

    /// A service of this node was tried before, and may have executed the request.
    pub fn after_us(mut self) -> Plan {
        self.uncertain = true;
        self
    }

    /// The first attempt.
    pub fn first(&mut self) -> Next {
        self.take(0)
    }

    /// What follows the failure of `tried`. `body_intact`: the body can be sent again from its beginning.
    pub fn after(&mut self, tried: Candidate, failure: Failure, body_intact: bool) -> Next {
        if matches!(failure, Failure::Uncertain | Failure::Interrupted) {
            self.uncertain = true;
        }
        if matches!(failure, Failure::Refused | Failure::Interrupted) {
            self.left.retain(|candidate| candidate.worker != tried.worker);
        }
        if self.attempts >= MAX_ATTEMPTS || !body_intact || self.uncertain && !self.repeatable {
            return self.end();
        }
        let same_worker = self.left.iter().position(|candidate| candidate.worker == tried.worker && !candidate.ejected);
        match (failure, same_worker) {
            // The record is fresh, the path is not: its tunnel is the surest guess, and the other workers' overlay
            // addresses may be as dead, at two seconds each.
            (Failure::Unreachable | Failure::Uncertain, Some(index)) if tried.path == Path::Overlay => self.take(index),
            (_, _) => self.take(0),
        }
    }

    /// How a request ends for which nobody is to be tried any more.
    pub fn end(&self) -> Next {
        if self.uncertain { Next::Uncertain } else { Next::NobodyLeft }
    }

    /// Attempts begun.
    pub fn attempts(&self) -> usize {
        self.attempts
    }

    fn take(&mut self, index: usize) -> Next {
        if index >= self.left.len() {
            return self.end();
        }
        self.attempts += 1;
        Next::Try(self.left.remove(index))
    }
}

#[cfg(test)]
mod tests {
    use wiremesh_certs::Load;

    use super::*;

    #[test]
    fn a_dead_overlay_is_followed_by_the_same_workers_tunnel() {
        let mut plan = post();

        assert_eq!(plan.after(way(0, Path::Overlay), Failure::Unreachable, true), Next::Try(way(0, Path::Tunnel)));
    }

    #[test]
    fn a_worker_that_is_not_there_is_followed_by_the_next() {
        let mut plan = post();

        assert_eq!(
            plan.after(way(0, Path::Overlay), Failure::ConnectionRefused, true),
            Next::Try(way(1, Path::Overlay))
        );
    }

    #[test]
    fn a_worker_that_refuses_is_asked_by_no_other_way() {
        let mut plan = post();

        assert_eq!(plan.after(way(0, Path::Overlay), Failure::Refused, true), Next::Try(way(1, Path::Overlay)));
        assert_eq!(plan.after(way(1, Path::Overlay), Failure::Refused, true), Next::NobodyLeft);
    }

    #[test]
    fn what_may_have_been_executed_is_repeated_by_nobody() {
        assert_eq!(post().after(way(0, Path::Overlay), Failure::Uncertain, true), Next::Uncertain);
        assert_eq!(post().after(way(0, Path::Overlay), Failure::Interrupted, true), Next::Uncertain);
    }

    #[test]
    fn what_was_refused_after_it_may_have_been_executed_may_still_have_been() {
        let mut plan = plan(true);

        plan.after(way(0, Path::Overlay), Failure::Uncertain, true);
        plan.after(way(0, Path::Tunnel), Failure::Refused, true);

        assert_eq!(plan.after(way(1, Path::Overlay), Failure::Refused, true), Next::Uncertain);
    }

    #[test]
    fn an_idempotent_request_that_may_have_been_executed_goes_on_to_others() {
        let mut plan = plan(true);

        assert_eq!(plan.after(way(0, Path::Overlay), Failure::Uncertain, true), Next::Try(way(0, Path::Tunnel)));
        assert_eq!(plan.after(way(0, Path::Tunnel), Failure::Uncertain, true), Next::Try(way(1, Path::Overlay)));
    }

    #[test]
    fn what_a_worker_began_by_its_own_word_an_idempotent_request_repeats_elsewhere() {
        let next = plan(true).after(way(0, Path::Overlay), Failure::Interrupted, true);
        assert_eq!(next, Next::Try(way(1, Path::Overlay)));
    }

    #[test]
    fn an_idempotent_request_that_may_have_been_executed_does_not_end_as_if_it_had_not() {
        let mut plan = plan(true);

        let mut next = plan.after(way(0, Path::Overlay), Failure::Uncertain, true);
        while let Next::Try(tried) = next {
            next = plan.after(tried, Failure::Unreachable, true);
        }

        assert_eq!(next, Next::Uncertain);
        assert_eq!(Plan::new(Vec::new(), true).after_us().first(), Next::Uncertain);
    }

    #[test]
    fn without_its_body_nothing_is_repeated() {
        assert_eq!(post().after(way(0, Path::Overlay), Failure::Uncertain, false), Next::Uncertain);
        assert_eq!(post().after(way(0, Path::Overlay), Failure::Refused, false), Next::NobodyLeft);
    }

    #[test]
    fn attempts_are_bounded() {
        let many = (0..20).map(|worker| way(worker, Path::Overlay)).collect();
        let mut plan = Plan::new(many, true);

        let mut next = plan.first();
        while let Next::Try(tried) = next {
            next = plan.after(tried, Failure::ConnectionRefused, true);
        }

        assert_eq!((plan.attempts(), next), (MAX_ATTEMPTS, Next::NobodyLeft));
    }

    fn way(worker: usize, path: Path) -> Candidate {
        Candidate { ejected: false, path, load: Load::default(), worker }
    }

    /// A POST whose first attempt goes to A over the overlay.
    fn post() -> Plan {
        plan(false)
    }

    fn plan(repeatable: bool) -> Plan {
        let mut plan = Plan::new(
            vec![way(0, Path::Overlay), way(1, Path::Overlay), way(0, Path::Tunnel), way(1, Path::Tunnel)],
            repeatable,
        );
        assert_eq!(plan.first(), Next::Try(way(0, Path::Overlay)));
        plan
    }
}
