//! How far another node is: ICMP echoes made here, sent through the overlay like any packet, and answered by the other
//! node's kernel. Their answers are told apart by a random token and never reach the TUN device.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use wiremesh_certs::OverlayIp;

use super::{
    offload::Sum,
    packet::{IpPacket, write_header},
};

/// An echo that is not answered by then is lost.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Echoes under way; more are refused.
pub const MAX_OPEN: usize = 64;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const HEADER: usize = 8;
/// As much data as ping(8) sends.
const DATA: usize = 56;
/// Large enough for either family.
const MAX_PACKET: usize = 40 + HEADER + DATA;

/// Ties an answer to the echo that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(u64);

/// The answer to an echo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pong {
    /// Who answered.
    pub address: OverlayIp,
    /// Its name, if a certificate names it.
    pub name: Option<String>,
    /// There and back, in microseconds.
    pub round_trip_micros: u64,
    /// Which way packets go: `overlay`, the only one there is for packets.
    pub path: &'static str,
    /// The underlay endpoint that they go to.
    pub endpoint: Option<SocketAddr>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PingFailed {
    /// Nothing came back in [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    /// No member has the address.
    #[error("no member has this address")]
    Unresolvable,
    /// It is our own, or none of the overlay's.
    #[error("this is this node itself, or no address of the overlay")]
    NotAnother,
    /// [`MAX_OPEN`] others are under way.
    #[error("{MAX_OPEN} others are under way")]
    TooMany,
    /// The overlay is stopping.
    #[error("the overlay is stopping")]
    Stopped,
}

/// Echoes under way.
pub struct Pings {
    open: BTreeMap<u64, Open>,
    done: VecDeque<(PingId, Result<Pong, PingFailed>)>,
    rng: StdRng,
}

struct Open {
    to: OverlayIp,
    sent_at: Instant,
}

impl Pings {
    /// None under way. `seed` makes the tokens.
    pub fn new(seed: u64) -> Pings {
        Pings { open: BTreeMap::new(), done: VecDeque::new(), rng: StdRng::seed_from_u64(seed) }
    }

    /// An echo request, to be sent like any packet.
    pub fn start(&mut self, from: OverlayIp, to: OverlayIp, now: Instant) -> Result<(PingId, Vec<u8>), PingFailed> {
        if self.open.len() >= MAX_OPEN {
            return Err(PingFailed::TooMany);
        }
        let token = self.rng.random();
        let packet = echo_request(from, to, token).ok_or(PingFailed::NotAnother)?;
        self.open.insert(token, Open { to, sent_at: now });
        Ok((PingId(token), packet))
    }

    /// Takes `packet` if it answers one of ours. Its sender and the time it took.
    pub fn answered(&mut self, packet: &IpPacket<'_>, now: Instant) -> Option<(PingId, Duration)> {
        if self.open.is_empty() {
            return None;
        }
        let token = token_of_reply(packet)?;
        let open = self.open.get(&token).filter(|open| open.to == packet.source)?;
        let took = now.saturating_duration_since(open.sent_at);
        self.open.remove(&token);
        Some((PingId(token), took))
    }

    /// How an echo ended.
    pub fn finish(&mut self, id: PingId, result: Result<Pong, PingFailed>) {
        self.open.remove(&id.0);
        self.done.push_back((id, result));
    }

    /// Nobody has `address`: whoever waits for it need not.
    pub fn unresolvable(&mut self, address: OverlayIp) {
        self.fail(|open| open.to == address, PingFailed::Unresolvable);
    }

    /// Gives up what was not answered.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.fail(|open| now >= open.sent_at + TIMEOUT, PingFailed::TimedOut);
    }

    /// When [`Pings::handle_timeout`] has something to give up.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.open.values().map(|open| (open.sent_at + TIMEOUT, "ping unanswered")).min_by_key(|(at, _)| *at)
    }

    /// The next that ended.
    pub fn poll(&mut self) -> Option<(PingId, Result<Pong, PingFailed>)> {
        self.done.pop_front()
    }

    fn fail(&mut self, which: impl Fn(&Open) -> bool, why: PingFailed) {
        let failed: Vec<_> = self.open.iter().filter(|(_, open)| which(open)).map(|(token, _)| *token).collect();
        failed.into_iter().for_each(|token| self.finish(PingId(token), Err(why)));
    }
}

/// What a series of echoes says, as `wiremesh ping` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Echoes sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Of the answers, in microseconds; absent without any.
    pub min_micros: Option<u64>,
    /// Their mean.
    pub mean_micros: Option<u64>,
    /// Their greatest.
    pub max_micros: Option<u64>,
    #[serde(skip)]
    total_micros: u64,
}

impl Summary {
    /// One more echo ended.
    pub fn add(&mut self, result: &Result<Pong, PingFailed>) {
        self.sent += 1;
        let Ok(pong) = result else { return };
        let micros = pong.round_trip_micros;
        self.received += 1;
        self.total_micros += micros;
        self.min_micros = Some(self.min_micros.map_or(micros, |min| min.min(micros)));
        self.max_micros = Some(self.max_micros.map_or(micros, |max| max.max(micros)));
        self.mean_micros = Some(self.total_micros / u64::from(self.received));
    }

