//! Packets of this machine on their way to peers: cut apart, encrypted, and side by side for the socket.
//!
//! ```text
//! frame → what it stands for → may it leave? → peer of the destination → cut → session.seal ┐ for every packet in it
//!                                                 └ none, or no session: aside               └→ transmits
//! ```

use std::{
    sync::{Arc, MutexGuard},
    time::Instant,
};

use wiremesh_certs::OverlayIp;

use super::{
    Dropped, Traffic,
    batch::{Packets, Transmit, Transmits},
    offload::{Cut, Malformed},
    peer::Peer,
    peers::{Peers, Slot},
    shared::{Aside, Shared},
};

/// Carries packets to peers with whom there is a session.
pub struct Outbound {
    shared: Arc<Shared>,
    transmits: Transmits,
}

/// What holds for all packets that were read at once.
struct Batch<'a> {
    shared: &'a Shared,
    peers: &'a Peers,
    transmits: &'a mut Transmits,
    /// Of whom the last packet was: locked until a packet for another comes, one lock at a time.
    current: Option<Current<'a>>,
    traffic: Traffic,
}

struct Current<'a> {
    destination: OverlayIp,
    slot: Slot,
    peer: MutexGuard<'a, Peer>,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>) -> Outbound {
        Outbound { shared, transmits: Transmits::new() }
    }

    /// Takes all `frames`, each as the TUN device gave it. Drain [`Outbound::poll_transmit`] afterwards.
    pub fn handle_frames(&mut self, frames: &mut Packets, now: Instant, mut aside: impl FnMut(Aside)) {
        let peers = self.shared.peers.load();
        let mut batch = Batch {
            shared: &self.shared,
            peers: &peers,
            transmits: &mut self.transmits,
            current: None,
            traffic: Traffic::default(),
        };
        while let Some(frame) = frames.pop_mut() {
            if let Err(dropped) = batch.route(frame, now, &mut aside) {
                batch.shared.counters.count(dropped);
            }
        }
        batch.shared.counters.add_traffic(batch.traffic);
    }

    /// What to send over UDP.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.transmits.pop()
    }
}

impl Batch<'_> {
    fn route(&mut self, frame: &mut [u8], now: Instant, aside: &mut impl FnMut(Aside)) -> Result<(), Dropped> {
        let mut cut = Cut::new(frame).map_err(|malformed| match malformed {
            Malformed::NotIp => Dropped::NotIp,
            Malformed::Header => Dropped::Malformed,
        })?;
        let destination = cut.destination();
        self.shared.at.may_send(cut.source(), destination)?;
        if self.current.as_ref().is_none_or(|current| current.destination != destination) {
            self.current = None;
            self.current = lock(self.peers, destination);
        }
        match &mut self.current {
            Some(current) if current.peer.session.is_ready() => {
                let was_doubtful = current.peer.session.is_doubtful();
                while let Some(packet) = cut.next() {
                    match current.peer.seal(packet, self.transmits, now) {
                        Ok(()) => self.traffic += Traffic::sent(packet.len()),
                        Err(dropped) => self.shared.counters.count(dropped),
                    }
                }
                if !was_doubtful && current.peer.session.is_doubtful() {
                    aside(Aside::Doubtful(current.slot));
                }
            }
            Some(_) | None => {
                while let Some(packet) = cut.next() {
                    aside(Aside::Packet(packet.into()));
                }
            }
        }
        Ok(())
    }
}

fn lock(peers: &Peers, destination: OverlayIp) -> Option<Current<'_>> {
    let slot = peers.next_hop(destination)?;
    Some(Current { destination, slot, peer: peers.lock(slot)? })
}
