//! Packets joined, and every reason why they are not.

use std::io::IoSlice;

use super::{
    build::{Plan, Transport, payload, sum, tcp, udp},
    cut::{cut, frame},
};
use crate::overlay::offload::{
    Join, Joined, MAX_PIECES, Takes, VIRTIO_HEADER, VirtioHeader,
    join::{MAX_DATAGRAMS, MAX_FLOWS, MAX_SEGMENTS},
};

/// What makes a packet another.
type Change = fn(&mut Plan);

#[test]
fn packets_of_one_flow_leave_as_the_frame_that_they_could_have_been_cut_from() {
    for plan in [tcp(u32::MAX - 3_000, &payload(10_000, 1)), udp(&payload(10_000, 2))] {
        for plan in [plan.clone(), plan.with(|plan| plan.v6 = true)] {
            for size in [1360, 1000, 5_000] {
                assert_eq!(join(&plan.segments(size)), [plan.frame(size)]);
            }
        }
    }
}

#[test]
fn a_group_of_one_goes_out_unchanged() {
    for packet in [tcp(1, b"x").bytes(), udp(b"x").bytes(), vec![], vec![0x45], vec![0; 60], vec![0xff; 60]] {
        assert_eq!(join(std::slice::from_ref(&packet)), [alone(&packet)]);
    }
}

#[test]
fn a_push_is_kept_and_ends_the_group() {
    let plan = tcp(1, &payload(3_000, 3)).with_flags(0x18);
    let behind = tcp(3_001, &payload(1_000, 4));

    let frames = join(&[plan.segments(1_000), vec![behind.bytes()]].concat());

    assert_eq!(frames, [plan.frame(1_000), alone(&behind.bytes())]);
}

#[test]
fn a_push_on_the_first_packet_leaves_it_alone() {
    let packets = sequence(2).map(|plan| plan.with_flags(0x18).bytes()).collect::<Vec<_>>();

    assert_eq!(sizes(&packets), [1, 1]);
}

#[test]
fn a_shorter_packet_is_the_last_and_a_larger_one_begins_anew() {
    let lengths = [100, 100, 60, 60, 60, 100, 100, 10, 20, 30];
    let (mut at, mut packets, mut datagrams) = (1, vec![], vec![]);
    for len in lengths {
        packets.push(tcp(at, &payload(len, 5)).bytes());
        datagrams.push(udp(&payload(len, 5)).bytes());
        at += len as u32;
    }

    assert_eq!(sizes(&packets), [3, 2, 3, 1, 1]);
    assert_eq!(sizes(&datagrams), [3, 2, 3, 1, 1]);
}

#[test]
fn nothing_joins_whose_headers_differ() {
    fn tcp_of(plan: &mut Plan) -> (&mut u32, &mut u32, &mut u8, &mut u16, &mut u16, &mut Vec<u8>) {
        match &mut plan.transport {
            Transport::Tcp { sequence, acknowledged, reserved, window, urgent, options, .. } => {
                (sequence, acknowledged, reserved, window, urgent, options)
            }
            Transport::Udp => unreachable!("only TCP is changed"),
        }
    }
    let of_both: &[(&str, Change)] = &[
        ("another source", |plan| plan.from = 9),
        ("another destination", |plan| plan.to = 9),
        ("another source port", |plan| plan.ports.0 += 1),
        ("another destination port", |plan| plan.ports.1 += 1),
        ("another TOS or traffic class", |plan| plan.class = 0x04),
        ("congestion experienced", |plan| plan.class = 0x03),
        ("another number of hops", |plan| plan.hops -= 1),
        ("the other version of IP", |plan| plan.v6 = !plan.v6),
        ("no payload", |plan| plan.payload.clear()),
        ("a larger payload", |plan| plan.payload.push(0)),
    ];
    let of_v4: &[(&str, Change)] = &[
        ("may be fragmented, unlike the first", |plan| plan.dont_fragment = false),
        ("options of IPv4", |plan| plan.ip_options = vec![1, 1, 1, 0]),
    ];
    let of_v6: &[(&str, Change)] =
        &[("an extension header", |plan| plan.extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])])];
    let of_tcp: &[(&str, Change)] = &[
        ("a gap", |plan| *tcp_of(plan).0 += 1),
        ("an overlap", |plan| *tcp_of(plan).0 -= 1),
        ("sent again", |plan| *tcp_of(plan).0 -= 1_000),
        ("another acknowledgement", |plan| *tcp_of(plan).1 += 1),
        ("accurate ECN", |plan| *tcp_of(plan).2 = 1),
        ("another window", |plan| *tcp_of(plan).3 -= 1),
        ("an urgent pointer", |plan| *tcp_of(plan).4 = 1),
        ("another time stamp", |plan| tcp_of(plan).5[7] += 1),
        ("fewer options", |plan| tcp_of(plan).5.clear()),
        ("more options", |plan| tcp_of(plan).5.extend([1, 1, 1, 1])),
    ];

    for v6 in [false, true] {
        let of_family = if v6 { of_v6 } else { of_v4 };
        let plans: Vec<_> = sequence(2).map(|plan| plan.with(|plan| plan.v6 = v6)).collect();
        assert_eq!(sizes(&plans.iter().map(Plan::bytes).collect::<Vec<_>>()), [2]);
        for (reason, change) in of_both.iter().chain(of_family).chain(of_tcp) {
            assert_eq!(sizes(&[plans[0].bytes(), plans[1].with(change).bytes()]), [1, 1], "TCP: {reason}");
        }
        let plan = udp(&payload(1_000, 6)).with(|plan| plan.v6 = v6);
        assert_eq!(sizes(&[plan.bytes(), plan.bytes()]), [2]);
        for (reason, change) in of_both.iter().chain(of_family) {
            assert_eq!(sizes(&[plan.bytes(), plan.with(change).bytes()]), [1, 1], "UDP: {reason}");
        }
    }
}

