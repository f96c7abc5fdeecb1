//! Why packets went no further, and how often.

use std::{
    fmt,
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::Serialize;

/// Declares [`Dropped`] once, so that the list of all reasons and their labels cannot miss one.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet went no further. Expected in normal running: counted, never logged above TRACE.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Dropped {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Dropped {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Dropped] = &[$(Dropped::$name),+];

            /// A short name that stays the same: a metric's label and a key in JSON.
            pub fn label(self) -> &'static str {
                match self {
                    $(Dropped::$name => $label,)+
                }
            }
        }
    };
}

reasons! {
    /// Outbound: neither an IPv4 nor an IPv6 packet, or cut short.
    NotIp = "not_ip",
    /// Outbound: the device described a large packet in a way that the packet contradicts.
    Malformed = "malformed",
    /// Outbound: broadcast and multicast do not exist in the overlay.
    Multicast = "multicast",
    /// Outbound: the destination is no address of the overlay network, or our own.
    NoRoute = "no_route",
    /// Outbound: the source is not our overlay address; the other side would refuse it.
    ForeignSource = "foreign_source",
    /// Outbound: held for a destination that is being looked up or connected to, and displaced by later packets.
    HeldTooMany = "held_too_many",
    /// Outbound: held for a destination that was not reached in time.
    HeldTooLong = "held_too_long",
    /// Outbound: no member has this overlay address, as far as was found out a moment ago.
    Unresolvable = "unresolvable",
    /// Outbound: the peer has no endpoint that could be sent to.
    NoPath = "no_path",
    /// Both ways: a batch was full. It is drained between batches, so this is an overload of control traffic.
    BatchFull = "batch_full",
    /// Both ways: more handshakes, introductions and packets without a session than are looked at in time.
    Overload = "overload",
    /// Outbound: the operating system refused to send to an endpoint.
    Unreachable = "unreachable",
    /// Outbound: no room in the socket's buffer for what may not wait for it.
    Congested = "congested",
    /// Outbound: a datagram was larger than the way out takes.
    TooBig = "too_big",
    /// Inbound: no message of WireGuard or wiremesh, or cut short.
    Garbage = "garbage",
    /// Inbound: a handshake from a key nobody introduced.
    UnknownKey = "unknown_key",
    /// Inbound: for a session that is not or no longer there.
    UnknownSession = "unknown_session",
    /// Inbound: failed its authentication.
    Forged = "forged",
    /// Inbound: seen before, or too old to tell.
    Replayed = "replayed",
    /// Inbound: more handshakes than we care to answer; the sender was told to prove its address, or to wait.
    HandshakeRate = "handshake_rate",
    /// Inbound: the inner source address does not belong to the peer whose session carried it.
    SpoofedSource = "spoofed_source",
    /// Inbound: the inner destination is not our overlay address.
    WrongDestination = "wrong_destination",
    /// Inbound: the decrypted payload is no IP packet.
    InnerNotIp = "inner_not_ip",
    /// Inbound: an introduction by somebody who does not know our WireGuard key.
    IntroductionForged = "introduction_forged",
    /// Inbound: more introductions than we care to check.
    IntroductionRate = "introduction_rate",
    /// Inbound: an introduction whose record or certificate was refused.
    IntroductionRefused = "introduction_refused",
    /// Inbound: an introduction older than what is known of its sender.
    IntroductionStale = "introduction_stale",
    /// Inbound: the TUN device did not take a packet.
    Device = "device",
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// How often each [`Dropped`] happened, and what went through. Threads that move packets share it: what goes through is
/// added once a batch, what is dropped when it happens.
#[derive(Debug, Default)]
pub struct Counters {
    dropped: [AtomicU64; Dropped::ALL.len()],
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
}

/// What went through, in packets of the overlay and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Packets encrypted and handed to the socket.
    pub packets_out: u64,
    /// Their bytes, without WireGuard's overhead.
    pub bytes_out: u64,
    /// Packets decrypted and found to be for us.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
}

impl Counters {
    /// One more of `dropped`.
    pub fn count(&self, dropped: Dropped) {
        self.add(dropped, 1);
    }

    /// `times` more of `dropped`.
    pub fn add(&self, dropped: Dropped, times: u64) {
        self.dropped[dropped as usize].fetch_add(times, Relaxed);
    }

    /// More went through.
    pub fn add_traffic(&self, more: Traffic) {
        self.packets_out.fetch_add(more.packets_out, Relaxed);
        self.bytes_out.fetch_add(more.bytes_out, Relaxed);
        self.packets_in.fetch_add(more.packets_in, Relaxed);
        self.bytes_in.fetch_add(more.bytes_in, Relaxed);
    }

    /// How often `dropped` happened.
    pub fn of(&self, dropped: Dropped) -> u64 {
        self.dropped[dropped as usize].load(Relaxed)
    }

    /// What went through.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            packets_out: self.packets_out.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            packets_in: self.packets_in.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
        }
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (Dropped, u64)> + '_ {
        Dropped::ALL.iter().map(|dropped| (*dropped, self.of(*dropped)))
    }
}

impl Traffic {
    /// One packet out.
    pub(super) fn sent(bytes: usize) -> Traffic {
        Traffic { packets_out: 1, bytes_out: bytes as u64, ..Traffic::default() }
    }

    /// One packet in.
    pub(super) fn received(bytes: usize) -> Traffic {
        Traffic { packets_in: 1, bytes_in: bytes as u64, ..Traffic::default() }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        self.packets_out += more.packets_out;
        self.bytes_out += more.bytes_out;
        self.packets_in += more.packets_in;
        self.bytes_in += more.bytes_in;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_own_and_a_counter_of_its_own() {
        let counters = Counters::default();
        for dropped in Dropped::ALL {
            counters.count(*dropped);
        }

        let labels: BTreeSet<_> = Dropped::ALL.iter().map(|dropped| dropped.label()).collect();

        assert_eq!(labels.len(), Dropped::ALL.len());
        assert!(counters.iter().all(|(_, count)| count == 1));
    }
}
