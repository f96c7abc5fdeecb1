//! What we know of the other workers, service by service: what they said, and what we saw ourselves.
//!
//! ```text
//! on_dispatch ──► on_connect ──► on_head (a report with it) ──► on_end        one request, told by its own flow
//! on_report, on_rtt, on_full, on_failure                                      whenever somebody learns it
//!      └──► view: own in flight, report and its age, κ, averages, failures, since when known ──► score
//! ```
//!
//! **κ.** A report is old when it arrives, and until the next one we only see what we send ourselves. Of the work that
//! reached a worker since its report ours is a part; if every request of ours stands for `1 / part` requests, then
//! `running + queued + κ · ours since then` is what the worker has now. Our part is the ratio of two moving averages, taken
//! at each report: our own in flight there, and all the worker has. The ratio of averages, not the average of ratios: a
//! report of an idle worker says nothing about parts, and one of a busy worker says much. Agents that see equally old
//! reports all find the same worker idle; κ makes each behave as if the others had sent theirs too. It is held between 1
//! (we are there alone) and 3: beyond, one request of ours would make a worker look full.
//!
//! A report that is older than [`FRESH_FOR`] counts less and less; what takes its place is our own in flight there,
//! multiplied in the same way.

mod average;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub use average::{Average, Fading};
use wiremesh_certs::{Load, NodeId, ServiceName};

use self::average::halved;
use super::{Path, State, Work};

/// Pairs of worker and service that are remembered; beyond, the one unused for longest is forgotten, those without a
/// request of ours in flight first.
pub const MAX_KNOWN: usize = 2048;
/// Workers send their reports every five seconds: after three that did not come, what the last said is doubted.
pub const FRESH_FOR: Duration = Duration::from_secs(15);
/// How fast trust in an old report fades.
const DOUBT_HALF_LIFE: Duration = Duration::from_secs(10);
/// The longest that a worker can keep requests away by a `retry-after`: it may not be alive when that ends.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// What a new worker is trusted with grows over this time.
pub const SLOW_START: Duration = Duration::from_secs(30);
/// The weight that a new worker begins with.
const LEAST_WEIGHT: f64 = 0.1;
/// How long after a request for its service a worker is worth a question about how it does.
const WANTED_FOR: Duration = Duration::from_secs(30);
/// Weight of one connection or round trip in its average: a path that changed shows after a few.
const TRIP_WEIGHT: f64 = 0.3;
/// Weight of one request in the average of service times, which differ much from one to the next.
const SERVICE_TIME_WEIGHT: f64 = 0.1;
/// Weight of one report in the averages behind κ.
const PART_WEIGHT: f64 = 0.1;
/// The bounds of κ.
const KAPPA: (f64, f64) = (1.0, 3.0);

/// What we know of the workers of every service.
#[derive(Debug, Default)]
pub struct Fleet {
    services: BTreeMap<ServiceName, BTreeMap<NodeId, Known>>,
    known: usize,
    born: u64,
    /// Somebody considered a worker that was silent for long.
    missed: bool,
}

/// A request under way. Given back to [`Fleet::on_end`], however it ends.
#[derive(Debug)]
#[must_use = "the worker has one request in flight until the end of this one is told"]
pub struct Dispatch {
    service: ServiceName,
    worker: NodeId,
    path: Path,
    born: u64,
    reports: u64,
    sent_at: Instant,
    /// Service times it was expected to take, its wait included.
    rounds: f64,
}

impl Dispatch {
    /// Who executes it.
    pub fn worker(&self) -> NodeId {
        self.worker
    }
}

/// How a request ended, with its body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// Answered to its end, and not with an error of the service.
    Well,
    /// By a failure.
    Failed(Blame),
    /// Neither: its client left, or the worker refused it with a good reason.
    Otherwise,
}

/// Whose failure it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The way there.
    Path(Path),
    /// The worker's agent: all of its services.
    Worker,
    /// The service alone.
    Service,
}

