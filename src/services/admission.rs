//! Who is let in to a service now, who waits, and who is told to come back when.
//!
//! ```text
//! admit ──► Now ─────────────────────────► release ──► next in line is let in
//!   ├─────► Wait(ticket) ── let in ──────►    ▲
//!   │          └── abandon (client left)      │
//!   └─────► Full(retry after)           started_at … now feeds the service time
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Weight of one answer in the average service time: about the last ten answers count.
const SERVICE_TIME_WEIGHT: f64 = 0.2;
/// What an answer is taken to last before the first one was measured.
const ASSUMED_SERVICE_TIME: Duration = Duration::from_secs(1);
/// Nobody is sent away for longer: by then the estimate says nothing.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// A place in the line of one service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// The answer to a request that wants in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admit {
    /// Go ahead.
    Now,
    /// Wait until [`Admission::release`] or [`Admission::abandon`] names this ticket.
    Wait(Ticket),
    /// The line is full; a place is likely free after this long.
    Full(Duration),
}

/// The door of one service.
#[derive(Debug)]
pub struct Admission {
    capacity: usize,
    queue: usize,
    running: usize,
    waiting: VecDeque<Ticket>,
    next_ticket: u64,
    service_time: Option<Duration>,
}

impl Admission {
    /// Lets `capacity` requests (at least one) in at once and `queue` more wait.
    pub fn new(capacity: usize, queue: usize) -> Admission {
        Admission {
            capacity: capacity.max(1),
            queue,
            running: 0,
            waiting: VecDeque::new(),
            next_ticket: 0,
            service_time: None,
        }
    }

    /// A request wants in.
    pub fn admit(&mut self) -> Admit {
        if self.running < self.capacity {
            self.running += 1;
            return Admit::Now;
        }
        if self.waiting.len() >= self.queue {
            return Admit::Full(self.retry_after());
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.push_back(ticket);
        Admit::Wait(ticket)
    }

    /// A request that was let in at `started_at` is over. The ticket returned is let in instead.
    pub fn release(&mut self, started_at: Instant, now: Instant) -> Option<Ticket> {
        let took = now.saturating_duration_since(started_at);
        let average = self
            .service_time
            .map_or(took, |before| before.mul_f64(1.0 - SERVICE_TIME_WEIGHT) + took.mul_f64(SERVICE_TIME_WEIGHT));
        self.service_time = Some(average);
        self.hand_over()
    }

    /// Somebody left. If they were still in line, the line closes up; if they had just been let in without knowing it,
    /// the next in line is let in instead.
    pub fn abandon(&mut self, ticket: Ticket) -> Option<Ticket> {
        if let Some(place) = self.waiting.iter().position(|&waiting| waiting == ticket) {
            self.waiting.remove(place);
            return None;
        }
        self.hand_over()
    }

    /// Requests let in and requests waiting, over what can run at once. Above one if somebody waits.
    pub fn occupancy(&self) -> f64 {
        (self.running + self.waiting.len()) as f64 / self.capacity as f64
    }

    /// Requests let in.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Requests in line.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When a place in line is likely free: the line, moving `capacity` requests per service time. At least a second,
    /// because that is the unit of the header it ends up in.
    pub fn retry_after(&self) -> Duration {
        let rounds = (self.waiting.len() + 1) as f64 / self.capacity as f64;
        self.service_time.unwrap_or(ASSUMED_SERVICE_TIME).mul_f64(rounds).clamp(Duration::from_secs(1), MAX_RETRY_AFTER)
    }

    fn hand_over(&mut self) -> Option<Ticket> {
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.running -= 1;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t0() -> Instant {
        crate::clock::now()
    }

    #[test]
    fn as_many_as_fit_run_then_as_many_as_may_wait_then_nobody() {
        let mut door = Admission::new(2, 1);

        let answers = [door.admit(), door.admit(), door.admit(), door.admit()];

        assert_eq!(answers[..3], [Admit::Now, Admit::Now, Admit::Wait(Ticket(0))]);
        assert!(matches!(answers[3], Admit::Full(_)));
    }

    #[test]
    fn the_longest_waiting_is_let_in_first() {
        let mut door = Admission::new(1, 2);
        door.admit();
        let (Admit::Wait(first), Admit::Wait(second)) = (door.admit(), door.admit()) else { panic!("both wait") };

        assert_eq!(door.release(t0(), t0()), Some(first));
        assert_eq!(door.release(t0(), t0()), Some(second));
        assert_eq!(door.release(t0(), t0()), None);
        assert_eq!(door.running(), 0);
    }

    #[test]
    fn who_leaves_the_line_frees_a_place_in_it() {
        let mut door = Admission::new(1, 1);
        door.admit();
        let Admit::Wait(ticket) = door.admit() else { panic!("waits") };

        assert_eq!(door.abandon(ticket), None);

        assert!(matches!(door.admit(), Admit::Wait(_)));
    }

    #[test]
    fn who_leaves_after_being_let_in_lets_the_next_in() {
        let mut door = Admission::new(1, 2);
        door.admit();
        let (Admit::Wait(first), Admit::Wait(second)) = (door.admit(), door.admit()) else { panic!("both wait") };
        assert_eq!(door.release(t0(), t0()), Some(first));

        assert_eq!(door.abandon(first), Some(second));
    }

    #[test]
    fn retry_after_grows_with_the_line_and_the_service_time() {
        let mut door = Admission::new(1, 3);
        door.admit();
        door.release(t0(), t0() + Duration::from_secs(10));
        door.admit();

        let empty_line = door.retry_after();
        door.admit();
        door.admit();

        assert!((9..=11).contains(&empty_line.as_secs()));
        assert!((29..=31).contains(&door.retry_after().as_secs()));
    }
}
