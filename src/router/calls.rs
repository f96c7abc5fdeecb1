//! The calls this node was given by others: what each is doing, and that none is executed twice.
//!
//! ```text
//!              ┌─ asked about ─► never seen ── arrives late ─► refused, as a duplicate
//! never seen ──┤
//!              └─ arrives ─► queued ─► loading ─► running ─► done
//!                               └──────────┴─► refused
//! ```
//!
//! A caller that lost its connection asks what became of its call. **Invariant:** "never seen" is a promise: a call that
//! was asked about before it came is not executed when it comes. The promise reaches back as far as our memory, which a
//! restart empties; so its age is told with it, and the caller compares it with the age of its call. A promise is kept for
//! its time, whatever else is asked: whoever has had too many is promised nothing more, which is an age of nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    str::FromStr,
    time::{Duration, Instant},
};

use wiremesh_certs::OverlayIp;

use super::CallId;

/// How long a call that ended is remembered: longer than any caller goes on trying, and than TCP delivers late.
pub const REMEMBER_CALLS_FOR: Duration = Duration::from_secs(300);
/// About 8 MB. Beyond 65,536 calls ended within five minutes (218 a second) the oldest are forgotten early, and what is
/// promised of calls never seen reaches back less far: a repeat comes within seconds of the first. Calls that have not
/// ended are never forgotten; services let in only so many.
pub const MAX_CALLS: usize = 65_536;
/// Promises that were made to one member within that time: it asks about calls whose worker was lost. Beyond, it is
/// promised nothing.
pub const MAX_PROMISES_EACH: usize = 4096;
/// The same for all members. About 8 MB.
pub const MAX_PROMISES: usize = 65_536;

/// What a call is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallState {
    /// It did not come, and is not executed if it still comes.
    NeverSeen,
    /// It waits for its turn.
    Queued,
    /// It waits for what executes it to start.
    Loading,
    /// It was given to what executes it.
    Running,
    /// It was executed, or begun and broken off.
    Done,
    /// It was not executed, and will not be.
    Refused,
}

/// The call was here before.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this call was here before")]
pub struct Duplicate;

/// Remembers calls.
#[derive(Debug)]
pub struct Calls {
    known: BTreeMap<CallId, (CallState, Instant)>,
    /// Those that came to their end, in that order.
    ended: VecDeque<(Instant, CallId)>,
    /// Those that were never seen, and are not executed if they still come.
    promised: BTreeSet<CallId>,
    /// When that was promised, and to whom, in that order.
    promises: VecDeque<(Instant, CallId, OverlayIp)>,
    /// How many of these each has.
    promises_of: BTreeMap<OverlayIp, usize>,
    /// Whatever came since then is remembered, as far as it is not too old.
    remembers_from: Instant,
}

impl Calls {
    /// Remembers nothing yet.
    pub fn new(now: Instant) -> Calls {
        Calls {
            known: BTreeMap::new(),
            ended: VecDeque::new(),
            promised: BTreeSet::new(),
            promises: VecDeque::new(),
            promises_of: BTreeMap::new(),
            remembers_from: now,
        }
    }

    /// A call arrived: it is queued.
    pub fn begin(&mut self, call: CallId, now: Instant) -> Result<(), Duplicate> {
        self.forget_old(now);
        if self.known.contains_key(&call) || self.promised.contains(&call) {
            return Err(Duplicate);
        }
        self.known.insert(call, (CallState::Queued, now));
        Ok(())
    }

    /// A call that began went on to `state`.
    pub fn on_state(&mut self, call: CallId, state: CallState, now: Instant) {
        let Some(known) = self.known.get_mut(&call) else { return };
        *known = (state, now);
        if matches!(state, CallState::Done | CallState::Refused) {
            self.ended.push_back((now, call));
        }
    }

    /// `asker` wants to know what a call is doing, and since when. One that is not known is refused from here on; how long
    /// is then for how long we would know.
    pub fn ask(&mut self, call: CallId, asker: OverlayIp, now: Instant) -> (CallState, Duration) {
        self.forget_old(now);
        if !self.known.contains_key(&call) && !self.promised.contains(&call) && !self.promise(call, asker, now) {
            return (CallState::NeverSeen, Duration::ZERO);
        }
        self.look(call, now)
    }

