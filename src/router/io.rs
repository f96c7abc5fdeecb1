//! The router as it runs: the flow of a request from its arrival to the head of its answer.
//!
//! Everything a request waits for is awaited inside one future; when its client leaves, the future is dropped, and with it
//! every connection, place in line and body it holds.

mod account;
mod answer;
mod asking;
mod attempt;
mod believed;
mod called;
mod door;
mod elsewhere;
mod finish;
mod heard;
mod here;
mod openai;
mod outbound;
mod outgoing;
mod overlay;
mod prober;
mod replay;
mod reports;
mod resolve;
mod serve;
mod stalls;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests;
mod underway;
mod upgrade;
mod upstreams;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

pub use account::Audience;
pub use answer::{Answer, AnswerBody, refuse};
pub use door::{ApiKey, Lock, Surface};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
pub use overlay::CONNECT_TIMEOUT;
use rand::{SeedableRng, rngs::SmallRng};
pub use replay::{ALL_AHEAD_BYTES, MAX_AHEAD_BYTES, MAX_WAITING_FOR_ROOM, REPLAY_BUFFER_BYTES};
pub use serve::{MAX_CONNECTIONS, serve};
use wiremesh_certs::{NodeId, NodeName, OverlayIp, TrustStore};

use self::{
    believed::Belief, called::CallLog, overlay::Pool, replay::AttemptBody, resolve::Resolver, upstreams::Upstreams,
};
use super::{Budget, Counters, Find, Fleet, Health, Members, Prove, followed::Followed};
use crate::{clock, services};

const TUNNEL_IDLE_FOR: std::time::Duration = std::time::Duration::from_secs(15);
/// A tunnel's public end may be far away.
pub const TUNNEL_CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// Idle connections kept per tunnel.
const MAX_IDLE_CONNECTIONS: usize = 256;

/// What the router is given at the start.
pub struct Parts {
    /// Our own name.
    pub name: NodeName,
    /// What this node offers.
    pub services: services::Handle,
    /// Who offers what.
    pub directory: Arc<dyn Find>,
    /// Makes proofs for ingress listeners.
    pub prove: Prove,
    /// Who else is a member.
    pub members: Arc<dyn Members>,
    /// Whom we believe, and the mesh's policy.
    pub trust: Arc<TrustStore>,
    /// Whether we carry overlay packets; if not, tunnels are the only way to others.
    pub overlay: bool,
    /// Who wants to know how requests end.
    pub audience: Audience,
    /// The only source of chance.
    pub seed: u64,
}

/// The router. Clones are the same one.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

impl Router {
    /// A router that knows these parts.
    pub fn new(parts: Parts) -> anyhow::Result<Router> {
        let worker_header = http::HeaderValue::try_from(parts.name.as_str())?;
        let upstreams = Upstreams::new(connector(Resolver::anywhere(), CONNECT_TIMEOUT)?);
        let tunnels = tunnels(connector(Resolver::elsewhere(), TUNNEL_CONNECT_TIMEOUT)?);
        Ok(Router {
            shared: Arc::new(Shared {
                worker_header,
                upstreams,
                tunnels,
                pool: Pool::default(),
                health: Mutex::default(),
                fleet: Arc::default(),
                followed: Mutex::default(),
                to_follow: tokio::sync::Notify::new(),
                ejected: tokio::sync::Notify::new(),
                calls: CallLog::new(),
                budget: Mutex::new(Budget::new(clock::now())),
                rng: Mutex::new(SmallRng::seed_from_u64(parts.seed)),
                counters: Counters::default(),
                belief: Belief::new(parts.members.clone(), parts.trust.clone()),
                models: openai::Models::default(),
                stalls: Arc::default(),
                peeks: openai::Peeks::new(),
                parts,
            }),
        })
    }

    /// From here on nothing is begun at a service of this node: other agents are told that nothing was executed, and
    /// requests of our own clients are answered by others. What was begun, and what waits for its turn, goes on.
    pub fn drain(&self) {
        self.shared.parts.services.drain();
    }

