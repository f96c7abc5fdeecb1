//! Durations as people write them: `90s`, `15m`, `24h`, `7d`, `1y`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const UNITS: [(char, u64); 5] = [('y', 365 * 86_400), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// A duration in whole seconds; a year has 365 days. Parts add up: `1h30m`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Span(pub Duration);

/// Not a duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a duration; write a number and one of s, m, h, d, y: 90s, 15m, 24h, 7d, 1y")]
pub struct BadSpan(String);

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Span, BadSpan> {
        let bad = || BadSpan(text.chars().take(40).collect());
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..end].parse().map_err(|_| bad())?;
            let unit = rest[end..].chars().next().ok_or_else(bad)?;
            let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
            total = number.checked_mul(*seconds).and_then(|part| total.checked_add(part)).ok_or_else(bad)?;
            rest = &rest[end + unit.len_utf8()..];
        }
        Ok(Span(Duration::from_secs(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_secs();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, seconds) in UNITS {
            if rest >= seconds {
                write!(f, "{}{unit}", rest / seconds)?;
                rest %= seconds;
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Reads a duration's text. A bare number has no unit.
struct Text;

impl de::Visitor<'_> for Text {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration in quotes, with its unit: \"90s\", \"15m\", \"24h\", \"7d\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
        text.parse().map_err(E::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800), ("1y", 31_536_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!("1h30m".parse(), Ok(Span(Duration::from_secs(5400))));
        for bad in ["", "7", "d", "7 d", "-1d", "7w", "99999999999999999999s", "999999999999999999y", "1h30"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_number_alone_is_told_what_is_missing() {
        let read = |text: &str| toml::from_str::<std::collections::BTreeMap<String, Span>>(text);

        assert_eq!(read("a = \"30s\"").unwrap()["a"], Span(Duration::from_secs(30)));
        let error = read("a = 30").unwrap_err().to_string();
        assert!(error.contains("integer `30`, expected a duration in quotes"), "{error}");
    }

    #[test]
    fn what_is_shown_reads_back() {
        for seconds in [0, 1, 59, 61, 86_399, 31_536_001] {
            let span = Span(Duration::from_secs(seconds));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
