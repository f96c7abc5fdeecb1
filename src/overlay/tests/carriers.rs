//! What the two that carry packets promise: all that the machine promises, many packets at a time.

use std::{io::IoSlice, slice};

use super::{
    sim::{Mesh, address, endpoint, packet},
    *,
};
use crate::overlay::{
    batch::Packets,
    inbound::Inbound,
    offload::{
        MAX_PIECES, Takes, VirtioHeader,
        tests::build::{payload, tcp, udp},
    },
    outbound::Outbound,
    session::DOUBT_AFTER,
    shared::Aside,
};

#[test]
fn a_large_packet_leaves_in_pieces_and_arrives_in_one() {
    for plan in [tcp(1000, &payload(60_000, 1)), udp(&payload(40_000, 2))] {
        let mut pair = Pair::new();
        let frame = plan.frame(1368);

        let arrived = pair.carry(slice::from_ref(&frame));

        assert_eq!(arrived, [frame]);
        assert!(pair.datagrams.iter().all(|datagram| datagram.len() <= 1420 + 32));
        assert_eq!((pair.left_outbound.len(), pair.left_inbound.len()), (0, 0));
    }
}

#[test]
fn packets_of_any_kind_arrive_as_they_were_and_in_order() {
    let mut pair = Pair::new();
    let packets: Vec<_> = (0..40u8).map(|i| packet(address(0), address(1), &[i; 33])).collect();

    let arrived = pair.carry(&packets.iter().map(|packet| plain(packet)).collect::<Vec<_>>());

    assert_eq!(arrived, packets.iter().map(|packet| plain(packet)).collect::<Vec<_>>());
    let traffic = pair.mesh.counters(1).traffic();
    assert_eq!((traffic.packets_in, traffic.bytes_in), (41, 20 + 5 + 40 * (20 + 33)));
}

#[test]
fn what_is_for_strangers_goes_aside_cut_into_packets() {
    let mut pair = Pair::new();
    let plan = tcp(1, &payload(3000, 1)).with(|plan| plan.to = 9);

    let arrived = pair.carry(&[plan.frame(1368)]);

    assert_eq!(arrived, Vec::<Vec<u8>>::new());
    let left: Vec<_> = pair.left_outbound.iter().map(|aside| matches!(aside, Aside::Packet(_))).collect();
    assert_eq!(left, [true; 3]);
}

#[test]
fn what_may_not_leave_does_not() {
    let mut pair = Pair::new();
    let foreign = packet(address(7), address(1), b"not ours");

    pair.carry(&[plain(&foreign), vec![1, 2, 3], plain(&[0x45; 10])]);

    let dropped = pair.mesh.dropped(0);
    assert!(dropped.contains(&(Dropped::Malformed, 1)), "{dropped:?}");
    assert!(dropped.contains(&(Dropped::ForeignSource, 1)) && dropped.contains(&(Dropped::NotIp, 1)), "{dropped:?}");
}

#[test]
fn a_member_cannot_speak_for_another_in_a_batch_either() {
    let mut pair = Pair::new();
    let forged = packet(address(2), address(1), b"forged");
    let stray = packet(address(0), address(2), b"not for you");
    let slot = pair.mesh.overlays[0].peers.by_address(address(1)).unwrap();
    let mut batch = crate::overlay::batch::Transmits::new();
    for bytes in [&forged, &stray] {
        let now = pair.mesh.now;
        pair.mesh.overlays[0].peers.lock(slot).unwrap().seal(bytes, &mut batch, now).unwrap();
    }
    let datagrams: Vec<_> =
        batch.pop().into_iter().flat_map(|t| t.datagrams().map(<[u8]>::to_vec).collect::<Vec<_>>()).collect();
    let more: Vec<_> =
        batch.pop().into_iter().flat_map(|t| t.datagrams().map(<[u8]>::to_vec).collect::<Vec<_>>()).collect();

    let arrived = pair.receive(&[datagrams, more].concat());

    assert_eq!(arrived, Vec::<Vec<u8>>::new());
    assert_eq!(pair.mesh.dropped(1), [(Dropped::SpoofedSource, 1), (Dropped::WrongDestination, 1)]);
}

#[test]
fn handshakes_and_introductions_go_aside_and_garbage_goes_nowhere() {
    let mut pair = Pair::new();
    let initiation = initiation_of(&mut pair.mesh, 0, 1);

    pair.receive(&[initiation, vec![introduction::TYPE; 700], vec![0x99; 50], vec![], vec![1; 60_000]]);

    let left = &pair.left_inbound;
    assert!(matches!(&left[..], [Aside::Datagram(..), Aside::Datagram(..)]), "{left:?}");
    assert_eq!(pair.mesh.dropped(1), [(Dropped::Garbage, 3)]);
}

#[test]
fn who_was_revoked_is_cut_off_before_the_next_packet() {
    let mut pair = Pair::new();
    assert_eq!(pair.carry(&[plain(&packet(address(0), address(1), b"before"))]).len(), 1);

    pair.mesh.revoke(0, 1);
    let dropped = pair.mesh.counters(1).of(Dropped::UnknownSession);

    assert_eq!(pair.carry(&[plain(&packet(address(0), address(1), b"after"))]).len(), 0);
    assert_eq!(pair.mesh.counters(1).of(Dropped::UnknownSession), dropped + 1);
}

