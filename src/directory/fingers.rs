//! Remembered answers: the list of workers of each service, or model, that was asked for.
//!
//! ```text
//!              lookup found workers                FRESH_FOR
//!   waiting ─────────────────────────► fresh ───────────────────► stale: answered at once, one lookup behind
//!      ▲  │ nobody                       ▲                          │
//!      │  └──────► missing, MISSING_FOR  └───────── found ──────────┘
//!      └── the date of every worker's record has passed: ask before answering
//! ```
//!
//! A worker whose own record has expired is not offered while anybody can be asked. If nobody can (the table and the
//! coordinator both out of reach) the last workers known are offered, expired or not, rather than none.
//!
//! **Invariant:** nobody is in an answer whose certificate is revoked or over, or who may not offer what is asked for,
//! however fresh the memory of it is: that is judged whenever an answer is made.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;
use wiremesh_certs::{NodeId, Offer, Trust, UnixTime};

use super::entry::Entry;

/// An answer younger than this is not asked for again.
pub const FRESH_FOR: Duration = Duration::from_secs(60);
/// Who serves any model at all is asked for to be shown, and sooner again: a list is expected to have what just came.
pub const LIST_FRESH_FOR: Duration = Duration::from_secs(10);
/// A service nobody offers, or nobody could be asked about, is asked for again after this: workers join all the time.
pub const MISSING_FOR: Duration = Duration::from_secs(5);
/// A worker that failed is not brought back for so long by the very record that named it; by a later one at once.
pub const FORGOTTEN_FOR: Duration = Duration::from_secs(30);
/// After revocations or policy have changed, answers are asked for again as soon as if there were none: whoever may offer
/// from then on says so itself within this time, once it has heard of it too.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// Workers of an answer this old are no longer offered, whatever else is out of reach.
pub const USABLE_FOR: Duration = Duration::from_secs(3600);
/// Services and models remembered; beyond it the one unused for longest is forgotten.
pub const MAX_OFFERS: usize = 1024;
/// Workers remembered of one service; beyond it the earliest record makes room.
pub const MAX_WORKERS: usize = 64;

/// Ties an outcome to the lookup that was asked for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LookupId(pub u64);

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It was remembered.
    Cache,
    /// The Kademlia table, asked for this answer.
    Dht,
    /// The coordinator, asked for this answer.
    Http,
}

impl Source {
    /// As in the header `x-wiremesh-source`.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Cache => "cache",
            Source::Dht => "dht",
            Source::Http => "http",
        }
    }
}

/// Who offers a service. Never empty. This node's own record is among them if it offers the service.
#[derive(Clone, Debug)]
pub struct Answer {
    /// In no particular order.
    pub workers: Vec<Entry>,
    /// Where from.
    pub source: Source,
    /// How long ago that was.
    pub age: Duration,
}

/// What to do about a question.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Answer; if there is a lookup, run it behind.
    Now(Answer, Option<LookupId>),
    /// Wait for this lookup, which runs already.
    Wait(LookupId),
    /// Run this lookup and wait for it.
    Look(LookupId),
    /// Nobody offers it: asked a moment ago.
    Nobody,
}

/// How a lookup ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// These were found. Entries that do not offer the service are the word that their signer withdrew.
    Found(Vec<Entry>, Source),
    /// Somebody who should know was asked, and knew nobody.
    Nobody,
    /// Nobody could be asked.
    Unreachable,
}

/// How often what happened; each counted once, when it happened.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counters {
    /// Questions answered from memory at once.
    pub cache_hits: u64,
    /// Questions that had to wait for a lookup.
    pub cache_misses: u64,
    /// Questions answered by "nobody offers it" from memory.
    pub missing_hits: u64,
    /// Lookups in the table for a waiting question.
    pub dht_lookups: u64,
    /// Lookups at the coordinator for a waiting question.
    pub http_lookups: u64,
    /// Lookups behind an answer that was given already, wherever they led.
    pub refreshes: u64,
}

/// Remembered answers by what was asked for.
#[derive(Default)]
pub struct Fingers {
    offers: BTreeMap<Offer, Finger>,
    last_lookup: u64,
    /// When it last changed who may offer what.
    trust_changed_at: Option<Instant>,
    counters: Counters,
}

struct Finger {
    workers: BTreeMap<NodeId, Entry>,
    /// When a lookup last found workers.
    learnt_at: Option<Instant>,
    /// The lookup that is running.
    pending: Option<LookupId>,
    /// A lookup a moment ago led nowhere: none before this.
    not_before: Option<Instant>,
    /// Workers that failed, the sequence they failed with, and until when that counts.
    forgotten: BTreeMap<NodeId, (u64, Instant)>,
    used_at: Instant,
}

