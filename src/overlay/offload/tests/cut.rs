//! Frames cut apart, each kind and each field by itself.

use super::build::{Checksum, Plan, Transport, is_well_formed, payload, tcp, udp};
use crate::overlay::offload::{
    Cut, Malformed, VIRTIO_HEADER,
    virtio::{Kind, Several, Unfinished, VirtioHeader},
};

#[test]
fn a_complete_packet_passes_as_it_is() {
    for plan in [tcp(1, b"hello"), udp(b"hello"), tcp(1, b"").with_flags(0x02)] {
        let packet = plan.bytes();

        assert_eq!(cut(&frame(VirtioHeader::NONE, &packet)), Ok(vec![packet]));
    }
}

#[test]
fn an_unfinished_checksum_is_completed() {
    for plan in families(&[tcp(1, b"odd"), udp(b"even"), tcp(1, &payload(1400, 1)), udp(&payload(65_000, 2))]) {
        let frame = frame(unfinished(&plan), &plan.build(Checksum::Unfinished));

        assert_eq!(cut(&frame), Ok(vec![plan.bytes()]));
    }
}

#[test]
fn an_unfinished_checksum_of_any_protocol_is_completed() {
    let mut icmp = udp(&payload(32, 3)).with(|plan| plan.v6 = true).build(Checksum::Unfinished);
    icmp[6] = 58;
    let header = VirtioHeader { unfinished: Some(Unfinished { start: 40, offset: 2 }), several: None };
    let whole = super::build::sum(icmp[40..].to_vec());

    let packets = cut(&frame(header, &icmp)).unwrap();

    assert_eq!(packets[0][42..44], (!whole).to_be_bytes());
    assert_eq!((&packets[0][..42], &packets[0][44..]), (&icmp[..42], &icmp[44..]));
}

#[test]
fn an_unfinished_checksum_that_becomes_zero_is_written_as_ones() {
    let plan = udp(&[0, 0]);
    let sum = u16::from_be_bytes([plan.bytes()[26], plan.bytes()[27]]);
    let plan = plan.with(|plan| plan.payload = sum.to_be_bytes().to_vec());
    let frame = frame(unfinished(&plan), &plan.build(Checksum::Unfinished));

    let packets = cut(&frame).unwrap();

    assert_eq!(packets[0][26..28], [0xff, 0xff]);
    assert!(is_well_formed(&packets[0]));
}

#[test]
fn a_segment_whose_udp_checksum_becomes_zero_has_ones() {
    let plan = udp(&[0, 0]);
    let sum = u16::from_be_bytes([plan.bytes()[26], plan.bytes()[27]]);
    let plan = plan.with(|plan| plan.payload = [sum.to_be_bytes(), sum.to_be_bytes()].concat());

    let packets = cut(&plan.frame(2)).unwrap();

    assert!(packets.iter().all(|packet| packet[26..28] == [0xff, 0xff] && is_well_formed(packet)));
}

#[test]
fn every_combination_of_tcp_flags_is_cut_as_if_each_packet_had_been_built_by_itself() {
    for plan in families(&[tcp(u32::MAX - 2000, &payload(4_000, 4))]) {
        for flags in 0..=255 {
            let plan = plan.with_flags(flags);

            assert_eq!(cut(&plan.frame(1360)).unwrap(), plan.segments(1360), "flags {flags:08b}");
        }
    }
}

#[test]
fn the_reserved_bits_of_tcp_the_urgent_pointer_and_options_stay() {
    for length in (0..=40).step_by(4) {
        let plan = tcp(9, &payload(5_000, 5)).with(|plan| {
            plan.transport = Transport::Tcp {
                sequence: 9,
                acknowledged: 0xdead_beef,
                flags: 0x38,
                reserved: 0x0f,
                window: 65_535,
                urgent: 77,
                options: payload(length, 6),
            }
        });
        for plan in families(&[plan]) {
            assert_eq!(cut(&plan.frame(1000)).unwrap(), plan.segments(1000));
        }
    }
}

#[test]
fn ids_of_ipv4_count_up_and_around() {
    let plan = tcp(1, &payload(3_000, 7)).with(|plan| {
        plan.id = 65_535;
        plan.dont_fragment = false;
    });

    let packets = cut(&plan.frame(1000)).unwrap();

    let ids: Vec<_> = packets.iter().map(|packet| u16::from_be_bytes([packet[4], packet[5]])).collect();
    assert_eq!(ids, [65_535, 0, 1]);
    assert_eq!(packets, plan.segments(1000));
}

