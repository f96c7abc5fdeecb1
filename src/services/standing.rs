//! Whether a service can be asked: from its upstream's health and, if we run it, the life of its command.
//!
//! ```text
//!              answered                 we run it, and it ended or nobody listens
//!   Withdrawn ──────────► Offered ───────────────────────────────────────────────► Held
//!       ▲  ▲                │  ▲                  answered: its line moves on         │
//!       │  └── down ────────┘  └───────────────────────────────────────────────────────┤
//!       └──────────────────────── HOLD_FOR over: its line goes elsewhere ─────────────┘
//! ```
//!
//! A held service is offered all the same: whoever asks waits in its line, no longer than a model takes to load. One whose
//! command has just been started for the first time is not offered, and it is no news that it does not listen yet.

use std::time::{Duration, Instant};

use super::{Probe, ServiceHealth};

/// How long a line waits for a command that is started again. Most models are loaded by then; whoever waits longer is
/// better off elsewhere.
pub const HOLD_FOR: Duration = Duration::from_secs(120);

/// A command that was started for the first time is given so long to listen before it is said that it does not.
pub const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// What a fact changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Nothing that others notice.
    None,
    /// Requests may be sent to the upstream.
    Offered,
    /// No request is sent to the upstream until it answers; the line waits.
    Held,
    /// Nobody waits any more.
    Withdrawn,
}

/// What is known of one service's upstream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    health: ServiceHealth,
    /// Whether we run it.
    supervised: bool,
    /// Until then it is no news that it does not answer: we have started it just now.
    starting_until: Option<Instant>,
    /// It ended, and has not answered since.
    restarting: bool,
    held_until: Option<Instant>,
}

impl Standing {
    /// Before anything is known. `supervised` if we run the upstream, which starts now, and again when it ends.
    pub fn new(supervised: bool, now: Instant) -> Standing {
        Standing { supervised, starting_until: supervised.then(|| now + STARTS_WITHIN), ..Standing::default() }
    }

    /// A probe ended, or a request found nobody.
    pub fn on_probe(&mut self, probe: Probe, now: Instant) -> Change {
        if self.is_starting(now) && probe != Probe::Answered {
            return Change::None;
        }
        self.starting_until = None;
        let was_up = self.health.is_up();
        let verdict = self.health.on_probe(probe);
        if self.health.is_up() {
            self.restarting = false;
            self.held_until = None;
            return if was_up { Change::None } else { Change::Offered };
        }
        if self.held_until.is_some() {
            return self.handle_timeout(now);
        }
        match verdict {
            false => Change::None,
            // Nobody listens where our own command should: it ended, or we hear of it in a moment.
            true if was_up && self.supervised && (self.restarting || probe == Probe::Refused) => self.hold(now),
            true => Change::Withdrawn,
        }
    }

    /// The command that we run ended. It is started again.
    pub fn on_command_ended(&mut self, now: Instant) -> Change {
        self.restarting = true;
        self.starting_until = None;
        if !self.health.is_up() {
            return Change::None;
        }
        self.health.on_probe(Probe::Refused);
        self.hold(now)
    }

    /// Ends a hold that took too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Change {
        match self.held_until {
            Some(until) if now >= until => {
                self.held_until = None;
                Change::Withdrawn
            }
            _ => Change::None,
        }
    }

    /// Whether requests may be sent to the upstream.
    pub fn is_up(self) -> bool {
        self.health.is_up()
    }

    /// Whether the line waits for the upstream to come back.
    pub fn is_held(self) -> bool {
        self.held_until.is_some()
    }

    /// Whether its command was started for the first time, and may not listen yet.
    pub fn is_starting(self, now: Instant) -> bool {
        self.starting_until.is_some_and(|until| now < until)
    }

    /// Whether others are told that we offer it.
    pub fn is_offered(self) -> bool {
        self.is_up() || self.is_held()
    }

    fn hold(&mut self, now: Instant) -> Change {
        self.held_until = Some(now + HOLD_FOR);
        Change::Held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t0() -> Instant {
        crate::clock::now()
    }

    fn up(supervised: bool) -> Standing {
        let mut standing = Standing::new(supervised, t0());
        assert_eq!(standing.on_probe(Probe::Answered, t0()), Change::Offered);
        standing
    }

    #[test]
    fn the_line_waits_while_the_command_is_started_again() {
        let mut standing = up(true);

        assert_eq!(standing.on_command_ended(t0()), Change::Held);
        assert!(standing.is_offered() && !standing.is_up());
        assert_eq!(standing.on_probe(Probe::Refused, t0()), Change::None);
        // It listens, and loads its model.
        assert_eq!(standing.on_probe(Probe::Failing(503), t0()), Change::None);
        assert_eq!(standing.on_probe(Probe::Answered, t0()), Change::Offered);
        assert!(standing.is_up() && !standing.is_held());
    }

    #[test]
    fn a_line_does_not_wait_for_ever() {
        let mut standing = up(true);
        let ended_at = t0();
        standing.on_command_ended(ended_at);

        assert_eq!(standing.on_probe(Probe::Refused, ended_at + HOLD_FOR / 2), Change::None);
        standing.on_command_ended(ended_at + HOLD_FOR / 2);
        assert_eq!(standing.on_probe(Probe::Refused, ended_at + HOLD_FOR), Change::Withdrawn);
        assert!(!standing.is_offered());
        assert_eq!(standing.on_command_ended(ended_at + HOLD_FOR), Change::None);
        assert_eq!(standing.on_probe(Probe::Answered, ended_at + HOLD_FOR * 2), Change::Offered);
    }

    #[test]
    fn a_request_that_finds_nobody_before_the_end_is_heard_of_holds_the_line_too() {
        let mut standing = up(true);

        assert_eq!(standing.on_probe(Probe::Refused, t0()), Change::Held);
        assert_eq!(standing.on_command_ended(t0()), Change::None);
    }

    #[test]
    fn an_upstream_that_somebody_else_runs_is_not_waited_for() {
        let mut standing = up(false);

        assert_eq!(standing.on_probe(Probe::Refused, t0()), Change::Withdrawn);
    }

    #[test]
    fn a_command_that_runs_and_does_not_answer_is_not_waited_for() {
        let mut standing = up(true);

        assert_eq!(standing.on_probe(Probe::Silent, t0()), Change::None);
        assert_eq!(standing.on_probe(Probe::Silent, t0()), Change::Withdrawn);
    }

    #[test]
    fn a_command_that_never_answered_is_not_offered_while_it_is_started() {
        let mut standing = Standing::new(true, t0());

        assert_eq!(standing.on_command_ended(t0()), Change::None);
        assert_eq!(standing.on_probe(Probe::Refused, t0()), Change::Withdrawn);
        assert_eq!(standing.on_probe(Probe::Refused, t0()), Change::None);
        assert!(!standing.is_offered());
    }

    #[test]
    fn that_a_command_does_not_listen_is_news_only_after_it_had_time_to_start() {
        let started_at = t0();
        let mut standing = Standing::new(true, started_at);

        assert_eq!(standing.on_probe(Probe::Refused, started_at), Change::None);
        assert!(standing.is_starting(started_at) && !standing.is_offered());
        assert_eq!(standing.on_probe(Probe::Refused, started_at + STARTS_WITHIN), Change::Withdrawn);

        let mut standing = Standing::new(true, started_at);
        assert_eq!(standing.on_probe(Probe::Failing(503), started_at), Change::None);
        assert_eq!(standing.on_probe(Probe::Answered, started_at), Change::Offered);
        assert!(!standing.is_starting(started_at));
    }
}