    /// Of a hundred, how many were lost.
    pub fn loss_percent(&self) -> u32 {
        match self.sent {
            0 => 0,
            sent => (sent - self.received) * 100 / sent,
        }
    }
}

/// ICMP (RFC 792) or ICMPv6 (RFC 4443): type, code, checksum, identifier, sequence number, and data: the token first.
fn echo_request(from: OverlayIp, to: OverlayIp, token: u64) -> Option<Vec<u8>> {
    let (protocol, kind) = match to.0 {
        IpAddr::V4(_) => (ICMP, 8),
        IpAddr::V6(_) => (ICMP_V6, 128),
    };
    let mut packet = vec![0; MAX_PACKET];
    let header = write_header(from, to, protocol, HEADER + DATA, &mut packet)?;
    packet.truncate(header + HEADER + DATA);
    let message = &mut packet[header..];
    message[0] = kind;
    message[4..8].copy_from_slice(&token.to_be_bytes()[..4]);
    message[HEADER..HEADER + 8].copy_from_slice(&token.to_be_bytes());
    let (header, message) = packet.split_at_mut(header);
    let sum = match header {
        // Only ICMPv6 covers the addresses.
        [0x60, ..] => Sum::pseudo_header(&header[8..40], protocol, message.len()) + Sum::of(message),
        _ => Sum::of(message),
    };
    message[2..4].copy_from_slice(&sum.checksum());
    Some(packet)
}

fn token_of_reply(packet: &IpPacket<'_>) -> Option<u64> {
    let kind = match (packet.source.0, packet.protocol) {
        (IpAddr::V4(_), ICMP) => 0,
        (IpAddr::V6(_), ICMP_V6) => 129,
        _ => return None,
    };
    let token = packet.payload.get(HEADER..)?.first_chunk::<8>()?;
    (packet.payload[0] == kind).then(|| u64::from_be_bytes(*token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::tests::sim::t0;

    fn ip(text: &str) -> OverlayIp {
        OverlayIp(text.parse().unwrap())
    }

    /// What the other kernel would answer, checksum aside.
    fn reply(request: &[u8], kind: u8) -> Vec<u8> {
        let asked = IpPacket::parse(request).unwrap();
        let mut reply = request.to_vec();
        let header =
            write_header(asked.destination, asked.source, asked.protocol, asked.payload.len(), &mut reply).unwrap();
        reply[header] = kind;
        reply
    }

    #[test]
    fn an_answer_is_taken_once_and_only_from_whom_was_asked() {
        for (us, them, other, kind) in
            [("10.42.0.1", "10.42.0.2", "10.42.0.3", 0), ("fd00::1", "fd00::2", "fd00::3", 129)]
        {
            let mut pings = Pings::new(1);
            let (id, request) = pings.start(ip(us), ip(them), t0()).unwrap();
            let answer = reply(&request, kind);
            let mut forged = answer.clone();
            write_header(ip(other), ip(us), IpPacket::parse(&answer).unwrap().protocol, HEADER + DATA, &mut forged);

            let later = t0() + Duration::from_millis(3);

            assert_eq!(pings.answered(&IpPacket::parse(&forged).unwrap(), later), None);
            let answer = IpPacket::parse(&answer).unwrap();
            assert_eq!(pings.answered(&answer, later), Some((id, Duration::from_millis(3))));
            assert_eq!(pings.answered(&answer, later), None);
        }
    }

    #[test]
    fn an_echo_request_of_somebody_else_is_left_alone() {
        let mut pings = Pings::new(1);
        let (_, request) = pings.start(ip("10.42.0.1"), ip("10.42.0.2"), t0()).unwrap();

        assert_eq!(pings.answered(&IpPacket::parse(&request).unwrap(), t0()), None);
    }

    #[test]
    fn an_echo_has_a_right_checksum() {
        let v4 = echo_request(ip("10.42.0.1"), ip("10.42.0.2"), 7).unwrap();

        assert!(Sum::of(IpPacket::parse(&v4).unwrap().payload).is_valid());
    }

    #[test]
    fn unanswered_echoes_end_and_their_number_is_bounded() {
        let mut pings = Pings::new(1);
        for _ in 0..MAX_OPEN {
            pings.start(ip("10.42.0.1"), ip("10.42.0.2"), t0()).unwrap();
        }
        assert_eq!(pings.start(ip("10.42.0.1"), ip("10.42.0.2"), t0()), Err(PingFailed::TooMany));

        pings.handle_timeout(t0() + TIMEOUT);

        let ended: Vec<_> = std::iter::from_fn(|| pings.poll()).collect();
        assert_eq!(ended.len(), MAX_OPEN);
        assert!(ended.iter().all(|(_, result)| *result == Err(PingFailed::TimedOut)));
        assert_eq!(pings.poll_timeout(), None);
    }

    #[test]
    fn a_series_is_summed_up() {
        let mut summary = Summary::default();
        for micros in [100, 300] {
            summary.add(&Ok(Pong {
                address: ip("10.42.0.2"),
                name: None,
                round_trip_micros: micros,
                path: "overlay",
                endpoint: None,
            }));
        }
        summary.add(&Err(PingFailed::TimedOut));

        assert_eq!((summary.sent, summary.received, summary.loss_percent()), (3, 2, 33));
        assert_eq!((summary.min_micros, summary.mean_micros, summary.max_micros), (Some(100), Some(200), Some(300)));
    }
}
