//! How soon a worker would answer, by one way: the figure by which workers are compared.
//!
//! ```text
//! score = ((q̂ + 1) / c) · ŝ / w  +  rtt  +  penalties           in seconds, smaller is better
//! ```
//!
//! | part        | is                                                                             | unknown                |
//! |-------------|--------------------------------------------------------------------------------|------------------------|
//! | `q̂`         | requests in flight there: [`View::estimate`](super::fleet::View)               | our own                |
//! | `c`         | requests it takes at once                                                      | as the others          |
//! | `ŝ`         | how long one executes                                                          | as the others, or 1 s  |
//! | `w`         | from 0.1 to 1 in the first half minute that we know of it, 1 after             |                        |
//! | `rtt`       | the round trip by this way                                                     | 0                      |
//! | failures    | two service times for each that has not faded: it cost one request, and a next one may cost as much | |
//! | tunnel      | [`TUNNEL_PENALTY`]: somebody else's machines carry it                          |                        |
//! | cold model  | [`COLD_PENALTY`]                                                               |                        |

use super::{Path, State, fleet::View};

/// What a way through somebody else's machines costs beyond its round trip, in seconds.
pub const TUNNEL_PENALTY: f64 = 0.05;
/// What it takes to load a model, in seconds: about what a small one needs from a local disk.
pub const COLD_PENALTY: f64 = 10.0;
/// Service times that a failure costs.
const FAILURE_SERVICE_TIMES: f64 = 2.0;
/// A failure costs no less than this, in seconds: who fails at once has the shortest service times of all.
const LEAST_FAILURE_PENALTY: f64 = 0.1;
/// A service time nobody knows, in seconds.
const SERVICE_TIME: f64 = 1.0;
/// Sums and multiples of scores stay finite.
const WORST: f64 = 1e12;

/// What stands for a figure that one worker does not give: the average of the others'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Typical {
    /// Requests at once.
    pub capacity: f64,
    /// In seconds.
    pub service_time: f64,
}

impl Typical {
    /// Of the workers that are considered for one request.
    pub fn of(views: &[View]) -> Typical {
        let mean = |figures: &mut dyn Iterator<Item = f64>, otherwise: f64| {
            let (sum, count) = figures.fold((0.0, 0.0), |(sum, count), figure| (sum + figure, count + 1.0));
            if count > 0.0 { sum / count } else { otherwise }
        };
        let mut capacities =
            views.iter().filter_map(|view| view.report).map(|(work, _)| f64::from(work.capacity.max(1)));
        let mut times = views.iter().filter_map(|view| view.service_time);
        Typical { capacity: mean(&mut capacities, 1.0), service_time: mean(&mut times, SERVICE_TIME) }
    }
}

/// A score and its parts, in seconds where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Requests in flight there.
    pub estimate: f64,
    /// Requests it takes at once.
    pub capacity: f64,
    /// How long one executes.
    pub service_time: f64,
    /// How much it is trusted with, being new.
    pub weight: f64,
    /// The first term: the work that comes before the end of the request.
    pub work: f64,
    /// The round trip.
    pub rtt: f64,
    /// For failures of the way, the worker and its service.
    pub failures: f64,
    /// For a tunnel.
    pub tunnel: f64,
    /// For a model that is not loaded.
    pub cold: f64,
    /// The sum.
    pub total: f64,
}

impl Score {
    /// The score of a worker by `path`.
    pub fn of(view: &View, path: Path, state: State, typical: Typical) -> Score {
        let capacity = view.report.map_or(typical.capacity, |(work, _)| f64::from(work.capacity)).max(1.0);
        let service_time = view.service_time.unwrap_or(typical.service_time).max(0.0);
        let work = (view.estimate + 1.0) / capacity * service_time / view.weight;
        let failure = (FAILURE_SERVICE_TIMES * typical.service_time).max(LEAST_FAILURE_PENALTY);
        let failures = (view.failures + view.path_failures(path)) * failure;
        let tunnel = if path == Path::Tunnel { TUNNEL_PENALTY } else { 0.0 };
        let cold = if state == State::Loading { COLD_PENALTY } else { 0.0 };
        let rtt = view.rtt(path);
        let total = (work + rtt + failures + tunnel + cold).min(WORST);
        Score {
            estimate: view.estimate,
            capacity,
            service_time,
            weight: view.weight,
            work,
            rtt,
            failures,
            tunnel,
            cold,
            total,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use wiremesh_certs::{Load, NodeId, ServiceName};

    use super::*;
    use crate::router::{Blame, Fleet, Work};

    const TYPICAL: Typical = Typical { capacity: 4.0, service_time: 1.0 };

    #[test]
    fn a_score_is_the_work_before_the_answer_and_the_way_there() {
        let view = view_of(Some(work(3, 4)), |fleet, service, id, now| {
            fleet.on_rtt(service, id, Path::Tunnel, Duration::from_millis(20), now);
            fleet.on_failure(service, id, Blame::Path(Path::Tunnel), now);
        });

        let tunnel = Score::of(&view, Path::Tunnel, State::Loading, TYPICAL);
        let overlay = Score::of(&view, Path::Overlay, State::Ready, TYPICAL);

        assert_eq!((tunnel.work, tunnel.rtt, tunnel.failures), ((7.0 + 1.0) / 4.0 * 0.5, 0.02, 2.0));
        assert_eq!((tunnel.tunnel, tunnel.cold), (TUNNEL_PENALTY, COLD_PENALTY));
        assert_eq!(tunnel.total, 1.0 + 0.02 + 2.0 + TUNNEL_PENALTY + COLD_PENALTY);
        assert_eq!(overlay.total, 1.0);
    }

    #[test]
    fn who_says_nothing_is_taken_for_one_like_the_others() {
        let silent = view_of(None, |_, _, _, _| {});
        let said = view_of(Some(work(0, 0)), |_, _, _, _| {});

        let typical = Typical::of(&[silent, said]);
        assert_eq!(typical, Typical { capacity: 4.0, service_time: 0.5 });
        assert_eq!(Typical::of(&[silent]), Typical { capacity: 1.0, service_time: SERVICE_TIME });
        let score = |view| Score::of(view, Path::Overlay, State::Ready, typical).total;
        assert_eq!(score(&silent), score(&said));
    }

    #[test]
    fn figures_without_measure_make_no_score_without_one() {
        for (capacity, running, service_time_ms) in [(0, u32::MAX, u32::MAX), (u32::MAX, 0, 0), (0, 0, 0)] {
            let work = Work { capacity, running, queued: u32::MAX, service_time_ms, ..work(0, 0) };
            let view = view_of(Some(work), |_, _, _, _| {});

            let total = Score::of(&view, Path::Overlay, State::Ready, Typical::of(&[view])).total;

            assert!((0.0..=WORST).contains(&total), "{total}");
        }
    }

    /// What is known of a worker for long that reported `work`, after something happened to it.
    fn view_of(work: Option<Work>, happens: impl Fn(&mut Fleet, &ServiceName, NodeId, Instant)) -> View {
        let (mut fleet, service, id) = (Fleet::default(), ServiceName::new("llm").unwrap(), NodeId([1; 32]));
        let began_at = crate::clock::now();
        fleet.consider(&service, id, began_at);
        let now = began_at + Duration::from_secs(60);
        if let Some(work) = work {
            fleet.on_report(&service, id, work, now);
        }
        happens(&mut fleet, &service, id, now);
        fleet.consider(&service, id, now)
    }

    fn work(running: u32, queued: u32) -> Work {
        Work { capacity: 4, running, queued, load: Load::default(), service_time_ms: 500, state: State::Ready }
    }
}
