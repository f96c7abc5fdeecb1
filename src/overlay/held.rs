//! A few packets that wait for a destination to be found or a session to begin.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Packets kept for one destination; beyond it the oldest goes. Enough for the first packets of a few connections,
/// whose senders repeat them anyway.
pub const HELD_PACKETS: usize = 16;
/// No packet waits longer: its sender has sent another by then.
pub const HELD_FOR: Duration = Duration::from_secs(5);

/// Packets in order of arrival, the only ones that are allocated one by one: there are few, and only at beginnings.
#[derive(Debug, Default)]
pub struct Held(VecDeque<(Instant, Box<[u8]>)>);

impl Held {
    /// Keeps a packet. Returns whether an older one had to go for it.
    pub fn push(&mut self, packet: &[u8], now: Instant) -> bool {
        let full = self.0.len() == HELD_PACKETS;
        if full {
            self.0.pop_front();
        }
        self.0.push_back((now, packet.into()));
        full
    }

    /// All, oldest first.
    pub fn packets(self) -> impl Iterator<Item = Box<[u8]>> {
        self.0.into_iter().map(|(_, packet)| packet)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes over what waited elsewhere, before what waits here. Returns how many had no room.
    pub fn prepend(&mut self, mut earlier: Held) -> usize {
        earlier.0.append(&mut self.0);
        let surplus = earlier.0.len().saturating_sub(HELD_PACKETS);
        earlier.0.drain(..surplus);
        *self = earlier;
        surplus
    }

    /// Forgets what waited too long. Returns how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let expired = self.0.iter().take_while(|(held_at, _)| now >= *held_at + HELD_FOR).count();
        self.0.drain(..expired);
        expired
    }

    /// When [`Held::expire`] will forget the oldest.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.0.front().map(|(held_at, _)| (*held_at + HELD_FOR, "packets held too long"))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::tests::sim::t0;

    fn packets(held: Held) -> Vec<u8> {
        held.packets().map(|packet| packet[0]).collect()
    }

    #[test]
    fn beyond_the_bound_the_oldest_goes() {
        let mut held = Held::default();

        let displaced = (0..20u8).filter(|i| held.push(&[*i], t0())).count();

        assert_eq!(displaced, 4);
        assert_eq!(packets(held), (4..20).collect::<Vec<_>>());
    }

    #[test]
    fn what_waited_earlier_stays_first_when_two_queues_become_one() {
        let (mut earlier, mut later) = (Held::default(), Held::default());
        (0..10u8).for_each(|i| _ = earlier.push(&[i], t0()));
        (10..20u8).for_each(|i| _ = later.push(&[i], t0()));

        assert_eq!(later.prepend(earlier), 4);

        assert_eq!(packets(later), (4..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_packet_that_waited_too_long_is_forgotten() {
        let mut held = Held::default();
        held.push(&[1], t0());
        held.push(&[2], t0() + HELD_FOR / 2);

        assert_eq!(held.expire(t0() + HELD_FOR), 1);

        assert_eq!(packets(held), [2]);
    }
}
