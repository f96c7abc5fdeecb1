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
use wiremesh_certs::{CaCertificate, Fingerprint, MeshName, Refused, Trust, TrustStore, UnixTime};

use crate::membership::skew::Offset;

/// Both versions of HTTP, the one that carries everything over one connection first (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// What to do about a clock that is off.
pub const SET_THE_CLOCK: &str = "set this machine's clock (timedatectl set-ntp true); it then goes on by itself";

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
    /// Nothing else is wrong with it than the time, so it is most likely our clock that is off, and by at least this.
    pub clock: Option<Offset>,
}

/// TLS that speaks to the expected coordinator and to nobody else.
pub fn client_config(expect: Expect) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { expect, provider }))
        .with_no_client_auth();
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
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
        match &self.expect {
            Expect::Trusted(store) => {
                let trust = store.current();
                trust.verify_coordinator(chain, now).map_err(|refused| refusal(&refused, &trust))
            }
            Expect::Pinned { mesh, authority } => {
                let hint = Some("check the address; if it is right, ask the operator for a new join token");
                let wrong = |why: String| WrongCoordinator { why, hint, clock: None };
                let root = chain
                    .iter()
                    .find(|der| Fingerprint::of(der) == *authority)
                    .ok_or_else(|| wrong("it does not have the authority that the join token names".to_owned()))?;
                let root = CaCertificate::from_der(root.to_vec()).map_err(|error| wrong(error.to_string()))?;
                if root.mesh() != mesh {
                    return Err(wrong(format!("it runs the mesh {}, the join token is for {mesh}", root.mesh())));
                }
                let trust = Trust::new(root);
                trust.verify_coordinator(chain, now).map_err(|refused| refusal(&refused, &trust))
            }
        }
    }
}

/// What is wrong with a coordinator's certificates, for people. A coordinator renews its own at half of its life, so one
/// that is not valid at this time speaks of our clock, unless the mesh's authority has really ended.
fn refusal(refused: &Refused, trust: &Trust) -> WrongCoordinator {
    let has_ended = |end: &UnixTime| trust.authorities().iter().any(|authority| authority.not_after() == *end);
    let (at_least, clock) = match refused {
        Refused::NotYetValid { not_before, now } => {
            let by = not_before.saturating_since(*now);
            (format!("{} the coordinator's", Offset::behind(by)), Offset::behind(by))
        }
        Refused::Expired { not_after, now } if !has_ended(not_after) => {
            let by = now.saturating_since(*not_after);
            (format!("{} the coordinator's", Offset::ahead(by)), Offset::ahead(by))
        }
        other => return WrongCoordinator { why: other.to_string(), hint: other.hint(), clock: None },
    };
    WrongCoordinator {
        why: format!("{refused} by this machine's clock, which is most likely wrong: at least {at_least}"),
        hint: Some(SET_THE_CLOCK),
        clock: Some(clock),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::StdRng};
    use wiremesh_certs::{Authority, CaParameters};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);

    /// What a coordinator shows that has been there since `NOW`, and how our client judges it, before joining and after.
    fn judged(at: UnixTime) -> [Result<(), WrongCoordinator>; 2] {
        let mut rng = StdRng::seed_from_u64(1);
        let mesh: MeshName = "lab".parse().unwrap();
        let network = "10.42.0.0/16".parse().unwrap();
        let parameters = CaParameters { mesh: mesh.clone(), network, lifetime: 30 * DAY };
        let authority = Authority::create(&parameters, NOW, &mut rng).unwrap();
        let (chain, _) = authority.issue_coordinator_tls(7 * DAY, NOW, &mut rng).unwrap();
        let ders: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        let trusted = Expect::Trusted(Arc::new(TrustStore::new(Trust::new(authority.certificate().clone()))));
        let pinned = Expect::Pinned { mesh, authority: authority.certificate().fingerprint() };
        let provider = Arc::new(ring::default_provider());
        [pinned, trusted].map(|expect| Verifier { expect, provider: provider.clone() }.check(&ders, at))
    }

    #[test]
    fn a_clock_that_is_off_is_told_from_a_wrong_coordinator_with_its_direction_and_how_much_at_least() {
        assert_eq!(judged(NOW), [Ok(()), Ok(())]);
        for (at, expected, seconds) in [
            // Certificates begin five minutes before they are made.
            (NOW.minus(HOUR), "at least 55 min behind the coordinator's", -3300),
            (NOW.plus(7 * DAY + HOUR), "at least 1 h 0 min ahead of the coordinator's", 3600),
        ] {
            for judged in judged(at) {
                let wrong = judged.unwrap_err();
                assert!(wrong.why.contains(expected), "{}", wrong.why);
                assert_eq!((wrong.clock, wrong.hint), (Some(Offset { seconds }), Some(SET_THE_CLOCK)));
            }
        }
    }

    #[test]
    fn an_authority_that_has_ended_is_not_blamed_on_the_clock() {
        let mut rng = StdRng::seed_from_u64(1);
        let network = "10.42.0.0/16".parse().unwrap();
        let parameters = CaParameters { mesh: "lab".parse().unwrap(), network, lifetime: DAY };
        let authority = Authority::create(&parameters, NOW, &mut rng).unwrap();
        let (chain, _) = authority.issue_coordinator_tls(7 * DAY, NOW, &mut rng).unwrap();
        let trust = Trust::new(authority.certificate().clone());

        let refused = trust.verify_coordinator(&chain, NOW.plus(2 * DAY)).unwrap_err();

        assert_eq!(refusal(&refused, &trust).clock, None);
    }
}
