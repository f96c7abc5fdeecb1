//! The beat that periodic work in no hurry keeps to, so that a quiet agent wakes once for all of it and not once for each.

use std::time::{Duration, Instant};

/// The next beat after `now` of those that come `every` so often; `beat` is any earlier one.
pub fn next(beat: Instant, now: Instant, every: Duration) -> Instant {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let since_the_last = nanos(now.saturating_duration_since(beat)) % nanos(every).max(1);
    now + every.saturating_sub(Duration::from_nanos(since_the_last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(2);

    #[test]
    fn whoever_asks_within_a_beat_is_told_the_same_next_one() {
        let beat = crate::clock::now();

        assert_eq!(next(beat, beat, EVERY), beat + EVERY);
        assert_eq!(next(beat, beat + EVERY * 5 + EVERY / 4, EVERY), beat + EVERY * 6);
        assert_eq!(next(beat, beat + EVERY * 6 - Duration::from_nanos(1), EVERY), beat + EVERY * 6);
    }

    #[test]
    fn longer_beats_fall_on_shorter_ones() {
        let beat = crate::clock::now();
        let longer = next(beat, beat + EVERY / 2, EVERY * 3);

        assert_eq!(next(beat, longer - EVERY / 2, EVERY), longer);
    }
}
