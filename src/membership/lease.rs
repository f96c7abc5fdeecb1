//! When to renew our certificate.
//!
//! ```text
//! issued ──────── half ──renew at──────────── ends
//!                  └─ up to a tenth of its life later, drawn by chance
//!                     failed: again after a while that doubles, never later than the end
//! ```

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use wiremesh_certs::{BACKDATED, UnixTime, Verified};

use crate::backoff::Backoff;

/// The first wait after a failed renewal.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest. Half a certificate's life has room for many.
const RETRY_AT_MOST: Duration = Duration::from_secs(15 * 60);

/// The lease of one certificate after the other.
#[derive(Debug)]
pub struct Lease {
    renew_at: UnixTime,
    ends_at: UnixTime,
    backoff: Backoff,
    rng: SmallRng,
}

impl Lease {
    /// The lease of the certificate in hand. `seed` is the only source of chance.
    pub fn new(verified: &Verified, seed: u64) -> Lease {
        let mut lease = Lease {
            renew_at: UnixTime(0),
            ends_at: UnixTime(0),
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
        let life = verified.not_after().saturating_since(issued_at);
        self.ends_at = verified.not_after();
        self.renew_at = issued_at.plus(life.mul_f64(self.rng.random_range(0.5..0.6)));
        self.backoff = Backoff::new(RETRY_AFTER.min(life / 10), RETRY_AT_MOST.min(life / 10), self.rng.random());
    }

    /// Renewing failed.
    pub fn on_failure(&mut self, now: UnixTime) {
        let wait = self.backoff.next_delay().max(Duration::from_secs(1));
        self.renew_at = now.plus(wait);
    }

    /// When to renew, and why.
    pub fn poll_timeout(&self) -> (UnixTime, &'static str) {
        if self.backoff.failures() > 0 {
            (self.renew_at, "renewing failed before")
        } else {
            (self.renew_at, "half of the certificate's life is over")
        }
    }

    /// Whether it is time.
    pub fn is_due(&self, now: UnixTime) -> bool {
        now >= self.renew_at
    }

    /// When the certificate ends.
    pub fn ends_at(&self) -> UnixTime {
        self.ends_at
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
}
