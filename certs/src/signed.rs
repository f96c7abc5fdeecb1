//! The one envelope for everything a node asserts: COSE_Sign1 (RFC 9052) with the signer's certificates inside.
//!
//! ```text
//! [ << {1: -8 (EdDSA), 33: x5chain} >>,   protected: the signature covers the chain (RFC 9360)
//!   {},                                   unprotected: always empty
//!   << payload >>,                        CBOR of the payload type
//!   signature ]                           Ed25519 over Sig_structure with external_aad = "wiremesh/1/" ‖ type
//! ```
//!
//! The type is in what is signed (`external_aad`), so that a signature made for one type is none for another.
//! Only one encoding of a thing is accepted: what decodes must encode to the same bytes again.

use std::{fmt, marker::PhantomData, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder, cbor::Value, iana};
use minicbor::{Decode, Decoder, Encode, data::Type};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Chain, IdentityKey, MAX_CERTIFICATE_BYTES, MAX_CHAIN};

/// COSE header parameter "x5chain" (RFC 9360).
const X5CHAIN: i64 = 33;
/// The longest chain, and room for what stands around it.
const MAX_HEADER_BYTES: usize = MAX_CHAIN * MAX_CERTIFICATE_BYTES + 64;

/// What can be signed. `DOMAIN` tells its type apart from all others, in the signature itself.
pub trait Payload: Encode<()> + for<'b> Decode<'b, ()> {
    /// Unique among payload types; part of what is signed.
    const DOMAIN: &'static str;
    /// The longest envelope of this type, in bytes. Longer input is refused before it is looked at.
    const MAX_BYTES: usize;

    /// Bounds that the encoding itself does not have. Says which is broken.
    fn check(&self) -> Result<(), &'static str>;
}

/// Could not be signed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignError {
    /// The envelope would be longer than its type allows.
    #[error("too large to be signed")]
    TooLarge,
    /// The payload breaks a bound of its type.
    #[error("cannot be signed: {0}")]
    OutOfBounds(&'static str),
}

/// Not an envelope of this type. Says which rule it breaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a signed message of this kind: {0}")]
pub struct BadEnvelope(pub(crate) &'static str);

/// Something that somebody signed. Not believed: [`Trust::open`](crate::Trust::open) does that. Cheap to clone.
pub struct Signed<T> {
    bytes: Arc<[u8]>,
    payload: PhantomData<fn() -> T>,
}

impl<T: Payload> Signed<T> {
    /// Signs `payload` with `key`, whose certificate is the leaf of `chain`.
    pub fn sign(payload: &T, key: &IdentityKey, chain: &Chain) -> Result<Signed<T>, SignError> {
        payload.check().map_err(SignError::OutOfBounds)?;
        Signed::seal(encode(payload), key, chain)
    }

    /// Signs the bytes of a payload, whatever they are.
    pub(crate) fn seal(payload: Vec<u8>, key: &IdentityKey, chain: &Chain) -> Result<Signed<T>, SignError> {
        let certificates: Vec<Value> = chain.ders().iter().map(|der| Value::Bytes(der.clone())).collect();
        // RFC 9360, section 2: a single certificate stands alone, several in an array.
        let x5chain = match <[Value; 1]>::try_from(certificates) {
            Ok([single]) => single,
            Err(several) => Value::Array(several),
        };
        let header = HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).value(X5CHAIN, x5chain).build();
        let bytes = CoseSign1Builder::new()
            .protected(header)
            .payload(payload)
            .create_signature(aad::<T>().as_bytes(), |message| key.sign(message).to_vec())
            .build()
            .to_vec()
            .map_err(|_| SignError::TooLarge)?;
        if bytes.len() > T::MAX_BYTES {
            return Err(SignError::TooLarge);
        }
        Ok(Signed { bytes: bytes.into(), payload: PhantomData })
    }

    /// Takes bytes from outside. Only their length is checked here; nothing in them is believed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Signed<T>, BadEnvelope> {
        if bytes.len() > T::MAX_BYTES {
            return Err(BadEnvelope("too long"));
        }
        Ok(Signed { bytes: bytes.into(), payload: PhantomData })
    }

    /// The envelope as it travels.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// For JSON and HTTP headers: base64url without padding (RFC 4648, section 5).
    pub fn to_base64(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(&self.bytes)
    }

    /// The inverse of [`Signed::to_base64`].
    pub fn from_base64(text: &str) -> Result<Signed<T>, BadEnvelope> {
        if text.len() > T::MAX_BYTES.div_ceil(3) * 4 {
            return Err(BadEnvelope("too long"));
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| BadEnvelope("not base64url"))?;
        Signed::from_bytes(&bytes)
    }

    /// Takes the envelope apart. Nothing is believed yet.
    pub(crate) fn take_apart(&self) -> Result<TakenApart<T>, BadEnvelope> {
        check_outline(&self.bytes)?;
        let mut envelope = CoseSign1::from_slice(&self.bytes).map_err(|_| BadEnvelope("not COSE_Sign1"))?;
        let header = &envelope.protected.header;
        let expected = HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA);
        let [(coset::Label::Int(X5CHAIN), x5chain)] = header.rest.as_slice() else {
            return Err(BadEnvelope("not exactly an algorithm and an x5chain in its header"));
        };
        if *header != expected.value(X5CHAIN, x5chain.clone()).build() {
            return Err(BadEnvelope("not exactly an algorithm and an x5chain in its header"));
        }
        let ders = match x5chain {
            Value::Bytes(der) => vec![der.clone()],
            Value::Array(values) if values.len() > 1 => values
                .iter()
                .map(|value| value.as_bytes().cloned().ok_or(BadEnvelope("a certificate that is not bytes")))
                .collect::<Result<_, _>>()?,
            _ => return Err(BadEnvelope("an x5chain that is no chain")),
        };
        let chain = Chain::from_ders(ders).map_err(|_| BadEnvelope("an x5chain of more than it may hold"))?;
        let bytes = envelope.payload.as_deref().ok_or(BadEnvelope("no payload"))?;
        let payload: T = minicbor::decode(bytes).map_err(|_| BadEnvelope("a payload of another form"))?;
        payload.check().map_err(BadEnvelope)?;
        if encode(&payload) != bytes {
            return Err(BadEnvelope("a payload in another than its one encoding"));
        }
        let message = envelope.tbs_data(aad::<T>().as_bytes());
        let signature = envelope.signature.clone();
        // Or the header's bytes as they came would be written again, whatever their encoding.
        envelope.protected.original_data = None;
        if envelope.to_vec().map_err(|_| BadEnvelope("not COSE_Sign1"))? != *self.bytes {
            return Err(BadEnvelope("an envelope in another than its one encoding"));
        }
        Ok(TakenApart { chain, payload, message, signature })
    }
}

