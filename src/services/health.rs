//! Whether a service's upstream is there.
//!
//! ```text
//! Unknown ── answered ──► Up ── refused, or two probes in a row unanswered ──► Down ── answered ──► Up
//! ```

/// Probes that may go unanswered before an upstream counts as down. One slow answer of a busy upstream is no death.
const SILENT_PROBES: u32 = 2;

/// How a probe ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// It answered, and not with an error of its own.
    Answered,
    /// It answered with a status of 500 or above.
    Failing(u16),
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    Silent,
}

/// What the probes of one service say.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceHealth {
    up: bool,
    silent: u32,
}

impl ServiceHealth {
    /// A probe ended. True if the service came up or went down by it.
    pub fn on_probe(&mut self, probe: Probe) -> bool {
        let before = self.up;
        match probe {
            Probe::Answered => *self = ServiceHealth { up: true, silent: 0 },
            Probe::Refused => self.up = false,
            Probe::Failing(_) | Probe::Silent => {
                self.silent += 1;
                self.up &= self.silent < SILENT_PROBES;
            }
        }
        self.up != before
    }

    /// Whether requests may be sent there.
    pub fn is_up(self) -> bool {
        self.up
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
    fn a_refused_connection_is_believed_at_once() {
        let mut health = ServiceHealth::default();
        health.on_probe(Probe::Answered);

        assert!(health.on_probe(Probe::Refused));
    }
}