/// What is known of one worker for one service, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Our requests in flight there, to the end of their bodies.
    pub own: u32,
    /// What it said last, and how old that is.
    pub report: Option<(Work, Duration)>,
    /// How busy it said it is, less what ended since; `None` if that was too long ago.
    pub load: Option<Load>,
    /// What is in flight there, as far as anybody can tell.
    pub estimate: f64,
    /// By how much each of our requests is multiplied.
    pub kappa: f64,
    /// How much the report counts, from 1 down to 0.
    pub trust: f64,
    /// In seconds, as reported or else as seen.
    pub service_time: Option<f64>,
    /// From a tenth to 1, for who is new.
    pub weight: f64,
    /// Failures of the worker and of its service that have not faded yet.
    pub failures: f64,
    /// For how long it takes no request.
    pub full_for: Option<Duration>,
    overlay: Trip,
    tunnel: Trip,
    now: Instant,
}

impl View {
    /// The round trip by `path` in seconds; 0 as long as it is unknown.
    pub fn rtt(&self, path: Path) -> f64 {
        let Some(trip) = self.trip(path) else { return 0.0 };
        trip.rtt.value().or(trip.connect.value()).unwrap_or(0.0).max(0.0)
    }

    /// Failures of `path` that have not faded yet.
    pub fn path_failures(&self, path: Path) -> f64 {
        self.trip(path).map_or(0.0, |trip| trip.failures.value(self.now))
    }

    /// Whether nothing is in flight there, by its word and by our own knowledge.
    pub fn is_idle(&self) -> bool {
        self.own == 0 && self.estimate < 0.5
    }

    fn trip(&self, path: Path) -> Option<&Trip> {
        match path {
            Path::Local => None,
            Path::Overlay => Some(&self.overlay),
            Path::Tunnel => Some(&self.tunnel),
        }
    }
}

#[derive(Debug)]
struct Known {
    /// Tells an entry from one of the same name that was forgotten before.
    born: u64,
    seen_at: Instant,
    used_at: Instant,
    /// When it was considered last.
    wanted_at: Instant,
    asked_at: Instant,
    own: u32,
    report: Option<Reported>,
    /// Reports so far.
    reports: u64,
    /// Averages of our own in flight, and of all that is in flight, at the moments of reports.
    ours: Average,
    all: Average,
    service_time: Average,
    failures: Fading,
    full_until: Option<Instant>,
    overlay: Trip,
    tunnel: Trip,
}

#[derive(Clone, Copy, Debug)]
struct Reported {
    work: Work,
    at: Instant,
    /// Our requests that came after it and have not ended.
    dispatched: u32,
    /// Our requests that it counts and that have ended.
    ended: u32,
}

/// What is known of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Trip {
    rtt: Average,
    connect: Average,
    failures: Fading,
}

impl Fleet {
    /// A request is sent to `worker`.
    pub fn on_dispatch(&mut self, service: &ServiceName, worker: NodeId, path: Path, now: Instant) -> Dispatch {
        let known = self.known(service, worker, now);
        let view = known.view(now);
        let capacity = view.report.map_or(1.0, |(work, _)| f64::from(work.capacity.max(1)));
        let rounds = ((view.estimate + 1.0) / capacity).max(1.0);
        known.own = known.own.saturating_add(1);
        if let Some(report) = &mut known.report {
            report.dispatched = report.dispatched.saturating_add(1);
        }
        let (born, reports) = (known.born, known.reports);
        Dispatch { service: service.clone(), worker, path, born, reports, sent_at: now, rounds }
    }

    /// A connection for a request took so long to be made.
    pub fn on_connect(&mut self, dispatch: &Dispatch, took: Duration, now: Instant) {
        if let Some(trip) = self.known(&dispatch.service, dispatch.worker, now).trip_mut(dispatch.path) {
            trip.connect.add(took.as_secs_f64(), TRIP_WEIGHT);
        }
    }

    /// The head of an answer came, with what the worker said on it.
    pub fn on_head(&mut self, dispatch: &Dispatch, work: Option<Work>, now: Instant) {
        if let Some(work) = work {
            self.on_report(&dispatch.service, dispatch.worker, work, now);
        }
    }

