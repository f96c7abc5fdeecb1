//! Who is let in to a service now, who waits, and who is told to come back when.
//!
//! ```text
//! admit ──► Now ─────────────────────────► release ──► next in line is let in
//!   ├─────► Wait(ticket) ── let in ──────►    ▲   └──► back_in_line: nobody was at the upstream
//!   │          ├── abandon (client left)      │
//!   │          └── put out: another asker had less of the line, or it was closed
//!   └─────► Full(retry after)           started_at … now feeds the service time
//! ```
//!
//! While the door is held nobody is let in and the line stays. Otherwise a place that is free goes to whoever runs least of
//! those who wait: nobody has all of them while others want one.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use wiremesh_certs::OverlayIp;

/// Weight of one answer in the average service time: about the last ten answers count.
const SERVICE_TIME_WEIGHT: f64 = 0.2;
/// What an answer is taken to last before the first one was measured.
const ASSUMED_SERVICE_TIME: Duration = Duration::from_secs(1);
/// Nobody is sent away for longer: by then the estimate says nothing.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// A place in the line of one service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// Whose request it is. Places, and a line that is full, are shared out between those who ask.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Asker {
    /// A client of this node.
    Own,
    /// Another member.
    Member(OverlayIp),
}

/// The answer to a request that wants in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admit {
    /// Go ahead.
    Now,
    /// Wait until this ticket is let in or put out.
    Wait(Ticket),
    /// Wait with the first ticket; the second, of an asker who had more of the line, is put out.
    Displace(Ticket, Ticket),
    /// The line is full; a place is likely free after this long.
    Full(Duration),
}

