//! The UDP socket: one port for WireGuard and introductions, over IPv4 and IPv6.

use std::{
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use crate::overlay::{Dropped, batch::Transmit, endpoints::Families, path::canonical};

/// What the kernel keeps for us while we do something else: about 40 ms at 1.5 Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// Buffers received at once …
const BUFFERS: usize = 8;
/// … each large enough for what the kernel puts together from one sender (UDP GRO).
const BUFFER_BYTES: usize = 1 << 16;

/// Let routers cut our datagrams into pieces where a path takes less than the link we are on: slower than knowing the
/// path's MTU, but large packets arrive. quinn-udp forbids it, because QUIC probes.
#[derive(Clone, Copy, Debug)]
struct Fragmentation;
nix::setsockopt_impl!(Fragmentation, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int, SetInt);

/// The same for IPv6, where only the sender may cut …
#[derive(Clone, Copy, Debug)]
struct FragmentationV6;
nix::setsockopt_impl!(FragmentationV6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::c_int, SetInt);

/// … unless this forbids it.
#[derive(Clone, Copy, Debug)]
struct NoFragmentationV6;
nix::setsockopt_impl!(NoFragmentationV6, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, libc::c_int, SetInt);

type SetInt<'a> = sockopt::SetStruct<'a, libc::c_int>;

/// Datagrams in and out.
pub trait Udp: Send {
    /// Waits for datagrams and takes those that are there. Cancel-safe.
    fn recv(&mut self, into: &mut Received) -> impl Future<Output = io::Result<()>> + Send;
    /// Sends. A refusal is a fact about the path.
    fn send(&mut self, transmit: &Transmit<'_>) -> impl Future<Output = Result<(), Dropped>> + Send;
}

/// What was received at once, in memory that is taken once.
pub struct Received {
    bytes: Vec<Box<[u8]>>,
    filled: Vec<Filled>,
}

struct Filled {
    from: SocketAddr,
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
            bytes: (0..BUFFERS).map(|_| vec![0; BUFFER_BYTES].into()).collect(),
            filled: Vec::with_capacity(BUFFERS),
        }
    }
}

impl Received {
    /// What is there.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer<'_>> {
        self.filled.iter().zip(&self.bytes).map(|(filled, bytes)| Buffer {
            from: filled.from,
            bytes: &bytes[..filled.len],
            segment: filled.segment,
        })
    }

    /// Puts one datagram in place of what was there.
    #[cfg(test)]
    pub fn replace(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.bytes[0][..datagram.len()].copy_from_slice(datagram);
        self.filled.clear();
        self.filled.push(Filled { from, len: datagram.len(), segment: datagram.len() });
    }
}

impl<'a> Buffer<'a> {
    /// The single datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// The socket.
pub struct UnderlaySocket {
    socket: UdpSocket,
    state: UdpSocketState,
    families: Families,
}

impl UnderlaySocket {
    /// Binds to `port` of all addresses of both families, or of IPv4 alone where the machine has no IPv6.
    pub fn bind(port: u16) -> io::Result<UnderlaySocket> {
        match UnderlaySocket::bind_families(port, Families::Both) {
            Err(error) if error.raw_os_error() != Some(libc::EADDRINUSE) => {
                tracing::debug!(%error, "no IPv6, IPv4 only");
                UnderlaySocket::bind_families(port, Families::V4)
            }
            done => done,
        }
    }

    pub(super) fn bind_families(port: u16, families: Families) -> io::Result<UnderlaySocket> {
        let socket = match families {
            Families::Both => bind_both(port)?,
            Families::V4 => bind_v4(port)?,
        };
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        }
        let state = UdpSocketState::new((&socket).into())?;
        setsockopt(&socket, Fragmentation, &libc::IP_PMTUDISC_DONT)?;
        if families == Families::Both {
            setsockopt(&socket, FragmentationV6, &libc::IPV6_PMTUDISC_WANT)?;
            setsockopt(&socket, NoFragmentationV6, &0)?;
        }
        Ok(UnderlaySocket { socket: UdpSocket::from_std(socket.into())?, state, families })
    }

    /// The port it got.
    pub fn port(&self) -> io::Result<u16> {
        self.socket.local_addr().map(|address| address.port())
    }

    /// What it speaks.
    pub fn families(&self) -> Families {
        self.families
    }

    async fn try_send(&self, to: SocketAddr, contents: &[u8], segment: Option<usize>) -> io::Result<()> {
        let transmit =
            quinn_udp::Transmit { destination: to, ecn: None, contents, segment_size: segment, src_ip: None };
        self.socket.async_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit)).await
    }
}

impl Udp for UnderlaySocket {
    async fn recv(&mut self, into: &mut Received) -> io::Result<()> {
        let Received { bytes, filled } = into;
        filled.clear();
        let mut metas = [RecvMeta::default(); BUFFERS];
        let count = self
            .socket
            .async_io(Interest::READABLE, || {
                let mut slices = bytes.iter_mut().map(|buffer| IoSliceMut::new(buffer));
                let mut slices: [IoSliceMut<'_>; BUFFERS] =
                    std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
                self.state.recv((&self.socket).into(), &mut slices, &mut metas)
            })
            .await?;
        filled.extend(metas[..count].iter().map(|meta| Filled {
            from: canonical(meta.addr),
            len: meta.len,
            segment: meta.stride,
        }));
        Ok(())
    }

    /// Several datagrams leave as one segmented send, or singly where the kernel does not take that.
    async fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), Dropped> {
        let to = match (self.families, transmit.to) {
            (Families::Both, SocketAddr::V4(to)) => SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port()),
            (Families::V4, SocketAddr::V6(_)) => return Err(Dropped::Unreachable),
            (Families::Both, SocketAddr::V6(_)) | (Families::V4, SocketAddr::V4(_)) => transmit.to,
        };
        let several = transmit.payload.len() > transmit.segment;
        if several && self.state.max_gso_segments() > 1 {
            match self.try_send(to, transmit.payload, Some(transmit.segment)).await {
                Ok(()) => return Ok(()),
                Err(error) if is_about_segments(&error) => tracing::debug!(%error, "segmented send refused"),
                Err(error) => return Err(reason(&error)),
            }
        }
        let mut result = Ok(());
        for datagram in transmit.datagrams() {
            if let Err(error) = self.try_send(to, datagram, None).await {
                result = Err(reason(&error));
            }
        }
        result
    }
}

/// Whether the same datagrams may pass one by one.
fn is_about_segments(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

fn reason(error: &io::Error) -> Dropped {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Dropped::TooBig,
        Some(_) | None => Dropped::Unreachable,
    }
}

fn bind_both(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into())?;
    Ok(socket)
}

fn bind_v4(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into())?;
    Ok(socket)
}
