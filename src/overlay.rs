//! IP packets between the TUN device and the UDP socket: routes, sessions, paths, introductions.
//!
//! ```text
//! out  tun → parse → peer of the destination → session.seal → path.current → udp
//!                      └ unknown: ask for a resolution once, keep a few packets, never block
//! in   udp → by receiver index → session.open → path.on_authenticated → is the inner source the peer's? → tun
//!        ├ introduction: made for us? → not too many? → Trust → a peer
//!        └ handshake: mac1 → not too many? → a peer's key? else drop
//! ```
//!
//! **Invariants**, each with a test of that name:
//! - a member cannot speak for another: a packet leaves the overlay only if its inner source is its session's
//! - a stranger is no peer: only a [`Verified`] or the operator's configuration makes one
//! - an expired or revoked peer is cut off while its session runs
//!
//! Three share the work. [`Outbound`] and [`Inbound`], each on a thread of its own, carry packets between peers that know
//! each other: many at a time, without allocation, and under one lock per peer and batch. Whatever they cannot decide they
//! leave [`Aside`] for the machine, [`Overlay`], which takes any packet the same way, only one by one; it makes peers and
//! sessions, and keeps time.
//!
//! None of them does IO or reads a clock, except that boringtun keeps one of its own for the ages of keys. Memory for
//! packets is taken once; what is allocated later belongs to beginnings: a peer, a held packet, a handshake.

mod admission;
mod batch;
mod dropped;
mod endpoints;
pub(crate) mod fuzz;
mod held;
mod inbound;
mod introduction;
pub mod io;
mod members;
mod offload;
mod outbound;
mod outbox;
mod own;
mod packet;
mod path;
mod peer;
mod peers;
pub mod ping;
mod session;
mod shared;
mod status;
#[cfg(test)]
mod tests;
mod unknown;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::noise::{Packet, Tunn, TunnResult, handshake::parse_handshake_anon, rate_limiter::RateLimiter};
use ipnet::IpNet;
use rand::{Rng, SeedableRng, rngs::StdRng};
use wiremesh_certs::{NodeRecord, OverlayIp, Signed, TrustStore, UnixTime, Verified, WgPrivateKey, WgPublicKey};

use self::{
    admission::Admission,
    inbound::Inbound,
    offload::Takes,
    outbound::Outbound,
    outbox::Outbox,
    own::{Own, OwnAddress},
    packet::IpPacket,
    peers::{Peers, Slot},
    ping::{PingFailed, PingId, Pings, Pong},
    session::{Due, MIN_SPARE, Opened},
    shared::{Aside, Shared},
    unknown::Unknown,
};
pub use self::{
    batch::Transmit,
    dropped::{Counters, Dropped, Traffic},
    endpoints::{Endpoints, Interface, MAX_ENDPOINTS, Surroundings, Survey},
    io::{
        Handle, Settings, check, start, survey,
        tun::{Lack, NoDevice},
    },
    members::NotAPeer,
    peer::{Left, PeerSource},
    peers::MAX_PEERS,
    session::REKEY_AFTER,
    status::{PeerStatus, Status},
};

/// Handshakes a second above which a sender must prove its address with a cookie first.
pub const HANDSHAKES_BEFORE_COOKIES: u64 = 100;

/// What the overlay wants to tell the rest of the agent.
#[derive(Clone, Debug)]
pub enum Event {
    /// Packets wait for this address, or its peer does not answer where we know it. Answer with
    /// [`Overlay::upsert_peer`] or [`Overlay::unresolvable`].
    Resolve(OverlayIp),
    /// Somebody introduced itself and is a peer.
    Introduced(Verified, Signed<NodeRecord>),
    /// A verified peer is none any longer.
    Left(Verified, Left),
}

