//! When a thread lets packets gather before it looks again, as network cards moderate their interrupts.
//!
//! Waking for a small packet costs more than the packet. Where many come one by one and nobody waits for an answer to
//! each, a short pause has them come a few at a time:
//!
//! | what passes                                |         |
//! |--------------------------------------------|---------|
//! | a question and its answer, again and again | at once |
//! | bulk, and its acknowledgements             | at once: held back, they make bulk come in bursts, which costs more |
//! | a stream of small packets one way          | gathers |
//! | few packets of any kind                    | at once |
//!
//! The last but one is told from the others by the other direction, which carries nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How long packets gather. The kernel's timers add about 50 µs. A busy network card waits about as long.
const GATHER_FOR: Duration = Duration::from_micros(200);
/// Packets that are further apart are no stream. Longer than a pause takes, or a stream would end itself.
const STREAM_GAP: Duration = Duration::from_micros(500);
/// So many in a row make a stream.
const STREAM_AFTER: u32 = 16;
/// Who gets so many at once has no need of pauses.
const ENOUGH_AT_ONCE: usize = 32;

/// From here on what was carried at once was worth waking for.
const LARGE_BYTES: usize = 8 * 1024;
/// Of packets that are smaller on average, more would be better.
const LARGE_PACKET: usize = 1024;

/// What a thread carried at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// How many packets, those that stand for many counted once.
    pub packets: usize,
    bytes: usize,
}

impl Batch {
    /// So much more.
    pub fn add(&mut self, packets: usize, bytes: usize) {
        self.packets += packets;
        self.bytes += bytes;
    }

    /// Whether it is bulk, which waits for no other.
    pub fn is_large(&self) -> bool {
        self.bytes >= LARGE_BYTES && self.bytes >= LARGE_PACKET * self.packets
    }
}

/// Decides for the thread of one direction.
#[derive(Debug)]
pub struct Moderation {
    /// Batches this way …
    own: Arc<AtomicU64>,
    /// … and the other way.
    other: Arc<AtomicU64>,
    other_seen: u64,
    last_at: Option<Instant>,
    in_a_row: u32,
}

impl Moderation {
    /// For the two directions between one device and one socket.
    pub fn pair() -> [Moderation; 2] {
        let (outbound, inbound) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        [Moderation::new(&outbound, &inbound), Moderation::new(&inbound, &outbound)]
    }

    fn new(own: &Arc<AtomicU64>, other: &Arc<AtomicU64>) -> Moderation {
        Moderation { own: Arc::clone(own), other: Arc::clone(other), other_seen: 0, last_at: None, in_a_row: 0 }
    }

    /// `batch` was carried at `now`. How long to let more gather, if that is wise.
    pub fn on_batch(&mut self, batch: Batch, now: Instant) -> Option<Duration> {
        self.own.fetch_add(1, Relaxed);
        let other = self.other.load(Relaxed);
        let both_ways = std::mem::replace(&mut self.other_seen, other) != other;
        let sparse = self.last_at.replace(now).is_none_or(|last_at| now >= last_at + STREAM_GAP);
        self.in_a_row = if both_ways || sparse || batch.is_large() { 0 } else { self.in_a_row.saturating_add(1) };
        (self.in_a_row >= STREAM_AFTER && batch.packets < ENOUGH_AT_ONCE).then_some(GATHER_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::tests::sim::t0;

    const SMALL: Batch = Batch { packets: 1, bytes: 200 };
    const BULK: Batch = Batch { packets: 1, bytes: 60_000 };

    fn at(micros: u64) -> Instant {
        t0() + Duration::from_micros(micros)
    }

    #[test]
    fn a_stream_of_small_packets_gathers_after_a_while_and_stops_when_it_thins_out() {
        let [mut outbound, _] = Moderation::pair();

        let pauses: Vec<_> = (0..40).map(|i| outbound.on_batch(SMALL, at(i * 50)).is_some()).collect();

        assert_eq!(pauses.iter().position(|pause| *pause), Some(STREAM_AFTER as usize));
        assert!(pauses[STREAM_AFTER as usize..].iter().all(|pause| *pause));
        assert_eq!(outbound.on_batch(SMALL, at(40 * 50 + 1000)), None);
    }

    #[test]
    fn questions_and_answers_never_wait() {
        let [mut outbound, mut inbound] = Moderation::pair();

        for i in 0..1000 {
            assert_eq!(outbound.on_batch(SMALL, at(i * 60)), None);
            assert_eq!(inbound.on_batch(SMALL, at(i * 60 + 30)), None);
        }
    }

    #[test]
    fn neither_bulk_nor_its_acknowledgements_wait() {
        let [mut outbound, mut inbound] = Moderation::pair();
        let [mut alone, _] = Moderation::pair();

        for i in 0..100 {
            assert_eq!(outbound.on_batch(BULK, at(i * 140)), None);
            assert_eq!(inbound.on_batch(SMALL, at(i * 140)), None);
            assert_eq!(alone.on_batch(BULK, at(i * 140)), None);
        }
    }

    #[test]
    fn who_gets_many_at_once_does_not_wait_for_more() {
        let [mut outbound, _] = Moderation::pair();

        let many = Batch { packets: ENOUGH_AT_ONCE, bytes: 200 * ENOUGH_AT_ONCE };
        assert!((0..100).all(|i| outbound.on_batch(many, at(i * 50)).is_none()));
    }
}
