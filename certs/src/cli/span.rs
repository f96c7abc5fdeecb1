//! Durations and times as people write and read them.

use std::{fmt::Write as _, str::FromStr, time::Duration};

use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

use crate::UnixTime;

/// Units from the largest down, in seconds. A year has 365 days.
const UNITS: [(&str, u64); 5] = [("y", 365 * 86_400), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A duration from an option: `7d`, `36h`, `1y6d`. A bare number has no unit and is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Span, &'static str> {
        const EXPECTED: &str = "expected a duration such as 7d, 36h, 30m, 45s, 10y or 1d12h";
        let mut rest = text;
        let mut total = 0u64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or(EXPECTED)?;
            let (number, tail) = rest.split_at(digits);
            let (unit, seconds) = UNITS.into_iter().find(|(unit, _)| tail.starts_with(unit)).ok_or(EXPECTED)?;
            let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
            total = part.and_then(|part| total.checked_add(part)).ok_or("a duration beyond all time")?;
            rest = &tail[unit.len()..];
        }
        match total {
            0 => Err(EXPECTED),
            seconds => Ok(Span(Duration::from_secs(seconds))),
        }
    }
}

/// The two largest units of it: `3 d 4 h`.
pub fn spell(duration: Duration) -> String {
    let whole = duration.as_secs();
    let mut rest = whole;
    let mut text = String::new();
    for (unit, length) in UNITS.into_iter().skip_while(|(_, length)| *length > whole.max(1)).take(2) {
        let number = rest / length;
        rest %= length;
        if number > 0 || text.is_empty() {
            let space = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{space}{number} {unit}");
        }
    }
    text
}

/// A moment from an option: RFC 3339, a date (its first second, UTC), or `@` and seconds since 1970.
pub fn moment(text: &str) -> Result<UnixTime, &'static str> {
    const EXPECTED: &str = "expected a time such as 2026-03-01T12:00:00Z, 2026-03-01 or @1772366400";
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().map(UnixTime).map_err(|_| EXPECTED);
    }
    let date =
        || Date::parse(text, format_description!("[year]-[month]-[day]")).map(|date| date.midnight().assume_utc());
    let found = OffsetDateTime::parse(text, &Rfc3339).or_else(|_| date()).map_err(|_| EXPECTED)?;
    u64::try_from(found.unix_timestamp()).map(UnixTime).map_err(|_| "a time before 1970")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());

        assert_eq!(seconds("45s"), Ok(45));
        assert_eq!(seconds("30m"), Ok(1800));
        assert_eq!(seconds("8760h0m0s"), Ok(365 * 86_400));
        assert_eq!(seconds("1d12h"), Ok(129_600));
        assert_eq!(seconds("10y"), Ok(3650 * 86_400));
        for bad in ["", "7", "d", "7 d", "-7d", "7w", "1.5d", "0s", "7dd", "99999999999999y", "99999999999999999999s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_duration_is_spelled_by_its_two_largest_units() {
        let spelled = |seconds| spell(Duration::from_secs(seconds));

        assert_eq!(spelled(0), "0 s");
        assert_eq!(spelled(59), "59 s");
        assert_eq!(spelled(3 * 86_400 + 4 * 3600 + 59), "3 d 4 h");
        assert_eq!(spelled(3 * 86_400 + 59), "3 d");
        assert_eq!(spelled(10 * 365 * 86_400), "10 y");
    }

    #[test]
    fn times_are_read_in_three_forms() {
        assert_eq!(moment("2027-01-15T08:00:00Z"), Ok(UnixTime(1_800_000_000)));
        assert_eq!(moment("2027-01-15T09:00:00+01:00"), Ok(UnixTime(1_800_000_000)));
        assert_eq!(moment("2027-01-15"), Ok(UnixTime(1_799_971_200)));
        assert_eq!(moment("@1800000000"), Ok(UnixTime(1_800_000_000)));
        for bad in ["", "tomorrow", "@", "@-1", "1969-12-31", "2027-02-30", "2027-01-15 08:00"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_spelled_reads_as_no_more_than_it_was(seconds in 1u64..1 << 40) {
            let read: Span = spell(Duration::from_secs(seconds)).replace(' ', "").parse().unwrap();
            prop_assert!(read.0.as_secs() <= seconds);
            prop_assert!(read.0.as_secs() * 2 > seconds);
        }

        #[test]
        fn reading_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Span>();
            let _ = moment(&text);
        }
    }
}