/// A standard WireGuard peer, written down by the operator. It needs no certificate and never expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredPeer {
    /// Its key.
    pub public_key: WgPublicKey,
    /// The overlay addresses it may speak for.
    pub allowed: Vec<IpNet>,
    /// Where it is; without it we wait to hear from it.
    pub endpoint: Option<SocketAddr>,
    /// How often to send something to keep a NAT open, in seconds.
    pub keepalive_secs: Option<u16>,
}

/// What the kernel does for us with many packets at once, where it can. Each can be turned off, to find out which one
/// breaks on a kernel; without any, packets take the same way one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// The TUN device hands over and takes large packets and unfinished checksums (TSO, USO, GRO).
    pub tun: bool,
    /// One send carries many datagrams (UDP GSO).
    pub udp_send: bool,
    /// One receive carries many datagrams (UDP GRO).
    pub udp_receive: bool,
}

impl Default for Offloads {
    fn default() -> Offloads {
        Offloads { tun: true, udp_send: true, udp_receive: true }
    }
}

/// What an overlay is made from.
pub struct Parameters<'a> {
    /// Our WireGuard key.
    pub key: &'a WgPrivateKey,
    /// Our overlay address.
    pub address: OverlayIp,
    /// The overlay network.
    pub network: IpNet,
    /// Whom to believe.
    pub trust: Arc<TrustStore>,
    /// The age at which a session gets new keys, [`REKEY_AFTER`] at most.
    pub rekey_after: Duration,
    /// An instant on the beat that sessions tick on: see [`crate::beat`].
    pub beat: Instant,
    /// The only source of chance, but for the keys that boringtun makes.
    pub seed: u64,
}

/// All peers of this node and the packets between them. Does no IO and reads no clock:
///
/// - `handle_*` takes what came from the outside,
/// - `poll_*` gives what should go there; drain it after every `handle_*` and every command.
pub struct Overlay {
    own: Own,
    trust: Arc<TrustStore>,
    shared: Arc<Shared>,
    rekey_after: Duration,
    peers: Peers,
    unknown: Unknown,
    pings: Pings,
    introductions: Admission,
    handshakes: Admission,
    /// Asks for cookies, on behalf of all sessions …
    cookies: RateLimiter,
    /// … which share one that does not, as each insists on having one.
    unlimited: Arc<RateLimiter>,
    out: Outbox,
    rng: StdRng,
}

impl Overlay {
    /// Without peers.
    pub fn new(parameters: Parameters<'_>, now: Instant) -> Overlay {
        let Parameters { key, address, network, trust, rekey_after, beat, seed } = parameters;
        let at = OwnAddress { address, network };
        let own = Own::new(key, at);
        let shared = Arc::new(Shared::new(at));
        let mut rng = StdRng::seed_from_u64(seed);
        Overlay {
            cookies: RateLimiter::new(&own.public, HANDSHAKES_BEFORE_COOKIES),
            unlimited: Arc::new(RateLimiter::new(&own.public, u64::MAX)),
            own,
            trust,
            out: Outbox::new(Arc::clone(&shared.counters), beat),
            shared,
            rekey_after,
            peers: Peers::default(),
            unknown: Unknown::default(),
            pings: Pings::new(rng.random()),
            introductions: Admission::new(
                admission::INTRODUCTIONS,
                admission::INTRODUCTIONS_PER_SOURCE,
                rng.random(),
                now,
            ),
            handshakes: Admission::new(admission::HANDSHAKES, admission::HANDSHAKES_PER_SOURCE, rng.random(), now),
            rng,
        }
    }

    /// Carries packets of ours to the peers of this machine.
    fn outbound(&self) -> Outbound {
        Outbound::new(Arc::clone(&self.shared))
    }

    /// Carries packets of the peers of this machine to us, joined as the device takes them.
    fn inbound(&self, takes: Takes) -> Inbound {
        Inbound::new(Arc::clone(&self.shared), takes)
    }

    /// What may be asked without asking us.
    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Outbound: one packet from the TUN device.
    pub fn handle_tun_packet(&mut self, bytes: &[u8], now: Instant) -> Result<(), Dropped> {
        self.route(bytes, now).inspect_err(|dropped| self.out.counters.count(*dropped))
    }

