//! How often joining may fail, and how much of it is told.
//!
//! ```text
//! attempt ─► has its source one left? ─► is one left in all? ─► its body ─► database ─► joined, or waits as it should
//!                  │ no: come back later      │ no                               │       : given back
//!                                                                                └► refused: is there room to tell of it?
//! ```
//!
//! Secrets of 256 bits are not guessed; this keeps broken and hostile machines from filling log and database, and from
//! making the database the busiest part of this one. Joins that succeed are not charged, so a hundred machines behind one
//! NAT join at once. Renewals do not come here.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use wiremesh_certs::NodeId;

use crate::places::network_of;

/// Failures that one source has free.
pub const BURST: u32 = 30;
/// One more after each of these.
pub const REFILL_EVERY: Duration = Duration::from_secs(2);
/// Sources remembered. At the bound the one that has been quiet for longest is forgotten.
pub const MAX_SOURCES: usize = 4096;
/// Failures that all sources together have free; also, how many machines may be joining at one moment.
pub const BURST_IN_ALL: u32 = 256;
/// One more after each of these: a flood from everywhere costs the database ten transactions a second.
pub const REFILL_IN_ALL_EVERY: Duration = Duration::from_millis(100);
/// Refused joins with one token, or with none that is known, that the audit has room for at once.
pub const TOLD_BURST: u32 = 20;
/// One more after each of these: a flood that never ends writes 1,440 rows a day, and takes months to push out what
/// the audit holds. Each token has its own, so that nobody hides the use of a stolen one in a flood of inventions.
pub const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Tokens with which joins were refused lately. At the bound the one refused longest ago is forgotten.
pub const MAX_TOLD: usize = 1024;
/// How often a machine that waits for approval may ask at once before it is charged like one that fails.
pub const ASKS_BURST: u32 = 5;
/// One more after each of these: it is told to come back after longer.
pub const ASKS_EVERY: Duration = Duration::from_secs(2);
/// Machines that wait and asked lately. At the bound the one quiet for longest is forgotten.
pub const MAX_ASKING: usize = 2048;

/// An attempt that may not be made yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TooMany {
    /// Its source has failed too often.
    FromHere(Duration),
    /// All sources together have.
    InAll(Duration),
}

/// Failures by source and in all, and what was told of them.
#[derive(Debug)]
pub struct Limiter {
    sources: Buckets<IpAddr>,
    all: Bucket,
    asking: Buckets<NodeId>,
    told: Buckets<Option<String>>,
    untold: u64,
}

impl Limiter {
    /// Nobody has failed.
    pub fn new(now: Instant) -> Limiter {
        Limiter {
            sources: Buckets::new(Rate { burst: BURST, every: REFILL_EVERY }, MAX_SOURCES),
            all: Bucket { left: IN_ALL.burst, filled_at: now },
            asking: Buckets::new(Rate { burst: ASKS_BURST, every: ASKS_EVERY }, MAX_ASKING),
            told: Buckets::new(Rate { burst: TOLD_BURST, every: TOLD_EVERY }, MAX_TOLD),
            untold: 0,
        }
    }

    /// Takes one attempt from `source`. If none is left, says until when.
    pub fn charge(&mut self, source: IpAddr, now: Instant) -> Result<(), TooMany> {
        let source = network_of(source);
        self.sources.take(source, now).map_err(TooMany::FromHere)?;
        self.all.take(IN_ALL, now).map_err(|wait| {
            // Others have used it up: that is no failure of this one.
            self.sources.give_back(&source);
            TooMany::InAll(wait)
        })
    }

    /// The attempt was a good one.
    pub fn refund(&mut self, source: IpAddr) {
        self.sources.give_back(&network_of(source));
        self.all.left = (self.all.left + 1).min(IN_ALL.burst);
    }

    /// The attempt was that of a machine that waits for approval. It costs nothing as long as the machine is patient.
    pub fn waits(&mut self, identity: NodeId, source: IpAddr, now: Instant) {
        if self.asking.take(identity, now).is_ok() {
            self.refund(source);
        }
    }

    /// Whether there is room to tell of a join refused with this token (`None`: with none that is known). Says how many
    /// were refused and not told of since the last one that was.
    pub fn tell(&mut self, token: Option<&str>, now: Instant) -> Option<u64> {
        match self.told.take(token.map(str::to_owned), now) {
            Ok(()) => Some(std::mem::take(&mut self.untold)),
            Err(_) => {
                self.untold += 1;
                None
            }
        }
    }
}

const IN_ALL: Rate = Rate { burst: BURST_IN_ALL, every: REFILL_IN_ALL_EVERY };

/// How many at once, and how often one more.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    every: Duration,
}

/// One bucket for each of a bounded number of keys. Who is not in the table has a full one.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    max: usize,
    of: BTreeMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled_at: Instant,
}

impl<K: Clone + Ord> Buckets<K> {
    fn new(rate: Rate, max: usize) -> Buckets<K> {
        Buckets { rate, max, of: BTreeMap::new() }
    }

    fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        if !self.of.contains_key(&key) && self.of.len() >= self.max {
            self.forget_one(now);
        }
        self.of.entry(key).or_insert(Bucket { left: self.rate.burst, filled_at: now }).take(self.rate, now)
    }

    fn give_back(&mut self, key: &K) {
        if let Some(bucket) = self.of.get_mut(key) {
            bucket.left = (bucket.left + 1).min(self.rate.burst);
            if bucket.left == self.rate.burst {
                self.of.remove(key);
            }
        }
    }

    fn forget_one(&mut self, now: Instant) {
        for bucket in self.of.values_mut() {
            bucket.refill(self.rate, now);
        }
        self.of.retain(|_, bucket| bucket.left < self.rate.burst);
        if self.of.len() >= self.max {
            let quietest = self.of.iter().max_by_key(|(_, bucket)| (bucket.left, std::cmp::Reverse(bucket.filled_at)));
            if let Some(key) = quietest.map(|(key, _)| key.clone()) {
                self.of.remove(&key);
            }
        }
    }
}

impl Bucket {
    /// Takes one. If it has none, says how long until it has.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(rate.every.saturating_sub(now.saturating_duration_since(self.filled_at))),
        }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        let more = u32::try_from(passed.as_millis() / rate.every.as_millis()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(rate.burst);
        self.filled_at += rate.every * more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn limiter() -> (Limiter, Instant) {
        let t0 = clock::now();
        (Limiter::new(t0), t0)
    }

    #[test]
    fn after_the_burst_a_source_waits() {
        let (mut limiter, t0) = limiter();

        for _ in 0..BURST {
            limiter.charge(SOURCE, t0).unwrap();
        }

        assert_eq!(limiter.charge(SOURCE, t0), Err(TooMany::FromHere(REFILL_EVERY)));
        assert!(limiter.charge("192.0.2.2".parse().unwrap(), t0).is_ok());
        assert!(limiter.charge(SOURCE, t0 + REFILL_EVERY).is_ok());
        assert!(limiter.charge(SOURCE, t0 + REFILL_EVERY).is_err());
    }

    #[test]
    fn a_flood_from_everywhere_gets_its_share_and_no_more() {
        let (mut limiter, t0) = limiter();
        let source = |n: u32| IpAddr::V4(n.into());

        let at_once = (0..10_000).filter(|n| limiter.charge(source(*n), t0).is_ok()).count();
        let in_a_minute =
            (0..60_000).filter(|ms| limiter.charge(source(*ms), t0 + Duration::from_millis(u64::from(*ms))).is_ok());

        assert_eq!(at_once, BURST_IN_ALL as usize);
        assert_eq!(in_a_minute.count(), 599);
    }

    #[test]
    fn who_is_turned_away_for_the_sake_of_others_is_not_charged_for_it() {
        let (mut limiter, t0) = limiter();
        for n in 0..BURST_IN_ALL {
            limiter.charge(IpAddr::V4(n.into()), t0).unwrap();
        }

        for _ in 0..2 * BURST {
            assert_eq!(limiter.charge(SOURCE, t0), Err(TooMany::InAll(REFILL_IN_ALL_EVERY)));
        }

        assert!(limiter.charge(SOURCE, t0 + REFILL_IN_ALL_EVERY).is_ok());
    }

    #[test]
    fn joins_that_succeed_cost_nothing() {
        let (mut limiter, t0) = limiter();

        for _ in 0..10 * BURST_IN_ALL {
            limiter.charge(SOURCE, t0).unwrap();
            limiter.refund(SOURCE);
        }

        assert!(limiter.sources.of.is_empty());
        assert_eq!(limiter.all.left, BURST_IN_ALL);
    }

    #[test]
    fn waiting_for_approval_costs_nothing_as_long_as_it_is_done_with_patience() {
        let (mut limiter, t0) = limiter();
        let (patient, hasty) = (NodeId([1; 32]), NodeId([2; 32]));

        for n in 0..1000 {
            let now = t0 + ASKS_EVERY * n;
            limiter.charge(SOURCE, now).unwrap();
            limiter.waits(patient, SOURCE, now);
        }
        let later = t0 + ASKS_EVERY * 1000;
        let asked = (0..1000)
            .take_while(|_| limiter.charge(SOURCE, later).map(|()| limiter.waits(hasty, SOURCE, later)).is_ok());

        assert_eq!(asked.count(), (ASKS_BURST + BURST) as usize);
    }

    #[test]
    fn a_flood_of_inventions_is_not_all_told_and_hides_no_stolen_token() {
        let (mut limiter, t0) = limiter();

        let told = (0..10_000).filter(|_| limiter.tell(None, t0).is_some()).count();

        assert_eq!(told, TOLD_BURST as usize);
        assert_eq!(limiter.tell(Some("3f9a51c07b2e"), t0), Some(10_000 - u64::from(TOLD_BURST)), "and says how many");
        assert_eq!(limiter.tell(None, t0), None);
        assert_eq!(limiter.tell(None, t0 + TOLD_EVERY), Some(1));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_source() {
        let (mut limiter, t0) = limiter();

        for n in 0..BURST {
            limiter.charge(format!("2001:db8::{n:x}").parse().unwrap(), t0).unwrap();
        }

        assert!(limiter.charge("2001:db8::ffff".parse().unwrap(), t0).is_err());
    }

    #[test]
    fn the_tables_are_bounded() {
        let t0 = clock::now();
        let mut sources = Buckets::new(Rate { burst: BURST, every: REFILL_EVERY }, MAX_SOURCES);

        for n in 0..2 * MAX_SOURCES {
            sources.take(n, t0).unwrap();
        }

        assert_eq!(sources.of.len(), MAX_SOURCES);
    }
}
