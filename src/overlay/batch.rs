//! Packets on their way out of the machine, side by side in memory that is taken once.
//!
//! A batch is filled by the machine, drained by the loop, and then begins again at its start, so that in steady state
//! nothing is allocated. Datagrams of one size to one endpoint that follow one another lie contiguously and leave as
//! one [`Transmit`]: the kernel cuts them apart again (UDP GSO).

use std::{net::SocketAddr, ops::Range};

use super::session::OVERHEAD;

/// Room for a full batch read from the TUN device. One received buffer of 64 KiB, decrypted, takes a fourth of it.
pub const BATCH_BYTES: usize = 256 * 1024;
/// The same batch encrypted, and room for handshakes and introductions beside it.
pub const TRANSMIT_BYTES: usize = BATCH_BYTES + 64 * 1024;
/// More than fit as small packets into what is read at once; beyond it packets are dropped.
pub const BATCH_PACKETS: usize = 2048;
/// What the kernel takes as one segmented send: at most this many segments …
pub const MAX_SEGMENTS: usize = 64;
/// … and at most this many bytes, headers of IPv6 and UDP allowed for.
pub const MAX_SEGMENTED_BYTES: usize = 65_000;

/// Headers of TCP over IPv6, and about as many of TCP over IPv4 with the usual options.
const TCP_HEADERS: usize = 60;

/// Bytes of the largest packet that the kernel should hand over, where packets of `mtu` bytes leave: what it is cut into
/// then leaves in one segmented send, and not in one and a small rest.
pub fn largest_packet(mtu: u16) -> u32 {
    let mtu = usize::from(mtu);
    let segments = (MAX_SEGMENTED_BYTES / (mtu + OVERHEAD)).clamp(1, MAX_SEGMENTS);
    (segments * mtu.saturating_sub(TCP_HEADERS)) as u32
}

/// Datagrams for the UDP socket.
pub struct Transmits {
    bytes: Box<[u8]>,
    used: usize,
    entries: Vec<Entry>,
    taken: usize,
}

/// One or more datagrams for one endpoint: `payload` cut into pieces of `segment` bytes, the last maybe shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// All datagrams, one behind the other.
    pub payload: &'a [u8],
    /// The size of each but the last.
    pub segment: usize,
}

struct Entry {
    to: SocketAddr,
    start: usize,
    len: usize,
    segment: usize,
}

impl Transmits {
    /// Empty, with all the memory it will ever use.
    pub fn new() -> Transmits {
        Transmits {
            bytes: vec![0; TRANSMIT_BYTES].into(),
            used: 0,
            entries: Vec::with_capacity(BATCH_PACKETS),
            taken: 0,
        }
    }

    /// Where the next datagram is to be written; None if `len` bytes have no room until the batch is drained.
    pub fn spare(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.taken == self.entries.len() {
            self.entries.clear();
            (self.used, self.taken) = (0, 0);
        }
        let full = self.entries.len() == BATCH_PACKETS || self.bytes.len() - self.used < len;
        (!full).then(|| &mut self.bytes[self.used..])
    }

    /// The first `len` bytes of [`Transmits::spare`] are a datagram for `to`.
    pub fn push(&mut self, len: usize, to: SocketAddr) {
        let start = self.used;
        self.used += len;
        if let Some(last) = self.entries[self.taken..].last_mut()
            && last.takes(len, to)
        {
            last.len += len;
            return;
        }
        self.entries.push(Entry { to, start, len, segment: len });
    }

    /// Copies a datagram in. False if there is no room.
    pub fn copy(&mut self, datagram: &[u8], to: SocketAddr) -> bool {
        let Some(spare) = self.spare(datagram.len()) else {
            return false;
        };
        spare[..datagram.len()].copy_from_slice(datagram);
        self.push(datagram.len(), to);
        true
    }

    /// The next to send.
    pub fn pop(&mut self) -> Option<Transmit<'_>> {
        let entry = self.entries.get(self.taken)?;
        self.taken += 1;
        Some(Transmit {
            to: entry.to,
            payload: &self.bytes[entry.start..entry.start + entry.len],
            segment: entry.segment,
        })
    }

    /// Bytes that can still be written before the batch must be drained.
    pub fn room(&self) -> usize {
        match self.taken == self.entries.len() {
            true => self.bytes.len(),
            false => self.bytes.len() - self.used,
        }
    }
}

impl Entry {
    /// Whether a datagram of `len` bytes for `to` can join: only behind full segments, and not a larger one.
    fn takes(&self, len: usize, to: SocketAddr) -> bool {
        self.to == to
            && len <= self.segment
            && self.len.is_multiple_of(self.segment)
            && self.len / self.segment < MAX_SEGMENTS
            && self.len + len <= MAX_SEGMENTED_BYTES
    }
}

