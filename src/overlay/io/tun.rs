//! The TUN device: where the kernel's packets for the overlay come out, and ours go in.
//!
//! In front of every packet is a header that says what is still to be done with it (`struct virtio_net_hdr`): the
//! kernel hands over, and takes, one large packet in place of many small ones of a flow.
//!
//! What the kernel does when the interface changes under a thread:
//!
//! - down: a read goes on waiting, a write fails with `EIO`; up again, both go on. Nothing spins.
//! - deleted: a read that waits fails at once with `EFAULT`, everything after that with `EBADFD`: see [`is_gone`].

use std::{
    fs::File,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::sys;
use crate::overlay::{
    Offloads,
    offload::{Takes, VIRTIO_HEADER},
};

/// The device that devices are made from.
const CLONE: &str = "/dev/net/tun";
/// The largest packet that comes out of a device, whatever its MTU, behind its header.
pub const MAX_FRAME_BYTES: usize = VIRTIO_HEADER + 65_535;
/// For preadv2: read on from where we are, as a device without positions must.
const NO_OFFSET: u64 = u64::MAX;

/// What may be asked of the kernel, the most first: segments of UDP are taken since Linux 6.2.
const LEVELS: &[(TunOffloads, libc::c_uint)] = &[
    (
        TunOffloads { checksums: true, tcp: true, udp: true },
        libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_USO4 | libc::TUN_F_USO6,
    ),
    (TunOffloads { checksums: true, tcp: true, udp: false }, libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6),
    (TunOffloads { checksums: true, tcp: false, udp: false }, libc::TUN_F_CSUM),
    (TunOffloads::NONE, 0),
];

/// A source and a sink of IP packets, shared by threads. Every packet has its virtio header in front.
pub trait Tun: Send + Sync + 'static {
    /// Waits for a packet and reads it into `frame`, whose [`MAX_FRAME_BYTES`] take any. An error that is not
    /// [`is_gone`] concerns this packet alone.
    fn read(&self, frame: &mut [u8]) -> io::Result<usize>;
    /// Reads a packet if one is there.
    fn read_now(&self, frame: &mut [u8]) -> io::Result<Option<usize>>;
    /// Hands a packet, given in pieces, to the kernel. An error that is not [`is_gone`] concerns this packet alone:
    /// `EINVAL` is a header that this kernel does not understand, `EIO` an interface that is down.
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()>;
}

/// Whether a device will never work again: its interface was deleted.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// What the kernel leaves to us, or takes from us, unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOffloads {
    /// Checksums of TCP and UDP.
    pub checksums: bool,
    /// Segments of TCP.
    pub tcp: bool,
    /// Segments of UDP.
    pub udp: bool,
}

