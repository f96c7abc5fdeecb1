//! The only file that reads a clock; everything else is given the time.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use wiremesh_certs::UnixTime;

use crate::beat;

/// Monotonic time, for deadlines and ages.
#[expect(clippy::disallowed_methods, reason = "the one place that reads this clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// An instant on the agent's beat: see [`crate::beat`].
pub fn beat() -> Instant {
    static BEAT: OnceLock<Instant> = OnceLock::new();
    *BEAT.get_or_init(now)
}

/// Work on the beat: the first after a beat's time at most, none in a burst after a time in which it could not be done.
pub fn beats(every: Duration) -> tokio::time::Interval {
    let mut beats = tokio::time::interval_at(beat::next(beat(), now(), every).into(), every);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    beats
}

/// Wall-clock time, for what is written into certificates and records.
pub fn unix() -> UnixTime {
    UnixTime(since_epoch().as_secs())
}

/// Wall-clock time in milliseconds, for the sequence numbers of records.
pub fn unix_millis() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// Wall-clock time in microseconds, for the accounts of requests.
pub fn unix_micros() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

/// A clock before 1970 counts as 1970: certificates are then refused as not yet valid, with that reason.
#[expect(clippy::disallowed_methods, reason = "the one place that reads this clock")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