impl Fingers {
    /// Somebody asks for `offer`.
    pub fn ask(&mut self, offer: &Offer, trust: &Trust, unix: UnixTime, now: Instant) -> Asked {
        if !self.offers.contains_key(offer) {
            self.make_room();
            self.offers.insert(offer.clone(), Finger::new(now));
        }
        let next = LookupId(self.last_lookup + 1);
        let settles = self.trust_changed_at.is_some_and(|at| now.saturating_duration_since(at) < SETTLES_WITHIN);
        let fresh_for = if settles { MISSING_FOR } else { fresh_for(offer) };
        let Some(finger) = self.offers.get_mut(offer) else { return Asked::Nobody };
        finger.used_at = now;
        let asked = finger.ask(next, fresh_for, &Judge { offer, trust, unix }, now);
        match &asked {
            Asked::Now(_, behind) => {
                self.counters.cache_hits += 1;
                self.counters.refreshes += u64::from(behind.is_some());
            }
            Asked::Wait(_) | Asked::Look(_) => self.counters.cache_misses += 1,
            Asked::Nobody => self.counters.missing_hits += 1,
        }
        if let Asked::Now(_, Some(_)) | Asked::Look(_) = &asked {
            self.last_lookup = next.0;
        }
        asked
    }

    /// A lookup ended. Returns what those who wait for it are to be told. The end of a lookup that is no longer open
    /// is ignored.
    pub fn on_outcome(
        &mut self,
        offer: &Offer,
        lookup: LookupId,
        outcome: Outcome,
        trust: &Trust,
        unix: UnixTime,
        now: Instant,
    ) -> Option<Answer> {
        let finger = self.offers.get_mut(offer).filter(|finger| finger.pending == Some(lookup))?;
        finger.pending = None;
        finger.on_outcome(outcome, &Judge { offer, trust, unix }, now)
    }

    /// More was heard after a lookup had been answered: another storer knew others.
    pub fn on_more(&mut self, offer: &Offer, entries: &[Entry], trust: &Trust, unix: UnixTime, now: Instant) {
        if let Some(finger) = self.offers.get_mut(offer).filter(|finger| finger.learnt_at.is_some()) {
            finger.merge(entries, &Judge { offer, trust, unix }, now);
        }
    }

    /// A later record of some member was heard from elsewhere: an introduction, a heartbeat's answer.
    pub fn observe(&mut self, entry: &Entry, trust: &Trust) {
        for (offer, finger) in &mut self.offers {
            let known = finger.workers.get(&entry.id()).map(Entry::sequence);
            let failed = finger.forgotten.get(&entry.id()).map(|(sequence, _)| *sequence);
            // Others are found by asking: whoever came back is one that we asked for, and found, before.
            if known.or(failed).is_none_or(|sequence| entry.sequence() <= sequence) {
                continue;
            }
            if !entry.offers(offer, trust) {
                finger.workers.remove(&entry.id());
            } else if known.is_some() || finger.workers.len() < MAX_WORKERS {
                finger.forgotten.remove(&entry.id());
                finger.workers.insert(entry.id(), entry.clone());
            }
        }
    }

    /// This worker failed at this: it alone is not offered again by the record that named it.
    pub fn forget(&mut self, offer: &Offer, worker: &NodeId, now: Instant) {
        let Some(finger) = self.offers.get_mut(offer) else { return };
        if let Some(entry) = finger.workers.remove(worker) {
            finger.forgotten.retain(|_, (_, until)| now < *until);
            if finger.forgotten.len() < MAX_WORKERS {
                finger.forgotten.insert(*worker, (entry.sequence(), now + FORGOTTEN_FOR));
            }
        }
    }

    /// Forgets who may be in no answer any longer.
    pub fn sweep(&mut self, trust: &Trust, unix: UnixTime) {
        for (offer, finger) in &mut self.offers {
            let judge = Judge { offer, trust, unix };
            finger.workers.retain(|_, entry| judge.admits(entry));
        }
    }

    /// Revocations or policy have changed: others may offer from now on.
    pub fn on_trust_changed(&mut self, now: Instant) {
        self.trust_changed_at = Some(now);
    }

    /// A lookup for a waiting question goes to `source`.
    pub fn on_asked(&mut self, source: Source) {
        match source {
            Source::Dht => self.counters.dht_lookups += 1,
            Source::Http => self.counters.http_lookups += 1,
            Source::Cache => {}
        }
    }

    /// How often what happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Services and models with at least one worker remembered.
    pub fn len(&self) -> usize {
        self.offers.values().filter(|finger| !finger.workers.is_empty()).count()
    }