/// The door of one service.
#[derive(Debug)]
pub struct Admission {
    capacity: usize,
    queue: usize,
    running: usize,
    /// Those of each asker that has any.
    running_of: BTreeMap<Asker, usize>,
    /// Somebody was sent away since a place was last given.
    sent_away: bool,
    held: bool,
    waiting: VecDeque<(Ticket, Asker)>,
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
            running_of: BTreeMap::new(),
            sent_away: false,
            held: false,
            waiting: VecDeque::new(),
            next_ticket: 0,
            service_time: None,
        }
    }

    /// A request wants in.
    pub fn admit(&mut self, asker: Asker) -> Admit {
        if self.has_room() && self.waiting.is_empty() {
            self.begin(asker);
            return Admit::Now;
        }
        if self.waiting.len() < self.queue {
            let ticket = self.ticket();
            self.waiting.push_back((ticket, asker));
            return Admit::Wait(ticket);
        }
        match self.who_gives_way_to(asker) {
            Some(place) => {
                let gone = self.waiting.remove(place).map(|(gone, _)| gone);
                let ticket = self.ticket();
                self.waiting.push_back((ticket, asker));
                gone.map_or(Admit::Wait(ticket), |gone| Admit::Displace(ticket, gone))
            }
            None => {
                self.sent_away = true;
                Admit::Full(self.retry_after())
            }
        }
    }

    /// A request of `asker` that was let in at `started_at` is over. The ticket returned is let in instead.
    pub fn release(&mut self, asker: Asker, started_at: Instant, now: Instant) -> Option<Ticket> {
        let took = now.saturating_duration_since(started_at);
        let average = self
            .service_time
            .map_or(took, |before| before.mul_f64(1.0 - SERVICE_TIME_WEIGHT) + took.mul_f64(SERVICE_TIME_WEIGHT));
        self.service_time = Some(average);
        self.give_back(asker)
    }

    /// A request that was let in found nobody at the upstream: it took no time. The ticket returned is let in instead.
    pub fn give_back(&mut self, asker: Asker) -> Option<Ticket> {
        self.end(asker);
        self.let_in()
    }

    /// A request that was let in found nobody at the upstream: it is the first in line again.
    pub fn back_in_line(&mut self, asker: Asker) -> Ticket {
        self.end(asker);
        let ticket = self.ticket();
        self.waiting.push_front((ticket, asker));
        ticket
    }

    /// Somebody left. If they were still in line, the line closes up; if they had just been let in without knowing it,
    /// the next in line is let in instead.
    pub fn abandon(&mut self, ticket: Ticket, asker: Asker) -> Option<Ticket> {
        if let Some(place) = self.waiting.iter().position(|(waiting, _)| *waiting == ticket) {
            self.waiting.remove(place);
            return None;
        }
        self.give_back(asker)
    }

    /// The upstream takes so many requests at once, at least one. Call [`Admission::let_in`] until it gives none.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
    }

    /// Nobody is let in until [`Admission::resume`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// The line moves on. Call [`Admission::let_in`] until it gives none.
    pub fn resume(&mut self) {
        self.held = false;
    }

    /// Everybody in line leaves, the first first.
    pub fn close(&mut self) -> Option<Ticket> {
        self.waiting.pop_front().map(|(ticket, _)| ticket)
    }

    /// Of those in line who run least, the first is let in, if there is room.
    pub fn let_in(&mut self) -> Option<Ticket> {
        if !self.has_room() {
            return None;
        }
        let runs = |asker: &Asker| self.running_of.get(asker).copied().unwrap_or(0);
        // Of equals the first.
        let (place, _) = self.waiting.iter().enumerate().min_by_key(|(_, (_, asker))| runs(asker))?;
        let (next, asker) = self.waiting.remove(place)?;
        self.begin(asker);
        Some(next)
    }

    /// Requests that run at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Requests let in.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Requests in line.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether all places are taken and somebody waits for one, or was sent away since one was last given.
    pub fn is_wanted(&self) -> bool {
        self.running >= self.capacity && (self.sent_away || !self.waiting.is_empty())
    }

    /// How long one request takes from when it is let in, smoothed; `None` before the first.
    pub fn service_time(&self) -> Option<Duration> {
        self.service_time
    }

    /// When a place in line is likely free: the line, moving `capacity` requests per service time. At least a second,
    /// because that is the unit of the header it ends up in.
    pub fn retry_after(&self) -> Duration {
        let rounds = (self.waiting.len() + 1) as f64 / self.capacity as f64;
        self.service_time.unwrap_or(ASSUMED_SERVICE_TIME).mul_f64(rounds).clamp(Duration::from_secs(1), MAX_RETRY_AFTER)
    }

    fn has_room(&self) -> bool {
        !self.held && self.running < self.capacity
    }

    fn begin(&mut self, asker: Asker) {
        self.running += 1;
        *self.running_of.entry(asker).or_default() += 1;
        self.sent_away = false;
    }

    fn end(&mut self, asker: Asker) {
        self.running -= 1;
        match self.running_of.get_mut(&asker) {
            Some(running) if *running > 1 => *running -= 1,
            _ => _ = self.running_of.remove(&asker),
        }
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    /// The last place of whoever has the most of the line, if `asker` has less of it even with a place more.
    fn who_gives_way_to(&self, asker: Asker) -> Option<usize> {
        let mut places: BTreeMap<Asker, usize> = BTreeMap::new();
        for (_, waiting) in &self.waiting {
            *places.entry(*waiting).or_default() += 1;
        }
        let own = places.get(&asker).copied().unwrap_or(0);
        let (most, has) = places.into_iter().max_by_key(|(_, has)| *has)?;
        let place = self.waiting.iter().rposition(|(_, waiting)| *waiting == most)?;
        (has > own + 1).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t0() -> Instant {
        crate::clock::now()
    }

    fn member(last_byte: u8) -> Asker {
        Asker::Member(OverlayIp([10, 42, 0, last_byte].into()))
    }

    #[test]
    fn as_many_as_fit_run_then_as_many_as_may_wait_then_nobody() {
        let mut door = Admission::new(2, 1);

        let answers = [(); 4].map(|()| door.admit(Asker::Own));

        assert_eq!(answers[..3], [Admit::Now, Admit::Now, Admit::Wait(Ticket(0))]);
        assert!(matches!(answers[3], Admit::Full(_)));
    }

    #[test]
    fn the_longest_waiting_is_let_in_first() {
        let mut door = Admission::new(1, 2);
        door.admit(Asker::Own);
        let (first, second) = two_wait(&mut door);

        assert_eq!(door.release(Asker::Own, t0(), t0()), Some(first));
        assert_eq!(door.release(Asker::Own, t0(), t0()), Some(second));
        assert_eq!(door.release(Asker::Own, t0(), t0()), None);
        assert_eq!(door.running(), 0);
    }

    #[test]
    fn who_leaves_the_line_frees_a_place_in_it() {
        let mut door = Admission::new(1, 1);
        door.admit(Asker::Own);
        let Admit::Wait(ticket) = door.admit(Asker::Own) else { panic!("waits") };

        assert_eq!(door.abandon(ticket, Asker::Own), None);

        assert!(matches!(door.admit(Asker::Own), Admit::Wait(_)));
    }

    #[test]
    fn who_leaves_after_being_let_in_lets_the_next_in() {
        let mut door = Admission::new(1, 2);
        door.admit(Asker::Own);
        let (first, second) = two_wait(&mut door);
        assert_eq!(door.release(Asker::Own, t0(), t0()), Some(first));

        assert_eq!(door.abandon(first, Asker::Own), Some(second));
    }

    #[test]
    fn retry_after_grows_with_the_line_and_the_service_time() {
        let mut door = Admission::new(1, 3);
        door.admit(Asker::Own);
        door.release(Asker::Own, t0(), t0() + Duration::from_secs(10));
        door.admit(Asker::Own);

        let empty_line = door.retry_after();
        two_wait(&mut door);

        assert!((9..=11).contains(&empty_line.as_secs()));
        assert!((29..=31).contains(&door.retry_after().as_secs()));
    }

    #[test]
    fn while_the_door_is_held_the_line_grows_and_nobody_is_let_in() {
        let mut door = Admission::new(1, 2);
        door.admit(Asker::Own);
        door.hold();
        let (first, second) = two_wait(&mut door);

        assert_eq!(door.release(Asker::Own, t0(), t0()), None);
        assert_eq!((door.running(), door.waiting()), (0, 2));
        door.resume();

        assert_eq!((door.let_in(), door.let_in()), (Some(first), None));
        assert_eq!(door.release(Asker::Own, t0(), t0()), Some(second));
    }

    #[test]
    fn who_found_nobody_at_the_upstream_is_first_in_line_again() {
        let mut door = Admission::new(1, 1);
        door.admit(member(1));
        let Admit::Wait(other) = door.admit(Asker::Own) else { panic!("waits") };
        door.hold();

        let again = door.back_in_line(member(1));
        assert_eq!(door.service_time(), None, "it took no time");
        door.resume();

        assert_eq!((door.let_in(), door.let_in()), (Some(again), None));
        assert_eq!(door.release(member(1), t0(), t0()), Some(other));
    }

    #[test]
    fn more_or_fewer_at_once_takes_effect_as_requests_end() {
        let mut door = Admission::new(2, 4);
        door.admit(Asker::Own);
        door.admit(Asker::Own);
        let (first, second) = two_wait(&mut door);

        door.set_capacity(1);
        assert_eq!(door.release(Asker::Own, t0(), t0()), None);
        assert_eq!(door.release(Asker::Own, t0(), t0()), Some(first));
        door.set_capacity(3);
        assert_eq!((door.let_in(), door.let_in()), (Some(second), None));
        assert_eq!(door.running(), 2);
    }

    #[test]
    fn nobody_keeps_the_whole_line_when_others_come() {
        let mut door = Admission::new(1, 4);
        door.admit(member(1));
        let greedy = [(); 4].map(|()| door.admit(member(1)));
        assert!(matches!(door.admit(member(1)), Admit::Full(_)));

        let (Admit::Wait(third), Admit::Wait(fourth)) = (greedy[2], greedy[3]) else { panic!("they wait") };
        assert!(matches!(door.admit(member(2)), Admit::Displace(_, gone) if gone == fourth));
        assert!(matches!(door.admit(Asker::Own), Admit::Displace(_, gone) if gone == third));
        // Two, one and one: nobody has less even with one more.
        assert!(matches!(door.admit(member(2)), Admit::Full(_)));
        assert_eq!(door.waiting(), 4);
    }

    #[test]
    fn a_place_that_is_free_goes_to_whoever_runs_least() {
        let mut door = Admission::new(4, 8);
        (0..4).for_each(|_| _ = door.admit(member(1)));
        let [greedy, _] = [(); 2].map(|()| door.admit(member(1)));
        let [other, own] = [member(2), Asker::Own].map(|asker| door.admit(asker));

        let let_in: Vec<_> = (0..3).map(|_| door.release(member(1), t0(), t0()).map(Admit::Wait)).collect();

        assert_eq!(let_in, [Some(other), Some(own), Some(greedy)]);
        assert_eq!((door.running(), door.waiting()), (4, 1));
    }

    #[test]
    fn a_place_is_wanted_while_somebody_waits_or_was_sent_away_for_it() {
        let mut door = Admission::new(1, 1);
        door.admit(member(1));
        assert!(!door.is_wanted());

        let Admit::Wait(ticket) = door.admit(Asker::Own) else { panic!("waits") };
        assert!(door.is_wanted());
        door.abandon(ticket, Asker::Own);
        assert!(!door.is_wanted());

        door.admit(Asker::Own);
        assert!(matches!(door.admit(Asker::Own), Admit::Full(_)));
        door.abandon(Ticket(1), Asker::Own);
        assert!(door.is_wanted(), "who was sent away wants it still");
        door.release(member(1), t0(), t0());
        assert!(!door.is_wanted(), "there is one");
        door.admit(Asker::Own);
        assert!(!door.is_wanted());
        assert_eq!(door.running_of.len(), 1, "who runs nothing is not remembered");
    }

    #[test]
    fn nobody_overtakes_the_line() {
        let mut door = Admission::new(1, 2);
        door.hold();
        let (first, _) = two_wait(&mut door);
        door.resume();

        assert!(matches!(door.admit(Asker::Own), Admit::Full(_)));
        assert_eq!(door.let_in(), Some(first));
    }

    fn two_wait(door: &mut Admission) -> (Ticket, Ticket) {
        match (door.admit(Asker::Own), door.admit(Asker::Own)) {
            (Admit::Wait(first), Admit::Wait(second)) => (first, second),
            other => panic!("both wait: {other:?}"),
        }
    }
}
