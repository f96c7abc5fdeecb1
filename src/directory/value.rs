//! The values of the table: several signed records in a row.
//!
//! Numbers are big-endian. Each record is complete: its certificate is enclosed, its signature covers all of it, so a
//! value needs no signature of its own and may be put together anew by whoever stores it.
//!
//! | at | bytes | field                              |
//! |----|-------|------------------------------------|
//! | 0  | 1     | version, 1                         |
//! | 1  | 2     | length of the first record         |
//! | 3  | …     | the first record, then the next, … |

use wiremesh_certs::{MAX_RECORD_BYTES, NodeRecord, Signed};

/// No more records are kept under one key, or read from one answer.
pub const MAX_ENTRIES: usize = 48;
/// The longest value: below Kademlia's packet limit by enough for the contacts that travel with it.
pub const MAX_VALUE_BYTES: usize = 1 + MAX_ENTRIES * (2 + MAX_RECORD_BYTES);

const VERSION: u8 = 1;

/// Puts at most [`MAX_ENTRIES`] records in a row.
pub fn encode<'a>(records: impl IntoIterator<Item = &'a Signed<NodeRecord>>) -> Vec<u8> {
    let mut value = vec![VERSION];
    for record in records.into_iter().take(MAX_ENTRIES) {
        let bytes = record.as_bytes();
        let Ok(length) = u16::try_from(bytes.len()) else { continue };
        value.extend(length.to_be_bytes());
        value.extend(bytes);
    }
    value
}

/// Takes a value apart. `None` if it is not one, holds too much, or holds something that is not a record by its form.
/// Nothing in it is believed yet.
pub fn decode(value: &[u8]) -> Option<Vec<Signed<NodeRecord>>> {
    if value.len() > MAX_VALUE_BYTES {
        return None;
    }
    let (&VERSION, mut rest) = value.split_first()? else { return None };
    let mut records = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        if records.len() == MAX_ENTRIES || bytes.len() > MAX_RECORD_BYTES {
            return None;
        }
        records.push(Signed::from_bytes(bytes).ok()?);
        rest = after;
    }
    rest.is_empty().then_some(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::directory::entry::testing::Mesh;

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn decoding_what_was_cut_or_changed_never_panics(cut in 0usize..2000, flip in 0usize..2000) {
            let mesh = Mesh::new();
            let mut value = encode([mesh.node(1).offering(&["ocr"], 1).signed(), mesh.node(2).offering(&[], 2).signed()]);

            let at = flip % value.len();
            value[at] ^= 0x40;
            value.truncate(cut.min(value.len()));

            let _ = decode(&value);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let mesh = Mesh::new();
        let entries = [mesh.node(1).offering(&["ocr"], 1), mesh.node(2).offering(&["ocr"], 2)];

        let decoded = decode(&encode(entries.iter().map(|entry| entry.signed()))).unwrap();

        assert_eq!(decoded.len(), 2);
        assert!(decoded.iter().zip(&entries).all(|(read, written)| read.as_bytes() == written.signed().as_bytes()));
    }

    #[test]
    fn too_many_records_are_no_value() {
        let mesh = Mesh::new();
        let entry = mesh.node(1).offering(&["ocr"], 1);
        let one = &encode([entry.signed()])[1..];

        let value = [&[VERSION][..], &one.repeat(MAX_ENTRIES + 1)].concat();

        assert!(decode(&value).is_none());
    }
}
