//! How often one source may fail to enrol.
//!
//! Secrets of 256 bits are not guessed; this keeps a broken or hostile machine from filling log and database. Joins that
//! succeed are not charged, so a hundred machines behind one NAT join at once.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Failures that one source has free.
pub const BURST: u32 = 30;
/// One more after each of these.
pub const REFILL_EVERY: Duration = Duration::from_secs(2);
/// Sources remembered. At the bound the one that has been quiet for longest is forgotten.
pub const MAX_SOURCES: usize = 4096;

/// Failures by source.
#[derive(Debug, Default)]
pub struct Limiter {
    sources: BTreeMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled_at: Instant,
}

impl Limiter {
    /// Nobody has failed.
    pub fn new() -> Limiter {
        Limiter::default()
    }

    /// Takes one attempt from `source`. If it has none, says how long until it has.
    pub fn charge(&mut self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let source = network_of(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            self.forget_one(now);
        }
        let bucket = self.sources.entry(source).or_insert(Bucket { left: BURST, filled_at: now });
        bucket.refill(now);
        match bucket.left.checked_sub(1) {
            Some(left) => {
                bucket.left = left;
                Ok(())
            }
            None => Err(REFILL_EVERY.saturating_sub(now.saturating_duration_since(bucket.filled_at))),
        }
    }

    /// The attempt was a good one.
    pub fn refund(&mut self, source: IpAddr) {
        let source = network_of(source);
        if let Some(bucket) = self.sources.get_mut(&source) {
            bucket.left = (bucket.left + 1).min(BURST);
            if bucket.left == BURST {
                self.sources.remove(&source);
            }
        }
    }

    fn forget_one(&mut self, now: Instant) {
        for bucket in self.sources.values_mut() {
            bucket.refill(now);
        }
        self.sources.retain(|_, bucket| bucket.left < BURST);
        if self.sources.len() >= MAX_SOURCES {
            let quietest =
                self.sources.iter().max_by_key(|(_, bucket)| (bucket.left, std::cmp::Reverse(bucket.filled_at)));
            if let Some(source) = quietest.map(|(source, _)| *source) {
                self.sources.remove(&source);
            }
        }
    }
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        let more = u32::try_from(passed.as_millis() / REFILL_EVERY.as_millis()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(BURST);
        self.filled_at += REFILL_EVERY * more;
    }
}

/// One household of IPv6 has 2^64 addresses and is one source.
pub fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn after_the_burst_a_source_waits() {
        let (mut limiter, t0) = (Limiter::new(), clock::now());

        for _ in 0..BURST {
            limiter.charge(SOURCE, t0).unwrap();
        }

        assert_eq!(limiter.charge(SOURCE, t0), Err(REFILL_EVERY));
        assert!(limiter.charge("192.0.2.2".parse().unwrap(), t0).is_ok());
        assert!(limiter.charge(SOURCE, t0 + REFILL_EVERY).is_ok());
        assert!(limiter.charge(SOURCE, t0 + REFILL_EVERY).is_err());
    }

    #[test]
    fn joins_that_succeed_cost_nothing() {
        let (mut limiter, t0) = (Limiter::new(), clock::now());

        for _ in 0..10 * BURST {
            limiter.charge(SOURCE, t0).unwrap();
            limiter.refund(SOURCE);
        }

        assert!(limiter.sources.is_empty());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_source() {
        let (mut limiter, t0) = (Limiter::new(), clock::now());

        for n in 0..BURST {
            limiter.charge(format!("2001:db8::{n:x}").parse().unwrap(), t0).unwrap();
        }

        assert!(limiter.charge("2001:db8::ffff".parse().unwrap(), t0).is_err());
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut limiter, t0) = (Limiter::new(), clock::now());

        for n in 0..2 * MAX_SOURCES as u32 {
            limiter.charge(IpAddr::V4(n.into()), t0).unwrap();
        }

        assert_eq!(limiter.sources.len(), MAX_SOURCES);
    }
}
