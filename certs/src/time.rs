//! Wall-clock time as certificates and records carry it.

use std::{fmt, time::Duration};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01 UTC. Written into certificates and records; never used to measure how long something took.
#[derive(Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct UnixTime(#[n(0)] pub u64);

impl UnixTime {
    /// This much later; the end of time if that is too far.
    pub fn plus(self, duration: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(duration.as_secs()))
    }

    /// This much earlier; 1970 if that is too far.
    pub fn minus(self, duration: Duration) -> UnixTime {
        UnixTime(self.0.saturating_sub(duration.as_secs()))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn saturating_since(self, earlier: UnixTime) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formatted = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|moment| moment.format(&time::format_description::well_known::Rfc3339).ok());
        match formatted {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}
