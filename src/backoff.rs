//! How long to wait before trying again: doubling, jittered, capped.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Waits between attempts. Each is drawn evenly from half to the whole of a ceiling that doubles from `base` to `cap`,
/// so that many agents that failed together do not come back together.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
    rng: SmallRng,
}

impl Backoff {
    /// Starts with no failure seen. `seed` is the only source of chance.
    pub fn new(base: Duration, cap: Duration, seed: u64) -> Backoff {
        Backoff { base, cap, failures: 0, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Another attempt failed: wait this long before the next.
    pub fn next_delay(&mut self) -> Duration {
        let doubled = self.base.saturating_mul(2u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.cap).mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// An attempt succeeded: the next failure waits `base` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8), 7);

        let delays: Vec<_> = (0..6).map(|_| backoff.next_delay()).collect();
        backoff.reset();
        let after_success = backoff.next_delay();

        for (delay, ceiling) in delays.iter().zip([1, 2, 4, 8, 8, 8]) {
            assert!(*delay <= Duration::from_secs(ceiling) && *delay >= Duration::from_secs(ceiling) / 2);
        }
        assert!(after_success <= Duration::from_secs(1));
    }
}
