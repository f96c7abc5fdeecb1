//! When to report to the coordinator, and to which one.
//!
//! ```text
//! answered ──interval, a little less by chance──► report
//! failed ──a wait that doubles──► report, to the next coordinator first
//! ```

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{api::MAX_COORDINATORS, backoff::Backoff};

/// Until a coordinator says otherwise.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// Whatever a coordinator says, it is not asked more often.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Whatever a coordinator says, it hears from us this often.
pub const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// The first wait after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest: a coordinator that is back knows all its members again within this time.
pub const RETRY_AT_MOST: Duration = Duration::from_secs(30);

/// The rhythm of heartbeats.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    next_at: Instant,
    backoff: Backoff,
    rng: SmallRng,
}

impl Heartbeat {
    /// The first is due at once. `seed` is the only source of chance.
    pub fn new(seed: u64, now: Instant) -> Heartbeat {
        Heartbeat {
            interval: DEFAULT_INTERVAL,
            next_at: now,
            backoff: Backoff::new(RETRY_AFTER, RETRY_AT_MOST, seed),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// A coordinator took it and says when to come back.
    pub fn on_answer(&mut self, interval: Duration, now: Instant) {
        self.interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        self.backoff.reset();
        // Never late: three of them missed, and we count as dead.
        self.next_at = now + self.interval.mul_f64(self.rng.random_range(0.85..=1.0));
    }

    /// Nobody took it.
    pub fn on_failure(&mut self, now: Instant) {
        self.next_at = now + self.backoff.next_delay();
    }

    /// What we say has changed: say so soon, but not in bursts.
    pub fn hasten(&mut self, now: Instant) {
        if self.backoff.failures() == 0 {
            self.next_at = self.next_at.min(now + MIN_INTERVAL / 4);
        }
    }

    /// Something waits for our word: say it now.
    pub fn hurry(&mut self, now: Instant) {
        if self.backoff.failures() == 0 {
            self.next_at = self.next_at.min(now);
        }
    }

    /// What made it fail is over.
    pub fn retry(&mut self, now: Instant) {
        self.next_at = self.next_at.min(now);
    }

    /// When the next is due, and why.
    pub fn poll_timeout(&self) -> (Instant, &'static str) {
        match self.backoff.failures() {
            0 => (self.next_at, "heartbeat"),
            _ => (self.next_at, "heartbeat failed before"),
        }
    }

    /// Heartbeats lost since the last that was answered.
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }
}

/// Where coordinators are reached: those we were told of first, then those that coordinators named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Coordinators {
    given: usize,
    urls: Vec<String>,
    current: usize,
}

impl Coordinators {
    /// From configuration and token; kept whatever coordinators say.
    pub fn new(given: impl IntoIterator<Item = String>) -> Coordinators {
        let mut coordinators = Coordinators { given: 0, urls: Vec::new(), current: 0 };
        for url in given {
            coordinators.add(&url);
        }
        coordinators.given = coordinators.urls.len();
        coordinators
    }

    /// A coordinator named these. True if that changed anything.
    pub fn learn(&mut self, urls: &[String]) -> bool {
        let before = self.urls.clone();
        let current = self.urls.get(self.current).cloned();
        // One that names nobody does not know where it is reached: what was learnt before stays.
        if !urls.is_empty() {
            self.urls.truncate(self.given);
            for url in urls {
                self.add(url);
            }
        }
        self.current = self.urls.iter().position(|url| Some(url) == current.as_ref()).unwrap_or(0);
        self.urls != before
    }

    /// In the order to try: the one that answered last, then the others.
    pub fn order(&self) -> Vec<String> {
        let (before, after) = self.urls.split_at(self.current.min(self.urls.len()));
        after.iter().chain(before).cloned().collect()
    }

    /// This one answered.
    pub fn on_answer(&mut self, url: &str) {
        if let Some(at) = self.urls.iter().position(|known| known == url) {
            self.current = at;
        }
    }

