//! Prometheus' text, as far as figures are picked out of it.
//!
//! ```text
//! # HELP …                                   passed over
//! name{label="a \"quoted\" } thing"} 1.5     a sample: name, value
//! name 1.5 1700000000000                     with a time, which is passed over
//! ```

use super::{Reading, requests};

/// Every sample with its name. A line that is none is passed over.
pub fn samples(text: &str) -> impl Iterator<Item = (&str, f64)> {
    // The last line, unless it ends, may be the beginning of a longer number.
    text.split_inclusive('\n').filter_map(|line| sample(line.strip_suffix('\n')?))
}

/// Sums of the samples of some names: one sample for each engine, model or rank. `None` where there is none.
pub fn sums<const N: usize>(text: &str, names: [&str; N]) -> [Option<f64>; N] {
    let mut sums = [None; N];
    for (name, value) in samples(text) {
        if let Some(at) = names.iter().position(|wanted| *wanted == name)
            && value.is_finite()
            && value >= 0.0
        {
            sums[at] = Some(sums[at].unwrap_or(0.0) + value);
        }
    }
    sums
}

/// The largest finite sample of a name that is not below zero.
pub fn largest(text: &str, names: &[&str]) -> Option<f64> {
    samples(text)
        .filter(|(name, value)| names.contains(name) && value.is_finite() && *value >= 0.0)
        .map(|(_, value)| value)
        .reduce(f64::max)
}

/// Requests running and waiting, by the names of two gauges.
pub fn running_and_waiting(text: &str, running: &str, waiting: &str) -> Reading {
    let [running, waiting] = sums(text, [running, waiting]).map(|sum| sum.and_then(requests));
    Reading { running, waiting, ..Reading::default() }
}

fn sample(line: &str) -> Option<(&str, f64)> {
    let line = line.trim();
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let rest = match rest.strip_prefix('{') {
        Some(labels) => &labels[end_of_labels(labels)?..],
        None => rest,
    };
    Some((name, rest.split_ascii_whitespace().next()?.parse().ok()?))
}

/// Behind the brace that ends the labels; one within quotes does not.
fn end_of_labels(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in labels.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels_and_times() {
        let text = "# HELP a b\n# TYPE a gauge\na 1\nb{x=\"1\"} 2.5\n\nc{} 3 1700000000000\nd{le=\"+Inf\"} +Inf\n";

        let read: Vec<_> = samples(text).collect();

        assert_eq!(read, [("a", 1.0), ("b", 2.5), ("c", 3.0), ("d", f64::INFINITY)]);
    }

    #[test]
    fn what_stands_in_quotes_ends_no_labels() {
        let text = "a{model=\"x } 9 \\\" } 9\"} 2\n";

        assert_eq!(samples(text).collect::<Vec<_>>(), [("a", 2.0)]);
    }

    #[test]
    fn lines_that_are_no_samples_are_passed_over() {
        for line in ["", "a", "a{", "a{b=\"}", "a{b=\"c\"}", "a x", "{} 1", "# a 1", "#a 1", "a 1,5"] {
            assert_eq!(samples(&format!("{line}\n")).count(), 0, "{line}");
        }
    }

    #[test]
    fn a_number_that_was_cut_off_is_not_believed() {
        assert_eq!(samples("a 1\nb 12").collect::<Vec<_>>(), [("a", 1.0)]);
    }

    #[test]
    fn samples_of_one_name_add_up_and_nonsense_does_not() {
        let text = "a{e=\"0\"} 1\na{e=\"1\"} 2\na{e=\"2\"} NaN\na{e=\"3\"} -7\na_more 100\n";

        assert_eq!(sums(text, ["a", "b"]), [Some(3.0), None]);
        assert_eq!(largest(text, &["a"]), Some(2.0));
    }
}
