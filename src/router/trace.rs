//! The headers `traceparent` and `tracestate` (W3C Trace Context, level 1): which trace a request belongs to.
//!
//! ```text
//! traceparent: 00-<trace, 32 hexadecimal digits>-<span that sent it, 16>-<flags, 2; 01: recorded by who sent it>
//! ```
//!
//! A good pair passes unchanged while we record nothing: an id of ours that nobody ever sees would cut the trace of others
//! in two. Once spans are exported every attempt carries the id of its own span.

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::RngCore;

/// Which span sent a request.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems add to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A longer `tracestate` is dropped: the standard asks for at least this much to be kept.
const MAX_STATE_BYTES: usize = 512;
/// The standard's limit.
const MAX_STATE_MEMBERS: usize = 32;
/// Version, trace, span and flags with three dashes between.
const PARENT_BYTES: usize = 55;
const SAMPLED: u8 = 1;

/// Names a trace; never zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceId(pub [u8; 16]);

/// Names one span of a trace; never zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpanId(pub [u8; 8]);

impl SpanId {
    /// A new one.
    pub fn random(rng: &mut impl RngCore) -> SpanId {
        SpanId(rng.next_u64().max(1).to_be_bytes())
    }
}

impl TraceId {
    /// A new one.
    pub fn random(rng: &mut impl RngCore) -> TraceId {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        TraceId(u128::from_be_bytes(bytes).max(1).to_be_bytes())
    }
}

/// The value of `traceparent`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The span that sent the request.
    pub span: SpanId,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// What a request came with. What is malformed, too long or there twice is taken out, so that it goes no further.
    pub fn arriving(headers: &mut HeaderMap) -> Option<TraceParent> {
        if !headers.contains_key(TRACEPARENT) {
            // Without its parent it says nothing.
            headers.remove(TRACESTATE);
            return None;
        }
        let mut values = headers.get_all(TRACEPARENT).iter();
        let first = values.next().and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let parent = first.filter(|_| values.next().is_none());
        if parent.is_none() {
            headers.remove(TRACEPARENT);
        }
        if parent.is_none() || !is_good_state(headers) {
            headers.remove(TRACESTATE);
        }
        parent
    }

    /// As a header.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("hexadecimal digits and dashes are visible ASCII")
    }
}

fn is_good_state(headers: &HeaderMap) -> bool {
    let (mut bytes, mut members) = (0, 0);
    for value in headers.get_all(TRACESTATE) {
        let Ok(text) = value.to_str() else { return false };
        // Several are one, with commas between.
        bytes += text.len() + 1;
        members += text.split(',').count();
    }
    bytes <= MAX_STATE_BYTES + 1 && members <= MAX_STATE_MEMBERS
}

/// The header's value does not parse.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no traceparent of version 00 or later")]
pub struct BadParent;

impl FromStr for TraceParent {
    type Err = BadParent;

    fn from_str(text: &str) -> Result<TraceParent, BadParent> {
        let (known, more) = text.as_bytes().split_at_checked(PARENT_BYTES).ok_or(BadParent)?;
        let (version, trace, span, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
        let dashes = [known[2], known[35], known[52]] == [b'-'; 3];
        let (version, flags) = (hex_of::<1>(version)?[0], hex_of::<1>(flags)?[0]);
        // What a later version adds stands behind another dash.
        let ends = more.is_empty() || (version > 0 && more[0] == b'-');
        let (trace, span) = (hex_of(trace)?, hex_of(span)?);
        if !dashes || !ends || version == 0xff || trace == [0; 16] || span == [0; 8] {
            return Err(BadParent);
        }
        Ok(TraceParent { trace: TraceId(trace), span: SpanId(span), sampled: flags & SAMPLED != 0 })
    }
}

/// Digits in lower case alone: upper case is malformed by the standard.
fn hex_of<const N: usize>(digits: &[u8]) -> Result<[u8; N], BadParent> {
    let mut bytes = [0; N];
    if digits.iter().any(u8::is_ascii_uppercase) {
        return Err(BadParent);
    }
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadParent)?;
    Ok(bytes)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read_again() {
        let parent: TraceParent = GOOD.parse().unwrap();

        assert!(parent.sampled);
        assert_eq!(parent.to_string(), GOOD);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for text in [GOOD.replacen("00", "cc", 1), GOOD.replacen("00", "01", 1) + "-what-comes"] {
            assert_eq!(text.parse::<TraceParent>().map(|parent| parent.to_string()), Ok(GOOD.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_the_standard_calls_malformed_is() {
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-more"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "01", 1).replace("-01", "-01x"),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("4b", "é"),
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(BadParent), "{bad}");
        }
    }

    #[test]
    fn a_good_pair_passes_and_a_bad_one_goes_no_further() {
        let state = "a=1,b=2";
        for (parents, states, left) in [
            (&[GOOD][..], &[state][..], (1, 1)),
            (&[GOOD], &[state, "c=3"], (1, 2)),
            (&[GOOD], &[&"x".repeat(513)[..]], (1, 0)),
            (&[GOOD], &["a=1,".repeat(33).as_str()], (1, 0)),
            (&[GOOD, GOOD], &[state], (0, 0)),
            (&["nonsense"], &[state], (0, 0)),
            (&[], &[state], (0, 0)),
        ] {
            let mut headers = HeaderMap::new();
            parents.iter().for_each(|value| _ = headers.append(TRACEPARENT, value.parse().unwrap()));
            states.iter().for_each(|value| _ = headers.append(TRACESTATE, value.parse().unwrap()));

            let parent = TraceParent::arriving(&mut headers);

            let count = |name| headers.get_all(name).iter().count();
            assert_eq!((count(TRACEPARENT), count(TRACESTATE)), left, "{parents:?} {states:?}");
            assert_eq!(parent.is_some(), left.0 == 1);
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,80}") {
            let _ = text.parse::<TraceParent>();
        }
    }
}