    /// The same, and nothing is promised of a call that is not known.
    pub fn look(&self, call: CallId, now: Instant) -> (CallState, Duration) {
        match self.known.get(&call) {
            // Also if it was asked about before: if we restarted between the call and that, it may have been here
            // nevertheless.
            None => {
                let remembers = now.saturating_duration_since(self.remembers_from).min(REMEMBER_CALLS_FOR);
                (CallState::NeverSeen, remembers)
            }
            Some(&(state, since)) => (state, now.saturating_duration_since(since)),
        }
    }

    /// Whether it is promised that the call is not executed.
    fn promise(&mut self, call: CallId, asker: OverlayIp, now: Instant) -> bool {
        let own = self.promises_of.get(&asker).copied().unwrap_or(0);
        if own >= MAX_PROMISES_EACH || self.promises.len() >= MAX_PROMISES {
            return false;
        }
        self.promises_of.insert(asker, own + 1);
        self.promises.push_back((now, call, asker));
        self.promised.insert(call);
        true
    }

    fn forget_old(&mut self, now: Instant) {
        self.forget_promises(now);
        while let Some(&(ended_at, oldest)) = self.ended.front() {
            let is_old = now.saturating_duration_since(ended_at) >= REMEMBER_CALLS_FOR;
            if !is_old && self.ended.len() < MAX_CALLS {
                return;
            }
            if !is_old {
                self.remembers_from = self.remembers_from.max(ended_at);
            }
            self.ended.pop_front();
            self.known.remove(&oldest);
        }
    }

    fn forget_promises(&mut self, now: Instant) {
        while let Some(&(promised_at, call, asker)) = self.promises.front() {
            if now.saturating_duration_since(promised_at) < REMEMBER_CALLS_FOR {
                return;
            }
            self.promises.pop_front();
            self.promised.remove(&call);
            match self.promises_of.get_mut(&asker) {
                Some(own) if *own > 1 => *own -= 1,
                _ => _ = self.promises_of.remove(&asker),
            }
        }
    }
}

impl CallState {
    const ALL: [CallState; 6] = [
        CallState::NeverSeen,
        CallState::Queued,
        CallState::Loading,
        CallState::Running,
        CallState::Done,
        CallState::Refused,
    ];

    /// The word between agents.
    pub fn as_str(self) -> &'static str {
        match self {
            CallState::NeverSeen => "never-seen",
            CallState::Queued => "queued",
            CallState::Loading => "loading",
            CallState::Running => "running",
            CallState::Done => "done",
            CallState::Refused => "refused",
        }
    }
}

/// The word is none of those between agents.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no state of a call")]
pub struct BadCallState;

impl FromStr for CallState {
    type Err = BadCallState;

