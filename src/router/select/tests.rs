mod simulation;

use proptest::{collection::vec, prelude::*};
use rand::{SeedableRng, rngs::SmallRng};
use wiremesh_certs::NodeId;

use super::*;
use crate::router::{Blame, Trouble, Work};

#[test]
fn a_healthy_tunnel_comes_before_an_ejected_overlay() {
    let first = first_of(&[ejected(overlay(0, 0)), tunnel(1, 90)], 1);

    assert_eq!(first, [0, 1]);
}

#[test]
fn a_busy_worker_in_the_overlay_comes_before_an_idle_one_behind_a_tunnel() {
    let first = first_of(&[tunnel(0, 0), overlay(1, 100)], 100);

    assert_eq!(first, [0, 100]);
}

#[test]
fn the_three_of_lowest_load_are_drawn_50_30_20_and_the_fourth_never_first() {
    let first = first_of(&[overlay(0, 40), overlay(1, 10), overlay(2, 20), overlay(3, 30)], 20_000);

    assert_shares(&first, &[0.0, 0.5, 0.3, 0.2]);
}

#[test]
fn two_are_drawn_in_the_same_proportion() {
    let first = first_of(&[overlay(0, 10), overlay(1, 20)], 20_000);

    assert_shares(&first, &[0.625, 0.375]);
}

#[test]
fn equally_loaded_workers_get_equal_shares_however_many_they_are() {
    let first = first_of(&(0..8).map(|worker| overlay(worker, 0)).collect::<Vec<_>>(), 40_000);

    assert_shares(&first, &[0.125; 8]);
}

#[test]
fn an_empty_overlay_rank_falls_to_the_tunnels_drawn_alike() {
    let first = first_of(&[tunnel(0, 10), tunnel(1, 20), tunnel(2, 30)], 20_000);

    assert_shares(&first, &[0.5, 0.3, 0.2]);
}

#[test]
fn every_candidate_is_in_the_order_exactly_once_and_ranks_never_mix() {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut all = [overlay(0, 1), tunnel(0, 1), ejected(overlay(1, 0)), tunnel(1, 0), overlay(2, 3), overlay(3, 9)];

    for _ in 0..1000 {
        order(&mut all, &mut rng);
        let mut sorted = all;
        sorted.sort_by_key(Candidate::rank);
        assert_eq!(all.map(|c| c.rank()), sorted.map(|c| c.rank()));
        let mut ways = all.map(|c| (c.worker, c.path));
        ways.sort_unstable();
        assert!(ways.windows(2).all(|pair| pair[0] != pair[1]));
    }
}

fn overlay(worker: usize, load: u8) -> Candidate {
    Candidate { ejected: false, path: Path::Overlay, load: Load::from_share(f64::from(load) / 100.0), worker }
}

fn tunnel(worker: usize, load: u8) -> Candidate {
    Candidate { path: Path::Tunnel, ..overlay(worker, load) }
}

fn ejected(candidate: Candidate) -> Candidate {
    Candidate { ejected: true, ..candidate }
}

/// How often each worker came first.
fn first_of(candidates: &[Candidate], times: usize) -> Vec<usize> {
    let mut rng = SmallRng::seed_from_u64(42);
    let mut first = vec![0; candidates.iter().map(|c| c.worker + 1).max().unwrap()];
    for _ in 0..times {
        let mut candidates = candidates.to_vec();
        order(&mut candidates, &mut rng);
        first[candidates[0].worker] += 1;
    }
    first
}

fn assert_shares(counts: &[usize], expected: &[f64]) {
    let all = counts.iter().sum::<usize>() as f64;
    for (count, expected) in counts.iter().zip(expected) {
        assert!((*count as f64 / all - expected).abs() < 0.015, "{counts:?} is not {expected:?}");
    }
}

#[test]
fn a_quiet_mesh_is_shared_50_30_20_by_the_reported_load_whatever_the_speeds() {
    let mut mesh = Mesh::of(&[40, 10, 20, 30]);
    mesh.service_times([100, 9000, 4000, 10]);

    assert_shares(&mesh.first_of(20_000), &[0.0, 0.5, 0.3, 0.2]);
    mesh.workers.truncate(2);
    assert_shares(&mesh.first_of(20_000), &[0.375, 0.625]);
}

