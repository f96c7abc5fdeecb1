//! What is measured, the numbers that come of it, and what is aimed at.

use clap::ValueEnum;

use super::implementations::{NEBULA, RAW, REFERENCE};
use crate::statistics::{Aim, Spread, Verdict};

/// One thing that is done to each implementation in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Measure {
    /// Nothing: wake-ups, processor time and packets without traffic
    Idle,
    /// One TCP stream
    Tcp1,
    /// Four TCP streams
    Tcp4,
    /// One TCP stream the other way
    Reverse,
    /// One TCP stream each way at once
    Both,
    /// One byte there and back over TCP
    Rr,
    /// One small packet there and back over UDP
    Udprr,
    /// The highest rate of 200-byte UDP packets without loss
    Pps200,
    /// The same with 1,300 bytes
    Pps1300,
    /// 20,000 small UDP packets a second
    Cpu20k,
    /// One TCP stream for longer than a key lives (with --rekey, once)
    Rekey,
    /// Many peers at once (with --peers)
    Peers,
    /// Wake-ups with silent peers (with --silent-peers, wiremesh, once)
    Silent,
    /// Memory, over all of the above
    Memory,
}

/// Which numbers are the better ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Large ones.
    Higher,
    /// Small ones.
    Lower,
}

/// One number that a measure gives.
#[derive(Debug)]
pub struct Figure {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its name in the table, with the unit.
    pub title: &'static str,
    /// Which numbers are good.
    pub better: Better,
    /// Digits after the point.
    pub digits: usize,
}

/// One thing that is aimed at.
#[derive(Debug)]
pub struct Target {
    /// The figure.
    pub figure: &'static str,
    /// The implementation that it is divided by; none: the number itself.
    pub to: Option<&'static str>,
    /// What it should be.
    pub aim: Aim,
}

const fn higher(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure { key, title, better: Better::Higher, digits }
}

const fn lower(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure { key, title, better: Better::Lower, digits }
}

/// In the order of the table.
pub const FIGURES: &[Figure] = &[
    higher("tcp1", "TCP, one stream, Gbit/s", 2),
    higher("tcp4", "TCP, four streams, Gbit/s", 2),
    higher("reverse", "TCP, reverse, Gbit/s", 2),
    higher("both", "TCP, both ways, sum, Gbit/s", 2),
    lower("cpu_per_gb", "CPU, both ends, s/GB", 2),
    lower("retransmitted", "retransmitted per GB", 1),
    lower("out_of_order", "came out of order per GB", 1),
    lower("reordered", "seen as reordered, times", 0),
    lower("duplicates", "resent for nothing, segments", 0),
    lower("rr_p50", "request/response, p50, µs", 1),
    lower("rr_p99", "request/response, p99, µs", 1),
    lower("udp_rr_p50", "UDP there and back, p50, µs", 1),
    lower("udp_rr_p99", "UDP there and back, p99, µs", 1),
    higher("pps200", "UDP 200 B without loss, k/s", 1),
    higher("pps1300", "UDP 1,300 B without loss, k/s", 1),
    lower("cpu_per_packet", "CPU a packet at 20 k/s, µs", 2),
    lower("lost_at_20k", "lost at 20 k/s, %", 3),
    lower("memory_idle", "resident, idle, MB", 1),
    lower("memory_load", "resident, under load, MB", 1),
    lower("memory_added", "added by load, MB", 1),
    lower("wakeups", "wake-ups a second, idle", 1),
    lower("idle_cpu", "CPU, both ends, idle, ms/s", 2),
    lower("idle_packets", "packets a minute, idle", 0),
    higher("rekey_worst", "worst second across a rekey", 2),
    higher("rekey_median", "median second then, Gbit/s", 2),
    higher("peers_rate", "many peers, echoes, k/s", 1),
    lower("peers_cpu", "many peers, CPU an echo, µs", 2),
    lower("peers_lost", "many peers, lost, %", 3),
    lower("peers_memory", "many peers, resident, MB", 1),
    lower("silent_wakeups", "wake-ups/s, silent peers", 1),
    lower("silent_packets", "packets/min, silent peers", 0),
    lower("silent_path_wakeups", "wake-ups/s, without directory", 1),
    lower("silent_path_packets", "packets/min, without directory", 0),
];