#[test]
fn only_packets_with_no_flag_but_ack_and_push_join() {
    for flags in 0..=255 {
        let packets: Vec<_> =
            sequence(3).enumerate().map(|(at, plan)| plan.with_flags(if at == 1 { flags } else { 0x10 })).collect();
        let expected: &[usize] = match flags {
            0x10 => &[3],
            0x18 => &[2, 1],
            _ => &[1, 1, 1],
        };

        assert_eq!(sizes(&packets.iter().map(Plan::bytes).collect::<Vec<_>>()), expected, "flags {flags:08b}");
    }
}

#[test]
fn packets_with_the_same_unusual_flags_do_not_join_either() {
    for flags in (0..=255).filter(|flags| flags & !0x08 != 0x10) {
        let packets: Vec<_> = sequence(3).map(|plan| plan.with_flags(flags).bytes()).collect();

        assert_eq!(sizes(&packets), [1, 1, 1], "flags {flags:08b}");
    }
    for bit in [1, 2, 4, 8] {
        let with_bit = |plan: &mut Plan| {
            if let Transport::Tcp { reserved, .. } = &mut plan.transport {
                *reserved = bit;
            }
        };
        let packets: Vec<_> = sequence(3).map(|plan| plan.with(with_bit).bytes()).collect();

        assert_eq!(sizes(&packets), [1, 1, 1], "reserved {bit:04b}");
    }
}

#[test]
fn a_packet_that_does_not_join_is_not_overtaken_by_later_ones_of_its_flow() {
    let lone: [(&str, Change); 3] = [
        ("a pure acknowledgement", |plan| plan.payload.clear()),
        ("options of IPv4", |plan| plan.ip_options = vec![1, 1, 1, 0]),
        ("another TOS", |plan| plan.class = 8),
    ];
    let [first, second, third] = [1, 1_001, 2_001].map(|at| tcp(at, &payload(1_000, 7)));
    for (reason, change) in lone {
        let packets = [first.bytes(), second.bytes(), third.with(change).bytes(), third.bytes()];

        assert_eq!(sizes(&packets), [2, 1, 1], "{reason}");
    }
    for flags in [0x11, 0x02, 0x12, 0x04, 0x14, 0x30, 0x50, 0x90, 0x00] {
        let packets = [first.bytes(), second.bytes(), third.with_flags(flags).bytes(), third.bytes()];

        assert_eq!(sizes(&packets), [2, 1, 1], "flags {flags:08b}");
    }
}

