//! Who may be connected, in either direction, and for how long.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use quinn::{Connection, VarInt};
use rustls::pki_types::CertificateDer;
use wiremesh_certs::{NodeId, OverlayIp, Refused, TrustStore, Verified};

use super::tls;
use crate::clock;

/// Close codes, for whoever looks at a packet capture.
const NOT_ADMITTED: VarInt = VarInt::from_u32(1);
const NO_LONGER_BELIEVED: VarInt = VarInt::from_u32(2);

const SILENT: VarInt = VarInt::from_u32(3);

/// A member to whom something was sent, repeatedly, and who has not answered by anything for so long, is not there any
/// more. Without this it would take QUIC its idle time-out to find out, and each lookup until then a time-out.
pub const SILENT_FOR: Duration = Duration::from_secs(2);
/// Datagrams sent without an answer that make it repeatedly: a late acknowledgement of ours, which nobody answers, is
/// one; a request that is repeated by QUIC soon makes four.
const UNANSWERED: u64 = 4;

/// Why a connection was closed right after its handshake.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// No certificate to judge.
    #[error("it showed no certificate")]
    NoCertificate,
    /// The certificate is not believed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Somebody uses another member's certificate, or its own from a wrong place.
    #[error("it comes from {from}, and its certificate is for {certified}")]
    WrongAddress {
        /// Where it comes from.
        from: SocketAddr,
        /// Where it should.
        certified: OverlayIp,
    },
    /// Our own identity.
    #[error("it has our own identity")]
    Ourselves,
}

/// Decides about connections and keeps hold of the open ones, to close them when their certificate is over.
#[derive(Debug)]
pub struct Gate {
    trust: Arc<TrustStore>,
    me: NodeId,
    port: u16,
    open: Mutex<BTreeMap<u64, Open>>,
    last: AtomicU64,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    verified: Verified,
    received: u64,
    /// Datagrams sent, and when, at the time something was last received.
    sent_by_then: (u64, Instant),
}

impl Gate {
    /// A gate of the node `me`, whose mesh speaks on `port` of overlay addresses.
    pub fn new(trust: Arc<TrustStore>, me: NodeId, port: u16) -> Gate {
        Gate { trust, me, port, open: Mutex::default(), last: AtomicU64::new(0) }
    }

    /// Whether a datagram from there could be a member's at all.
    pub fn is_of_the_mesh(&self, address: SocketAddr) -> bool {
        address.port() == self.port && self.trust.current().network().contains(&address.ip())
    }

    /// Where to dial. Contacts name their addresses themselves, so none outside the overlay and its port is dialled.
    pub fn dialable(&self, address: &Multiaddr) -> Option<SocketAddr> {
        let address = socket_address(address)?;
        self.is_of_the_mesh(address).then_some(address)
    }

    /// Lets a connection in, or closes it.
    pub fn admit(self: &Arc<Self>, connection: Connection) -> Result<Admitted, NotAdmitted> {
        match self.judge(&connection) {
            Ok(verified) => {
                let number = self.last.fetch_add(1, Ordering::Relaxed);
                let open = Open {
                    connection: connection.clone(),
                    verified: verified.clone(),
                    received: 0,
                    sent_by_then: (0, clock::now()),
                };
                self.lock().insert(number, open);
                Ok(Admitted { connection, verified, number, gate: self.clone() })
            }
            Err(reason) => {
                connection.close(NOT_ADMITTED, b"not admitted");
                Err(reason)
            }
        }
    }

