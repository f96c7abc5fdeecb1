//! Datagrams of every size there and back over UDP, alone and in bursts that the kernel takes as one, every byte compared.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{Transmit, UdpSocketState};
use wiremesh::sandbox::Node;

/// The largest that UDP carries over IPv4.
const MAX_BYTES: usize = 65_507;
/// The kernel takes so many datagrams as one send …
const MAX_BURST: usize = 64;
/// … and of those sent one by one so many are under way …
const MAX_ALONE: usize = 8;
/// … and so many bytes, which fit into the socket of a peer that asks for no more than the kernel gives everyone.
const MAX_BYTES_ALONE: usize = 64_000;
/// Datagrams may be lost; so often are those of a size tried again.
const ATTEMPTS: usize = 4;
const ANSWER_LIMIT: Duration = Duration::from_millis(1500);
const NUMBER_BYTES: usize = 4;
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// How datagrams leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// One call each. May be larger than the way takes: the kernel cuts them.
    Alone,
    /// One call for all.
    Burst,
}

/// Sends datagrams of sizes around all that is special below and above the overlay's MTU, and expects each one back.
pub fn datagrams_pass(near: &Node, far: &Node, far_ip: IpAddr, mtu: u16) -> anyhow::Result<()> {
    let headers = if far_ip.is_ipv4() { 28 } else { 48 };
    let whole = usize::from(mtu) - headers;
    let echo = far.run(|| UdpSocket::bind((far_ip, 0)))??;
    enlarge(&echo);
    echo.set_read_timeout(Some(Duration::from_millis(50)))?;
    let to = echo.local_addr()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; MAX_BYTES + 1];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = echo.recv_from(&mut bytes) {
                    let _ = echo.send_to(&bytes[..length], from);
                }
            }
        });
        let result = near.run(|| {
            for size in [4, 5, 19, 100, 333, 1000, 1200, whole - 1, whole] {
                pass(to, size, Sending::Burst)?;
            }
            for size in [4, 5, 100, 1200, whole - 1, whole, whole + 1, 2 * whole, 9000, 20_000, 60_000] {
                pass(to, size, Sending::Alone)?;
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        result?
    })
}

/// Datagrams of one size go and come back.
fn pass(to: SocketAddr, size: usize, sending: Sending) -> anyhow::Result<()> {
    let mut missing = 0;
    for _ in 0..ATTEMPTS {
        missing = attempt(to, size, sending).with_context(|| format!("{sending:?}, {size} bytes"))?;
        if missing == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("{sending:?}, {size} bytes: {missing} did not come back, also at the last of {ATTEMPTS} attempts")
}

/// The number of those that did not come back in time.
fn attempt(to: SocketAddr, size: usize, sending: Sending) -> anyhow::Result<usize> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    enlarge(&socket);
    let count = match sending {
        Sending::Alone => MAX_ALONE.min(MAX_BYTES_ALONE / size),
        Sending::Burst => MAX_BURST.min(MAX_BYTES / size),
    };
    let sent: Vec<Vec<u8>> = (0..count as u32).map(|number| content(number, size)).collect();
    match sending {
        Sending::Alone => {
            for datagram in &sent {
                socket.send_to(datagram, to)?;
            }
        }
        Sending::Burst => {
            let state = UdpSocketState::new((&socket).into())?;
            let contents = sent.concat();
            let segment_size = Some(size);
            let transmit = Transmit { destination: to, ecn: None, contents: &contents, segment_size, src_ip: None };
            state.try_send((&socket).into(), &transmit)?;
            socket.set_nonblocking(false)?;
        }
    }
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut missing: BTreeSet<usize> = (0..count).collect();
    // Room for a whole burst in one buffer: a socket that was made ready for bursts is given them so.
    let mut bytes = vec![0; MAX_BYTES + 1];
    while !missing.is_empty() {
        let length = match socket.recv(&mut bytes) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
            Err(error) => return Err(error).context("receiving"),
        };
        for datagram in bytes[..length].chunks(size) {
            let number = datagram.first_chunk().map_or(usize::MAX, |number| u32::from_be_bytes(*number) as usize);
            let expected = sent.get(number).with_context(|| format!("a datagram begins with {number}"))?;
            anyhow::ensure!(datagram == expected, "number {number} of {count} is damaged, {} bytes", datagram.len());
            missing.remove(&number);
        }
    }
    Ok(missing.len())
}

/// Its number, and bytes that depend on it.
fn content(number: u32, size: usize) -> Vec<u8> {
    let rest = (NUMBER_BYTES..size).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number * 7) as u8);
    number.to_be_bytes().into_iter().chain(rest).collect()
}

/// As far as we may.
fn enlarge(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
    }
}
