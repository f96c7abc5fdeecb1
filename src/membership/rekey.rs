//! When this node changes its keys, and whether the answer to its request may be believed.
//!
//! ```text
//! keys at hand ── rotate_keys_every, or told to ──► next keys made ──► certified by the coordinator ──► switched to
//!                                                   └─ failed: again after a while that doubles ─┘
//! ```
//!
//! Every step can be repeated after a crash: the next keys are kept before they are shown to anybody, the coordinator
//! answers the same request again, and the switch is made whenever a certificate of the next keys is found on disk.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use wiremesh_certs::{
    BadRequest, CertificateRequest, IdentityKey, NodeId, NodeName, OverlayIp, Trust, UnixTime, Verified, WgPrivateKey,
    WgPublicKey,
};

use super::joining::{self, BadAnswer};
use crate::{api::RekeyRequest, backoff::Backoff};

/// The first wait after a change that failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// The longest.
const RETRY_AT_MOST: Duration = Duration::from_secs(3600);
/// Machines that joined together do not all start anew together: up to this share of the period earlier, by chance.
const SPREAD: f64 = 0.1;

/// When the keys are due.
#[derive(Debug)]
pub struct Schedule {
    due_at: Option<UnixTime>,
    backoff: Backoff,
}

impl Schedule {
    /// For keys made at `made_at` that are to be changed `every` so often, if at all; at once if a change was begun and
    /// cut off. `seed` is the only source of chance.
    pub fn new(made_at: UnixTime, every: Option<Duration>, was_begun: bool, seed: u64) -> Schedule {
        let early = SmallRng::seed_from_u64(seed).random_range(1.0 - SPREAD..=1.0);
        let due_at = match (was_begun, every) {
            (true, _) => Some(made_at),
            (false, Some(every)) => Some(made_at.plus(every.mul_f64(early))),
            (false, None) => None,
        };
        Schedule { due_at, backoff: Backoff::new(RETRY_AFTER, RETRY_AT_MOST, seed) }
    }

    /// Whether it is time.
    pub fn is_due(&self, now: UnixTime) -> bool {
        self.due_at.is_some_and(|due_at| now >= due_at)
    }

    /// When it will be; `None`: only when told to.
    pub fn due_at(&self) -> Option<UnixTime> {
        self.due_at
    }

    /// It failed, and may go better later.
    pub fn on_failure(&mut self, now: UnixTime) {
        self.due_at = Some(now.plus(self.backoff.next_delay()));
    }
}

/// The request for a certificate of the next keys.
pub fn request(identity: &IdentityKey, wg: &WgPrivateKey, name: &NodeName) -> Result<RekeyRequest, BadRequest> {
    let wireguard_key = wg.public();
    Ok(RekeyRequest { csr: CertificateRequest::create(identity, name, &wireguard_key)?, wireguard_key })
}

/// Checks the answer: the next keys, and everything else as before.
pub fn accept(
    trust: &Trust,
    pem: &str,
    next: NodeId,
    wg: WgPublicKey,
    before: &Verified,
    now: UnixTime,
) -> Result<Verified, BadAnswer> {
    let verified = joining::ours(trust, pem, next, wg, before.name(), now)?;
    joining::same::<OverlayIp>("overlay address", &verified.address(), &before.address())?;
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: UnixTime = UnixTime(1_800_000_000);
    const EVERY: Duration = Duration::from_secs(1000);

    #[test]
    fn keys_are_due_a_little_before_their_period_is_over_and_never_without_one() {
        for seed in 0..50 {
            let schedule = Schedule::new(MADE, Some(EVERY), false, seed);

            assert!(!schedule.is_due(MADE.plus(EVERY.mul_f64(1.0 - SPREAD)).minus(Duration::from_secs(1))));
            assert!(schedule.is_due(MADE.plus(EVERY)));
        }
        assert_eq!(Schedule::new(MADE, None, false, 1).due_at(), None);
    }

    #[test]
    fn what_was_begun_goes_on_at_once_and_what_failed_after_a_while() {
        let mut schedule = Schedule::new(MADE, None, true, 1);
        assert!(schedule.is_due(MADE));

        schedule.on_failure(MADE);

        assert!(!schedule.is_due(MADE));
        assert!(schedule.is_due(MADE.plus(RETRY_AFTER)));
    }
}