#[test]
fn a_loaded_mesh_is_shared_50_30_20_by_score_and_nobody_over_twice_the_best_is_drawn() {
    let mut mesh = Mesh::of(&[0, 0, 0, 0]);
    mesh.service_times([1000, 1200, 1500, 2500]);
    mesh.reports(3, 4, 0);

    assert_shares(&mesh.first_of(20_000), &[0.5, 0.3, 0.2, 0.0]);
    mesh.reports(2, 4, 4);
    assert_shares(&mesh.first_of(20_000), &[0.625, 0.375, 0.0, 0.0]);
}

#[test]
fn who_sent_no_report_is_as_busy_as_its_record_says() {
    let mut mesh = Mesh::of(&[100, 0, 0]);
    mesh.reports(1, 1, 0);

    assert_shares(&mesh.first_of(20_000), &[0.0, 0.375, 0.625]);
}

#[test]
fn of_many_loaded_workers_only_five_are_looked_at() {
    let mut mesh = Mesh::of(&[0; 20]);
    mesh.reports(19, 1, 0);

    let first = mesh.first_of(20_000);

    let of_the_idle = first[..19].iter().sum::<usize>();
    assert_eq!(of_the_idle, 20_000);
    assert_shares(&first, &[1.0 / 19.0; 19]);
}

#[test]
fn busy_workers_stay_in_the_order_and_are_drawn_when_all_are_busy() {
    let mut mesh = Mesh::of(&[0, 0]);
    mesh.reports(0, 4, 40);
    mesh.reports(1, 4, 50);

    assert_shares(&mesh.first_of(20_000), &[0.625, 0.375]);
}

#[test]
fn work_goes_through_tunnels_when_the_overlay_is_four_times_worse_and_not_before() {
    let mut mesh = Mesh::of(&[0, 0]);
    mesh.workers[1].overlay = None;
    mesh.workers[1].tunnel = Some("https://worker.example".parse().unwrap());
    mesh.reports(1, 1, 0);

    mesh.reports(0, 7, 0);
    assert_eq!(mesh.select().ways[0].path, Path::Overlay);
    mesh.reports(0, 9, 0);
    assert_eq!(mesh.select().ways[0].path, Path::Tunnel);
    assert_eq!(mesh.explain()[1].excluded, Some(Excluded::TunnelFirst));
}

#[test]
fn a_new_worker_gets_its_full_share_after_half_a_minute() {
    let mut mesh = Mesh::of(&[0]);
    mesh.select();
    mesh.now += SECOND * 60;
    mesh.workers.push(worker(1, 0, false));
    mesh.reports(0, 1, 0);
    mesh.reports(1, 1, 0);

    assert_shares(&mesh.first_of(1000), &[1.0, 0.0]);
    mesh.now += SECOND * 31;
    mesh.reports(0, 1, 0);
    mesh.reports(1, 1, 0);
    assert_shares(&mesh.first_of(20_000), &[0.5, 0.5]);
}

#[test]
fn a_worker_that_is_full_is_not_asked_before_it_said() {
    let mut mesh = Mesh::of(&[0, 50]);
    mesh.fleet.on_full(&mesh.service, NodeId([0; 32]), SECOND * 7, mesh.now);

    let selection = mesh.select();
    assert_eq!(selection.ways.iter().map(|way| way.worker).collect::<Vec<_>>(), [1]);
    assert_eq!(selection.full_for, Some(SECOND * 7));
    assert_eq!(mesh.explain()[1].excluded, Some(Excluded::Full(SECOND * 7)));

    mesh.now += SECOND * 7;
    assert_eq!((mesh.select().ways.len(), mesh.select().full_for), (2, None));
}

#[test]
fn who_ends_its_work_comes_last_and_before_the_ejected() {
    let mut mesh = Mesh::of(&[0, 90, 0]);
    mesh.report(0, Work { state: State::Draining, ..idle() });
    mesh.fails(2, Trouble::Silent);

    assert_eq!(mesh.select().ways.iter().map(|way| way.worker).collect::<Vec<_>>(), [1, 0, 2]);
    let why: Vec<_> = mesh.explain().iter().map(|way| way.excluded).collect();
    assert_eq!(why, [None, Some(Excluded::Draining), Some(Excluded::Ejected(Cause::Silent))]);
}

