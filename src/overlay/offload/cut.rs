//! Cuts one frame of the kernel's into the packets that it stands for, in place.
//!
//! ```text
//! frame     [virtio][headers][payload 0    ][payload 1    ][payload 2]
//! 1st next          [headers][payload 0    ]
//! 2nd next                         [headers][payload 1    ]              the headers lie over the tail of payload 0,
//! 3rd next                                        [headers][payload 2]   which its reader is done with
//! ```
//!
//! What changes from packet to packet:
//!
//! | field                    |                                                                 |
//! |--------------------------|-----------------------------------------------------------------|
//! | IPv4 total length, IPv6 payload length, UDP length | of this packet                        |
//! | IPv4 ID                  | counts up                                                       |
//! | TCP sequence number      | grows by what went before                                       |
//! | TCP FIN and PSH          | only in the last                                                |
//! | TCP CWR                  | only in the first                                               |
//! | checksums                | from the sum of what does not change and of what does           |
//!
//! The kernel leaves the sum of the pseudo header in the checksum's place, and that is what is built upon: with a
//! routing header of IPv6 it is not made of the addresses in the packet. A frame for several packets without one is
//! refused, as is one that contradicts itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use wiremesh_certs::OverlayIp;

use super::{
    CWR, FIN, IPV6_HEADER, PSH, TCP, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, UDP, UDP_CHECKSUM, UDP_HEADER,
    checksum::Sum,
    part, put,
    virtio::{Kind, Several, Unfinished, VIRTIO_HEADER, VirtioHeader},
};
use crate::overlay::packet::IpPacket;

/// What the kernel handed over as one packet, to be taken as those it stands for.
pub struct Cut<'a> {
    packet: &'a mut [u8],
    several: Option<Template>,
    packets: usize,
    taken: usize,
}

/// A frame that no kernel hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// What follows the virtio header is no whole IP packet.
    #[error("neither an IPv4 nor an IPv6 packet, or cut short")]
    NotIp,
    /// The virtio header asks for what was not agreed upon, or contradicts the packet.
    #[error("the virtio header does not describe the packet")]
    Header,
}

