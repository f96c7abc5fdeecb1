//! One peer's WireGuard session: boringtun's state machine, and when to knock.
//!
//! ```text
//!          initiate                     answered
//!  Asleep ──────────► Connecting ─────────────────────► Ready ──┐ data in doubt and unanswered: Connecting again,
//!    ▲                    │ ▲ retried with growing waits  │ ▲   │ the old session serving on beside it
//!    │                    └─┘                             │ └───┘
//!    └── unanswered for ATTEMPT_FOR; or keys too old ─────┘
//! ```
//!
//! boringtun keeps the rules of WireGuard (rekey after 120 s, keys dead after 180 s, keepalives) on a clock of its own
//! that moves only in [`Session::tick`]; before a handshake it must be moved, or a session begins with the age of the
//! last tick. Retries are ours: sooner at first than WireGuard's five seconds, because somebody waits.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Packet, Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};
use wiremesh_certs::WgPublicKey;

use super::Dropped;
use crate::backoff::Backoff;

/// Bytes that WireGuard adds to a packet.
pub const OVERHEAD: usize = 32;
/// The least room boringtun wants for an answer, whatever it is given.
pub const MIN_SPARE: usize = 148;
/// The size of a handshake initiation.
pub const INITIATION: usize = 148;
/// How often a session that is not asleep is ticked. WireGuard's own times are 5 s and more, so four times a second, as
/// boringtun suggests, would wake an idle machine for nothing. A keepalive that is due after 10 s must be out before the
/// other side begins to worry, after 15 s.
pub const TICK: Duration = Duration::from_secs(2);
/// Data was sent, nothing was heard for this long, and more is sent: that is in doubt. The last packet of a conversation
/// is never answered, so silence alone says nothing; a TCP SYN sent for the second time does.
pub const DOUBT_AFTER: Duration = Duration::from_millis(800);
/// What is in doubt and not answered by then makes us knock: the peer may have been started anew and have lost its keys.
/// Once per data heard, so that a peer that only listens costs one handshake and not three a second. Longer on paths
/// that are known to be longer.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(300);
/// The first wait for an answer to a handshake.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The longest. After a cut was healed, traffic goes on at most this much later.
pub const RETRY_AT_MOST: Duration = Duration::from_secs(5);
/// An unanswered handshake is given up after this, until somebody wants to send again: WireGuard's own limit.
pub const ATTEMPT_FOR: Duration = Duration::from_secs(90);
/// New keys are made at this age, by WireGuard's rules; sooner if the operator says so.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Keys are dead at this age, by WireGuard's rules.
const KEYS_LIVE_FOR: Duration = Duration::from_secs(180);

/// The session with one peer.
pub struct Session {
    tunn: Tunn,
    ready: bool,
    attempt: Option<Attempt>,
    unanswered_since: Option<Instant>,
    doubtful_since: Option<Instant>,
    /// Data was already suspected of not arriving, and none was heard since.
    suspected: bool,
    /// How long a handshake took to be answered.
    round_trip: Duration,
    established_at: Option<Instant>,
    rekey_after: Duration,
    /// The handshake of these keys was ours, so that the next is ours too.
    initiated: bool,
    /// Data was sent with these keys.
    used: bool,
    seed: u64,
}

/// A handshake that was not answered yet.
struct Attempt {
    started_at: Instant,
    sent_at: Instant,
    retry_at: Instant,
    backoff: Backoff,
}

/// What a datagram turned out to be. Lengths count from the start of the buffer that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet of so many bytes.
    Packet(usize),
    /// The peer is there and had nothing to say.
    Keepalive,
    /// Our handshake was answered; send this, and what was kept.
    Established(usize),
    /// Their handshake; the answer is this. Anybody could have repeated it, until data comes.
    Answered(usize),
    /// We are asked to prove our address in the next handshake.
    Cookie,
}

/// What the passing of time asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticked {
    /// Nothing.
    Nothing,
    /// Send these bytes where data goes.
    Datagram(usize),
    /// Send these bytes as a handshake.
    Initiation(usize),
}

/// Which of our own deadlines has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The handshake is to be sent again, for the so-manieth time.
    Retry(u32),
    /// Data is not answered: begin a handshake.
    Suspect,
    /// The keys are as old as the operator wants them to become: begin a handshake.
    Rekey,
    /// Nobody answered for [`ATTEMPT_FOR`].
    GaveUp,
}

