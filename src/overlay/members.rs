//! Who is a peer: taken in by a verified record, an introduction or the operator; put out by expiry, revocation, a newer
//! owner of its address, or for want of room.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use rand::Rng;
use wiremesh_certs::{BridgeTag, NodeRecord, Opened, OverlayIp, Refused, Signed, UnixTime, Verified, WgPublicKey};

use super::{
    ConfiguredPeer, Dropped, Event, Overlay,
    peer::{Left, Peer, PeerSource, Reach},
    peers::{MAX_PEERS, Slot, lock},
    session::Session,
};

/// Why somebody was not taken as a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPeer {
    /// It has our key or our address.
    #[error("it has the key or the address of this node itself")]
    Ourselves,
    /// Its key or address is in the configuration.
    #[error("its key or address belongs to a peer that is written in the configuration")]
    Configured,
    /// Somebody with a newer certificate has its key or address.
    #[error("its key or address belongs to a peer with a newer certificate")]
    Superseded,
    /// Its time is over or has not come.
    #[error("its certificate is not valid at this time")]
    Expired,
    /// Its certificate was revoked.
    #[error("its certificate is revoked")]
    Revoked,
    /// Every place is taken by a configured peer.
    #[error("there are {MAX_PEERS} configured peers")]
    Full,
}

impl Overlay {
    /// Command: `verified` is a peer, and reached as `record` says. What waited for it is sent.
    pub fn upsert_peer(
        &mut self,
        verified: &Verified,
        record: &NodeRecord,
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), NotAPeer> {
        if !verified.is_valid_at(unix) {
            return Err(NotAPeer::Expired);
        }
        if self.trust.current().is_revoked(verified) {
            return Err(NotAPeer::Revoked);
        }
        let slot = self.place(verified, now)?;
        self.learn(slot, record, now);
        Ok(())
    }

    /// Command: like [`Overlay::upsert_peer`], if it is a peer already. Nobody becomes one by being heard of.
    pub fn refresh_peer(
        &mut self,
        verified: &Verified,
        record: &NodeRecord,
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), NotAPeer> {
        match self.peers.by_address(verified.address()) {
            Some(_) => self.upsert_peer(verified, record, now, unix),
            None => Ok(()),
        }
    }

    /// Command: a standard WireGuard peer, from the configuration.
    pub fn configure_peer(&mut self, configured: &ConfiguredPeer, now: Instant) -> Result<(), NotAPeer> {
        let ConfiguredPeer { public_key, allowed, endpoint, keepalive_secs } = configured;
        let ourselves = IpNet::from(self.own.at.address.0);
        if *public_key == self.own.key || allowed.contains(&ourselves) {
            return Err(NotAPeer::Ourselves);
        }
        let taken = |network: &IpNet| self.peers.iter().any(|(_, peer)| peer.allowed.contains(network));
        if allowed.iter().any(taken) || self.peers.by_key(public_key).is_some() {
            return Err(NotAPeer::Configured);
        }
        let slot = self.insert(PeerSource::Configured, *public_key, allowed.clone(), *keepalive_secs, now)?;
        if let (Some(endpoint), Some(mut peer)) = (endpoint, self.peers.lock(slot)) {
            peer.path.set_configured(*endpoint);
        }
        if keepalive_secs.is_some() {
            self.out.stay_awake(now);
        }
        Ok(())
    }

    /// Command: no member has this address. What waited for it is dropped, and more of it for a moment.
    pub fn unresolvable(&mut self, address: OverlayIp, now: Instant) {
        if self.peers.by_address(address).is_some() {
            return;
        }
        let dropped = self.unknown.unresolvable(address, now);
        self.out.counters.add(Dropped::Unresolvable, dropped as u64);
        self.out.wake.note(self.unknown.poll_timeout());
        self.pings.unresolvable(address);
    }

    /// We are on these bridges of a container engine: what others say of where they are on them is for us. What peers have
    /// said until now is read anew when they say it again, which they do every half minute.
    pub fn set_bridges(&mut self, bridges: Vec<BridgeTag>) {
        self.own.bridges = bridges;
    }

    /// Command: what we say of ourselves in introductions. By another certificate than before, it is also sent to
    /// everybody we talk to, who would drop us at the end of the old one.
    pub fn set_own_record(
        &mut self,
        record: Signed<NodeRecord>,
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), Box<Refused>> {
        let opened = self.trust.current().open(&record, unix)?;
        if !self.own.set_record(record, opened.by.serial()) {
            return Ok(());
        }
        for (_, mut peer) in self.peers.iter() {
            peer.owe_introduction(now);
        }
        self.out.wake.note(Some((now, "our certificate changed")));
        Ok(())
    }

    /// Command: revocations changed. Whoever is revoked is cut off at once.
    pub fn trust_changed(&mut self) {
        let trust = self.trust.current();
        let revoked = |peer: &Peer| peer.verified().is_some_and(|verified| trust.is_revoked(verified));
        let leaving: Vec<_> = self.peers.iter().filter(|(_, peer)| revoked(peer)).map(|(slot, _)| slot).collect();
        for slot in leaving {
            self.remove(slot, Left::Revoked);
        }
    }

