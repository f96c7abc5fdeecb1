//! What the overlay makes of datagrams from anybody, and of packets from a member: see [`wiremesh_certs::fuzz`].

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest, FixedOutput, KeyInit, Update, consts::U16},
};
use wiremesh_certs::{Load, NodeRecord, RECORD_LIFE, Signed, UnixTime, WgPublicKey};

use super::{
    Event, Overlay, Parameters, REKEY_AFTER,
    batch::Transmits,
    inbound::Inbound,
    introduction::{IntroductionKey, MAX_DATAGRAM},
    offload::{Takes, VIRTIO_HEADER},
    packet::{IpPacket, write_header},
};
use crate::fuzz::{Choices, Member, NOW, Verdict, World, address, t0, trust, verified};

/// Somewhere in the underlay.
const PLACES: [([u8; 4], u16); 4] =
    [([192, 0, 2, 1], 51820), ([192, 0, 2, 2], 51820), ([192, 0, 2, 2], 7), ([198, 51, 100, 9], 0)];
/// After so many inputs two nodes begin anew: their session must not come to its end.
const TRIED_BY_ONE_PAIR: u32 = 4096;

/// An introduction, or what is in one.
pub fn introduction(bytes: &[u8]) -> Verdict {
    let key = IntroductionKey::of(&World::get().member.wg.public());
    let mut sealed = [0; MAX_DATAGRAM];
    if let Some(len) = key.seal(bytes, &mut sealed) {
        assert_eq!(key.open(&sealed[..len]), Some(bytes));
    }
    let opened = key.open(bytes);
    if let Some(record) = opened {
        let len = key.seal(record, &mut sealed).expect("it came out of one");
        assert_eq!(&sealed[..len], bytes, "an introduction of two forms");
    }
    Verdict::of(&opened)
}

/// A run of datagrams to a node that knows nobody. Before each stands a byte that says what it is, where from and how
/// much later, and two for its length.
///
/// What a fuzzer cannot make is made for it: the MAC of an introduction, the signature in it, the MAC of a handshake.
pub fn datagrams(bytes: &[u8]) -> Verdict {
    let World { member, other, .. } = World::get();
    let (mut now, mut unix, mut choices) = (t0(), NOW, Choices(bytes));
    let mut overlay = node(member, now);
    let mut inbound = overlay.inbound(Takes::TcpAndUdp);
    let mut taken = false;
    while let (Some(how), Some(piece)) = (choices.byte(), choices.piece()) {
        let later = Duration::from_secs(u64::from(how >> 4) * 5);
        (now, unix) = (now + later, unix.plus(later));
        if overlay.poll_timeout().is_some_and(|(at, _)| at <= now) {
            overlay.handle_timeout(now, unix);
        }
        let datagram = match how % 4 {
            0 => Some(piece.to_vec()),
            1 => introduced(piece),
            2 => World::record_by(other, piece).and_then(|record| introduced(record.as_bytes())),
            _ => Some(with_mac(piece, &member.wg.public())),
        };
        let Some(datagram) = datagram else { continue };
        let from = SocketAddr::from(PLACES[usize::from(how >> 2) % PLACES.len()]);
        let mut aside = Vec::new();
        inbound.handle_datagrams(from, std::iter::once(&datagram[..]), now, |left| aside.push(left));
        assert!(inbound.poll_joined().is_none(), "a packet without a session");
        aside.into_iter().for_each(|left| overlay.handle_aside(left, now, unix));
        taken |= check_outputs(&mut overlay);
        assert!(overlay.peers.len() <= 1, "more peers than there are others");
    }
    overlay.handle_timeout(now + Duration::from_secs(3600), unix.plus(Duration::from_secs(3600)));
    check_outputs(&mut overlay);
    Verdict::taken_if(taken)
}

/// Nothing came out for the device, and nothing long for the network. Whether somebody was heard or answered.
fn check_outputs(overlay: &mut Overlay) -> bool {
    let mut heard = false;
    assert!(overlay.poll_packet().is_none(), "a packet without a session");
    while let Some(event) = overlay.poll_event() {
        if let Event::Introduced(who, _) = &event {
            assert_eq!(who.id(), World::get().other.key.id(), "somebody who signed nothing");
            heard = true;
        }
    }
    while let Some(transmit) = overlay.poll_transmit() {
        heard = true;
        assert!(transmit.datagrams().all(|datagram| datagram.len() <= MAX_DATAGRAM));
    }
    heard
}

/// An introduction to the node that is tried.
pub fn introduced(record: &[u8]) -> Option<Vec<u8>> {
    let mut datagram = vec![0; MAX_DATAGRAM];
    let len = IntroductionKey::of(&World::get().member.wg.public()).seal(record, &mut datagram)?;
    datagram.truncate(len);
    Some(datagram)
}

/// A message of a handshake with the first MAC that its receiver wants, and no second.
fn with_mac(message: &[u8], receiver: &WgPublicKey) -> Vec<u8> {
    const MAC: usize = 16;
    let mut message = message.to_vec();
    let Some(signed) = message.len().checked_sub(2 * MAC) else { return message };
    let key: [u8; 32] = Blake2s256::new().chain_update(b"mac1----").chain_update(receiver.0).finalize().into();
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("32 bytes are a key of BLAKE2s");
    let mac: [u8; MAC] = mac.chain(&message[..signed]).finalize_fixed().into();
    message[signed..signed + MAC].copy_from_slice(&mac);
    message[signed + MAC..].fill(0);
    message
}

