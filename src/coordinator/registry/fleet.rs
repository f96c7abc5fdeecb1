//! What members show of themselves: which list they enforce, which authority their certificate is from, when it ends.

use std::time::Duration;

use wiremesh_certs::{Fingerprint, NodeId, Serial, UnixTime, Verified};

use super::{MISSED_INTERVALS, Member, Presence, Registry};
use crate::coordinator::rotation::{Fleet, Living};

/// What a member showed when it was last heard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown {
    /// Of its certificate.
    pub serial: Serial,
    /// Which authority that is from.
    pub authority: Fingerprint,
    /// When it ends.
    pub ends_at: UnixTime,
    /// The number of the list that the member enforces.
    pub enforces: u64,
}

/// How far a list is enforced.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Adoption {
    /// Living members that enforce it.
    pub enforced: usize,
    /// Those that do not yet.
    pub behind: Vec<Living>,
}

/// One member as the operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Who.
    pub member: &'a Member,
    /// What it showed, if it was ever heard.
    pub shown: Option<&'a Shown>,
    /// When it was last heard, if it has not left.
    pub heard_at: Option<UnixTime>,
    /// Whether that was lately.
    pub lives: bool,
}

impl Registry {
    /// A member proved itself with this certificate and says which list it enforces. True if any of it is news.
    pub fn on_shown(&mut self, by: &Verified, enforces: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&by.id()) else { return false };
        let (serial, authority, ends_at) = (by.serial(), by.authority(), by.not_after());
        let shown = Some(Shown { serial, authority, ends_at, enforces });
        let is_news = entry.shown != shown;
        entry.shown = shown;
        is_news
    }

    /// All members that are heard, for whoever must wait for them. `up_since` is when we began to hear.
    pub fn fleet(&self, up_since: UnixTime, now: UnixTime) -> Fleet {
        let is_complete = now.saturating_since(up_since) >= self.interval * MISSED_INTERVALS;
        Fleet { living: self.living(now).collect(), is_complete }
    }

    /// How far list `number` is enforced by members that are heard.
    pub fn adoption(&self, number: u64, now: UnixTime) -> Adoption {
        let mut adoption = Adoption::default();
        for living in self.living(now) {
            if living.enforces >= number {
                adoption.enforced += 1;
            } else {
                adoption.behind.push(living);
            }
        }
        adoption
    }

    /// When the next member falls silent if it is not heard again.
    pub fn next_silence(&self, now: UnixTime) -> Option<UnixTime> {
        let silent_at =
            |presence: &Presence| presence.last_heartbeat.plus(self.interval * MISSED_INTERVALS).plus(presence.deaf);
        let present = self.present.iter().filter_map(|id| self.healthy(id, now));
        present.map(|(_, presence)| silent_at(presence)).min()
    }

    /// Every member, by name.
    pub fn seen(&self, now: UnixTime) -> impl Iterator<Item = Seen<'_>> {
        self.by_name.values().filter_map(|id| self.entries.get(id)).map(move |entry| Seen {
            member: &entry.member,
            shown: entry.shown.as_ref(),
            heard_at: entry.presence.as_ref().map(|presence| presence.last_heartbeat),
            lives: entry.presence.as_ref().is_some_and(|presence| self.is_healthy(presence, now)),
        })
    }

    /// What a member showed when it was last heard.
    pub fn shown(&self, identity: &NodeId) -> Option<&Shown> {
        self.entries.get(identity)?.shown.as_ref()
    }

    /// How long until a member counts as silent.
    pub fn silent_after(&self) -> Duration {
        self.interval * MISSED_INTERVALS
    }

    fn living(&self, now: UnixTime) -> impl Iterator<Item = Living> {
        let present = self.present.iter().filter_map(move |id| self.healthy(id, now));
        present.map(|(member, presence)| {
            let shown = self.shown(&member.identity);
            Living {
                name: member.name.clone(),
                heard_at: presence.last_heartbeat,
                enforces: shown.map_or(0, |shown| shown.enforces),
                authority: shown.map(|shown| shown.authority),
            }
        })
    }
}
