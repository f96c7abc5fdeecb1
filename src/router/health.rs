//! Which ways to which workers failed lately, and when they are tried again.
//!
//! ```text
//!            unanswered once · three failures in a row · under half of five and more successful within 30 s
//! healthy ──────────────────────────────────────────────────────────────────────────────────────────────► ejected
//!    ▲                                                                                     ▲                 │
//!    │                                                           a failure, wait doubled ──┤    wait 2 s, doubling
//!    └── a request succeeded ── on probation ◄── answered ── probe ◄───────────────────────┼─────────────────┘
//!                                                              └── not: wait doubled ──────┘
//! ```
//!
//! Probes, not requests, find out whether a way is open again; requests go that way before only if nothing else is left.
//!
//! - What is ejected is what failed. A way that is silent or breaks is ejected alone: the worker's other way stays. An
//!   agent that refuses connections is a worker's failure, and closes both. What a service answers is no failure here at
//!   all; see [`Fleet`](super::Fleet).
//! - A way that went silent is ejected at once, and the other failures only when they repeat. Each request that finds out
//!   about silence waits up to two seconds for it, and silence has nearly always one cause, a path that died; what
//!   answered with a failure cost one round trip, and may have been one connection's bad luck.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;
use wiremesh_certs::{NodeId, TunnelUrl};

use super::{Path, Worker};

const EJECT_BASE: Duration = Duration::from_secs(2);
/// A silent path that is open again is noticed within two of these, should the first probe come while WireGuard waits to
/// repeat its handshake: well within half a minute.
const SILENT_CAP: Duration = Duration::from_secs(8);
/// What answers with failures has a cause that a probe a minute finds gone soon enough.
const FAILING_CAP: Duration = Duration::from_secs(60);
/// Failures without a success between them that eject.
const IN_A_ROW: u32 = 3;
/// With fewer attempts than these within [`WINDOW`], a share of successes says nothing.
const ENOUGH: u32 = 5;
/// For how long an attempt counts towards the share of successes.
const WINDOW: Duration = Duration::from_secs(30);
/// A way nobody wanted to go for so long is not probed any more; it counts as healthy again.
const UNWANTED_AFTER: Duration = Duration::from_secs(300);
/// Beyond this the way unwanted for longest is forgotten, those that are not ejected first; it then counts as healthy.
pub const MAX_WAYS: usize = 1024;

/// What a probe has to reach.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// An agent's address in the overlay.
    Overlay(SocketAddr),
    /// The URL that leads to the ingress of this node.
    Tunnel(NodeId, TunnelUrl),
}

/// A way to a worker.
pub type Way = (NodeId, Path);

/// How an attempt failed before anybody could answer for the service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// No answer in time, to the connection or to a question.
    Silent,
    /// The connection broke, or something answered that is no agent.
    Broken,
    /// The worker's machine answers, but nobody listens there.
    Refused,
}

/// Why a way is ejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// It did not answer.
    Silent,
    /// It broke several times in a row.
    Broken,
    /// The worker's agent refuses connections.
    Refused,
    /// Fewer than half of the attempts came through.
    Unsuccessful,
}

impl Cause {
    /// The word in explanations and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Silent => "silent",
            Cause::Broken => "broken",
            Cause::Refused => "refused",
            Cause::Unsuccessful => "unsuccessful",
        }
    }

    fn cap(self) -> Duration {
        match self {
            Cause::Silent => SILENT_CAP,
            Cause::Broken | Cause::Refused | Cause::Unsuccessful => FAILING_CAP,
        }
    }
}

/// How the ways fared lately. One it does not know is healthy.
#[derive(Debug, Default)]
pub struct Health {
    records: BTreeMap<Subject, Record>,
}

/// What can be healthy or not.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Subject {
    Way(Way),
    Worker(NodeId),
}

