//! One other node: who it is, the session with it, the way to it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use wiremesh_certs::{NodeRecord, OverlayIp, Signed, UnixTime, Verified, WgPublicKey};

use super::{
    Dropped,
    batch::Transmits,
    dropped::Traffic,
    held::Held,
    introduction::{IntroductionKey, MAX_DATAGRAM},
    outbox::Outbox,
    own::{Own, OwnAddress},
    packet::IpPacket,
    path::Path,
    session::{Due, INITIATION, MIN_SPARE, OVERHEAD, Opened, Session, Ticked},
};

/// Why somebody is a peer. There is no third way.
#[derive(Clone, Debug)]
pub enum PeerSource {
    /// A certificate was verified. It ends with the certificate.
    Verified(Verified),
    /// The operator wrote its key into the configuration: a standard WireGuard peer, which has no certificate.
    Configured,
}

/// Where a handshake goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Where data goes, if that is proven.
    Likely,
    /// To every candidate, with an introduction: the peer may have moved, or forgotten us.
    Everywhere,
}

/// Why a running session with a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its certificate has ended.
    Expired,
    /// Its certificate was revoked.
    Revoked,
    /// It was idle for longest, and another needed its place.
    Idle,
    /// Its name, key or address belongs to another by a newer certificate.
    Replaced,
}

/// A new certificate is sent so often: nobody says that it has come.
const INTRODUCTIONS: u8 = 3;
/// From one of these to the next: what takes one of them has passed.
const INTRODUCE_AGAIN: Duration = Duration::from_secs(2);

/// The most that one peer writes into the outbox at once: a handshake and an introduction to every endpoint.
pub const ROOM: usize = (super::path::MAX_CANDIDATES + 2) * (MAX_DATAGRAM + INITIATION);

/// All that is known of one peer.
pub struct Peer {
    /// Why it is one.
    pub source: PeerSource,
    /// Its WireGuard key.
    pub key: WgPublicKey,
    /// The addresses it may speak for.
    pub allowed: Vec<IpNet>,
    /// Where it is.
    pub path: Path,
    /// The session with it.
    pub session: Session,
    /// What waits for the session; while there is one, copies of what was sent in doubt.
    pub held: Held,
    /// What went through.
    pub traffic: Traffic,
    /// When a packet was last sent to it or heard from it.
    pub used_at: Instant,
    /// Of the record its endpoints are from.
    pub sequence: u64,
    /// The record it introduced itself with.
    pub record: Option<Signed<NodeRecord>>,
    /// So often it is still to be sent our present certificate.
    owed_introductions: u8,
    introduce_at: Instant,
    introduction_key: IntroductionKey,
}

impl Peer {
    /// A peer with which nothing has happened yet.
    pub fn new(source: PeerSource, key: WgPublicKey, allowed: Vec<IpNet>, session: Session, now: Instant) -> Peer {
        Peer {
            source,
            key,
            allowed,
            path: Path::default(),
            session,
            held: Held::default(),
            traffic: Traffic::default(),
            used_at: now,
            sequence: 0,
            record: None,
            owed_introductions: 0,
            introduce_at: now,
            introduction_key: IntroductionKey::of(&key),
        }
    }

    /// We have another certificate than it knows.
    pub fn owe_introduction(&mut self, now: Instant) {
        if self.verified().is_some() {
            self.owed_introductions = INTRODUCTIONS;
            self.introduce_at = now;
        }
    }

    /// Encrypts a packet for this peer, or keeps it until there is a session.
    pub fn send(&mut self, packet: &[u8], own: &Own, out: &mut Outbox, now: Instant) -> Result<(), Dropped> {
        self.used_at = now;
        if self.session.is_ready() {
            self.seal(packet, &mut out.transmits, now)?;
            out.counters.add_traffic(Traffic::sent(packet.len()));
            out.wake.note(self.session.poll_timeout());
            return Ok(());
        }
        if self.held.push(packet, now) {
            out.counters.count(Dropped::HeldTooMany);
        }
        out.wake.note(self.held.poll_timeout());
        self.connect(own, out, now);
        Ok(())
    }

