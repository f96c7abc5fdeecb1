//! Tables for people, and what every one of them says about the machine.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use crate::statistics::Spread;

/// What a row of the table begins with.
const TITLE_COLUMNS: usize = 33;
/// Between the columns of two implementations.
const GAP: usize = 2;

/// What a line begins with, and a cell for each column.
pub type Row = (String, Vec<String>);

/// The machine's load averages.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// What one must know about where it was measured, given the load before.
pub fn machine(load_before: &str) -> BTreeMap<&'static str, String> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    BTreeMap::from([
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("processor", format!("{cores} × {}", model.trim_start_matches([' ', '\t', ':']))),
        ("load before and after", format!("{load_before} and {}", load())),
    ])
}

/// Prints rows with their columns under each other.
pub fn print_aligned(rows: &[Row]) {
    let length = |text: &String| text.chars().count();
    let columns = rows.iter().map(|(_, cells)| cells.len()).max().unwrap_or_default();
    let widest = |at: usize| rows.iter().filter_map(|(_, cells)| cells.get(at)).map(length).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(|at| widest(at) + GAP).collect();
    for (title, cells) in rows {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        println!("{title:<TITLE_COLUMNS$}{}", cells.collect::<String>().trim_end());
    }
}

/// Some of a spread's values, with so many digits.
pub fn cell(digits: usize, spread: Option<Spread>, values: fn(Spread) -> Vec<f64>) -> String {
    let Some(spread) = spread else { return "–".to_owned() };
    // Thousands need no digits after the point.
    let digits = |value: f64| if value < 1000.0 { digits } else { 0 };
    let values: Vec<String> = values(spread).iter().map(|value| format!("{value:.*}", digits(*value))).collect();
    values.join("…")
}

/// For programs.
pub fn spread_json(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max, "rounds": spread.rounds })
}
