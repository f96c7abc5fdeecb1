//! The arithmetic: percentiles of a measurement, spreads over rounds, ratios within a round, and verdicts.

use std::{collections::BTreeMap, fmt};

/// One number per round; a round in which the measurement failed has none.
pub type PerRound = BTreeMap<usize, f64>;

/// What several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How many rounds there were.
    pub rounds: usize,
}

/// What is aimed at: at least, or at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Not less than the floor; the goal is more.
    AtLeast {
        /// What must be reached.
        floor: f64,
        /// What should be reached.
        goal: f64,
    },
    /// Not more than the floor; the goal is less.
    AtMost {
        /// What must be reached.
        floor: f64,
        /// What should be reached.
        goal: f64,
    },
}

/// What became of an aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The goal is met.
    Goal,
    /// The floor is met and the goal is not.
    Floor,
    /// Not even the floor is met.
    Missed,
}

impl Spread {
    /// Over the rounds that gave a number; none if no round did.
    pub fn of(rounds: &PerRound) -> Option<Spread> {
        let values: Vec<f64> = rounds.values().copied().collect();
        Some(Spread {
            median: percentile(&values, 50.0)?,
            min: percentile(&values, 0.0)?,
            max: percentile(&values, 100.0)?,
            rounds: values.len(),
        })
    }
}

impl Aim {
    /// How a measured number stands to it.
    pub fn judge(self, measured: f64) -> Verdict {
        let (goal, floor) = match self {
            Aim::AtLeast { floor, goal } => (measured >= goal, measured >= floor),
            Aim::AtMost { floor, goal } => (measured <= goal, measured <= floor),
        };
        match (goal, floor) {
            (true, _) => Verdict::Goal,
            (false, true) => Verdict::Floor,
            (false, false) => Verdict::Missed,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, floor, goal) = match self {
            Aim::AtLeast { floor, goal } => ("≥", floor, goal),
            Aim::AtMost { floor, goal } => ("≤", floor, goal),
        };
        if floor == goal { write!(f, "{sign} {floor}") } else { write!(f, "{sign} {floor} / {goal}") }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Goal => "met goal",
            Verdict::Floor => "met floor",
            Verdict::Missed => "MISSED",
        })
    }
}

/// Each round's number divided by the other's of the same round: what the machine did meanwhile met both alike.
pub fn ratios(measured: &PerRound, reference: &PerRound) -> PerRound {
    let pairs = measured.iter().filter_map(|(round, value)| Some((*round, value / reference.get(round)?)));
    pairs.filter(|(_, ratio)| ratio.is_finite()).collect()
}

/// The value that so many percent are below; between two values for the median of an even number. None of none.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = sorted.len().checked_sub(1)? as f64 * percent / 100.0;
    let (below, above) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> PerRound {
        values.iter().copied().enumerate().collect()
    }

    #[test]
    fn a_percentile_is_found_in_any_order() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];

        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&values, 50.0), Some(3.0));
        assert_eq!(percentile(&values, 100.0), Some(5.0));
        assert_eq!(percentile(&values[..4], 50.0), Some(3.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(percentile(&[1.0, 2.0, 4.0, 8.0], 50.0), Some(3.0));
    }

    #[test]
    fn ratios_are_within_a_round() {
        let measured = rounds(&[2.0, 40.0, 6.0]);
        let reference = rounds(&[1.0, 10.0, 2.0]);

        let spread = Spread::of(&ratios(&measured, &reference)).unwrap();

        assert_eq!((spread.median, spread.min, spread.max, spread.rounds), (3.0, 2.0, 4.0, 3));
    }

    #[test]
    fn a_round_that_one_of_the_two_lacks_has_no_ratio() {
        let measured: PerRound = [(0, 2.0), (2, 6.0)].into();
        let reference: PerRound = [(0, 1.0), (1, 1.0), (3, 0.0)].into();

        assert_eq!(ratios(&measured, &reference), [(0, 2.0)].into());
        assert_eq!(ratios(&rounds(&[1.0]), &rounds(&[0.0])), PerRound::new());
        assert_eq!(Spread::of(&PerRound::new()), None);
    }

    #[test]
    fn an_aim_is_met_at_its_bound() {
        let more = Aim::AtLeast { floor: 1.5, goal: 2.2 };
        let less = Aim::AtMost { floor: 0.6, goal: 0.4 };

        assert_eq!(
            [1.4, 1.5, 2.2].map(|measured| more.judge(measured)),
            [Verdict::Missed, Verdict::Floor, Verdict::Goal]
        );
        assert_eq!(
            [0.7, 0.6, 0.4].map(|measured| less.judge(measured)),
            [Verdict::Missed, Verdict::Floor, Verdict::Goal]
        );
    }
}
