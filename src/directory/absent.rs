//! Members that did not answer when dialled, so that one who is gone costs one time-out and not one for every lookup.
//!
//! ```text
//!            dial failed                dial failed again
//!   unknown ────────────► absent 5 s ──────────────────► absent 10 s … 60 s ─► gone: out of the table
//!      ▲                      │
//!      └── it was heard ──────┘
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wiremesh_certs::NodeId;

/// After the first failure a member is not dialled for this long; doubled by each further one up to [`ABSENT_AT_MOST`].
/// Short, because the first dial to a new peer may fail only because its tunnel was not up in time.
pub const ABSENT_AT_FIRST: Duration = Duration::from_secs(5);
/// The longest time between two dials of an absent member.
pub const ABSENT_AT_MOST: Duration = Duration::from_secs(60);
/// After so many failures without a sign of life it leaves the routing table: it has been silent for over a minute.
pub const GIVE_UP_AFTER: u32 = 5;
/// Members remembered as absent; beyond it whoever may be dialled soonest is forgotten.
pub const MAX_ABSENT: usize = 1024;

/// Who did not answer, and until when not to ask again.
#[derive(Debug, Default)]
pub struct Absent {
    members: BTreeMap<NodeId, Failures>,
}

#[derive(Debug)]
struct Failures {
    count: u32,
    until: Instant,
}

/// What a failed dial means for its contact.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may come back.
    Absent,
    /// It has been silent for long: it leaves the table.
    Gone,
}

impl Absent {
    /// A dial failed.
    pub fn on_failed(&mut self, member: NodeId, now: Instant) -> Verdict {
        if !self.members.contains_key(&member) && self.members.len() >= MAX_ABSENT {
            let soonest = self.members.iter().min_by_key(|(_, failures)| failures.until).map(|(member, _)| *member);
            soonest.map(|member| self.members.remove(&member));
        }
        let failures = self.members.entry(member).or_insert(Failures { count: 0, until: now });
        failures.count = failures.count.saturating_add(1);
        let doubled = ABSENT_AT_FIRST.saturating_mul(1 << (failures.count - 1).min(8));
        failures.until = now + doubled.min(ABSENT_AT_MOST);
        if failures.count >= GIVE_UP_AFTER { Verdict::Gone } else { Verdict::Absent }
    }

    /// It gave a sign of life.
    pub fn on_heard(&mut self, member: &NodeId) {
        self.members.remove(member);
    }

    /// All of them may be dialled again, as if they had never failed: things may have changed.
    pub fn forget(&mut self) {
        self.members.clear();
    }

    /// Whether dialling it now is pointless.
    pub fn is_absent(&self, member: &NodeId, now: Instant) -> bool {
        self.members.get(member).is_some_and(|failures| now < failures.until)
    }

    /// Members not to be dialled at this moment.
    pub fn count(&self, now: Instant) -> usize {
        self.members.values().filter(|failures| now < failures.until).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::entry::testing::t0;

    const MEMBER: NodeId = NodeId([1; 32]);

    #[test]
    fn a_silent_member_is_dialled_ever_more_rarely_and_then_given_up() {
        let (mut absent, mut now) = (Absent::default(), t0());
        let mut waits = Vec::new();
        let mut verdicts = Vec::new();

        for _ in 0..6 {
            verdicts.push(absent.on_failed(MEMBER, now));
            let failed_at = now;
            while absent.is_absent(&MEMBER, now) {
                now += Duration::from_secs(1);
            }
            waits.push((now - failed_at).as_secs());
        }

        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Absent).count(), 4);
    }

    #[test]
    fn a_sign_of_life_clears_it_at_once() {
        let mut absent = Absent::default();
        absent.on_failed(MEMBER, t0());

        absent.on_heard(&MEMBER);

        assert!(!absent.is_absent(&MEMBER, t0()));
    }

    #[test]
    fn memory_of_the_absent_is_bounded() {
        let mut absent = Absent::default();

        for n in 0..3000u16 {
            absent.on_failed(NodeId([n.to_be_bytes(); 16].concat().try_into().unwrap()), t0());
        }

        assert_eq!(absent.members.len(), MAX_ABSENT);
    }
}
