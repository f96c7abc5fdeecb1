//! Packets made the long way round: every field written down, every checksum summed by the book.

use crate::overlay::offload::virtio::{Kind, Several, Unfinished, VirtioHeader};

/// A packet, or one that stands for many.
#[derive(Clone, Debug)]
pub struct Plan {
    pub v6: bool,
    pub transport: Transport,
    /// TOS or traffic class.
    pub class: u8,
    pub hops: u8,
    /// Only IPv4.
    pub id: u16,
    pub dont_fragment: bool,
    /// Only IPv4, a multiple of four.
    pub ip_options: Vec<u8>,
    /// Only IPv6: whole extension headers, each with its type.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub from: u8,
    pub to: u8,
    pub ports: (u16, u16),
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Transport {
    Tcp { sequence: u32, acknowledged: u32, flags: u8, reserved: u8, window: u16, urgent: u16, options: Vec<u8> },
    Udp,
}

/// Whether the checksum of the transport is finished.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    Complete,
    Unfinished,
}

pub fn tcp(sequence: u32, payload: &[u8]) -> Plan {
    let options = vec![1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4];
    let transport =
        Transport::Tcp { sequence, acknowledged: 7, flags: 0x10, reserved: 0, window: 512, urgent: 0, options };
    Plan {
        v6: false,
        transport,
        class: 0,
        hops: 64,
        id: 0,
        dont_fragment: true,
        ip_options: vec![],
        extensions: vec![],
        from: 1,
        to: 2,
        ports: (40_000, 443),
        payload: payload.to_vec(),
    }
}

pub fn udp(payload: &[u8]) -> Plan {
    Plan { transport: Transport::Udp, ..tcp(0, payload) }
}

/// Payload that shows when something is missing, doubled or swapped.
pub fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8 ^ seed)).collect()
}

impl Plan {
    pub fn with(&self, change: impl FnOnce(&mut Plan)) -> Plan {
        let mut plan = self.clone();
        change(&mut plan);
        plan
    }

    pub fn with_flags(&self, new: u8) -> Plan {
        self.with(|plan| {
            if let Transport::Tcp { flags, .. } = &mut plan.transport {
                *flags = new;
            }
        })
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.build(Checksum::Complete)
    }

    /// A frame as the kernel hands it over: virtio header, and one packet that stands for many.
    pub fn frame(&self, size: u16) -> Vec<u8> {
        let kind = match (&self.transport, self.v6) {
            (Transport::Tcp { .. }, false) => Kind::TcpV4,
            (Transport::Tcp { .. }, true) => Kind::TcpV6,
            (Transport::Udp, _) => Kind::Udp,
        };
        let unfinished = Unfinished { start: self.transport_at() as u16, offset: self.checksum_offset() as u16 };
        let several = Several { kind, size, headers: self.headers() as u16 };
        let header = VirtioHeader { unfinished: Some(unfinished), several: Some(several) };
        [&header.to_bytes()[..], &self.build(Checksum::Unfinished)].concat()
    }