#[test]
fn options_of_ipv4_and_extension_headers_of_ipv6_are_in_every_packet() {
    for transport in [tcp(1, &payload(3_001, 8)), udp(&payload(3_001, 9))] {
        let v4 = transport.with(|plan| plan.ip_options = vec![0x94, 4, 0, 0, 1, 1, 1, 0]);
        let v6 = transport.with(|plan| {
            plan.v6 = true;
            plan.extensions = vec![
                (0, vec![0, 0, 5, 2, 0, 0, 1, 0]),
                (60, [vec![0, 1], vec![1; 14]].concat()),
                (43, [vec![0, 2], vec![0; 22]].concat()),
            ];
        });
        for plan in [v4, v6] {
            assert_eq!(cut(&plan.frame(500)).unwrap(), plan.segments(500));
        }
    }
}

#[test]
fn the_smallest_segments_are_cut_right_although_their_headers_overlap() {
    for plan in families(&[tcp(1, &payload(100, 10)), udp(&payload(100, 11))]) {
        for size in [1, 2, 3, 7, 8, 39, 40, 41, 52, 53, 99, 100] {
            assert_eq!(cut(&plan.frame(size)).unwrap(), plan.segments(size), "size {size}");
        }
    }
}

#[test]
fn the_largest_packets_are_cut_right() {
    for plan in families(&[tcp(1, b""), udp(b"")]) {
        let plan = plan.with(|plan| plan.payload = payload(65_535 - plan.headers(), 12));
        for size in [536, 1400, 8960, 65_000] {
            assert_eq!(cut(&plan.frame(size)).unwrap(), plan.segments(size), "size {size}");
        }
    }
}

#[test]
fn a_frame_that_stands_for_one_packet_is_that_one() {
    for plan in families(&[tcp(1, &payload(900, 13)).with_flags(0x99), udp(&payload(900, 14)), tcp(1, b"")]) {
        assert_eq!(cut(&plan.frame(1400)).unwrap(), vec![plan.bytes()]);
    }
}

#[test]
fn it_is_known_beforehand_where_the_packets_go() {
    let mut frame = tcp(1, &payload(3_000, 15)).frame(1360);

    let cut = Cut::new(&mut frame).unwrap();

    assert_eq!((cut.source().to_string(), cut.destination().to_string()), ("10.42.0.1".into(), "10.42.0.2".into()));
}

#[test]
fn the_kernel_is_not_believed_how_long_the_headers_are() {
    let plan = tcp(1, &payload(3_000, 16));
    for hint in [0u16, 1, 3_000, 65_535] {
        let mut frame = plan.frame(1360);
        frame[2..4].copy_from_slice(&hint.to_ne_bytes());

        assert_eq!(cut(&frame).unwrap(), plan.segments(1360));
    }
}

#[test]
fn a_packet_that_sets_cwr_is_cut_whether_the_header_says_so_or_not() {
    let plan = tcp(1, &payload(3_000, 17)).with_flags(0x90);
    let mut frame = plan.frame(1360);
    frame[1] |= 0x80;

    assert_eq!(cut(&frame).unwrap(), plan.segments(1360));
}

#[test]
fn what_follows_a_single_packet_is_no_part_of_it() {
    let plan = udp(b"hello");
    let packet = [plan.build(Checksum::Unfinished), vec![0xff; 7]].concat();

    assert_eq!(cut(&frame(unfinished(&plan), &packet)), Ok(vec![plan.bytes()]));
}

#[test]
fn what_is_no_ip_packet_is_refused() {
    let packet = tcp(1, b"hello").bytes();

    assert_eq!(cut(&[0; VIRTIO_HEADER - 1]), Err(Malformed::Header));
    assert_eq!(cut(&[0; VIRTIO_HEADER]), Err(Malformed::NotIp));
    assert_eq!(cut(&frame(VirtioHeader::NONE, &packet[..packet.len() - 1])), Err(Malformed::NotIp));
    assert_eq!(cut(&frame(VirtioHeader::NONE, &[0x35; 60])), Err(Malformed::NotIp));
}