/// A run of packets that a member sends through its session, each after two bytes for its length.
pub fn inner_packets(bytes: &[u8]) -> Verdict {
    thread_local! {
        static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
    }
    PAIR.with_borrow_mut(|pair| {
        if pair.as_ref().is_none_or(|pair| pair.tried >= TRIED_BY_ONE_PAIR) {
            *pair = Some(Pair::new());
        }
        let pair = pair.as_mut().expect("it was just made");
        pair.tried += 1;
        pair.carry(bytes)
    })
}

/// Two nodes with a session.
struct Pair {
    sender: Overlay,
    receiver: Overlay,
    inbound: Inbound,
    tried: u32,
}

impl Pair {
    fn new() -> Pair {
        let World { member, other, .. } = World::get();
        let now = t0();
        let (mut sender, mut receiver) = (node(member, now), node(other, now));
        sender.upsert_peer(&verified(other), &record(1), now, NOW).expect("a good peer");
        let hello = packet(member, other);
        sender.handle_tun_packet(&hello, now).expect("it has a peer to go to");
        while pass(&mut sender, &mut receiver, 0, now) || pass(&mut receiver, &mut sender, 1, now) {}
        assert_eq!(receiver.poll_packet(), Some(&hello[..]), "they have a session");
        let inbound = receiver.inbound(Takes::TcpAndUdp);
        Pair { sender, receiver, inbound, tried: 0 }
    }

    fn carry(&mut self, bytes: &[u8]) -> Verdict {
        let World { member, other, .. } = World::get();
        let (from, to) = (address(member), address(other));
        let (now, mut choices, mut sealed) = (t0(), Choices(bytes), Transmits::new());
        let slot = self.sender.peers.by_address(to).expect("they have a session");
        while let Some(piece) = choices.piece() {
            let mut peer = self.sender.peers.lock(slot).expect("they have a session");
            // All that is sealed by one call fits; what does not is no packet of anybody's.
            let _ = peer.seal(piece, &mut sealed, now);
        }
        let mut arrived = 0;
        while let Some(transmit) = sealed.pop() {
            let place = SocketAddr::from(PLACES[0]);
            self.inbound.handle_datagrams(place, transmit.datagrams(), now, |_| panic!("it is data of a session"));
            while let Some(joined) = self.inbound.poll_joined() {
                let frame = joined.pieces().collect::<Vec<_>>().concat();
                let packet = IpPacket::parse(&frame[VIRTIO_HEADER..]).expect("nothing else goes to the device");
                assert_eq!((packet.source, packet.destination), (from, to), "a member speaks for another");
                arrived += 1;
            }
        }
        assert!(self.receiver.poll_transmit().is_none() && self.receiver.poll_packet().is_none());
        Verdict::taken_if(arrived > 0)
    }
}

/// Delivers what one has for the other. Whether there was anything.
fn pass(from: &mut Overlay, to: &mut Overlay, place: usize, now: Instant) -> bool {
    let mut passed = false;
    while let Some(transmit) = from.poll_transmit() {
        passed = true;
        for datagram in transmit.datagrams() {
            to.handle_datagram(PLACES[place].into(), datagram, now, NOW).expect("they mean well");
        }
    }
    passed
}

fn node(member: &Member, now: Instant) -> Overlay {
    let parameters = Parameters {
        key: &member.wg,
        address: address(member),
        network: World::get().trust.network(),
        trust: trust(),
        rekey_after: REKEY_AFTER,
        beat: now,
        seed: 1,
    };
    let mut overlay = Overlay::new(parameters, now);
    let signed = Signed::sign(&record(0), &member.key, &member.chain).expect("a good record");
    overlay.set_own_record(signed, now, NOW).expect("it is believed");
    overlay
}

/// What a node at that place says of itself.
pub fn record(place: usize) -> NodeRecord {
    NodeRecord {
        sequence: NOW.0 * 1000,
        expires_at: UnixTime(NOW.0).plus(RECORD_LIFE),
        endpoints: vec![PLACES[place].into()],
        services: Vec::new(),
        load: Load::default(),
        tunnel_url: None,
        overlay: true,
        models: Vec::new(),
        revocations: 0,
        nearby: Vec::new(),
    }
}

/// A packet of UDP, checksum aside.
pub fn packet(from: &Member, to: &Member) -> Vec<u8> {
    const PAYLOAD: [u8; 13] = *b"\0\x01\0\x02\0\x0d\0\0hello";
    let mut bytes = vec![0; 20 + PAYLOAD.len()];
    let header = write_header(address(from), address(to), 17, PAYLOAD.len(), &mut bytes).expect("one family");
    bytes[header..].copy_from_slice(&PAYLOAD);
    bytes
}

/// What a node sends first to one that has never heard of it, as [`datagrams`] takes it.
#[cfg(test)]
pub fn specimen_of_a_handshake() -> Vec<u8> {
    let World { member, other, .. } = World::get();
    let mut sender = node(other, t0());
    sender.upsert_peer(&verified(member), &record(0), t0(), NOW).unwrap();
    sender.handle_tun_packet(&packet(other, member), t0()).unwrap();
    let mut run = Vec::new();
    while let Some(transmit) = sender.poll_transmit() {
        for datagram in transmit.datagrams() {
            run.extend(piece(0, datagram));
        }
    }
    run
}

/// One datagram of a run.
#[cfg(test)]
pub fn piece(how: u8, datagram: &[u8]) -> Vec<u8> {
    [&[how][..], &(datagram.len() as u16).to_be_bytes(), datagram].concat()
}
