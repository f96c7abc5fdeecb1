//! Addresses that only those on the same bridge can reach: containers of one machine have them.
//!
//! In a record: a byte string for each, the bridge's tag (4 bytes), then the endpoint as among a record's endpoints.

use std::net::SocketAddr;

use ipnet::IpNet;
use minicbor::{
    Decoder, Encoder,
    decode::Error as DecodeError,
    encode::{Error as EncodeError, Write},
};
use sha2::{Digest, Sha256};

use super::{endpoint_bytes, endpoint_of};
use crate::revocation::is_null;

/// A container has an address on each of its bridges; few have more than two.
pub const MAX_NEARBY: usize = 4;
const TAG_BYTES: usize = 4;

/// Which bridge, as far as those on it need to know. Two bridges that share a tag cost their members a try in vain.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct BridgeTag([u8; TAG_BYTES]);

impl BridgeTag {
    /// Of the bridge with this network on the machine that was booted as `boot`: no two bridges of a machine share a
    /// network. A hash, so that a record says nothing else about its machine.
    pub fn of(boot: &[u8], network: IpNet) -> BridgeTag {
        let mut hash = Sha256::new();
        hash.update(b"wiremesh bridge\0");
        hash.update(boot);
        hash.update(network.trunc().to_string());
        let hash = hash.finalize();
        BridgeTag([hash[0], hash[1], hash[2], hash[3]])
    }
}

/// An endpoint for whoever is on the same bridge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Nearby {
    /// The bridge.
    pub bridge: BridgeTag,
    /// Where the node is on it.
    pub endpoint: SocketAddr,
}

pub(super) fn encode<C, W: Write>(
    nearby: &[Nearby],
    encoder: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    if nearby.is_empty() {
        return encoder.null()?.ok();
    }
    encoder.array(nearby.len() as u64)?;
    for Nearby { bridge, endpoint } in nearby {
        encoder.bytes(&[&bridge.0[..], &endpoint_bytes(*endpoint)].concat())?;
    }
    Ok(())
}

pub(super) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<Nearby>, DecodeError> {
    if is_null(decoder)? {
        return Ok(Vec::new());
    }
    let bad = || DecodeError::message("not a list of addresses on bridges");
    let count = decoder.array()?.filter(|count| (1..=MAX_NEARBY as u64).contains(count)).ok_or_else(bad)?;
    let one = |decoder: &mut Decoder<'_>| {
        let (tag, endpoint) = decoder.bytes()?.split_first_chunk::<TAG_BYTES>().ok_or_else(bad)?;
        Ok(Nearby { bridge: BridgeTag(*tag), endpoint: endpoint_of(endpoint).ok_or_else(bad)? })
    };
    (0..count).map(|_| one(decoder)).collect()
}

pub(super) fn nil() -> Option<Vec<Nearby>> {
    Some(Vec::new())
}

pub(super) fn is_nil(nearby: &[Nearby]) -> bool {
    nearby.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_one_bridge_of_one_machine_whoever_on_it_makes_it() {
        let tag = |boot: &str, network: &str| BridgeTag::of(boot.as_bytes(), network.parse().unwrap());

        assert_eq!(tag("a", "172.18.0.1/16"), tag("a", "172.18.0.3/16"));
        assert_ne!(tag("a", "172.18.0.1/16"), tag("b", "172.18.0.1/16"));
        assert_ne!(tag("a", "172.18.0.1/16"), tag("a", "172.17.0.1/16"));
    }
}
