//! The calls this node was given by others, so that none is executed twice.
//!
//! A caller whose connection broke asks again by another way with the same [`CallId`]; whichever arrives second is
//! refused, also if the first was refused: a "no" stays a "no", so that the caller may rely on it and go elsewhere.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::CallId;

/// Longer than any caller goes on trying, and than TCP delivers late.
pub const REMEMBER_CALLS_FOR: Duration = Duration::from_secs(300);
/// About 4 MB. Beyond 65,536 calls within five minutes (218 a second) the oldest are forgotten early: a repeat comes
/// within seconds of the first.
pub const MAX_CALLS: usize = 65_536;

/// The call was here before.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this call was here before")]
pub struct Duplicate;

/// Remembers calls.
#[derive(Debug, Default)]
pub struct Calls {
    known: BTreeSet<CallId>,
    /// In order of arrival.
    arrived: VecDeque<(Instant, CallId)>,
}

impl Calls {
    /// A call arrived.
    pub fn begin(&mut self, call: CallId, now: Instant) -> Result<(), Duplicate> {
        while let Some(&(at, oldest)) = self.arrived.front()
            && (now.saturating_duration_since(at) >= REMEMBER_CALLS_FOR || self.arrived.len() >= MAX_CALLS)
        {
            self.arrived.pop_front();
            self.known.remove(&oldest);
        }
        if !self.known.insert(call) {
            return Err(Duplicate);
        }
        self.arrived.push_back((now, call));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_let_through_once() {
        let (mut calls, now) = (Calls::default(), crate::clock::now());

        assert_eq!(calls.begin(CallId([1; 16]), now), Ok(()));
        assert_eq!(calls.begin(CallId([1; 16]), now + REMEMBER_CALLS_FOR / 2), Err(Duplicate));
        assert_eq!(calls.begin(CallId([2; 16]), now), Ok(()));
    }

    #[test]
    fn memory_is_bounded_in_time_and_number() {
        let (mut calls, now) = (Calls::default(), crate::clock::now());

        for number in 0..(MAX_CALLS as u128 + 10) {
            calls.begin(CallId(number.to_be_bytes()), now).unwrap();
        }
        assert_eq!(calls.known.len(), MAX_CALLS);

        calls.begin(CallId([9; 16]), now + REMEMBER_CALLS_FOR).unwrap();
        assert_eq!(calls.known.len(), 1);
    }
}
