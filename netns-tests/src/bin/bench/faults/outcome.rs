//! What came of a fault, in words and as a verdict.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::client::Seen;

/// The upstream is told that its client left within this.
const TOLD_WITHIN: Duration = Duration::from_millis(200);
/// Memory that grows by no more than this is flat: what is on its way has to be somewhere.
const FLAT_MB: f64 = 16.0;

/// What was seen of one fault through one router.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What clients saw, and how often.
    pub seen: BTreeMap<Seen, usize>,
    /// How often each request was executed.
    pub executions: Vec<u64>,
    /// A worker that crashed may not have begun.
    pub at_most_once: bool,
    /// Requests that were not answered, and cannot be excused.
    pub unanswered: Option<usize>,
    /// By how much the memory of what is between grew.
    pub memory_mb: Option<f64>,
    /// The longest time until the upstream knew that its client had left. Within: none if it never did.
    pub told: Option<Option<Duration>>,
    /// Broken streams that a client must take for whole ones.
    pub clean_ends: Option<usize>,
    /// What else is worth a word.
    pub remarks: Vec<String>,
}

impl Outcome {
    /// Of what clients saw.
    pub fn of(seen: impl Iterator<Item = Seen>) -> Outcome {
        let mut outcome = Outcome::default();
        for seen in seen {
            *outcome.seen.entry(seen).or_default() += 1;
        }
        outcome
    }

    /// What a good router would not have let happen.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let most = self.executions.iter().max().copied().unwrap_or_default();
        let least = self.executions.iter().min().copied().unwrap_or_default();
        if most > 1 {
            broken.push(format!("executed up to {most} times"));
        }
        // A request that was refused everywhere was not executed, and its client knows it.
        if least == 0 && !self.at_most_once && self.unanswered.is_none() {
            broken.push("not executed".to_owned());
        }
        if let Some(unanswered @ 1..) = self.unanswered {
            broken.push(format!("{unanswered} not answered"));
        }
        if self.memory_mb.is_some_and(|grown| grown > FLAT_MB) {
            broken.push(format!("memory grew by more than {FLAT_MB} MB"));
        }
        if self.told.is_some_and(|told| told.is_none_or(|took| took > TOLD_WITHIN)) {
            broken.push(format!("the upstream was not told within {} ms", TOLD_WITHIN.as_millis()));
        }
        if let Some(clean @ 1..) = self.clean_ends {
            broken.push(format!("{clean} broken streams ended cleanly"));
        }
        broken
    }

    /// What the client saw.
    pub fn saw(&self) -> String {
        let seen = self.seen.iter().map(|(seen, times)| format!("{} ×{times}", seen.name()));
        let facts = [
            self.memory_mb.map(|grown| format!("memory +{grown:.1} MB")),
            self.told.map(|told| match told {
                Some(took) => format!("upstream told after {:.0} ms", took.as_secs_f64() * 1000.0),
                None => "upstream never told".to_owned(),
            }),
            self.clean_ends.map(|clean| format!("clean end: {}", if clean > 0 { "yes" } else { "no" })),
        ];
        seen.chain(facts.into_iter().flatten()).chain(self.remarks.iter().cloned()).collect::<Vec<_>>().join(" · ")
    }

    /// How often requests were executed.
    pub fn executed(&self) -> String {
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        for executed in &self.executions {
            *times.entry(*executed).or_default() += 1;
        }
        match times.len() {
            0 | 1 => times.keys().map(u64::to_string).collect(),
            _ => times
                .iter()
                .map(|(executed, requests)| format!("{executed} (×{requests})"))
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let seen: BTreeMap<String, usize> = self.seen.iter().map(|(seen, times)| (seen.name(), *times)).collect();
        json!({
            "seen": seen,
            "executions": self.executions,
            "unanswered": self.unanswered,
            "memory_mb": self.memory_mb,
            "told_ms": self.told.map(|told| told.map(|took| took.as_secs_f64() * 1000.0)),
            "clean_ends": self.clean_ends,
            "remarks": self.remarks,
            "broken_promises": self.broken_promises(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_executed_twice_or_never_is_a_broken_promise() {
        let outcome = |executions: &[u64]| Outcome { executions: executions.to_vec(), ..Outcome::default() };

        assert_eq!(outcome(&[1, 1]).broken_promises(), [""; 0]);
        assert_eq!(outcome(&[1, 2]).broken_promises(), ["executed up to 2 times"]);
        assert_eq!(outcome(&[1, 0]).broken_promises(), ["not executed"]);
        assert_eq!(Outcome { at_most_once: true, ..outcome(&[0]) }.broken_promises(), [""; 0]);
    }

    #[test]
    fn an_upstream_that_is_never_told_was_not_told_in_time() {
        let told = |told| Outcome { executions: vec![1], told: Some(told), ..Outcome::default() };

        assert_eq!(told(Some(Duration::from_millis(200))).broken_promises(), [""; 0]);
        assert_eq!(told(Some(Duration::from_millis(201))).broken_promises().len(), 1);
        assert_eq!(told(None).broken_promises().len(), 1);
    }
}