#[test]
fn a_checksum_that_would_lie_outside_of_what_is_behind_the_ip_header_is_refused() {
    for plan in families(&[tcp(1, b"hello")]) {
        let packet = plan.build(Checksum::Unfinished);
        let (first, last) = (plan.transport_at() as u16, packet.len() as u16);
        let with = |start, offset| {
            let header = VirtioHeader { unfinished: Some(Unfinished { start, offset }), several: None };
            cut(&frame(header, &packet)).err()
        };

        assert_eq!(with(first, 16), None);
        assert_eq!(with(first - 1, 16), Some(Malformed::Header));
        assert_eq!(with(0, 40), Some(Malformed::Header));
        assert_eq!(with(last - 2, 0), None);
        for (start, offset) in [(last - 1, 0), (last, 0), (last + 1, 0), (first, last - first - 1), (65_535, 65_535)] {
            assert_eq!(with(start, offset), Some(Malformed::Header), "{start} {offset}");
        }
    }
}

#[test]
fn a_frame_for_many_packets_that_contradicts_its_packet_is_refused() {
    let plan = tcp(1, &payload(3_000, 18));
    let right = plan.frame(1360);
    let header = VirtioHeader::parse(&right).unwrap();
    let (several, unfinished) = (header.several.unwrap(), header.unfinished.unwrap());
    let packet = &right[VIRTIO_HEADER..];
    let with_header = |several: Several, unfinished: Option<Unfinished>| {
        cut(&frame(VirtioHeader { several: Some(several), unfinished }, packet)).err()
    };
    let with_packet = |at: usize, value: u8| {
        let mut frame = right.clone();
        frame[VIRTIO_HEADER + at] = value;
        cut(&frame).err()
    };
    let refused = Some(Malformed::Header);

    assert_eq!(cut(&right).err(), None);
    assert_eq!(with_header(several, None), refused, "without a checksum to complete");
    assert_eq!(with_header(Several { kind: Kind::TcpV6, ..several }, Some(unfinished)), refused, "of IPv6");
    assert_eq!(with_header(Several { kind: Kind::Udp, ..several }, Some(unfinished)), refused, "of UDP");
    let elsewhere = [(20, 6), (20, 15), (20, 18), (19, 16), (24, 16), (0, 36), (65_535, 16)];
    for (start, offset) in elsewhere {
        assert_eq!(with_header(several, Some(Unfinished { start, offset })), refused, "{start} {offset}");
    }
    assert_eq!(with_packet(6, 0x60), refused, "more fragments follow");
    assert_eq!(with_packet(7, 1), refused, "a fragment");
    assert_eq!(with_packet(9, 17), refused, "another protocol");
    assert_eq!(with_packet(20 + 12, 0x40), refused, "less than a header of TCP");
    assert_eq!(with_packet(0, 0x46), refused, "options that the sum is to cover");
    assert_eq!(cut(&[&right[..], &[0]].concat()).err(), refused, "more bytes than the packet's");
    let mut short = frame(VirtioHeader { several: Some(several), unfinished: Some(unfinished) }, &udp(b"").bytes());
    short[VIRTIO_HEADER + 9] = 6;
    assert_eq!(cut(&short).err(), refused, "cut short in the header of TCP");
}

#[test]
fn a_fragment_of_ipv6_and_an_unknown_extension_header_are_refused() {
    for kind in [44, 50, 51, 59, 135, 255] {
        let plan = tcp(1, &payload(3_000, 19)).with(|plan| {
            plan.v6 = true;
            plan.extensions = vec![(kind, vec![0; 8])];
        });

        assert_eq!(cut(&plan.frame(1360)), Err(Malformed::Header), "{kind}");
    }
}

/// The packets of a frame.
pub fn cut(frame: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut frame = frame.to_vec();
    let mut cut = Cut::new(&mut frame)?;
    let addresses = (cut.source(), cut.destination());
    let mut packets = Vec::new();
    while let Some(packet) = cut.next() {
        packets.push(packet.to_vec());
        assert_eq!((cut.source(), cut.destination()), addresses);
    }
    let (last, full) = packets.split_last().unwrap();
    assert!(full.iter().all(|packet| packet.len() == full[0].len() && packet.len() >= last.len()));
    Ok(packets)
}

pub fn frame(header: VirtioHeader, packet: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], packet].concat()
}

fn unfinished(plan: &Plan) -> VirtioHeader {
    let offset = if matches!(plan.transport, Transport::Udp) { 6 } else { 16 };
    VirtioHeader { unfinished: Some(Unfinished { start: plan.transport_at() as u16, offset }), several: None }
}

/// Over IPv4 and over IPv6.
fn families(plans: &[Plan]) -> Vec<Plan> {
    plans.iter().flat_map(|plan| [plan.clone(), plan.with(|plan| plan.v6 = true)]).collect()
}
