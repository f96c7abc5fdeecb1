//! The table of peers: found by slot, by the number they call us by, by key, by identity and by overlay address.
//!
//! A clone of the table is a snapshot of who is a peer; the peers in it are shared, each behind a lock of its own. Whoever
//! moves packets takes that lock once for all packets of one peer that follow one another, and holds no other meanwhile.
//!
//! **Invariant:** a key, an identity and an address lead to one peer at most, and to none that is not in the table.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use rand::{Rng, rngs::StdRng};
use wiremesh_certs::{NodeId, OverlayIp, Verified, WgPublicKey};

use super::peer::{Peer, PeerSource};

/// Peers at once, about 16 KiB each; beyond it the one idle for longest goes.
pub const MAX_PEERS: usize = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 10;
/// WireGuard's receiver index as boringtun splits it: 24 bits for us, 8 for its sessions.
const INDEX_BITS: u32 = 24;

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(usize);

/// All peers.
#[derive(Clone, Default)]
pub struct Peers {
    slots: Vec<Option<Entry>>,
    by_address: BTreeMap<OverlayIp, Slot>,
    /// What configured peers may speak for beyond single addresses, longest prefix first.
    by_network: Vec<(IpNet, Slot)>,
    by_key: BTreeMap<WgPublicKey, Slot>,
    by_id: BTreeMap<NodeId, Slot>,
}

#[derive(Clone)]
struct Entry {
    /// What the peer calls us by.
    index: u32,
    /// Why it is one, for whoever asks without keeping its packets waiting.
    source: PeerSource,
    peer: Arc<Mutex<Peer>>,
}

impl Peers {
    /// Adds a peer made for a free slot and an index of its own: the slot, and above it chance, so that a datagram for
    /// a peer that was there before does not meet the one that is there now. None if the table is full.
    pub fn insert(&mut self, rng: &mut StdRng, make: impl FnOnce(u32) -> Peer) -> Option<Slot> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if free >= MAX_PEERS {
            return None;
        }
        let index = rng.random_range(0..1u32 << (INDEX_BITS - SLOT_BITS)) << SLOT_BITS | free as u32;
        let peer = make(index);
        let slot = Slot(free);
        for network in &peer.allowed {
            match is_single(network) {
                true => _ = self.by_address.insert(OverlayIp(network.addr()), slot),
                false => self.by_network.push((*network, slot)),
            }
        }
        self.by_network.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        self.by_key.insert(peer.key, slot);
        if let PeerSource::Verified(verified) = &peer.source {
            self.by_id.insert(verified.id(), slot);
        }
        let entry = Some(Entry { index, source: peer.source.clone(), peer: Arc::new(Mutex::new(peer)) });
        match self.slots.get_mut(free) {
            Some(place) => *place = entry,
            None => self.slots.push(entry),
        }
        Some(slot)
    }

    /// A peer has a later certificate.
    pub fn renew(&mut self, slot: Slot, verified: &Verified) {
        let Some(entry) = self.slots.get_mut(slot.0).and_then(Option::as_mut) else { return };
        entry.source = PeerSource::Verified(verified.clone());
        lock(&entry.peer).source = entry.source.clone();
    }

    /// Takes a peer out of this table. Snapshots taken before still have it.
    pub fn remove(&mut self, slot: Slot) -> Option<Arc<Mutex<Peer>>> {
        let Entry { peer, .. } = self.slots.get_mut(slot.0)?.take()?;
        self.by_address.retain(|_, at| *at != slot);
        self.by_network.retain(|(_, at)| *at != slot);
        self.by_key.retain(|_, at| *at != slot);
        self.by_id.retain(|_, at| *at != slot);
        Some(peer)
    }

    /// The peer at `slot`, for us alone until the guard is dropped.
    pub fn lock(&self, slot: Slot) -> Option<MutexGuard<'_, Peer>> {
        self.slots.get(slot.0)?.as_ref().map(|entry| lock(&entry.peer))
    }

    /// Who has this overlay address.
    pub fn by_address(&self, address: OverlayIp) -> Option<Slot> {
        self.by_address.get(&address).copied()
    }

    /// Why there is a peer that may speak from this overlay address. None: nobody may.
    pub fn whose(&self, address: OverlayIp) -> Option<&PeerSource> {
        self.source(self.next_hop(address)?)
    }

    /// The certificate of the peer with this identity.
    pub fn certificate(&self, id: &NodeId) -> Option<&Verified> {
        match self.source(self.by_id(id)?)? {
            PeerSource::Verified(verified) => Some(verified),
            PeerSource::Configured => None,
        }
    }

    /// Where a packet to `destination` goes: to who has the address, or else the network around it.
    pub fn next_hop(&self, destination: OverlayIp) -> Option<Slot> {
        self.by_address(destination).or_else(|| {
            let around = self.by_network.iter().find(|(network, _)| network.contains(&destination.0));
            around.map(|(_, slot)| *slot)
        })
    }

    /// Who has this WireGuard key.
    pub fn by_key(&self, key: &WgPublicKey) -> Option<Slot> {
        self.by_key.get(key).copied()
    }

    /// Who has this identity.
    pub fn by_id(&self, id: &NodeId) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    /// Who calls us by this receiver index, 32 bits as they stand in a datagram.
    pub fn by_receiver_index(&self, receiver: u32) -> Option<Slot> {
        let index = receiver >> (u32::BITS - INDEX_BITS);
        let slot = index as usize & (MAX_PEERS - 1);
        let entry = self.slots.get(slot)?.as_ref()?;
        (entry.index == index).then_some(Slot(slot))
    }

    /// All peers, each locked while it is looked at.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, MutexGuard<'_, Peer>)> {
        self.slots.iter().enumerate().filter_map(|(at, place)| Some((Slot(at), lock(&place.as_ref()?.peer))))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    fn source(&self, slot: Slot) -> Option<&PeerSource> {
        self.slots.get(slot.0)?.as_ref().map(|entry| &entry.source)
    }

    /// The peer nothing was sent to or heard from for longest. Configured ones stay: only the operator removes them.
    pub fn longest_idle(&self) -> Option<Slot> {
        self.iter().filter_map(|(slot, peer)| peer.verified().map(|_| (peer.used_at, slot))).min().map(|(_, slot)| slot)
    }
}

/// A panic elsewhere is no reason for another here: a peer is not left half changed by any call.
pub fn lock(peer: &Mutex<Peer>) -> MutexGuard<'_, Peer> {
    peer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_single(network: &IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len()
}
