//! The header `server-timing`: where the time of a request went, one value per hop, the executing hop's first.
//!
//! ```text
//! server-timing: queue;dur=0.004, upstream;dur=812.402        by the agent that executes: waiting for its turn, its upstream
//! server-timing: connect;dur=0.000, worker;dur=815.117, total;dur=815.346      by the agent that the client asked
//! ```
//!
//! All in milliseconds, to the head of the answer. `connect` is 0 on a connection that was open; `total` is more than
//! `worker` by what was looked up, and by attempts that failed. A request that is answered where it was asked has one value
//! with `queue`, `upstream` and `total`.

use std::{fmt::Write, time::Duration};

use http::HeaderValue;

/// The entries of one hop.
#[derive(Debug, Default)]
pub struct Timing(String);

impl Timing {
    /// One more entry. `name` is a token.
    pub fn with(mut self, name: &'static str, took: Duration) -> Timing {
        if self.0.is_empty() {
            // Three entries: more are never made.
            self.0.reserve(96);
        } else {
            self.0.push_str(", ");
        }
        // Whole numbers: writing a float takes longer than all else here. Writing to memory does not fail.
        let (millis, micros) = (took.as_millis(), took.subsec_micros() % 1000);
        let _ = write!(self.0, "{name};dur={millis}.{micros:03}");
        self
    }

    /// As a header; none without entries.
    pub fn header(self) -> Option<HeaderValue> {
        if self.0.is_empty() { None } else { HeaderValue::try_from(self.0).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_in_their_order_in_milliseconds() {
        let timing = Timing::default()
            .with("queue", Duration::ZERO)
            .with("upstream", Duration::from_micros(1500))
            .with("total", Duration::from_secs(60));

        assert_eq!(timing.header().unwrap(), "queue;dur=0.000, upstream;dur=1.500, total;dur=60000.000");
        assert_eq!(Timing::default().header(), None);
    }
}