impl<'a> Cut<'a> {
    /// `frame` is a virtio header and a packet, as read from the device. Everything is checked here, so that taking the
    /// packets cannot fail.
    pub fn new(frame: &'a mut [u8]) -> Result<Cut<'a>, Malformed> {
        let (header, packet) = frame.split_first_chunk_mut::<VIRTIO_HEADER>().ok_or(Malformed::Header)?;
        let header = VirtioHeader::parse(header).ok_or(Malformed::Header)?;
        let ip = IpPacket::parse(packet).ok_or(Malformed::NotIp)?;
        let (headers, len) = (ip.header.len(), ip.header.len() + ip.payload.len());

        let several = match (header.several, header.unfinished) {
            (Some(several), Some(unfinished)) if len == packet.len() => {
                Some(Template::of(packet, &ip, several, unfinished).ok_or(Malformed::Header)?)
            }
            (Some(_), _) => return Err(Malformed::Header),
            (None, _) => None,
        };
        let packet = &mut packet[..len];
        if let (None, Some(unfinished)) = (&several, header.unfinished) {
            complete(packet, headers, unfinished).ok_or(Malformed::Header)?;
        }
        let packets = several.as_ref().map_or(1, |template| template.packets(len));
        Ok(Cut { packet, several, packets, taken: 0 })
    }

    /// The next packet, whole and ready to be encrypted. Its memory is written over by the next call.
    pub fn next(&mut self) -> Option<&[u8]> {
        if self.taken == self.packets {
            return None;
        }
        let index = self.taken;
        self.taken += 1;
        match &self.several {
            Some(template) => Some(template.write(self.packet, index, self.taken == self.packets)),
            None => Some(self.packet),
        }
    }

    /// Where all of them say they come from.
    pub fn source(&self) -> OverlayIp {
        match self.is_v4() {
            true => OverlayIp(Ipv4Addr::from(part(self.latest(), 12)).into()),
            false => OverlayIp(Ipv6Addr::from(part(self.latest(), 8)).into()),
        }
    }

    /// Where all of them go.
    pub fn destination(&self) -> OverlayIp {
        match self.is_v4() {
            true => OverlayIp(Ipv4Addr::from(part(self.latest(), 16)).into()),
            false => OverlayIp(Ipv6Addr::from(part(self.latest(), 24)).into()),
        }
    }

    fn is_v4(&self) -> bool {
        self.latest()[0] >> 4 == 4
    }

    /// The packet taken last, or the first: the headers of those before it may be written over by its own.
    fn latest(&self) -> &[u8] {
        &self.packet[self.several.as_ref().map_or(0, |template| self.taken.saturating_sub(1) * template.size)..]
    }
}

/// What the packets have in common.
struct Template {
    network: Network,
    transport: Transport,
    /// Where the transport header begins.
    transport_at: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload in each packet but the last.
    size: usize,
}

/// What is to be changed in the IP header.
enum Network {
    V4 {
        /// Of the header without length, ID and checksum.
        sum: Sum,
        id: u16,
    },
    V6,
}

/// What is to be changed in the transport header.
enum Transport {
    Tcp {
        /// Of the header and the pseudo header, without lengths, sequence number and flags.
        sum: Sum,
        sequence: u32,
        /// With the length of the header in front.
        flags: [u8; 2],
    },
    Udp {
        /// Of the header and the pseudo header, without lengths.
        sum: Sum,
    },
}

impl Template {
    /// None if the virtio header contradicts the packet.
    fn of(packet: &[u8], ip: &IpPacket<'_>, several: Several, unfinished: Unfinished) -> Option<Template> {
        let (v4, protocol, checksum_at) = match several.kind {
            Kind::TcpV4 => (true, TCP, TCP_CHECKSUM),
            Kind::TcpV6 => (false, TCP, TCP_CHECKSUM),
            Kind::Udp => (ip.source.0.is_ipv4(), UDP, UDP_CHECKSUM),
        };
        let transport_at = if ip.source.0.is_ipv4() { behind_ipv4(ip, protocol) } else { behind_ipv6(ip, protocol) }?;
        if v4 != ip.source.0.is_ipv4()
            || usize::from(unfinished.start) != transport_at
            || usize::from(unfinished.offset) != checksum_at
        {
            return None;
        }
        let (transport, len) = match several.kind {
            Kind::TcpV4 | Kind::TcpV6 => Transport::tcp(&packet[transport_at..])?,
            Kind::Udp => Transport::udp(&packet[transport_at..])?,
        };
        let network = match v4 {
            true => Network::v4(ip.header),
            false => Network::V6,
        };
        let headers = transport_at + len;
        Some(Template { network, transport, transport_at, headers, size: usize::from(several.size) })
    }

    /// How many packets a frame's packet of `len` bytes stands for. One without payload is one nevertheless.
    fn packets(&self, len: usize) -> usize {
        (len - self.headers).div_ceil(self.size).max(1)
    }

    /// Bytes of each packet but the last.
    fn whole(&self) -> usize {
        self.headers + self.size
    }

    /// Makes the packet with this `index` out of the one before, which lies `size` bytes in front.
    fn write<'a>(&self, packet: &'a mut [u8], index: usize, last: bool) -> &'a [u8] {
        let start = index * self.size;
        if index > 0 {
            let before = start - self.size;
            packet.copy_within(before..before + self.headers, start);
        }
        let end = packet.len().min(start + self.whole());
        let packet = &mut packet[start..end];
        let (headers, payload) = packet.split_at_mut(self.headers);
        let (network, transport) = headers.split_at_mut(self.transport_at);

        let len = (network.len() + transport.len() + payload.len()) as u16;
        match self.network {
            Network::V4 { sum, id } => {
                let id = id.wrapping_add(index as u16);
                put(network, 2, len.to_be_bytes());
                put(network, 4, id.to_be_bytes());
                put(network, 10, (sum + Sum::of_number(len) + Sum::of_number(id)).checksum());
            }
            Network::V6 => put(network, 4, (len.wrapping_sub(IPV6_HEADER as u16)).to_be_bytes()),
        }

