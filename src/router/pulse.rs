//! Whether a client that has a place at a service still does its part of the request.
//!
//! ```text
//!            what executes it waits for its body ──► owes a piece of it ──┐
//! lives ─┤                                                                ├─ a minute ──► stalled
//!            a piece of the answer is there for it ──► owes to take it ───┘
//! ```
//!
//! Any piece that comes from it, and any that it takes, is a sign of life. A client that waits for its answer owes nothing,
//! however long that takes.

use std::time::{Duration, Instant};

/// A client that owes something for so long, without a sign of life, does nothing: no network that still works holds a
/// piece up for this long.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);

/// What one client owes, and since when.
#[derive(Debug)]
pub struct Pulse {
    owes_body: bool,
    owes_taking: bool,
    /// Its last sign of life, or when it began to owe something.
    since: Instant,
}

impl Pulse {
    /// It owes nothing yet.
    pub fn new(now: Instant) -> Pulse {
        Pulse { owes_body: false, owes_taking: false, since: now }
    }

    /// The next piece of its body is waited for.
    pub fn on_body_awaited(&mut self, now: Instant) {
        self.begin(now);
        self.owes_body = true;
    }

    /// That piece, or the end of the body, is there.
    pub fn on_body(&mut self, now: Instant) {
        self.owes_body = false;
        self.since = now;
    }

    /// A piece of the answer is there for it.
    pub fn on_answer(&mut self, now: Instant) {
        self.begin(now);
        self.owes_taking = true;
    }

    /// It has taken what there was.
    pub fn on_taken(&mut self, now: Instant) {
        if self.owes_taking {
            self.owes_taking = false;
            self.since = now;
        }
    }

    /// Whether it does nothing.
    pub fn is_stalled(&self, now: Instant) -> bool {
        self.owes() && now.saturating_duration_since(self.since) >= STALLED_AFTER
    }

    fn owes(&self) -> bool {
        self.owes_body || self.owes_taking
    }

    fn begin(&mut self, now: Instant) {
        if !self.owes() {
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_client_that_waits_for_its_answer_is_never_stalled() {
        let (mut pulse, now) = pulse();
        pulse.on_body_awaited(now);
        pulse.on_body(now + SECOND);

        assert!(!pulse.is_stalled(now + 1000 * STALLED_AFTER));
    }

    #[test]
    fn a_client_whose_body_does_not_come_is_stalled_after_its_last_piece() {
        let (mut pulse, now) = pulse();
        // What executes it was slow to ask for the body: that is not the client's time.
        let asked_at = now + 2 * STALLED_AFTER;
        pulse.on_body_awaited(asked_at);
        assert!(!pulse.is_stalled(asked_at + SECOND));
        pulse.on_body(asked_at + 30 * SECOND);
        pulse.on_body_awaited(asked_at + 30 * SECOND);

        assert!(!pulse.is_stalled(asked_at + STALLED_AFTER + 29 * SECOND));
        assert!(pulse.is_stalled(asked_at + STALLED_AFTER + 30 * SECOND));
    }

    #[test]
    fn a_client_that_does_not_take_its_answer_is_stalled_until_it_does() {
        let (mut pulse, now) = pulse();
        pulse.on_answer(now);

        assert!(pulse.is_stalled(now + STALLED_AFTER));
        pulse.on_taken(now + STALLED_AFTER);
        assert!(!pulse.is_stalled(now + 10 * STALLED_AFTER));
    }

    #[test]
    fn who_takes_an_answer_while_its_body_is_open_lives() {
        let (mut pulse, now) = pulse();
        pulse.on_body_awaited(now);
        for second in 1..200 {
            let now = now + second * SECOND;
            pulse.on_answer(now);
            pulse.on_taken(now);

            assert!(!pulse.is_stalled(now + STALLED_AFTER / 2));
        }
        // To ask for the body again is no sign of life.
        pulse.on_body_awaited(now + 240 * SECOND);

        assert!(pulse.is_stalled(now + 260 * SECOND));
    }

    fn pulse() -> (Pulse, Instant) {
        let now = crate::clock::now();
        (Pulse::new(now), now)
    }
}
