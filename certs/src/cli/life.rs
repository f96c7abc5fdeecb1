//! How much of a certificate's life is gone, and when it wants to be renewed.

use std::time::Duration;

use super::span::{Span, spell};
use crate::UnixTime;

/// Agents renew from half of a certificate's life.
const USUAL_PERCENT: u8 = 50;
/// An authority lives for years, and its successor is made by hand.
const USUAL_PERCENT_OF_AUTHORITY: u8 = 80;

/// From when to when something is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Life {
    /// Its first second.
    pub from: UnixTime,
    /// The first second after it.
    pub until: UnixTime,
}

/// Whose life it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Of {
    /// A node or the coordinator.
    Member,
    /// Whoever signs for them.
    Authority,
}

/// What a time means to a [`Life`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// It lies ahead.
    NotYet,
    /// It is on.
    Valid,
    /// It is over.
    Expired,
}

impl Phase {
    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::NotYet => "not_yet_valid",
            Phase::Valid => "valid",
            Phase::Expired => "expired",
        }
    }
}

impl Life {
    /// What `now` means to it.
    pub fn phase(self, now: UnixTime) -> Phase {
        if now < self.from {
            Phase::NotYet
        } else if now >= self.until {
            Phase::Expired
        } else {
            Phase::Valid
        }
    }

    /// How much of it is used, rounded down.
    pub fn used_percent(self, now: UnixTime) -> u64 {
        let used = u128::from(now.saturating_since(self.from).as_secs());
        (used * 100 / u128::from(self.length())).min(100) as u64
    }

    /// For programs: negative once it is over.
    pub fn expires_in_secs(self, now: UnixTime) -> i64 {
        i64::try_from(i128::from(self.until.0) - i128::from(now.0)).unwrap_or(i64::MAX)
    }

    /// For people: `expires in 3 d 4 h`.
    pub fn text(self, now: UnixTime) -> String {
        match self.phase(now) {
            Phase::NotYet => format!("valid in {}", spell(self.from.saturating_since(now))),
            Phase::Valid => format!("expires in {}", spell(self.until.saturating_since(now))),
            Phase::Expired => format!("expired {} ago", spell(now.saturating_since(self.until))),
        }
    }

    fn length(self) -> u64 {
        self.until.saturating_since(self.from).as_secs().max(1)
    }
}

/// When a certificate wants to be renewed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Due {
    /// Once this much of its life is used [default: 50, for an authority 80, unless --within is given]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    at_percent: Option<u8>,
    /// Once no more than this is left of it: s, m, h, d (days), y (365 days)
    #[arg(long, value_name = "DURATION")]
    within: Option<Span>,
}

/// Why a certificate wants to be renewed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// It is over.
    Expired,
    /// More of it is used than this.
    Used(u8),
    /// Less of it is left than this.
    EndsWithin(Duration),
}

impl Why {
    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Why::Expired => "expired",
            Why::Used(_) => "used",
            Why::EndsWithin(_) => "ends_soon",
        }
    }
}

impl Due {
    /// Whether and why it wants to be renewed at `now`. What is not valid yet does not.
    pub fn why(self, of: Of, life: Life, now: UnixTime) -> Option<Why> {
        if now >= life.until {
            return Some(Why::Expired);
        }
        let used = self.percent(of).filter(|percent| now >= after(life, *percent)).map(Why::Used);
        let ends =
            self.within.filter(|within| now >= life.until.minus(within.0)).map(|within| Why::EndsWithin(within.0));
        used.or(ends).filter(|_| now >= life.from)
    }

    /// From when on it wants to be renewed.
    pub fn at(self, of: Of, life: Life) -> UnixTime {
        let used = self.percent(of).map(|percent| after(life, percent));
        let ends = self.within.map(|within| life.until.minus(within.0));
        used.into_iter().chain(ends).chain([life.until]).min().unwrap_or(life.until).max(life.from)
    }

    fn percent(self, of: Of) -> Option<u8> {
        let usual = match of {
            Of::Member => USUAL_PERCENT,
            Of::Authority => USUAL_PERCENT_OF_AUTHORITY,
        };
        self.at_percent.or(self.within.is_none().then_some(usual))
    }
}

/// The first second at which so much of it is used.
fn after(life: Life, percent: u8) -> UnixTime {
    let used = (u128::from(life.length()) * u128::from(percent)).div_ceil(100);
    life.from.plus(Duration::from_secs(u64::try_from(used).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: Life = Life { from: UnixTime(1_000_000), until: UnixTime(1_001_000) };

    fn due(at_percent: Option<u8>, within: Option<u64>) -> Due {
        Due { at_percent, within: within.map(|seconds| Span(Duration::from_secs(seconds))) }
    }

    #[test]
    fn renewal_is_due_from_half_of_life_if_nobody_says_otherwise() {
        let why = |of, now| due(None, None).why(of, LIFE, UnixTime(now));

        assert_eq!(why(Of::Member, 1_000_499), None);
        assert_eq!(why(Of::Member, 1_000_500), Some(Why::Used(50)));
        assert_eq!(due(None, None).at(Of::Member, LIFE), UnixTime(1_000_500));
        assert_eq!(why(Of::Authority, 1_000_799), None);
        assert_eq!(why(Of::Authority, 1_000_800), Some(Why::Used(80)));
        assert_eq!(why(Of::Member, 1_001_000), Some(Why::Expired));
        assert_eq!(why(Of::Member, 0), None);
    }

    #[test]
    fn of_two_limits_the_first_reached_counts() {
        let why = |at_percent, within, now| due(at_percent, within).why(Of::Member, LIFE, UnixTime(now));
        let soon = Why::EndsWithin(Duration::from_secs(200));

        assert_eq!(why(Some(90), Some(200), 1_000_799), None);
        assert_eq!(why(Some(90), Some(200), 1_000_800), Some(soon));
        assert_eq!(why(Some(70), Some(200), 1_000_700), Some(Why::Used(70)));
        assert_eq!(why(None, Some(200), 1_000_799), None, "half of life is not asked for");
    }

    proptest! {
        #[test]
        fn it_is_due_from_the_time_that_is_named_on(
            from in 0u64..1 << 40, length in 1u64..1 << 40, percent in 0u8..=100, within in 1u64..1 << 40, now in 0u64..1 << 42,
        ) {
            let life = Life { from: UnixTime(from), until: UnixTime(from + length) };
            let due = due(Some(percent), Some(within));

            prop_assert_eq!(due.why(Of::Member, life, UnixTime(now)).is_some(), UnixTime(now) >= due.at(Of::Member, life));
        }

        #[test]
        fn no_life_makes_it_panic(from: u64, until: u64, percent in 0u8..=100, within: u64, now: u64) {
            let life = Life { from: UnixTime(from), until: UnixTime(until) };
            let due = due(Some(percent), Some(within));

            let _ = (due.why(Of::Authority, life, UnixTime(now)), due.at(Of::Member, life), life.text(UnixTime(now)));
            prop_assert!(life.used_percent(UnixTime(now)) <= 100);
            let _ = life.expires_in_secs(UnixTime(now));
        }
    }
}
