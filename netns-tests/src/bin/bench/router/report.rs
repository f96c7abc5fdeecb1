//! What was measured, as a table for people and as JSON for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Measured, Numbers, Results,
    figures::{FIGURES, TARGETS, Target, To},
};
use crate::{
    routers::{Router, WIREMESH},
    statistics::{PerRound, Spread, Verdict, ratios},
    table::{self, Row, cell, print_aligned, spread_json},
};

/// Fewer rounds than this are not judged: a single one may have met anything.
const ROUNDS_TO_JUDGE: usize = 5;

/// One target and what was reached of it.
struct Judged {
    target: &'static Target,
    measured: Option<Spread>,
    /// None if there were too few rounds.
    verdict: Option<Verdict>,
}

/// One line about what was measured of one of them in a round.
pub fn progress(measured: &Measured) -> String {
    let shown = ["p50_1", "rate_1", "rate_32", "rate_256", "cpu_32", "resident_256", "event", "resident_streams"];
    let shown = shown.iter().filter_map(|key| Some(format!("{key} {:.1}", measured.numbers.get(*key)?)));
    shown.chain(measured.failed.iter().map(|why| format!("failed: {why}"))).collect::<Vec<_>>().join(" · ")
}

/// Everything as one JSON document.
pub fn json(results: &Results<'_>) -> Value {
    let measured: Vec<Value> =
        results.measured.iter().map(|(name, version)| json!({ "name": name, "version": version })).collect();
    let missing: Vec<Value> =
        results.missing.iter().map(|one| json!({ "name": one.name, "why": one.looked })).collect();
    let figures: Vec<Value> = FIGURES
        .iter()
        .map(|figure| {
            let names = results.measured.iter().map(|(name, _)| name);
            let spreads: BTreeMap<&String, Value> = names
                .filter_map(|name| Some((name, spread_json(Spread::of(&results.of(name, figure.key))?))))
                .collect();
            json!({ "figure": figure.key, "title": figure.title, "routers": spreads })
        })
        .collect();
    let targets: Vec<Value> = judged(results)
        .iter()
        .map(|one| {
            json!({
                "figure": one.target.figure,
                "to": one.target.to.name(),
                "aim": one.target.aim.to_string(),
                "measured": one.measured.map(spread_json),
                "verdict": one.verdict.map(|verdict| verdict.to_string()),
            })
        })
        .collect();
    let rounds = results.orders.iter().zip(&results.rounds).map(|(order, round)| {
        let measured: BTreeMap<&String, &Numbers> = round.iter().map(|(name, one)| (name, &one.numbers)).collect();
        json!({ "order": order, "measured": measured })
    });
    json!({
        "machine": machine(results),
        "routers": measured,
        "missing": missing,
        "figures": figures,
        "targets": targets,
        "failures": failures(results),
        "rounds": rounds.collect::<Vec<_>>(),
    })
}

/// Everything as tables.
pub fn table(results: &Results<'_>) {
    println!(
        "\n{}",
        machine(results).iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(" · ")
    );
    for (name, version) in &results.measured {
        println!("  {name:<18} {version}");
    }
    for one in &results.missing {
        println!("  {:<18} NOT MEASURED: {}", one.name, one.looked);
    }
    println!();
    let names = results.measured.iter().map(|(name, _)| name.clone()).collect();
    print_aligned(&[vec![("median (range under it)".to_owned(), names)], rows(results)].concat());
    failures(results).iter().for_each(|failure| println!("failed: {failure}"));
    print_verdicts(results);
}

impl Results<'_> {
    /// A figure of one of them, by rounds.
    fn of(&self, name: &str, key: &str) -> PerRound {
        let number = |round: usize| self.rounds.get(round)?.get(name)?.numbers.get(key).copied();
        (0..self.rounds.len()).filter_map(|round| Some((round, number(round)?))).collect()
    }

    /// The best that `pip` installs, by rounds.
    fn best_of_python(&self, key: &str) -> PerRound {
        let mut best = PerRound::new();
        for name in Router::names().filter(|name| Router::is_packaged_for_python(name)) {
            for (round, number) in self.of(name, key) {
                let so_far = best.entry(round).or_insert(number);
                *so_far = so_far.max(number);
            }
        }
        best
    }
}