#[derive(Debug)]
struct Record {
    /// The way that a probe takes.
    way: Way,
    target: Option<Target>,
    in_a_row: u32,
    window: Window,
    /// Ejections and unanswered probes since a request succeeded.
    rounds: u32,
    on_probation: bool,
    ejected: Option<Ejected>,
    wanted_at: Instant,
}

#[derive(Debug)]
struct Ejected {
    cause: Cause,
    probe_at: Instant,
    probing: bool,
}

impl Health {
    /// An attempt to reach `worker` by `path` failed on the way, not at its end.
    pub fn on_failure(&mut self, worker: &Worker, path: Path, trouble: Trouble, now: Instant, rng: &mut impl Rng) {
        let Some(target) = target(worker, path) else { return };
        // Who refuses at a tunnel's public end is not the worker.
        let (subject, cause) = match trouble {
            Trouble::Refused if path != Path::Tunnel => (Subject::Worker(worker.id), Cause::Refused),
            Trouble::Silent => (Subject::Way((worker.id, path)), Cause::Silent),
            Trouble::Broken | Trouble::Refused => (Subject::Way((worker.id, path)), Cause::Broken),
        };
        let record = self.record(subject, (worker.id, path), now);
        record.target = Some(target);
        // Requests that failed together are one failure: the way is known to be closed already.
        if record.ejected.is_some() {
            return;
        }
        record.in_a_row = record.in_a_row.saturating_add(1);
        record.window.note(false, now);
        let at_once = trouble == Trouble::Silent || record.on_probation || record.in_a_row >= IN_A_ROW;
        if at_once {
            record.eject(cause, now, rng);
        } else if record.window.is_mostly_failure(now) {
            record.eject(Cause::Unsuccessful, now, rng);
        }
    }

    /// A request came through.
    pub fn on_success(&mut self, way: Way, now: Instant) {
        if let Some(worker) = self.records.get_mut(&Subject::Worker(way.0)) {
            worker.on_success(now);
        }
        self.record(Subject::Way(way), way, now).on_success(now);
    }

    /// A probe came through: requests may go that way, and the first that fails closes it again.
    pub fn on_probe_answered(&mut self, way: Way) {
        for subject in [Subject::Way(way), Subject::Worker(way.0)] {
            if let Some(record) = self.records.get_mut(&subject)
                && record.ejected.take().is_some()
            {
                record.on_probation = true;
                record.in_a_row = 0;
            }
        }
    }

    /// A probe went unanswered.
    pub fn on_probe_failed(&mut self, way: Way, now: Instant, rng: &mut impl Rng) {
        for subject in [Subject::Way(way), Subject::Worker(way.0)] {
            let Some(record) = self.records.get_mut(&subject) else { continue };
            if let Some(Ejected { cause, probing: true, .. }) = record.ejected {
                record.eject(cause, now, rng);
            }
        }
    }

    /// Why the way is closed, as far as we know. Somebody wants to go it.
    pub fn standing(&mut self, way: Way, now: Instant) -> Option<Cause> {
        let mut why = None;
        for subject in [Subject::Worker(way.0), Subject::Way(way)] {
            if let Some(record) = self.records.get_mut(&subject) {
                record.wanted_at = now;
                why = record.ejected.as_ref().map(|ejected| ejected.cause).or(why);
            }
        }
        why
    }

    /// Whether the way is closed, as far as we know. Somebody wants to go it.
    pub fn is_ejected(&mut self, way: Way, now: Instant) -> bool {
        self.standing(way, now).is_some()
    }

    /// The next way to probe; answered by [`Health::on_probe_answered`] or [`Health::on_probe_failed`].
    pub fn poll_probe(&mut self, now: Instant) -> Option<(Way, Target)> {
        self.records.retain(|_, record| now.saturating_duration_since(record.wanted_at) < UNWANTED_AFTER);
        self.records.values_mut().find_map(|record| {
            let ejected = record.ejected.as_mut().filter(|ejected| !ejected.probing && ejected.probe_at <= now)?;
            let target = record.target.clone()?;
            ejected.probing = true;
            Some((record.way, target))
        })
    }

