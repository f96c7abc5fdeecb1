//! What the overlay needs to know of an IP packet: where from, where to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use wiremesh_certs::OverlayIp;

use super::offload::Sum;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// An IP packet inside the overlay, its header looked at and no more.
///
/// | at | IPv4           | at | IPv6           |
/// |----|----------------|----|----------------|
/// | 0  | version 4, IHL | 0  | version 6      |
/// | 2  | total length   | 4  | payload length |
/// | 9  | protocol       | 6  | next header    |
/// | 12 | source         | 8  | source         |
/// | 16 | destination    | 24 | destination    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Where it says it comes from.
    pub source: OverlayIp,
    /// Where it goes.
    pub destination: OverlayIp,
    /// The transport's number: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6.
    pub protocol: u8,
    /// The header, options of IPv4 included.
    pub header: &'a [u8],
    /// What follows the header. Extension headers of IPv6 count as payload.
    pub payload: &'a [u8],
}

impl<'a> IpPacket<'a> {
    /// None unless `bytes` begins with a whole packet of IPv4 or IPv6.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<IpPacket<'a>> {
        match bytes.first()? >> 4 {
            4 => IpPacket::parse_v4(bytes),
            6 => IpPacket::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<IpPacket<'a>> {
        let header = usize::from(bytes[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?));
        if header < IPV4_HEADER || total < header {
            return None;
        }
        Some(IpPacket {
            source: OverlayIp(Ipv4Addr::from(*bytes.get(12..)?.first_chunk::<4>()?).into()),
            destination: OverlayIp(Ipv4Addr::from(*bytes.get(16..)?.first_chunk::<4>()?).into()),
            protocol: *bytes.get(9)?,
            header: bytes.get(..header)?,
            payload: bytes.get(header..total)?,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<IpPacket<'a>> {
        let payload = usize::from(u16::from_be_bytes(*bytes.get(4..)?.first_chunk()?));
        Some(IpPacket {
            source: OverlayIp(Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into()),
            destination: OverlayIp(Ipv6Addr::from(*bytes.get(24..)?.first_chunk::<16>()?).into()),
            protocol: *bytes.get(6)?,
            header: bytes.get(..IPV6_HEADER)?,
            payload: bytes.get(IPV6_HEADER..IPV6_HEADER + payload)?,
        })
    }
}

/// Whether `address` means several nodes: multicast, or the broadcast address of `network`.
pub fn is_for_many(address: OverlayIp, network: &IpNet) -> bool {
    match (address.0, network) {
        (IpAddr::V4(to), IpNet::V4(network)) => {
            to.is_multicast() || to.is_broadcast() || (to == network.broadcast() && network.prefix_len() < 31)
        }
        (to, _) => to.is_multicast(),
    }
}

/// Writes the header of a packet with `payload` bytes of `protocol` behind it, and returns its length.
/// None if the two addresses are of different families or `out` is too small.
pub fn write_header(from: OverlayIp, to: OverlayIp, protocol: u8, payload: usize, out: &mut [u8]) -> Option<usize> {
    const HOPS: u8 = 64;
    match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = out.get_mut(..IPV4_HEADER)?;
            let total = u16::try_from(IPV4_HEADER + payload).ok()?;
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[6] = 0x40;
            header[8] = HOPS;
            header[9] = protocol;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = Sum::of(header).checksum();
            header[10..12].copy_from_slice(&sum);
            Some(IPV4_HEADER)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = out.get_mut(..IPV6_HEADER)?;
            header.fill(0);
            header[0] = 0x60;
            header[4..6].copy_from_slice(&u16::try_from(payload).ok()?.to_be_bytes());
            header[6] = protocol;
            header[7] = HOPS;
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            Some(IPV6_HEADER)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn ip(text: &str) -> OverlayIp {
        OverlayIp(text.parse().unwrap())
    }

    #[test]
    fn the_broadcast_address_of_the_network_is_for_many_and_its_members_are_not() {
        let network = "10.42.0.0/16".parse().unwrap();

        assert!(is_for_many(ip("10.42.255.255"), &network));
        assert!(is_for_many(ip("224.0.0.22"), &network));
        assert!(is_for_many(ip("ff02::2"), &network));
        assert!(!is_for_many(ip("10.42.0.255"), &network));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in vec(any::<u8>(), 0..120)) {
            let _ = IpPacket::parse(&bytes);
        }

        #[test]
        fn a_written_header_is_read_back(v6 in any::<bool>(), from in any::<u32>(), to in any::<u32>(), payload in 0usize..1400) {
            let address = |bits: u32| match v6 {
                true => OverlayIp(Ipv6Addr::from_bits(u128::from(bits) << 64).into()),
                false => OverlayIp(Ipv4Addr::from_bits(bits).into()),
            };
            let mut bytes = vec![0xff; 1500];

            let header = write_header(address(from), address(to), 17, payload, &mut bytes).unwrap();
            let packet = IpPacket::parse(&bytes[..header + payload]).unwrap();

            prop_assert_eq!((packet.source, packet.destination), (address(from), address(to)));
            prop_assert_eq!((packet.protocol, packet.payload.len()), (17, payload));
            prop_assert!(v6 || Sum::of(&bytes[..header]).is_valid());
        }

        #[test]
        fn a_packet_cut_short_is_no_packet(payload in 1usize..100, cut in 1usize..100) {
            let mut bytes = vec![0; 200];
            let header = write_header(ip("10.42.0.1"), ip("10.42.0.2"), 6, payload, &mut bytes).unwrap();

            let cut = (header + payload).saturating_sub(cut);

            prop_assert!(IpPacket::parse(&bytes[..cut]).is_none());
        }
    }
}