    /// Inbound: one datagram from the UDP socket.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), Dropped> {
        let from = path::canonical(from);
        let done = match datagram.first() {
            Some(&introduction::TYPE) => self.handle_introduction(from, datagram, now, unix),
            Some(1) => self.handle_initiation(from, datagram, now, unix),
            Some(2..=4) => self.handle_session_message(from, datagram, now, unix),
            Some(_) | None => Err(Dropped::Garbage),
        };
        done.inspect_err(|dropped| self.out.counters.count(*dropped))
    }

    /// What [`Outbound`] or [`Inbound`] could not decide.
    fn handle_aside(&mut self, aside: Aside, now: Instant, unix: UnixTime) {
        // A refusal is counted where it happens.
        let _: Result<(), Dropped> = match aside {
            Aside::Packet(packet) => self.handle_tun_packet(&packet, now),
            Aside::Datagram(from, datagram) => self.handle_datagram(from, &datagram, now, unix),
            Aside::Pong(slot, packet) => self.handle_pong(slot, &packet, now),
            Aside::Doubtful(slot) => {
                self.out.wake.note(self.peers.lock(slot).and_then(|peer| peer.session.poll_timeout()));
                Ok(())
            }
            Aside::Refused(to, dropped) => {
                self.on_send_failed(to, dropped, now);
                Ok(())
            }
        };
    }

    /// Something is due.
    pub fn handle_timeout(&mut self, now: Instant, unix: UnixTime) {
        let ticks = self.out.tick_at.is_some_and(|at| now >= at);
        let mut leaving = Vec::new();
        let mut awake = false;
        let mut unfinished = false;
        self.out.wake.clear();
        for (slot, mut peer) in self.peers.iter() {
            if self.out.transmits.room() < peer::ROOM {
                unfinished = true;
                break;
            }
            if let Some(why) = peer.must_leave(unix) {
                leaving.push((slot, why));
                continue;
            }
            if ticks && peer.session.is_awake(now) {
                peer.tick(&self.own, &mut self.out, now);
            }
            match peer.handle_timeout(&self.own, &mut self.out, now) {
                Some(Due::Retry(times)) if times % RETRIES_PER_QUESTION == RETRIES_BEFORE_ASKING => {
                    ask_about(&peer, &mut self.out);
                }
                Some(Due::Retry(_) | Due::Suspect | Due::Rekey | Due::GaveUp) | None => {}
            }
            self.out.wake.note(peer.session.poll_timeout());
            self.out.wake.note(peer.held.poll_timeout());
            if peer.session.is_awake(now) {
                awake = true;
                self.out.wake.note(peer.leaves_at(now, unix));
            }
        }
        for (slot, why) in leaving {
            self.remove(slot, why);
        }
        let expired = self.unknown.handle_timeout(now);
        self.out.counters.add(Dropped::HeldTooLong, expired as u64);
        self.out.wake.note(self.unknown.poll_timeout());
        self.pings.handle_timeout(now);
        self.shared.set_pinging(self.pings.are_open());
        self.out.wake.note(self.pings.poll_timeout());
        if unfinished {
            self.out.wake.note(Some((now, "more peers are due than fit one batch")));
        } else if ticks {
            self.out.tick_at = None;
        }
        if awake || self.out.tick_at.is_some() {
            self.out.stay_awake(now);
        }
    }

    /// The operating system did not send a datagram to `to`. A fact about a path, if it is not one about the datagram or
    /// the moment, and nothing else.
    pub fn on_send_failed(&mut self, to: SocketAddr, dropped: Dropped, now: Instant) {
        self.out.counters.count(dropped);
        if matches!(dropped, Dropped::TooBig | Dropped::Congested) {
            return;
        }
        for (_, mut peer) in self.peers.iter() {
            if peer.path.on_refused(to) && peer.session.is_ready() {
                peer.session.suspect(now);
                self.out.wake.note(peer.session.poll_timeout());
            }
        }
    }

    /// The TUN device did not take a packet.
    pub fn on_device_failed(&mut self) {
        self.out.counters.count(Dropped::Device);
    }

    /// Sends an echo to another node; [`Overlay::poll_pong`] will tell how it ended.
    pub fn ping(&mut self, to: OverlayIp, now: Instant) -> Result<PingId, PingFailed> {
        let (id, packet) = self.pings.start(self.own.at.address, to, now)?;
        self.shared.set_pinging(true);
        self.out.wake.note(self.pings.poll_timeout());
        match self.route(&packet, now) {
            Ok(()) => {}
            Err(Dropped::Unresolvable) => self.pings.finish(id, Err(PingFailed::Unresolvable)),
            Err(Dropped::NoRoute | Dropped::Multicast) => self.pings.finish(id, Err(PingFailed::NotAnother)),
            Err(_) => {}
        }
        Ok(id)
    }

    /// What to send over UDP.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.out.transmits.pop()
    }

    /// What to write to the TUN device.
    pub fn poll_packet(&mut self) -> Option<&[u8]> {
        self.out.packets.pop()
    }

    /// What to tell the rest of the agent.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.poll_event()
    }

    /// How a ping ended.
    pub fn poll_pong(&mut self) -> Option<(PingId, Result<Pong, PingFailed>)> {
        self.pings.poll()
    }

    /// When to call [`Overlay::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.out.wake.at()
    }

    /// What was dropped and what went through.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.out.counters
    }

    fn route(&mut self, bytes: &[u8], now: Instant) -> Result<(), Dropped> {
        let packet = IpPacket::parse(bytes).ok_or(Dropped::NotIp)?;
        self.own.at.may_send(packet.source, packet.destination)?;
        let to = self.peers.next_hop(packet.destination);
        if let Some(mut peer) = to.and_then(|slot| self.peers.lock(slot)) {
            return peer.send(bytes, &self.own, &mut self.out, now);
        }
        self.hold(packet.destination, bytes, now)
    }

    fn hold(&mut self, destination: OverlayIp, bytes: &[u8], now: Instant) -> Result<(), Dropped> {
        let kept = self.unknown.hold(destination, bytes, now)?;
        self.out.counters.add(Dropped::HeldTooMany, kept.displaced as u64);
        if kept.ask {
            self.out.tell(Event::Resolve(destination));
            self.out.wake.note(self.unknown.poll_timeout());
        }
        Ok(())
    }

    /// Somebody says who it is.
    fn handle_introduction(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), Dropped> {
        let record = self.own.introduction_key.open(datagram).ok_or(Dropped::IntroductionForged)?;
        if self.is_repeated(record, from) {
            return Ok(());
        }
        if !self.introductions.admit(from.ip(), now) {
            return Err(Dropped::IntroductionRate);
        }
        let signed = Signed::<NodeRecord>::from_bytes(record).map_err(|_| Dropped::IntroductionRefused)?;
        let opened = self.trust.current().open(&signed, unix).map_err(|refused| {
            tracing::debug!(%from, reason = refused.reason(), "introduction refused");
            Dropped::IntroductionRefused
        })?;
        self.introduced(opened, from, now)
    }

    /// A handshake from whoever has a key. Expensive to look at, so looked at last.
    fn handle_initiation(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), Dropped> {
        let mut cookie = [0; MIN_SPARE];
        self.cookies.reset_count();
        let initiation = match self.cookies.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Ok(_) => return Err(Dropped::Garbage),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                self.out.transmits.copy(cookie, from);
                return Err(Dropped::HandshakeRate);
            }
            Err(TunnResult::Err(boringtun::noise::errors::WireGuardError::InvalidMac)) => return Err(Dropped::Forged),
            Err(_) => return Err(Dropped::Garbage),
        };
        if !self.handshakes.admit(from.ip(), now) {
            return Err(Dropped::HandshakeRate);
        }
        let who = parse_handshake_anon(&self.own.secret, &self.own.public, &initiation).map_err(|_| Dropped::Forged)?;
        let slot = self.peers.by_key(&WgPublicKey(who.peer_static_public)).ok_or(Dropped::UnknownKey)?;
        let mut peer = self.peers.lock(slot).ok_or(Dropped::UnknownKey)?;
        if let Some(why) = peer.must_leave(unix) {
            drop(peer);
            self.remove(slot, why);
            return Err(Dropped::UnknownKey);
        }
        peer.tick(&self.own, &mut self.out, now);
        drop(peer);
        self.open(slot, from, datagram, now, unix)
    }

    /// A message for a session that is there: data, the answer to our handshake, or a cookie.
    fn handle_session_message(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), Dropped> {
        let receiver = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::PacketData(data)) => data.receiver_idx,
            Ok(Packet::HandshakeResponse(response)) => response.receiver_idx,
            Ok(Packet::PacketCookieReply(cookie)) => cookie.receiver_idx,
            Ok(Packet::HandshakeInit(_)) | Err(_) => return Err(Dropped::Garbage),
        };
        let slot = self.peers.by_receiver_index(receiver).ok_or(Dropped::UnknownSession)?;
        if datagram[0] == 2
            && let Some(mut peer) = self.peers.lock(slot)
        {
            peer.tick(&self.own, &mut self.out, now);
        }
        self.open(slot, from, datagram, now, unix)
    }

    /// Opens a datagram of a peer's, and takes the packet in it if it is the peer's to send.
    fn open(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), Dropped> {
        let mut peer = self.peers.lock(slot).ok_or(Dropped::UnknownSession)?;
        let was_ready = peer.session.is_ready();
        let spare = self.out.packets.spare(datagram.len().max(MIN_SPARE)).ok_or(Dropped::BatchFull)?;
        let opened = peer.open(from, datagram, spare, &mut self.out.transmits, now)?;
        if let Opened::Packet(len) = opened {
            let packet = peer.accept(&spare[..len], &self.own.at)?;
            self.out.counters.add_traffic(Traffic::received(len));
            match self.pings.answered(&packet, now) {
                None => _ = self.out.packets.push(len),
                Some((id, took)) => self.pings.finish(id, Ok(peer.pong(packet.source, took))),
            }
        }
        if !was_ready || matches!(opened, Opened::Established(_)) {
            peer.flush(&self.own, &mut self.out, now);
            self.out.stay_awake(now);
            self.out.wake.note(peer.leaves_at(now, unix));
        }
        Ok(())
    }

    /// A packet that was opened and accepted, and may answer an echo of ours. If not it is one like any other.
    fn handle_pong(&mut self, slot: Slot, bytes: &[u8], now: Instant) -> Result<(), Dropped> {
        let packet = IpPacket::parse(bytes).ok_or(Dropped::InnerNotIp)?;
        match (self.pings.answered(&packet, now), self.peers.lock(slot)) {
            (Some((id, took)), Some(peer)) => self.pings.finish(id, Ok(peer.pong(packet.source, took))),
            (Some(_) | None, Some(_) | None) => {
                let spare = self.out.packets.spare(bytes.len()).ok_or(Dropped::BatchFull)?;
                spare[..bytes.len()].copy_from_slice(bytes);
                self.out.packets.push(bytes.len());
            }
        }
        self.shared.set_pinging(self.pings.are_open());
        Ok(())
    }
}

/// After so many handshakes without an answer the peer may have moved: ask for a fresh record of it. About three seconds.
const RETRIES_BEFORE_ASKING: u32 = 3;
/// Ask again after so many more, about half a minute.
const RETRIES_PER_QUESTION: u32 = 8;

fn ask_about(peer: &peer::Peer, out: &mut Outbox) {
    if let PeerSource::Verified(verified) = &peer.source {
        out.tell(Event::Resolve(verified.address()));
    }
}
