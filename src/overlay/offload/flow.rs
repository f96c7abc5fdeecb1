//! What a packet is to [`super::Join`]: something that others can be joined to, or a reason to end what is being joined.

use std::ops::Range;

use super::{
    ACK, IPV4_HEADER, IPV6_HEADER, PSH, TCP, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, UDP, UDP_CHECKSUM, UDP_HEADER,
    checksum::Sum, part, virtio::Kind,
};

const ICMP_V6: u8 = 58;

/// A packet, looked at as far as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Of no flow that is ever joined.
    Foreign,
    /// May belong to any flow between its addresses: a fragment, options of IPv4, extension headers of IPv6, a length
    /// that is not the packet's.
    Unclear,
    /// Of this flow, and to stand alone.
    Lone(Key),
    /// Of a flow, and like one of many that make a larger one.
    Segment(Segment),
}

/// What tells flows apart that have the same addresses: version of IP, protocol, ports. Packets of one flow stay in
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

/// A packet whose headers allow it to be joined, its checksums not yet looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// With its addresses, what it belongs to.
    pub key: Key,
    /// How the kernel calls packets joined of it.
    pub kind: Kind,
    /// Where its transport header begins.
    pub transport_at: usize,
    /// Where its payload begins. There is some.
    pub payload_at: usize,
    /// Only TCP has one.
    pub sequence: Option<u32>,
    /// TCP's PSH: nothing is to be waited for behind it.
    pub push: bool,
}

impl Shape {
    /// What `packet` is.
    pub fn of(packet: &[u8]) -> Shape {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Shape::of_v4(packet),
            Some(6) => Shape::of_v6(packet),
            _ => Shape::Foreign,
        }
    }

    fn of_v4(packet: &[u8]) -> Shape {
        const NO_OPTIONS: u8 = 0x45;
        const DONT_FRAGMENT: u8 = 0x40;
        let Some((header, behind)) = packet.split_first_chunk::<IPV4_HEADER>() else { return Shape::Foreign };
        let protocol = header[9];
        if protocol != TCP && protocol != UDP {
            return Shape::Foreign;
        }
        let whole = usize::from(u16::from_be_bytes(part(header, 2))) == packet.len();
        if !whole || header[0] != NO_OPTIONS || header[6] & !DONT_FRAGMENT != 0 || header[7] != 0 {
            return Shape::Unclear;
        }
        Shape::of_transport(behind, IPV4_HEADER, protocol, part(header, 10))
    }

    fn of_v6(packet: &[u8]) -> Shape {
        let Some((header, behind)) = packet.split_first_chunk::<IPV6_HEADER>() else { return Shape::Foreign };
        let protocol = header[6];
        if protocol == ICMP_V6 {
            return Shape::Foreign;
        }
        let whole = usize::from(u16::from_be_bytes(part(header, 4))) == behind.len();
        if !whole || (protocol != TCP && protocol != UDP) {
            return Shape::Unclear;
        }
        Shape::of_transport(behind, IPV6_HEADER, protocol, [0, 0])
    }

    /// Another way to write a checksum of zero is all ones. Nobody does, but what is joined would be cut into packets
    /// with zeros; so only UDP, where zero means something else, is joined with it.
    fn of_transport(transport: &[u8], transport_at: usize, protocol: u8, header_checksum: [u8; 2]) -> Shape {
        const RESERVED: u8 = 0x0f;
        const ONES: [u8; 2] = [0xff; 2];
        let Some(ports) = transport.first_chunk::<4>() else { return Shape::Unclear };
        let v4 = transport_at == IPV4_HEADER;
        let key = Key::new(v4, protocol, *ports);
        let segment = match protocol {
            TCP if transport.len() > TCP_HEADER => {
                let headers = usize::from(transport[12] >> 4) * 4;
                let flags = transport[TCP_FLAGS];
                let plain = transport[12] & RESERVED == 0 && flags & !PSH == ACK;
                let whole = headers >= TCP_HEADER && headers < transport.len();
                (plain && whole && part(transport, TCP_CHECKSUM) != ONES).then(|| Segment {
                    key,
                    kind: if v4 { Kind::TcpV4 } else { Kind::TcpV6 },
                    transport_at,
                    payload_at: transport_at + headers,
                    sequence: Some(u32::from_be_bytes(part(transport, 4))),
                    push: flags & PSH != 0,
                })
            }
            UDP if transport.len() > UDP_HEADER => {
                let whole = usize::from(u16::from_be_bytes(part(transport, 4))) == transport.len();
                (whole && part(transport, UDP_CHECKSUM) != [0, 0]).then_some(Segment {
                    key,
                    kind: Kind::Udp,
                    transport_at,
                    payload_at: transport_at + UDP_HEADER,
                    sequence: None,
                    push: false,
                })
            }
            _ => None,
        };
        match segment {
            Some(segment) if header_checksum != ONES => Shape::Segment(segment),
            Some(_) | None => Shape::Lone(key),
        }
    }
}

