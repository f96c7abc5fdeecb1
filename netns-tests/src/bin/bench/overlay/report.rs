//! What was measured, as a table for people and as JSON for programs.

mod verdicts;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use self::verdicts::Judged;
use super::{
    Results, Round,
    figures::{Better, FIGURES, Measure},
    measures::Numbers,
};
use crate::{
    statistics::{PerRound, Spread},
    table::{self, Row, cell, print_aligned, spread_json},
};

/// One line about a measure that was taken.
pub fn progress(measure: Measure, taken: &Result<Numbers, String>) -> String {
    let name = measure.name();
    match taken {
        Ok(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(|(key, number)| format!("{key} {number:.3}")).collect();
            format!("{name}: {}", numbers.join(" · "))
        }
        Err(why) => format!("{name}: failed: {why}"),
    }
}

/// Everything as one JSON document.
pub fn json(results: &Results<'_>) -> Value {
    let implementations: Vec<Value> = results
        .implementations
        .iter()
        .map(|one| {
            json!({
                "name": one.name,
                "version": one.version,
                "program": one.program,
                "mtu": results.mtus.get(&one.name),
            })
        })
        .collect();
    let missing: Vec<Value> =
        results.missing.iter().map(|one| json!({ "name": one.name, "why": one.looked })).collect();
    let figures: Vec<Value> = FIGURES
        .iter()
        .map(|figure| {
            let spreads: BTreeMap<&String, Value> = results
                .implementations
                .iter()
                .filter_map(|one| Some((&one.name, spread_json(Spread::of(&results.of(&one.name, figure.key))?))))
                .collect();
            json!({ "figure": figure.key, "title": figure.title, "implementations": spreads })
        })
        .collect();
    let judged: Vec<Value> = verdicts::all(results).iter().map(Judged::json).collect();
    json!({
        "machine": machine(results),
        "implementations": implementations,
        "missing": missing,
        "figures": figures,
        "targets": judged,
        "failures": failures(results),
        "rounds": results.orders.iter().zip(&results.rounds).map(round_json).collect::<Vec<_>>(),
    })
}

/// Everything as tables.
pub fn table(results: &Results<'_>) {
    let machine = machine(results);
    println!("\n{}", machine.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(" · "));
    for one in &results.implementations {
        let program = one.program.as_ref().map(|program| format!(" · {}", program.display())).unwrap_or_default();
        let mtu = results.mtus.get(&one.name).map(|mtu| format!(" · MTU {mtu}")).unwrap_or_default();
        println!("  {:<14} {}{mtu}{program}", one.name, one.version);
    }
    for one in &results.missing {
        println!("  {:<14} NOT MEASURED: {}", one.name, one.looked);
    }

    println!();
    let names = results.implementations.iter().map(|one| one.name.clone()).collect();
    print_aligned(&[vec![(String::from("median (range under it)"), names)], rows(results)].concat());

    let failures = failures(results);
    if !failures.is_empty() {
        println!("\nfailed:");
        failures.iter().for_each(|failure| println!("  {failure}"));
    }
    verdicts::print(results);
}

impl Results<'_> {
    /// A figure of an implementation, by rounds.
    fn of(&self, name: &str, key: &str) -> PerRound {
        let number = |round: usize| {
            let measures = self.rounds.get(round)?.get(name)?;
            measures.values().flatten().find_map(|numbers| numbers.get(key).copied())
        };
        (0..self.rounds.len()).filter_map(|round| Some((round, number(round)?))).collect()
    }
}

/// Every figure that anybody has: medians, and under them what rounds made of it.
fn rows(results: &Results<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for figure in FIGURES {
        let spreads: Vec<Option<Spread>> =
            results.implementations.iter().map(|one| Spread::of(&results.of(&one.name, figure.key))).collect();
        if spreads.iter().all(Option::is_none) {
            continue;
        }
        let better = match figure.better {
            Better::Higher => '↑',
            Better::Lower => '↓',
        };
        let cells = |values: fn(Spread) -> Vec<f64>| {
            spreads.iter().map(|spread| cell(figure.digits, *spread, values)).collect()
        };
        rows.push((format!("{better} {}", figure.title), cells(|spread| vec![spread.median])));
        if spreads.iter().flatten().any(|spread| spread.rounds > 1) {
            rows.push((String::new(), cells(|spread| vec![spread.min, spread.max])));
        }
    }
    rows
}

fn round_json((order, round): (&Vec<String>, &Round)) -> Value {
    let taken = |taken: &Result<Numbers, String>| match taken {
        Ok(numbers) => json!(numbers),
        Err(why) => json!({ "failed": why }),
    };
    let measured: BTreeMap<&String, BTreeMap<String, Value>> = round
        .iter()
        .map(|(name, measures)| (name, measures.iter().map(|(measure, one)| (measure.name(), taken(one))).collect()))
        .collect();
    json!({ "order": order, "measured": measured })
}

/// One line for each reason, with everything that it kept from being measured.
fn failures(results: &Results<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, round) in results.rounds.iter().enumerate() {
        for (name, measures) in round {
            let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (measure, taken) in measures {
                if let Err(why) = taken {
                    reasons.entry(why.trim_end()).or_default().push(measure.name());
                }
            }
            let line = |(why, measures): (&str, Vec<String>)| {
                format!("round {}, {name}, {}: {why}", number + 1, measures.join(" "))
            };
            lines.extend(reasons.into_iter().map(line));
        }
    }
    lines
}

/// What one must know about where it was measured.
fn machine(results: &Results<'_>) -> BTreeMap<&'static str, String> {
    let segmentation = if results.cable.udp_segmentation { "on" } else { "off" };
    let mut machine = table::machine(&results.load_before);
    machine.extend([
        ("underlay", format!("veth, MTU {}, tx-udp-segmentation {segmentation}", results.cable.mtu)),
        ("rounds", format!("{} of {} s a measure", results.rounds.len(), results.options.seconds)),
        ("seed", results.seed.to_string()),
    ]);
    machine
}
