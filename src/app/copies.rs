//! Whether another machine uses this machine's keys: what the coordinator says, and what is said in our name in the
//! directory without us having said it.
//!
//! ```text
//! record in our name ──► made here, or before this start ──► ours
//!                   └──► neither: noted ──► and a later one again ──► another machine has our keys
//! ```
//!
//! One alone is no proof: a run before this one may have had a clock that was ahead.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use serde::Serialize;
use wiremesh_certs::{NodeName, NodeRecord, UnixTime};

use crate::api;

/// Records of ours that are remembered, a quarter of an hour of them at the least. Earlier ones prove nothing.
pub const MAX_MADE: usize = 256;
/// So long after the last record of another machine it is believed to be gone. Such records come every half minute.
pub const ENDS_AFTER: Duration = Duration::from_secs(180);

/// So long is looked more often after the first record that we did not make.
pub const SUSPICIOUS_FOR: Duration = Duration::from_secs(90);

/// Who else uses our keys.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Copied {
    /// Who found it out: `coordinator` or `directory`.
    pub found_by: &'static str,
    /// Where the other was last seen, if it says so or was seen.
    pub seen_from: Option<IpAddr>,
    /// When it was last seen.
    pub last_seen: UnixTime,
    /// When it was found out.
    pub since: UnixTime,
}

impl Copied {
    /// For `wiremesh status`.
    pub fn trouble(&self, name: &NodeName, now: UnixTime) -> String {
        let from = self.seen_from.map(|ip| format!(" from {ip}")).unwrap_or_default();
        let ago = now.saturating_since(self.last_seen).as_secs();
        format!(
            "another machine runs with this machine's keys, last seen{from} {ago} s ago: stop one of them; if you did \
             not copy the state directory: wiremesh cert revoke {name}, and join anew"
        )
    }
}

impl From<api::Copied> for Copied {
    fn from(api::Copied { seen_from, last_seen, since }: api::Copied) -> Copied {
        Copied { found_by: "coordinator", seen_from: Some(seen_from), last_seen, since }
    }
}

/// The records that were made here, and those that were not.
#[derive(Debug, Default)]
pub struct OwnRecords {
    /// Oldest first.
    made: VecDeque<u64>,
    /// One that was not, and when it was first heard.
    noted: Option<(u64, UnixTime)>,
    foreign: Option<Copied>,
}

impl OwnRecords {
    /// We made this one.
    pub fn on_made(&mut self, sequence: u64) {
        if self.made.len() == MAX_MADE {
            self.made.pop_front();
        }
        self.made.push_back(sequence);
    }

    /// This was heard in our name. True if it is how another machine is found out.
    pub fn on_heard(&mut self, record: &NodeRecord, now: UnixTime) -> bool {
        let before_our_memory = self.made.front().is_none_or(|oldest| record.sequence < *oldest);
        if before_our_memory || self.made.contains(&record.sequence) {
            return false;
        }
        let noted = self.noted.map(|(sequence, _)| sequence);
        if noted.is_some_and(|noted| record.sequence <= noted) {
            return false;
        }
        self.noted = Some((record.sequence, now));
        if noted.is_none() {
            return false;
        }
        let known = self.copied(now);
        self.foreign = Some(Copied {
            found_by: "directory",
            seen_from: record.endpoints.first().map(|endpoint| endpoint.ip()),
            last_seen: now,
            since: known.as_ref().map_or(now, |known| known.since),
        });
        known.is_none()
    }

    /// Whether one was heard that may be another machine's: worth a look sooner than else.
    pub fn is_suspicious(&self, now: UnixTime) -> bool {
        self.copied(now).is_none() && self.noted.is_some_and(|(_, at)| now.saturating_since(at) < SUSPICIOUS_FOR)
    }

    /// The other machine, while there is one.
    pub fn copied(&self, now: UnixTime) -> Option<Copied> {
        self.foreign.clone().filter(|foreign| now.saturating_since(foreign.last_seen) < ENDS_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use wiremesh_certs::{Load, RECORD_LIFE};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn record(sequence: u64) -> NodeRecord {
        NodeRecord {
            sequence,
            expires_at: NOW.plus(RECORD_LIFE),
            endpoints: vec!["203.0.113.9:51820".parse().unwrap()],
            services: Vec::new(),
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: Vec::new(),
        }
    }

    #[test]
    fn our_own_records_and_those_of_runs_before_are_ours() {
        let mut own = OwnRecords::default();
        for sequence in 100..100 + 2 * MAX_MADE as u64 {
            own.on_made(sequence);
        }

        for sequence in 0..100 + 2 * MAX_MADE as u64 {
            assert!(!own.on_heard(&record(sequence), NOW), "{sequence}");
        }
        assert_eq!((own.copied(NOW), own.made.len()), (None, MAX_MADE));
    }

    #[test]
    fn records_in_our_name_that_we_never_made_are_another_machines() {
        let mut own = OwnRecords::default();
        own.on_made(100);

        assert!(!own.on_heard(&record(150), NOW), "one may be of a run with another clock");
        assert!(!own.on_heard(&record(150), NOW), "the same again tells no more");
        assert!(own.is_suspicious(NOW) && !own.is_suspicious(NOW.plus(SUSPICIOUS_FOR)));
        assert!(own.on_heard(&record(160), NOW));
        assert!(!own.is_suspicious(NOW), "it is certain");
        assert!(!own.on_heard(&record(170), NOW), "it is known");

        let copied = own.copied(NOW).unwrap();
        assert_eq!((copied.found_by, copied.seen_from), ("directory", Some("203.0.113.9".parse().unwrap())));
        let told = copied.trouble(&"worker-1".parse().unwrap(), NOW.plus(Duration::from_secs(3)));
        assert!(told.contains("last seen from 203.0.113.9 3 s ago") && told.contains("revoke worker-1"), "{told}");
        assert_eq!(own.copied(NOW.plus(ENDS_AFTER)), None);
    }
}
