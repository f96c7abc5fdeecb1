//! One peer of a device: a session, a socket, and requests that wait for their answers.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context;
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use wiremesh_certs::{WgPrivateKey, WgPublicKey};

/// Requests of one peer under way: with a hundred peers the device has two hundred to do.
const WINDOW: usize = 2;
/// A request without an answer for so long is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// Datagrams taken at once, so that every peer gets its turn.
const RECEIVE_AT_ONCE: usize = 2 * WINDOW;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PAYLOAD: usize = 200;
const PACKET: usize = IP_HEADER + UDP_HEADER + PAYLOAD;
const UDP: u8 = 17;
/// More than any datagram that comes, and than boringtun asks for.
const BUFFER: usize = 2048;

/// One of many.
pub struct Peer {
    number: u32,
    tunnel: Tunn,
    socket: UdpSocket,
    own: Ipv4Addr,
    server: Ipv4Addr,
    port: u16,
    next: u64,
    /// Which requests are under way, and since when.
    waiting: Vec<(u64, Instant)>,
    answers: u64,
    lost: u64,
}

impl Peer {
    /// In the namespace that the calling thread is in.
    pub fn new(
        number: u32,
        key: &WgPrivateKey,
        device: &WgPublicKey,
        (own, server): (Ipv4Addr, Ipv4Addr),
        port: u16,
        endpoint: SocketAddr,
    ) -> anyhow::Result<Peer> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(endpoint)?;
        socket.set_nonblocking(true)?;
        let (key, device) = (StaticSecret::from(*key.bytes()), PublicKey::from(device.0));
        let tunnel = Tunn::new(key, device, None, None, number, None);
        Ok(Peer {
            number,
            tunnel,
            socket,
            own,
            server,
            port,
            next: 0,
            waiting: Vec::with_capacity(WINDOW),
            answers: 0,
            lost: 0,
        })
    }

    /// Sends requests until enough are under way. Those that are lost make room.
    pub fn fill(&mut self, now: Instant) -> anyhow::Result<()> {
        let before = self.waiting.len();
        self.waiting.retain(|(_, sent_at)| now - *sent_at < LOST_AFTER);
        self.lost += (before - self.waiting.len()) as u64;
        while self.waiting.len() < WINDOW {
            let request = packet((self.own, self.port), (self.server, self.port), &payload(self.number, self.next));
            let mut sealed = [0; BUFFER];
            if let TunnResult::WriteToNetwork(datagram) = self.tunnel.encapsulate(&request, &mut sealed) {
                send(&self.socket, datagram)?;
            }
            self.waiting.push((self.next, now));
            self.next += 1;
        }
        Ok(())
    }

    /// Takes what has come. How many datagrams there were.
    pub fn receive(&mut self) -> anyhow::Result<usize> {
        let mut datagram = [0; BUFFER];
        for came in 0..RECEIVE_AT_ONCE {
            match self.socket.recv(&mut datagram) {
                Ok(length) => self.open(&datagram[..length])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(came),
                Err(error) => return Err(error).context("receiving from the device"),
            }
        }
        Ok(RECEIVE_AT_ONCE)
    }

    /// Tells the session that time has passed.
    pub fn update_timers(&mut self) -> anyhow::Result<()> {
        let mut bytes = [0; BUFFER];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.update_timers(&mut bytes) {
            send(&self.socket, datagram)?;
        }
        Ok(())
    }

    /// Right answers so far.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Requests without an answer so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn open(&mut self, datagram: &[u8]) -> anyhow::Result<()> {
        let mut bytes = [0; BUFFER];
        match self.tunnel.decapsulate(None, datagram, &mut bytes) {
            TunnResult::WriteToTunnelV4(answer, _) => {
                let answered = answered(answer, self.number).context("an answer is not what was asked for")?;
                // One that was taken for lost does not count.
                if let Some(at) = self.waiting.iter().position(|(number, _)| *number == answered) {
                    self.waiting.swap_remove(at);
                    self.answers += 1;
                }
            }
            TunnResult::WriteToNetwork(datagram) => {
                send(&self.socket, datagram)?;
                // What waited for the session.
                while let TunnResult::WriteToNetwork(datagram) = self.tunnel.decapsulate(None, &[], &mut bytes) {
                    send(&self.socket, datagram)?;
                }
            }
            TunnResult::WriteToTunnelV6(..) => anyhow::bail!("an answer came over IPv6"),
            TunnResult::Done | TunnResult::Err(_) => {}
        }
        Ok(())
    }
}

fn send(socket: &UdpSocket, datagram: &[u8]) -> anyhow::Result<()> {
    match socket.send(datagram) {
        Ok(_) => Ok(()),
        // A full queue loses it, as the network might.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error).context("sending to the device"),
    }
}

/// What a request carries: whose it is, which, and bytes that differ from request to request.
fn payload(peer: u32, request: u64) -> [u8; PAYLOAD] {
    let mut payload = [(request as u8).wrapping_mul(31).wrapping_add(peer as u8); PAYLOAD];
    payload[..4].copy_from_slice(&peer.to_be_bytes());
    payload[4..12].copy_from_slice(&request.to_be_bytes());
    payload
}

/// Which request of `peer` a packet is the whole and unchanged answer to.
fn answered(packet: &[u8], peer: u32) -> Option<u64> {
    let came = packet.get(IP_HEADER + UDP_HEADER..PACKET)?;
    let request = u64::from_be_bytes(came[4..12].try_into().ok()?);
    (packet.len() == PACKET && packet[9] == UDP && came == payload(peer, request)).then_some(request)
}

/// An IPv4 packet with UDP in it, checksums and all.
fn packet(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8; PAYLOAD]) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&from.0.octets());
    packet[16..20].copy_from_slice(&to.0.octets());
    let checksum = !folded(sum(&packet[..IP_HEADER]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());

    let length = (UDP_HEADER + PAYLOAD) as u16;
    packet[20..22].copy_from_slice(&from.1.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet[24..26].copy_from_slice(&length.to_be_bytes());
    packet[IP_HEADER + UDP_HEADER..].copy_from_slice(payload);
    let pseudo_header = sum(&packet[12..20]) + u64::from(UDP) + u64::from(length);
    let checksum = match !folded(pseudo_header + sum(&packet[IP_HEADER..])) {
        // Zero would say that there is none.
        0 => 0xffff,
        checksum => checksum,
    };
    packet[26..28].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low))).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 42, 200, 1), 7007);
    const TO: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 42, 0, 1), 7007);

    #[test]
    fn a_packet_has_the_checksums_that_the_kernel_wants() {
        let packet = packet(FROM, TO, &payload(7, 300));

        assert_eq!(folded(sum(&packet[..IP_HEADER])), 0xffff);
        let pseudo_header = sum(&packet[12..20]) + u64::from(UDP) + (PACKET - IP_HEADER) as u64;
        assert_eq!(folded(pseudo_header + sum(&packet[IP_HEADER..])), 0xffff);
    }

    #[test]
    fn only_an_unchanged_answer_to_the_same_peer_counts() {
        let answer = packet(TO, FROM, &payload(7, 300));
        let mut changed = answer;
        changed[PACKET - 1] ^= 1;

        assert_eq!(answered(&answer, 7), Some(300));
        assert_eq!(answered(&answer, 8), None);
        assert_eq!(answered(&changed, 7), None);
        assert_eq!(answered(&answer[..PACKET - 1], 7), None);
    }
}