#[test]
fn an_answer_to_an_echo_of_ours_goes_aside_and_ends_the_wait() {
    let mut pair = Pair::new();
    let (now, unix) = (pair.mesh.now, pair.mesh.unix());
    let id = pair.mesh.overlays[1].ping(address(0), now).unwrap();
    pair.mesh.settle();
    let asked = pair.mesh.received_packets(0).pop().unwrap();
    let mut reply = asked.clone();
    crate::overlay::packet::write_header(address(0), address(1), 1, asked.len() - 20, &mut reply).unwrap();
    reply[20] = 0;

    let arrived = pair.carry(&[plain(&reply)]);
    let left = pair.left_inbound.pop().unwrap();
    pair.mesh.overlays[1].handle_aside(left, now, unix);

    assert_eq!(arrived.len(), 0);
    assert!(matches!(pair.mesh.overlays[1].poll_pong(), Some((done, Ok(_))) if done == id));
    assert_eq!(pair.carry(&[plain(&reply)]).len(), 1, "nobody waits for it");
}

#[test]
fn data_in_doubt_is_told_of_once() {
    let mut pair = Pair::new();
    let frame = plain(&packet(address(0), address(1), b"anybody there?"));
    pair.send(slice::from_ref(&frame));
    pair.mesh.now += DOUBT_AFTER;

    pair.send(&[frame.clone(), frame.clone()]);
    pair.send(&[frame]);

    assert!(matches!(pair.left_outbound[..], [Aside::Doubtful(_)]), "{:?}", pair.left_outbound);
}

#[test]
fn a_peer_that_moved_is_answered_where_it_is() {
    let mut pair = Pair::new();
    pair.send(&[plain(&packet(address(0), address(1), b"from elsewhere"))]);
    let datagrams = std::mem::take(&mut pair.datagrams);
    let elsewhere = endpoint(77);

    let now = pair.mesh.now;
    pair.inbound.handle_datagrams(elsewhere, datagrams.iter().map(Vec::as_slice), now, |_| ());

    let slot = pair.mesh.overlays[1].peers.by_address(address(0)).unwrap();
    assert_eq!(pair.mesh.overlays[1].peers.lock(slot).unwrap().path.current(), Some(elsewhere));
}

#[test]
fn packets_are_carried_without_allocation() {
    let mut pair = Pair::new();
    let frames = [
        tcp(1, &payload(60_000, 1)).frame(1368),
        udp(&payload(40_000, 2)).frame(1200),
        plain(&packet(address(0), address(1), &[7; 200])),
        plain(&tcp(1, b"").bytes()),
    ];
    let carry = |pair: &mut Pair| {
        let mut carried = 0;
        for frame in &frames {
            pair.frames.spare(frame.len()).unwrap()[..frame.len()].copy_from_slice(frame);
            pair.frames.push(frame.len());
        }
        pair.outbound.handle_frames(&mut pair.frames, pair.mesh.now, |_| panic!("decided by others"));
        while let Some(transmit) = pair.outbound.poll_transmit() {
            pair.inbound
                .handle_datagrams(endpoint(0), transmit.datagrams(), pair.mesh.now, |_| panic!("decided by others"));
            while let Some(joined) = pair.inbound.poll_joined() {
                carried += joined.fill(&mut [IoSlice::new(&[]); MAX_PIECES]).len();
            }
        }
        carried
    };
    carry(&mut pair);

    let mut carried = 0;
    let allocated = allocation_counter::measure(|| (0..100).for_each(|_| carried += carry(&mut pair)));

    assert!(carried > 100 * 70, "{carried}");
    assert_eq!(allocated.count_total, 0, "{allocated:?}");
}

/// Two nodes with a session; packets from the first to the second do not take the machine's way.
struct Pair {
    mesh: Mesh,
    outbound: Outbound,
    inbound: Inbound,
    frames: Packets,
    datagrams: Vec<Vec<u8>>,
    left_outbound: Vec<Aside>,
    left_inbound: Vec<Aside>,
}

impl Pair {
    fn new() -> Pair {
        let mut mesh = Mesh::of(3);
        mesh.send(0, 1, b"hello").unwrap();
        mesh.send(1, 0, b"hello").unwrap();
        let (outbound, inbound) = (mesh.overlays[0].outbound(), mesh.overlays[1].inbound(Takes::TcpAndUdp));
        let (datagrams, left_outbound, left_inbound) = (Vec::new(), Vec::new(), Vec::new());
        Pair { mesh, outbound, inbound, frames: Packets::new(), datagrams, left_outbound, left_inbound }
    }

    /// Frames out of one device become frames into the other.
    fn carry(&mut self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.send(frames);
        let datagrams = std::mem::take(&mut self.datagrams);
        let arrived = self.receive(&datagrams);
        self.datagrams = datagrams;
        arrived
    }

    fn send(&mut self, frames: &[Vec<u8>]) {
        self.datagrams.clear();
        for frame in frames {
            self.frames.spare(frame.len()).unwrap()[..frame.len()].copy_from_slice(frame);
            self.frames.push(frame.len());
        }
        self.outbound.handle_frames(&mut self.frames, self.mesh.now, |aside| self.left_outbound.push(aside));
        while let Some(transmit) = self.outbound.poll_transmit() {
            assert_eq!(transmit.to, endpoint(1));
            self.datagrams.extend(transmit.datagrams().map(<[u8]>::to_vec));
        }
    }

    fn receive(&mut self, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let now = self.mesh.now;
        let left = &mut self.left_inbound;
        self.inbound.handle_datagrams(endpoint(0), datagrams.iter().map(Vec::as_slice), now, |aside| left.push(aside));
        let mut arrived = Vec::new();
        while let Some(joined) = self.inbound.poll_joined() {
            arrived.push(joined.pieces().collect::<Vec<_>>().concat());
        }
        arrived
    }
}

fn plain(packet: &[u8]) -> Vec<u8> {
    [&VirtioHeader::NONE.to_bytes()[..], packet].concat()
}