impl To {
    fn name(self) -> Option<&'static str> {
        match self {
            To::Nothing => None,
            To::Router(name) => Some(name),
            To::BestOfPython => Some("best of pip"),
        }
    }
}

fn judged(results: &Results<'_>) -> Vec<Judged> {
    let judge = |target: &'static Target| {
        let own = results.of(WIREMESH, target.figure);
        let measured = match target.to {
            To::Nothing => own,
            To::Router(other) => ratios(&own, &results.of(other, target.figure)),
            To::BestOfPython => ratios(&own, &results.best_of_python(target.figure)),
        };
        let measured = Spread::of(&measured);
        let enough = |spread: &Spread| spread.rounds >= ROUNDS_TO_JUDGE || target.is_once();
        let verdict = measured.filter(|spread| results.rounds.len() >= ROUNDS_TO_JUDGE && enough(spread));
        Judged { target, measured, verdict: verdict.map(|spread| target.aim.judge(spread.median)) }
    };
    TARGETS.iter().map(judge).collect()
}

fn print_verdicts(results: &Results<'_>) {
    let judged = judged(results);
    if judged.iter().all(|one| one.measured.is_none()) {
        return;
    }
    println!("\n{:<52} {:>8} {:>17}  {:<8} verdict", "target of wiremesh, the local hop", "median", "range", "aim");
    for one in judged {
        let Some(measured) = one.measured else { continue };
        let verdict =
            one.verdict.map_or("not judged", |verdict| if verdict == Verdict::Goal { "met" } else { "MISSED" });
        let range = format!("{:.2}…{:.2}", measured.min, measured.max);
        let what = match one.target.to.name() {
            Some(other) => format!("{} ÷ {other}", one.target.figure),
            None => one.target.figure.to_owned(),
        };
        println!("{what:<52} {:>8.2} {range:>17}  {:<8} {verdict}", measured.median, one.target.aim.to_string());
    }
    if results.rounds.len() < ROUNDS_TO_JUDGE {
        println!("\nUnder {ROUNDS_TO_JUDGE} rounds nothing is judged: these are figures and no verdicts.");
    }
}

fn rows(results: &Results<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for figure in FIGURES {
        let spreads: Vec<Option<Spread>> =
            results.measured.iter().map(|(name, _)| Spread::of(&results.of(name, figure.key))).collect();
        if spreads.iter().all(Option::is_none) {
            continue;
        }
        let cells = |values: fn(Spread) -> Vec<f64>| {
            spreads.iter().map(|spread| cell(figure.digits, *spread, values)).collect()
        };
        let better = if figure.higher { '↑' } else { '↓' };
        rows.push((format!("{better} {}", figure.title), cells(|spread| vec![spread.median])));
        if spreads.iter().flatten().any(|spread| spread.rounds > 1) {
            rows.push((String::new(), cells(|spread| vec![spread.min, spread.max])));
        }
    }
    rows
}

fn failures(results: &Results<'_>) -> Vec<String> {
    let rounds = results.rounds.iter().enumerate();
    let all = rounds.flat_map(|(number, round)| round.iter().map(move |(name, one)| (number, name, one)));
    all.flat_map(|(number, name, one)| one.failed.iter().map(move |why| format!("round {}, {name}, {why}", number + 1)))
        .collect()
}

fn machine(results: &Results<'_>) -> BTreeMap<&'static str, String> {
    let mut machine = table::machine(&results.load_before);
    machine.extend([
        ("rounds", format!("{} of {} s a measure", results.rounds.len(), results.options.seconds)),
        ("seed", results.seed.to_string()),
    ]);
    machine
}