    /// Services of this node take requests again.
    pub fn stay(&self) {
        self.shared.parts.services.reopen();
    }

    /// Whether it was asked to.
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    /// Revocations or policy have changed: what runs for those who may no longer is cut, and workers that are members no
    /// more are forgotten, with the connections to them.
    pub fn trust_changed(&self) {
        let Shared { belief, pool, fleet, parts, .. } = &*self.shared;
        belief.on_changed();
        pool.retain(|address| belief.is_inhabited(OverlayIp(address.ip())));
        let known = lock(fleet).workers().into_iter().chain(self.shared.health().workers());
        let gone: BTreeSet<NodeId> = known.filter(|worker| parts.members.known(worker).is_none()).collect();
        for worker in gone {
            lock(fleet).forget(&worker);
            self.shared.health().forget(&worker);
        }
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Ways to workers that are closed, as far as we know.
    pub fn ejected_ways(&self) -> usize {
        self.shared.health().ejected()
    }

    /// Finds out when ejected ways are open again, hears how the workers do that requests go to, closes unused connections,
    /// and takes the places of clients that do nothing, until `stop`.
    pub async fn run(self, stop: crate::task::CancellationToken) -> anyhow::Result<()> {
        tokio::join!(
            prober::run(&self.shared, stop.clone()),
            reports::run(&self.shared, stop.clone()),
            stalls::run(&self.shared, stop)
        );
        Ok(())
    }
}

type Connector = HttpsConnector<HttpConnector<Resolver>>;
type HttpClient = Client<Connector, AttemptBody>;

/// What all requests share.
struct Shared {
    parts: Parts,
    worker_header: http::HeaderValue,
    upstreams: Upstreams,
    tunnels: HttpClient,
    pool: Pool,
    // Locked in this order, if several are: fleet, health, rng.
    fleet: Arc<Mutex<Fleet>>,
    health: Mutex<Health>,
    followed: Mutex<Followed>,
    /// Told when there may be a worker to follow, or one to be asked how it does.
    to_follow: tokio::sync::Notify,
    /// Told of every new ejection.
    ejected: tokio::sync::Notify,
    calls: Arc<CallLog>,
    budget: Mutex<Budget>,
    rng: Mutex<SmallRng>,
    counters: Counters,
    /// What others serve, as they said a moment ago.
    models: openai::Models,
    /// Who may be here, and what for.
    belief: Arc<Belief>,
    /// Who has a place at a service of this node.
    stalls: Arc<stalls::Stalls>,
    /// Who may have read ahead, and how far.
    peeks: openai::Peeks,
}

impl Shared {
    fn health(&self) -> MutexGuard<'_, Health> {
        lock(&self.health)
    }

    fn is_draining(&self) -> bool {
        self.parts.services.is_draining()
    }

    /// Counts how long it took to the head of an answer, and says it.
    fn first_byte(&self, arrived_at: Instant) -> std::time::Duration {
        let took = clock::now().saturating_duration_since(arrived_at);
        self.counters.first_byte_seconds.observe(took.as_secs_f64());
        took
    }
}

fn connector(resolver: Resolver, connect_timeout: std::time::Duration) -> anyhow::Result<Connector> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_webpki_roots()
        .with_no_client_auth();
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp.set_keepalive(Some(std::time::Duration::from_secs(15)));
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

/// A client over HTTP/1.1, one connection per request in flight: no request shares the fate of another, and a connection
/// can become something else.
fn tunnels(connector: Connector) -> HttpClient {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(TUNNEL_IDLE_FOR)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS);
    builder.build(connector)
}

fn header(text: &str) -> http::HeaderValue {
    http::HeaderValue::try_from(text).expect("names and identifiers are visible ASCII")
}

/// A panic elsewhere while a lock was held leaves nothing half done behind it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