#[test]
fn a_packet_that_may_be_of_any_flow_ends_all_between_the_same_addresses_and_no_other() {
    let flow = |from: u8, port: u16, at: u32| {
        tcp(at, &payload(1_000, 8)).with(|plan| {
            plan.from = from;
            plan.ports.0 = port;
        })
    };
    let mut fragment = flow(1, 9, 1).bytes();
    fragment[7] = 1;
    let packets = [
        flow(1, 1, 1).bytes(),
        flow(1, 2, 1).bytes(),
        flow(3, 1, 1).bytes(),
        fragment,
        flow(1, 1, 1_001).bytes(),
        flow(1, 2, 1_001).bytes(),
        flow(3, 1, 1_001).bytes(),
    ];

    assert_eq!(sizes(&packets), [1, 1, 2, 1, 1, 1]);
}

#[test]
fn what_has_nothing_to_do_with_a_flow_does_not_end_it() {
    let mut plans = sequence(2);
    let (first, second) = (plans.next().unwrap().bytes(), plans.next().unwrap().bytes());
    let mut ping = udp(b"ping").bytes();
    ping[9] = 1;
    let mut ping6 = udp(b"ping").with(|plan| plan.v6 = true).bytes();
    ping6[6] = 58;
    for foreign in [ping, ping6, vec![], vec![0xff; 100], vec![0; 40], udp(b"udp").bytes()] {
        assert_eq!(sizes(&[first.clone(), foreign, second.clone()]), [2, 1]);
    }
}

#[test]
fn flows_that_take_turns_are_joined_each_by_itself_and_leave_in_the_order_of_their_first_packets() {
    let plans: Vec<_> = (0..MAX_FLOWS as u16)
        .map(|port| {
            let plan = if port % 2 == 0 { tcp(1, &payload(5_000, port as u8)) } else { udp(&payload(5_000, 9)) };
            plan.with(|plan| plan.ports.0 = port)
        })
        .collect();
    let segments: Vec<_> = plans.iter().map(|plan| plan.segments(1_000)).collect();
    let turns: Vec<_> = (0..5).flat_map(|turn| segments.iter().map(move |flow| flow[turn].clone())).collect();

    assert_eq!(join(&turns), plans.iter().map(|plan| plan.frame(1_000)).collect::<Vec<_>>());
}

#[test]
fn one_flow_too_many_ends_the_one_begun_first() {
    let flow = |port: u16, at: u32| tcp(at, &payload(1_000, 8)).with(|plan| plan.ports.0 = port).bytes();
    let begun = (0..=MAX_FLOWS as u16).map(|port| flow(port, 1));
    let packets: Vec<_> = begun.chain([flow(1, 1_001), flow(0, 1_001)]).collect();

    let mut expected = [1; MAX_FLOWS + 2];
    expected[1] = 2;

    assert_eq!(sizes(&packets), expected);
}

#[test]
fn a_corrupted_packet_never_joins_and_nothing_overtakes_it() {
    for plan in [tcp(1, &payload(3_000, 10)), udp(&payload(3_000, 11))] {
        for v6 in [false, true] {
            let plan = plan.with(|plan| plan.v6 = v6);
            let packets = plan.segments(1_000);
            for (which, expected) in [(0, &[1, 2][..]), (1, &[1, 1, 1]), (2, &[2, 1])] {
                for at in (plan.headers() - 4)..packets[which].len() {
                    let mut packets = packets.clone();
                    packets[which][at] ^= 0x10;

                    let frames = join(&packets);

                    assert!(frames.contains(&alone(&packets[which])), "packet {which}, byte {at}");
                    assert_eq!(frames.iter().map(|frame| count(frame)).collect::<Vec<_>>(), expected);
                }
            }
        }
    }
}

#[test]
fn a_wrong_checksum_of_the_ipv4_header_is_not_repaired() {
    for which in 0..3 {
        let mut packets = tcp(1, &payload(3_000, 12)).segments(1_000);
        packets[which][11] ^= 1;

        assert!(join(&packets).contains(&alone(&packets[which])));
    }
}

#[test]
fn udp_without_a_checksum_does_not_join() {
    let mut packets = udp(&payload(3_000, 13)).segments(1_000);
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));

    assert_eq!(sizes(&packets), [1, 1, 1]);
}

