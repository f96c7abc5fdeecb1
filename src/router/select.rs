//! Whom to ask first, second, third.
//!
//! 1. Healthy before ejected.
//! 2. Overlay before tunnel.
//! 3. Among equals by that, one of the three of lowest load is drawn: 50 %, 30 %, 20 %.

use rand::{Rng, seq::SliceRandom};
use wiremesh_certs::Load;

use super::Path;

/// How often the least, second least and third least loaded are drawn. With two, 62.5 and 37.5 percent.
const DRAW: [u32; 3] = [50, 30, 20];

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

/// Puts the candidates in the order in which they are to be tried.
pub fn order(candidates: &mut [Candidate], rng: &mut impl Rng) {
    // Equally loaded workers all get their share, not the first three of the list.
    candidates.shuffle(rng);
    candidates.sort_by_key(|candidate| (candidate.rank(), candidate.load));

    for chosen in 0..candidates.len() {
        let rest = &candidates[chosen..];
        let equals = rest.iter().take(DRAW.len()).take_while(|candidate| candidate.rank() == rest[0].rank()).count();
        // Moves the drawn one to the front and keeps the others in order of load.
        candidates[chosen..=chosen + draw(equals, rng)].rotate_right(1);
    }
}

/// An index below `among`, which is 1, 2 or 3.
fn draw(among: usize, rng: &mut impl Rng) -> usize {
    let weights = &DRAW[..among];
    let mut left = rng.random_range(0..weights.iter().sum());
    weights.iter().position(|&weight| left.checked_sub(weight).map(|less| left = less).is_none()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

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
}
