//! What the directory counts about itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::entry::Rejected;

/// Counters and times of the table's work; finger counters are in [`fingers`](super::fingers).
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Lookups in the table, for whatever reason, that have ended.
    pub lookups: u64,
    /// Of these, the ones that found something.
    pub lookups_found: u64,
    /// Of these, the ones in which nobody could be reached.
    pub lookups_unreachable: u64,
    /// From the question to the first valid answer, of the last lookup that found something.
    pub last_lookup: Option<Duration>,
    /// Moving average of the same, an eighth of each new one.
    pub average_lookup: Option<Duration>,
    /// When another member last answered us.
    pub answered_at: Option<Instant>,
    /// When our record was last written to somebody.
    pub written_at: Option<Instant>,
    /// Writes and records refused, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// A lookup found something for the first time.
    pub fn on_found(&mut self, took: Duration, now: Instant) {
        self.lookups_found += 1;
        self.last_lookup = Some(took);
        self.average_lookup = Some(self.average_lookup.map_or(took, |average| (average * 7 + took) / 8));
        self.answered_at = Some(now);
    }

    /// A record or a write was refused.
    pub fn on_rejected(&mut self, rejected: &Rejected) {
        *self.rejected.entry(rejected.reason()).or_default() += 1;
    }
}
