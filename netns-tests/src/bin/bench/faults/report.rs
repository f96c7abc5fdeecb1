//! The matrix, for people and for programs.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{outcome::Outcome, rows::Fault};
use crate::{programs::Missing, routers::WIREMESH};

/// What came of one fault through one router.
pub struct Line {
    fault: Fault,
    name: &'static str,
    outcome: Result<Outcome, String>,
}

impl Line {
    /// Says it while others are still to come.
    pub fn new(fault: Fault, name: &'static str, outcome: anyhow::Result<Outcome>) -> Line {
        let line = Line { fault, name, outcome: outcome.map_err(|error| format!("{error:#}")) };
        eprintln!("{name}: {}: {}", fault.title(), line.saw());
        line
    }

    fn saw(&self) -> String {
        match &self.outcome {
            Ok(outcome) => outcome.saw(),
            Err(why) => format!("could not be shown: {why}"),
        }
    }

    fn executed(&self) -> String {
        self.outcome.as_ref().map(Outcome::executed).unwrap_or_default()
    }

    /// What is asserted of ours, and said of the others.
    fn verdict(&self) -> String {
        let Ok(outcome) = &self.outcome else { return "–".to_owned() };
        let broken = outcome.broken_promises();
        match (broken.is_empty(), self.name == WIREMESH) {
            (true, true) => "met".to_owned(),
            (false, true) => format!("MISSED: {}", broken.join(", ")),
            (true, false) => "–".to_owned(),
            (false, false) => broken.join(", "),
        }
    }
}

/// Everything as one JSON document.
pub fn json(lines: &[Line], missing: &[Missing]) -> Value {
    let lines = lines.iter().map(|line| {
        let outcome = line.outcome.as_ref().map_or_else(|why| json!({ "failed": why }), Outcome::json);
        let fault = line.fault.to_possible_value().map(|value| value.get_name().to_owned());
        json!({ "fault": fault, "router": line.name, "outcome": outcome })
    });
    let missing: Vec<Value> = missing.iter().map(|one| json!({ "name": one.name, "why": one.looked })).collect();
    json!({ "faults": lines.collect::<Vec<_>>(), "missing": missing })
}

/// Everything as a matrix: for each fault, a line for each router.
pub fn print(lines: &[Line], missing: &[Missing]) {
    for fault in Fault::value_variants() {
        let lines: Vec<&Line> = lines.iter().filter(|line| line.fault == *fault).collect();
        if lines.is_empty() {
            continue;
        }
        println!("\n{}", fault.title());
        println!("  {:<14} {:<10} what was seen", "", "executed");
        for line in lines {
            println!("  {:<14} {:<10} {}", line.name, line.executed(), line.saw());
            let verdict = line.verdict();
            if verdict != "–" {
                println!("  {:<14} {:<10} └ {verdict}", "", "");
            }
        }
    }
    for one in missing {
        println!("\n{} NOT SHOWN: {}", one.name, one.looked);
    }
}
