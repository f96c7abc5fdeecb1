//! Packets of peers on their way to this machine: decrypted side by side, checked, and joined for the device.
//!
//! ```text
//! datagram → data of a session? → peer by receiver index → session.open → the peer's to send, ours to take? → join
//!               └ no: aside, if it may be a handshake or an introduction          └ may answer an echo of ours: aside
//! ```

use std::{
    net::SocketAddr,
    sync::{Arc, MutexGuard},
    time::Instant,
};

use super::{
    Dropped, Traffic,
    batch::Packets,
    endpoints::MAX_MTU,
    introduction,
    offload::{Join, Joined, Takes},
    peer::Peer,
    peers::{Peers, Slot},
    ping::Pings,
    session::{MIN_SPARE, OVERHEAD, data_receiver},
    shared::{Aside, Shared},
};

/// No handshake or introduction is larger, and no packet that a peer of ours sends.
const MAX_ASIDE: usize = MAX_MTU as usize + OVERHEAD;

/// As much as the kernel puts together from one sender, and room for the last packet's tail.
const MAX_BUFFER: usize = (1 << 16) + MIN_SPARE;

/// Carries packets of peers with whom there is a session.
pub struct Inbound {
    shared: Arc<Shared>,
    packets: Packets,
    join: Join,
}

/// What holds for all datagrams that were received at once.
struct Batch<'a> {
    shared: &'a Shared,
    peers: &'a Peers,
    packets: &'a mut Packets,
    join: &'a mut Join,
    /// Of whom the last datagram was: locked until another's comes, one lock at a time.
    current: Option<Current<'a>>,
    traffic: Traffic,
}

struct Current<'a> {
    receiver: u32,
    slot: Slot,
    peer: MutexGuard<'a, Peer>,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, takes: Takes) -> Inbound {
        Inbound { shared, packets: Packets::new(), join: Join::new(takes) }
    }

    /// Takes datagrams that the UDP socket received from one endpoint. Drain [`Inbound::poll_joined`] afterwards.
    pub fn handle_datagrams<'d>(
        &mut self,
        from: SocketAddr,
        datagrams: impl Iterator<Item = &'d [u8]>,
        now: Instant,
        mut aside: impl FnMut(Aside),
    ) {
        if self.join.is_empty() {
            self.packets.clear();
        }
        let peers = self.shared.peers.load();
        let mut batch = Batch {
            shared: &self.shared,
            peers: &peers,
            packets: &mut self.packets,
            join: &mut self.join,
            current: None,
            traffic: Traffic::default(),
        };
        for datagram in datagrams {
            if let Err(dropped) = batch.take(from, datagram, now, &mut aside) {
                batch.shared.counters.count(dropped);
            }
        }
        batch.shared.counters.add_traffic(batch.traffic);
    }

    /// Whether another received buffer surely has room.
    pub fn has_room(&self) -> bool {
        self.packets.room() >= MAX_BUFFER
    }

    /// What to write to the TUN device.
    pub fn poll_joined(&mut self) -> Option<Joined<'_>> {
        self.join.next(self.packets.bytes_mut())
    }
}

impl Batch<'_> {
    fn take(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        aside: &mut impl FnMut(Aside),
    ) -> Result<(), Dropped> {
        let Some(receiver) = data_receiver(datagram) else {
            return leave(from, datagram, aside);
        };
        if self.current.as_ref().is_none_or(|current| current.receiver != receiver) {
            self.current = None;
            self.current = lock(self.peers, receiver);
        }
        let Current { slot, peer, .. } = self.current.as_mut().ok_or(Dropped::UnknownSession)?;
        if !peer.session.is_ready() {
            return leave(from, datagram, aside);
        }
        let spare = self.packets.spare(datagram.len().max(MIN_SPARE)).ok_or(Dropped::BatchFull)?;
        let Some(len) = peer.open_data(from, datagram, spare, now)? else {
            return Ok(());
        };
        let packet = peer.accept(&spare[..len], &self.shared.at)?;
        self.traffic += Traffic::received(len);
        if self.shared.is_pinging() && Pings::is_reply(&packet) {
            aside(Aside::Pong(*slot, spare[..len].into()));
            return Ok(());
        }
        let at = self.packets.push(len);
        self.join.add(self.packets.bytes(), at);
        Ok(())
    }
}

/// Leaves a datagram to the machine, if it can be of use to it.
fn leave(from: SocketAddr, datagram: &[u8], aside: &mut impl FnMut(Aside)) -> Result<(), Dropped> {
    match datagram.first() {
        Some(1..=4 | &introduction::TYPE) if datagram.len() <= MAX_ASIDE => {
            aside(Aside::Datagram(from, datagram.into()));
            Ok(())
        }
        Some(_) | None => Err(Dropped::Garbage),
    }
}

fn lock(peers: &Peers, receiver: u32) -> Option<Current<'_>> {
    let slot = peers.by_receiver_index(receiver)?;
    Some(Current { receiver, slot, peer: peers.lock(slot)? })
}