#[test]
fn a_cold_model_and_recent_failures_end_the_quiet_and_cost_the_first_place() {
    for trouble in ["cold", "failed"] {
        let mut mesh = Mesh::of(&[0, 50]);
        mesh.service_times([1000, 1000]);
        match trouble {
            "cold" => mesh.report(0, Work { state: State::Loading, ..idle() }),
            _ => mesh.fleet.on_failure(&mesh.service, NodeId([0; 32]), Blame::Service, mesh.now),
        }
        assert_shares(&mesh.first_of(1000), &[0.0, 1.0]);
    }
}

#[test]
fn a_conversation_keeps_its_worker_while_that_is_nearly_as_good_as_the_best() {
    let mut mesh = Mesh::of(&[0; 8]);
    mesh.affinity = Some(Affinity::of(b"a conversation"));

    let home = mesh.select().ways[0].worker;
    assert_eq!(mesh.first_of(100)[home], 100);
    mesh.reports(home, 4, 0);
    assert_eq!(mesh.first_of(100)[home], 0);
}

#[test]
fn ejected_ways_count_as_healthy_when_more_than_half_of_the_workers_have_no_other() {
    let mut mesh = Mesh::of(&[0, 50, 60, 70]);
    (0..3).for_each(|worker| (0..3).for_each(|_| mesh.fails(worker, Trouble::Broken)));
    assert!(mesh.select().ways.iter().all(|way| !way.ejected));
    let mut mesh = Mesh::of(&[0, 50, 60, 70]);
    (0..2).for_each(|worker| (0..3).for_each(|_| mesh.fails(worker, Trouble::Broken)));
    assert_eq!(mesh.select().ways.iter().filter(|way| way.ejected).count(), 2);
}

#[test]
fn silent_ways_do_not_come_back_by_being_many() {
    let mut mesh = Mesh::of(&[0, 0, 90]);
    (0..2).for_each(|worker| mesh.fails(worker, Trouble::Silent));

    assert_shares(&mesh.first_of(100), &[0.0, 0.0, 1.0]);
}

#[test]
fn one_of_two_workers_that_is_gone_with_both_of_its_ways_stays_out() {
    let mut mesh = Mesh::of(&[0, 90]);
    mesh.workers[0].tunnel = Some("https://worker.example".parse().unwrap());
    (0..3).for_each(|_| mesh.fails(0, Trouble::Refused));

    assert_shares(&mesh.first_of(100), &[0.0, 1.0]);
}

#[test]
fn an_explanation_names_parts_ages_and_reasons() {
    let mut mesh = Mesh::of(&[0, 0, 0, 0, 0]);
    mesh.service_times([1000, 1100, 1200, 1300, 9000]);
    mesh.reports(4, 4, 0);
    mesh.now += SECOND * 2;

    let all = mesh.explain();

    let why: Vec<_> = all.iter().map(|way| way.excluded.map(Excluded::as_str)).collect();
    assert_eq!(why, [None, None, None, Some("behind three"), Some("over twice the best")]);
    assert_eq!((all[0].candidate.worker, all[0].report_age, all[0].score.service_time), (0, Some(SECOND * 2), 1.0));
}

#[test]
fn latency_is_near_an_oracles_and_better_than_two_choices_give() {
    use simulation::{Policy, run};
    let t0 = crate::clock::now();

    for (agents, seed) in [(3, 1), (4, 2), (5, 3), (4, 4)] {
        let [ours, oracle, of_time, two] = [Policy::Ours, Policy::Oracle, Policy::OracleOfTime, Policy::PowerOfTwo]
            .map(|policy| run(policy, agents, seed, t0));

        let all = format!("seed {seed}: {ours:?}, oracle {oracle:?} {of_time:?}, two choices {two:?}");
        assert!(ours.mean < 1.4 * oracle.mean.min(of_time.mean) && ours.p99 < 1.4 * oracle.p99, "{all}");
        assert!(ours.mean < two.mean && ours.p99 < two.p99, "{all}");
    }
}

