//! What a worker may be looked for by: the name of a service, or a model that one of its services serves.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::{BadIdentifier, ServiceName};

/// Stands for a model's name where there is no room for it: the first eight bytes of its SHA-256.
///
/// Two names with one tag cost a request that its worker refuses: who serves a model knows it by its whole name.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ModelTag(pub [u8; 8]);

impl ModelTag {
    /// The tag of a model of this name.
    pub fn of(model: &str) -> ModelTag {
        let hash: [u8; 32] = Sha256::digest(model.as_bytes()).into();
        let mut tag = [0; 8];
        tag.copy_from_slice(&hash[..8]);
        ModelTag(tag)
    }
}

impl fmt::Display for ModelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for ModelTag {
    type Err = BadIdentifier;

    fn from_str(text: &str) -> Result<ModelTag, BadIdentifier> {
        let mut tag = [0; 8];
        hex::decode_to_slice(text, &mut tag).map_err(|_| {
            BadIdentifier::new(text, "16 hexadecimal digits, the beginning of the SHA-256 of a model's name")
        })?;
        Ok(ModelTag(tag))
    }
}

/// One thing that a worker may offer.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Offer {
    /// A service.
    Service(ServiceName),
    /// A model, by whichever service.
    Model(ModelTag),
    /// Any model at all.
    AnyModel,
}

impl From<ServiceName> for Offer {
    fn from(service: ServiceName) -> Offer {
        Offer::Service(service)
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Offer::Service(service) => write!(f, "{service}"),
            Offer::Model(tag) => write!(f, "model {tag}"),
            Offer::AnyModel => f.write_str("any model"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_the_beginning_of_a_hash_and_is_read_as_it_is_written() {
        let tag = ModelTag::of("abc");

        assert_eq!(tag.to_string(), "ba7816bf8f01cfea");
        assert_eq!(tag.to_string().parse(), Ok(tag));
        assert!("ba7816bf8f01cf".parse::<ModelTag>().is_err());
    }
}