    /// Somebody introduced itself, and is who it says.
    pub(super) fn introduced(
        &mut self,
        opened: Opened<NodeRecord>,
        from: SocketAddr,
        now: Instant,
    ) -> Result<(), Dropped> {
        let Opened { by, payload, signed } = opened;
        let known = self.peers.by_id(&by.id()).and_then(|slot| self.peers.lock(slot)).map(|peer| peer.sequence);
        if known.is_some_and(|sequence| payload.sequence < sequence) {
            return Err(Dropped::IntroductionStale);
        }
        let slot = self.place(&by, now).map_err(|why| {
            tracing::debug!(id = %by.id(), %why, "introduction refused");
            Dropped::IntroductionRefused
        })?;
        if let Some(mut peer) = self.peers.lock(slot) {
            peer.path.observe(from);
            peer.record = Some(signed.clone());
        }
        self.learn(slot, &payload, now);
        self.out.tell(Event::Introduced(by, signed));
        Ok(())
    }

    /// Whether somebody we know repeats itself: introductions go to every endpoint and with every handshake.
    pub(super) fn is_repeated(&mut self, record: &[u8], from: SocketAddr) -> bool {
        let is_same = |peer: &Peer| peer.record.as_ref().is_some_and(|known| known.as_bytes() == record);
        let same = self.peers.iter().find(|(_, peer)| is_same(peer));
        if let Some((_, mut peer)) = same {
            peer.path.observe(from);
            return true;
        }
        false
    }

    /// Puts a peer out and says so.
    pub(super) fn remove(&mut self, slot: Slot, why: Left) {
        let Some(peer) = self.peers.remove(slot) else { return };
        self.publish();
        let peer = lock(&peer);
        self.out.counters.add(Dropped::HeldTooLong, peer.held.len() as u64);
        if let Some(verified) = peer.verified() {
            tracing::info!(name = %verified.name(), id = %verified.id(), ?why, "peer left");
            self.out.tell(Event::Left(verified.clone(), why));
        }
    }

    /// From here on the threads that move packets know the peers that we know.
    fn publish(&self) {
        self.shared.peers.store(Arc::new(self.peers.clone()));
    }

    /// The peer that `verified` is, by this certificate or a newer one.
    fn place(&mut self, verified: &Verified, now: Instant) -> Result<Slot, NotAPeer> {
        let (key, address) = (verified.wg(), verified.address());
        if key == self.own.key || address == self.own.at.address {
            return Err(NotAPeer::Ourselves);
        }
        let holders = [self.peers.by_id(&verified.id()), self.peers.by_key(&key), self.peers.by_address(address)];
        if let [Some(slot), Some(by_key), Some(by_address)] = holders
            && slot == by_key
            && slot == by_address
        {
            let known = self.peers.certificate(&verified.id());
            if known.is_some_and(|known| known != verified && known.not_before() <= verified.not_before()) {
                self.peers.renew(slot, verified);
                self.publish();
            }
            return Ok(slot);
        }
        for slot in holders.into_iter().flatten() {
            let Some(peer) = self.peers.lock(slot) else { continue };
            match &peer.source {
                PeerSource::Configured => return Err(NotAPeer::Configured),
                PeerSource::Verified(known) if known.not_before() > verified.not_before() => {
                    return Err(NotAPeer::Superseded);
                }
                PeerSource::Verified(_) => {}
            }
        }
        holders.into_iter().flatten().for_each(|slot| self.remove(slot, Left::Replaced));
        self.insert(PeerSource::Verified(verified.clone()), key, vec![IpNet::from(address.0)], None, now)
    }

    fn insert(
        &mut self,
        source: PeerSource,
        key: WgPublicKey,
        allowed: Vec<IpNet>,
        keepalive_secs: Option<u16>,
        now: Instant,
    ) -> Result<Slot, NotAPeer> {
        if self.peers.len() >= MAX_PEERS {
            let idle = self.peers.longest_idle().ok_or(NotAPeer::Full)?;
            self.remove(idle, Left::Idle);
        }
        let seed = self.rng.random();
        let (own, unlimited, rekey_after) = (&self.own.secret, &self.unlimited, self.rekey_after);
        let make = |index| {
            let session = Session::new(own, &key, keepalive_secs, index, Arc::clone(unlimited), rekey_after, seed);
            Peer::new(source, key, allowed, session, now)
        };
        let slot = self.peers.insert(&mut self.rng, make).ok_or(NotAPeer::Full)?;
        self.publish();
        Ok(slot)
    }

    /// Takes over what a record says about the way to a peer, unless a newer one said otherwise, and sends what waited.
    fn learn(&mut self, slot: Slot, record: &NodeRecord, now: Instant) {
        let Some(mut peer) = self.peers.lock(slot) else { return };
        if record.sequence >= peer.sequence {
            peer.sequence = record.sequence;
            let before = peer.path.everywhere();
            peer.path.set_candidates(&record.endpoints_from(&self.own.bridges), &self.own.at.network);
            if peer.session.is_connecting() && peer.path.everywhere().iter().any(|to| !before.contains(to)) {
                peer.initiate(Reach::Everywhere, &self.own, &mut self.out, now);
            }
        }
        if let Some(address) = peer.verified().map(|verified| verified.address()) {
            let surplus = peer.held.prepend(self.unknown.resolved(address));
            self.out.counters.add(Dropped::HeldTooMany, surplus as u64);
        }
        if peer.held.len() > 0 {
            match peer.session.is_ready() {
                true => peer.flush(&self.own, &mut self.out, now),
                false => peer.connect(&self.own, &mut self.out, now),
            }
        }
    }
}