proptest! {
    #[test]
    fn every_way_of_who_is_not_full_is_in_the_order_once_and_every_score_is_a_number(
        workers in vec((any::<(bool, bool, bool)>(), 0..6u32, any::<(u32, u32, u32, u32)>(), 0..100u64), 0..20),
        seed: u64,
        session: Option<u64>,
    ) {
        let mut mesh = Mesh::of(&vec![0; workers.len()]);
        mesh.rng = SmallRng::seed_from_u64(seed);
        mesh.affinity = session.map(|session| Affinity::of(&session.to_be_bytes()));
        let mut expected = Vec::new();
        for (index, ((overlay, tunnel, full), failures, (capacity, running, queued, service_time_ms), age)) in
            workers.into_iter().enumerate()
        {
            let ways = &mut mesh.workers[index];
            ways.overlay = ways.overlay.filter(|_| overlay);
            ways.tunnel = tunnel.then(|| "https://worker.example".parse().unwrap());
            let at = mesh.now;
            mesh.now += Duration::from_secs(age);
            mesh.report(index, Work { capacity, running, queued, service_time_ms, ..idle() });
            mesh.now = at;
            (0..failures).for_each(|_| mesh.fails(index, Trouble::Broken));
            if full {
                mesh.fleet.on_full(&mesh.service, NodeId([index as u8; 32]), SECOND, mesh.now);
            } else {
                expected.extend(overlay.then_some((index, Path::Overlay)));
                expected.extend(tunnel.then_some((index, Path::Tunnel)));
            }
        }

        let mut ways: Vec<_> = mesh.select().ways.iter().map(|way| (way.worker, way.path)).collect();
        ways.sort_unstable();
        prop_assert_eq!(ways, expected);
        for way in mesh.explain() {
            prop_assert!(way.score.total.is_finite() && way.score.total >= 0.0, "{:?}", way.score);
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// One agent's knowledge of some workers that it has known for long.
struct Mesh {
    service: ServiceName,
    workers: Vec<Worker>,
    fleet: Fleet,
    health: Health,
    affinity: Option<Affinity>,
    rng: SmallRng,
    now: Instant,
}

impl Mesh {
    /// Of these loads in percent, reached over the overlay.
    fn of(percents: &[u8]) -> Mesh {
        let mut mesh = Mesh {
            service: ServiceName::new("llm").unwrap(),
            workers: (0..).zip(percents).map(|(id, &percent)| worker(id, percent, false)).collect(),
            fleet: Fleet::default(),
            health: Health::default(),
            affinity: None,
            rng: SmallRng::seed_from_u64(11),
            now: crate::clock::now(),
        };
        mesh.select();
        mesh.now += SECOND * 60;
        mesh
    }

    fn select(&mut self) -> Selection {
        let Mesh { service, workers, fleet, health, affinity, rng, now } = self;
        select(&Asked { service, workers, overlay: true, affinity: *affinity }, fleet, health, rng, *now)
    }

    fn explain(&mut self) -> Vec<Considered> {
        let Mesh { service, workers, fleet, health, affinity, now, .. } = self;
        explain(&Asked { service, workers, overlay: true, affinity: *affinity }, fleet, health, *now)
    }

    /// How often each worker came first.
    fn first_of(&mut self, times: usize) -> Vec<usize> {
        let mut first = vec![0; self.workers.len()];
        for _ in 0..times {
            first[self.select().ways[0].worker] += 1;
        }
        first
    }

    fn report(&mut self, worker: usize, work: Work) {
        self.fleet.on_report(&self.service, self.workers[worker].id, work, self.now);
    }

    /// Of four slots.
    fn reports(&mut self, worker: usize, running: u32, queued: u32) {
        let known = self.fleet.consider(&self.service, self.workers[worker].id, self.now);
        let work = known.report.map_or(idle(), |(work, _)| work);
        self.report(worker, Work { running, queued, ..work });
    }

    /// Everybody reports these, in milliseconds, and nothing else to do.
    fn service_times<const N: usize>(&mut self, times: [u32; N]) {
        for (worker, service_time_ms) in times.into_iter().enumerate() {
            self.report(worker, Work { service_time_ms, load: self.workers[worker].load, ..idle() });
        }
    }

    fn fails(&mut self, worker: usize, trouble: Trouble) {
        self.health.on_failure(&self.workers[worker], Path::Overlay, trouble, self.now, &mut self.rng);
    }
}

fn idle() -> Work {
    Work { capacity: 4, running: 0, queued: 0, load: Load::default(), service_time_ms: 1000, state: State::Ready }
}

/// A worker that is reached over the overlay.
fn worker(id: u8, percent: u8, tunnel: bool) -> Worker {
    Worker {
        id: NodeId([id; 32]),
        name: "worker".parse().unwrap(),
        overlay: Some("127.0.0.1:8000".parse().unwrap()),
        tunnel: tunnel.then(|| "https://worker.example".parse().unwrap()),
        load: Load::from_share(f64::from(percent) / 100.0),
        published_at: Default::default(),
    }
}
