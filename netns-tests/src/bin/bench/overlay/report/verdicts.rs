//! What ours reached of what it should.

use serde_json::{Value, json};

use super::super::{
    Results,
    figures::{TARGETS, Target, figure},
};
use crate::{
    statistics::{Spread, Verdict, ratios},
    table::spread_json,
};

/// Fewer rounds than this are not judged: a single one may have met anything.
const ROUNDS_TO_JUDGE: usize = 5;

/// One target, for one build of ours.
pub struct Judged<'a> {
    target: &'static Target,
    ours: &'a str,
    /// The number, or its ratio to the other's; none if either is missing.
    measured: Option<Spread>,
    /// None if there were too few rounds.
    verdict: Option<Verdict>,
}

/// Every target, for every build of ours.
pub fn all<'a>(results: &'a Results<'_>) -> Vec<Judged<'a>> {
    let builds = results.implementations.iter().filter(|one| one.is_ours());
    let pairs = builds.flat_map(|build| TARGETS.iter().map(move |target| (build, target)));
    pairs
        .map(|(build, target)| {
            let own = results.of(&build.name, target.figure);
            let measured = match target.to {
                Some(other) => ratios(&own, &results.of(other, target.figure)),
                None => own,
            };
            let measured = Spread::of(&measured);
            let enough = results.rounds.len() >= ROUNDS_TO_JUDGE;
            let complete = |spread: &Spread| enough && (spread.rounds >= ROUNDS_TO_JUDGE || target.is_once());
            let verdict = measured.filter(complete).map(|spread| target.judge(&spread));
            Judged { target, ours: &build.name, measured, verdict }
        })
        .collect()
}

/// As a table.
pub fn print(results: &Results<'_>) {
    let judged = all(results);
    if judged.iter().all(|one| one.measured.is_none()) {
        return;
    }
    println!("\n{:<16} {:<46} {:>8} {:>17}  {:<13} verdict", "target of", "", "median", "range", "floor / goal");
    for one in judged {
        let Some(measured) = one.measured else { continue };
        let verdict = one.verdict.map_or("not judged".to_owned(), |verdict| verdict.to_string());
        let range = format!("{:.2}…{:.2}", measured.min, measured.max);
        let aim = one.target.aim.to_string();
        println!("{:<16} {:<46} {:>8.2} {range:>17}  {aim:<13} {verdict}", one.ours, one.what(), measured.median);
    }
    if results.rounds.len() < ROUNDS_TO_JUDGE {
        println!("\nUnder {ROUNDS_TO_JUDGE} rounds nothing is judged: these are figures and no verdicts.");
    }
}

impl Judged<'_> {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "wiremesh": self.ours,
            "figure": self.target.figure,
            "to": self.target.to,
            "aim": self.target.aim.to_string(),
            "measured": self.measured.map(spread_json),
            "verdict": self.verdict.map(|verdict| verdict.to_string()),
        })
    }

    fn what(&self) -> String {
        let title = figure(self.target.figure).map_or(self.target.figure, |figure| figure.title);
        match self.target.to {
            // A ratio has no unit.
            Some(other) => format!("{} ÷ {other}", title.rsplit_once(", ").map_or(title, |(title, _)| title)),
            None => title.to_owned(),
        }
    }
}