#[test]
fn a_checksum_of_zero_that_is_written_as_ones_joins_only_in_udp_where_it_must_be() {
    let zero = |plan: Plan| {
        let checksum_at = plan.transport_at() + if matches!(plan.transport, Transport::Udp) { 6 } else { 16 };
        let plan = plan.with(|plan| plan.payload[..2].fill(0));
        let sum = [plan.bytes()[checksum_at], plan.bytes()[checksum_at + 1]];
        let mut packet = plan.with(|plan| plan.payload[..2].copy_from_slice(&sum)).bytes();
        packet[checksum_at..checksum_at + 2].fill(0xff);
        packet
    };

    let datagrams = [udp(&payload(1_000, 14)).bytes(), zero(udp(&payload(1_000, 14)))];
    let packets = [tcp(1, &payload(1_000, 14)).bytes(), zero(tcp(1_001, &payload(1_000, 14)))];

    let mut without = datagrams.clone();
    without[1][26..28].fill(0);

    assert_eq!(sizes(&datagrams), [2]);
    assert_eq!(sizes(&without), [1, 1]);
    assert_eq!(sizes(&packets), [1, 1]);
}

#[test]
fn an_ipv4_header_whose_checksum_of_zero_is_written_as_ones_does_not_join() {
    let plans: Vec<_> = sequence(2).collect();
    let zero = |plan: &Plan| {
        let without = plan.with(|plan| plan.id = 0).bytes();
        plan.with(|plan| plan.id = u16::from_be_bytes([without[10], without[11]])).bytes()
    };
    let packets: Vec<_> = plans.iter().map(zero).collect();
    let mut with_ones = packets.clone();
    with_ones.iter_mut().for_each(|packet| packet[10..12].fill(0xff));

    assert!(packets.iter().all(|packet| packet[10..12] == [0, 0]));
    assert_eq!(sizes(&packets), [2]);
    assert_eq!(join(&with_ones), [alone(&with_ones[0]), alone(&with_ones[1])]);
}

#[test]
fn ids_of_packets_that_may_be_fragmented_must_count_up() {
    let with = |dont_fragment, ids: [u16; 3]| {
        let plans = sequence(3).zip(ids).map(|(plan, id)| {
            plan.with(|plan| {
                plan.id = id;
                plan.dont_fragment = dont_fragment;
            })
        });
        sizes(&plans.map(|plan| plan.bytes()).collect::<Vec<_>>())
    };

    assert_eq!(with(false, [65_535, 0, 1]), [3]);
    assert_eq!(with(false, [5, 5, 6]), [1, 2]);
    assert_eq!(with(false, [5, 6, 8]), [2, 1]);
    assert_eq!(with(true, [0, 0, 0]), [3]);
    assert_eq!(with(true, [9, 2, 7]), [3]);
}

#[test]
fn a_packet_whose_length_is_not_what_its_header_says_stands_alone() {
    for plan in [tcp(1, &payload(3_000, 15)), udp(&payload(3_000, 16))] {
        for v6 in [false, true] {
            let mut packets = plan.with(|plan| plan.v6 = v6).segments(1_000);
            packets[1].push(0);

            assert_eq!(sizes(&packets), [1, 1, 1]);
        }
    }
    let mut packets = udp(&payload(2_000, 17)).segments(1_000);
    packets[1][25] ^= 1;
    assert_eq!(sizes(&packets), [1, 1]);
}

#[test]
fn a_group_is_never_larger_than_a_packet_can_be() {
    let plan = tcp(1, &payload(65_535 - 52, 18));
    let behind = |len: usize| tcp(plan.payload.len() as u32 + 1, &payload(len, 19)).bytes();
    let filled = tcp(1, &payload(65_000, 18)).segments(13_000);
    let next = |len: usize| tcp(65_001, &payload(len, 19)).bytes();

    assert_eq!(sizes(&[plan.segments(13_000), vec![behind(1)]].concat()), [6, 1]);
    assert_eq!(sizes(&[filled.clone(), vec![next(65_535 - 52 - 65_000)]].concat()), [6]);
    assert_eq!(sizes(&[filled, vec![next(65_535 - 52 - 65_000 + 1)]].concat()), [5, 1]);
}

#[test]
fn a_group_has_no_more_packets_than_the_kernel_takes_in_one_write() {
    let packets = tcp(1, &payload(3 * MAX_SEGMENTS, 20)).segments(1);
    let datagrams = udp(&payload(2 * MAX_DATAGRAMS + 3, 21)).segments(1);

    assert_eq!(sizes(&packets), [MAX_SEGMENTS; 3]);
    assert_eq!(sizes(&datagrams), [MAX_DATAGRAMS, MAX_DATAGRAMS, 3]);
}