const fn at_least(figure: &'static str, to: &'static str, floor: f64, goal: f64) -> Target {
    Target { figure, to: Some(to), aim: Aim::AtLeast { floor, goal } }
}

const fn at_most(figure: &'static str, to: &'static str, floor: f64, goal: f64) -> Target {
    Target { figure, to: Some(to), aim: Aim::AtMost { floor, goal } }
}

const fn absolute(figure: &'static str, aim: Aim) -> Target {
    Target { figure, to: None, aim }
}

/// What ours should reach.
pub const TARGETS: &[Target] = &[
    at_least("tcp1", REFERENCE, 1.5, 2.2),
    at_least("tcp4", REFERENCE, 1.5, 2.5),
    at_least("both", REFERENCE, 1.2, 1.6),
    at_most("cpu_per_gb", REFERENCE, 0.60, 0.40),
    at_most("rr_p50", REFERENCE, 0.45, 0.2),
    at_least("pps200", REFERENCE, 3.0, 8.0),
    at_most("cpu_per_packet", REFERENCE, 0.4, 0.2),
    at_least("tcp1", NEBULA, 4.0, 6.0),
    at_least("tcp1", RAW, 0.15, 0.25),
    absolute("memory_added", Aim::AtMost { floor: 8.0, goal: 8.0 }),
    absolute("silent_wakeups", Aim::AtMost { floor: 8.0, goal: 8.0 }),
    absolute("rekey_worst", Aim::AtLeast { floor: 0.4, goal: 0.4 }),
    absolute("reordered", Aim::AtMost { floor: 0.0, goal: 0.0 }),
];

/// The figure of this name.
pub fn figure(key: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.key == key)
}

impl Target {
    /// A ratio by its median, as rounds differ; what may never be passed by the worst round.
    pub fn judge(&self, measured: &Spread) -> Verdict {
        self.aim.judge(match (self.to, self.aim) {
            (Some(_), _) => measured.median,
            (None, Aim::AtLeast { .. }) => measured.min,
            (None, Aim::AtMost { .. }) => measured.max,
        })
    }

    /// Whether one round has it and the others do not.
    pub fn is_once(&self) -> bool {
        matches!(self.figure, "rekey_worst" | "silent_wakeups")
    }
}

impl Measure {
    /// Whether it is not done between the two ends, but with machines of its own.
    pub fn has_its_own_place(self) -> bool {
        matches!(self, Measure::Peers | Measure::Silent)
    }

    /// Its name as an option.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Whether once is enough: it takes long, or counts for so long that rounds would tell nothing more.
    pub fn is_once(self) -> bool {
        matches!(self, Measure::Rekey | Measure::Silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_names_a_figure() {
        for target in TARGETS {
            assert!(figure(target.figure).is_some(), "{}", target.figure);
        }
    }

    #[test]
    fn a_bound_is_judged_by_the_worst_round_and_a_ratio_by_the_median() {
        let spread = Spread { median: 1.0, min: 0.5, max: 9.0, rounds: 5 };
        let judge = |figure| TARGETS.iter().find(|target| target.figure == figure).map(|target| target.judge(&spread));

        assert_eq!(judge("memory_added"), Some(Verdict::Missed));
        assert_eq!(judge("rekey_worst"), Some(Verdict::Goal));
        assert_eq!(judge("cpu_per_gb"), Some(Verdict::Missed));
        assert_eq!(judge("both"), Some(Verdict::Missed));
        assert_eq!(TARGETS[0].judge(&Spread { median: 2.2, min: 0.1, max: 3.0, rounds: 5 }), Verdict::Goal);
    }

    #[test]
    fn a_target_aims_at_the_better_side() {
        for target in TARGETS {
            let better = figure(target.figure).unwrap().better;
            assert_eq!(matches!(target.aim, Aim::AtLeast { .. }), better == Better::Higher, "{}", target.figure);
        }
    }
}
