//! What to do next in one request: whom to try, whether a failed attempt may be repeated and by whom.
//!
//! | the attempt | another worker | the same worker by its tunnel |
//! |---|---|---|
//! | was never sent (no connection, or provably not begun) | yes | yes |
//! | was refused (`x-wiremesh-executed: no`) | yes | no |
//! | may have been executed | only if repeatable | yes: the worker knows the call and executes it once |
//! | was executed in part, says the worker | only if repeatable | no |
//!
//! All of it only while the body can be sent again from its beginning.

use super::{Candidate, Path};

/// Attempts for one request, the first included. With one more the client had better decide.
pub const MAX_ATTEMPTS: usize = 4;

/// How an attempt failed, as far as it matters to what may follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Nothing reached the worker, and the path to it seems dead.
    Unreachable,
    /// The worker's machine answers, but nobody listens there.
    ConnectionRefused,
    /// The worker said that it did not and will not execute this call.
    Refused,
    /// It may have been executed: the path or the worker was lost.
    Uncertain,
    /// The worker is there, and says that it may have been executed.
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
    /// The worker that alone may be tried again, because it may have executed the call.
    uncertain: Option<usize>,
    /// Whether the call may have been executed, by whom, as long as they have not said otherwise.
    unsure_of: Vec<By>,
}

/// Who may have executed a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    Us,
    Worker(usize),
}

impl Plan {
    /// `ordered` by [`super::order`]; `repeatable` as in [`super::Needs`].
    pub fn new(ordered: Vec<Candidate>, repeatable: bool) -> Plan {
        Plan { left: ordered, repeatable, attempts: 0, uncertain: None, unsure_of: Vec::new() }
    }

    /// A service of this node was tried before, and may have executed the call.
    pub fn after_us(mut self) -> Plan {
        self.unsure_of.push(By::Us);
        self
    }

    /// The first attempt.
    pub fn first(&mut self) -> Next {
        self.take(0)
    }

    /// What follows the failure of `tried`. `body_intact`: the body can be sent again from its beginning.
    pub fn after(&mut self, tried: Candidate, failure: Failure, body_intact: bool) -> Next {
        if matches!(failure, Failure::Uncertain | Failure::Interrupted) {
            self.unsure_of.push(By::Worker(tried.worker));
        }
        match failure {
            Failure::Refused => {
                self.left.retain(|candidate| candidate.worker != tried.worker);
                // It knows the call, and its word covers the attempt before this one too.
                self.uncertain = self.uncertain.filter(|&worker| worker != tried.worker);
                self.unsure_of.retain(|&by| by != By::Worker(tried.worker));
            }
            Failure::Interrupted => {
                self.left.retain(|candidate| candidate.worker != tried.worker);
                self.uncertain = (!self.repeatable).then_some(tried.worker).or(self.uncertain);
            }
            Failure::Uncertain if !self.repeatable => self.uncertain = Some(tried.worker),
            Failure::Uncertain | Failure::Unreachable | Failure::ConnectionRefused => {}
        }
        if self.attempts >= MAX_ATTEMPTS || !body_intact {
            return self.end();
        }
        let same_worker = self.left.iter().position(|candidate| candidate.worker == tried.worker && !candidate.ejected);
        match (self.uncertain, failure, same_worker) {
            (Some(worker), _, _) => {
                let again = self.left.iter().position(|candidate| candidate.worker == worker);
                again.map_or(Next::Uncertain, |index| self.take(index))
            }
            // The record is fresh, the path is not: its tunnel is the surest guess, and the other workers' overlay
            // addresses may be as dead, at two seconds each.
            (None, Failure::Unreachable | Failure::Uncertain, Some(index)) if tried.path == Path::Overlay => {
                self.take(index)
            }
            (None, _, _) => self.take(0),
        }
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

    fn end(&self) -> Next {
        if self.unsure_of.is_empty() { Next::NobodyLeft } else { Next::Uncertain }
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
    fn what_may_have_been_executed_is_repeated_by_the_same_worker_and_by_nobody_else() {
        let mut plan = post();

        assert_eq!(plan.after(way(0, Path::Overlay), Failure::Uncertain, true), Next::Try(way(0, Path::Tunnel)));
        assert_eq!(plan.after(way(0, Path::Tunnel), Failure::Unreachable, true), Next::Uncertain);
    }

    #[test]
    fn a_worker_that_says_it_will_not_execute_frees_the_call_for_others() {
        let mut plan = post();

        assert_eq!(plan.after(way(0, Path::Overlay), Failure::Uncertain, true), Next::Try(way(0, Path::Tunnel)));
        assert_eq!(plan.after(way(0, Path::Tunnel), Failure::Refused, true), Next::Try(way(1, Path::Overlay)));
    }

    #[test]
    fn an_idempotent_request_that_may_have_been_executed_goes_on_to_others() {
        let mut plan = plan(true);

        assert_eq!(plan.after(way(0, Path::Overlay), Failure::Uncertain, true), Next::Try(way(0, Path::Tunnel)));
        assert_eq!(plan.after(way(0, Path::Tunnel), Failure::Uncertain, true), Next::Try(way(1, Path::Overlay)));
    }

    #[test]
    fn what_a_worker_may_have_executed_by_its_own_word_only_an_idempotent_request_repeats_elsewhere() {
        assert_eq!(post().after(way(0, Path::Overlay), Failure::Interrupted, true), Next::Uncertain);
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
