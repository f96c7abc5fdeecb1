//! The header `x-wiremesh-via`: who sent a request into the mesh, and which call it is.
//!
//! ```text
//! x-wiremesh-via: <name of the node the client asked>;<128 random bits, hexadecimal>
//! ```

use std::{
    fmt::{self, Write},
    str::FromStr,
};

use http::HeaderValue;
use rand::RngCore;
use wiremesh_certs::NodeName;

/// Names one call: one attempt to have a request executed by one worker. A repeat is a call of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CallId(pub [u8; 16]);

impl CallId {
    /// A new one.
    pub fn random(rng: &mut impl RngCore) -> CallId {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        CallId(bytes)
    }

    /// As a header, in hexadecimal digits.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.digits()).expect("hexadecimal digits are visible ASCII")
    }

    fn digits(&self) -> [u8; 32] {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.0, &mut digits).expect("two digits a byte");
        digits
    }
}

impl FromStr for CallId {
    type Err = BadVia;

    fn from_str(text: &str) -> Result<CallId, BadVia> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadVia)?;
        Ok(CallId(bytes))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digits().iter().try_for_each(|digit| f.write_char(char::from(*digit)))
    }
}

/// The header's value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Via {
    /// The node the client asked.
    pub origin: NodeName,
    /// The call.
    pub call: CallId,
}

/// The header's value does not parse.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not \"<node name>;<32 hexadecimal digits>\"")]
pub struct BadVia;

impl Via {
    /// As a header.
    pub fn header(&self) -> HeaderValue {
        let name = self.origin.as_str().as_bytes();
        let value = [name, b";", &self.call.digits()].concat();
        HeaderValue::try_from(value).expect("names and hexadecimal digits are visible ASCII")
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};{}", self.origin.as_str(), self.call)
    }
}

impl FromStr for Via {
    type Err = BadVia;

    fn from_str(text: &str) -> Result<Via, BadVia> {
        let (origin, call) = text.split_once(';').ok_or(BadVia)?;
        Ok(Via { origin: NodeName::new(origin).map_err(|_| BadVia)?, call: call.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let via = Via { origin: "worker-1".parse().unwrap(), call: CallId([7; 16]) };

        assert_eq!(via.header().to_str().unwrap().parse(), Ok(via));
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,80}") {
            let _ = text.parse::<Via>();
        }
    }
}
