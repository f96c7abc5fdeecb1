//! When to renew our certificate.
//!
//! ```text
//! issued ──────── half ──renew at──────────── ends ─ ─ ─ ─ ─ (the coordinator's window) ─ ─
//!                  └─ up to a tenth of its life later, drawn by chance
//!                     failed: again after a while that doubles, and after the end too
//! another authority issues now: soon, within a time by which all renew, drawn by chance
//! ```

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use wiremesh_certs::{BACKDATED, UnixTime, Verified};

use crate::backoff::Backoff;

/// The first wait after a failed renewal.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest. Half a certificate's life has room for many.
const RETRY_AT_MOST: Duration = Duration::from_secs(15 * 60);
/// The longest once the certificate has ended: nothing works until there is another.
pub const RETRY_AFTER_THE_END_AT_MOST: Duration = Duration::from_secs(30);
/// When another authority issues, all members renew within this, and sooner where certificates are short-lived.
const REPLACED_WITHIN: Duration = Duration::from_secs(5 * 60);
/// When ours is believed no more, nothing works until the certificate is renewed.
const RETIRED_WITHIN: Duration = Duration::from_secs(3);

/// Why the certificate is to be renewed when it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Why {
    Half,
    Replaced,
    Retired,
    Asked,
    Failed,
}

/// The lease of one certificate after the other.
#[derive(Debug)]
pub struct Lease {
    renew_at: UnixTime,
    ends_at: UnixTime,
    life: Duration,
    why: Why,
    backoff: Backoff,
    rng: SmallRng,
}

impl Lease {
    /// The lease of the certificate in hand. `seed` is the only source of chance.
    pub fn new(verified: &Verified, seed: u64) -> Lease {
        let mut lease = Lease {
            renew_at: UnixTime(0),
            ends_at: UnixTime(0),
            life: Duration::ZERO,
            why: Why::Half,
            backoff: Backoff::new(RETRY_AFTER, RETRY_AT_MOST, seed),
            rng: SmallRng::seed_from_u64(seed),
        };
        lease.on_renewed(verified);
        lease
    }

    /// There is another certificate.
    pub fn on_renewed(&mut self, verified: &Verified) {
        // Certificates begin a little before they are made.
        let issued_at = verified.not_before().plus(BACKDATED);
        self.life = verified.not_after().saturating_since(issued_at);
        self.ends_at = verified.not_after();
        self.renew_at = issued_at.plus(self.life.mul_f64(self.rng.random_range(0.5..0.6)));
        self.why = Why::Half;
        self.backoff =
            Backoff::new(RETRY_AFTER.min(self.life / 10), RETRY_AT_MOST.min(self.life / 10), self.rng.random());
    }

    /// Another authority issues now: renew soon, but not all members at once.
    pub fn on_replaced(&mut self, now: UnixTime) {
        if self.why == Why::Half {
            let within = REPLACED_WITHIN.min(self.life / 8).mul_f64(self.rng.random_range(0.1..1.0));
            let at = now.plus(within.max(Duration::from_secs(1)));
            if at < self.renew_at {
                (self.renew_at, self.why) = (at, Why::Replaced);
            }
        }
    }

    /// Our authority is believed no more: renew at once, though not all in the same second.
    pub fn on_retired(&mut self, now: UnixTime) {
        if matches!(self.why, Why::Half | Why::Replaced) {
            let at = now.plus(RETIRED_WITHIN.mul_f64(self.rng.random_range(0.0..1.0)));
            (self.renew_at, self.why) = (at.min(self.renew_at), Why::Retired);
        }
    }

    /// Renewing failed.
    pub fn on_failure(&mut self, now: UnixTime) {
        let wait = self.backoff.next_delay().max(Duration::from_secs(1));
        let wait = if now < self.ends_at { wait } else { wait.min(RETRY_AFTER_THE_END_AT_MOST) };
        // Nobody is to find out half an hour late that the certificate has ended.
        let at_the_end = if now < self.ends_at { self.ends_at } else { UnixTime(u64::MAX) };
        self.renew_at = now.plus(wait).min(at_the_end);
        self.why = Why::Failed;
    }

    /// A coordinator is there again, or somebody asks for it: what failed before is tried again now.
    pub fn hasten(&mut self, now: UnixTime) {
        if self.why == Why::Failed {
            self.renew_at = self.renew_at.min(now);
        }
    }

    /// An operator wants it now.
    pub fn ask(&mut self, now: UnixTime) {
        (self.renew_at, self.why) = (now, Why::Asked);
    }

    /// When to renew, and why.
    pub fn poll_timeout(&self) -> (UnixTime, &'static str) {
        let why = match self.why {
            Why::Half => "half of the certificate's life is over",
            Why::Replaced => "another authority issues now",
            Why::Retired => "our authority is believed no more",
            Why::Asked => "asked to",
            Why::Failed => "renewing failed before",
        };
        (self.renew_at, why)
    }

    /// Whether it is time.
    pub fn is_due(&self, now: UnixTime) -> bool {
        now >= self.renew_at
    }