        let len = (transport.len() + payload.len()) as u16;
        let payload = Sum::of(payload) + Sum::of_number(len);
        match self.transport {
            Transport::Tcp { sum, sequence, flags } => {
                let sequence = sequence.wrapping_add((index * self.size) as u32).to_be_bytes();
                let mut cleared = if index == 0 { 0 } else { CWR };
                cleared |= if last { 0 } else { FIN | PSH };
                let flags = [flags[0], flags[1] & !cleared];
                transport[4..8].copy_from_slice(&sequence);
                put(transport, TCP_FLAGS - 1, flags);
                let sum = sum + Sum::of(&sequence) + Sum::of(&flags) + payload;
                put(transport, TCP_CHECKSUM, sum.checksum());
            }
            Transport::Udp { sum } => {
                put(transport, 4, len.to_be_bytes());
                let sum = sum + Sum::of_number(len) + payload;
                put(transport, UDP_CHECKSUM, sum.checksum_but_not_zero());
            }
        }
        packet
    }
}

impl Network {
    fn v4(header: &[u8]) -> Network {
        let sum = Sum::of(header).without(part(header, 2)).without(part(header, 4)).without(part(header, 10));
        Network::V4 { sum, id: u16::from_be_bytes(part(header, 4)) }
    }
}

impl Transport {
    /// And the length of its header. `segment` is header and payload of all packets; the sum of the pseudo header lies
    /// in the checksum's place, and contains the length of all that.
    fn tcp(segment: &[u8]) -> Option<(Transport, usize)> {
        let len = usize::from(segment.get(12)? >> 4) * 4;
        let header = segment.get(..len).filter(|header| header.len() >= TCP_HEADER)?;
        let all = (segment.len() as u16).to_be_bytes();
        let (sequence, flags) = (part(header, 4), part(header, TCP_FLAGS - 1));
        let sum = Sum::of(header).without(all).without(part(header, 4)).without(part(header, 6)).without(flags);
        Some((Transport::Tcp { sum, sequence: u32::from_be_bytes(sequence), flags }, len))
    }

    /// And the length of its header. Here the length is also in the header.
    fn udp(segment: &[u8]) -> Option<(Transport, usize)> {
        let header = segment.first_chunk::<UDP_HEADER>()?;
        let all = part(header, 4);
        Some((Transport::Udp { sum: Sum::of(header).without(all).without(all) }, UDP_HEADER))
    }
}

/// Completes the checksum of a packet that stands for itself. What is summed may be the packet inside a tunnel's, so
/// nothing is asked of it but to lie behind the IP header, of `headers` bytes.
fn complete(packet: &mut [u8], headers: usize, unfinished: Unfinished) -> Option<()> {
    let (start, offset) = (usize::from(unfinished.start), usize::from(unfinished.offset));
    let summed = packet.get_mut(start..).filter(|_| start >= headers)?;
    let sum = Sum::of(summed);
    // Zero would mean to UDP that there is none, and means the same to the others.
    summed.get_mut(offset..offset + 2)?.copy_from_slice(&sum.checksum_but_not_zero());
    Some(())
}

/// Where the transport begins. None if it is another protocol or a fragment.
fn behind_ipv4(ip: &IpPacket<'_>, protocol: u8) -> Option<usize> {
    const MORE_FRAGMENTS_AND_OFFSET: u16 = 0x3fff;
    let fragment = u16::from_be_bytes(part(ip.header, 6)) & MORE_FRAGMENTS_AND_OFFSET;
    (ip.protocol == protocol && fragment == 0).then_some(ip.header.len())
}

/// Where the transport begins, behind the extension headers (RFC 8200) that may stand in each packet alike. None if it
/// is another protocol or a fragment.
fn behind_ipv6(ip: &IpPacket<'_>, protocol: u8) -> Option<usize> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let (mut next, mut rest) = (ip.protocol, ip.payload);
    while next != protocol {
        let [following, eights, ..] = *rest else { return None };
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
            return None;
        }
        rest = rest.get((usize::from(eights) + 1) * 8..)?;
        next = following;
    }
    Some(ip.header.len() + ip.payload.len() - rest.len())
}
