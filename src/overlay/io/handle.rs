//! How the rest of the agent speaks to the overlay.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use wiremesh_certs::{NodeId, NodeRecord, OverlayIp, Signed, Verified};

use crate::overlay::{
    Endpoints, PeerSource, Status,
    ping::{PingFailed, Pong},
    shared::Shared,
    status::Place,
};

/// A command on its way to the loop.
pub(super) enum Command {
    UpsertPeer(Verified, Box<NodeRecord>),
    RefreshPeer(Verified, Box<NodeRecord>),
    Unresolvable(OverlayIp),
    SetOwnRecord(Signed<NodeRecord>),
    TrustChanged,
    Ping(OverlayIp, oneshot::Sender<Result<Pong, PingFailed>>),
    Status(oneshot::Sender<Status>),
}

/// Speaks to a running overlay. Once that has stopped, commands do nothing and questions have no answer.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    place: watch::Receiver<Place>,
    shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, place: watch::Receiver<Place>, shared: Arc<Shared>) -> Handle {
        Handle { commands, place, shared }
    }

    /// `verified` may be spoken to, and is where `record` says. Answers [`super::Event::Resolve`].
    pub async fn upsert_peer(&self, verified: Verified, record: NodeRecord) {
        self.tell(Command::UpsertPeer(verified, Box::new(record))).await;
    }

    /// If `verified` is a peer, it is where `record` says.
    pub async fn refresh_peer(&self, verified: Verified, record: NodeRecord) {
        self.tell(Command::RefreshPeer(verified, Box::new(record))).await;
    }

    /// Nobody has this address. Answers [`super::Event::Resolve`].
    pub async fn unresolvable(&self, address: OverlayIp) {
        self.tell(Command::Unresolvable(address)).await;
    }

    /// What introductions say of us. Until the first, nobody who does not know us will answer.
    pub async fn set_own_record(&self, record: Signed<NodeRecord>) {
        self.tell(Command::SetOwnRecord(record)).await;
    }

    /// Revocations changed: whoever is revoked is to be cut off.
    pub async fn trust_changed(&self) {
        self.tell(Command::TrustChanged).await;
    }

    /// Whose packets come from this overlay address: nobody else's do. None: nobody's. Waits for nobody.
    pub fn whose(&self, address: OverlayIp) -> Option<PeerSource> {
        self.shared.peers.load().whose(address).cloned()
    }

    /// The latest certificate of a peer. Waits for nobody.
    pub fn certificate(&self, id: &NodeId) -> Option<Verified> {
        self.shared.peers.load().certificate(id).cloned()
    }

    /// How far `to` is. Ends after [`crate::overlay::ping::TIMEOUT`] at the latest.
    pub async fn ping(&self, to: OverlayIp) -> Result<Pong, PingFailed> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Ping(to, answer)).await;
        answered.await.unwrap_or(Err(PingFailed::Stopped))
    }

    /// The overlay at this moment; none once it has stopped.
    pub async fn status(&self) -> Option<Status> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Status(answer)).await;
        answered.await.ok()
    }

    /// Where others can try to reach us, for our record.
    pub fn endpoints(&self) -> Endpoints {
        self.place.borrow().endpoints.clone()
    }

    /// Waits until [`Handle::endpoints`] or the MTU are others than when this handle was last asked. Never, once the
    /// overlay has stopped.
    pub async fn endpoints_changed(&mut self) {
        if self.place.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The device's MTU.
    pub fn mtu(&self) -> u16 {
        self.place.borrow().mtu
    }

    async fn tell(&self, command: Command) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("a command came after the overlay had stopped");
        }
    }
}
