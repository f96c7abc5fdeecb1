//! A node's request for a certificate: PKCS#10 (RFC 2986), which proves possession of the identity key.

use rand::RngCore;
use rcgen::CertificateParams;
use x509_parser::{
    certification_request::X509CertificationRequest, cri_attributes::ParsedCriAttribute, prelude::FromDer,
};

use crate::{
    IdentityKey, NodeId, NodeName, WgPublicKey,
    authority::{private_extension, subject},
    certificate::{common_name, ed25519_key, ed25519_signature, is, oid},
    keys,
};

/// Larger than any request of ours.
pub const MAX_REQUEST_BYTES: usize = 4096;

/// Not a request we can sign. Says why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a certificate request of this kind: {0}")]
pub struct BadRequest(&'static str);

/// Who asks, and for which keys. Its signature was checked: whoever made it has the identity key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateRequest {
    /// The identity key that signed it.
    pub identity: NodeId,
    /// The name asked for.
    pub name: NodeName,
    /// The WireGuard key to be bound to the identity.
    pub wg: WgPublicKey,
}

impl CertificateRequest {
    /// A request in PEM.
    pub fn create(key: &IdentityKey, name: &NodeName, wg: &WgPublicKey) -> Result<String, BadRequest> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name.as_str());
        params.custom_extensions = vec![private_extension(oid::WIREGUARD_KEY, wg.0.to_vec())];
        params
            .serialize_request(key)
            .and_then(|request| request.pem())
            .map_err(|_| BadRequest("it could not be encoded"))
    }

    /// Reads a request in PEM and checks its signature.
    pub fn parse(text: &str) -> Result<CertificateRequest, BadRequest> {
        if text.len() > MAX_REQUEST_BYTES {
            return Err(BadRequest("longer than 4096 bytes"));
        }
        let block = pem::parse(text).map_err(|_| BadRequest("not PEM"))?;
        if block.tag() != "CERTIFICATE REQUEST" {
            return Err(BadRequest("not a CERTIFICATE REQUEST block"));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(block.contents()).map_err(|_| BadRequest("not PKCS#10 in DER"))?;
        if !rest.is_empty() {
            return Err(BadRequest("bytes after its end"));
        }
        let info = &request.certification_request_info;
        let identity = ed25519_key(&info.subject_pki).map_err(|_| BadRequest("its key is not Ed25519"))?;
        let signature =
            ed25519_signature(block.contents(), info.raw).ok_or(BadRequest("its signature is not Ed25519"))?;
        if !keys::is_signed_by(&identity, info.raw, signature) {
            return Err(BadRequest("its signature is not that of its key"));
        }
        let name = common_name(&info.subject).map_err(|_| BadRequest("not exactly one common name"))?;
        let name = NodeName::new(name).map_err(|_| BadRequest("its common name is not a DNS label"))?;
        let mut wg = None;
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
                return Err(BadRequest("an attribute that asks for something else than extensions"));
            };
            for extension in &requested.extensions {
                if !is(&extension.oid, oid::WIREGUARD_KEY) {
                    return Err(BadRequest("it asks for an extension that a node does not choose"));
                }
                let bytes = extension.value.try_into().map_err(|_| BadRequest("its WireGuard key is not 32 bytes"))?;
                if wg.replace(WgPublicKey(bytes)).is_some() {
                    return Err(BadRequest("two WireGuard keys"));
                }
            }
        }
        if wg.is_some_and(|wg| !wg.is_sound()) {
            return Err(BadRequest("its WireGuard key is weak: anybody could speak for it"));
        }
        Ok(CertificateRequest { identity, name, wg: wg.ok_or(BadRequest("no WireGuard key in it"))? })
    }
}

/// Both private keys of a new node. `rng` must be a cryptographic one.
pub fn generate_keys(rng: &mut impl RngCore) -> (IdentityKey, crate::WgPrivateKey) {
    (IdentityKey::generate(rng), crate::WgPrivateKey::generate(rng))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> (IdentityKey, String, CertificateRequest) {
        let (identity, wireguard) = generate_keys(&mut rand::rng());
        let name = NodeName::new("worker-1").unwrap();
        let pem = CertificateRequest::create(&identity, &name, &wireguard.public()).unwrap();
        let expected = CertificateRequest { identity: identity.id(), name, wg: wireguard.public() };
        (identity, pem, expected)
    }

    #[test]
    fn a_request_says_who_asks_and_for_which_keys() {
        let (_, pem, expected) = request();

        assert_eq!(CertificateRequest::parse(&pem), Ok(expected));
    }

    #[test]
    fn a_request_with_one_bit_changed_is_refused() {
        let (_, text, expected) = request();
        let der = pem::parse(&text).unwrap().into_contents();

        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            let text = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", changed));
            assert_ne!(CertificateRequest::parse(&text), Ok(expected.clone()), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = CertificateRequest::parse(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes)));
        }
    }
}
