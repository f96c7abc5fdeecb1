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
//! restart empties; so its age is told with it, and the caller compares it with the age of its call.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    str::FromStr,
    time::{Duration, Instant},
};

use super::CallId;

/// How long a call that ended is remembered: longer than any caller goes on trying, and than TCP delivers late.
pub const REMEMBER_CALLS_FOR: Duration = Duration::from_secs(300);
/// About 8 MB. Beyond 65,536 calls ended within five minutes (218 a second) the oldest are forgotten early, and what is
/// promised of calls never seen reaches back less far: a repeat comes within seconds of the first. Calls that have not
/// ended are never forgotten; services let in only so many.
pub const MAX_CALLS: usize = 65_536;

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
    /// Whatever came since then is remembered, as far as it is not too old.
    remembers_from: Instant,
}

impl Calls {
    /// Remembers nothing yet.
    pub fn new(now: Instant) -> Calls {
        Calls { known: BTreeMap::new(), ended: VecDeque::new(), remembers_from: now }
    }

    /// A call arrived: it is queued.
    pub fn begin(&mut self, call: CallId, now: Instant) -> Result<(), Duplicate> {
        self.forget_old(now);
        if self.known.contains_key(&call) {
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

    /// Its caller asks what it is doing, and since when. A call that is not known is refused from here on; how long is
    /// then for how long we would know.
    pub fn ask(&mut self, call: CallId, now: Instant) -> (CallState, Duration) {
        self.forget_old(now);
        if let Entry::Vacant(unknown) = self.known.entry(call) {
            unknown.insert((CallState::NeverSeen, now));
            self.ended.push_back((now, call));
        }
        self.look(call, now)
    }

    /// The same, and nothing is promised of a call that is not known.
    pub fn look(&self, call: CallId, now: Instant) -> (CallState, Duration) {
        match self.known.get(&call) {
            // Asked about before: if we restarted between the call and that, the call may have been here nevertheless.
            None | Some((CallState::NeverSeen, _)) => {
                let remembers = now.saturating_duration_since(self.remembers_from).min(REMEMBER_CALLS_FOR);
                (CallState::NeverSeen, remembers)
            }
            Some(&(state, since)) => (state, now.saturating_duration_since(since)),
        }
    }

    fn forget_old(&mut self, now: Instant) {
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
            assert_eq!(calls.ask(CallId([1; 16]), now + 3 * SECOND), (state, 2 * SECOND));
        }
    }

    #[test]
    fn a_call_that_was_never_seen_when_it_was_asked_about_is_not_let_through_later() {
        let (mut calls, now) = calls();

        assert_eq!(calls.ask(CallId([1; 16]), now + SECOND), (CallState::NeverSeen, SECOND));

        assert_eq!(calls.begin(CallId([1; 16]), now + 2 * SECOND), Err(Duplicate));
        // Also whoever asks by another way is told how far our memory reaches.
        assert_eq!(calls.ask(CallId([1; 16]), now + 2 * SECOND), (CallState::NeverSeen, 2 * SECOND));
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

        assert_eq!(calls.ask(CallId([1; 16]), now + 3 * REMEMBER_CALLS_FOR).0, CallState::Queued);
        calls.on_state(CallId([1; 16]), CallState::Done, now + 3 * REMEMBER_CALLS_FOR);
        assert_eq!(calls.ask(CallId([1; 16]), now + 4 * REMEMBER_CALLS_FOR).0, CallState::NeverSeen);
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
        let (_, remembers) = calls.ask(CallId([9; 16]), last);
        assert!(remembers <= MAX_CALLS as u32 * SECOND / 1000, "{remembers:?}");

        calls.begin(CallId([8; 16]), last + REMEMBER_CALLS_FOR).unwrap();
        assert_eq!(calls.known.len(), 1);
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
