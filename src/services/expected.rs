//! Which answers to a health check mean that the upstream is well.

use std::str::FromStr;

/// Status codes and classes; without any, whatever is not an error of the upstream's own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Expected(Vec<Pattern>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pattern {
    Code(u16),
    /// The hundreds.
    Class(u16),
}

/// What is no status.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no status: a code, \"200\", or a class, \"2xx\"")]
pub struct BadStatus(String);

impl Expected {
    /// Reads codes and classes, `["2xx", "404"]`.
    pub fn of(texts: &[String]) -> Result<Expected, BadStatus> {
        texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Expected)
    }

    /// Whether an upstream that answers so is well.
    pub fn takes(&self, status: u16) -> bool {
        if self.0.is_empty() {
            return status < 500;
        }
        self.0.iter().any(|pattern| match pattern {
            Pattern::Code(code) => status == *code,
            Pattern::Class(hundreds) => status / 100 == *hundreds,
        })
    }
}

impl FromStr for Pattern {
    type Err = BadStatus;

    fn from_str(text: &str) -> Result<Pattern, BadStatus> {
        let bad = || BadStatus(text.chars().take(20).collect());
        let (digits, class) = match text.strip_suffix("xx") {
            Some(hundreds) => (hundreds, true),
            None => (text, false),
        };
        let number: u16 = digits.parse().map_err(|_| bad())?;
        match class {
            true if (1..=5).contains(&number) => Ok(Pattern::Class(number)),
            false if (100..=599).contains(&number) => Ok(Pattern::Code(number)),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(texts: &[&str]) -> Result<Expected, BadStatus> {
        Expected::of(&texts.iter().map(|text| text.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn unless_told_otherwise_all_but_errors_of_its_own_are_well() {
        let any = Expected::default();

        assert!([200, 302, 404, 499].iter().all(|status| any.takes(*status)));
        assert!(![500, 503].iter().any(|status| any.takes(*status)));
    }

    #[test]
    fn codes_and_classes_are_taken_and_nothing_else() {
        let some = expected(&["2xx", "404"]).unwrap();

        assert!([200, 204, 404].iter().all(|status| some.takes(*status)));
        assert!(![301, 400, 500].iter().any(|status| some.takes(*status)));
    }

    #[test]
    fn what_is_no_status_is_refused_and_named() {
        for text in ["", "xx", "6xx", "20x", "99", "600", "2XX", "-200", "70000"] {
            assert!(expected(&[text]).unwrap_err().to_string().contains(&format!("{text:?}")), "{text}");
        }
    }
}
