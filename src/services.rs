//! What this node offers to others: its upstreams and their health, how much work they take, and what the machine is.
//!
//! ```text
//! probe ──► Health ──► offered() ──► the record others find
//! request ──► Admission: now · wait in line · full ──► Permit ──► upstream
//! requests in flight, GPU, CPU ──► load()
//! ```
//!
//! - A service whose upstream does not answer its probe is not offered.
//! - **Invariant:** never more than `max_concurrency` permits of a service are out, never more than `queue` requests wait
//!   for one.

mod admission;
mod capabilities;
mod health;
pub mod io;
mod load;
mod upstream;

pub use admission::{Admission, Admit, Ticket};
pub use capabilities::{Capabilities, Gpu, Machine};
pub use health::{Probe, ServiceHealth};
pub use io::{Handle, Models, Permit, Refused, Reservation};
pub use load::{Busy, load_of};
pub use upstream::{BadUpstream, Upstream};
use wiremesh_certs::ServiceName;

/// One service of this node, as configured.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The name others ask for.
    pub name: ServiceName,
    /// Where its requests go.
    pub upstream: Upstream,
    /// Path that is asked every two seconds; any answer below 500 means healthy.
    pub health: String,
    /// Program and arguments that are started and supervised; empty if somebody else runs the upstream.
    pub command: Vec<String>,
    /// Requests the upstream is given at once; at least one.
    pub max_concurrency: usize,
    /// Requests that may wait for their turn.
    pub queue: usize,
}

/// Everything this part is told at the start.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The services; at most sixteen fit a record.
    pub services: Vec<ServiceConfig>,
    /// What kind of worker the operator calls this machine; made from the GPUs if not said.
    pub worker_type: Option<String>,
}
