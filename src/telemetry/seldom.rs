//! A complaint that may come with every request is logged once in a while.

use std::time::{Duration, Instant};

/// Between two of the same complaint.
const EVERY: Duration = Duration::from_secs(60);

/// When a complaint was last made.
#[derive(Debug, Default)]
pub struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether to complain now; if so, not again for a minute.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_made_once_a_minute_at_most() {
        let (mut seldom, t0) = (Seldom::default(), crate::clock::now());

        let due = [0, 1, 59, 60, 61].map(|secs| seldom.is_due(t0 + Duration::from_secs(secs)));

        assert_eq!(due, [true, false, false, true, false]);
    }
}
