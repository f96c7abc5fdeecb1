//! What the threads that carry packets have in common with the machine that governs them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;

use super::{
    Dropped,
    dropped::Counters,
    own::OwnAddress,
    peers::{Peers, Slot},
};

/// Written by [`super::Overlay`], read by [`super::Outbound`] and [`super::Inbound`].
pub struct Shared {
    /// Where we are.
    pub at: OwnAddress,
    /// Who is a peer: replaced whenever somebody comes or goes, so that nobody waits to read it.
    pub peers: ArcSwap<Peers>,
    /// Of all three.
    pub counters: Arc<Counters>,
    pinging: AtomicBool,
}

/// What a thread that carries packets leaves to the machine.
#[derive(Debug)]
pub enum Aside {
    /// Outbound: a packet for somebody who is no peer, or with whom there is no session.
    Packet(Box<[u8]>),
    /// Inbound: anything but data of a session.
    Datagram(SocketAddr, Box<[u8]>),
    /// Inbound: a packet of this peer's that may answer an echo of ours.
    Pong(Slot, Box<[u8]>),
    /// Outbound: data for this peer may not arrive, as it seems. Look after it.
    Doubtful(Slot),
    /// Outbound: the operating system did not send to this endpoint.
    Refused(SocketAddr, Dropped),
}

impl Shared {
    /// Without peers.
    pub fn new(at: OwnAddress) -> Shared {
        Shared { at, peers: ArcSwap::default(), counters: Arc::default(), pinging: AtomicBool::new(false) }
    }

    /// Whether answers to echoes of ours are waited for.
    pub fn is_pinging(&self) -> bool {
        self.pinging.load(Relaxed)
    }

    /// Answers to echoes of ours are waited for, or not any longer.
    pub fn set_pinging(&self, pinging: bool) {
        self.pinging.store(pinging, Relaxed);
    }
}
