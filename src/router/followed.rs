//! Which workers are followed: asked to say how they do at each change, as long as requests go there.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use wiremesh_certs::{NodeId, ServiceName};

/// How long after the last request a worker is still followed.
pub const FOLLOW_FOR: Duration = Duration::from_secs(60);
/// Services of workers that are followed at once. Beyond, the others are heard on their answers alone.
pub const MAX_FOLLOWED: usize = 64;
/// A worker whose line ended is not called again sooner.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A line to be opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// Whom.
    pub worker: NodeId,
    /// Where its agent listens.
    pub address: SocketAddr,
    /// About what.
    pub service: ServiceName,
}

/// Whom we follow.
#[derive(Debug, Default)]
pub struct Followed {
    workers: BTreeMap<NodeId, BTreeMap<ServiceName, Following>>,
    count: usize,
}

#[derive(Debug)]
struct Following {
    address: SocketAddr,
    used_at: Instant,
    open: bool,
    not_before: Instant,
}

impl Followed {
    /// A request went there. True if [`Followed::poll_line`] may have something now.
    pub fn on_use(&mut self, service: &ServiceName, worker: NodeId, address: SocketAddr, now: Instant) -> bool {
        if let Some(following) = self.workers.get_mut(&worker).and_then(|services| services.get_mut(service)) {
            following.used_at = now;
            following.address = address;
            return !following.open && following.not_before <= now;
        }
        if self.count >= MAX_FOLLOWED {
            self.forget_unused(now);
        }
        if self.count >= MAX_FOLLOWED {
            return false;
        }
        let following = Following { address, used_at: now, open: false, not_before: now };
        self.workers.entry(worker).or_default().insert(service.clone(), following);
        self.count += 1;
        true
    }

    /// The next line to open; answered by [`Followed::on_closed`] when it has ended.
    pub fn poll_line(&mut self, now: Instant) -> Option<Line> {
        for (worker, services) in &mut self.workers {
            for (service, following) in services {
                if !following.open && following.not_before <= now && is_wanted(following, now) {
                    following.open = true;
                    return Some(Line { worker: *worker, address: following.address, service: service.clone() });
                }
            }
        }
        None
    }

    /// A line has ended, or could not be opened.
    pub fn on_closed(&mut self, line: &Line, now: Instant) {
        if let Some(following) = self.following_mut(line) {
            following.open = false;
            following.not_before = now + AGAIN_AFTER;
        }
        self.forget_unused(now);
    }

    /// Whether requests still go there.
    pub fn is_wanted(&self, line: &Line, now: Instant) -> bool {
        let following = self.workers.get(&line.worker).and_then(|services| services.get(&line.service));
        following.is_some_and(|following| is_wanted(following, now))
    }

    fn following_mut(&mut self, line: &Line) -> Option<&mut Following> {
        self.workers.get_mut(&line.worker)?.get_mut(&line.service)
    }

    fn forget_unused(&mut self, now: Instant) {
        self.workers.retain(|_, services| {
            services.retain(|_, following| following.open || is_wanted(following, now));
            !services.is_empty()
        });
        self.count = self.workers.values().map(BTreeMap::len).sum();
    }
}

fn is_wanted(following: &Following, now: Instant) -> bool {
    now.saturating_duration_since(following.used_at) < FOLLOW_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_followed_once_and_until_a_minute_after_its_last_request() {
        let (mut followed, now) = (Followed::default(), crate::clock::now());

        assert!(followed.on_use(&ocr(), NodeId([1; 32]), address(), now));
        let line = followed.poll_line(now).unwrap();
        assert!(!followed.on_use(&ocr(), NodeId([1; 32]), address(), now + FOLLOW_FOR / 2));

        assert_eq!(followed.poll_line(now), None);
        assert!(followed.is_wanted(&line, now + FOLLOW_FOR));
        assert!(!followed.is_wanted(&line, now + 2 * FOLLOW_FOR));
    }

    #[test]
    fn a_line_that_ended_is_opened_again_after_a_while_if_requests_still_go_there() {
        let (mut followed, now) = (Followed::default(), crate::clock::now());
        followed.on_use(&ocr(), NodeId([1; 32]), address(), now);
        let line = followed.poll_line(now).unwrap();

        followed.on_closed(&line, now);

        assert!(!followed.on_use(&ocr(), NodeId([1; 32]), address(), now));
        assert_eq!(followed.poll_line(now), None);
        assert!(followed.on_use(&ocr(), NodeId([1; 32]), address(), now + AGAIN_AFTER));
        assert_eq!(followed.poll_line(now + AGAIN_AFTER), Some(line));
    }

    #[test]
    fn lines_are_bounded_and_those_nobody_wants_make_room() {
        let (mut followed, now) = (Followed::default(), crate::clock::now());
        for number in 0..MAX_FOLLOWED {
            assert!(followed.on_use(&ocr(), NodeId([number as u8; 32]), address(), now));
        }

        assert!(!followed.on_use(&ocr(), NodeId([200; 32]), address(), now));
        assert!(followed.on_use(&ocr(), NodeId([200; 32]), address(), now + FOLLOW_FOR));
        assert_eq!(followed.count, 1);
    }

    fn ocr() -> ServiceName {
        "ocr".parse().unwrap()
    }

    fn address() -> SocketAddr {
        "10.42.0.7:8000".parse().unwrap()
    }
}
