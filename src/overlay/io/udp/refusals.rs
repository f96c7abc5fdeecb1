//! Where the kernel refused to cut a send into datagrams, so that it is not asked again at once.
//!
//! Whether it cuts depends on the way out: the device may lack checksums (Linux before 6.11), IPsec may lie on the
//! way, or an older kernel finds the datagrams too large. Other destinations are fine meanwhile, and this one may be
//! tomorrow. So each destination is remembered for itself, and tried again every so often.

use std::{
    io,
    net::IpAddr,
    sync::atomic::{AtomicU8, Ordering},
};

/// Destinations told apart. Those that meet in one place share their luck: slower, not wrong.
const PLACES: usize = 64;
/// Sends to a destination that go singly before it is tried again. The kernel copies what it then refuses, which costs
/// about a tenth of sending it singly: spread over so many, nothing.
const SINGLY: u8 = 64;

/// What a failed segmented send says about the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These datagrams are larger than the way out takes. Singly they are fragmented; smaller ones may pass.
    ThisSize,
    /// The kernel does not cut on this way out.
    ThisWay,
}

impl Refusal {
    /// None: the same datagrams would fail singly as well.
    pub fn of(error: &io::Error) -> Option<Refusal> {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => Some(Refusal::ThisSize),
            Some(libc::EIO | libc::EINVAL) => Some(Refusal::ThisWay),
            Some(_) | None => None,
        }
    }
}

/// For each place, how many sends are still to go singly. Threads may lose a step to each other, which is all right.
#[derive(Debug)]
pub struct Refusals([AtomicU8; PLACES]);

impl Refusals {
    /// None so far.
    pub fn new() -> Refusals {
        Refusals([const { AtomicU8::new(0) }; PLACES])
    }

    /// Whether the next send to `to` should be tried in one.
    pub fn allow(&self, to: IpAddr) -> bool {
        let place = self.place(to);
        let left = place.load(Ordering::Relaxed);
        if left > 0 {
            place.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }

    /// A segmented send to `to` was refused.
    pub fn note(&self, to: IpAddr, refusal: Refusal) {
        match refusal {
            Refusal::ThisSize => {}
            Refusal::ThisWay => self.place(to).store(SINGLY, Ordering::Relaxed),
        }
    }

    fn place(&self, to: IpAddr) -> &AtomicU8 {
        let step = |hash: usize, octet: &u8| hash.wrapping_mul(31).wrapping_add((*octet).into());
        let hash = match to {
            IpAddr::V4(ip) => ip.octets().iter().fold(0, step),
            IpAddr::V6(ip) => ip.octets().iter().fold(0, step),
        };
        &self.0[hash % PLACES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_does_not_cut_is_left_alone_and_tried_again() {
        let (refusals, here) = (Refusals::new(), ip("192.0.2.1"));
        assert!(refusals.allow(here));

        refusals.note(here, Refusal::ThisWay);

        assert_eq!((0..SINGLY).filter(|_| refusals.allow(here)).count(), 0);
        assert!(refusals.allow(here) && refusals.allow(here));
    }

    #[test]
    fn other_destinations_and_other_sizes_are_not_held_back() {
        let refusals = Refusals::new();

        refusals.note(ip("192.0.2.1"), Refusal::ThisWay);
        refusals.note(ip("2001:db8::7"), Refusal::ThisSize);

        assert!(!refusals.allow(ip("192.0.2.1")));
        assert!(["192.0.2.2", "198.51.100.1", "2001:db8::7"].into_iter().all(|other| refusals.allow(ip(other))));
    }

    #[test]
    fn only_errors_about_segments_have_datagrams_tried_singly() {
        let of = |code| Refusal::of(&io::Error::from_raw_os_error(code));

        assert_eq!(of(libc::EMSGSIZE), Some(Refusal::ThisSize));
        assert_eq!([libc::EIO, libc::EINVAL].map(of), [Some(Refusal::ThisWay); 2]);
        assert_eq!([libc::ENETUNREACH, libc::EPERM, libc::EAGAIN, libc::ENOBUFS].map(of), [None; 4]);
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
