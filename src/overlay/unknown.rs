//! Destinations that nobody has told us about yet.
//!
//! ```text
//!              packet: ask, keep it              resolved: packets go to the peer
//!  (unknown) ─────────────────────────► Asked ─────────────────────────────────────► (a peer)
//!      ▲                                  │ └── unresolvable ──► Missing ── MISSING_FOR ──┐
//!      └──────────── GIVE_UP_AFTER ───────┴───────────────────────────────────────────────┘
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wiremesh_certs::OverlayIp;

use super::{Dropped, held::Held};

/// Destinations remembered at once; beyond it the one that was asked for longest ago is forgotten. A scan of the
/// overlay network meets this.
pub const MAX_UNKNOWN: usize = 256;
/// A question that was not answered is asked again if packets still come.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// Nobody answered: forget the destination and what was kept for it.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// How long a destination that nobody has is answered for from memory. Short: members join all the time.
pub const MISSING_FOR: Duration = Duration::from_secs(2);

/// All unknown destinations.
#[derive(Debug, Default)]
pub struct Unknown(BTreeMap<OverlayIp, State>);

#[derive(Debug)]
enum State {
    Asked { since: Instant, asked_at: Instant, held: Held },
    Missing { until: Instant },
}

/// What became of a packet for an unknown destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The question is to be asked.
    pub ask: bool,
    /// Earlier packets that had to go.
    pub displaced: usize,
}

impl Unknown {
    /// A packet for `destination`.
    pub fn hold(&mut self, destination: OverlayIp, packet: &[u8], now: Instant) -> Result<Kept, Dropped> {
        let mut kept = Kept::default();
        match self.0.get_mut(&destination) {
            Some(State::Missing { until }) if now < *until => return Err(Dropped::Unresolvable),
            Some(State::Asked { asked_at, held, .. }) => {
                kept.displaced = usize::from(held.push(packet, now));
                if now >= *asked_at + ASK_AGAIN_AFTER {
                    *asked_at = now;
                    kept.ask = true;
                }
            }
            Some(State::Missing { .. }) | None => {
                kept.displaced = self.make_room();
                let mut held = Held::default();
                held.push(packet, now);
                self.0.insert(destination, State::Asked { since: now, asked_at: now, held });
                kept.ask = true;
            }
        }
        Ok(kept)
    }

    /// The destination became a peer: what was kept for it.
    pub fn resolved(&mut self, destination: OverlayIp) -> Held {
        match self.0.remove(&destination) {
            Some(State::Asked { held, .. }) => held,
            Some(State::Missing { .. }) | None => Held::default(),
        }
    }

    /// Nobody has this address. Returns how many packets were kept for it.
    pub fn unresolvable(&mut self, destination: OverlayIp, now: Instant) -> usize {
        match self.0.get_mut(&destination) {
            Some(state @ State::Asked { .. }) => {
                let missing = State::Missing { until: now + MISSING_FOR };
                match std::mem::replace(state, missing) {
                    State::Asked { held, .. } => held.len(),
                    State::Missing { .. } => 0,
                }
            }
            Some(State::Missing { .. }) | None => 0,
        }
    }

    /// Forgets what is over. Returns how many packets were kept for it.
    pub fn handle_timeout(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        self.0.retain(|_, state| match state {
            State::Asked { since, held, .. } => {
                expired += held.expire(now);
                let over = now >= *since + GIVE_UP_AFTER;
                expired += usize::from(over) * held.len();
                !over
            }
            State::Missing { until } => now < *until,
        });
        expired
    }

    /// When [`Unknown::handle_timeout`] has something to forget.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let deadlines = self.0.values().flat_map(|state| match state {
            State::Asked { since, held, .. } => {
                [Some((*since + GIVE_UP_AFTER, "no answer about a destination")), held.poll_timeout()]
            }
            State::Missing { until } => [Some((*until, "a missing destination may be there")), None],
        });
        deadlines.flatten().min_by_key(|(at, _)| *at)
    }

    /// Forgets the oldest question if there is no room for another. Returns how many packets were kept for it.
    fn make_room(&mut self) -> usize {
        if self.0.len() < MAX_UNKNOWN {
            return 0;
        }
        let age = |state: &State| match state {
            State::Asked { since, .. } => *since,
            State::Missing { until } => *until,
        };
        let oldest = self.0.iter().min_by_key(|(_, state)| age(state)).map(|(destination, _)| *destination);
        oldest.map_or(0, |oldest| self.resolved(oldest).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{held::HELD_PACKETS, tests::sim::t0};

    fn ip(last: u32) -> OverlayIp {
        OverlayIp(std::net::Ipv4Addr::from_bits(0x0a2a_0000 + last).into())
    }

    #[test]
    fn a_question_is_asked_once_however_many_packets_come() {
        let mut unknown = Unknown::default();

        let asked = (0..100).filter(|_| unknown.hold(ip(1), b"x", t0()).unwrap().ask).count();

        assert_eq!(asked, 1);
        assert!(unknown.hold(ip(1), b"x", t0() + ASK_AGAIN_AFTER).unwrap().ask);
        assert_eq!(unknown.resolved(ip(1)).len(), HELD_PACKETS);
    }

    #[test]
    fn a_missing_destination_is_remembered_for_a_moment() {
        let mut unknown = Unknown::default();
        unknown.hold(ip(1), b"x", t0()).unwrap();

        assert_eq!(unknown.unresolvable(ip(1), t0()), 1);

        assert_eq!(unknown.hold(ip(1), b"x", t0()), Err(Dropped::Unresolvable));
        assert!(unknown.hold(ip(1), b"x", t0() + MISSING_FOR).unwrap().ask);
    }

    #[test]
    fn an_unanswered_question_is_given_up_with_its_packets() {
        let mut unknown = Unknown::default();
        unknown.hold(ip(1), b"x", t0()).unwrap();
        unknown.hold(ip(1), b"y", t0() + GIVE_UP_AFTER - Duration::from_secs(1)).unwrap();

        assert_eq!(unknown.handle_timeout(t0() + GIVE_UP_AFTER), 2);

        assert_eq!(unknown.poll_timeout(), None);
    }

    #[test]
    fn a_scan_of_the_network_is_bounded() {
        let mut unknown = Unknown::default();

        for last in 0..10_000 {
            unknown.hold(ip(last), b"x", t0() + Duration::from_millis(last.into())).unwrap();
        }

        assert_eq!(unknown.0.len(), MAX_UNKNOWN);
        assert!(unknown.0.contains_key(&ip(9_999)));
    }
}
