//! Whom to ask first, second, third.
//!
//! ```text
//! every way to every worker ──► out for a while (`retry-after`)? ──► in classes, best first:
//!   healthy overlay │ healthy tunnel │ draining │ ejected          a tunnel before the overlay if that is four times worse
//!      └──► quiet: of the three of lowest load      one is drawn: 50 %, 30 %, 20 %
//!      └──► loaded: of five at random the three of best score, none over twice the best, drawn likewise
//! ```
//!
//! - The mesh is quiet for a service if nobody has work of it in flight, by reports and by our own knowledge, and nobody
//!   failed or has a model to load. Then speed cannot be told from chance, and spreading is all there is to do.
//! - Five at random, not all: agents that know the same would all choose the same. A draw, not the best, for the same
//!   reason.
//! - Busy workers stay among the candidates: the estimates are old, and the worker itself says when it is full.
//! - **Ejected ways count as healthy again when more than half of the workers have no other.** A rule that throws out most
//!   of a service is mistaken, or about to drown the rest. It counts workers, not ways: one of two that is gone with its
//!   tunnel and its overlay is one, not two of three. It does not bring back ways that are silent: each request would
//!   wait two seconds to learn what is known, and who answers nothing cannot take work off the others.
//! - A conversation keeps its worker ([`Affinity`]) as long as that scores within one and a half of the best.

mod affinity;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use affinity::Affinity;
use rand::{Rng, seq::SliceRandom};
use wiremesh_certs::{Load, ServiceName};

use super::{
    MAX_ATTEMPTS, Path, State, Worker,
    fleet::{self, Fleet, View},
    health::{Cause, Health},
    score::{Score, Typical},
};

/// How often the best, second and third best are drawn. With two, 62.5 and 37.5 percent.
const DRAW: [u32; 3] = [50, 30, 20];
/// How many of a loaded mesh are looked at.
const SAMPLE: usize = 5;
/// Nobody who scores over so many times the best is drawn.
const TOO_BAD: f64 = 2.0;
/// If every worker in the overlay scores over so many times the best tunnel, tunnels come first.
const SPILL: f64 = 4.0;
/// A conversation's worker is kept within so many times the best score.
const AFFINITY: f64 = 1.5;
/// What is left of a failure after half a minute disturbs no quiet mesh.
const FORGOTTEN: f64 = 0.125;

/// One way to one worker. Smaller is better, field order is the comparison order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Candidate {
    /// Whether attempts that way failed lately.
    pub ejected: bool,
    /// The way.
    pub path: Path,
    /// How busy the worker said it was.
    pub load: Load,
    /// Which worker, in the list the candidates were made from.
    pub worker: usize,
}

impl Candidate {
    fn rank(&self) -> (bool, Path) {
        (self.ejected, self.path)
    }
}

/// For what workers are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Who offers it.
    pub workers: &'a [Worker],
    /// Whether we carry overlay packets.
    pub overlay: bool,
    /// The conversation that the request belongs to.
    pub affinity: Option<Affinity>,
}

/// Whom to ask.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection {
    /// In the order in which they are to be tried.
    pub ways: Vec<Candidate>,
    /// How long until the first of those is asked again that said they are full; `None` if nobody did.
    pub full_for: Option<Duration>,
}

/// One way to one worker, and what speaks for and against it.
#[derive(Clone, Copy, Debug)]
pub struct Considered {
    /// Way and worker.
    pub candidate: Candidate,
    /// How soon it would answer.
    pub score: Score,
    /// Our own requests in flight there.
    pub own: u32,
    /// How old its last report is; `None` if it never sent one.
    pub report_age: Option<Duration>,
    /// Why the next request does not go there.
    pub excluded: Option<Excluded>,
    quiet: bool,
}

/// Why a request does not go a way at its first attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Excluded {
    /// The worker said that it is full, for so much longer.
    Full(Duration),
    /// The way failed.
    Ejected(Cause),
    /// The worker ends its work.
    Draining,
    /// It is a tunnel, and the overlay will do.
    OverlayFirst,
    /// It is the overlay, and a tunnel is four times better.
    TunnelFirst,
    /// It scores over twice the best.
    OverTwiceTheBest,
    /// Three are better.
    BehindThree,
}

impl Excluded {
    /// The words in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Excluded::Full(_) => "full",
            Excluded::Ejected(_) => "ejected",
            Excluded::Draining => "draining",
            Excluded::OverlayFirst => "overlay first",
            Excluded::TunnelFirst => "tunnel first",
            Excluded::OverTwiceTheBest => "over twice the best",
            Excluded::BehindThree => "behind three",
        }
    }
}

