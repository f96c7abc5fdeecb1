//! Private keys: made here, used here, zeroed when dropped, never shown.

mod encrypted;

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use ed25519_dalek::{
    Signer, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes, spki::der::pem::LineEnding},
};
use rand::RngCore;
use zeroize::Zeroizing;

pub use encrypted::{MAX_PASSPHRASE_BYTES, is_encrypted_key, passphrase_in};

use crate::{NodeId, WgPublicKey};

/// A file or text was not the private key it should be. Says nothing of its contents.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadKey {
    /// Not an Ed25519 key in PKCS#8 PEM (RFC 8410).
    #[error("not an Ed25519 private key in PKCS#8 PEM form")]
    Identity,
    /// It is encrypted, and was to be read without a passphrase.
    #[error("it is encrypted, and needs its passphrase")]
    Encrypted,
    /// Another passphrase opens it, or none does any more.
    #[error("the passphrase is wrong, or the file is damaged")]
    WrongPassphrase,
    /// Nothing here can decrypt it.
    #[error("it is encrypted in a way that is not read here: {0}")]
    Encryption(&'static str),
    /// Whoever made the file wants its reader to be busy for long.
    #[error("opening it would take more time or memory than any passphrase is worth")]
    TooCostly,
    /// It cannot be a key's.
    #[error("a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes")]
    Passphrase,
    /// Not 32 bytes in base64.
    #[error("not a WireGuard private key of 44 base64 characters")]
    WireGuard,
}

/// A node's or an authority's Ed25519 signing key. Its public half is the [`NodeId`].
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// A new key. `rng` must be a cryptographic one.
    pub fn generate(rng: &mut impl RngCore) -> IdentityKey {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        IdentityKey(SigningKey::from_bytes(&seed))
    }

    /// Reads PKCS#8 PEM (RFC 8410), with or without the public key in it, as OpenSSL writes it.
    pub fn from_pkcs8_pem(pem: &str) -> Result<IdentityKey, BadKey> {
        if is_encrypted_key(pem) {
            return Err(BadKey::Encrypted);
        }
        SigningKey::from_pkcs8_pem(pem.trim()).map(IdentityKey).map_err(|_| BadKey::Identity)
    }

    /// PKCS#8 PEM in its first version (no public key inside), which every OpenSSL reads.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        self.keypair().to_pkcs8_pem(LineEnding::LF).expect("32 bytes always encode")
    }

    /// PKCS#8 DER, for TLS libraries.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.keypair().to_pkcs8_der().expect("32 bytes always encode").to_bytes()
    }

    /// The public half.
    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// An Ed25519 signature (RFC 8032) over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The 32 secret bytes, for libraries that want their own copy and for deriving further keys.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    fn keypair(&self) -> KeypairBytes {
        KeypairBytes { secret_key: self.0.to_bytes(), public_key: None }
    }
}

impl fmt::Debug for IdentityKey {
    /// Shows whose key it is, not the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.id())
    }
}

impl rcgen::PublicKeyData for IdentityKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.as_ref().as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for IdentityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(IdentityKey::sign(self, message).to_vec())
    }
}

/// Whether `signature` over `message` is `signer`'s. Strict: weak keys and malleable signatures are refused
/// (Chalkias, Garillot, Nikolaenko, "Taming the many EdDSAs", 2020).
pub(crate) fn is_signed_by(signer: &NodeId, message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&signer.0) else { return false };
    let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
    key.verify_strict(message, &signature).is_ok()
}

impl NodeId {
    /// Whether it is a key that somebody can have: a point of the curve, and none of the few of small order, whose
    /// signatures anybody could make.
    pub fn is_sound(&self) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak())
    }
}