    /// The packets that such a frame stands for, each built by itself.
    pub fn segments(&self, size: u16) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = match self.payload.is_empty() {
            true => vec![&[]],
            false => self.payload.chunks(usize::from(size)).collect(),
        };
        let last = pieces.len() - 1;
        let segment = |(index, piece): (usize, &&[u8])| {
            let mut plan = self.with(|plan| plan.payload = piece.to_vec());
            plan.id = self.id.wrapping_add(index as u16);
            if let Transport::Tcp { sequence, flags, .. } = &mut plan.transport {
                *sequence = sequence.wrapping_add((index * usize::from(size)) as u32);
                if index != 0 {
                    *flags &= !0x80;
                }
                if index != last {
                    *flags &= !0x09;
                }
            }
            plan.bytes()
        };
        pieces.iter().enumerate().map(segment).collect()
    }

    pub fn transport_at(&self) -> usize {
        match self.v6 {
            true => 40 + self.extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
            false => 20 + self.ip_options.len(),
        }
    }

    pub fn headers(&self) -> usize {
        self.transport_at()
            + match &self.transport {
                Transport::Tcp { options, .. } => 20 + options.len(),
                Transport::Udp => 8,
            }
    }

    pub fn build(&self, checksum: Checksum) -> Vec<u8> {
        let transport = self.build_transport();
        let (source, destination) = self.addresses();
        let pseudo_header =
            [&source[..], &destination, &[0, self.protocol()], &(transport.len() as u32).to_be_bytes()].concat();
        let sum = match checksum {
            Checksum::Complete => !sum([&pseudo_header[..], &transport].concat()),
            Checksum::Unfinished => sum(pseudo_header),
        };
        let sum = if sum == 0 && matches!(self.transport, Transport::Udp) { 0xffff } else { sum };

        let mut packet = self.build_network(transport.len());
        let at = packet.len() + self.checksum_offset();
        packet.extend(transport);
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn build_transport(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        match &self.transport {
            Transport::Tcp { sequence, acknowledged, flags, reserved, window, urgent, options } => {
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledged.to_be_bytes());
                bytes.push((5 + options.len() as u8 / 4) << 4 | reserved);
                bytes.push(*flags);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(urgent.to_be_bytes());
                bytes.extend(options);
            }
            Transport::Udp => {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn build_network(&self, transport: usize) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut bytes = Vec::new();
        if self.v6 {
            let extensions = self.transport_at() - 40;
            bytes.extend([0x60 | self.class >> 4, self.class << 4, 0x12, 0x34]);
            bytes.extend(((extensions + transport) as u16).to_be_bytes());
            bytes.push(self.extensions.first().map_or(self.protocol(), |(kind, _)| *kind));
            bytes.push(self.hops);
            bytes.extend(source);
            bytes.extend(destination);
            for (index, (_, extension)) in self.extensions.iter().enumerate() {
                bytes.push(self.extensions.get(index + 1).map_or(self.protocol(), |(kind, _)| *kind));
                bytes.extend(&extension[1..]);
            }
        } else {
            bytes.extend([0x45 + self.ip_options.len() as u8 / 4, self.class]);
            bytes.extend(((20 + self.ip_options.len() + transport) as u16).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hops, self.protocol(), 0, 0]);
            bytes.extend(source);
            bytes.extend(destination);
            bytes.extend(&self.ip_options);
            let sum = !sum(bytes.clone());
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        let address = |last: u8| match self.v6 {
            true => [&[0xfd, 0, 0, 1][..], &[0; 11], &[last]].concat(),
            false => vec![10, 42, 0, last],
        };
        (address(self.from), address(self.to))
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp => 17,
        }
    }

    fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp => 6,
        }
    }
}

/// The one's complement sum, word by word.
pub fn sum(bytes: Vec<u8>) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether a packet is what a careful receiver takes: lengths as they should be, all checksums right. Written without
/// what is tested.
pub fn is_well_formed(packet: &[u8]) -> bool {
    let (at, protocol, addresses) = match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            if usize::from(u16::from_be_bytes([packet[2], packet[3]])) != packet.len()
                || sum(packet[..header].to_vec()) != 0xffff
            {
                return false;
            }
            (header, packet[9], &packet[12..20])
        }
        _ => {
            if usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40 != packet.len() {
                return false;
            }
            let (mut at, mut next) = (40, packet[6]);
            while matches!(next, 0 | 43 | 60) {
                (next, at) = (packet[at], at + usize::from(packet[at + 1]) * 8 + 8);
            }
            (at, next, &packet[8..40])
        }
    };
    let transport = &packet[at..];
    if protocol == 17 && usize::from(u16::from_be_bytes([transport[4], transport[5]])) != transport.len() {
        return false;
    }
    sum([addresses, &[0, protocol], &(transport.len() as u32).to_be_bytes(), transport].concat()) == 0xffff
}