    /// When [`Health::poll_probe`] has something next, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let ejected = self.records.values().filter_map(|record| record.ejected.as_ref());
        let waiting = ejected.filter(|ejected| !ejected.probing);
        waiting.map(|ejected| (ejected.probe_at, "an ejected way is due for a probe")).min()
    }

    /// Everybody of whom anything is known.
    pub fn workers(&self) -> BTreeSet<NodeId> {
        self.records.values().map(|record| record.way.0).collect()
    }

    /// A worker is no member any more: nobody finds out whether it is open again.
    pub fn forget(&mut self, worker: &NodeId) {
        self.records.retain(|_, record| record.way.0 != *worker);
    }

    /// How many ways are closed; a worker whose agent refuses counts as one.
    pub fn ejected(&self) -> usize {
        self.records.values().filter(|record| record.ejected.is_some()).count()
    }

    fn record(&mut self, subject: Subject, way: Way, now: Instant) -> &mut Record {
        if self.records.len() >= MAX_WAYS && !self.records.contains_key(&subject) {
            let unwanted = self.records.iter().min_by_key(|(_, record)| (record.ejected.is_some(), record.wanted_at));
            if let Some(unwanted) = unwanted.map(|(subject, _)| *subject) {
                self.records.remove(&unwanted);
            }
        }
        let record = self.records.entry(subject).or_insert_with(|| Record {
            way,
            target: None,
            in_a_row: 0,
            window: Window::default(),
            rounds: 0,
            on_probation: false,
            ejected: None,
            wanted_at: now,
        });
        record.way = way;
        record.wanted_at = now;
        record
    }
}

impl Record {
    fn on_success(&mut self, now: Instant) {
        self.in_a_row = 0;
        self.rounds = 0;
        self.on_probation = false;
        self.ejected = None;
        self.window.note(true, now);
    }

    fn eject(&mut self, cause: Cause, now: Instant, rng: &mut impl Rng) {
        self.rounds = self.rounds.saturating_add(1);
        self.on_probation = false;
        // What comes after the ejection is judged by itself.
        self.window = Window::default();
        self.ejected = Some(Ejected { cause, probe_at: now + delay(self.rounds, cause, rng), probing: false });
    }
}

fn target(worker: &Worker, path: Path) -> Option<Target> {
    match path {
        Path::Local => None,
        Path::Overlay => worker.overlay.map(Target::Overlay),
        Path::Tunnel => worker.tunnel.clone().map(|url| Target::Tunnel(worker.id, url)),
    }
}

/// Drawn from half to the whole of what doubles: agents that lost a worker together do not probe it together.
fn delay(rounds: u32, cause: Cause, rng: &mut impl Rng) -> Duration {
    let doubled = EJECT_BASE.saturating_mul(2u32.saturating_pow(rounds.saturating_sub(1).min(16)));
    doubled.min(cause.cap()).mul_f64(rng.random_range(0.5..=1.0))
}

/// Successes and failures of the last [`WINDOW`], in parts that end together.
#[derive(Debug, Default)]
struct Window {
    parts: [Part; Window::PARTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    began_at: Option<Instant>,
    successes: u32,
    failures: u32,
}

impl Window {
    const PARTS: usize = 6;

    fn note(&mut self, success: bool, now: Instant) {
        let length = WINDOW / Window::PARTS as u32;
        let age = |part: &Part| part.began_at.map(|at| now.saturating_duration_since(at));
        let current = self.parts.iter().position(|part| age(part).is_some_and(|age| age < length));
        let place = current.unwrap_or_else(|| {
            let oldest = (0..Window::PARTS).min_by_key(|&place| self.parts[place].began_at).unwrap_or(0);
            self.parts[oldest] = Part { began_at: Some(now), ..Part::default() };
            oldest
        });
        let part = &mut self.parts[place];
        let count = if success { &mut part.successes } else { &mut part.failures };
        *count = count.saturating_add(1);
    }

