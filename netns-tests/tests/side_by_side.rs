//! What a peer sends side by side, so that it may reach the kernel as one: no more and nothing else comes out than when
//! each packet is handed over by itself.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{
    Agent, Coordinator, Lab, Session, eventually,
    forge::{self, Identity},
    story_within,
};
use wiremesh_certs::WgPrivateKey;

const LIMIT: Duration = Duration::from_secs(60);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 42, 255, 10);
const PORT: u16 = 7000;
/// In every packet, so that they may be joined.
const PAYLOAD_BYTES: usize = 1000;
/// Nothing more comes after so long.
const QUIET: Duration = Duration::from_millis(250);
const READ_LIMIT: Duration = Duration::from_secs(10);

const UDP: u8 = 17;
const TCP: u8 = 6;
/// Where the header of UDP or TCP begins: without options of IP.
const INNER: usize = 20;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const ECE_AND_CWR: u8 = 0xc0;

/// A UDP packet with something special, and what a program then receives of it.
struct Special {
    what: &'static str,
    packet: Vec<u8>,
    arrives: Option<Vec<u8>>,
}

#[test]
fn a_datagram_among_others_arrives_or_not_as_if_it_came_alone() {
    story_within(LIMIT, |lab| {
        let mut peer = Peer::of(lab)?;
        let to = SocketAddr::new(peer.victim_ip.into(), PORT);
        let socket = peer.victim.node.run(|| UdpSocket::bind(to))??;
        socket.set_read_timeout(Some(QUIET))?;

        for special in specials(peer.victim_ip) {
            let around: Vec<Vec<u8>> = (0..5).map(payload).collect();
            let mut packets: Vec<_> = around.iter().map(|payload| udp(peer.victim_ip, payload)).collect();
            packets[2] = special.packet;
            let mut expected = around;
            match special.arrives {
                Some(payload) => expected[2] = payload,
                None => _ = expected.remove(2),
            }

            peer.session.send_together(&packets)?;

            let arrived = received(&socket)?;
            let sizes = |all: &[Vec<u8>]| all.iter().map(Vec::len).collect::<Vec<_>>();
            assert!(arrived == expected, "{}: {:?}, not {:?}", special.what, sizes(&arrived), sizes(&expected));
        }
        assert_eq!(peer.victim.metric("wiremesh", "spoofed_source")?, 1.0);
        Ok(())
    });
}

#[test]
fn a_segment_among_others_never_changes_what_a_connection_carries() {
    story_within(LIMIT, |lab| {
        let mut peer = Peer::of(lab)?;
        let to = SocketAddr::new(peer.victim_ip.into(), PORT);
        let listener = peer.victim.node.run(|| TcpListener::bind(to))??;
        let text: Vec<u8> = (0..8 * PAYLOAD_BYTES).map(|at| (at / 251 * 7 + at) as u8).collect();
        let whole = |at: usize| at * PAYLOAD_BYTES..(at + 1) * PAYLOAD_BYTES;

        // What is done to the fourth of eight.
        let kinds: &[(&str, Change)] = &[
            ("nothing", |_| {}),
            ("a damaged byte", |segment| segment.damaged = Some(INNER + 20 + 500)),
            ("a damaged checksum", |segment| segment.damaged = Some(INNER + 16)),
            ("a damaged sequence number", |segment| segment.damaged = Some(INNER + 7)),
            ("PSH", |segment| segment.flags |= PSH),
            ("ECE and CWR", |segment| segment.flags |= ECE_AND_CWR),
            ("SYN", |segment| segment.flags |= SYN),
            ("another window", |segment| segment.window = 1000),
            ("an older acknowledgement", |segment| segment.acknowledged -= 1),
            ("an option", |segment| segment.options = vec![1; 4]),
            ("half of the one before", |segment| segment.range = 2500..3500),
            ("the one before", |segment| segment.range = 2000..3000),
        ];
        for (port, (what, change)) in (2000..).zip(kinds) {
            let mut connection = peer.connect(&listener, port)?;
            let mut segments: Vec<_> = (0..8).map(|at| connection.segment(whole(at))).collect();
            change(&mut segments[3]);
            let again = connection.segment(whole(3));
            // The last says that nothing comes after it, and may not be taken for data of the one before.
            segments[7].flags |= FIN;

            let packets: Vec<_> = segments.iter().map(|segment| segment.packet(&text)).collect();
            peer.session.send_together(&packets)?;
            peer.session.send(&again.packet(&text))?;

            let mut read = Vec::new();
            connection.stream.read_to_end(&mut read).with_context(|| format!("reading after {what}"))?;
            assert!(read == text, "{what}: {} bytes, or another text", read.len());
        }

        // And all of them in another order.
        let mut connection = peer.connect(&listener, 3000)?;
        let shuffled = [0, 2, 1, 3, 7, 6, 5, 4].map(|at| connection.segment(whole(at)).packet(&text));
        peer.session.send_together(&shuffled)?;
        let mut read = vec![0; text.len()];
        connection.stream.read_exact(&mut read)?;
        assert!(read == text);
        Ok(())
    });
}

