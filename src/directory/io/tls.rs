//! Mutual TLS 1.3 between members: both sides show a node certificate, and the one door of trust judges it.

use std::{fmt, sync::Arc};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, InconsistentKeys, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use wiremesh_certs::{Chain, IdentityKey, Refused, TrustStore, Verified};

use crate::clock;

/// What a connection is for (ALPN, RFC 7301). Other uses of the same endpoint get names of their own.
pub const ALPN: &[u8] = b"wiremesh-kad/1";
/// The name a dialler asks for. Nobody looks at it: a member is known by the key and address in its certificate.
pub const SERVER_NAME: &str = "member.wiremesh.internal";

/// Our certificate and key, replaceable while connections are open.
pub struct Credentials {
    key: Arc<dyn rustls::sign::SigningKey>,
    shown: ArcSwap<CertifiedKey>,
}

impl Credentials {
    /// Begins with `chain`, whose leaf is for `identity`.
    pub fn new(identity: &IdentityKey, chain: &Chain) -> anyhow::Result<Credentials> {
        let der = identity.to_pkcs8_der();
        let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()))
            .context("using the identity key for TLS")?;
        let shown = certified(key.clone(), chain)?;
        Ok(Credentials { key, shown: ArcSwap::new(Arc::new(shown)) })
    }

    /// New connections show `chain` from now on.
    pub fn replace(&self, chain: &Chain) -> anyhow::Result<()> {
        self.shown.store(Arc::new(certified(self.key.clone(), chain)?));
        Ok(())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The configurations of both sides of the endpoint.
pub fn configs(
    credentials: Arc<Credentials>,
    trust: Arc<TrustStore>,
) -> anyhow::Result<(rustls::ClientConfig, rustls::ServerConfig)> {
    let provider = Arc::new(ring::default_provider());
    let judge = Arc::new(Judge { trust, provider: provider.clone() });
    let versions = &[&rustls::version::TLS13];

    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(judge.clone())
        .with_client_cert_resolver(credentials.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would show no certificate, and so outlive it.
    client.resumption = Resumption::disabled();

    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(judge)
        .with_cert_resolver(credentials);
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});

    Ok((client, server))
}

/// Believes a chain that came with a handshake.
pub fn verify(trust: &TrustStore, certificates: &[CertificateDer<'_>]) -> Result<Verified, Refused> {
    let ders = certificates.iter().map(|der| der.to_vec()).collect();
    trust.current().verify(&Chain::from_ders(ders)?, clock::unix())
}

/// Asks [`TrustStore`] about the other side's certificates.
#[derive(Debug)]
struct Judge {
    trust: Arc<TrustStore>,
    provider: Arc<CryptoProvider>,
}

impl Judge {
    fn judge(&self, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let chain = [std::slice::from_ref(end_entity), intermediates].concat();
        match verify(&self.trust, &chain) {
            Ok(_) => Ok(()),
            Err(refused) => {
                tracing::debug!(reason = refused.reason(), why = %refused, "certificate refused");
                Err(Error::InvalidCertificate(alert(&refused)))
            }
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The TLS alert that tells the other side what is wrong with its certificate.
fn alert(refused: &Refused) -> rustls::CertificateError {
    match refused {
        Refused::Expired { .. } => rustls::CertificateError::Expired,
        Refused::NotYetValid { .. } => rustls::CertificateError::NotValidYet,
        Refused::Revoked { .. } => rustls::CertificateError::Revoked,
        Refused::AnotherAuthority { .. } => rustls::CertificateError::UnknownIssuer,
        _ => rustls::CertificateError::ApplicationVerificationFailure,
    }
}

fn certified(key: Arc<dyn rustls::sign::SigningKey>, chain: &Chain) -> anyhow::Result<CertifiedKey> {
    let certificates = chain.ders().iter().map(|der| CertificateDer::from(der.clone())).collect();
    let certified = CertifiedKey::new(certificates, key);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(error).context("the certificate is not for our identity key"),
    }
}