    /// Closes the connections of members who are no longer believed, and names the members. Whoever has renewed the
    /// certificate that opened a connection keeps the connection: `latest` knows the latest certificate of a member, if it
    /// is believed.
    pub fn close_disbelieved(&self, latest: impl Fn(&NodeId) -> Option<Verified>) -> Vec<NodeId> {
        let (trust, now) = (self.trust.current(), clock::unix());
        let is_over = |verified: &Verified| !verified.is_valid_at(now) || trust.is_revoked(verified);
        let mut closed = Vec::new();
        for open in self.lock().values_mut().filter(|open| is_over(&open.verified)) {
            let is_named = trust.revocations().names(&open.verified);
            match latest(&open.verified.id()).filter(|latest| !is_named && !is_over(latest)) {
                Some(latest) => open.verified = latest,
                None => {
                    open.connection.close(NO_LONGER_BELIEVED, b"certificate revoked or over");
                    closed.push(open.verified.id());
                }
            }
        }
        closed
    }

    /// Closes the connections of members who do not answer any more. To be called every second or so.
    pub fn close_silent(&self, now: Instant) {
        for open in self.lock().values_mut() {
            let stats = open.connection.stats();
            let (sent, received) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
            let (sent_by_then, then) = open.sent_by_then;
            if received != open.received || sent == sent_by_then {
                open.received = received;
                open.sent_by_then = (sent, now);
            } else if sent - sent_by_then >= UNANSWERED && now.saturating_duration_since(then) >= SILENT_FOR {
                open.connection.close(SILENT, b"silent");
            }
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.lock().len()
    }

    fn judge(&self, connection: &Connection) -> Result<Verified, NotAdmitted> {
        let identity = connection.peer_identity().ok_or(NotAdmitted::NoCertificate)?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| NotAdmitted::NoCertificate)?;
        let verified = tls::verify(&self.trust, &chain)?;
        let from = connection.remote_address();
        if from.ip() != verified.address().0 || !self.is_of_the_mesh(from) {
            return Err(NotAdmitted::WrongAddress { from, certified: verified.address() });
        }
        if verified.id() == self.me {
            return Err(NotAdmitted::Ourselves);
        }
        Ok(verified)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a member. Dropping it takes it off the gate's list.
#[derive(Debug)]
pub struct Admitted {
    pub connection: Connection,
    pub verified: Verified,
    number: u64,
    gate: Arc<Gate>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gate.lock().remove(&self.number);
    }
}

/// `/ip4/10.42.0.7/udp/8468/quic-v1`, or the same with IPv6 and with the peer's identity behind it.
pub fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Udp(port) = parts.next()? else { return None };
    let Protocol::QuicV1 = parts.next()? else { return None };
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// The inverse of [`socket_address`].
pub fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(address.ip().into()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

/// libp2p's name for a member: the same Ed25519 key.
pub fn peer_id(node: &NodeId) -> Option<PeerId> {
    let key = libp2p_identity::ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(libp2p_identity::PublicKey::from(key).to_peer_id())
}

/// The member of this name: an Ed25519 key stands in a peer id as it is (multihash "identity" of its protobuf form).
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
    key.try_into().ok().map(NodeId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::entry::testing::Mesh;

    #[test]
    fn a_peer_id_is_the_identity_key_and_back() {
        let id = Mesh::new().node(1).id();

        assert_eq!(node_id(&peer_id(&id).unwrap()), Some(id));
    }

    #[test]
    fn nothing_outside_the_overlay_and_its_port_is_dialled() {
        let mesh = Mesh::new();
        let gate = Gate::new(mesh.store.clone(), mesh.node(1).id(), 8468);
        let dialable = |address: &str| gate.dialable(&address.parse().unwrap()).is_some();

        assert!(dialable("/ip4/127.0.10.2/udp/8468/quic-v1"));
        for address in [
            "/ip4/192.0.2.1/udp/8468/quic-v1",
            "/ip4/127.0.10.2/udp/53/quic-v1",
            "/ip4/127.0.10.2/tcp/8468",
            "/ip4/127.0.10.2/udp/8468",
            "/dns/example.org/udp/8468/quic-v1",
            "/ip6/::1/udp/8468/quic-v1",
            "/ip4/127.0.10.2/udp/8468/quic-v1/p2p-circuit",
        ] {
            assert!(!dialable(address), "{address}");
        }
    }
}
