//! Join tokens: all a new machine needs to find its coordinator, know it for the right one, and be let in.
//!
//! `wm1.` and base64url of the CBOR array [urls, mesh, CA fingerprint, secret]. The fingerprint is why nothing is
//! trusted on first use.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use minicbor::{Decode, Encode};
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{Fingerprint, MeshName};

const PREFIX: &str = "wm1.";
/// Where the coordinator may be reached.
pub const MAX_URLS: usize = 8;
/// The longest of those URLs.
pub const MAX_URL_BYTES: usize = 256;
/// Longer than any token we make.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// Not a join token. Does not repeat it: it holds a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a join token: {0}")]
pub struct BadToken(&'static str);

/// A join token. Its text form is a secret; `Debug` does not show it.
#[derive(Clone, Decode, Encode, Eq, PartialEq)]
pub struct JoinToken {
    /// Where the coordinator may be reached, https.
    #[n(0)]
    pub urls: Vec<String>,
    /// The mesh to join.
    #[n(1)]
    pub mesh: MeshName,
    /// The mesh's authority: a coordinator that cannot show it is refused.
    #[n(2)]
    pub ca: Fingerprint,
    /// What proves the right to join.
    #[n(3)]
    secret: Secret,
}

impl JoinToken {
    /// A token with a new secret. `rng` must be a cryptographic one.
    pub fn generate(
        urls: Vec<String>,
        mesh: MeshName,
        ca: Fingerprint,
        rng: &mut impl RngCore,
    ) -> Result<JoinToken, BadToken> {
        let mut secret = Secret([0; 32]);
        rng.fill_bytes(&mut secret.0);
        let token = JoinToken { urls, mesh, ca, secret };
        token.check()?;
        Ok(token)
    }

    /// The text to hand to a new machine.
    pub fn to_text(&self) -> Zeroizing<String> {
        // With all the room they may need from the start: a buffer that grows leaves its old contents behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TOKEN_BYTES));
        minicbor::encode(self, &mut *bytes).expect("writing to memory does not fail");
        let mut text = Zeroizing::new(String::with_capacity(2 * MAX_TOKEN_BYTES));
        text.push_str(PREFIX);
        BASE64_URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        text
    }

    /// What the coordinator keeps: SHA-256 of the secret. The secret has 256 random bits, so a slow hash adds nothing.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret.0)
    }

    /// The secret, for the request to the coordinator that the fingerprint names.
    pub fn secret_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(self.secret.0))
    }

    fn check(&self) -> Result<(), BadToken> {
        if self.urls.is_empty() || self.urls.len() > MAX_URLS {
            return Err(BadToken("it must name one to eight coordinators"));
        }
        let https = |url: &String| {
            // Printable ASCII: `Url::parse` drops line ends and control characters, a terminal would obey them.
            url.len() <= MAX_URL_BYTES
                && url.bytes().all(|byte| byte.is_ascii_graphic())
                // As it is written everywhere: `Url::parse` also takes `HTTPS:host` and `https:\\host`.
                && url.starts_with("https://")
                && url::Url::parse(url).is_ok_and(|url| url.has_host())
        };
        if !self.urls.iter().all(https) {
            return Err(BadToken("it names a coordinator by something else than an https URL"));
        }
        Ok(())
    }
}

/// The hash of a secret as it came in a request; `None` if it is no secret of ours.
pub fn hash_of_secret(base64: &str) -> Option<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 34]);
    match BASE64_URL_SAFE_NO_PAD.decode_slice(base64, &mut *bytes) {
        Ok(32) => Some(secret_hash(&bytes[..32])),
        _ => None,
    }
}

fn secret_hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<JoinToken, BadToken> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(BadToken("too long"));
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(BadToken("it does not begin with \"wm1.\""))?;
        let bytes = Zeroizing::new(
            BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| BadToken("not base64url; was it copied whole?"))?,
        );
        let token: JoinToken =
            minicbor::decode(&bytes).map_err(|_| BadToken("cut or changed; was it copied whole?"))?;
        token.check()?;
        if *token.to_text() != text {
            return Err(BadToken("another than its one form; was something added to it?"));
        }
        Ok(token)
    }
}

impl fmt::Debug for JoinToken {
    /// Shows the mesh, not the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} at {:?})", self.mesh, self.urls)
    }
}

#[derive(Clone, Decode, Encode, Eq, PartialEq, Zeroize, ZeroizeOnDrop)]
#[cbor(transparent)]
struct Secret(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    [u8; 32],
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        let urls = vec!["https://10.0.0.1:8080".to_owned()];
        JoinToken::generate(urls, MeshName::new("lab").unwrap(), Fingerprint([3; 32]), &mut rand::rng()).unwrap()
    }

    #[test]
    fn a_token_survives_its_text_form() {
        let token = token();

        assert_eq!(token.to_text().parse::<JoinToken>(), Ok(token.clone()));
        assert_eq!(hash_of_secret(&token.secret_base64()), Some(token.secret_hash()));
    }

    #[test]
    fn a_token_shows_its_secret_to_nobody() {
        let token = token();

        let shown = format!("{token:?} {}", "wm1.nonsense".parse::<JoinToken>().unwrap_err());

        assert!(!shown.contains(token.secret_base64().as_str()));
    }

    #[test]
    fn a_token_cut_short_is_refused_at_every_length() {
        let text = token().to_text();

        for length in 0..text.len() {
            assert!(text[..length].parse::<JoinToken>().is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)).parse::<JoinToken>();
        }
    }
}