impl<'a> Transmit<'a> {
    /// The single datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.payload.chunks(self.segment.max(1))
    }
}

/// Packets from or for the TUN device.
pub struct Packets {
    bytes: Box<[u8]>,
    used: usize,
    lengths: Vec<usize>,
    taken: usize,
    taken_bytes: usize,
}

impl Packets {
    /// Empty, with all the memory it will ever use.
    pub fn new() -> Packets {
        Packets {
            bytes: vec![0; BATCH_BYTES].into(),
            used: 0,
            lengths: Vec::with_capacity(BATCH_PACKETS),
            taken: 0,
            taken_bytes: 0,
        }
    }

    /// Where the next packet is to be written; None if `len` bytes have no room until the batch is drained.
    pub fn spare(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.taken == self.lengths.len() {
            self.lengths.clear();
            (self.used, self.taken, self.taken_bytes) = (0, 0, 0);
        }
        let full = self.lengths.len() == BATCH_PACKETS || self.bytes.len() - self.used < len;
        (!full).then(|| &mut self.bytes[self.used..])
    }

    /// Bytes that can still be written before the batch must be drained.
    pub fn room(&self) -> usize {
        match self.lengths.len() == BATCH_PACKETS {
            true => 0,
            false => self.bytes.len() - self.used,
        }
    }

    /// The first `len` bytes of [`Packets::spare`] are a packet. Where it lies in [`Packets::bytes`].
    pub fn push(&mut self, len: usize) -> Range<usize> {
        let start = self.used;
        self.used += len;
        self.lengths.push(len);
        start..self.used
    }

    /// The next to write.
    pub fn pop(&mut self) -> Option<&[u8]> {
        self.pop_mut().map(|packet| &*packet)
    }

    /// The next to write, or to change and write.
    pub fn pop_mut(&mut self) -> Option<&mut [u8]> {
        let len = *self.lengths.get(self.taken)?;
        let start = self.taken_bytes;
        self.taken += 1;
        self.taken_bytes += len;
        Some(&mut self.bytes[start..start + len])
    }

    /// All packets, one behind the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All packets, to change them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.lengths.clear();
        (self.used, self.taken, self.taken_bytes) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn datagrams_of_one_size_to_one_endpoint_leave_together_and_in_order() {
        let mut batch = Transmits::new();
        for (datagram, port) in [("aaa", 1), ("bbb", 1), ("c", 1), ("ddd", 1), ("eee", 2), ("ffff", 2)] {
            assert!(batch.copy(datagram.as_bytes(), to(port)));
        }

        let mut sent = Vec::new();
        while let Some(transmit) = batch.pop() {
            let datagrams: Vec<_> = transmit.datagrams().map(|d| String::from_utf8_lossy(d).into_owned()).collect();
            sent.push((transmit.to.port(), datagrams.join(" ")));
        }

        assert_eq!(sent, [(1, "aaa bbb c".into()), (1, "ddd".into()), (2, "eee".into()), (2, "ffff".into())]);
    }

    #[test]
    fn a_segmented_send_never_exceeds_what_the_kernel_takes() {
        let mut batch = Transmits::new();
        for _ in 0..150 {
            assert!(batch.copy(&[7; 1452], to(1)));
        }

        let mut datagrams = 0;
        while let Some(transmit) = batch.pop() {
            assert!(transmit.payload.len() <= MAX_SEGMENTED_BYTES);
            assert!(transmit.datagrams().count() <= MAX_SEGMENTS);
            datagrams += transmit.datagrams().count();
        }

        assert_eq!(datagrams, 150);
    }

    #[test]
    fn the_largest_packet_of_the_kernel_leaves_in_one_send() {
        for mtu in [1280, 1420, 8920] {
            let payload = usize::from(mtu) - TCP_HEADERS;
            let segments = (largest_packet(mtu) as usize).div_ceil(payload);

            assert!(segments <= MAX_SEGMENTS && segments * (usize::from(mtu) + OVERHEAD) <= MAX_SEGMENTED_BYTES);
            assert!(largest_packet(mtu) > 50_000);
        }
    }

    #[test]
    fn a_full_batch_has_room_again_once_it_is_drained() {
        let (mut transmits, mut packets) = (Transmits::new(), Packets::new());
        while transmits.copy(&[1; 60_000], to(1)) {}
        while packets.spare(60_000).is_some() {
            packets.push(60_000);
        }

        while transmits.pop().is_some() {}
        while packets.pop().is_some() {}

        assert!(transmits.copy(&[1; 60_000], to(1)));
        assert!(packets.spare(60_000).is_some());
    }
}