/// The parts of an envelope: who says it, what, and what their signature must cover.
pub(crate) struct TakenApart<T> {
    pub chain: Chain,
    pub payload: T,
    pub message: Vec<u8>,
    pub signature: Vec<u8>,
}

/// Whether the bytes are an array of a byte string, an empty map, a byte string and 64 bytes. This costs no memory: what
/// gets past it holds nothing that would take more memory to read than it has bytes, its small header apart.
fn check_outline(bytes: &[u8]) -> Result<(), BadEnvelope> {
    let not_cose = |_| BadEnvelope("not COSE_Sign1");
    let mut decoder = Decoder::new(bytes);
    if decoder.array().map_err(not_cose)? != Some(4) {
        return Err(BadEnvelope("not COSE_Sign1"));
    }
    if decoder.bytes().map_err(not_cose)?.len() > MAX_HEADER_BYTES {
        return Err(BadEnvelope("a header longer than a chain can be"));
    }
    if decoder.map().map_err(not_cose)? != Some(0) {
        return Err(BadEnvelope("an unprotected header"));
    }
    if decoder.datatype().map_err(not_cose)? == Type::Null {
        return Err(BadEnvelope("no payload"));
    }
    decoder.bytes().map_err(not_cose)?;
    if decoder.bytes().map_err(not_cose)?.len() != 64 {
        return Err(BadEnvelope("a signature of not 64 bytes"));
    }
    if decoder.position() != bytes.len() {
        return Err(BadEnvelope("bytes after its end"));
    }
    Ok(())
}

fn aad<T: Payload>() -> String {
    format!("wiremesh/1/{}", T::DOMAIN)
}

fn encode<T: Payload>(payload: &T) -> Vec<u8> {
    minicbor::to_vec(payload).expect("writing to memory does not fail")
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Signed<T> {
        Signed { bytes: self.bytes.clone(), payload: PhantomData }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Signed<T>) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Signed<T> {}

impl<T> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed({} bytes)", self.bytes.len())
    }
}

impl<T: Payload> Serialize for Signed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de, T: Payload> Deserialize<'de> for Signed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Signed<T>, D::Error> {
        Signed::from_base64(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
