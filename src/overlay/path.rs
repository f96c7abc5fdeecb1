//! Which of a peer's endpoints to send to.
//!
//! ```text
//!            authenticated packet from E
//!   Unproven ──────────────────────────────► Proven(E) ──┐ authenticated packet from F
//!      ▲                                        │  ▲     │ proves F instead: roaming
//!      └── QUIET_AFTER without one, or an error ┘  └─────┘
//! ```
//!
//! Data goes to the endpoint that was proven last. Handshakes go there too while it is proven, and to every candidate
//! while it is not: whichever is answered first is proven by the answer.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;

/// How long a path may be silent before the other candidates are tried again. Longer than
/// WireGuard's keepalive (10 s), so one lost keepalive does not move an idle peer.
pub const QUIET_AFTER: Duration = Duration::from_secs(25);
/// Candidates kept from a record: as many as a record may name.
pub const MAX_CANDIDATES: usize = 8;

/// The endpoints of one peer.
#[derive(Debug, Default)]
pub struct Path {
    /// What its record says, best first.
    candidates: Vec<SocketAddr>,
    /// Where something came from that said to be this peer, and could not yet be believed to be there.
    observed: Option<SocketAddr>,
    /// Where the last authenticated packet came from.
    proven: Option<Proven>,
}

#[derive(Clone, Copy, Debug)]
struct Proven {
    endpoint: SocketAddr,
    heard_at: Instant,
    /// The operating system refused to send there since.
    refused: bool,
}

impl Path {
    /// The endpoints of the peer's latest record. What was proven stays proven: seen is better than said.
    pub fn set_candidates(&mut self, endpoints: &[SocketAddr], overlay: &IpNet) {
        self.candidates.clear();
        for endpoint in endpoints.iter().map(|endpoint| canonical(*endpoint)) {
            if is_usable(endpoint, overlay) && !self.candidates.contains(&endpoint) {
                self.candidates.push(endpoint);
            }
        }
        self.candidates.truncate(MAX_CANDIDATES);
    }

    /// A candidate that an operator wrote down, any address allowed.
    pub fn set_configured(&mut self, endpoint: SocketAddr) {
        self.candidates = vec![canonical(endpoint)];
    }

    /// The peer may be at `from`: something came from there that anybody could have sent again.
    pub fn observe(&mut self, from: SocketAddr) {
        self.observed = Some(from);
    }

    /// An authenticated packet came from `from`. Returns the endpoint it displaced, if any.
    pub fn on_authenticated(&mut self, from: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let before = self.proven.replace(Proven { endpoint: from, heard_at: now, refused: false });
        before.map(|proven| proven.endpoint).filter(|endpoint| *endpoint != from)
    }

    /// The operating system refused to send to `endpoint`. True if data goes there.
    pub fn on_refused(&mut self, endpoint: SocketAddr) -> bool {
        match &mut self.proven {
            Some(proven) if proven.endpoint == endpoint => {
                proven.refused = true;
                true
            }
            Some(_) | None => self.proven.is_none() && self.current() == Some(endpoint),
        }
    }

    /// Where data goes.
    pub fn current(&self) -> Option<SocketAddr> {
        self.proven.map(|proven| proven.endpoint).or(self.observed).or(self.candidates.first().copied())
    }

    /// Whether something authenticated came from [`Path::current`] lately.
    pub fn is_proven(&self, now: Instant) -> bool {
        self.proven.is_some_and(|proven| !proven.refused && now < proven.heard_at + QUIET_AFTER)
    }

    /// Every endpoint that a handshake may be tried at, likeliest first.
    pub fn everywhere(&self) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.proven.map(|proven| proven.endpoint).into_iter().collect();
        for endpoint in self.observed.iter().chain(&self.candidates) {
            if !all.contains(endpoint) {
                all.push(*endpoint);
            }
        }
        all
    }

    /// When something authenticated was last heard.
    pub fn heard_at(&self) -> Option<Instant> {
        self.proven.map(|proven| proven.heard_at)
    }
}

/// One way to write an endpoint: an IPv4 address is never written as IPv6.
pub fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

/// Whether an endpoint that somebody else named may be sent to. Not our own machine, not a group, and not the overlay
/// itself, through which its own packets would go round in circles.
fn is_usable(endpoint: SocketAddr, overlay: &IpNet) -> bool {
    let address = endpoint.ip();
    let link_local = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    endpoint.port() != 0
        && !link_local
        && !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !overlay.contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::tests::sim::t0;

    fn overlay() -> IpNet {
        "10.42.0.0/16".parse().unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn path(candidates: &[&str]) -> Path {
        let mut path = Path::default();
        path.set_candidates(&candidates.iter().map(|text| at(text)).collect::<Vec<_>>(), &overlay());
        path
    }

    #[test]
    fn endpoints_that_lead_nowhere_or_home_are_not_tried() {
        let path = path(&[
            "0.0.0.0:1",
            "127.0.0.1:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "10.42.3.4:51820",
            "192.0.2.1:0",
            "[fe80::1]:1",
            "[ff02::1]:1",
        ]);

        assert!(path.everywhere().is_empty());
        assert_eq!(path.current(), None);
    }

    #[test]
    fn an_authenticated_packet_from_elsewhere_moves_the_path() {
        let mut path = path(&["192.0.2.1:51820"]);

        assert_eq!(path.on_authenticated(at("192.0.2.1:51820"), t0()), None);
        assert_eq!(path.on_authenticated(at("203.0.113.9:4444"), t0()), Some(at("192.0.2.1:51820")));

        assert_eq!(path.current(), Some(at("203.0.113.9:4444")));
    }

    #[test]
    fn what_could_be_a_replay_does_not_move_a_proven_path() {
        let mut path = path(&["192.0.2.1:51820"]);
        path.on_authenticated(at("192.0.2.1:51820"), t0());

        path.observe(at("203.0.113.9:4444"));

        assert_eq!(path.current(), Some(at("192.0.2.1:51820")));
        assert!(path.everywhere().contains(&at("203.0.113.9:4444")));
    }

    #[test]
    fn a_quiet_path_is_unproven_and_still_used() {
        let mut path = path(&["192.0.2.1:51820", "198.51.100.1:51820"]);
        path.on_authenticated(at("198.51.100.1:51820"), t0());

        assert!(path.is_proven(t0() + QUIET_AFTER - Duration::from_millis(1)));
        assert!(!path.is_proven(t0() + QUIET_AFTER));
        assert_eq!(path.current(), Some(at("198.51.100.1:51820")));
        assert_eq!(path.everywhere(), [at("198.51.100.1:51820"), at("192.0.2.1:51820")]);
    }

    #[test]
    fn a_refused_send_makes_a_path_unproven_until_something_is_heard() {
        let mut path = path(&["192.0.2.1:51820", "198.51.100.1:51820"]);
        path.on_authenticated(at("192.0.2.1:51820"), t0());

        assert!(!path.on_refused(at("198.51.100.1:51820")));
        assert!(path.is_proven(t0()));
        assert!(path.on_refused(at("192.0.2.1:51820")));
        assert!(!path.is_proven(t0()));

        path.on_authenticated(at("192.0.2.1:51820"), t0());
        assert!(path.is_proven(t0()));
    }
}
