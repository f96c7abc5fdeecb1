//! What one call received: buffers of datagrams, in memory that is taken once.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use super::abi;
use crate::overlay::io::sys::{self, MAX_RECEIVED, Slot};

/// The largest datagram there is, and the most that the kernel puts together from one sender (UDP GRO).
const BUFFER_BYTES: usize = 1 << 16;
/// Buffers offered to the kernel while it fills them well: what is used again at once is still in the CPU's cache.
const FEW: usize = 1;
/// From this average on, buffers are filled well. Below, one call should bring many small datagrams.
const WELL_FILLED_BYTES: usize = 8 * 1024;

/// What was received at once, in memory that is taken once.
pub struct Received {
    /// [`MAX_RECEIVED`] buffers in one piece: what is never written to costs no memory.
    bytes: Box<[u8]>,
    slots: [Slot; MAX_RECEIVED],
    filled: Vec<Filled>,
    offer: usize,
}

struct Filled {
    from: SocketAddr,
    buffer: usize,
    len: usize,
    segment: usize,
}

/// Datagrams of one sender, one behind the other.
pub struct Buffer<'a> {
    /// The sender.
    pub from: SocketAddr,
    bytes: &'a [u8],
    segment: usize,
}

impl Default for Received {
    fn default() -> Received {
        Received {
            bytes: vec![0; MAX_RECEIVED * BUFFER_BYTES].into(),
            slots: [const { Slot::EMPTY }; MAX_RECEIVED],
            filled: Vec::with_capacity(MAX_RECEIVED),
            offer: FEW,
        }
    }
}

impl Received {
    /// What is there, in the order of arrival.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer<'_>> {
        self.filled.iter().map(|filled| Buffer {
            from: filled.from,
            bytes: &self.bytes[filled.buffer * BUFFER_BYTES..][..filled.len],
            segment: filled.segment,
        })
    }

    /// Whether nothing was received.
    pub fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Nothing received.
    pub fn clear(&mut self) {
        self.filled.clear();
    }

    /// One datagram more; [`MAX_RECEIVED`] have room.
    #[cfg(test)]
    pub fn push(&mut self, from: SocketAddr, datagram: &[u8]) {
        let buffer = self.filled.len();
        self.bytes[buffer * BUFFER_BYTES..][..datagram.len()].copy_from_slice(datagram);
        self.filled.push(Filled { from, buffer, len: datagram.len(), segment: datagram.len() });
    }

    /// Waits for datagrams and takes those that are there, in place of what was there.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.filled.clear();
        let count = sys::receive(socket, &mut self.bytes, BUFFER_BYTES, &mut self.slots[..self.offer])?;
        for (buffer, slot) in self.slots[..count].iter().enumerate() {
            // Without sender: the socket was shut down.
            if let Some(from) = abi::sender(slot.address())
                && !slot.is_cut_short()
            {
                let segment = abi::segment_size(slot.control(), slot.len());
                self.filled.push(Filled { from, buffer, len: slot.len(), segment });
            }
        }
        let bytes = self.slots[..count].iter().map(Slot::len).sum();
        self.offer = offer(self.offer, count, bytes);
        Ok(())
    }
}

impl<'a> Buffer<'a> {
    /// Of all datagrams.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The single datagrams.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// How many buffers the next call should offer, after one that offered `offered` and filled `count` with `bytes`.
fn offer(offered: usize, count: usize, bytes: usize) -> usize {
    if bytes >= count * WELL_FILLED_BYTES {
        FEW
    } else if count == offered {
        (2 * offered).min(MAX_RECEIVED)
    } else {
        offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_datagrams_come_at_once_and_large_ones_in_few_buffers() {
        let mut offered = FEW;
        for _ in 0..10 {
            offered = offer(offered, offered, offered * 200);
        }
        assert_eq!(offered, MAX_RECEIVED);

        assert_eq!(offer(offered, 1, 200), MAX_RECEIVED);
        assert_eq!(offer(offered, 3, 3 * 60_000), FEW);
        assert_eq!(offer(FEW, FEW, FEW * 60_000), FEW);
    }
}
