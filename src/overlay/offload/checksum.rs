//! The Internet checksum (RFC 1071), in parts that are added up (RFC 1624).
//!
//! The one's complement sum does not care in which order the two bytes of each word are read, as long as the result is
//! stored in the same order. So memory is summed in the machine's own order, four bytes at a time into 64 bits, which
//! the compiler turns into vector instructions: about 32 bytes a nanosecond.

use std::ops::Add;

/// The sum of some bytes. Sums of parts are added up; every part but the last has an even length.
///
/// A sum never overflows: a 64 KiB packet adds less than 2⁴⁶.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`.
    pub fn of(bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let rest = match *rest {
            [] => [0; 4],
            [a] => [a, 0, 0, 0],
            [a, b] => [a, b, 0, 0],
            [a, b, c, ..] => [a, b, c, 0],
        };
        Sum(sum + u64::from(u32::from_ne_bytes(rest)))
    }

    /// The sum of a number of two bytes in a header.
    pub fn of_number(number: u16) -> Sum {
        Sum(u64::from(number.to_be()))
    }

    /// What the transports sum beside themselves: both addresses as they lie in the header, the protocol, and the
    /// length of transport header and payload, which is below 64 KiB.
    pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> Sum {
        Sum::of(addresses) + Sum::of_number(u16::from(protocol)) + Sum::of_number(len as u16)
    }

    /// The sum without a field that it contains.
    pub fn without(self, field: [u8; 2]) -> Sum {
        Sum(self.0 + u64::from(!u16::from_ne_bytes(field)))
    }

    /// The sum itself, as whoever completes the checksum wants to find it in the checksum's place.
    pub fn unfinished(self) -> [u8; 2] {
        self.folded().to_ne_bytes()
    }

    /// The checksum: what makes the sum of everything all ones.
    pub fn checksum(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// The checksum where zero means that there is none, as in UDP.
    pub fn checksum_but_not_zero(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Whether what was summed, its checksum included, is as it was when the checksum was made.
    pub fn is_valid(self) -> bool {
        self.folded() == 0xffff
    }

    fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }
}

impl Add for Sum {
    type Output = Sum;

    fn add(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// As RFC 1071 words it.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_the_rfc_is_summed_right() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);

        assert_eq!(sum.unfinished(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum(), [0x22, 0x0d]);
    }

    #[test]
    fn the_largest_packet_of_ones_does_not_overflow() {
        let ones = vec![0xff; 65_536];

        let sum = (0..64).fold(Sum::default(), |sum, _| sum + Sum::of(&ones));

        assert_eq!(sum.checksum(), [0, 0]);
        assert_eq!(sum.checksum_but_not_zero(), [0xff, 0xff]);
    }

    #[test]
    fn nothing_is_not_valid() {
        assert!(!Sum::of(&[]).is_valid());
        assert!(!Sum::of(&[0; 40]).is_valid());
    }

    proptest! {
        #[test]
        fn it_is_the_checksum_of_the_book(bytes in vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(u16::from_be_bytes(Sum::of(&bytes).checksum()), by_the_book(&bytes));
        }

        #[test]
        fn parts_add_up(bytes in vec(any::<u8>(), 0..300), at in 0usize..300) {
            let (front, back) = bytes.split_at((at & !1).min(bytes.len() & !1));

            prop_assert_eq!((Sum::of(front) + Sum::of(back)).checksum(), Sum::of(&bytes).checksum());
        }

        #[test]
        fn a_field_taken_away_and_another_put_in_is_the_other_sum(mut bytes in vec(any::<u8>(), 4..100), number: u16) {
            bytes[0] = 1;
            let changed = Sum::of(&bytes).without([bytes[2], bytes[3]]) + Sum::of_number(number);

            bytes[2..4].copy_from_slice(&number.to_be_bytes());

            prop_assert_eq!(changed.checksum(), Sum::of(&bytes).checksum());
        }

        #[test]
        fn what_has_its_checksum_in_it_is_valid_and_nothing_else_is(mut bytes in vec(any::<u8>(), 2..200), flip in 0usize..1600) {
            bytes[0..2].fill(0);
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            let sum = Sum::of(&bytes).checksum();
            bytes[0..2].copy_from_slice(&sum);
            prop_assert!(Sum::of(&bytes).is_valid());

            let at = (flip / 8) % bytes.len();
            bytes[at] ^= 1 << (flip % 8);

            prop_assert!(!Sum::of(&bytes).is_valid());
        }
    }
}