impl Session {
    /// Asleep. `index` (24 bits) is what the peer will call our side; `unlimited` a limiter that never limits, since
    /// the real one stands before all sessions.
    pub fn new(
        own: &StaticSecret,
        peer: &WgPublicKey,
        keepalive_secs: Option<u16>,
        index: u32,
        unlimited: Arc<RateLimiter>,
        rekey_after: Duration,
        seed: u64,
    ) -> Session {
        Session {
            tunn: Tunn::new(own.clone(), PublicKey::from(peer.0), None, keepalive_secs, index, Some(unlimited)),
            ready: false,
            attempt: None,
            unanswered_since: None,
            doubtful_since: None,
            suspected: false,
            round_trip: Duration::ZERO,
            established_at: None,
            rekey_after,
            initiated: false,
            used: false,
            seed,
        }
    }

    /// Encrypts a packet into `out`, which has room for it and [`OVERHEAD`]. None if there are no keys.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Option<usize> {
        if !self.ready {
            return None;
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                self.used = true;
                let since = *self.unanswered_since.get_or_insert(now);
                if !self.suspected && now >= since + DOUBT_AFTER {
                    self.doubtful_since.get_or_insert(now);
                }
                Some(len)
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Takes a datagram apart that `from` sent for this session. `out` is as long as the datagram and [`MIN_SPARE`].
    pub fn open(&mut self, from: IpAddr, datagram: &[u8], out: &mut [u8], now: Instant) -> Result<Opened, Dropped> {
        let kind = datagram.first().copied();
        let opened = match self.tunn.decapsulate(Some(from), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) => Opened::Packet(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) => Opened::Packet(packet.len()),
            TunnResult::WriteToNetwork(answer) if kind == Some(2) => Opened::Established(answer.len()),
            TunnResult::WriteToNetwork(answer) => Opened::Answered(answer.len()),
            TunnResult::Done if kind == Some(3) => Opened::Cookie,
            TunnResult::Done => Opened::Keepalive,
            TunnResult::Err(error) => return Err(reason(&error)),
        };
        match opened {
            Opened::Packet(_) => {
                self.suspected = false;
                self.heard();
            }
            Opened::Keepalive => self.heard(),
            Opened::Established(_) => {
                if let Some(attempt) = self.attempt.take() {
                    self.round_trip = now.saturating_duration_since(attempt.sent_at);
                }
                self.begin(now, true);
                self.heard();
            }
            Opened::Answered(_) => self.begin(now, false),
            Opened::Cookie => {}
        }
        Ok(opened)
    }

    /// The next datagram that boringtun kept for when there would be a session; none of ours, we keep packets ourselves.
    pub fn next_kept(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Writes a handshake initiation into `out` and waits for its answer.
    pub fn initiate(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(out, true) else {
            return None;
        };
        let len = initiation.len();
        self.wait_for_answer(now);
        Some(len)
    }

    /// Moves boringtun's clock.
    pub fn tick(&mut self, out: &mut [u8], now: Instant) -> Ticked {
        let ticked = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) if datagram[0] == 1 => Ticked::Initiation(datagram.len()),
            TunnResult::WriteToNetwork(datagram) => Ticked::Datagram(datagram.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.attempt = None;
                self.revive(out)
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Ticked::Nothing,
        };
        if let Ticked::Initiation(_) = ticked {
            self.wait_for_answer(now);
        }
        self.refresh_ready();
        self.ready &= self.keys_live(now);
        ticked
    }

