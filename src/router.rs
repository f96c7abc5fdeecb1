//! From a request to the worker that answers it.
//!
//! ```text
//! client ──► Needs (service, or the model its body names) ──► offered here? ──► upstream
//!                └──► Find: who offers it, and how do we know
//!                       └──► Plan: healthy before ejected, overlay before tunnel, 50/30/20 among the least loaded
//!                              └──► attempt: send, ask whether they live and what it does, stream back ──► Health learns
//!                                      └── connection lost ──► what became of it? never seen ──► repeat
//! other agent ──► is this the end of its way? seen before? ──► upstream
//! ```
//!
//! - **Invariant:** a request crosses the mesh at most once: one that carries `x-wiremesh-via` is answered here or refused.
//! - **Invariant:** a call is executed at most once by an agent, however often it arrives, and not at all once that agent
//!   has said that it never saw it ([`Calls`]).
//! - **Invariant:** a request that must not be executed twice is repeated only if nothing of it was sent, if the worker
//!   refused it, or if it promised never to have seen it ([`Plan`]).
//! - **Invariant:** another node is answered only what the mesh's policy lets it call and this node offer, and only for
//!   as long as it does ([`Members`]).
//! - **Invariant:** after the first byte of an answer there is no second attempt, and an answer that breaks off never
//!   ends cleanly.
//! - Bodies are never collected and never rebuilt; the beginning of one is looked at for the model it names ([`openai`]).

mod access;
mod budget;
mod calls;
mod counters;
mod fleet;
mod followed;
pub(crate) mod fuzz;
mod headers;
mod health;
pub mod io;
mod needs;
mod openai;
mod plan;
mod pulse;
mod refusal;
mod report;
mod route;
mod score;
mod select;
mod sse;
mod timing;
mod trace;
mod via;
mod webpage;
mod work;

use std::{fmt, net::SocketAddr, sync::Arc};

pub use access::{Line, Outcome, Side, Span, Value};
pub use budget::Budget;
pub use calls::{BadCallState, CallState, Calls, Duplicate, MAX_CALLS, REMEMBER_CALLS_FOR};
pub use counters::Counters;
pub use fleet::{Blame, Dispatch, Ended, Fleet, View};
use futures::future::BoxFuture;
pub use health::{Cause, Health, Trouble};
pub use needs::{BadPath, Needs, Target};
pub use openai::{BadModel, MAX_MODEL_BYTES, ModelName};
pub use plan::{Failure, MAX_ATTEMPTS, Next, Plan};
pub use pulse::{Pulse, STALLED_AFTER};
pub use refusal::{Executed, Refusal};
pub use report::{DirectoryCounters, HealthReport, Report, Status, health_json, stats_json};
pub use route::{Route, Way};
pub use score::Score;
pub use select::{Affinity, Asked, Candidate, Considered, Excluded, Selection, explain, order, select};
pub use trace::{SpanId, TraceId};
pub use via::{CallId, Via};
pub use webpage::Names;
use wiremesh_certs::{Load, NodeId, NodeName, NodeRecord, Offer, OverlayIp, TunnelUrl, UnixTime, Verified};
pub use work::{BadWork, MAX_REQUESTS, MAX_SERVICE_TIME_MS, MAX_WORK_BYTES, State, Work};

/// How a request gets to the machine that answers it. Better ones first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Path {
    /// Answered by this machine.
    Local,
    /// Through the encrypted network.
    Overlay,
    /// Through the worker's public URL.
    Tunnel,
}

impl Path {
    /// The word in headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Path::Local => "local",
            Path::Overlay => "overlay",
            Path::Tunnel => "tunnel",
        }
    }
}

/// How we came to know who offers a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// We offer it.
    Local,
    /// Remembered.
    Cache,
    /// From the Kademlia table.
    Dht,
    /// From the coordinator.
    Http,
}

impl Source {
    /// The word in headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Cache => "cache",
            Source::Dht => "dht",
            Source::Http => "http",
        }
    }
}

/// A node that offers what is asked for.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Who it is.
    pub id: NodeId,
    /// What it is called.
    pub name: NodeName,
    /// Where its agent listens inside the overlay; `None` if it carries none.
    pub overlay: Option<SocketAddr>,
    /// The public URL that leads to its ingress; `None` also if it names one that leads to no other machine.
    pub tunnel: Option<TunnelUrl>,
    /// How busy it said it was.
    pub load: Load,
    /// When it said so.
    pub published_at: UnixTime,
}

impl Worker {
    /// From what a verified node says about itself; agents listen on `overlay_port` of their overlay address.
    pub fn of(verified: &Verified, record: &NodeRecord, overlay_port: u16) -> Worker {
        Worker {
            id: verified.id(),
            name: verified.name().clone(),
            overlay: record.overlay.then(|| SocketAddr::new(verified.address().0, overlay_port)),
            tunnel: record.tunnel_url.clone().filter(crate::tunnel::leads_elsewhere),
            load: record.load,
            published_at: UnixTime(record.sequence / 1000),
        }
    }
}

/// The answer to "who offers this service".
#[derive(Clone, Debug)]
pub struct Found {
    /// Who does; empty if nobody is known to.
    pub workers: Vec<Worker>,
    /// How we know.
    pub source: Source,
    /// Whether there is nobody because the mesh's policy does not let this node call it.
    pub forbidden: bool,
}

/// Whose packets come from an overlay address.
#[derive(Clone, Debug)]
pub enum Whose {
    /// A member's, by its latest certificate.
    Member(Verified),
    /// A standard WireGuard peer's, which has no certificate.
    Stranger,
    /// Nobody's; no longer, if it was somebody's a moment ago.
    Nobody,
}

/// Who is a member of the mesh, as far as the router needs to know.
pub trait Members: Send + Sync {
    /// Ourselves, by our certificate of this moment.
    fn own(&self) -> Verified;

    /// Who has an overlay address: nobody else speaks from it. Waits for nobody.
    fn whose(&self, address: OverlayIp) -> Whose;

    /// The latest certificate of a member, if it is remembered and believed. Asks nobody.
    fn known(&self, member: &NodeId) -> Option<Verified>;

    /// The latest certificate of a member, found out: it may have renewed without our having heard of it.
    fn latest<'a>(&'a self, member: &'a Verified) -> BoxFuture<'a, Option<Verified>>;
}

/// The directory, as far as the router needs it.
pub trait Find: Send + Sync {
    /// Who offers it. Answers in bounded time; without workers if there are none.
    fn find<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, Found>;

    /// `worker` no longer answers for it: do not name it again before it says so itself.
    fn forget(&self, offer: &Offer, worker: &NodeId);
}

/// Makes the value of the `authorization` header that proves to an ingress who we are.
pub type Prove = Arc<dyn Fn(&NodeId, &http::Method, &str) -> anyhow::Result<String> + Send + Sync>;

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
