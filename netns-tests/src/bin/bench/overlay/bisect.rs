//! Finding the highest rate without loss.

/// What is called without loss.
pub const LOSSLESS: f64 = 0.001;
/// The first rate that is tried.
const START: f64 = 8_000.0;
/// Rates beyond which nobody looks, in packets a second.
const LOWEST: f64 = 250.0;
const HIGHEST: f64 = 4_000_000.0;
/// Steps between a rate that passed and twice that rate: the last is 2 % wide.
const STEPS: u32 = 5;
/// A sender that is held back, by the path or for want of a processor, does not keep the rate. Once twice the rate has not
/// brought this much more, so often, it is as fast as it gets.
const FASTER: f64 = 1.05;
const HELD_BACK: u32 = 2;
/// A rate that fails is tried again, as the machine may have been busy with something else.
const TRIES: u32 = 2;

/// Packets were sent at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// The rate at which they arrived, in packets a second.
    pub rate: f64,
    /// The share that did not arrive.
    pub lost: f64,
}

/// The highest rate kept without loss. `attempt` is given rates to try; doubles, then bisects. 0 if there is none.
pub fn highest<E>(mut attempt: impl FnMut(f64) -> Result<Trial, E>) -> Result<f64, E> {
    let mut attempt = |rate: f64| -> Result<Option<f64>, E> {
        for _ in 0..TRIES {
            let trial = attempt(rate)?;
            if trial.lost <= LOSSLESS {
                return Ok(Some(trial.rate));
            }
        }
        Ok(None)
    };
    let (mut best, mut rate) = (0.0_f64, START);
    let (mut passed, mut failed, mut held_back) = (None, None, 0);
    while (passed.is_none() || failed.is_none()) && (LOWEST..=HIGHEST).contains(&rate) {
        match attempt(rate)? {
            Some(kept) => {
                held_back = if kept < best * FASTER { held_back + 1 } else { 0 };
                best = best.max(kept);
                if held_back == HELD_BACK {
                    return Ok(best);
                }
                passed = Some(rate);
                rate *= 2.0;
            }
            None => {
                failed = Some(rate);
                rate /= 2.0;
            }
        }
    }
    let (Some(mut passed), Some(mut failed)) = (passed, failed) else { return Ok(best) };
    for _ in 0..STEPS {
        let middle = (passed * failed).sqrt();
        match attempt(middle)? {
            Some(kept) => {
                best = best.max(kept);
                passed = middle;
            }
            None => failed = middle,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A path that loses everything beyond `capacity`.
    fn path(capacity: f64) -> impl Fn(f64) -> Result<Trial, Infallible> {
        move |rate| Ok(Trial { rate, lost: (1.0 - capacity / rate).max(0.0) })
    }

    #[test]
    fn the_rate_is_found_within_three_percent() {
        for capacity in [300.0, 7_999.0, 8_001.0, 123_456.0, 1_500_000.0] {
            let Ok(found) = highest(path(capacity));

            assert!(found <= capacity * 1.002 && found >= capacity * 0.97, "{found} of {capacity}");
        }
    }

    #[test]
    fn a_path_that_always_loses_has_none() {
        let mut tried = 0;
        let Ok(found) = highest(|rate| {
            tried += 1;
            Ok::<_, Infallible>(Trial { rate, lost: 1.0 })
        });

        assert_eq!(found, 0.0);
        assert!(tried < 20);
    }

    #[test]
    fn a_sender_that_is_held_back_has_found_the_rate() {
        let Ok(found) = highest(|rate: f64| Ok::<_, Infallible>(Trial { rate: rate.min(50_000.0), lost: 0.0 }));

        assert_eq!(found, 50_000.0);
    }

    #[test]
    fn one_bad_trial_is_tried_again() {
        let (mut tried, capacity) = (0, 40_000.0);
        let Ok(found) = highest(|rate| {
            tried += 1;
            if tried % 5 == 1 { Ok::<_, Infallible>(Trial { rate, lost: 0.5 }) } else { path(capacity)(rate) }
        });

        assert!(found > capacity * 0.97, "{found}");
    }
}