#[test]
fn a_device_gets_joined_only_what_it_takes() {
    let packets = [tcp(1, &payload(2_000, 22)).segments(1_000), udp(&payload(2_000, 23)).segments(1_000)].concat();
    let sizes = |takes| frames(&mut Join::new(takes), &packets).iter().map(|frame| count(frame)).collect::<Vec<_>>();

    assert_eq!(sizes(Takes::Nothing), [1, 1, 1, 1]);
    assert_eq!(sizes(Takes::Tcp), [2, 1, 1]);
    assert_eq!(sizes(Takes::TcpAndUdp), [2, 2]);
}

#[test]
fn once_drained_it_begins_again_with_nothing_remembered() {
    let mut join = Join::new(Takes::TcpAndUdp);
    let plan = tcp(1, &payload(4_000, 24));
    let packets = plan.segments(1_000);

    assert_eq!(frames(&mut join, &packets[..1]), [alone(&packets[0])]);
    assert_eq!(frames(&mut join, &packets[1..2]), [alone(&packets[1])]);
    assert_eq!(frames(&mut join, &packets), [plan.frame(1_000)]);
    assert_eq!(frames(&mut join, &[]), Vec::<Vec<u8>>::new());
}

#[test]
fn a_full_batch_takes_no_memory_that_was_not_there_before() {
    let mut join = Join::new(Takes::TcpAndUdp);
    let before = join.capacities();
    let packets: Vec<_> = (0..crate::overlay::batch::BATCH_PACKETS)
        .map(|at| udp(&payload(1 + at % 3, 25)).with(|plan| plan.ports.0 = at as u16 / 7 % 20).bytes())
        .collect();

    let joined = frames(&mut join, &packets);

    assert_eq!(joined.iter().map(|frame| count(frame)).sum::<usize>(), packets.len());
    assert_eq!(join.capacities(), before);
}

/// What is written for `packets` to a device that takes everything.
pub fn join(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    frames(&mut Join::new(Takes::TcpAndUdp), packets)
}

/// What `join` makes of `packets`.
pub fn frames(join: &mut Join, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut arena = packets.concat();
    let mut at = 0;
    for packet in packets {
        join.add(&arena, at..at + packet.len());
        at += packet.len();
    }
    let mut frames = Vec::new();
    while let Some(joined) = join.next(&mut arena) {
        frames.push(written(&joined));
    }
    frames
}

/// What one system call writes.
fn written(joined: &Joined<'_>) -> Vec<u8> {
    let mut slices = [IoSlice::new(&[]); MAX_PIECES];
    let pieces = joined.fill(&mut slices);
    assert_eq!(pieces.len(), joined.packets() + 1);
    let frame: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
    assert_eq!(frame, joined.pieces().collect::<Vec<_>>().concat());
    frame
}

/// A packet by itself.
pub fn alone(packet: &[u8]) -> Vec<u8> {
    frame(VirtioHeader::NONE, packet)
}

/// How many packets a frame stands for.
pub fn count(frame: &[u8]) -> usize {
    match frame[..VIRTIO_HEADER] == [0; VIRTIO_HEADER] {
        true => 1,
        false => cut(frame).unwrap().len(),
    }
}

/// How many packets each frame stands for. What they are cut into is what they were, but for IDs.
fn sizes(packets: &[Vec<u8>]) -> Vec<usize> {
    let frames = join(packets);
    let mut came_out: Vec<_> = frames.iter().flat_map(|frame| apart(frame)).map(|packet| without_id(&packet)).collect();
    let mut went_in: Vec<_> = packets.iter().map(|packet| without_id(packet)).collect();
    came_out.sort();
    went_in.sort();
    assert_eq!(came_out, went_in);
    frames.iter().map(|frame| count(frame)).collect()
}

/// The packets of a frame; what stands alone may be no packet at all.
pub fn apart(frame: &[u8]) -> Vec<Vec<u8>> {
    match frame[..VIRTIO_HEADER] == [0; VIRTIO_HEADER] {
        true => vec![frame[VIRTIO_HEADER..].to_vec()],
        false => cut(frame).unwrap(),
    }
}

/// IDs of IPv4 mean nothing in packets that must not be fragmented, which is what may change them.
pub fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] == 0x45 && packet[6] & 0x40 != 0 && sum(packet[..20].to_vec()) == 0xffff {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Packets of a bulk transfer, 1,000 bytes each.
fn sequence(count: u32) -> impl Iterator<Item = Plan> {
    (0..count).map(|at| tcp(1 + at * 1_000, &payload(1_000, at as u8)))
}
