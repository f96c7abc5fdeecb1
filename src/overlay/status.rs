//! The overlay's view of itself, for `wiremesh status`, `wiremesh peers` and the metrics. Every fact carries its age.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde::Serialize;
use wiremesh_certs::{NodeId, NodeName, OverlayIp, WgPublicKey};

use super::{Overlay, Traffic, endpoints::Endpoints, peer::Peer, ping::Pong};

/// What the machine does not know by itself of the device, the socket and the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The TUN device's name.
    pub interface: String,
    /// The UDP port.
    pub listen_port: u16,
    /// The device's MTU.
    pub mtu: u16,
    /// Where others can try to reach us.
    pub endpoints: Endpoints,
}

/// The overlay at a moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Our overlay address.
    pub address: OverlayIp,
    /// Our WireGuard key.
    pub public_key: WgPublicKey,
    /// The TUN device's name.
    pub interface: String,
    /// The UDP port.
    pub listen_port: u16,
    /// The device's MTU.
    pub mtu: u16,
    /// Where others can try to reach us.
    pub endpoints: Vec<SocketAddr>,
    /// Where those who are on the same bridge can.
    pub nearby: Vec<SocketAddr>,
    /// What went through.
    pub traffic: Traffic,
    /// What did not, by reason; zeros included.
    pub dropped: BTreeMap<&'static str, u64>,
    /// All peers.
    pub peers: Vec<PeerStatus>,
}

/// One peer at a moment. Ages are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Its identity; none for a configured peer.
    pub id: Option<NodeId>,
    /// Its name; none for a configured peer.
    pub name: Option<NodeName>,
    /// Its WireGuard key.
    pub public_key: WgPublicKey,
    /// The first of its overlay addresses.
    pub address: Option<IpAddr>,
    /// Where data goes.
    pub endpoint: Option<SocketAddr>,
    /// Where it may be, by what it says of itself and by what was seen.
    pub candidates: Vec<SocketAddr>,
    /// Whether it was heard from there lately.
    pub proven: bool,
    /// Since it was last heard.
    pub heard_secs_ago: Option<f64>,
    /// Since the last handshake succeeded.
    pub handshake_secs_ago: Option<f64>,
    /// What went through.
    pub traffic: Traffic,
}

impl Overlay {
    /// All that can be told.
    pub fn status(&self, place: &Place, now: Instant) -> Status {
        Status {
            address: self.own.at.address,
            public_key: self.own.key,
            interface: place.interface.clone(),
            listen_port: place.listen_port,
            mtu: place.mtu,
            endpoints: place.endpoints.anywhere.clone(),
            nearby: place.endpoints.nearby.iter().map(|nearby| nearby.endpoint).collect(),
            traffic: self.out.counters.traffic(),
            dropped: self.out.counters.iter().map(|(dropped, count)| (dropped.label(), count)).collect(),
            peers: self.peers.iter().map(|(_, peer)| peer.status(now)).collect(),
        }
    }
}

impl Peer {
    fn status(&self, now: Instant) -> PeerStatus {
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        PeerStatus {
            id: self.verified().map(|verified| verified.id()),
            name: self.verified().map(|verified| verified.name().clone()),
            public_key: self.key,
            address: self.allowed.first().map(|network| network.addr()),
            endpoint: self.path.current(),
            candidates: self.path.everywhere(),
            proven: self.path.is_proven(now),
            heard_secs_ago: age(self.path.heard_at()),
            handshake_secs_ago: age(self.session.established_at()),
            traffic: self.traffic,
        }
    }

    /// An echo of this peer's came back.
    pub(super) fn pong(&self, address: OverlayIp, took: Duration) -> Pong {
        Pong {
            address,
            name: self.verified().map(|verified| verified.name().to_string()),
            round_trip_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            path: "overlay",
            endpoint: self.path.current(),
        }
    }
}