    fn from_str(word: &str) -> Result<CallState, BadCallState> {
        CallState::ALL.into_iter().find(|state| state.as_str() == word).ok_or(BadCallState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ALICE: OverlayIp = OverlayIp(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 42, 0, 1)));
    const MALLORY: OverlayIp = OverlayIp(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 42, 0, 66)));

    #[test]
    fn a_call_is_let_through_once() {
        let (mut calls, now) = calls();

        assert_eq!(calls.begin(CallId([1; 16]), now), Ok(()));
        calls.on_state(CallId([1; 16]), CallState::Done, now);
        assert_eq!(calls.begin(CallId([1; 16]), now + REMEMBER_CALLS_FOR / 2), Err(Duplicate));
        assert_eq!(calls.begin(CallId([2; 16]), now), Ok(()));
    }

    #[test]
    fn its_caller_is_told_what_a_call_does_and_since_when() {
        let (mut calls, now) = calls();
        calls.begin(CallId([1; 16]), now).unwrap();

        for state in [CallState::Loading, CallState::Running, CallState::Done] {
            calls.on_state(CallId([1; 16]), state, now + SECOND);
            assert_eq!(calls.ask(CallId([1; 16]), ALICE, now + 3 * SECOND), (state, 2 * SECOND));
        }
    }

    #[test]
    fn a_call_that_was_never_seen_when_it_was_asked_about_is_not_let_through_later() {
        let (mut calls, now) = calls();

        assert_eq!(calls.ask(CallId([1; 16]), ALICE, now + SECOND), (CallState::NeverSeen, SECOND));

        assert_eq!(calls.begin(CallId([1; 16]), now + 2 * SECOND), Err(Duplicate));
        // Also whoever asks by another way is told how far our memory reaches.
        assert_eq!(calls.ask(CallId([1; 16]), ALICE, now + 2 * SECOND), (CallState::NeverSeen, 2 * SECOND));
    }

    #[test]
    fn looking_promises_nothing() {
        let (mut calls, now) = calls();

        assert_eq!(calls.look(CallId([1; 16]), now).0, CallState::NeverSeen);

        assert_eq!(calls.begin(CallId([1; 16]), now), Ok(()));
    }

    #[test]
    fn a_call_that_runs_is_remembered_for_as_long_as_it_runs() {
        let (mut calls, now) = calls();
        calls.begin(CallId([1; 16]), now).unwrap();

        assert_eq!(calls.ask(CallId([1; 16]), ALICE, now + 3 * REMEMBER_CALLS_FOR).0, CallState::Queued);
        calls.on_state(CallId([1; 16]), CallState::Done, now + 3 * REMEMBER_CALLS_FOR);
        assert_eq!(calls.ask(CallId([1; 16]), ALICE, now + 4 * REMEMBER_CALLS_FOR).0, CallState::NeverSeen);
    }

    #[test]
    fn memory_is_bounded_and_what_is_promised_does_not_reach_further_than_it() {
        let (mut calls, now) = calls();

        for number in 0..(MAX_CALLS as u128 + 10) {
            let (call, at) = (CallId(number.to_be_bytes()), now + number as u32 * SECOND / 1000);
            calls.begin(call, at).unwrap();
            calls.on_state(call, CallState::Done, at);
        }
        assert_eq!((calls.known.len(), calls.ended.len()), (MAX_CALLS, MAX_CALLS));
        let last = now + (MAX_CALLS as u32 + 10) * SECOND / 1000;
        let (_, remembers) = calls.ask(CallId([9; 16]), ALICE, last);
        assert!(remembers <= MAX_CALLS as u32 * SECOND / 1000, "{remembers:?}");

        calls.begin(CallId([8; 16]), last + REMEMBER_CALLS_FOR).unwrap();
        assert_eq!(calls.known.len(), 1);
    }

    #[test]
    fn no_questions_of_a_member_break_a_promise_to_another_or_let_a_call_in_twice() {
        let (mut calls, start) = calls();
        let (lost, came) = (CallId([1; 16]), CallId([2; 16]));
        let now = start + 10 * SECOND;
        assert_eq!(calls.ask(lost, ALICE, now), (CallState::NeverSeen, 10 * SECOND));
        calls.begin(came, now).unwrap();
        calls.on_state(came, CallState::Done, now);

        let told: Vec<_> = (0..3 * MAX_PROMISES as u128)
            .map(|number| calls.ask(CallId((number + (1 << 64)).to_be_bytes()), MALLORY, now + SECOND).1)
            .collect();

        assert_eq!(told.iter().filter(|age| **age == 11 * SECOND).count(), MAX_PROMISES_EACH);
        assert!(told[MAX_PROMISES_EACH..].iter().all(|age| age.is_zero()), "nothing is promised beyond");
        let later = now + REMEMBER_CALLS_FOR - SECOND;
        assert_eq!([calls.begin(lost, later), calls.begin(came, later)], [Err(Duplicate); 2]);
        assert_eq!(calls.ask(CallId([3; 16]), ALICE, later).1, REMEMBER_CALLS_FOR, "others are promised as before");
    }

    #[test]
    fn promises_are_bounded_and_forgotten_when_their_time_is_over() {
        let (mut calls, now) = calls();
        let member = |n: usize| OverlayIp(std::net::Ipv4Addr::from_bits(n as u32).into());

        for number in 0..2 * MAX_PROMISES {
            calls.ask(CallId((number as u128).to_be_bytes()), member(number % 100), now);
        }
        assert_eq!((calls.promised.len(), calls.promises.len()), (MAX_PROMISES, MAX_PROMISES));
        assert_eq!(calls.promises_of.len(), 100);

        calls.ask(CallId([1; 16]), ALICE, now + REMEMBER_CALLS_FOR);
        assert_eq!((calls.promised.len(), calls.promises.len(), calls.promises_of.len()), (1, 1, 1));
    }

    #[test]
    fn the_words_are_read_again() {
        for state in CallState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("lost".parse::<CallState>(), Err(BadCallState));
    }

    fn calls() -> (Calls, Instant) {
        let now = crate::clock::now();
        (Calls::new(now), now)
    }
}
