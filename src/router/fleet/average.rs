//! Figures that remember: averages that move, and counts that fade.

use std::time::{Duration, Instant};

/// An exponentially weighted moving average. Its first sample is its first value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Average(Option<f64>);

impl Average {
    /// Takes a sample that counts as `weight` of the result, between 0 and 1.
    pub fn add(&mut self, sample: f64, weight: f64) {
        if sample.is_finite() {
            self.0 = Some(self.0.map_or(sample, |old| old + (sample - old) * weight));
        }
    }

    /// `None` before the first sample.
    pub fn value(self) -> Option<f64> {
        self.0
    }
}

/// A count that halves every [`Fading::HALF_LIFE`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Fading {
    count: f64,
    at: Option<Instant>,
}

impl Fading {
    /// A failure says much about the next seconds and little about the next minute.
    pub const HALF_LIFE: Duration = Duration::from_secs(10);
    /// More is not counted: the fading of any larger number would outlast its cause.
    const MOST: f64 = 32.0;

    /// One more.
    pub fn add(&mut self, now: Instant) {
        *self = Fading { count: (self.value(now) + 1.0).min(Fading::MOST), at: Some(now) };
    }

    /// What is left.
    pub fn value(self, now: Instant) -> f64 {
        self.at.map_or(0.0, |at| self.count * halved(now.saturating_duration_since(at), Fading::HALF_LIFE))
    }
}

/// What is left of 1 after `age`.
pub fn halved(age: Duration, half_life: Duration) -> f64 {
    0.5f64.powf(age.as_secs_f64() / half_life.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_begins_with_its_first_sample_and_moves_by_the_weight_of_the_next() {
        let mut average = Average::default();
        assert_eq!(average.value(), None);

        average.add(4.0, 0.25);
        average.add(8.0, 0.25);
        average.add(f64::NAN, 0.25);

        assert_eq!(average.value(), Some(5.0));
    }

    #[test]
    fn failures_fade_by_half_in_ten_seconds_and_never_pile_up_beyond_their_bound() {
        let (mut failures, now) = (Fading::default(), crate::clock::now());
        failures.add(now);
        failures.add(now);

        assert_eq!(failures.value(now), 2.0);
        assert_eq!(failures.value(now + Fading::HALF_LIFE), 1.0);
        for _ in 0..1000 {
            failures.add(now);
        }
        assert_eq!(failures.value(now), Fading::MOST);
    }
}
