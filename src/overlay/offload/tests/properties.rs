//! What holds for any frame and any packets.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::{
    build::{Plan, Transport, is_well_formed, payload, tcp, udp},
    cut::cut,
    join::{alone, apart, join, without_id},
};
use crate::overlay::{
    offload::{Join, Takes, VIRTIO_HEADER, VirtioHeader},
    packet::IpPacket,
};

/// So that a case does not take forever; one with thousands is no different.
const MOST_SEGMENTS: usize = 300;

proptest! {
    #[test]
    fn a_frame_is_cut_into_the_packets_it_stands_for((plan, size) in frame_plan()) {
        let packets = cut(&plan.frame(size)).unwrap();

        prop_assert!(packets.iter().all(|packet| is_well_formed(packet)));
        let payloads: Vec<_> = packets.iter().map(|packet| &packet[plan.headers()..]).collect();
        prop_assert_eq!(payloads.concat(), plan.payload.clone());
        prop_assert!(payloads.iter().all(|payload| payload.len() <= usize::from(size)));
        prop_assert_eq!(packets, plan.segments(size));
    }

    #[test]
    fn whatever_a_virtio_header_says_only_well_formed_packets_come_out(
        (plan, size) in frame_plan(),
        flags in option::of(any::<u8>()),
        kind in option::of(prop_oneof![0u8..8, any::<u8>()]),
        fields in vec((0usize..4, prop_oneof![0u16..130, any::<u16>()]), 0..3),
    ) {
        let mut frame = plan.frame(size);
        flags.into_iter().for_each(|flags| frame[0] = flags);
        kind.into_iter().for_each(|kind| frame[1] = kind);
        for (field, value) in fields {
            frame[2 + field * 2..4 + field * 2].copy_from_slice(&value.to_ne_bytes());
        }
        let stands_for_several = VirtioHeader::parse(&frame).is_some_and(|header| header.several.is_some());

        if let Ok(packets) = cut(&frame) {
            for packet in &packets {
                prop_assert!(is_whole(packet) && packet.len() <= frame.len() - VIRTIO_HEADER);
                prop_assert!(is_well_formed(packet) || !stands_for_several);
            }
            // What stands for itself is that, but for its checksum.
            let differences = packets[0].iter().zip(&frame[VIRTIO_HEADER..]).filter(|(a, b)| a != b).count();
            prop_assert!(stands_for_several || differences <= 2);
        }
    }

    #[test]
    fn a_damaged_frame_is_refused_or_cut_into_whole_packets(
        (plan, size) in frame_plan(),
        damage in vec((0usize..130, any::<u8>()), 1..6),
        shorter in 0usize..70,
    ) {
        let mut frame = plan.frame(size);
        for (at, value) in damage {
            let at = at % frame.len();
            frame[at] = value;
        }
        frame.truncate(frame.len() - shorter.min(frame.len()));

        if let Ok(packets) = cut(&frame) {
            prop_assert!(packets.iter().all(|packet| is_whole(packet) && packet.len() <= frame.len()));
        }
    }

    #[test]
    fn cutting_never_panics(
        bytes in vec(any::<u8>(), 0..200),
        kind in 0u8..6,
        version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
    ) {
        let mut likely = bytes.clone();
        for (at, value) in [(0, 1), (1, kind), (VIRTIO_HEADER, version)] {
            likely.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
        }

        for bytes in [bytes, likely] {
            if let Ok(packets) = cut(&bytes) {
                prop_assert!(packets.iter().all(|packet| is_whole(packet)));
            }
        }
    }

    #[test]
    fn what_is_joined_and_cut_again_is_what_it_was((plan, size) in frame_plan()) {
        let packets = plan.segments(size);

        let frames = join(&packets);

        let again: Vec<_> = frames.iter().flat_map(|frame| apart(frame)).map(|packet| without_id(&packet)).collect();
        prop_assert_eq!(again, packets.iter().map(|packet| without_id(packet)).collect::<Vec<_>>());
        prop_assert!(frames.iter().all(|frame| is_taken_by_the_kernel(frame)));
    }

    #[test]
    fn flows_keep_their_order_however_they_are_interleaved_and_corrupted(steps in vec(step(), 1..80)) {
        let packets = play(&steps);

        let frames = join(&packets);

        prop_assert!(frames.iter().all(|frame| is_taken_by_the_kernel(frame)));
        let out: Vec<_> = frames.iter().flat_map(|frame| apart(frame)).collect();
        prop_assert_eq!(by_flow(&out), by_flow(&packets));
    }

    #[test]
    fn garbage_comes_out_as_it_went_in(
        packets in vec(vec(any::<u8>(), 0..120), 0..30),
        version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(6u8), Just(17), any::<u8>()],
    ) {
        let mut likely = packets.clone();
        for packet in &mut likely {
            let len = (packet.len() as u16).to_be_bytes();
            for (at, value) in [(0, version), (2, len[0]), (3, len[1]), (6, 0), (7, 0), (9, protocol)] {
                packet.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
            }
        }

        for packets in [packets, likely] {
            prop_assert_eq!(join(&packets), packets.iter().map(|packet| alone(packet)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn places_that_are_not_in_the_arena_and_another_arena_do_no_harm(
        places in vec((0usize..3_000, 0usize..3_000), 0..20),
        len in 0usize..3_000,
    ) {
        let mut join = Join::new(Takes::TcpAndUdp);
        let packets = tcp(1, &payload(2_000, 1)).segments(500);
        let arena = packets.concat();
        for (at, packet) in packets.iter().enumerate() {
            join.add(&arena, at * packet.len()..(at + 1) * packet.len());
        }
        for (from, to) in places {
            join.add(&arena, from..to);
        }

        let mut other = vec![0x45; len];
        while let Some(joined) = join.next(&mut other) {
            prop_assert!(joined.pieces().map(<[u8]>::len).sum::<usize>() <= VIRTIO_HEADER + 65_535);
        }
    }
}

/// A frame of the kernel's: what to cut, and the size to cut it to.
pub fn frame_plan() -> impl Strategy<Value = (Plan, u16)> {
    let len = prop_oneof![4 => 0usize..200, 8 => 200usize..6_000, 1 => 0usize..65_535];
    let size = prop_oneof![1 => 1u16..60, 6 => 500u16..1_500, 1 => 1u16..];
    (plan(), len, size, any::<u8>()).prop_map(|(plan, len, size, seed)| {
        let len = len.min(65_535 - plan.headers());
        let size = size.max((len / MOST_SEGMENTS) as u16);
        (plan.with(|plan| plan.payload = payload(len, seed)), size)
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let fours = |most: usize| (0..=most).prop_map(|fours| vec![1; fours * 4]);
    let tcp_header =
        (any::<u32>(), any::<u32>(), any::<u8>(), 0u8..16, any::<[u16; 2]>(), vec(any::<[u8; 4]>(), 0..=10));
    let of_tcp = tcp_header.prop_map(|(sequence, acknowledged, flags, reserved, [window, urgent], options)| {
        Transport::Tcp { sequence, acknowledged, flags, reserved, window, urgent, options: options.concat() }
    });
    // Padding, in headers of 8 or 16 bytes.
    let extensions = vec((prop_oneof![Just(60u8), Just(0)], 0u8..2), 0..3).prop_map(|extensions| {
        let header = |(kind, eights)| {
            (kind, [&[0, eights, 1, 4 + eights * 8][..], &vec![0; 4 + usize::from(eights) * 8]].concat())
        };
        let mut headers: Vec<_> = extensions.into_iter().map(header).collect();
        // Options for each hop stand first, and once.
        headers.iter_mut().skip(1).for_each(|(kind, _)| *kind = 60);
        headers
    });
    let ip = (any::<bool>(), any::<u8>(), 2u8.., any::<u16>(), any::<bool>());
    let rarely = |often: BoxedStrategy<_>, rare: BoxedStrategy<_>| prop_oneof![3 => often, 1 => rare];
    let ip_options = rarely(Just(vec![]).boxed(), fours(10).boxed());
    let transport = prop_oneof![2 => of_tcp, 1 => Just(Transport::Udp)];
    (ip, transport, ip_options, prop_oneof![3 => Just(vec![]), 1 => extensions], any::<(u16, u16)>()).prop_map(
        |((v6, class, hops, id, dont_fragment), transport, ip_options, extensions, ports)| Plan {
            v6,
            transport,
            class,
            hops,
            id,
            dont_fragment,
            ip_options: if v6 { vec![] } else { ip_options },
            extensions: if v6 { extensions } else { vec![] },
            ports,
            ..tcp(0, &[])
        },
    )
}

/// What comes next, and of which of a few flows.
#[derive(Clone, Debug)]
struct Step {
    flow: u8,
    kind: StepKind,
}

#[derive(Clone, Debug)]
enum StepKind {
    /// The next of its stream, of this size, and maybe with PSH.
    Next(usize, bool),
    /// One without payload.
    Acknowledgement,
    /// With other flags.
    Flags(u8),
    /// With another TOS, as congestion makes it.
    Class(u8),
    /// The one before, again.
    Again,
    /// One was lost.
    Gap,
    /// A bit was.
    Corrupt(Index),
    /// A later fragment.
    Fragment,
    /// With options or extension headers.
    Options,
    Garbage(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        20 => (prop_oneof![4 => Just(100), 1 => 1usize..150], proptest::bool::weighted(0.05)).prop_map(|(len, push)| StepKind::Next(len, push)),
        1 => Just(StepKind::Acknowledgement),
        1 => any::<u8>().prop_map(StepKind::Flags),
        1 => any::<u8>().prop_map(StepKind::Class),
        1 => Just(StepKind::Again),
        1 => Just(StepKind::Gap),
        2 => any::<Index>().prop_map(StepKind::Corrupt),
        1 => Just(StepKind::Fragment),
        1 => Just(StepKind::Options),
        1 => vec(any::<u8>(), 0..60).prop_map(StepKind::Garbage),
    ];
    (prop_oneof![6 => 0u8..4, 1 => 0u8..16], kind).prop_map(|(flow, kind)| Step { flow, kind })
}

/// The packets of these steps. Even flows are of TCP, every second pair of IPv6, and pairs share addresses.
fn play(steps: &[Step]) -> Vec<Vec<u8>> {
    let mut sequences = BTreeMap::<u8, u32>::new();
    let mut packets = Vec::new();
    for (at, Step { flow, kind }) in steps.iter().enumerate() {
        let sequence = sequences.entry(*flow).or_default();
        let len = if let StepKind::Next(len, _) = kind { *len } else { 100 };
        let plan = if flow % 2 == 0 { tcp(*sequence, &payload(len, at as u8)) } else { udp(&payload(len, at as u8)) };
        let plan = plan.with(|plan| {
            plan.v6 = flow / 2 % 2 == 1;
            plan.from = flow / 4 % 2;
            plan.ports.0 = u16::from(*flow) / 8;
            plan.id = at as u16;
            plan.dont_fragment = flow / 4 % 2 == 0;
        });
        let moves = matches!(kind, StepKind::Next(..) | StepKind::Flags(_) | StepKind::Class(_) | StepKind::Corrupt(_));
        *sequence += if moves || matches!(kind, StepKind::Gap) { len as u32 } else { 0 };
        packets.push(match kind {
            StepKind::Next(_, false) => plan.bytes(),
            StepKind::Next(_, true) => plan.with_flags(0x18).bytes(),
            StepKind::Acknowledgement => plan.with(|plan| plan.payload.clear()).bytes(),
            StepKind::Flags(flags) => plan.with_flags(*flags).bytes(),
            StepKind::Class(class) => plan.with(|plan| plan.class = *class).bytes(),
            StepKind::Again => packets.last().cloned().unwrap_or_default(),
            StepKind::Gap => continue,
            StepKind::Corrupt(bit) => {
                let mut packet = plan.bytes();
                let bit = bit.index(packet.len() * 8);
                packet[bit / 8] ^= 1 << (bit % 8);
                packet
            }
            StepKind::Fragment => {
                let mut packet = plan.with(|plan| plan.v6 = false).bytes();
                packet[7] = 9;
                packet
            }
            StepKind::Options => plan
                .with(|plan| match plan.v6 {
                    true => plan.extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])],
                    false => plan.ip_options = vec![1; 8],
                })
                .bytes(),
            StepKind::Garbage(bytes) => bytes.clone(),
        });
    }
    packets
}

/// Packets in their order, once for each flow that they may belong to. Those of which that cannot be told, for they have
/// options or are fragments, belong to all between their addresses.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<Vec<u8>, Vec<Vec<u8>>>::new();
    let ports = |packet: &[u8]| match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 24 => Some([&packet[..1], &packet[9..10], &packet[12..24]].concat()),
        Some(6) if packet.len() >= 44 => Some([&[0x60], &packet[6..7], &packet[8..44]].concat()),
        _ => None,
    };
    let is_clear = |packet: &[u8]| match packet[0] >> 4 {
        4 => packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0,
        _ => packet[6] == 6 || packet[6] == 17,
    };
    for packet in packets {
        if let Some(flow) = ports(packet).filter(|_| is_clear(packet)) {
            flows.entry(flow).or_default();
        }
    }
    let addresses = |flow: &[u8]| flow[2..flow.len() - 4].to_vec();
    for packet in packets {
        let flow = ports(packet).unwrap_or_default();
        if flow.is_empty() || is_clear(packet) {
            flows.entry(flow).or_default().push(without_id(packet));
            continue;
        }
        let unclear = addresses(&flow);
        flows.entry(flow).or_default();
        let of_these = flows.iter_mut().filter(|(flow, _)| flow.len() > 4 && addresses(flow) == unclear);
        of_these.for_each(|(_, packets)| packets.push(without_id(packet)));
    }
    flows
}

/// Whether a packet is whole, and nothing follows it.
pub fn is_whole(packet: &[u8]) -> bool {
    IpPacket::parse(packet).is_some_and(|ip| ip.header.len() + ip.payload.len() == packet.len())
}

/// What Linux asks of a frame that stands for several packets, in `virtio_net_hdr_to_skb` and when it takes it apart.
pub fn is_taken_by_the_kernel(frame: &[u8]) -> bool {
    let (header, packet) = frame.split_at(VIRTIO_HEADER);
    let Some(header) = VirtioHeader::parse(header) else { return false };
    let (Some(several), Some(unfinished)) = (header.several, header.unfinished) else {
        return header == VirtioHeader::NONE;
    };
    let (start, offset) = (usize::from(unfinished.start), usize::from(unfinished.offset));
    let least = start + if offset == 16 { 20 } else { 8 };
    let headers = usize::from(several.headers);
    let packets = (packet.len() - headers).div_ceil(usize::from(several.size));
    is_whole(packet)
        && packet.len() <= 65_535
        && headers >= least
        && headers < packet.len()
        && packet.len() - least > usize::from(several.size)
        && (2..=if offset == 16 { 127 } else { 64 }).contains(&packets)
}
