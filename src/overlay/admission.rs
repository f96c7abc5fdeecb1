//! How many expensive questions strangers may ask: signatures and key agreements a second, in all and per source.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Sources are told apart by prefix (IPv4 /24, IPv6 /48) in this many buckets. Two sources that fall into one share
/// its allowance; with a fixed table a flood from many addresses cannot make us remember them all.
pub const SOURCE_BUCKETS: usize = 256;

/// How much is allowed: `burst` at once, `per_second` in the long run.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Tokens gained a second.
    pub per_second: u32,
    /// Tokens kept at most.
    pub burst: u32,
}

/// Records of introductions checked, about 0.1 ms each: 4 % of a core at the most.
pub const INTRODUCTIONS: Allowance = Allowance { per_second: 400, burst: 800 };
/// … and from one source, so that a flood from one place leaves room for others. A site whose nodes all start at once
/// gets through by repetition.
pub const INTRODUCTIONS_PER_SOURCE: Allowance = Allowance { per_second: 50, burst: 200 };
/// Handshakes answered, about 0.6 ms each: 30 % of a core at the most.
pub const HANDSHAKES: Allowance = Allowance { per_second: 500, burst: 1000 };
/// … and from one source.
pub const HANDSHAKES_PER_SOURCE: Allowance = Allowance { per_second: 100, burst: 300 };

/// One kind of question, limited in all and per source.
pub struct Admission {
    all: Bucket,
    per_source: Box<[Bucket]>,
    /// Makes it unpredictable which sources share a bucket.
    seed: u64,
}

impl Admission {
    /// Full buckets.
    pub fn new(all: Allowance, per_source: Allowance, seed: u64, now: Instant) -> Admission {
        Admission {
            all: Bucket::full(all, now),
            per_source: (0..SOURCE_BUCKETS).map(|_| Bucket::full(per_source, now)).collect(),
            seed,
        }
    }

    /// Whether one more question from `source` may be looked at.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        let bucket = self.bucket_of(source);
        self.per_source[bucket].take(now) && self.all.take(now)
    }

    /// A multiplicative hash of the prefix: cheap, and good enough to spread.
    fn bucket_of(&self, source: IpAddr) -> usize {
        let prefix = match source {
            IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
            IpAddr::V6(address) => (address.to_bits() >> 80) as u64 | 1 << 63,
        };
        let mixed = (prefix ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) as usize >> 40 & (SOURCE_BUCKETS - 1)
    }
}

/// Counts in thousandths of a token, so that slow rates gain at every call.
struct Bucket {
    allowance: Allowance,
    thousandths: u64,
    filled_at: Instant,
}

const TOKEN: u64 = 1000;

impl Bucket {
    fn full(allowance: Allowance, now: Instant) -> Bucket {
        Bucket { allowance, thousandths: u64::from(allowance.burst) * TOKEN, filled_at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let gained = millis.saturating_mul(u64::from(self.allowance.per_second));
        self.filled_at += Duration::from_millis(millis);
        self.thousandths = self.thousandths.saturating_add(gained).min(u64::from(self.allowance.burst) * TOKEN);
        let enough = self.thousandths >= TOKEN;
        if enough {
            self.thousandths -= TOKEN;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::tests::sim::t0;

    const SLOW: Allowance = Allowance { per_second: 10, burst: 5 };
    const FAST: Allowance = Allowance { per_second: 1000, burst: 1000 };

    fn admitted(admission: &mut Admission, source: &str, now: Instant) -> usize {
        (0..1000).filter(|_| admission.admit(source.parse().unwrap(), now)).count()
    }

    #[test]
    fn a_flood_gets_the_burst_and_then_the_rate() {
        let mut admission = Admission::new(SLOW, FAST, 1, t0());

        assert_eq!(admitted(&mut admission, "192.0.2.1", t0()), 5);
        assert_eq!(admitted(&mut admission, "192.0.2.1", t0() + Duration::from_millis(250)), 2);
        assert_eq!(admitted(&mut admission, "192.0.2.1", t0() + Duration::from_secs(60)), 5);
    }

    #[test]
    fn a_flood_from_one_source_leaves_room_for_another() {
        let mut admission = Admission::new(FAST, SLOW, 1, t0());

        admitted(&mut admission, "192.0.2.1", t0());

        assert_eq!(admitted(&mut admission, "192.0.2.77", t0()), 0, "the same /24");
        assert_eq!(admitted(&mut admission, "2001:db8::1", t0()), 5);
    }

    #[test]
    fn sources_spread_over_the_buckets() {
        let admission = Admission::new(FAST, SLOW, 99, t0());

        let used: std::collections::BTreeSet<_> =
            (0..1000u32).map(|i| admission.bucket_of(std::net::Ipv4Addr::from_bits(i << 8).into())).collect();

        assert!(used.len() > SOURCE_BUCKETS * 8 / 10, "{}", used.len());
    }
}
