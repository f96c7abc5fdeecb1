//! Many packets as one, and back: what passes between us and the kernel's TUN device in one read or write.
//!
//! ```text
//! out  one frame ──Cut──► the packets it stands for, checksums complete   (TSO and USO, done here)
//! in   packets of one batch ──Join──► frames, each with packets of one flow (GRO, done here)
//! ```
//!
//! A frame is a [`VirtioHeader`] and a packet. No byte of payload is copied either way: a cut packet gets its headers in
//! front of its payload where that lies, and a joined one is written in pieces.
//!
//! **Invariants**, each held by properties in the tests:
//! - nothing here panics, whatever the bytes
//! - what is cut is what the kernel would have sent without the offload: well-formed, checksums right, nothing left out
//! - what is joined and cut again is what it was, but for IDs of IPv4 packets that must not be fragmented anyway
//! - a checksum is left for the kernel to complete only where it was verified here: else the kernel would repair
//!   corrupted data silently
//! - packets of one flow keep their order

mod checksum;
mod cut;
mod flow;
mod join;
#[cfg(test)]
pub mod tests;
mod virtio;

pub use self::{
    checksum::Sum,
    cut::{Cut, Malformed},
    join::{Join, Joined, MAX_PIECES, Takes},
    virtio::{VIRTIO_HEADER, VirtioHeader},
};

const TCP: u8 = 6;
const UDP: u8 = 17;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Where the checksum is, in the header of TCP and of UDP.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Where the flags of TCP are, and what they mean.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Some bytes of `bytes`, which has them.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// Writes two bytes into `bytes`, which has them.
fn put(bytes: &mut [u8], at: usize, two: [u8; 2]) {
    bytes[at..at + 2].copy_from_slice(&two);
}
