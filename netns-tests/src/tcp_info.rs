//! What the kernel knows about a TCP connection: retransmissions, and whether packets came in their order.

use std::os::fd::AsFd;

use anyhow::Context;
use nix::sys::socket::getsockopt;

/// `struct tcp_info` up to the last field that is of interest here, as the kernel fills it in since Linux 5.4.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpInfo {
    bytes: [u8; 8],
    words: [u32; 23],
    total_retrans: u32,
    pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    notsent_bytes: u32,
    min_rtt: u32,
    data_segments: [u32; 2],
    delivery_rate: u64,
    limits: [u64; 3],
    delivered: [u32; 2],
    bytes_sent: u64,
    bytes_retrans: u64,
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
}

#[derive(Clone, Copy, Debug)]
struct Information;
nix::getsockopt_impl!(
    Information,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    TcpInfo,
    nix::sys::socket::sockopt::GetStruct<TcpInfo>
);

impl TcpInfo {
    /// Of a connection as it is.
    pub fn of(stream: &impl AsFd) -> anyhow::Result<TcpInfo> {
        getsockopt(stream, Information).context("asking for TCP_INFO")
    }

    /// Segments that were sent again, for whatever reason.
    pub fn retransmissions(&self) -> u32 {
        self.total_retrans
    }

    /// Segments that the other side says it had already: sent again for nothing.
    pub fn needless(&self) -> u32 {
        self.dsack_dups
    }

    /// How often a segment that was sent once only was acknowledged after a later one: the network changed the order.
    pub fn reorderings(&self) -> u32 {
        self.reord_seen
    }

    /// Segments that came before an earlier one: the order was changed, or the earlier one was lost.
    pub fn out_of_order(&self) -> u32 {
        self.rcv_ooopack
    }

    /// Bytes that the other side has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.bytes_acked
    }
}