    /// When the certificate ends.
    pub fn ends_at(&self) -> UnixTime {
        self.ends_at
    }

    /// Renewals that failed since the last that succeeded.
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use wiremesh_certs::{
        AllowedServices, Authority, CaParameters, Claims, IdentityKey, MeshName, NodeName, Trust, WgPublicKey,
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn certificate(lifetime: Duration) -> Verified {
        let mut rng = StdRng::seed_from_u64(1);
        let parameters = CaParameters {
            mesh: MeshName::new("lab").unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400 * 365),
        };
        let authority = Authority::create(&parameters, NOW, &mut rng).unwrap();
        let claims = Claims {
            identity: IdentityKey::generate(&mut rng).id(),
            wg: WgPublicKey([1; 32]),
            name: NodeName::new("a").unwrap(),
            address: "10.42.0.2".parse().unwrap(),
            groups: Vec::new(),
            services: AllowedServices::Any,
            lifetime,
        };
        let chain = authority.issue(&claims, NOW, &mut rng).unwrap();
        Trust::new(authority.certificate().clone()).verify(&chain, NOW).unwrap()
    }

    #[test]
    fn renewal_is_due_soon_after_half_of_the_life() {
        for seconds in [10, 3600, 7 * 86_400] {
            for seed in 0..20 {
                let lease = Lease::new(&certificate(Duration::from_secs(seconds)), seed);

                assert!(!lease.is_due(NOW.plus(Duration::from_secs(seconds / 2 - 1))));
                assert!(lease.is_due(NOW.plus(Duration::from_secs(seconds * 6 / 10))));
            }
        }
    }

    #[test]
    fn machines_that_joined_together_do_not_renew_together() {
        let verified = certificate(Duration::from_secs(7 * 86_400));

        let times: std::collections::BTreeSet<_> =
            (0..50).map(|seed| Lease::new(&verified, seed).poll_timeout().0).collect();

        assert!(times.len() > 45);
    }

    #[test]
    fn a_failed_renewal_is_tried_again_later_and_later_but_many_times_before_the_end() {
        let mut lease = Lease::new(&certificate(Duration::from_secs(3600)), 1);
        let mut now = lease.poll_timeout().0;
        let mut tries = 0;

        while now < lease.ends_at() {
            lease.on_failure(now);
            assert!(!lease.is_due(now));
            now = lease.poll_timeout().0;
            tries += 1;
        }

        assert!((5..40).contains(&tries), "{tries}");
        lease.on_renewed(&certificate(Duration::from_secs(7200)));
        assert_eq!(lease.poll_timeout().1, "half of the certificate's life is over");
    }
    #[test]
    fn a_certificate_of_an_authority_that_is_replaced_is_renewed_soon_but_not_by_all_at_once() {
        for (life, within) in [(60, 8), (7 * 86_400, 300)] {
            let verified = certificate(Duration::from_secs(life));
            let mut times = std::collections::BTreeSet::new();
            for seed in 0..50 {
                let mut lease = Lease::new(&verified, seed);
                lease.on_replaced(NOW);
                let (at, why) = lease.poll_timeout();
                lease.on_replaced(NOW.plus(Duration::from_secs(1)));

                assert_eq!(lease.poll_timeout(), (at, why), "hearing of it twice does not put it off");
                assert_eq!(why, "another authority issues now");
                assert!(at > NOW && at <= NOW.plus(Duration::from_secs(within)));
                times.insert(at);
            }
            assert!(times.len() > 5, "{times:?}");
            let mut lease = Lease::new(&verified, 1);
            lease.on_replaced(NOW);
            lease.on_retired(NOW);
            assert_eq!(lease.poll_timeout().1, "our authority is believed no more");
            assert!(lease.poll_timeout().0 <= NOW.plus(RETIRED_WITHIN));
        }
    }

    #[test]
    fn after_the_end_renewing_is_tried_at_least_twice_a_minute() {
        let mut lease = Lease::new(&certificate(Duration::from_secs(7 * 86_400)), 1);
        let mut now = lease.ends_at().minus(Duration::from_secs(86_400));
        while now < lease.ends_at() {
            lease.on_failure(now);
            now = lease.poll_timeout().0;
        }
        assert_eq!(now, lease.ends_at(), "the end itself is a reason to try");

        for _ in 0..50 {
            lease.on_failure(now);
            let next = lease.poll_timeout().0;
            assert!(next > now && next <= now.plus(RETRY_AFTER_THE_END_AT_MOST));
            now = next;
        }
    }

    #[test]
    fn what_failed_is_tried_again_when_a_coordinator_is_back_and_what_is_not_due_is_not() {
        let verified = certificate(Duration::from_secs(7 * 86_400));
        let mut lease = Lease::new(&verified, 1);
        lease.hasten(NOW);
        assert!(!lease.is_due(NOW));

        let due = lease.poll_timeout().0;
        lease.on_failure(due);
        assert!(!lease.is_due(due));
        lease.hasten(due);
        assert!(lease.is_due(due));
        lease.on_renewed(&verified);
        lease.ask(NOW);
        assert!(lease.is_due(NOW));
    }
}
