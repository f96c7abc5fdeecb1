//! Knowing a coordinator for the right one: by the authority, never by the address it was reached at.
//!
//! Before joining, the authority is a fingerprint in the join token, and the server must show the certificate that has
//! it. After joining, it is the stored certificate.

use std::{fmt, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime as TlsTime},
};
use wiremesh_certs::{CaCertificate, Fingerprint, MeshName, Trust, TrustStore, UnixTime};

/// Whom a coordinator must belong to.
pub enum Expect {
    /// What a join token says.
    Pinned {
        /// The mesh.
        mesh: MeshName,
        /// Its authority.
        authority: Fingerprint,
    },
    /// The mesh we are in.
    Trusted(Arc<TrustStore>),
}

/// The server is not this mesh's coordinator.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not the mesh's coordinator: {why}")]
pub struct WrongCoordinator {
    /// How it was told.
    pub why: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

/// TLS that speaks to the expected coordinator and to nobody else.
pub fn client_config(expect: Expect) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { expect, provider }))
        .with_no_client_auth();
    Ok(config)
}

/// Whether a request failed because the server was the wrong one.
pub fn wrong_coordinator(error: &(dyn std::error::Error + 'static)) -> Option<WrongCoordinator> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) =
            error.downcast_ref::<rustls::Error>()
        {
            return other.downcast_ref::<WrongCoordinator>().cloned();
        }
        // What an io::Error wraps is not its source, but the thing itself.
        source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

struct Verifier {
    expect: Expect,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(&self, chain: &[&[u8]], now: UnixTime) -> Result<(), WrongCoordinator> {
        let refused =
            |refused: wiremesh_certs::Refused| WrongCoordinator { hint: refused.hint(), why: refused.to_string() };
        match &self.expect {
            Expect::Trusted(store) => store.current().verify_coordinator(chain, now).map_err(refused),
            Expect::Pinned { mesh, authority } => {
                let hint = Some("check the address; if it is right, ask the operator for a new join token");
                let wrong = |why: String| WrongCoordinator { why, hint };
                let root = chain
                    .iter()
                    .find(|der| Fingerprint::of(der) == *authority)
                    .ok_or_else(|| wrong("it does not have the authority that the join token names".to_owned()))?;
                let root = CaCertificate::from_der(root.to_vec()).map_err(|error| wrong(error.to_string()))?;
                if root.mesh() != mesh {
                    return Err(wrong(format!("it runs the mesh {}, the join token is for {mesh}", root.mesh())));
                }
                Trust::new(root).verify_coordinator(chain, now).map_err(refused)
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: TlsTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<&[u8]> = std::iter::once(end_entity).chain(intermediates).map(|der| der.as_ref()).collect();
        match self.check(&chain, UnixTime(now.as_secs())) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(wrong) => Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong))))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}
