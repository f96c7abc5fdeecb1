//! What the kernel says about datagrams, in its own bytes: addresses and control messages.
//!
//! A control message is a header of `usize` length (with the header), `i32` level and `i32` type, then the data; the
//! next one begins at a multiple of `usize`'s size. Everything is in the machine's byte order, except ports and
//! addresses.

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::super::sys::Control;
use crate::overlay::path::canonical;

const WORD: usize = mem::size_of::<usize>();
const HEADER: usize = WORD + 8;
/// One control message with a `u16` in it, and what is left over up to the next word.
const SEGMENT_CONTROL: usize = HEADER + WORD;

/// The control message that has a send cut into datagrams of `segment` bytes.
pub fn cut_into(segment: u16) -> Control<SEGMENT_CONTROL> {
    let mut bytes = [0; SEGMENT_CONTROL];
    bytes[..WORD].copy_from_slice(&(HEADER + 2).to_ne_bytes());
    bytes[WORD..WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    bytes[WORD + 4..HEADER].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    bytes[HEADER..HEADER + 2].copy_from_slice(&segment.to_ne_bytes());
    Control(bytes)
}

/// How large each of the datagrams is that make up the `len` bytes received, but for the last. Without a word of the
/// kernel's, or one that makes sense, they are one datagram.
pub fn segment_size(control: &[u8], len: usize) -> usize {
    let told = Messages(control)
        .find(|message| message.level == libc::SOL_UDP && message.kind == libc::UDP_GRO)
        .and_then(|message| usize::try_from(i32::from_ne_bytes(*message.data.first_chunk()?)).ok());
    told.filter(|size| (1..=len).contains(size)).unwrap_or(len)
}

/// The sender, in the one way to write it.
pub fn sender(address: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = address.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let ip = match u16::from_ne_bytes(*family).into() {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(*rest.first_chunk::<4>()?)),
        // Behind four bytes of flow label.
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, u16::from_be_bytes(*port))))
}

struct Message<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// The control messages in some bytes; ends where they stop making sense.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = usize::from_ne_bytes(*self.0.first_chunk()?);
        let message = self.0.get(..len).filter(|message| message.len() >= HEADER)?;
        self.0 = len.checked_next_multiple_of(WORD).and_then(|next| self.0.get(next..)).unwrap_or_default();
        let (level, rest) = message[WORD..].split_first_chunk()?;
        let (kind, data) = rest.split_first_chunk()?;
        Some(Message { level: i32::from_ne_bytes(*level), kind: i32::from_ne_bytes(*kind), data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SIZE: [u8; 4] = 1452i32.to_ne_bytes();

    #[test]
    fn the_size_of_segments_is_found_among_other_messages() {
        let other = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[7; 9]);
        let told = message(libc::SOL_UDP, libc::UDP_GRO, &SIZE);

        assert_eq!(segment_size(&told, 9000), 1452);
        assert_eq!(segment_size(&[other, told].concat(), 9000), 1452);
    }

    #[test]
    fn without_a_size_that_makes_sense_there_is_one_datagram() {
        let told = message(libc::SOL_UDP, libc::UDP_GRO, &SIZE);

        assert_eq!(segment_size(&[], 9000), 9000);
        assert_eq!(segment_size(&message(libc::SOL_UDP, libc::UDP_SEGMENT, &SIZE), 9000), 9000);
        for size in [0, -1, i32::MIN, 9001, i32::MAX] {
            assert_eq!(segment_size(&message(libc::SOL_UDP, libc::UDP_GRO, &size.to_ne_bytes()), 9000), 9000);
        }
        for cut in 0..HEADER + SIZE.len() {
            assert_eq!(segment_size(&told[..cut], 9000), 9000, "cut short after {cut}");
        }
    }

    #[test]
    fn senders_are_read_as_they_are_written_by_others() {
        for (from, read) in [
            ("192.0.2.1:51820", "192.0.2.1:51820"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
            ("[::ffff:192.0.2.1]:65535", "192.0.2.1:65535"),
        ] {
            let bytes = written(from.parse().unwrap());

            assert_eq!(sender(&bytes), Some(read.parse().unwrap()), "{from}");
            (0..8).for_each(|cut| assert_eq!(sender(&bytes[..cut]), None, "{from} cut short after {cut}"));
        }
        assert_eq!(sender(&[]), None);
        assert_eq!(sender(&[0; 28]), None);
    }

    proptest! {
        #[test]
        fn no_control_bytes_give_a_size_that_would_lead_astray(control in vec(any::<u8>(), 0..80), len in 1usize..65_536) {
            prop_assert!((1..=len).contains(&segment_size(&control, len)));
        }

        #[test]
        fn nor_do_messages_of_any_length_and_content(
            messages in vec((0usize..60, any::<bool>(), any::<i32>(), vec(any::<u8>(), 0..24)), 0..5),
            len in 1usize..65_536,
        ) {
            let control: Vec<u8> = messages
                .into_iter()
                .flat_map(|(says, right, kind, data)| {
                    let mut bytes = message(libc::SOL_UDP, if right { libc::UDP_GRO } else { kind }, &data);
                    bytes[..WORD].copy_from_slice(&says.to_ne_bytes());
                    bytes
                })
                .collect();

            prop_assert!((1..=len).contains(&segment_size(&control, len)));
        }

        #[test]
        fn reading_a_sender_never_panics(address in vec(any::<u8>(), 0..40)) {
            let _ = sender(&address);
        }
    }

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    /// `sockaddr_in` and `sockaddr_in6`, by ip(7) and ipv6(7).
    fn written(address: SocketAddr) -> Vec<u8> {
        let (family, ip) = match address.ip() {
            IpAddr::V4(ip) => (libc::AF_INET, [&ip.octets()[..], &[0; 8]].concat()),
            IpAddr::V6(ip) => (libc::AF_INET6, [&[0; 4][..], &ip.octets(), &[0; 4]].concat()),
        };
        [&(family as u16).to_ne_bytes()[..], &address.port().to_be_bytes(), &ip].concat()
    }
}