    fn make_room(&mut self) {
        if self.offers.len() < MAX_OFFERS {
            return;
        }
        let oldest = self.offers.iter().min_by_key(|(_, finger)| finger.used_at).map(|(offer, _)| offer.clone());
        oldest.map(|offer| self.offers.remove(&offer));
    }
}

/// Decides who may be in an answer.
struct Judge<'a> {
    offer: &'a Offer,
    trust: &'a Trust,
    unix: UnixTime,
}

impl Judge<'_> {
    fn admits(&self, entry: &Entry) -> bool {
        entry.is_believed(self.trust, self.unix) && entry.offers(self.offer, self.trust)
    }

    fn admits_fresh(&self, entry: &Entry) -> bool {
        !entry.is_expired(self.unix) && self.admits(entry)
    }
}

impl Finger {
    fn new(now: Instant) -> Finger {
        Finger {
            workers: BTreeMap::new(),
            learnt_at: None,
            pending: None,
            not_before: None,
            forgotten: BTreeMap::new(),
            used_at: now,
        }
    }

    fn ask(&mut self, next: LookupId, fresh_for: Duration, judge: &Judge<'_>, now: Instant) -> Asked {
        let may_look = self.not_before.is_none_or(|not_before| not_before <= now);
        let age = self.learnt_at.map(|at| now.saturating_duration_since(at));
        if let Some(answer) = self.answer(Source::Cache, now, |entry| judge.admits_fresh(entry)) {
            let behind = age.is_none_or(|age| age >= fresh_for) && may_look && self.pending.is_none();
            self.pending = if behind { Some(next) } else { self.pending };
            return Asked::Now(answer, behind.then_some(next));
        }
        match self.pending {
            Some(pending) => Asked::Wait(pending),
            None if may_look => {
                self.pending = Some(next);
                Asked::Look(next)
            }
            None => match self.last_known(judge, now) {
                Some(answer) => Asked::Now(answer, None),
                None => Asked::Nobody,
            },
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, judge: &Judge<'_>, now: Instant) -> Option<Answer> {
        self.not_before = Some(now + MISSING_FOR);
        match outcome {
            Outcome::Found(entries, source) => {
                self.workers.retain(|_, entry| !entry.is_expired(judge.unix));
                if self.merge(&entries, judge, now) {
                    self.learnt_at = Some(now);
                    self.not_before = None;
                }
                self.answer(source, now, |entry| judge.admits(entry))
            }
            Outcome::Nobody => {
                self.workers.retain(|_, entry| !entry.is_expired(judge.unix));
                self.answer(Source::Cache, now, |entry| judge.admits(entry))
            }
            Outcome::Unreachable => self.last_known(judge, now),
        }
    }

    /// Takes in what was heard. True if it named a worker that can be offered.
    fn merge(&mut self, entries: &[Entry], judge: &Judge<'_>, now: Instant) -> bool {
        let mut found = false;
        let mut in_order: Vec<&Entry> = entries.iter().collect();
        in_order.sort_by_key(|entry| entry.sequence());
        for entry in in_order {
            let known = self.workers.get(&entry.id()).map(Entry::sequence);
            if known.is_some_and(|known| known > entry.sequence()) {
                found = true;
                continue;
            }
            let failed = self
                .forgotten
                .get(&entry.id())
                .is_some_and(|(sequence, until)| now < *until && entry.sequence() <= *sequence);
            if !judge.admits(entry) {
                self.workers.remove(&entry.id());
            } else if !failed && !entry.is_expired(judge.unix) {
                self.workers.insert(entry.id(), entry.clone());
                found = true;
            }
        }
        while self.workers.len() > MAX_WORKERS {
            let earliest = self.workers.iter().min_by_key(|(_, entry)| entry.sequence()).map(|(id, _)| *id);
            earliest.map(|id| self.workers.remove(&id));
        }
        found
    }

    /// The last workers known, expired or not: for when nobody can be asked.
    fn last_known(&self, judge: &Judge<'_>, now: Instant) -> Option<Answer> {
        self.learnt_at.filter(|at| now.saturating_duration_since(*at) < USABLE_FOR)?;
        self.answer(Source::Cache, now, |entry| judge.admits(entry))
    }

    fn answer(&self, source: Source, now: Instant, offered: impl Fn(&Entry) -> bool) -> Option<Answer> {
        let workers: Vec<Entry> = self.workers.values().filter(|entry| offered(entry)).cloned().collect();
        let age = self.learnt_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (!workers.is_empty()).then_some(Answer { workers, source, age })
    }
}

fn fresh_for(offer: &Offer) -> Duration {
    match offer {
        Offer::Service(_) | Offer::Model(_) => FRESH_FOR,
        Offer::AnyModel => LIST_FRESH_FOR,
    }
}

#[cfg(test)]
mod tests;