    /// Begins a handshake unless one is under way.
    pub fn connect(&mut self, own: &Own, out: &mut Outbox, now: Instant) {
        self.tick(own, out, now);
        if !self.session.is_connecting() {
            self.initiate(Reach::Likely, own, out, now);
        }
    }

    /// Sends a handshake.
    pub fn initiate(&mut self, reach: Reach, own: &Own, out: &mut Outbox, now: Instant) {
        let mut initiation = [0; MIN_SPARE];
        if let Some(len) = self.session.initiate(&mut initiation, now) {
            self.transmit_initiation(&initiation[..len], reach, own, out, now);
        }
        out.wake.note(self.session.poll_timeout());
        out.stay_awake(now);
    }

    /// Moves the session's clock and sends what that brings.
    pub fn tick(&mut self, own: &Own, out: &mut Outbox, now: Instant) {
        let mut datagram = [0; MIN_SPARE];
        match self.session.tick(&mut datagram, now) {
            Ticked::Nothing => {}
            Ticked::Datagram(len) => self.transmit(&datagram[..len], out),
            Ticked::Initiation(len) => self.transmit_initiation(&datagram[..len], Reach::Likely, own, out, now),
        }
        out.wake.note(self.session.poll_timeout());
    }

    /// Acts on what is due. Returns what was.
    pub fn handle_timeout(&mut self, own: &Own, out: &mut Outbox, now: Instant) -> Option<Due> {
        let due = self.session.due(now);
        match due {
            Some(Due::Retry(_) | Due::Suspect) => self.initiate(Reach::Everywhere, own, out, now),
            Some(Due::Rekey) => self.initiate(Reach::Likely, own, out, now),
            Some(Due::GaveUp) | None => {}
        }
        if self.owed_introductions > 0 && self.session.is_ready() && now >= self.introduce_at {
            self.introduce(own, out);
            self.introduce_at = now + INTRODUCE_AGAIN;
            if self.owed_introductions > 0 {
                out.wake.note(Some((self.introduce_at, "our certificate changed")));
            }
        }
        let expired = self.held.expire(now);
        if !self.session.is_ready() {
            out.counters.add(Dropped::HeldTooLong, expired as u64);
        }
        due
    }

    /// What a datagram for this session says; what it asks for is answered. A packet stays at the start of `spare`.
    pub fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        spare: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<Opened, Dropped> {
        let was_ready = self.session.is_ready();
        let opened = self.session.open(from.ip(), datagram, spare, now)?;
        self.used_at = now;
        match opened {
            Opened::Packet(_) | Opened::Keepalive => {
                self.heard(from, now);
                if was_ready {
                    self.held.clear();
                }
            }
            Opened::Established(len) => {
                self.heard(from, now);
                answer(&spare[..len], from, transmits)?;
            }
            Opened::Answered(len) => {
                self.path.observe(from);
                answer(&spare[..len], from, transmits)?;
            }
            Opened::Cookie => {}
        }
        Ok(opened)
    }

    /// Encrypts a packet for this peer, if there is a session.
    pub fn seal(&mut self, packet: &[u8], transmits: &mut Transmits, now: Instant) -> Result<(), Dropped> {
        let to = self.path.current().ok_or(Dropped::NoPath)?;
        let spare = transmits.spare((packet.len() + OVERHEAD).max(MIN_SPARE)).ok_or(Dropped::BatchFull)?;
        let len = self.session.seal(packet, spare, now).ok_or(Dropped::UnknownSession)?;
        transmits.push(len, to);
        if self.session.is_doubtful() {
            self.held.push(packet, now);
        }
        self.used_at = now;
        self.traffic += Traffic::sent(packet.len());
        Ok(())
    }

    /// What data for this session says, if there is a session. The length of a packet at the start of `spare`; none if
    /// the peer just gave a sign of life.
    pub fn open_data(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        spare: &mut [u8],
        now: Instant,
    ) -> Result<Option<usize>, Dropped> {
        let opened = self.session.open(from.ip(), datagram, spare, now)?;
        self.used_at = now;
        self.heard(from, now);
        self.held.clear();
        match opened {
            Opened::Packet(len) => Ok(Some(len)),
            Opened::Keepalive | Opened::Established(_) | Opened::Answered(_) | Opened::Cookie => Ok(None),
        }
    }