impl Segment {
    /// Whether the headers of `packet`, which this is, are those of `first`, which is another of the same flow, but for
    /// what differs between packets that are cut from one: lengths, IDs, sequence numbers, checksums, PSH.
    pub fn is_like(&self, packet: &[u8], first: &[u8]) -> bool {
        let network = if self.is_v4() {
            // Version, length of the header, TOS with ECN; DF, time to live, protocol.
            same(packet, first, 0..2) && same(packet, first, 6..10)
        } else {
            // Version, traffic class with ECN, flow label; next header, hop limit.
            same(packet, first, 0..4) && same(packet, first, 6..8)
        };
        let at = self.transport_at;
        network
            && match self.kind {
                // Acknowledged, length of the header; window; urgent pointer, options.
                Kind::TcpV4 | Kind::TcpV6 => {
                    same(packet, first, at + 8..at + 13)
                        && same(packet, first, at + 14..at + 16)
                        && same(packet, first, at + 18..self.payload_at)
                }
                Kind::Udp => true,
            }
    }

    /// Whether the ID of `packet`, which this is, is what it will be when it has been joined to `first` as the one with
    /// this `index`, and cut again. IDs mean nothing where there are no fragments.
    pub fn has_id(&self, packet: &[u8], first: &[u8], index: usize) -> bool {
        const DONT_FRAGMENT: u8 = 0x40;
        match (packet, first) {
            _ if !self.is_v4() => true,
            ([_, _, _, _, a, b, flags, ..], [_, _, _, _, c, d, ..]) => {
                let (id, begun) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                flags & DONT_FRAGMENT != 0 || id.wrapping_sub(begun) == index as u16
            }
            _ => false,
        }
    }

    /// Whether the checksums of `packet`, which this is, are right.
    pub fn is_intact(&self, packet: &[u8]) -> bool {
        let Some((network, transport)) = packet.split_at_checked(self.transport_at) else { return false };
        let network_is_intact = match network.first_chunk::<IPV4_HEADER>() {
            Some(header) if self.is_v4() => Sum::of(header).is_valid(),
            Some(_) | None => true,
        };
        network_is_intact && (self.pseudo_header(network, transport.len()) + Sum::of(transport)).is_valid()
    }

    /// What the transport sums beside `len` bytes of its own.
    pub fn pseudo_header(&self, network: &[u8], len: usize) -> Sum {
        let protocol = match self.kind {
            Kind::TcpV4 | Kind::TcpV6 => TCP,
            Kind::Udp => UDP,
        };
        match (network.first_chunk::<IPV4_HEADER>(), network.first_chunk::<IPV6_HEADER>()) {
            (_, Some(header)) => Sum::pseudo_header(&header[8..40], protocol, len),
            (Some(header), None) => Sum::pseudo_header(&header[12..20], protocol, len),
            (None, None) => Sum::default(),
        }
    }

    /// Whether it is of IPv4.
    pub fn is_v4(&self) -> bool {
        self.transport_at == IPV4_HEADER
    }
}

impl Key {
    fn new(v4: bool, protocol: u8, ports: [u8; 4]) -> Key {
        Key(u64::from(v4) << 40 | u64::from(protocol) << 32 | u64::from(u32::from_ne_bytes(ports)))
    }
}

/// Whether two packets are between the same addresses, in the same direction.
pub fn have_same_addresses(a: &[u8], b: &[u8]) -> bool {
    match (a.first().map(|byte| byte >> 4), b.first().map(|byte| byte >> 4)) {
        (Some(4), Some(4)) => same(a, b, 12..20),
        (Some(6), Some(6)) => same(a, b, 8..40),
        _ => false,
    }
}

fn same(a: &[u8], b: &[u8], at: Range<usize>) -> bool {
    match (a.get(at.clone()), b.get(at)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}