    /// The deadline that has passed, if one has.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        if let Some(attempt) = &self.attempt {
            if now >= attempt.started_at + ATTEMPT_FOR {
                self.attempt = None;
                self.settle_doubts();
                return Some(Due::GaveUp);
            }
            return (now >= attempt.retry_at).then(|| Due::Retry(attempt.backoff.failures()));
        }
        if self.suspect_at().is_some_and(|at| now >= at) {
            self.suspected = true;
            return Some(Due::Suspect);
        }
        if self.rekey_at().is_some_and(|at| now >= at) {
            self.used = false;
            return Some(Due::Rekey);
        }
        None
    }

    /// The operating system says that data does not go out: do not wait to suspect it.
    pub fn suspect(&mut self, now: Instant) {
        self.doubtful_since = now.checked_sub(self.patience()).or(Some(now));
    }

    /// When [`Session::due`] will have something, and what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.attempt {
            Some(attempt) => Some((attempt.retry_at, "handshake unanswered")),
            None => {
                let suspect = self.suspect_at().map(|at| (at, "data unanswered"));
                let rekey = self.rekey_at().map(|at| (at, "keys are old"));
                suspect.into_iter().chain(rekey).min()
            }
        }
    }

    /// Whether data can be encrypted.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether a handshake waits for its answer.
    pub fn is_connecting(&self) -> bool {
        self.attempt.is_some()
    }

    /// Whether what is sent may not arrive, as it seems.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful_since.is_some()
    }

    /// Whether time matters to it: not if there are no keys and nobody knocks.
    pub fn is_awake(&self, now: Instant) -> bool {
        self.ready || self.attempt.is_some() || self.keys_live(now) || self.tunn.persistent_keepalive().is_some()
    }

    /// When the last handshake succeeded.
    pub fn established_at(&self) -> Option<Instant> {
        self.established_at
    }

    /// boringtun gives up for good, until somebody sends. A peer with a keepalive always wants to.
    fn revive(&mut self, out: &mut [u8]) -> Ticked {
        if self.tunn.persistent_keepalive().is_none() {
            return Ticked::Nothing;
        }
        match self.tunn.format_handshake_initiation(out, false) {
            TunnResult::WriteToNetwork(initiation) => Ticked::Initiation(initiation.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Ticked::Nothing,
        }
    }

    fn keys_live(&self, now: Instant) -> bool {
        self.established_at.is_some_and(|at| now < at + KEYS_LIVE_FOR)
    }

    fn suspect_at(&self) -> Option<Instant> {
        self.doubtful_since.filter(|_| !self.suspected).map(|since| since + self.patience())
    }

    /// When boringtun would be too late with new keys.
    fn rekey_at(&self) -> Option<Instant> {
        let ours = self.initiated && self.used && self.rekey_after < REKEY_AFTER;
        self.established_at.filter(|_| ours).map(|at| at + self.rekey_after)
    }

    fn begin(&mut self, now: Instant, initiated: bool) {
        self.established_at = Some(now);
        self.initiated = initiated;
        self.used = false;
    }

    fn patience(&self) -> Duration {
        SUSPECT_AFTER.max(self.round_trip * 2)
    }

    fn settle_doubts(&mut self) {
        (self.unanswered_since, self.doubtful_since) = (None, None);
    }

    fn heard(&mut self) {
        self.settle_doubts();
        if !self.ready {
            self.refresh_ready();
        }
    }

    fn refresh_ready(&mut self) {
        self.ready = self.tunn.time_since_last_handshake().is_some();
    }

    fn wait_for_answer(&mut self, now: Instant) {
        let seed = self.seed;
        let attempt = self.attempt.get_or_insert_with(|| Attempt {
            started_at: now,
            sent_at: now,
            retry_at: now,
            backoff: Backoff::new(RETRY_AFTER, RETRY_AT_MOST, seed),
        });
        attempt.sent_at = now;
        attempt.retry_at = now + attempt.backoff.next_delay();
    }
}

/// The number by which the sender of data calls its receiver; none if `datagram` is no data of a session.
pub fn data_receiver(datagram: &[u8]) -> Option<u32> {
    match Tunn::parse_incoming_packet(datagram) {
        Ok(Packet::PacketData(data)) => Some(data.receiver_idx),
        Ok(Packet::HandshakeInit(_) | Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_)) | Err(_) => None,
    }
}

/// The reason to count for an error of boringtun's.
fn reason(error: &WireGuardError) -> Dropped {
    match error {
        WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => Dropped::Forged,
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidTai64nTimestamp => Dropped::Replayed,
        WireGuardError::WrongIndex
        | WireGuardError::NoCurrentSession
        | WireGuardError::UnexpectedPacket
        | WireGuardError::ConnectionExpired => Dropped::UnknownSession,
        WireGuardError::UnderLoad => Dropped::HandshakeRate,
        WireGuardError::InvalidPacket => Dropped::InnerNotIp,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::LockFailed => Dropped::Garbage,
    }
}
