//! The figures, and what is aimed at.

use crate::{routers::NGINX, statistics::Aim};

/// One line of the table.
#[derive(Debug)]
pub struct Figure {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its name in the table, with the unit.
    pub title: &'static str,
    /// Whether large numbers are the good ones.
    pub higher: bool,
    /// Digits after the point.
    pub digits: usize,
    /// The figure that it is less the upstream's own, if it is one of what was added.
    pub added_to: Option<&'static str>,
}

/// What a figure of ours is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Nothing: the number itself.
    Nothing,
    /// The same figure of a router.
    Router(&'static str),
    /// The best one of those that `pip` installs.
    BestOfPython,
}

/// One thing that is aimed at.
#[derive(Debug)]
pub struct Target {
    /// The figure.
    pub figure: &'static str,
    /// What it is divided by.
    pub to: To,
    /// What it should be.
    pub aim: Aim,
}

/// Connections at once.
pub const CONCURRENCIES: [usize; 3] = [1, 32, 256];

const fn lower(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure { key, title, higher: false, digits, added_to: None }
}

const fn added(key: &'static str, title: &'static str, to: &'static str) -> Figure {
    Figure { key, title, higher: false, digits: 0, added_to: Some(to) }
}

const fn rate(key: &'static str, title: &'static str) -> Figure {
    Figure { key, title, higher: true, digits: 0, added_to: None }
}

/// In the order of the table.
pub const FIGURES: &[Figure] = &[
    added("added_p50_1", "added by 1 connection, p50, µs", "p50_1"),
    added("added_p99_1", "p99, µs", "p99_1"),
    rate("rate_1", "requests a second"),
    added("added_p50_32", "added with 32 connections, p50, µs", "p50_32"),
    added("added_p99_32", "p99, µs", "p99_32"),
    rate("rate_32", "requests a second"),
    lower("cpu_32", "CPU a request, µs", 1),
    added("added_p50_256", "added with 256 connections, p50, µs", "p50_256"),
    added("added_p99_256", "p99, µs", "p99_256"),
    rate("rate_256", "requests a second"),
    lower("cpu_256", "CPU a request, µs", 1),
    lower("resident_256", "resident after it, MB", 1),
    added("added_first", "stream: added to its first event, µs", "first"),
    added("added_event", "added to an event, p50, µs", "event"),
    added("added_event_p99", "added to an event, p99, µs", "event_p99"),
    lower("resident_streams", "resident with open streams, MB", 1),
    rate("open_streams", "open streams"),
];

const fn at_least(figure: &'static str, to: To, bound: f64) -> Target {
    Target { figure, to, aim: Aim::AtLeast { floor: bound, goal: bound } }
}

const fn at_most(figure: &'static str, to: To, bound: f64) -> Target {
    Target { figure, to, aim: Aim::AtMost { floor: bound, goal: bound } }
}

/// What the local hop should reach.
pub const TARGETS: &[Target] = &[
    at_most("added_p50_1", To::Router(NGINX), 2.0),
    at_least("rate_32", To::Router(NGINX), 0.7),
    at_least("rate_256", To::Router(NGINX), 0.7),
    at_least("rate_32", To::BestOfPython, 3.0),
    at_least("rate_256", To::BestOfPython, 3.0),
    at_most("resident_streams", To::Nothing, 40.0),
];

impl Target {
    /// Whether one round has it and the others do not.
    pub fn is_once(&self) -> bool {
        self.figure == "resident_streams"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_names_a_figure_and_aims_at_its_better_side() {
        for target in TARGETS {
            let figure = FIGURES.iter().find(|figure| figure.key == target.figure).unwrap();

            assert_eq!(matches!(target.aim, Aim::AtLeast { .. }), figure.higher, "{}", target.figure);
        }
    }
}