impl WgPublicKey {
    /// Whether it is a key that somebody can have: in its one encoding (RFC 7748, section 5, lets several bytes mean
    /// one point), and none of the few points with which every key agrees on zero.
    pub fn is_sound(&self) -> bool {
        let key = &self.0;
        // 2^255 - 19 and above, little-endian.
        let beyond_the_field = key[31] == 0x7f && key[1..31].iter().all(|byte| *byte == 0xff) && key[0] >= 0xed;
        if key[31] > 0x7f || beyond_the_field {
            return false;
        }
        // Any clamped scalar is a multiple of 8, and takes a point of small order to zero.
        let anybody = x25519_dalek::StaticSecret::from([8; 32]);
        anybody.diffie_hellman(&x25519_dalek::PublicKey::from(*key)).was_contributory()
    }
}

/// A node's X25519 key for WireGuard.
pub struct WgPrivateKey(Zeroizing<[u8; 32]>);

impl WgPrivateKey {
    /// A new key, clamped as `wg genkey` does. `rng` must be a cryptographic one.
    pub fn generate(rng: &mut impl RngCore) -> WgPrivateKey {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        WgPrivateKey(bytes)
    }

    /// Reads what `wg genkey` prints.
    pub fn from_base64(text: &str) -> Result<WgPrivateKey, BadKey> {
        let mut bytes = Zeroizing::new([0; 33]);
        match BASE64_STANDARD.decode_slice(text.trim(), &mut *bytes) {
            Ok(32) => {
                let mut key = Zeroizing::new([0; 32]);
                key.copy_from_slice(&bytes[..32]);
                Ok(WgPrivateKey(key))
            }
            _ => Err(BadKey::WireGuard),
        }
    }

    /// As `wg` reads it.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_STANDARD.encode(*self.0))
    }

    /// The public half.
    pub fn public(&self) -> WgPublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0);
        WgPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The 32 secret bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for WgPrivateKey {
    /// Shows whose key it is, not the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgPrivateKey({})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_form() {
        let identity = IdentityKey::generate(&mut rand::rng());
        let wireguard = WgPrivateKey::generate(&mut rand::rng());

        assert_eq!(IdentityKey::from_pkcs8_pem(&identity.to_pkcs8_pem()).unwrap().id(), identity.id());
        assert_eq!(WgPrivateKey::from_base64(&wireguard.to_base64()).unwrap().public(), wireguard.public());
    }

    #[test]
    fn debug_shows_no_secret() {
        let identity = IdentityKey::generate(&mut rand::rng());
        let wireguard = WgPrivateKey::generate(&mut rand::rng());

        assert!(!format!("{identity:?}").contains(&hex::encode(identity.seed())));
        assert!(!format!("{wireguard:?}").contains(wireguard.to_base64().as_str()));
    }

    #[test]
    fn a_public_key_is_the_one_that_wg_computes() {
        // RFC 7748, section 6.1: Alice's private and public key.
        let alice = WgPrivateKey::from_base64("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();

        let expected = hex::decode("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a").unwrap();

        assert_eq!(alice.public().0.to_vec(), expected);
    }

    #[test]
    fn keys_that_anybody_could_speak_for_are_not_sound() {
        // Points of small order and second encodings: RFC 7748, and https://cr.yp.to/ecdh.html#validate.
        let weak_wireguard = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "f6ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0900000000000000000000000000000000000000000000000000000000000080",
        ];
        for text in weak_wireguard {
            let bytes = hex::decode(text).unwrap();
            assert!(!WgPublicKey(bytes.try_into().unwrap()).is_sound(), "{text}");
        }
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        assert!(!NodeId(identity_point).is_sound());
        assert!(!NodeId([0; 32]).is_sound());

        assert!(WgPrivateKey::generate(&mut rand::rng()).public().is_sound());
        assert!(IdentityKey::generate(&mut rand::rng()).id().is_sound());
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        assert_eq!(IdentityKey::from_pkcs8_pem("hello").unwrap_err(), BadKey::Identity);
        assert_eq!(WgPrivateKey::from_base64("aGVsbG8=").unwrap_err(), BadKey::WireGuard);
        assert_eq!(WgPrivateKey::from_base64(&"A".repeat(4096)).unwrap_err(), BadKey::WireGuard);
    }
}
