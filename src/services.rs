//! What this node offers to others: its upstreams and their health, how much work they take, and what the machine is.
//!
//! ```text
//! probe, end of the command ──► Standing ──► offered() ──► the record others find
//! request ──► Admission: now · wait in line · full ──► Permit ──► upstream
//! what the upstream says of itself ──► Reading, models
//! requests in flight, Reading, GPU, CPU ──► report(), load()
//! ```
//!
//! - A service whose upstream does not answer its probe is not offered; one whose command is just being started again is,
//!   and its line waits.
//! - **Invariant:** no permit is given while as many are out as the service takes at once, never more than `queue`
//!   requests wait for one, but for those that had one and found nobody at the upstream.

mod adapters;
mod admission;
mod capabilities;
mod expected;
pub(crate) mod fuzz;
mod health;
pub mod io;
mod load;
mod models;
mod report;
mod standing;
mod upstream;

use std::time::Duration;

pub use adapters::{Kind, Reading};
pub use admission::{Admission, Admit, Asker, Ticket};
pub use capabilities::{Capabilities, Gpu, Machine};
pub use expected::{BadStatus, Expected};
pub use health::{Probe, ServiceHealth};
pub use io::{Demand, Handle, Models, Permit, Refused, Reservation};
pub use load::{Busy, load_of};
pub use report::{ServiceReport, ServiceState};
pub use standing::{Change, HOLD_FOR, Standing};
pub use upstream::{BadUpstream, Upstream};
use wiremesh_certs::ServiceName;

/// One service of this node, as configured.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The name others ask for.
    pub name: ServiceName,
    /// Where its requests go.
    pub upstream: Upstream,
    /// Path that is asked every two seconds.
    pub health: String,
    /// The answers to it that mean healthy.
    pub expected: Expected,
    /// What the upstream is; `None` if it is to be found out.
    pub kind: Option<Kind>,
    /// Where the upstream shows its metrics, if it is not where that kind of upstream does by itself.
    pub metrics_port: Option<u16>,
    /// Program and arguments that are started and supervised; empty if somebody else runs the upstream.
    pub command: Vec<String>,
    /// How long the command may take to end after SIGTERM.
    pub stop_grace: Duration,
    /// Requests the upstream is given at once, at most; `None` for as many as it says that it takes.
    pub max_concurrency: Option<usize>,
    /// Requests that may wait for their turn.
    pub queue: usize,
}

impl ServiceConfig {
    /// A service of which nothing but the upstream is said.
    pub fn new(name: ServiceName, upstream: Upstream) -> ServiceConfig {
        ServiceConfig {
            name,
            upstream,
            health: "/".to_owned(),
            expected: Expected::default(),
            kind: None,
            metrics_port: None,
            command: Vec::new(),
            stop_grace: DEFAULT_STOP_GRACE,
            max_concurrency: None,
            queue: DEFAULT_QUEUE,
        }
    }

    /// Requests at once when the upstream says that it takes `learned` of them. It may lower what the operator said and
    /// does not raise it.
    pub fn capacity(&self, kind: Option<Kind>, learned: Option<u32>) -> usize {
        let learned = learned.map(|learned| usize::try_from(learned).unwrap_or(usize::MAX).max(1));
        match (self.max_concurrency, learned) {
            (Some(most), learned) => learned.unwrap_or(most).min(most).max(1),
            (None, Some(learned)) => learned,
            (None, None) => kind.map_or(DEFAULT_CAPACITY, Kind::capacity_unless_said),
        }
    }
}

/// For how long a command may clean up, unless told otherwise.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);
/// Requests in line, unless told otherwise.
pub const DEFAULT_QUEUE: usize = 16;
/// Requests at once for an upstream that says nothing about itself.
pub const DEFAULT_CAPACITY: usize = 4;

/// Everything this part is told at the start.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The services; at most sixteen fit a record.
    pub services: Vec<ServiceConfig>,
    /// What kind of worker the operator calls this machine; made from the GPUs if not said.
    pub worker_type: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(max_concurrency: Option<usize>, kind: Option<Kind>, learned: Option<u32>) -> usize {
        let upstream = "http://127.0.0.1:9".parse().unwrap();
        let config = ServiceConfig::new(ServiceName::new("ocr").unwrap(), upstream);
        ServiceConfig { max_concurrency, ..config }.capacity(kind, learned)
    }

    #[test]
    fn an_upstream_may_lower_what_the_operator_said_and_not_raise_it() {
        assert_eq!(capacity(Some(8), Some(Kind::LlamaCpp), Some(2)), 2);
        assert_eq!(capacity(Some(8), Some(Kind::LlamaCpp), Some(20)), 8);
        assert_eq!(capacity(Some(8), Some(Kind::LlamaCpp), Some(0)), 1);
        assert_eq!(capacity(Some(8), None, None), 8);
    }

    #[test]
    fn where_the_operator_said_nothing_the_upstream_is_believed() {
        assert_eq!(capacity(None, Some(Kind::Sglang), Some(200)), 200);
        assert_eq!(capacity(None, Some(Kind::Vllm), None), 64);
        assert_eq!(capacity(None, Some(Kind::Generic), None), DEFAULT_CAPACITY);
        assert_eq!(capacity(None, None, None), DEFAULT_CAPACITY);
    }
}
