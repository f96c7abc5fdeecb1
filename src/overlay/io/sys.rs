//! System calls that no safe crate offers, or none without allocating for every call. All that is unsafe in the overlay.
//!
//! Each function is one system call over borrowed memory: it takes slices and gives lengths that lie within them. What
//! the kernel wrote there is read by safe code elsewhere.

use std::{
    fs::File,
    io::{self, Error},
    mem,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use libc::{c_int, c_short, c_uint};
use socket2::SockAddr;

/// Datagrams, or as many as the kernel made one of, that one call of [`receive`] takes at most.
pub const MAX_RECEIVED: usize = 16;
/// The longest address of a sender: `sockaddr_in6`.
const ADDRESS_BYTES: usize = mem::size_of::<libc::sockaddr_in6>();
/// Room for the one control message that is asked for, and for one that is not.
const CONTROL_BYTES: usize = 64;

/// Control messages, aligned as their headers are.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Control<const N: usize>(pub [u8; N]);

/// What is known of a datagram beside its bytes, as the kernel wrote it.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
pub struct Slot {
    address: [u8; ADDRESS_BYTES],
    control: Control<CONTROL_BYTES>,
    address_len: usize,
    control_len: usize,
    flags: c_int,
    len: usize,
}

impl Slot {
    /// Nothing received.
    pub const EMPTY: Slot = Slot {
        address: [0; ADDRESS_BYTES],
        control: Control([0; CONTROL_BYTES]),
        address_len: 0,
        control_len: 0,
        flags: 0,
        len: 0,
    };

    /// The sender, as a `sockaddr`. Empty if there is none.
    pub fn address(&self) -> &[u8] {
        &self.address[..self.address_len]
    }

    /// The control messages.
    pub fn control(&self) -> &[u8] {
        &self.control.0[..self.control_len]
    }

    /// How many bytes were received.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there were more than the buffer takes.
    pub fn is_cut_short(&self) -> bool {
        self.flags & libc::MSG_TRUNC != 0
    }
}

/// `struct ifreq` of netdevice(7), as far as `TUNSETIFF` looks at it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; mem::size_of::<libc::ifreq>() - libc::IFNAMSIZ - mem::size_of::<c_short>()],
}

const _: () = assert!(mem::size_of::<InterfaceRequest>() == mem::size_of::<libc::ifreq>());

/// Makes `tun`, an open `/dev/net/tun`, the device `name`.
pub fn name_tun(tun: &File, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: c_short::from_ne_bytes((flags as u16).to_ne_bytes()),
        rest: [0; _],
    };
    // The last byte stays zero: it ends the name.
    match request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len()) {
        Some(place) if !name.is_empty() => place.copy_from_slice(name.as_bytes()),
        Some(_) | None => return Err(Error::new(io::ErrorKind::InvalidInput, "an interface name has 1 to 15 bytes")),
    }
    // SAFETY: the request is as large as the `ifreq` that the kernel reads and writes, and live for the call.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// The length of the header in front of every packet.
pub fn set_header_bytes(tun: &File, bytes: usize) -> io::Result<()> {
    let bytes = bytes as c_int;
    // SAFETY: the kernel reads one int, live for the call.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// What the kernel may hand over unfinished.
pub fn set_offloads(tun: &File, offloads: c_uint) -> io::Result<()> {
    // SAFETY: this one is given its argument as a number; no memory is touched.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Sends `payload`; what `control` says applies to it.
pub fn send(socket: BorrowedFd<'_>, to: &SocketAddr, payload: &[u8], control: &[u8], flags: c_int) -> io::Result<()> {
    let to = SockAddr::from(*to);
    // The kernel only reads what these point to, although C has no word for it.
    let mut piece = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: plain C data, for which zeros mean null pointers and no lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len() as _;
    }
    // SAFETY: every pointer in the message comes with its length, and what it points to outlives the call.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits for a datagram and takes those that are there, each into one piece of `bytes`, which is cut into pieces of
/// `size`, and one of `slots`. Gives how many.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], size: usize, slots: &mut [Slot]) -> io::Result<usize> {
    let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MAX_RECEIVED];
    // SAFETY: plain C data, for which zeros mean null pointers and no lengths.
    let mut messages: [libc::mmsghdr; MAX_RECEIVED] = unsafe { mem::zeroed() };
    let mut offered: c_uint = 0;
    let places = bytes.chunks_exact_mut(size).zip(slots.iter_mut());
    for ((place, slot), (piece, message)) in places.zip(pieces.iter_mut().zip(&mut messages)) {
        *piece = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
        message.msg_hdr.msg_name = slot.address.as_mut_ptr().cast();
        message.msg_hdr.msg_namelen = ADDRESS_BYTES as _;
        message.msg_hdr.msg_iov = piece;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = CONTROL_BYTES as _;
        offered += 1;
    }

    // SAFETY: the first `offered` messages point into `bytes`, `slots` and `pieces`, each pointer with the length of
    // what it points to; all of these outlive the call, and nothing else uses them meanwhile. There is no timeout.
    let received = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), offered, libc::MSG_WAITFORONE as _, ptr::null_mut())
    };
    let received = usize::try_from(received).map_err(|_| Error::last_os_error())?;

    for (slot, message) in slots.iter_mut().zip(&messages[..received]) {
        // An address or control messages that had no room: only what is there is looked at.
        slot.address_len = ADDRESS_BYTES.min(message.msg_hdr.msg_namelen as _);
        slot.control_len = CONTROL_BYTES.min(message.msg_hdr.msg_controllen as _);
        slot.flags = message.msg_hdr.msg_flags;
        slot.len = size.min(message.msg_len as _);
    }
    Ok(received)
}

fn checked(result: c_int) -> io::Result<()> {
    if result == -1 { Err(Error::last_os_error()) } else { Ok(()) }
}
