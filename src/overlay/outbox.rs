//! What the machine wants of the world, until the loop fetches it.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    Dropped, Event,
    batch::{Packets, Transmits},
    dropped::Counters,
    session::TICK,
};
use crate::beat;

/// Events kept until they are fetched; beyond it the oldest goes. What was asked in it is asked again.
pub const MAX_EVENTS: usize = 256;

/// Filled by the parts of the machine, drained by its `poll_*`.
pub struct Outbox {
    /// Sessions tick on this beat.
    beat: Instant,
    /// For the UDP socket.
    pub transmits: Transmits,
    /// For the TUN device.
    pub packets: Packets,
    /// What was dropped and what went through.
    pub counters: Arc<Counters>,
    /// When to wake the machine.
    pub wake: Wake,
    /// When sessions are to be ticked, if one is awake.
    pub tick_at: Option<Instant>,
    events: VecDeque<Event>,
}

impl Outbox {
    /// Empty.
    pub fn new(counters: Arc<Counters>, beat: Instant) -> Outbox {
        Outbox {
            beat,
            transmits: Transmits::new(),
            packets: Packets::new(),
            counters,
            wake: Wake::default(),
            tick_at: None,
            events: VecDeque::with_capacity(MAX_EVENTS),
        }
    }

    /// Tells the app something.
    pub fn tell(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The oldest event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A session is awake: tick it.
    pub fn stay_awake(&mut self, now: Instant) {
        let at = *self.tick_at.get_or_insert_with(|| beat::next(self.beat, now, TICK));
        self.wake.note(Some((at, "sessions tick")));
    }

    /// Counts a datagram for which there was no room. False, to stand at the end of an `||`.
    pub fn full(&self) -> bool {
        self.counters.count(Dropped::BatchFull);
        false
    }
}

/// The earliest deadline of all that were noted since the last time they were looked through. Waking too early does no
/// harm; what is not noted is not woken for.
#[derive(Debug, Default)]
pub struct Wake(Option<(Instant, &'static str)>);

impl Wake {
    /// Wake then, or before.
    pub fn note(&mut self, deadline: Option<(Instant, &'static str)>) {
        if let Some((at, _)) = deadline
            && self.0.is_none_or(|(earliest, _)| at < earliest)
        {
            self.0 = deadline;
        }
    }

    /// Begin again, before all deadlines are noted anew.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// When, and why.
    pub fn at(&self) -> Option<(Instant, &'static str)> {
        self.0
    }
}
