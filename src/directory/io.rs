//! The directory at work: its two tasks, and the handle by which the rest of the agent asks and tells.
//!
//! ```text
//!   Handle ──► memory (fingers, records, contacts): answered at once
//!      ├─────► lookups task ──► table task ──► swarm, QUIC on the overlay address
//!      │                └─────► Discover: the coordinator over HTTP
//!      └─────► table task: publish, contacts
//! ```

mod gate;
mod handle;
mod lookups;
mod members;
mod shared;
mod stream;
mod table;
mod tls;
mod transport;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use wiremesh_certs::{Chain, IdentityKey, NodeRecord, Offer, OverlayIp, Signed, TrustStore};

use self::{gate::Gate, lookups::Lookups, shared::Shared, table::Table, tls::Credentials, transport::EndpointSettings};
pub use self::{
    handle::{Handle, Status},
    shared::Sought,
};
use crate::task::Tasks;

/// The table's port on overlay addresses; the same on every member of a mesh.
pub const DEFAULT_PORT: u16 = 8468;
/// The table is given so long for an answer; then what has been heard counts. Two round trips of 100 ms, with room.
pub const LOOKUP_DEADLINE: Duration = Duration::from_millis(300);
/// How often somebody is dialled who was once met and is not connected, as a rule.
pub const LOOK_BACK_EVERY: Duration = Duration::from_secs(60);

/// Who is asked when the table has no answer: the coordinator. What it says is checked like anybody's word.
pub trait Discover: Send + Sync + 'static {
    /// The records of those who offer it. None is an answer; an error means that nobody could be asked.
    fn discover<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, anyhow::Result<Vec<Signed<NodeRecord>>>>;

    /// The record of one member.
    fn node<'a>(&'a self, sought: &'a Sought) -> BoxFuture<'a, anyhow::Result<Option<Signed<NodeRecord>>>>;
}

/// How the directory is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether to take part in the table. If not, the coordinator is asked for everything.
    pub table: bool,
    /// Our overlay address, by our certificate.
    pub address: OverlayIp,
    /// The table's port, here and on every other member.
    pub port: u16,
    /// The overlay's interface, to bind to. None leaves the way to the routing table.
    pub device: Option<String>,
    /// The overlay's MTU.
    pub mtu: u16,
    /// How long the table is given to answer a lookup.
    pub deadline: Duration,
    /// How often somebody is dialled who was once met and is not connected.
    pub look_back_every: Duration,
}

impl Settings {
    /// The usual, at this address.
    pub fn at(address: OverlayIp) -> Settings {
        Settings {
            table: true,
            address,
            port: DEFAULT_PORT,
            device: None,
            mtu: 1280,
            deadline: LOOKUP_DEADLINE,
            look_back_every: LOOK_BACK_EVERY,
        }
    }
}

/// Why the directory could not start.
#[derive(Debug, thiserror::Error)]
#[error("starting the directory: {0:#}")]
pub struct StartError(#[from] anyhow::Error);

/// Starts the directory's tasks. The overlay address must be there already if the table is enabled.
pub fn start(
    settings: &Settings,
    trust: Arc<TrustStore>,
    identity: &IdentityKey,
    chain: &Chain,
    discover: Arc<dyn Discover>,
    tasks: &Tasks,
) -> Result<Handle, StartError> {
    let shared = Arc::new(Shared::new(identity.id(), trust.clone()));
    let credentials = Arc::new(Credentials::new(identity, chain)?);

    let mut orders = None;
    if settings.table {
        let me = SocketAddr::new(settings.address.0, settings.port);
        let endpoint_settings = EndpointSettings { bind: me, device: settings.device.as_deref(), mtu: settings.mtu };
        let endpoint = transport::endpoint(&endpoint_settings, identity, credentials.clone(), trust.clone())?;
        let gate = Arc::new(Gate::new(trust, identity.id(), settings.port));
        let table = Table::new(endpoint, gate, shared.clone(), me, settings.look_back_every)?;
        let (sender, receiver) = mpsc::channel(table::MAX_ORDERS);
        tasks.spawn("directory table", |stop| table.run(receiver, stop));
        orders = Some(sender);
    }

    let (searches, receiver) = mpsc::channel(lookups::MAX_WAITING);
    let lookups = Lookups { shared: shared.clone(), discover, table: orders.clone(), deadline: settings.deadline };
    tasks.spawn("directory lookups", |stop| lookups.run(receiver, stop));
    Ok(Handle::new(shared, credentials, orders, searches))
}
