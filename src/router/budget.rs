//! How many repeats all requests together may cause: a fifth of the requests, and a few more.
//!
//! When much fails at once, repeats multiply the work of those who are left. With a budget they add at most a fifth.

use std::time::{Duration, Instant};

/// Requests that earn one repeat.
const REQUESTS_PER_REPEAT: u32 = 5;
/// What may be saved up: a worker that vanishes takes with it as many requests as were under way.
const MAX_SAVED: u32 = 256;
/// What there is at the least after a pause, so that few requests may be repeated too.
const FLOOR: u32 = 32;
/// How soon one repeat of the floor comes back.
const FLOOR_EVERY: Duration = Duration::from_millis(250);

/// Repeats that are left. Counted in parts of which one repeat takes [`REQUESTS_PER_REPEAT`].
#[derive(Debug)]
pub struct Budget {
    parts: u32,
    filled_at: Instant,
}

impl Budget {
    /// As after a pause.
    pub fn new(now: Instant) -> Budget {
        Budget { parts: FLOOR * REQUESTS_PER_REPEAT, filled_at: now }
    }

    /// A request came.
    pub fn on_request(&mut self) {
        self.parts = (self.parts + 1).min(MAX_SAVED * REQUESTS_PER_REPEAT);
    }

    /// Whether one more attempt may be made for a request that had one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let Some(left) = self.parts.checked_sub(REQUESTS_PER_REPEAT) else { return false };
        self.parts = left;
        true
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        let repeats = u32::try_from(passed.as_millis() / FLOOR_EVERY.as_millis()).unwrap_or(u32::MAX).min(FLOOR);
        if repeats > 0 {
            self.filled_at = now;
            let floor = FLOOR * REQUESTS_PER_REPEAT;
            self.parts = self.parts.max((self.parts + repeats * REQUESTS_PER_REPEAT).min(floor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_a_fifth_of_the_requests_once_what_was_saved_is_spent() {
        let now = crate::clock::now();
        let mut budget = Budget::new(now);
        while budget.take(now) {}

        let repeated = (0..1000)
            .filter(|_| {
                budget.on_request();
                budget.take(now)
            })
            .count();

        assert_eq!(repeated, 200);
    }

    #[test]
    fn few_requests_may_be_repeated_too() {
        let now = crate::clock::now();
        let mut budget = Budget::new(now);
        assert!((0..FLOOR).all(|_| budget.take(now)));
        assert!(!budget.take(now));

        assert!(budget.take(now + FLOOR_EVERY));
        let later = now + 1000 * FLOOR_EVERY;
        assert_eq!((0..1000).filter(|_| budget.take(later)).count(), FLOOR as usize);
    }

    #[test]
    fn what_is_saved_is_bounded() {
        let now = crate::clock::now();
        let mut budget = Budget::new(now);
        (0..1_000_000).for_each(|_| budget.on_request());

        assert_eq!((0..1_000_000).filter(|_| budget.take(now)).count(), MAX_SAVED as usize);
    }
}
