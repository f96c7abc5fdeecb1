//! Whether a service's upstream is there.
//!
//! ```text
//! Unknown ── answered ──► Up ── refused, or two probes in a row unanswered ──► Down ── answered ──► Up
//!    └──────────── refused, or two probes in a row unanswered ──────────────────┘
//! ```

use std::fmt;

/// Probes that may go unanswered before an upstream counts as down. One slow answer of a busy upstream is no death.
const SILENT_PROBES: u32 = 2;

/// How a probe ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// It answered as it should.
    Answered,
    /// It answered with a status that does not mean well.
    Failing(u16),
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    Silent,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Answered => f.write_str("its upstream answers"),
            Probe::Failing(status) => write!(f, "its upstream answers the health check with {status}"),
            Probe::Refused => f.write_str("nobody listens at its upstream"),
            Probe::Silent => f.write_str("its upstream does not answer in time"),
        }
    }
}

/// What the probes of one service say.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceHealth {
    /// `None` before the first verdict.
    up: Option<bool>,
    silent: u32,
}

impl ServiceHealth {
    /// A probe ended. True if it is a verdict: the first, or another than the last.
    pub fn on_probe(&mut self, probe: Probe) -> bool {
        let before = self.up;
        match probe {
            Probe::Answered => *self = ServiceHealth { up: Some(true), silent: 0 },
            Probe::Refused => self.up = Some(false),
            Probe::Failing(_) | Probe::Silent => {
                self.silent = self.silent.saturating_add(1);
                if self.silent >= SILENT_PROBES {
                    self.up = Some(false);
                }
            }
        }
        self.up != before
    }

    /// Whether requests may be sent there.
    pub fn is_up(self) -> bool {
        self.up == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_offered_before_the_first_answer() {
        let mut health = ServiceHealth::default();
        assert!(!health.is_up());

        assert!(health.on_probe(Probe::Answered));
        assert!(health.is_up());
    }

    #[test]
    fn one_slow_probe_is_forgiven_and_the_second_is_not() {
        let mut health = ServiceHealth::default();
        health.on_probe(Probe::Answered);

        assert!(!health.on_probe(Probe::Silent));
        assert!(health.on_probe(Probe::Failing(500)));
        assert!(!health.is_up());
    }

    #[test]
    fn an_upstream_that_was_never_there_is_told_of_once() {
        let mut health = ServiceHealth::default();

        assert!(health.on_probe(Probe::Refused));
        assert!(!health.on_probe(Probe::Refused));

        let mut failing = ServiceHealth::default();
        let told = [(); 4].map(|()| failing.on_probe(Probe::Failing(501)));
        assert_eq!(told, [false, true, false, false]);
    }

    #[test]
    fn a_refused_connection_is_believed_at_once() {
        let mut health = ServiceHealth::default();
        health.on_probe(Probe::Answered);

        assert!(health.on_probe(Probe::Refused));
    }
}
