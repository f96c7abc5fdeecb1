//! What stands in front of every packet on the TUN device: `struct virtio_net_hdr`, from Linux
//! `include/uapi/linux/virtio_net.h`. Ten bytes, numbers in the order of the machine.
//!
//! | at | bytes | field         |                                                                                       |
//! |----|-------|---------------|---------------------------------------------------------------------------------------|
//! | 0  | 1     | `flags`       | 1: the transport's checksum is unfinished; others mean nothing to us                  |
//! | 1  | 1     | `gso_type`    | 0 one packet, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP; 0x80 added to TCP: CWR is set  |
//! | 2  | 2     | `hdr_len`     | bytes of all headers; from the kernel just how its buffer is laid out                 |
//! | 4  | 2     | `gso_size`    | payload of each packet but the last, never 0 if there are several                     |
//! | 6  | 2     | `csum_start`  | where the sum begins: at the transport header                                         |
//! | 8  | 2     | `csum_offset` | how far behind that the checksum is to be written; until then the sum of the pseudo header is there |

/// Bytes of the header.
pub const VIRTIO_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the header says. The default says nothing: one packet, complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// The checksum that is still to be completed.
    pub unfinished: Option<Unfinished>,
    /// The packet stands for several.
    pub several: Option<Several>,
}

/// A checksum to be completed: sum what follows `start`, write it `offset` behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// From the beginning of the packet.
    pub start: u16,
    /// From `start`.
    pub offset: u16,
}

/// How a packet that stands for several is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Several {
    /// Of what.
    pub kind: Kind,
    /// Bytes of payload in each but the last.
    pub size: u16,
    /// Bytes of all headers. From the kernel a hint, and not to be trusted.
    pub headers: u16,
}

/// What can stand for several packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either.
    Udp,
}

impl VirtioHeader {
    /// One packet, complete.
    pub const NONE: VirtioHeader = VirtioHeader { unfinished: None, several: None };

    /// None if it asks for something that was not agreed upon, or is cut short.
    pub fn parse(bytes: &[u8]) -> Option<VirtioHeader> {
        let [flags, kind, rest @ ..] = *bytes.first_chunk::<VIRTIO_HEADER>()?;
        let number = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let kind = match kind {
            GSO_NONE => None,
            GSO_UDP_L4 => Some(Kind::Udp),
            kind if kind & !GSO_ECN == GSO_TCP_V4 => Some(Kind::TcpV4),
            kind if kind & !GSO_ECN == GSO_TCP_V6 => Some(Kind::TcpV6),
            _ => return None,
        };
        let several = kind.map(|kind| Several { kind, headers: number(0), size: number(2) });
        if several.is_some_and(|several| several.size == 0) {
            return None;
        }
        let unfinished = Unfinished { start: number(4), offset: number(6) };
        Some(VirtioHeader { unfinished: (flags & NEEDS_CSUM != 0).then_some(unfinished), several })
    }

    /// As it is written.
    pub fn to_bytes(self) -> [u8; VIRTIO_HEADER] {
        let mut bytes = [0; VIRTIO_HEADER];
        if let Some(Several { kind, size, headers }) = self.several {
            bytes[1] = match kind {
                Kind::TcpV4 => GSO_TCP_V4,
                Kind::TcpV6 => GSO_TCP_V6,
                Kind::Udp => GSO_UDP_L4,
            };
            bytes[2..4].copy_from_slice(&headers.to_ne_bytes());
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        if let Some(Unfinished { start, offset }) = self.unfinished {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn one_complete_packet_is_all_zeros() {
        assert_eq!(VirtioHeader::NONE.to_bytes(), [0; VIRTIO_HEADER]);
        assert_eq!(VirtioHeader::parse(&[0; VIRTIO_HEADER]), Some(VirtioHeader::NONE));
    }

    #[test]
    fn what_was_not_agreed_upon_is_refused() {
        let with = |kind: u8, size: u8| VirtioHeader::parse(&[0, kind, 0, 0, size, size, 0, 0, 0, 0]);

        for known in [GSO_NONE, GSO_TCP_V4, GSO_TCP_V6, GSO_UDP_L4, GSO_ECN | GSO_TCP_V4, GSO_ECN | GSO_TCP_V6] {
            assert!(with(known, 1).is_some(), "{known}");
        }
        let unknown = (0..=255).filter(|kind| with(*kind, 1).is_none()).count();
        assert_eq!(unknown, 256 - 6);
        assert_eq!(with(GSO_TCP_V4, 0), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_is_read_back(bytes in vec(any::<u8>(), 0..20), kind in 0u8..6) {
            let mut known = bytes.clone();
            known.iter_mut().skip(1).take(1).for_each(|byte| *byte = kind);

            for bytes in [bytes, known] {
                if let Some(header) = VirtioHeader::parse(&bytes) {
                    prop_assert_eq!(VirtioHeader::parse(&header.to_bytes()), Some(header));
                }
            }
        }
    }
}
