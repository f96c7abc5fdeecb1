//! The UDP socket: one port for WireGuard and introductions, over IPv4 and IPv6.
//!
//! ```text
//!  a run of datagrams ──► one send, which the kernel cuts (UDP GSO) ──refused──► one by one
//!  one receive ──► buffers, in each what one sender sent in a row (UDP GRO) ──► datagrams
//! ```

mod abi;
mod received;
mod refusals;
#[cfg(test)]
mod tests;

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::received::{Buffer, Received};
use self::refusals::{Refusal, Refusals};
use super::sys;
use crate::overlay::{
    Dropped, Offloads,
    batch::{MAX_SEGMENTED_BYTES, MAX_SEGMENTS, Transmit},
    endpoints::Families,
};

/// What the kernel keeps for us while we do something else: about 40 ms at 1.5 Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;

/// Let routers cut our datagrams into pieces where a path takes less than the link we are on: slower than knowing the
/// path's MTU, but large packets arrive.
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

/// Datagrams in and out, shared by threads.
pub trait Udp: Send + Sync + 'static {
    /// Waits for datagrams and takes those that are there; nothing, at once, after [`Udp::close`]. An error may pass:
    /// hold back a little before the next try, so that one that stays does not spin.
    fn recv(&self, into: &mut Received) -> io::Result<()>;
    /// Sends. A refusal is a fact about the path, but for [`Dropped::Congested`], which is one about this moment.
    fn send(&self, transmit: &Transmit<'_>, wait: Wait) -> Result<(), Dropped>;
    /// Ends receiving for good, also for a thread that waits for datagrams.
    fn close(&self);
}

/// What to do when the socket's buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait for room.
    Yes,
    /// Drop what is to be sent.
    No,
}

/// The socket.
#[derive(Debug)]
pub struct UnderlaySocket {
    socket: Socket,
    families: Families,
    /// None: every datagram is sent by itself.
    segments: Option<Refusals>,
    closed: AtomicBool,
}

impl UnderlaySocket {
    /// Binds to `port` of all addresses of both families, or of IPv4 alone where the machine has no IPv6.
    pub fn bind(port: u16, offloads: &Offloads) -> io::Result<UnderlaySocket> {
        match UnderlaySocket::bind_families(port, Families::Both, offloads) {
            Err(error) if error.raw_os_error() != Some(libc::EADDRINUSE) => {
                tracing::debug!(%error, "no IPv6, IPv4 only");
                UnderlaySocket::bind_families(port, Families::V4, offloads)
            }
            done => done,
        }
    }

    fn bind_families(port: u16, families: Families, offloads: &Offloads) -> io::Result<UnderlaySocket> {
        let socket = bound(port, families)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        }
        setsockopt(&socket, Fragmentation, &libc::IP_PMTUDISC_DONT)?;
        if families == Families::Both {
            setsockopt(&socket, FragmentationV6, &libc::IPV6_PMTUDISC_WANT)?;
            setsockopt(&socket, NoFragmentationV6, &0)?;
        }
        // A kernel that does not know the option would take the control message for nothing, and a whole run for one
        // datagram. Zero changes nothing for a kernel that does.
        let sends = offloads.udp_send && setsockopt(&socket, sockopt::UdpGsoSegment, &0).is_ok();
        let receives = offloads.udp_receive && setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
        tracing::debug!(?families, sends, receives, "UDP socket made: families, and segments both ways");
        let segments = sends.then(Refusals::new);
        Ok(UnderlaySocket { socket, families, segments, closed: AtomicBool::new(false) })
    }

    /// The port it got.
    pub fn port(&self) -> io::Result<u16> {
        let address = self.socket.local_addr()?.as_socket();
        address.map(|address| address.port()).ok_or_else(|| ErrorKind::AddrNotAvailable.into())
    }

    /// What it speaks.
    pub fn families(&self) -> Families {
        self.families
    }

    /// `to` as this socket has to be told it.
    fn target(&self, to: SocketAddr) -> Result<SocketAddr, Dropped> {
        match (self.families, to) {
            (Families::Both, SocketAddr::V4(to)) => Ok((to.ip().to_ipv6_mapped(), to.port()).into()),
            (Families::V4, SocketAddr::V6(_)) => Err(Dropped::Unreachable),
            (Families::Both, SocketAddr::V6(_)) | (Families::V4, SocketAddr::V4(_)) => Ok(to),
        }
    }

    /// Sends all in one. None: it has to be done singly.
    fn send_in_one(&self, to: SocketAddr, transmit: &Transmit<'_>, flags: libc::c_int) -> Option<Result<(), Dropped>> {
        let segments = self.segments.as_ref()?;
        let control = abi::cut_into(fitting_segment(transmit)?);
        if !segments.allow(to.ip()) {
            return None;
        }
        let error = match self.send_once(to, transmit.payload, &control.0, flags) {
            Ok(()) => return Some(Ok(())),
            Err(error) => error,
        };
        let Some(refusal) = Refusal::of(&error) else {
            return Some(Err(reason(&error)));
        };
        tracing::trace!(%error, ?refusal, "segmented send refused");
        segments.note(to.ip(), refusal);
        None
    }

    fn send_once(&self, to: SocketAddr, bytes: &[u8], control: &[u8], flags: libc::c_int) -> io::Result<()> {
        loop {
            match sys::send(self.socket.as_fd(), &to, bytes, control, flags) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Udp for UnderlaySocket {
    fn recv(&self, into: &mut Received) -> io::Result<()> {
        let result = loop {
            match into.fill(self.socket.as_fd()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => break done,
            }
        };
        if self.closed.load(Ordering::Acquire) {
            into.clear();
            return Ok(());
        }
        result
    }

    /// Several datagrams leave as one send, or singly where the kernel does not take that.
    fn send(&self, transmit: &Transmit<'_>, wait: Wait) -> Result<(), Dropped> {
        let to = self.target(transmit.to)?;
        let flags = match wait {
            Wait::Yes => 0,
            Wait::No => libc::MSG_DONTWAIT,
        };
        if let Some(done) = self.send_in_one(to, transmit, flags) {
            return done;
        }
        let mut result = Ok(());
        for datagram in transmit.datagrams() {
            if let Err(error) = self.send_once(to, datagram, &[], flags) {
                result = Err(reason(&error));
            }
        }
        result
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // It says that there is no connection to shut down, but from here on nobody waits for datagrams.
        let _ = self.socket.shutdown(Shutdown::Read);
    }
}

/// The segment size, if there are several datagrams, and not more than the kernel takes in one.
fn fitting_segment(transmit: &Transmit<'_>) -> Option<u16> {
    let (len, segment) = (transmit.payload.len(), transmit.segment);
    let fits = segment > 0 && len > segment && len <= MAX_SEGMENTED_BYTES && len.div_ceil(segment) <= MAX_SEGMENTS;
    u16::try_from(segment).ok().filter(|_| fits)
}

fn reason(error: &io::Error) -> Dropped {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Dropped::TooBig,
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Dropped::Congested,
        Some(_) | None => Dropped::Unreachable,
    }
}

fn bound(port: u16, families: Families) -> io::Result<Socket> {
    let (domain, any) = match families {
        Families::Both => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        Families::V4 => (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if families == Families::Both {
        socket.set_only_v6(false)?;
    }
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket)
}
