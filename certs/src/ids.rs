//! Names and numbers that identify: one type each, so that none can stand where another is meant.

use std::{fmt, net::IpAddr, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A node's address inside the overlay. Never an underlay address.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct OverlayIp(pub IpAddr);

impl fmt::Display for OverlayIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OverlayIp {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<OverlayIp, Self::Err> {
        text.parse().map(OverlayIp)
    }
}

/// Not the text form of an identifier.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadIdentifier {
    /// What was given, shortened.
    pub text: String,
    /// What would have been right.
    pub expected: &'static str,
}

/// What is shown of a text that is no identifier, as it is shown: with escapes.
const MAX_SHOWN_BYTES: usize = 240;

impl BadIdentifier {
    /// Long input is cut: an error message is no place for a megabyte.
    pub(crate) fn new(text: &str, expected: &'static str) -> BadIdentifier {
        let mut shown = 0;
        let fits = |c: &char| {
            shown += c.escape_debug().map(char::len_utf8).sum::<usize>();
            shown <= MAX_SHOWN_BYTES
        };
        BadIdentifier { text: text.chars().take(80).take_while(fits).collect(), expected }
    }
}

/// Text forms of identifiers made of bytes, and serde by them.
macro_rules! byte_identifier {
    ($(#[$docs:meta])* $name:ident, $length:literal, $expected:literal, $encode:expr, $decode:expr) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(pub [u8; $length]);

        impl FromStr for $name {
            type Err = BadIdentifier;

            fn from_str(text: &str) -> Result<$name, BadIdentifier> {
                let decode: fn(&str) -> Option<Vec<u8>> = $decode;
                decode(text)
                    .and_then(|bytes| <[u8; $length]>::try_from(bytes).ok())
                    .map($name)
                    .ok_or_else(|| BadIdentifier::new(text, $expected))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let encode: fn(&[u8]) -> String = $encode;
                serializer.serialize_str(&encode(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                encoder: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                encoder.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<$name, minicbor::decode::Error> {
                let bytes = decoder.bytes()?;
                bytes.try_into().map($name).map_err(|_| minicbor::decode::Error::message(concat!("not ", $expected)))
            }
        }
    };
}

byte_identifier! {
    /// A node's identity: its Ed25519 verifying key (RFC 8032), 32 bytes.
    NodeId, 32, "a node id of 64 hexadecimal digits", |bytes| hex::encode(bytes), |text| hex::decode(text).ok()
}

byte_identifier! {
    /// A WireGuard public key: X25519, 32 bytes, shown in base64 as `wg` does.
    WgPublicKey, 32, "a WireGuard public key of 44 base64 characters",
    |bytes| BASE64_STANDARD.encode(bytes), |text| BASE64_STANDARD.decode(text).ok()
}

byte_identifier! {
    /// A certificate's serial number, 128 random bits.
    Serial, 16, "a serial number of 32 hexadecimal digits", |bytes| hex::encode(bytes), |text| hex::decode(text).ok()
}

byte_identifier! {
    /// SHA-256 of a certificate's DER form.
    Fingerprint, 32, "a fingerprint of 64 hexadecimal digits", |bytes| hex::encode(bytes), |text| hex::decode(text).ok()
}

impl NodeId {
    /// All 64 hexadecimal digits; `Display` shows the first eight.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for NodeId {
    /// The first four bytes: enough to tell nodes apart in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl fmt::Display for WgPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Checked text: a rule, and serde and CBOR that hold to it.
macro_rules! name {
    ($(#[$docs:meta])* $name:ident, $expected:literal, $rule:expr) => {
        $(#[$docs])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(String);

        impl $name {
            /// Checks `text` against the rule of this kind of name.
            pub fn new(text: &str) -> Result<$name, BadIdentifier> {
                let rule: fn(&str) -> bool = $rule;
                if rule(text) { Ok($name(text.to_owned())) } else { Err(BadIdentifier::new(text, $expected)) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadIdentifier;

            fn from_str(text: &str) -> Result<$name, BadIdentifier> {
                $name::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                $name::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                encoder: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                encoder.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<$name, minicbor::decode::Error> {
                $name::new(decoder.str()?).map_err(|_| minicbor::decode::Error::message(concat!("not ", $expected)))
            }
        }
    };
}

name! {
    /// What people call a node. A DNS label (RFC 1123): it is one in `NAME.MESH.internal`.
    NodeName, "a DNS label (1 to 63 of a-z, 0-9 and '-', not at the ends)", is_dns_label
}

name! {
    /// What people call a mesh. A DNS label.
    MeshName, "a DNS label (1 to 63 of a-z, 0-9 and '-', not at the ends)", is_dns_label
}

name! {
    /// A group of nodes, as policies name it. A DNS label.
    GroupName, "a DNS label (1 to 63 of a-z, 0-9 and '-', not at the ends)", is_dns_label
}

name! {
    /// What a worker offers. Stands in URLs (`/service/NAME`) unescaped.
    ServiceName, "a service name (1 to 63 of a-z, 0-9, '-', '_' and '.', the ends a letter or digit)", is_service_name
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !bytes.starts_with(b"-")
        && !bytes.ends_with(b"-")
}

fn is_service_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || matches!(b, b'-' | b'_' | b'.'))
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_to_their_rules() {
        for good in ["a", "worker-gpu-001", &"x".repeat(63)] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "ü", &"x".repeat(64)] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
        for good in ["llm-inference", "v1.2_beta", "0"] {
            assert!(ServiceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a%2f", "_x", "LLM"] {
            assert!(ServiceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn identifiers_survive_their_text_form() {
        let id = NodeId([7; 32]);
        let key = WgPublicKey([9; 32]);

        assert_eq!(id.to_hex().parse(), Ok(id));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(serde_json::from_str::<NodeId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        assert!("zz".parse::<NodeId>().is_err());
        assert!("AAAA".parse::<WgPublicKey>().is_err());
    }

    #[test]
    fn an_error_does_not_repeat_a_megabyte_of_input() {
        let error = NodeName::new(&"x".repeat(1 << 20)).unwrap_err();

        assert!(error.to_string().len() < 200);
    }
}