/// A standard WireGuard peer in our hands, and the agent that it talks to.
struct Peer {
    session: Session,
    victim: Agent,
    victim_ip: Ipv4Addr,
    _coordinator: Coordinator,
}

impl Peer {
    fn of(lab: &mut Lab) -> anyhow::Result<Peer> {
        let coordinator = lab.coordinator()?;
        let key = WgPrivateKey::generate(&mut forge::randomness());
        let peer = format!("[[overlay.peer]]\npublic_key = \"{}\"\naddress = \"{PEER}\"", key.public());
        let victim = lab.node("victim")?.with_configuration(&peer).join(&coordinator)?;
        let node = lab.bare_node("peer")?;
        let authority = forge::authority_of(&coordinator)?;
        let asker = Identity::by(&authority, "asker", "10.42.200.9".parse()?)?;
        let to = eventually("the coordinator knows the victim", READ_LIMIT, || {
            Ok(forge::who_is(&node, &coordinator, &authority, &asker, "victim")?.wg())
        })?;
        let address = SocketAddr::from((victim.node.address(), 51820));
        let session = node.run(|| Session::open(&key, &to, address))??;
        let IpAddr::V4(victim_ip) = victim.overlay_ip()? else { anyhow::bail!("an overlay of IPv6") };
        Ok(Peer { session, victim, victim_ip, _coordinator: coordinator })
    }

    /// Shakes hands as TCP does. Sequence numbers begin just below zero.
    fn connect(&mut self, listener: &TcpListener, port: u16) -> anyhow::Result<Connection> {
        let sequence = u32::MAX - 3300;
        let mut syn = Segment {
            to: self.victim_ip,
            port,
            sequence,
            acknowledged: 0,
            flags: SYN,
            window: u16::MAX,
            options: Vec::new(),
            range: 0..0,
            damaged: None,
        };
        self.session.send(&syn.packet(&[]))?;
        let theirs = loop {
            let packet = self.session.receive(READ_LIMIT)?.context("no answer to SYN")?;
            let answers = packet.get(9) == Some(&TCP) && packet.get(22..24) == Some(&port.to_be_bytes()[..]);
            if answers && packet.get(INNER + 13) == Some(&(SYN | ACK)) {
                break packet[24..28].try_into().map(u32::from_be_bytes)?;
            }
        };
        syn.sequence = sequence.wrapping_add(1);
        syn.acknowledged = theirs.wrapping_add(1);
        syn.flags = ACK;
        self.session.send(&syn.packet(&[]))?;
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        Ok(Connection { stream, template: syn })
    }
}

/// The victim's end of a connection, and what the peer's segments begin with.
struct Connection {
    stream: TcpStream,
    template: Segment,
}

impl Connection {
    fn segment(&self, range: Range<usize>) -> Segment {
        Segment { range, ..self.template.clone() }
    }
}

type Change = fn(&mut Segment);

#[derive(Clone)]
struct Segment {
    to: Ipv4Addr,
    port: u16,
    /// Of the first byte of the text.
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    /// Its part of the text.
    range: Range<usize>,
    /// A byte of the packet that is changed when all is finished.
    damaged: Option<usize>,
}