    fn is_mostly_failure(&self, now: Instant) -> bool {
        let recent =
            self.parts.iter().filter(|part| part.began_at.is_some_and(|at| now.saturating_duration_since(at) < WINDOW));
        let (successes, failures) = recent.fold((0u32, 0u32), |(successes, failures), part| {
            (successes.saturating_add(part.successes), failures.saturating_add(part.failures))
        });
        successes.saturating_add(failures) >= ENOUGH && successes < failures
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const OVERLAY: Way = (NodeId([1; 32]), Path::Overlay);
    const TUNNEL: Way = (NodeId([1; 32]), Path::Tunnel);

    #[test]
    fn a_silent_way_is_ejected_at_once_and_the_other_way_to_the_same_worker_is_not() {
        let mut it = Bench::new();

        it.fails(Path::Overlay, Trouble::Silent);

        assert_eq!(it.standing(OVERLAY), Some(Cause::Silent));
        assert_eq!(it.standing(TUNNEL), None);
        assert_eq!(it.standing((NodeId([2; 32]), Path::Overlay)), None);
    }

    #[test]
    fn a_way_that_breaks_is_ejected_after_three_times_in_a_row() {
        let mut it = Bench::new();

        it.attempts("ssssffsff");
        assert_eq!(it.standing(OVERLAY), None);
        it.attempts("f");

        assert_eq!((it.standing(OVERLAY), it.standing(TUNNEL)), (Some(Cause::Broken), None));
    }

    #[test]
    fn an_agent_that_refuses_connections_closes_both_ways_until_either_brings_a_success() {
        let mut it = Bench::new();

        for _ in 0..IN_A_ROW {
            it.fails(Path::Overlay, Trouble::Refused);
        }
        assert_eq!((it.standing(OVERLAY), it.standing(TUNNEL)), (Some(Cause::Refused), Some(Cause::Refused)));
        it.succeeds(TUNNEL);

        assert_eq!((it.standing(OVERLAY), it.standing(TUNNEL)), (None, None));
    }

    #[test]
    fn a_tunnel_whose_public_end_refuses_says_nothing_about_the_worker() {
        let mut it = Bench::new();

        for _ in 0..IN_A_ROW {
            it.fails(Path::Tunnel, Trouble::Refused);
        }

        assert_eq!((it.standing(OVERLAY), it.standing(TUNNEL)), (None, Some(Cause::Broken)));
    }

    #[test]
    fn a_way_is_ejected_when_under_half_of_at_least_five_attempts_in_half_a_minute_succeed() {
        for (attempts, cause) in [("sfff", Some(Cause::Broken)), ("fsfsf", Some(Cause::Unsuccessful)), ("fsfs", None)] {
            let mut it = Bench::new();
            it.attempts(attempts);
            assert_eq!(it.standing(OVERLAY), cause, "{attempts}");
        }
        let mut it = Bench::new();
        it.attempts("fsf");
        it.now += WINDOW + SECOND;
        it.attempts("sff");
        assert_eq!(it.standing(OVERLAY), None, "what is old does not count");
        let mut it = Bench::new();
        it.attempts("sssssssssfsff");
        assert_eq!(it.standing(OVERLAY), None, "successes before the first failure count");
    }

    #[test]
    fn probes_of_a_silent_way_come_after_2_4_and_then_every_8_seconds_and_somewhat_sooner() {
        let mut it = Bench::new();
        it.fails(Path::Overlay, Trouble::Silent);

        it.expect_probes_after([2, 4, 8, 8, 8]);
    }

    #[test]
    fn probes_of_a_failing_worker_become_as_rare_as_one_a_minute() {
        let mut it = Bench::new();
        for _ in 0..IN_A_ROW {
            it.fails(Path::Overlay, Trouble::Refused);
        }

        it.expect_probes_after([2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn an_answered_probe_opens_the_way_on_probation_and_a_request_ends_that() {
        let mut it = Bench::new();
        it.attempts("fff");
        it.answer_probe();
        assert_eq!(it.standing(OVERLAY), None);

        it.fails(Path::Overlay, Trouble::Broken);
        assert_eq!(it.standing(OVERLAY), Some(Cause::Broken), "one failure is enough on probation");
        let wait = it.health.poll_timeout().unwrap().0 - it.now;
        assert!(wait >= EJECT_BASE, "and the wait goes on doubling");

        it.answer_probe();
        it.succeeds(OVERLAY);
        it.fails(Path::Overlay, Trouble::Broken);
        assert_eq!(it.standing(OVERLAY), None);
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let mut it = Bench::new();

        for _ in 0..100 {
            it.fails(Path::Overlay, Trouble::Silent);
        }

        assert!(it.health.poll_timeout().unwrap().0 <= it.now + EJECT_BASE);
        assert_eq!(it.health.ejected(), 1);
    }

    #[test]
    fn records_are_bounded_and_the_unwanted_end_the_healthy_first() {
        let mut it = Bench::new();
        it.fails(Path::Overlay, Trouble::Silent);

        for number in 0..=MAX_WAYS {
            let mut id = [7; 32];
            id[..2].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
            it.health.on_success((NodeId(id), Path::Overlay), it.now + Duration::from_millis(number as u64));
        }

        assert_eq!((it.health.records.len(), it.health.ejected()), (MAX_WAYS, 1));
        assert_eq!(it.health.poll_probe(it.now + UNWANTED_AFTER + SECOND * 10), None);
        assert_eq!(it.health.records.len(), 0);
    }

    /// The health of the ways to one worker, looked at from outside.
    struct Bench {
        health: Health,
        now: Instant,
        rng: SmallRng,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { health: Health::default(), now: crate::clock::now(), rng: SmallRng::seed_from_u64(3) }
        }

        fn fails(&mut self, path: Path, trouble: Trouble) {
            self.health.on_failure(&worker(), path, trouble, self.now, &mut self.rng);
        }

        fn succeeds(&mut self, way: Way) {
            self.health.on_success(way, self.now);
        }

        /// A second apart, `f`ailed and `s`uccessful.
        fn attempts(&mut self, how: &str) {
            for one in how.chars() {
                self.now += SECOND;
                if one == 's' { self.succeeds(OVERLAY) } else { self.fails(Path::Overlay, Trouble::Broken) }
            }
        }

        fn standing(&mut self, way: Way) -> Option<Cause> {
            self.health.standing(way, self.now)
        }

        fn answer_probe(&mut self) {
            self.now = self.health.poll_timeout().unwrap().0;
            let (way, _) = self.health.poll_probe(self.now).unwrap();
            self.health.on_probe_answered(way);
        }

        /// Every probe goes unanswered.
        fn expect_probes_after<const N: usize>(&mut self, ceilings: [u64; N]) {
            for ceiling in ceilings.map(Duration::from_secs) {
                let at = self.health.poll_timeout().unwrap().0;
                assert!((ceiling / 2..=ceiling).contains(&(at - self.now)), "{:?} of {ceiling:?}", at - self.now);
                assert_eq!(self.health.poll_probe(at - SECOND / 10), None);
                self.now = at;
                let (way, target) = self.health.poll_probe(at).unwrap();
                assert_eq!(target, Target::Overlay("127.0.0.1:8000".parse().unwrap()));
                assert_eq!(self.health.poll_probe(at), None, "one probe at a time");
                self.health.on_probe_failed(way, at, &mut self.rng);
            }
        }
    }

    fn worker() -> Worker {
        Worker {
            id: NodeId([1; 32]),
            name: "worker".parse().unwrap(),
            overlay: Some("127.0.0.1:8000".parse().unwrap()),
            tunnel: Some("https://worker.example".parse().unwrap()),
            load: Default::default(),
            published_at: Default::default(),
        }
    }
}