    /// A request has ended, its body included.
    pub fn on_end(&mut self, dispatch: Dispatch, ended: Ended, now: Instant) {
        let known = self.services.get_mut(&dispatch.service).and_then(|workers| workers.get_mut(&dispatch.worker));
        if let Some(known) = known.filter(|known| known.born == dispatch.born) {
            known.own = known.own.saturating_sub(1);
            let reports = known.reports;
            if let Some(report) = &mut known.report {
                if dispatch.reports == reports {
                    report.dispatched = report.dispatched.saturating_sub(1);
                } else {
                    report.ended = report.ended.saturating_add(1);
                }
            }
            if ended == Ended::Well {
                let took = now.saturating_duration_since(dispatch.sent_at).as_secs_f64();
                known.service_time.add(took / dispatch.rounds, SERVICE_TIME_WEIGHT);
            }
        }
        if let Ended::Failed(blame) = ended {
            self.on_failure(&dispatch.service, dispatch.worker, blame, now);
        }
    }

    /// A worker said how it does.
    pub fn on_report(&mut self, service: &ServiceName, worker: NodeId, work: Work, now: Instant) {
        let known = self.known(service, worker, now);
        let all = work.running.saturating_add(work.queued).max(known.own);
        known.ours.add(f64::from(known.own), PART_WEIGHT);
        known.all.add(f64::from(all), PART_WEIGHT);
        known.reports += 1;
        known.report = Some(Reported { work, at: now, dispatched: 0, ended: 0 });
    }

    /// The round trip to a worker by `path` was measured.
    pub fn on_rtt(&mut self, service: &ServiceName, worker: NodeId, path: Path, rtt: Duration, now: Instant) {
        if let Some(trip) = self.known(service, worker, now).trip_mut(path) {
            trip.rtt.add(rtt.as_secs_f64(), TRIP_WEIGHT);
        }
    }

    /// A worker refused a request because it is full, and said for how long.
    pub fn on_full(&mut self, service: &ServiceName, worker: NodeId, retry_after: Duration, now: Instant) {
        self.known(service, worker, now).full_until = Some(now + retry_after.min(MAX_RETRY_AFTER));
    }

    /// Something failed.
    pub fn on_failure(&mut self, service: &ServiceName, worker: NodeId, blame: Blame, now: Instant) {
        match blame {
            Blame::Service => self.known(service, worker, now).failures.add(now),
            Blame::Path(path) => {
                if let Some(trip) = self.known(service, worker, now).trip_mut(path) {
                    trip.failures.add(now);
                }
            }
            Blame::Worker => {
                self.known(service, worker, now);
                for known in self.services.values_mut().filter_map(|workers| workers.get_mut(&worker)) {
                    known.failures.add(now);
                }
            }
        }
    }

    /// What is known of a worker. Somebody considers it for a request.
    pub fn consider(&mut self, service: &ServiceName, worker: NodeId, now: Instant) -> View {
        let known = self.known(service, worker, now);
        known.wanted_at = known.wanted_at.max(now);
        let (view, is_missed) = (known.view(now), known.is_missed(now));
        self.missed |= is_missed;
        view
    }

    /// Whether somebody considered a worker since the last call for whom [`Fleet::poll_question`] has a question.
    pub fn take_missed(&mut self) -> bool {
        std::mem::take(&mut self.missed)
    }

    /// The next worker to be asked how it does: one that requests may go to, and that was silent for [`FRESH_FOR`]. The
    /// answer is an [`Fleet::on_report`]; without one it is asked again after as long.
    pub fn poll_question(&mut self, now: Instant) -> Option<(ServiceName, NodeId)> {
        for (service, workers) in &mut self.services {
            let due = workers.iter_mut().find(|(_, known)| known.is_missed(now));
            if let Some((worker, known)) = due {
                known.asked_at = now;
                return Some((service.clone(), *worker));
            }
        }
        None
    }

    /// Everybody who is known.
    pub fn workers(&self) -> BTreeSet<NodeId> {
        self.services.values().flat_map(BTreeMap::keys).copied().collect()
    }

    /// A worker is no member any more.
    pub fn forget(&mut self, worker: &NodeId) {
        self.services.retain(|_, workers| {
            self.known -= usize::from(workers.remove(worker).is_some());
            !workers.is_empty()
        });
    }

    /// How many pairs of worker and service are known.
    pub fn len(&self) -> usize {
        self.known
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.known == 0
    }

