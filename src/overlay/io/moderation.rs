//! How a thread waits for the next packet: as network cards moderate their interrupts, and as the kernel polls busily.
//!
//! Being woken costs more than a small packet. It is saved where many come one by one:
//!
//! | what passes                                         | the thread                                     |
//! |-----------------------------------------------------|------------------------------------------------|
//! | small packets one way, close together               | lets a few gather before it looks again        |
//! | small packets both ways in turn, close together     | looks busily for a moment before it sleeps     |
//! | bulk, and its acknowledgements                      | sleeps until it is woken: held back, they come |
//! |                                                     | in bursts, which costs more                    |
//! | few packets of any kind                             | sleeps until it is woken                       |
//!
//! What passes is told by the other direction: it carries nothing, small packets, or bulk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How the thread is to wait for the next packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Sleep until it comes.
    Sleep,
    /// Let some gather for so long, then look.
    Gather(Duration),
    /// Look again and again for so long, giving way to others, then sleep. A processor that sleeps takes longer to wake
    /// than the whole exchange, and those who exchange packets wait for each other.
    Look(Duration),
}

/// How long packets gather. The kernel's timers add about 50 µs. A busy network card waits about as long.
const GATHER_FOR: Duration = Duration::from_micros(200);
/// How long to look busily: what Linux recommends for its own busy polling. At the slowest exchange that counts as one,
/// a tenth of the time.
const LOOK_FOR: Duration = Duration::from_micros(50);
/// Packets that are further apart are no stream. Longer than a pause takes, or a stream would end itself.
const STREAM_GAP: Duration = Duration::from_micros(500);
/// So many in a row make a stream or an exchange.
const STREAM_AFTER: u32 = 16;
/// Who gets so many at once has no need of pauses.
const ENOUGH_AT_ONCE: usize = 32;

/// Packets of at least this size on average are bulk, be it the short end of a large one.
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
        self.bytes >= LARGE_PACKET * self.packets
    }
}

/// Batches carried in one direction.
#[derive(Debug, Default)]
struct Carried {
    small: AtomicU64,
    large: AtomicU64,
}

/// Decides for the thread of one direction.
#[derive(Debug)]
pub struct Moderation {
    own: Arc<Carried>,
    other: Arc<Carried>,
    /// What the other direction had carried, small and large, when it was last looked at.
    other_seen: (u64, u64),
    last_at: Option<Instant>,
    one_way: u32,
    in_turn: u32,
}

impl Moderation {
    /// For the two directions between one device and one socket.
    pub fn pair() -> [Moderation; 2] {
        let (outbound, inbound) = (Arc::<Carried>::default(), Arc::<Carried>::default());
        [Moderation::new(&outbound, &inbound), Moderation::new(&inbound, &outbound)]
    }

    fn new(own: &Arc<Carried>, other: &Arc<Carried>) -> Moderation {
        Moderation {
            own: Arc::clone(own),
            other: Arc::clone(other),
            other_seen: (0, 0),
            last_at: None,
            one_way: 0,
            in_turn: 0,
        }
    }

    /// `batch` was carried at `now`. How to wait for the next.
    pub fn on_batch(&mut self, batch: Batch, now: Instant) -> Next {
        let own = if batch.is_large() { &self.own.large } else { &self.own.small };
        own.fetch_add(1, Relaxed);
        let other = (self.other.small.load(Relaxed), self.other.large.load(Relaxed));
        let seen = std::mem::replace(&mut self.other_seen, other);
        let close = self.last_at.replace(now).is_some_and(|last_at| now < last_at + STREAM_GAP) && !batch.is_large();
        let (small, large) = (other.0 != seen.0, other.1 != seen.1);
        self.one_way = if close && !small && !large { self.one_way.saturating_add(1) } else { 0 };
        self.in_turn = if close && small && !large { self.in_turn.saturating_add(1) } else { 0 };
        if self.one_way >= STREAM_AFTER && batch.packets < ENOUGH_AT_ONCE {
            Next::Gather(GATHER_FOR)
        } else if self.in_turn >= STREAM_AFTER && batch.packets < ENOUGH_AT_ONCE {
            Next::Look(LOOK_FOR)
        } else {
            Next::Sleep
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::tests::sim::t0;

    const SMALL: Batch = Batch { packets: 1, bytes: 200 };
    const BULK: Batch = Batch { packets: 1, bytes: 60_000 };
    const GATHER: Next = Next::Gather(GATHER_FOR);
    const LOOK: Next = Next::Look(LOOK_FOR);

    fn at(micros: u64) -> Instant {
        t0() + Duration::from_micros(micros)
    }

    #[test]
    fn a_stream_of_small_packets_gathers_after_a_while_and_stops_when_it_thins_out() {
        let [mut outbound, _] = Moderation::pair();

        let next: Vec<_> = (0..40).map(|i| outbound.on_batch(SMALL, at(i * 50))).collect();

        let (before, after) = next.split_at(STREAM_AFTER as usize);
        assert!(before.iter().all(|next| *next == Next::Sleep) && after.iter().all(|next| *next == GATHER));
        assert_eq!(outbound.on_batch(SMALL, at(40 * 50 + 1000)), Next::Sleep);
    }

    #[test]
    fn questions_and_answers_close_together_are_looked_for_and_never_gather() {
        let [mut outbound, mut inbound] = Moderation::pair();

        let mut next = Vec::new();
        for i in 0..100 {
            next.push(outbound.on_batch(SMALL, at(i * 60)));
            next.push(inbound.on_batch(SMALL, at(i * 60 + 30)));
        }

        assert!(next.iter().all(|next| matches!(next, Next::Sleep | Next::Look(_))));
        assert!(next[3 * STREAM_AFTER as usize..].iter().all(|next| *next == LOOK));
    }

    #[test]
    fn questions_now_and_then_wake_nobody_longer_than_they_last() {
        let [mut outbound, mut inbound] = Moderation::pair();

        for i in 0..100 {
            assert_eq!(outbound.on_batch(SMALL, at(i * 1000)), Next::Sleep);
            assert_eq!(inbound.on_batch(SMALL, at(i * 1000 + 100)), Next::Sleep);
        }
    }

    #[test]
    fn neither_bulk_nor_its_acknowledgements_wait() {
        let [mut outbound, mut inbound] = Moderation::pair();
        let [mut alone, _] = Moderation::pair();

        for i in 0..100 {
            assert_eq!(outbound.on_batch(BULK, at(i * 140)), Next::Sleep);
            assert_eq!(inbound.on_batch(SMALL, at(i * 140)), Next::Sleep);
            assert_eq!(alone.on_batch(BULK, at(i * 140)), Next::Sleep);
        }
    }

    #[test]
    fn the_short_ends_of_bulk_and_its_acknowledgements_are_no_exchange() {
        let [mut outbound, mut inbound] = Moderation::pair();
        let end = Batch { packets: 3, bytes: 3 * 1452 };

        for i in 0..100 {
            assert_eq!(inbound.on_batch(end, at(i * 140)), Next::Sleep);
            assert_eq!(outbound.on_batch(SMALL, at(i * 140 + 70)), Next::Sleep);
        }
    }

    #[test]
    fn who_gets_many_at_once_does_not_wait_for_more() {
        let [mut outbound, _] = Moderation::pair();

        let many = Batch { packets: ENOUGH_AT_ONCE, bytes: 200 * ENOUGH_AT_ONCE };
        assert!((0..100).all(|i| outbound.on_batch(many, at(i * 50)) == Next::Sleep));
    }
}