    /// All of them.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    fn add(&mut self, url: &str) {
        let url = url.trim_end_matches('/');
        let usable = url.starts_with("https://") && url.len() <= 256;
        if usable && self.urls.len() < MAX_COORDINATORS && !self.urls.iter().any(|known| known == url) {
            self.urls.push(url.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn owned(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| url.to_string()).collect()
    }

    #[test]
    fn heartbeats_keep_the_interval_and_are_never_late() {
        let t0 = clock::now();
        let mut heartbeat = Heartbeat::new(1, t0);
        assert_eq!(heartbeat.poll_timeout(), (t0, "heartbeat"));

        for _ in 0..50 {
            heartbeat.on_answer(Duration::from_secs(20), t0);
            let wait = heartbeat.poll_timeout().0 - t0;
            assert!(wait <= Duration::from_secs(20) && wait >= Duration::from_secs(17));
        }
    }

    #[test]
    fn a_coordinator_cannot_make_us_flood_it_or_forget_it() {
        let t0 = clock::now();
        let mut heartbeat = Heartbeat::new(1, t0);

        heartbeat.on_answer(Duration::ZERO, t0);
        assert!(heartbeat.poll_timeout().0 - t0 >= MIN_INTERVAL.mul_f64(0.85));
        heartbeat.on_answer(Duration::MAX, t0);
        assert!(heartbeat.poll_timeout().0 - t0 <= MAX_INTERVAL);
    }

    #[test]
    fn failures_space_out_and_an_answer_restores_the_rhythm() {
        let t0 = clock::now();
        let mut heartbeat = Heartbeat::new(1, t0);

        for _ in 0..20 {
            heartbeat.on_failure(t0);
        }
        let wait = heartbeat.poll_timeout().0 - t0;
        assert!(wait <= RETRY_AT_MOST && wait >= RETRY_AT_MOST / 2);
        heartbeat.hasten(t0);
        assert_eq!(heartbeat.poll_timeout().0 - t0, wait, "news is no reason to hammer a coordinator that is down");

        heartbeat.on_answer(DEFAULT_INTERVAL, t0);
        assert_eq!(heartbeat.failures(), 0);
        heartbeat.hasten(t0);
        assert!(heartbeat.poll_timeout().0 - t0 < MIN_INTERVAL);
    }

    #[test]
    fn an_acknowledgement_does_not_wait_but_a_coordinator_that_is_down_is_not_hammered() {
        let t0 = clock::now();
        let mut heartbeat = Heartbeat::new(1, t0);
        heartbeat.on_answer(DEFAULT_INTERVAL, t0);

        heartbeat.hurry(t0);
        assert_eq!(heartbeat.poll_timeout().0, t0);

        heartbeat.on_failure(t0);
        let wait = heartbeat.poll_timeout().0;
        heartbeat.hurry(t0);
        assert_eq!(heartbeat.poll_timeout().0, wait);
        heartbeat.retry(t0);
        assert_eq!(heartbeat.poll_timeout().0, t0);
    }

    #[test]
    fn the_coordinator_that_answered_is_asked_first() {
        let mut coordinators = Coordinators::new(owned(&["https://a", "https://b/", "https://a", "http://plain"]));

        coordinators.on_answer("https://b");

        assert_eq!(coordinators.order(), owned(&["https://b", "https://a"]));
    }

    #[test]
    fn what_we_were_given_outlives_what_coordinators_say() {
        let mut coordinators = Coordinators::new(owned(&["https://a"]));

        assert!(coordinators.learn(&owned(&["https://b", "https://c"])));
        coordinators.on_answer("https://c");
        assert!(coordinators.learn(&owned(&["https://c"])));
        assert!(!coordinators.learn(&owned(&["https://c"])));
        assert!(!coordinators.learn(&[]));

        assert_eq!(coordinators.urls(), owned(&["https://a", "https://c"]));
        assert_eq!(coordinators.order()[0], "https://c");
        let many: Vec<_> = (0..50).map(|n| format!("https://{n}")).collect();
        coordinators.learn(&many);
        assert_eq!(coordinators.urls().len(), MAX_COORDINATORS);
    }
}