    fn known(&mut self, service: &ServiceName, worker: NodeId, now: Instant) -> &mut Known {
        if !self.services.get(service).is_some_and(|workers| workers.contains_key(&worker)) {
            if self.known >= MAX_KNOWN {
                self.forget_one();
            }
            self.born += 1;
            self.known += 1;
            let known = Known::new(self.born, now);
            self.services.entry(service.clone()).or_default().insert(worker, known);
        }
        let workers = self.services.entry(service.clone()).or_default();
        let known = workers.entry(worker).or_insert_with(|| Known::new(0, now));
        known.used_at = known.used_at.max(now);
        known
    }

    fn forget_one(&mut self) {
        let all = self.services.iter().flat_map(|(service, workers)| {
            workers.iter().map(move |(worker, known)| ((known.own > 0, known.used_at), service, *worker))
        });
        let Some((_, service, worker)) = all.min_by_key(|(unused, _, _)| *unused) else { return };
        let service = service.clone();
        if let Some(workers) = self.services.get_mut(&service) {
            workers.remove(&worker);
            if workers.is_empty() {
                self.services.remove(&service);
            }
            self.known -= 1;
        }
    }
}

impl Known {
    fn new(born: u64, now: Instant) -> Known {
        Known {
            born,
            seen_at: now,
            used_at: now,
            wanted_at: now,
            asked_at: now,
            own: 0,
            report: None,
            reports: 0,
            ours: Average::default(),
            all: Average::default(),
            service_time: Average::default(),
            failures: Fading::default(),
            full_until: None,
            overlay: Trip::default(),
            tunnel: Trip::default(),
        }
    }

    /// Whether requests may go there, and nothing was heard from it for long.
    fn is_missed(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let heard_at = self.report.map_or(self.seen_at, |report| report.at);
        since(self.wanted_at) < WANTED_FOR && since(heard_at.max(self.asked_at)) >= FRESH_FOR
    }

    fn view(&self, now: Instant) -> View {
        let own = f64::from(self.own);
        let kappa = self.kappa();
        let report = self.report.map(|report| (report, now.saturating_duration_since(report.at)));
        let trust = report.map_or(0.0, |(_, age)| halved(age.saturating_sub(FRESH_FOR), DOUBT_HALF_LIFE));
        let told = report.map_or(0.0, |(report, _)| {
            let told = report.work.running.saturating_add(report.work.queued).saturating_sub(report.ended);
            f64::from(told) + kappa * f64::from(report.dispatched)
        });
        let told_time = report.map(|(report, _)| report.work.service_time_ms).filter(|&millis| millis > 0);
        let age = now.saturating_duration_since(self.seen_at).as_secs_f64();
        View {
            own: self.own,
            report: report.map(|(report, age)| (report.work, age)),
            load: report.filter(|(_, age)| *age < FRESH_FOR).map(|(report, _)| {
                // The head of an answer counts its own request, which is over by the time of the next.
                let over = f64::from(report.ended) / f64::from(report.work.capacity.max(1));
                Load::from_share(report.work.load.share() - over)
            }),
            estimate: own.max(trust * told + (1.0 - trust) * kappa * own),
            kappa,
            trust,
            service_time: told_time.map(|millis| f64::from(millis) / 1000.0).or(self.service_time.value()),
            weight: (age / SLOW_START.as_secs_f64()).clamp(LEAST_WEIGHT, 1.0),
            failures: self.failures.value(now),
            full_for: self
                .full_until
                .and_then(|until| until.checked_duration_since(now))
                .filter(|left| !left.is_zero()),
            overlay: self.overlay,
            tunnel: self.tunnel,
            now,
        }
    }

    fn kappa(&self) -> f64 {
        let (Some(ours), Some(all)) = (self.ours.value(), self.all.value()) else { return KAPPA.0 };
        // Both begin at 0; an idle worker is everybody's.
        if all <= f64::EPSILON { KAPPA.0 } else { (all / ours.max(f64::EPSILON)).clamp(KAPPA.0, KAPPA.1) }
    }

    fn trip_mut(&mut self, path: Path) -> Option<&mut Trip> {
        match path {
            Path::Local => None,
            Path::Overlay => Some(&mut self.overlay),
            Path::Tunnel => Some(&mut self.tunnel),
        }
    }
}

/// Whether a worker says that it is no good for work at the moment, as long as its word can be trusted.
pub fn state(view: &View) -> State {
    match view.report {
        Some((work, age)) if age < FRESH_FOR => work.state,
        Some(_) | None => State::Ready,
    }
}