impl TunOffloads {
    const NONE: TunOffloads = TunOffloads { checksums: false, tcp: false, udp: false };
}

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum NoDevice {
    /// There is nothing to make it from, or we may not use it.
    #[error("opening {CLONE}")]
    Opening(#[source] io::Error),
    /// Any interface has the name.
    #[error("there is an interface of this name")]
    NameTaken(#[source] io::Error),
    /// It is not ours to make.
    #[error("not permitted without the capability NET_ADMIN")]
    NotPermitted(#[source] io::Error),
    /// The kernel makes none that we can use.
    #[error("making it")]
    Unsuitable(#[source] io::Error),
}

/// What a machine, or a container on it, lacks for a TUN device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lack {
    /// `/dev/net/tun` itself.
    Device,
    /// The right to use it: a rule of the device cgroup, or the file's mode.
    DeviceRight,
    /// The capability NET_ADMIN.
    NetAdmin,
    /// A kernel that makes devices as we need them.
    Kernel,
}

impl NoDevice {
    fn naming(error: io::Error) -> NoDevice {
        match error.kind() {
            ErrorKind::ResourceBusy => NoDevice::NameTaken(error),
            ErrorKind::PermissionDenied => NoDevice::NotPermitted(error),
            _ => NoDevice::Unsuitable(error),
        }
    }

    /// What would have to be there; none if it is something else that stands in the way.
    pub fn lack(&self) -> Option<Lack> {
        match self {
            NoDevice::Opening(error) if error.kind() == ErrorKind::PermissionDenied => Some(Lack::DeviceRight),
            NoDevice::Opening(_) => Some(Lack::Device),
            NoDevice::NotPermitted(_) => Some(Lack::NetAdmin),
            NoDevice::Unsuitable(_) => Some(Lack::Kernel),
            NoDevice::NameTaken(_) => None,
        }
    }
}

/// A TUN device of the kernel's. Gone when dropped, with its addresses and routes.
#[derive(Debug)]
pub struct TunDevice {
    file: File,
    offloads: TunOffloads,
    /// Whether the kernel knows how to read without waiting, as far as was tried.
    reads_now: AtomicBool,
}

impl TunDevice {
    /// A new device, down and without address.
    pub fn create(name: &str, offloads: &Offloads) -> Result<TunDevice, NoDevice> {
        let file = File::options().read(true).write(true).open(CLONE).map_err(NoDevice::Opening)?;
        // Exclusive: a device that outlives its program would be joined otherwise, and outlive us with our addresses.
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        sys::name_tun(&file, name, flags).map_err(NoDevice::naming)?;
        sys::set_header_bytes(&file, VIRTIO_HEADER).map_err(NoDevice::Unsuitable)?;
        let wanted = if offloads.tun { LEVELS } else { &LEVELS[LEVELS.len() - 1..] };
        let given = wanted.iter().find(|(_, flags)| sys::set_offloads(&file, *flags).is_ok());
        let offloads = given.map_or(TunOffloads::NONE, |(offloads, _)| *offloads);
        tracing::debug!(name, ?offloads, "TUN device made");
        Ok(TunDevice { file, offloads, reads_now: AtomicBool::new(true) })
    }

    /// What the kernel gave of what was asked for.
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// What may be written to it joined.
    pub fn takes(&self) -> Takes {
        match self.offloads {
            TunOffloads { udp: true, .. } => Takes::TcpAndUdp,
            TunOffloads { tcp: true, .. } => Takes::Tcp,
            TunOffloads { .. } => Takes::Nothing,
        }
    }
}

impl Tun for TunDevice {
    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.file).read(frame) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn read_now(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.reads_now.load(Ordering::Relaxed) {
            return Ok(None);
        }
        loop {
            match preadv2(&self.file, &mut [IoSliceMut::new(frame)], NO_OFFSET, ReadWriteFlags::NOWAIT) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                    tracing::debug!(%error, "this kernel reads packets one by one");
                    self.reads_now.store(false, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        loop {
            match (&self.file).write_vectored(pieces) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(written) if written == pieces.iter().map(|piece| piece.len()).sum::<usize>() => return Ok(()),
                Ok(_) => return Err(ErrorKind::WriteZero.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_the_kernel_grows_less_and_ends_with_nothing() {
        assert!(LEVELS.is_sorted_by(|(_, more), (_, less)| more & less == *less && more != less));
        assert_eq!(LEVELS.last(), Some(&(TunOffloads::NONE, 0)));
    }

    #[test]
    fn where_the_kernel_cannot_read_without_waiting_nothing_is_there_to_be_drained() {
        // A file that has something to read, of a kind that does not know how.
        let file = File::open("/proc/self/stat").unwrap();
        let device = TunDevice { file, offloads: TunOffloads::NONE, reads_now: AtomicBool::new(true) };
        let mut frame = [0; 16];

        assert_eq!(device.read_now(&mut frame).unwrap(), None);

        assert!(!device.reads_now.load(Ordering::Relaxed), "it is not asked again");
        assert_eq!(device.read_now(&mut frame).unwrap(), None);
        assert_eq!(device.read(&mut frame).unwrap(), frame.len());
    }

    #[test]
    fn what_a_machine_lacks_is_told_from_what_is_in_the_way() {
        let opening = |code| NoDevice::Opening(io::Error::from_raw_os_error(code)).lack();
        let naming = |code| NoDevice::naming(io::Error::from_raw_os_error(code)).lack();

        assert!([libc::ENOENT, libc::ENODEV, libc::ENXIO].into_iter().all(|code| opening(code) == Some(Lack::Device)));
        assert!([libc::EPERM, libc::EACCES].into_iter().all(|code| opening(code) == Some(Lack::DeviceRight)));
        assert_eq!((naming(libc::EPERM), naming(libc::EINVAL)), (Some(Lack::NetAdmin), Some(Lack::Kernel)));
        assert_eq!(naming(libc::EBUSY), None);
    }

    #[test]
    fn a_deleted_interface_is_told_from_a_packet_that_failed() {
        let is_gone = |code| is_gone(&io::Error::from_raw_os_error(code));

        assert!([libc::EFAULT, libc::EBADFD, libc::ENODEV].into_iter().all(is_gone));
        assert!(![libc::EIO, libc::EINVAL, libc::EINTR, libc::ENOMEM, libc::EAGAIN].into_iter().any(is_gone));
    }
}