/// Puts the ways to all workers in the order in which they are to be tried.
pub fn select(
    asked: &Asked<'_>,
    fleet: &mut Fleet,
    health: &mut Health,
    rng: &mut impl Rng,
    now: Instant,
) -> Selection {
    let mut all = consider(asked, fleet, health, now);
    let full = all.iter().filter_map(|way| match way.excluded {
        Some(Excluded::Full(left)) => Some(left),
        _ => None,
    });
    let full_for = full.min();
    let quiet = is_quiet(&all);
    let spills = !quiet && spills(&all);
    all.retain(|way| !matches!(way.excluded, Some(Excluded::Full(_))));
    all.shuffle(rng);
    all.sort_by_key(|way| way.class(spills));

    for class in all.chunk_by_mut(|a, b| a.class(spills) == b.class(spills)) {
        if quiet {
            class.sort_by_key(|way| way.candidate.load);
            draw_in_turn(class, rng);
        } else {
            sample_in_turn(class, rng);
        }
        if let Some(affinity) = asked.affinity {
            keep(affinity, asked.workers, class);
        }
    }
    Selection { ways: all.iter().map(|way| way.candidate).collect(), full_for }
}

/// All ways to all workers, those that come first in front, with the reasons of those that do not.
pub fn explain(asked: &Asked<'_>, fleet: &mut Fleet, health: &mut Health, now: Instant) -> Vec<Considered> {
    let mut all = consider(asked, fleet, health, now);
    let quiet = is_quiet(&all);
    let spills = !quiet && spills(&all);
    all.sort_by(|a, b| {
        let of = |way: &Considered| (matches!(way.excluded, Some(Excluded::Full(_))), way.class(spills));
        let goodness = if quiet { a.candidate.load.cmp(&b.candidate.load) } else { a.total().total_cmp(&b.total()) };
        of(a).cmp(&of(b)).then(goodness)
    });
    let Some(first) = all.first().copied() else { return all };
    let class = all.iter().filter(|way| way.excluded.is_none() && way.class(spills) == first.class(spills)).count();
    for (place, way) in all.iter_mut().enumerate().filter(|(_, way)| way.excluded.is_none()) {
        way.excluded = if way.class(spills) != first.class(spills) {
            Some(if spills { Excluded::TunnelFirst } else { Excluded::OverlayFirst })
        } else if !quiet && way.total() > TOO_BAD * first.total() {
            Some(Excluded::OverTwiceTheBest)
        } else {
            // More than are looked at together: each may be among the three best of those that are.
            (place >= DRAW.len() && (quiet || class <= SAMPLE)).then_some(Excluded::BehindThree)
        };
    }
    all
}

/// Puts candidates of which nothing else is known in the order in which they are to be tried.
pub fn order(candidates: &mut [Candidate], rng: &mut impl Rng) {
    // Equally loaded workers all get their share, not the first three of the list.
    candidates.shuffle(rng);
    candidates.sort_by_key(|candidate| (candidate.rank(), candidate.load));
    for class in candidates.chunk_by_mut(|a, b| a.rank() == b.rank()) {
        draw_in_turn(class, rng);
    }
}

impl Considered {
    /// Which come first; among the equal it is drawn.
    fn class(&self, spills: bool) -> (bool, bool, bool) {
        let draining = self.excluded == Some(Excluded::Draining);
        (self.candidate.ejected, draining, (self.candidate.path == Path::Tunnel) != spills)
    }

    fn total(&self) -> f64 {
        self.score.total
    }
}

fn consider(asked: &Asked<'_>, fleet: &mut Fleet, health: &mut Health, now: Instant) -> Vec<Considered> {
    let views: Vec<View> = asked.workers.iter().map(|worker| fleet.consider(asked.service, worker.id, now)).collect();
    let typical = Typical::of(&views);
    let mut all = Vec::with_capacity(asked.workers.len() * 2);
    for (index, (worker, view)) in asked.workers.iter().zip(&views).enumerate() {
        let state = fleet::state(view);
        // As far as no report tells, it is as busy as its record says.
        let recorded = (1.0 - view.trust) * worker.load.share() * typical.capacity;
        let mut scored = *view;
        scored.estimate = scored.estimate.max(recorded);
        let mut add = |path| {
            let ejected = health.standing((worker.id, path), now);
            let excluded = match (view.full_for, ejected, state) {
                (Some(left), _, _) => Some(Excluded::Full(left)),
                (None, Some(cause), _) => Some(Excluded::Ejected(cause)),
                (None, None, State::Draining) => Some(Excluded::Draining),
                (None, None, State::Ready | State::Loading) => None,
            };
            let ejected = ejected.is_some();
            let failures = view.failures + view.path_failures(path);
            all.push(Considered {
                candidate: Candidate { ejected, path, load: view.load.unwrap_or(worker.load), worker: index },
                score: Score::of(&scored, path, state, typical),
                own: view.own,
                report_age: view.report.map(|(_, age)| age),
                excluded,
                quiet: view.is_idle() && view.full_for.is_none() && failures < FORGOTTEN && state != State::Loading,
            });
        };
        if asked.overlay && worker.overlay.is_some() {
            add(Path::Overlay);
        }
        if worker.tunnel.is_some() {
            add(Path::Tunnel);
        }
    }
    readmit(&mut all);
    all
}