impl Segment {
    fn packet(&self, text: &[u8]) -> Vec<u8> {
        let Segment { port, options, range, .. } = self;
        let mut inner = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
        inner.extend_from_slice(&self.sequence.wrapping_add(range.start as u32).to_be_bytes());
        inner.extend_from_slice(&self.acknowledged.to_be_bytes());
        inner.extend_from_slice(&[(20 + options.len() as u8) << 2, self.flags]);
        inner.extend_from_slice(&self.window.to_be_bytes());
        inner.extend_from_slice(&[0; 4]);
        inner.extend_from_slice(options);
        inner.extend_from_slice(&text[range.clone()]);
        let mut packet = ipv4(self.to, TCP, &inner);
        finish(&mut packet);
        if let Some(at) = self.damaged {
            packet[at] ^= 0x10;
        }
        packet
    }
}

/// Everything that a datagram among others may have.
fn specials(to: Ipv4Addr) -> Vec<Special> {
    let usual = payload(9);
    let special = |what, arrives: Option<&[u8]>, change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = udp(to, &usual);
        change(&mut packet);
        Special { what, packet, arrives: arrives.map(<[u8]>::to_vec) }
    };
    vec![
        special("nothing", Some(&usual), &|_| {}),
        special("a damaged byte", None, &|packet| packet[INNER + 8 + 500] ^= 1),
        special("a damaged checksum", None, &|packet| packet[INNER + 6] ^= 1),
        special("no checksum", Some(&usual), &|packet| packet[INNER + 6..INNER + 8].fill(0)),
        special("a damaged checksum of IP", None, &|packet| packet[10] ^= 1),
        special("another TTL", Some(&usual), &|packet| {
            packet[8] = 7;
            finish(packet);
        }),
        special("another kind of service", Some(&usual), &|packet| {
            packet[1] = 0xb8;
            finish(packet);
        }),
        special("more to come", None, &|packet| {
            packet[6] = 0x20;
            finish(packet);
        }),
        special("the address of another", None, &|packet| {
            packet[15] ^= 1;
            finish(packet);
        }),
        special("a length of UDP that is too small", Some(&usual[..600]), &|packet| {
            packet[INNER + 4..INNER + 6].copy_from_slice(&608_u16.to_be_bytes());
            finish(packet);
        }),
        special("a length of UDP that is too large", None, &|packet| {
            packet[INNER + 4..INNER + 6].copy_from_slice(&1009_u16.to_be_bytes());
            finish(packet);
        }),
        special("bytes behind the packet", Some(&usual[..600]), &|packet| {
            let rest = packet.split_off(INNER + 8 + 600);
            *packet = udp(to, &packet[INNER + 8..]);
            packet.extend(rest);
        }),
        special("options of IP", Some(&usual[..PAYLOAD_BYTES - 4]), &|packet| {
            *packet = udp(to, &usual[..PAYLOAD_BYTES - 4]);
            packet.splice(INNER..INNER, [1; 4]);
            packet[0] = 0x46;
            packet[2..4].copy_from_slice(&1028_u16.to_be_bytes());
            finish_ip(packet);
        }),
    ]
}

fn udp(to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let header = [9000_u16, PORT, length, 0].map(u16::to_be_bytes).concat();
    let mut packet = ipv4(to, UDP, &[&header, payload].concat());
    finish(&mut packet);
    packet
}

fn ipv4(to: Ipv4Addr, protocol: u8, inner: &[u8]) -> Vec<u8> {
    let length = ((INNER + inner.len()) as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&PEER.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(inner);
    packet
}

/// Makes both checksums right.
fn finish(packet: &mut [u8]) {
    finish_ip(packet);
    let protocol = packet[9];
    let at = INNER + if protocol == UDP { 6 } else { 16 };
    packet[at..at + 2].fill(0);
    // The length of UDP is what its header says, the length of TCP what is there.
    let length = match protocol {
        UDP => u16::from_be_bytes([packet[INNER + 4], packet[INNER + 5]]),
        _ => (packet.len() - INNER) as u16,
    };
    let end = packet.len().min(INNER + usize::from(length));
    let pseudo = [&packet[12..20], &[0, protocol], &length.to_be_bytes()].concat();
    let sum = checksum(&[&pseudo, &packet[INNER..end]].concat());
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn finish_ip(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let header = usize::from(packet[0] & 15) * 4;
    let sum = checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn payload(number: usize) -> Vec<u8> {
    (0..PAYLOAD_BYTES).map(|at| (at * 31 + number * 41) as u8).collect()
}

/// Everything that comes, until nothing does.
fn received(socket: &UdpSocket) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match socket.recv(&mut bytes) {
            Ok(length) => all.push(bytes[..length].to_vec()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(all);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