    /// A packet that came out of this session, if it is the peer's to send and ours to take.
    pub fn accept<'a>(&mut self, packet: &'a [u8], own: &OwnAddress) -> Result<IpPacket<'a>, Dropped> {
        let parsed = IpPacket::parse(packet).ok_or(Dropped::InnerNotIp)?;
        if !self.speaks_for(parsed.source) {
            return Err(Dropped::SpoofedSource);
        }
        if parsed.destination != own.address {
            return Err(Dropped::WrongDestination);
        }
        self.traffic += Traffic::received(packet.len());
        Ok(parsed)
    }

    /// Sends what waited, if there is a session.
    pub fn flush(&mut self, own: &Own, out: &mut Outbox, now: Instant) {
        if !self.session.is_ready() {
            return;
        }
        let mut kept = [0; MIN_SPARE];
        while let Some(len) = self.session.next_kept(&mut kept) {
            self.transmit(&kept[..len], out);
        }
        for packet in std::mem::take(&mut self.held).packets() {
            if let Err(dropped) = self.send(&packet, own, out, now) {
                out.counters.count(dropped);
            }
        }
    }

    /// Why it may not be a peer any longer, if so.
    pub fn must_leave(&self, now: UnixTime) -> Option<Left> {
        match &self.source {
            PeerSource::Verified(verified) => (!verified.is_valid_at(now)).then_some(Left::Expired),
            PeerSource::Configured => None,
        }
    }

    /// When its certificate ends, if it has one. To the second, as certificates are.
    pub fn leaves_at(&self, now: Instant, unix: UnixTime) -> Option<(Instant, &'static str)> {
        let at = now.checked_add(self.verified()?.not_after().saturating_since(unix))?;
        Some((at, "a certificate ends"))
    }

    /// Whether a packet from `source` may come out of its session.
    pub fn speaks_for(&self, source: OverlayIp) -> bool {
        self.allowed.iter().any(|network| network.contains(&source.0))
    }

    /// Its certificate, if it has one.
    pub fn verified(&self) -> Option<&Verified> {
        match &self.source {
            PeerSource::Verified(verified) => Some(verified),
            PeerSource::Configured => None,
        }
    }

    fn heard(&mut self, from: SocketAddr, now: Instant) {
        if let Some(before) = self.path.on_authenticated(from, now) {
            tracing::debug!(key = %self.key, from = %before, to = %from, "path moved");
        }
    }

    fn transmit(&self, datagram: &[u8], out: &mut Outbox) {
        match self.path.current() {
            None => out.counters.count(Dropped::NoPath),
            Some(to) => _ = out.transmits.copy(datagram, to) || out.full(),
        }
    }

    fn transmit_initiation(&mut self, initiation: &[u8], reach: Reach, own: &Own, out: &mut Outbox, now: Instant) {
        if reach == Reach::Likely && self.path.is_proven(now) && self.owed_introductions == 0 {
            return self.transmit(initiation, out);
        }
        let endpoints = self.path.everywhere();
        if endpoints.is_empty() {
            out.counters.count(Dropped::NoPath);
        }
        for to in endpoints {
            self.introduce_at(to, own, out);
            _ = out.transmits.copy(initiation, to) || out.full();
        }
    }

    /// Sends our record where data goes.
    fn introduce(&mut self, own: &Own, out: &mut Outbox) {
        if let Some(to) = self.path.current() {
            self.introduce_at(to, own, out);
        }
        self.owed_introductions = self.owed_introductions.saturating_sub(1);
    }

    /// A standard WireGuard peer has no use for an introduction and gets none.
    fn introduce_at(&self, to: SocketAddr, own: &Own, out: &mut Outbox) {
        let (PeerSource::Verified(_), Some(record)) = (&self.source, own.record()) else {
            return;
        };
        let Some(spare) = out.transmits.spare(MAX_DATAGRAM) else {
            out.full();
            return;
        };
        if let Some(len) = self.introduction_key.seal(record.as_bytes(), spare) {
            out.transmits.push(len, to);
        }
    }
}

fn answer(datagram: &[u8], to: SocketAddr, transmits: &mut Transmits) -> Result<(), Dropped> {
    transmits.copy(datagram, to).then_some(()).ok_or(Dropped::BatchFull)
}