/// If more than half of the workers have nothing but ejected ways, those that are not silent count as healthy.
fn readmit(all: &mut [Considered]) {
    let (mut workers, mut out) = (0, 0);
    for ways in all.chunk_by(|a, b| a.candidate.worker == b.candidate.worker) {
        workers += 1;
        out += usize::from(ways.iter().all(|way| way.candidate.ejected));
    }
    if out * 2 <= workers {
        return;
    }
    for way in all.iter_mut() {
        let silent = way.excluded == Some(Excluded::Ejected(Cause::Silent));
        if way.candidate.ejected && !silent {
            way.candidate.ejected = false;
            way.excluded = way.excluded.filter(|excluded| !matches!(excluded, Excluded::Ejected(_)));
        }
    }
}

/// Whether there is nothing to tell the healthy ways apart by.
fn is_quiet(all: &[Considered]) -> bool {
    all.iter().filter(|way| !way.candidate.ejected).all(|way| way.quiet)
}

/// Whether everybody in the overlay is so busy that the detour through a tunnel is worth it.
fn spills(all: &[Considered]) -> bool {
    let best = |path| {
        let ways = all.iter().filter(|way| way.excluded.is_none() && way.candidate.path == path);
        ways.map(Considered::total).min_by(f64::total_cmp)
    };
    best(Path::Overlay).zip(best(Path::Tunnel)).is_some_and(|(overlay, tunnel)| overlay > SPILL * tunnel)
}

/// Draws from the first three, again and again, until all are in order.
fn draw_in_turn<T>(class: &mut [T], rng: &mut impl Rng) {
    for chosen in 0..class.len() {
        let among = (class.len() - chosen).min(DRAW.len());
        // Moves the drawn one to the front and keeps the others in order.
        class[chosen..=chosen + draw(among, rng)].rotate_right(1);
    }
}

/// Draws from the three best of a sample, as often as there are attempts. The others follow by their scores.
fn sample_in_turn(class: &mut [Considered], rng: &mut impl Rng) {
    for chosen in 0..class.len().min(MAX_ATTEMPTS) {
        let rest = &mut class[chosen..];
        let sampled = rest.len().min(SAMPLE);
        for place in 0..sampled {
            rest.swap(place, rng.random_range(place..rest.len()));
        }
        let sample = &mut rest[..sampled];
        sample.sort_by(|a, b| a.total().total_cmp(&b.total()));
        let worst = TOO_BAD * sample[0].total();
        let among = sample.iter().take(DRAW.len()).take_while(|way| way.total() <= worst).count();
        sample[..=draw(among, rng)].rotate_right(1);
    }
    let rest = class.len().min(MAX_ATTEMPTS);
    class[rest..].sort_by(|a, b| a.total().total_cmp(&b.total()));
}

/// An index below `among`, which is 1, 2 or 3.
fn draw(among: usize, rng: &mut impl Rng) -> usize {
    let weights = &DRAW[..among];
    let mut left = rng.random_range(0..weights.iter().sum());
    weights.iter().position(|&weight| left.checked_sub(weight).map(|less| left = less).is_none()).unwrap_or(0)
}

/// Moves the conversation's worker to the front, if it is nearly as good as the best.
fn keep(affinity: Affinity, workers: &[Worker], class: &mut [Considered]) {
    let best = class.iter().map(Considered::total).min_by(f64::total_cmp);
    let home = (0..class.len()).max_by_key(|&place| affinity.pull(&workers[class[place].candidate.worker].id));
    if let Some((best, home)) = best.zip(home)
        && class[home].total() <= AFFINITY * best
    {
        class[..=home].rotate_right(1);
    }
}
