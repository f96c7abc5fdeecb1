//! The datagram by which a node that has never heard of us learns who we are, sent just ahead of a WireGuard handshake.
//!
//! WireGuard's handshake proves possession of a key and says nothing about whose it is. The introduction says it: it
//! carries our signed record with our certificate in it. It shares the UDP socket with WireGuard, whose messages begin
//! with the bytes 1 to 4.
//!
//! | at | bytes   | field    |                                                                              |
//! |----|---------|----------|------------------------------------------------------------------------------|
//! | 0  | 1       | type     | 0x57, `W`                                                                    |
//! | 1  | 1       | version  | 1; any other is refused                                                      |
//! | 2  | 2       | reserved | zero                                                                         |
//! | 4  | 16      | mac      | keyed BLAKE2s-128 over bytes 0 to 3 and the record                           |
//! | 20 | ≤ 1,100 | record   | `Signed<NodeRecord>`                                                         |
//!
//! The key of the mac is BLAKE2s-256("wiremesh introduction v1" ‖ receiver's WireGuard public key), as mac1's is in
//! WireGuard: only who knows whom it talks to can make one, so a scanner learns nothing and costs us no signature.

use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest, FixedOutput, KeyInit, Update, consts::U16},
};
use wiremesh_certs::WgPublicKey;

/// The first byte of an introduction.
pub const TYPE: u8 = 0x57;
/// No introduction is longer: with the headers of IPv6 and UDP it fits the smallest link of IPv6.
pub const MAX_DATAGRAM: usize = 1200;

const VERSION: u8 = 1;
const HEADER: [u8; 4] = [TYPE, VERSION, 0, 0];
const MAC_AT: usize = HEADER.len();
const RECORD_AT: usize = MAC_AT + 16;
const DOMAIN: &[u8] = b"wiremesh introduction v1";

/// Whom introductions are made for. Ours opens what was sent to us; a peer's seals what we send it.
#[derive(Clone)]
pub struct IntroductionKey([u8; 32]);

impl IntroductionKey {
    /// Of whoever has `receiver` as its WireGuard key.
    pub fn of(receiver: &WgPublicKey) -> IntroductionKey {
        IntroductionKey(Blake2s256::new().chain_update(DOMAIN).chain_update(receiver.0).finalize().into())
    }

    /// Writes an introduction with `record` into `out`. None if one of the two is too small or too large.
    pub fn seal(&self, record: &[u8], out: &mut [u8]) -> Option<usize> {
        let len = RECORD_AT + record.len();
        let out = out.get_mut(..len).filter(|_| len <= MAX_DATAGRAM)?;
        out[..MAC_AT].copy_from_slice(&HEADER);
        out[MAC_AT..RECORD_AT].copy_from_slice(&self.mac(record));
        out[RECORD_AT..].copy_from_slice(record);
        Some(len)
    }

    /// The record in an introduction made for us. Whether it is true is for the signature to say.
    pub fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (header, rest) = datagram.split_first_chunk::<MAC_AT>()?;
        let (mac, record) = rest.split_first_chunk::<16>()?;
        let ours = *header == HEADER && datagram.len() <= MAX_DATAGRAM && self.mac(record) == *mac;
        ours.then_some(record)
    }

    /// Compared in ordinary time: it keeps strangers from wasting our time and protects nothing secret.
    fn mac(&self, record: &[u8]) -> [u8; 16] {
        let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&self.0).expect("32 bytes are a key of BLAKE2s");
        mac.chain(HEADER).chain(record).finalize_fixed().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn key(byte: u8) -> IntroductionKey {
        IntroductionKey::of(&WgPublicKey([byte; 32]))
    }

    #[test]
    fn it_is_no_message_of_wireguard() {
        assert!(!(1..=4).contains(&TYPE));
    }

    #[test]
    fn the_largest_record_fits() {
        let mut datagram = [0; MAX_DATAGRAM];

        assert_eq!(key(1).seal(&[9; wiremesh_certs::MAX_RECORD_BYTES], &mut datagram), Some(1120));
        assert_eq!(key(1).seal(&[9; MAX_DATAGRAM], &mut [0; 2000]), None);
    }

    proptest! {
        #[test]
        fn only_whom_it_was_made_for_opens_it(record in vec(any::<u8>(), 0..1100)) {
            let mut datagram = [0; MAX_DATAGRAM];
            let len = key(1).seal(&record, &mut datagram).unwrap();

            prop_assert_eq!(key(1).open(&datagram[..len]), Some(&record[..]));
            prop_assert_eq!(key(2).open(&datagram[..len]), None);
        }

        #[test]
        fn one_changed_byte_closes_it(record in vec(any::<u8>(), 1..200), at: prop::sample::Index, flip in 1u8..) {
            let mut datagram = [0; MAX_DATAGRAM];
            let len = key(1).seal(&record, &mut datagram).unwrap();

            datagram[at.index(len)] ^= flip;

            prop_assert_eq!(key(1).open(&datagram[..len]), None);
        }

        #[test]
        fn opening_never_panics(datagram in vec(any::<u8>(), 0..1300)) {
            let _ = key(1).open(&datagram);
        }
    }
}
